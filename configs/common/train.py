"""How long to train, on what, and what to write down on the way."""

train = dict(
    output_dir="output",
    init_checkpoint="",  # path or address of the weights to start from; "" for random ones
    max_iter=43_975,  # 1x: 12 epochs of the 117,266 images with objects, 32 at a time
    seed=-1,  # negative: another one each time
    deterministic=False,  # on GPUs: slower operations whose sums are the same each time, where there are such
    device="auto",  # "cuda", "cpu", or "auto": a GPU if there is one
    amp=dict(
        enabled="auto", dtype="bfloat16"
    ),  # mixed precision; "auto": on GPUs; "float16" before Ampere
    clip_norm=0.0,  # largest L2 norm of the gradients; 0 for no clipping
    accumulate=1,  # parts a batch is computed in, one after the other: less memory, the same step
    ema_decay=0.0,  # of a moving average of the weights, which is evaluated and saved, too; 0 for none
    skip_budget=0,  # images that may be left out in all, if they cannot be used; else the first one is an error
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False),
    checkpointer=dict(
        period=3_665, max_to_keep=3
    ),  # iterations between two (once an epoch), and how many to keep
    best_metric="",  # such as "segm/AP": the checkpoint where it was highest is kept, too; "" for none
    patience=0,  # evaluations without a better one after which the training ends; 0 for no early end
    eval_period=3_665,  # iterations; 0 for only at the end
    log_period=20,  # iterations
    pictures=4,  # of the validation data whose predictions are drawn at each evaluation; 0 for none
    wandb="",  # project of Weights & Biases that metrics and pictures go to; "" for none
)

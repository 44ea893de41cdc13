"""Length of the run, device and precision, checkpoints, evaluation and logging."""

train = dict(
    output_dir="output",
    init_checkpoint="",  # path or address of initial weights; "": random
    # 1x: 12 epochs of the 117,266 training images with objects, in batches of 32.
    max_iter=43_975,
    seed=-1,  # negative: a random seed
    deterministic=False,  # use deterministic algorithms on GPUs where they exist, which are slower
    device="auto",  # "cuda", "cpu", or "auto": a GPU if there is one
    # Mixed precision. enabled: "auto" is True on GPUs. dtype: "float16" for GPUs before Ampere.
    amp=dict(enabled="auto", dtype="bfloat16"),
    eval_dtype="auto",  # of evaluation; "auto": bfloat16 on GPUs that compute in it, else float32
    compile=False,  # compile backbone and pyramid by torch.compile, which takes minutes
    clip_norm=0.0,  # maximum L2 norm of the gradients; 0: no clipping
    accumulate=1,  # parts of a batch whose gradients are accumulated: less memory, the same step
    ema_decay=0.0,  # of the moving average of the weights, also evaluated and saved; 0: no average
    # Total number of images that cannot be used and are skipped; the next one is an error.
    skip_budget=0,
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False),
    checkpointer=dict(period=3_665, max_to_keep=3),  # period: iterations; here 1 epoch
    best_metric="",  # also keep the checkpoint that is best by this, such as "segm/AP"; "": none
    patience=0,  # evaluations without improvement after which the run stops early; 0: never
    eval_period=3_665,  # iterations, here 1 epoch; 0: only at the end
    log_period=20,  # iterations
    pictures=4,  # validation images whose predictions are visualized at each evaluation; 0: none
    wandb="",  # Weights & Biases project for metrics and visualizations; "": none
)

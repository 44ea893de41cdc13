"""How long to train, on what, and what to write down on the way."""

train = dict(
    output_dir="output",
    init_checkpoint="",  # path or address of the weights to start from; "" for random ones
    max_iter=43_975,  # 1x: 12 epochs of the 117,266 images with objects, 32 at a time
    seed=-1,  # negative: another one each time
    device="auto",  # "cuda", "cpu", or "auto": a GPU if there is one
    amp=dict(enabled="auto", dtype="bfloat16"),  # mixed precision; "auto": on GPUs; "float16" before Ampere
    clip_norm=0.0,  # largest L2 norm of the gradients; 0 for no clipping
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False),
    checkpointer=dict(period=3_665, max_to_keep=3),  # iterations: once an epoch
    eval_period=3_665,  # iterations; 0 for only at the end
    log_period=20,  # iterations
)

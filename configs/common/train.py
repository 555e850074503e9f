# What d2kd train reads. Keys known to Detectron2's tools/lazyconfig_train_net.py mean the same there, except
# device, which must be "cuda" or "cpu" for it.
train = dict(
    output_dir="./output",
    init_checkpoint="",  # weights to start from (path or URL); "" for random ones
    max_iter=90000,
    seed=0,  # >= 0; decides initial weights, data order and augmentations
    device="auto",  # "auto" (a GPU if there is one, else the CPU), "cuda" or "cpu"
    amp=dict(enabled=False, dtype="float16"),  # "float16" (GPU) or "bfloat16" (GPU, CPU)
    clip_grad=None,  # or dict(max_norm=10.0, norm_type=2.0): clips the norm of all gradients together
    ema=None,  # or dict(decay=0.999): a moving average of the student's weights, evaluated and saved beside them
    accumulate=1,  # in how many parts the backbone takes a rank's batch: less memory, the same gradients
    ddp=dict(  # options for DistributedDataParallel
        broadcast_buffers=False,
        find_unused_parameters=False,
        fp16_compression=False,
        timeout_minutes=30,  # how long a rank waits for the others
    ),
    trainer=dict(  # options for Detectron2's SimpleTrainer
        gather_metric_period=1,  # iterations; as much as log_period saves a wait for all ranks in most iterations
        zero_grad_before_forward=False,
        async_write_metrics=False,
    ),
    checkpointer=dict(period=5000, max_to_keep=100),  # options for PeriodicCheckpointer
    best_metric="bbox/AP",  # model_best.pth has the highest value of this metric
    eval_period=5000,  # 0: evaluate after the last iteration only
    log_period=20,
    vis_period=0,  # sheets of two test images to TensorBoard and the writers (d2kd visualize); 0: none
    writers=[],  # nodes of EventWriters, beside those for metrics.json, TensorBoard and the console
)

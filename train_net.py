r"""Train and evaluate the models of configs/.

python train_net.py --config-file configs/mask_rcnn_gpvit_l1.py --num-gpus 8
python train_net.py --config-file configs/mask_rcnn_gpvit_l1.py --eval-only \
    train.init_checkpoint=model.pth train.output_dir=output/evaluation
"""

from gpvit.utils.environment import prepare_command

if __name__ in ("__main__", "__mp_main__"):
    prepare_command()  # before PyTorch is imported

from gpvit.cli.main import run_command
from gpvit.cli.train import configure, start
from gpvit.engine.run import do_test, do_train


def main(args, cfg=None):
    """Train or evaluate a model in each process.

    Args:
        args: the parsed command line.
        cfg: the config that :func:`configure` returns for it, if this process has already called
            that function.

    Returns:
        The trained or evaluated model.
    """
    cfg = configure(args) if cfg is None else cfg
    if args.eval_only:
        return do_test(cfg)
    return do_train(cfg, resume=args.resume, config_file=args.config_file)


if __name__ == "__main__":
    run_command(lambda: start(main))

"""train_net.py in one of several processes; each keeps its weights in train.output_dir for the test to compare."""

import torch
import train_net
from detectron2.utils import comm
from gpvit.cli.train import argument_parser
from gpvit.engine.launch import launch


def main(args) -> None:
    model = train_net.main(args)
    output_dir = train_net.configure(args).train.output_dir
    torch.save(model.state_dict(), f"{output_dir}/rank{comm.get_rank()}.pth")


if __name__ == "__main__":
    launch(main, argument_parser().parse_intermixed_args(), device="cpu")

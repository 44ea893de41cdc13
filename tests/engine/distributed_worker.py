"""Runs train_net.py, and saves the weights of each process to train.output_dir, to compare them."""

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

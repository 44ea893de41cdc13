"""What happens before a job begins."""

import io
import logging
import os
import sys

import torch
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig

from ..utils.errors import UserError
from ..utils.files import make_folder
from ..utils.logger import has_terminal, log_above_bars
from ..utils.seed import seed_everything
from ..utils.text import PAGE_LIMIT, PATH_LIMIT, one_line, show_control_characters
from .launch import share_cores

LOGGERS = ("detectron2", "fvcore", "gpvit")


def setup(cfg: DictConfig) -> None:
    """Sets up log and threads.

    As Detectron2's ``default_setup``, but the details of the machine go to the log file and not over the screen.

    Raises:
        UserError: the folder of the run cannot be made, or written to.
    """
    output_dir, rank = cfg.train.output_dir, comm.get_rank()
    make_folder(output_dir)
    try:
        loggers = [setup_logger(output_dir, distributed_rank=rank, name=name) for name in LOGGERS]
        open_log(output_dir)  # on a full disk, closing Detectron2's would be a traceback at the end
    except OSError as error:
        raise UserError(
            f"cannot write to train.output_dir={one_line(output_dir, PATH_LIMIT)}: {error.strerror}; give another one"
        ) from None
    for logger in loggers:
        for handler in logger.handlers:
            handler.addFilter(show_control_characters)
            stream = getattr(handler, "stream", None)
            if isinstance(stream, io.TextIOWrapper) and not stream.closed:
                stream.reconfigure(errors="backslashreplace")  # of a locale that lacks characters
            if stream is sys.stdout:
                handler.setLevel(logging.INFO)
                if has_terminal():
                    log_above_bars(handler)
            else:
                handler.handleError = lambda record: (
                    None
                )  # on a full disk: a traceback on the screen for each line
    logger = logging.getLogger("gpvit")
    if comm.is_main_process():
        logger.debug("Command line: %s", one_line(" ".join(sys.argv), PAGE_LIMIT))
        logger.debug("Environment:\n%s", collect_env_info())
    where = one_line(output_dir, PATH_LIMIT)
    logger.info(
        f"{comm.get_world_size()} x {cfg.train.device}; what is found and made goes to {where}"
    )
    share_cores(cfg.train.device)
    torch.use_deterministic_algorithms(cfg.train.deterministic, warn_only=True)


def open_log(folder: str) -> None:
    """Lets the log of this process go on in a file that is opened now: nobody may see the one that was open any more.

    Raises:
        OSError: it cannot be opened.
    """
    for name in LOGGERS:
        for handler in logging.getLogger(name).handlers:
            path = str(getattr(getattr(handler, "stream", None), "name", ""))
            if isinstance(handler, logging.StreamHandler) and path.startswith(
                os.path.join(folder, "log.txt")
            ):
                handler.setStream(open(path, "a", encoding="utf-8", errors="backslashreplace"))  # noqa: SIM115 (as long as the process)


def shared_seed(seed: int) -> int:
    """A seed for all processes, which it seeds: the one asked for or, if that is negative, another one each time."""
    seed = seed if seed >= 0 else comm.shared_random_seed()
    seed_everything(seed)
    logging.getLogger("gpvit").info(f"random seed {seed}")
    return seed


def device_name(device: str) -> str:
    """What a process runs on, for people, and how many there are."""
    name = (
        torch.cuda.get_device_name()
        if device == "cuda"
        else f"CPU ({torch.get_num_threads()} threads)"
    )
    return f"{comm.get_world_size()} x {name}"

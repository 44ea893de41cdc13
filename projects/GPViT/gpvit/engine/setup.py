"""Set up logging, threads and the random seed of a job."""

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
    """Set up logging and threads.

    Like Detectron2's ``default_setup``, but details of the environment go to the log file only.

    Raises:
        UserError: ``train.output_dir`` cannot be created or written to.
    """
    output_dir, rank = cfg.train.output_dir, comm.get_rank()
    make_folder(output_dir)
    shown_dir = one_line(output_dir, PATH_LIMIT)
    try:
        loggers = [setup_logger(output_dir, distributed_rank=rank, name=name) for name in LOGGERS]
        # Replaces Detectron2's file, which fails with a traceback when closed on a full disk.
        open_log(output_dir)
    except OSError as error:
        raise UserError(
            f"cannot write to train.output_dir={shown_dir}: {error.strerror}; give another one"
        ) from None
    for logger in loggers:
        for handler in logger.handlers:
            _adapt(handler)
    logger = logging.getLogger("gpvit")
    if comm.is_main_process():
        logger.debug("Command line: %s", one_line(" ".join(sys.argv), PAGE_LIMIT))
        logger.debug("Environment:\n%s", collect_env_info())
    logger.info(f"{comm.get_world_size()} x {cfg.train.device}; output folder: {shown_dir}")
    share_cores(cfg.train.device)
    if cfg.train.deterministic and cfg.train.device == "cuda":
        # Without it, cuBLAS may sum in another order in each call. Read at its first call.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(cfg.train.deterministic, warn_only=True)


def _adapt(handler: logging.StreamHandler) -> None:
    """Prepare a handler for control characters, any encoding, progress bars and a full disk."""
    handler.addFilter(show_control_characters)
    stream = getattr(handler, "stream", None)
    if isinstance(stream, io.TextIOWrapper) and not stream.closed:
        # Escapes characters that the encoding of the locale lacks.
        stream.reconfigure(errors="backslashreplace")
    if stream is sys.stdout:
        handler.setLevel(logging.INFO)
        if has_terminal():
            log_above_bars(handler)
    else:
        # On a full disk, logging would print a traceback on the screen for each line.
        handler.handleError = lambda record: None  # type: ignore[method-assign]


def open_log(folder: str) -> None:
    """Open the log file of this process again: the open one may have been removed.

    Raises:
        OSError: it cannot be opened.
    """
    log_file = os.path.join(folder, "log.txt")  # of rank 0; others append ".rankN"
    for name in LOGGERS:
        for handler in logging.getLogger(name).handlers:
            path = str(getattr(getattr(handler, "stream", None), "name", ""))
            if isinstance(handler, logging.StreamHandler) and path.startswith(log_file):
                handler.setStream(open(path, "a", encoding="utf-8", errors="backslashreplace"))  # noqa: SIM115 (open until exit)


def shared_seed(seed: int) -> int:
    """Seed all processes with the same seed.

    Args:
        seed: of the config; a negative one is replaced by a random one.

    Returns:
        The seed that is used.
    """
    seed = seed if seed >= 0 else comm.shared_random_seed()
    seed_everything(seed)
    logging.getLogger("gpvit").info(f"random seed {seed}")
    return seed


def device_name(device: str) -> str:
    """Return number of processes and name of the device, such as "8 x NVIDIA A100-SXM4-80GB"."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        name = f"CPU ({torch.get_num_threads()} threads)"
    return f"{comm.get_world_size()} x {name}"

"""The training loop: exactly repeatable, and stopped by all processes together between two iterations."""

import json
import logging
import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import TrainerBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..data.loader import loading_failure, start_loading, stop_workers
from ..utils.errors import ProcessError, UserError
from ..utils.files import atomic_write, finite_or_text
from ..utils.seed import seed_everything
from ..utils.signals import stop_signals_to
from ..utils.text import LINE_LIMIT, one_line
from .ddp import unwrap_ddp
from .hooks import StopHook, best_effort

logger = logging.getLogger(__name__)

# What a process asks all others to do before an iteration. From 128 on: stop with this exit code.
GO_ON, STOP_ERROR, STOP_EARLY = 0, 1, 2


class _StopNow(SystemExit):
    """A signal in an evaluation or while waiting for data, which other processes may not have had yet."""


class _EarlyStop(Exception):
    """The training is done before its last iteration."""


class Trainer(TrainerBase):
    """Iterations, each of which happens in all processes or in none.

    What is random in an iteration is drawn from generators seeded with (seed, iteration, process), so that it can be
    repeated without those before it.

    Args:
        model: takes a list of images, returns a dict of losses.
        optimizer: of the model's parameters.
        seed: of all randomness.
        output_dir: a step that fails is written down here.
        amp: ``enabled`` and ``dtype`` ("bfloat16" or "float16") of autocast.
        clip_norm: largest L2 norm of all gradients together; 0 for no clipping.
        accumulate: parts that a batch is computed in, one after the other.
        ema_decay: decay of the moving average of the weights; 0 for none.
        skip_budget: images that may be left out in all of the training because they cannot be used.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        seed: int,
        output_dir: str,
        amp: DictConfig,
        clip_norm: float = 0.0,
        accumulate: int = 1,
        ema_decay: float = 0.0,
        skip_budget: int = 0,
    ) -> None:
        super().__init__()
        if accumulate < 1:
            raise UserError(f"train.accumulate must be at least 1, got {accumulate}")
        if clip_norm < 0 or not 0 <= ema_decay < 1:
            raise UserError(
                f"train.clip_norm={clip_norm} must be 0, for none, or more, train.ema_decay={ema_decay} from 0 to below 1"
            )
        if amp.dtype not in ("bfloat16", "float16"):
            raise UserError(f"train.amp.dtype must be bfloat16 or float16, got {amp.dtype}")
        self.model, self.optimizer = model.train(), optimizer
        self.seed, self.output_dir, self.clip_norm = seed, output_dir, clip_norm
        self.accumulate, self.skip_budget = accumulate, skip_budget
        self.device_type = next(model.parameters()).device.type
        self.amp_enabled, self.amp_dtype = amp.enabled, getattr(torch, amp.dtype)
        # float16 underflows without a scaled loss; bfloat16 has the range of float32.
        scale_loss = self.amp_enabled and self.amp_dtype == torch.float16
        self.grad_scaler = torch.amp.GradScaler(self.device_type, enabled=scale_loss)
        self.ema = None
        if ema_decay:
            averaging = get_ema_multi_avg_fn(ema_decay)
            self.ema = AveragedModel(unwrap_ddp(model), multi_avg_fn=averaging, use_buffers=True)

        self.done = 0  # iterations
        self.skipped = 0  # images
        self.request = GO_ON
        self.stops_at_once = False  # when a signal comes
        self._waited = self._worked = 0.0  # seconds: for data, and in all
        # Whether weights, optimizer, schedule and count are those between two iterations. A step makes it False, and
        # Checkpointer, behind the hooks that belong to the step, True.
        self.is_whole = True
        # Any: by its types, new_group may also return the number that stands for a process outside of the group.
        self._group: Any = dist.new_group(backend="gloo") if comm.get_world_size() > 1 else None
        self._statistics = list(model.buffers())
        self._statistics_before = [torch.empty_like(buffer) for buffer in self._statistics]

    def train(self, data_loader: Iterable[list[dict[str, Any]]], max_iter: int) -> None:
        """Goes on from :attr:`done` iterations.

        Args:
            data_loader: gives lists of images without end, the one of the next iteration first; see :mod:`.loader`.
            max_iter: iterations to do in all.

        Raises:
            SystemExit: a signal stopped the training; with the exit code that schedulers know for it.
            UserError: something else did.
        """
        if self.done < max_iter:
            logger.info(f"training from iteration {self.done} to {max_iter}")
        self.iter = self.start_iter = self.done
        self.max_iter = max_iter
        batches = start_loading(data_loader) if self.done < max_iter else iter(())
        with EventStorage(self.done) as self.storage, stop_signals_to(self._request_stop):
            try:
                self.before_train()
                while self.done < self.max_iter:
                    self.iter = self.done
                    self.before_step()
                    self.run_step(batches)
                    self.done += 1
                    self.after_step()
            except _EarlyStop:
                self.max_iter = self.done
            except (Exception, SystemExit) as error:
                if isinstance(error, SystemExit) and isinstance(error.code, int):
                    logger.info(
                        f"{signal.Signals(error.code - 128).name}: stopping after {self.done} iterations"
                    )
                stop_workers(batches)
                for hook in self._hooks:
                    if isinstance(hook, StopHook):
                        hook.on_stop()
                if type(error) in (SystemExit, UserError):  # all processes have it
                    comm.synchronize()  # none ends before the state is saved
                if isinstance(error, UserError):
                    raise
                if reason := loading_failure(
                    error
                ):  # PyTorch interrupts whatever the process is at, when one dies
                    raise ProcessError(f"iteration {self.iter}: {reason}") from error
                if "gloo" in str(error) or isinstance(error, dist.DistError):
                    raise ProcessError(f"another process ended in iteration {self.iter}") from error
                raise
            self.iter = self.done
            logger.info(
                f"{self._waited / max(self._worked, 1e-9):.0%} of the time went into waiting for data"
            )
            self.after_train()

    def run_step(self, batches: Iterator[list[dict[str, Any]]]) -> None:
        self._step_start = time.perf_counter()
        batch = self._next_batch(batches)
        seed_everything(self.seed, self.iter, comm.get_rank())
        self._remember()
        try:
            values = self._step(batch)
        except BaseException as error:
            if self.is_whole:
                self._undo()
            if isinstance(error, torch.OutOfMemoryError):
                raise ProcessError(self._out_of_memory(batch)) from error
            if isinstance(
                error, FloatingPointError
            ):  # Detectron2's, of the proposals of this process
                path = self._report_not_finite(
                    [self._seen(batch, {})], None, f"_rank{comm.get_rank()}"
                )
                raise ProcessError(
                    f"iteration {self.iter}: {error} {_where_to_look(path)}"
                ) from error
            raise
        self._write_metrics(values)

    def _step(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        losses = self.forward_and_backward(batch)
        norm = self._gradient_norm()
        values = self._averaged(
            losses | {"data_time": losses["total_loss"].new_tensor(self._data_time)}
        )
        if not (values["total_loss"].isfinite() and norm.isfinite()):
            path = self._report_not_finite(comm.gather(self._seen(batch, losses)), float(norm))
            raise UserError(
                f"iteration {self.iter}: loss or gradient is not finite. {_where_to_look(path)}"
            )
        self.is_whole = False
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update_parameters(unwrap_ddp(self.model))
        return values

    def _next_batch(self, batches: Iterator[list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """The next batch, if no process has a reason to stop; else none goes on."""
        error, batch = None, []
        try:
            with self.interruptible():
                batch = next(batches)
        except _StopNow:
            pass  # the others hear of it below
        except RuntimeError as failure:  # what PyTorch raises for its data-loading processes
            reason = (
                loading_failure(failure)
                or f"a data-loading process failed: {str(failure).splitlines()[0]}"
            )
            error = f"iteration {self.iter}: {reason}"
        self._data_time = time.perf_counter() - self._step_start
        reasons = [reason for image in batch for reason in image["skipped"]]
        for reason in reasons if self.skip_budget else ():
            logger.warning(f"left out: {one_line(reason, LINE_LIMIT)}")
        if any("image" not in image for image in batch):
            error = reasons[-1]  # nothing took its place
        code, skipped = self._agree(STOP_ERROR if error else self.request, len(reasons))
        skipped += self.skipped
        if self.skip_budget and skipped > self.skipped:
            logger.warning(f"{skipped} images left out so far, {self.skip_budget} allowed")
        if skipped > self.skip_budget and code < 128:
            code, error = STOP_ERROR, error or (reasons[-1] if reasons else None)
            if error:
                error += f"; repair it and go on with --resume, or leave out more than train.skip_budget={self.skip_budget}"
        if code >= 128:
            raise SystemExit(code)
        if code == STOP_EARLY:
            raise _EarlyStop
        if code == STOP_ERROR:
            told = (
                f"{skipped} images were left out, and train.skip_budget allows {self.skip_budget}"
            )
            raise UserError(next(filter(None, comm.all_gather(error)), told))
        self.skipped = skipped
        return batch

    def _agree(self, request: int, skipped: int) -> tuple[int, int]:
        """The most urgent request of all processes, and how many images they left out together."""
        if self._group is None:
            return request, skipped
        table = torch.zeros(comm.get_world_size(), 2, dtype=torch.int64)
        table[comm.get_rank()] = torch.tensor([request, skipped])
        dist.all_reduce(table, group=self._group)
        return int(table[:, 0].max()), int(table[:, 1].sum())

    def forward_and_backward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Computes the gradients of a batch, in parts. Returns: its losses, scalars, and their sum "total_loss"."""
        size = -(-len(batch) // self.accumulate)
        parts = [batch[i : i + size] for i in range(0, len(batch), size)]
        means: dict[str, Tensor] = {}
        for number, part in enumerate(parts):
            share = len(part) / len(batch)
            last = number == len(parts) - 1
            with (
                nullcontext()
                if last or not isinstance(self.model, DistributedDataParallel)
                else self.model.no_sync()
            ):
                with torch.autocast(self.device_type, self.amp_dtype, enabled=self.amp_enabled):
                    losses = self.model(part)
                losses["total_loss"] = sum(losses.values())
                self.grad_scaler.scale(losses["total_loss"] * share).backward()
            for name, loss in losses.items():
                means[name] = means.get(name, 0.0) + loss.detach() * share
        self.after_backward()
        return means

    def _gradient_norm(self) -> Tensor:
        """The L2 norm of all gradients, before they are clipped; one where a smaller scale may make it finite."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        if self.grad_scaler.is_enabled():
            self.grad_scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.clip_norm:
            nn.utils.clip_grads_with_norm_(parameters, self.clip_norm, norm)
        return (
            torch.ones(())
            if self.grad_scaler.is_enabled() and self.grad_scaler.get_scale() >= 1
            else norm
        )

    def _averaged(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Means over the processes; not a number in all of them if it is in one."""
        means = torch.stack([value.float() for value in values.values()])
        if self._group is not None:
            dist.all_reduce(means)
            means /= comm.get_world_size()
        return dict(zip(values, means.cpu()))

    def _remember(self) -> None:
        """Keeps what a forward pass changes."""
        copy_all(self._statistics, self._statistics_before)
        self._normalizer_before = self.loss_normalizer

    def _undo(self) -> None:
        """Leaves the model as it was before the iteration."""
        self.optimizer.zero_grad()
        copy_all(self._statistics_before, self._statistics)
        self.loss_normalizer = self._normalizer_before

    @property
    def loss_normalizer(self) -> float | None:
        """RetinaNet's running number of positive anchors, which Detectron2 keeps outside of its state."""
        return getattr(unwrap_ddp(self.model), "loss_normalizer", None)

    @loss_normalizer.setter
    def loss_normalizer(self, value: float | None) -> None:
        if value is not None:
            setattr(unwrap_ddp(self.model), "loss_normalizer", value)  # noqa: B010 (PyTorch's types want a Tensor or Module)
        elif self.loss_normalizer is not None:
            del unwrap_ddp(self.model).loss_normalizer

    def _out_of_memory(self, batch: list[dict[str, Any]]) -> str:
        sizes = ", ".join("{2}x{1}".format(*image["image"].shape) for image in batch)
        return (
            f"out of memory in iteration {self.iter} of process {comm.get_rank()}, with images of {sizes} pixels (width x "
            "height): raise train.accumulate and resume, or begin anew with a lower dataloader.max_size or "
            "dataloader.train.total_batch_size"
        )

    def _seen(self, batch: list[dict[str, Any]], losses: dict[str, Tensor]) -> dict[str, Any]:
        """What this process had in the iteration, for a report."""
        images = [
            {key: image.get(key) for key in ("file_name", "image_id", "index", "position")}
            for image in batch
        ]
        return {
            "rank": comm.get_rank(),
            "losses": {name: float(loss) for name, loss in losses.items()},
            "images": images,
        }

    def _report_not_finite(
        self, processes: list[dict[str, Any]], norm: float | None, suffix: str = ""
    ) -> str:
        """Writes down what the iteration saw. Returns: the path of the file."""
        path = os.path.join(self.output_dir, f"not_finite_{self.iter:07}{suffix}.json")
        if processes:  # gathered in process 0
            content = {
                "iteration": self.iter,
                "seed": self.seed,
                "gradient_norm": norm,
                "processes": processes,
            }
            text = json.dumps(finite_or_text(content), indent=1)
            with (
                best_effort("what the iteration saw is not written down"),
                atomic_write(path) as partial,
            ):
                partial.write_text(text, encoding="utf-8")
        return path

    def _write_metrics(self, values: dict[str, Tensor]) -> None:
        metrics = {name: float(value) for name, value in values.items()}
        seconds = time.perf_counter() - self._step_start
        self._waited, self._worked = self._waited + metrics["data_time"], self._worked + seconds
        self.storage.put_scalars(
            **metrics, data_share=metrics["data_time"] / seconds, smoothing_hint=False
        )

    def _request_stop(self, number: int, frame: object) -> None:
        """Turns a signal into a request to stop after the iteration; further ones change nothing."""
        self.request = (
            128 + number
        )  # no log from here: the signal may have come in the middle of a line of it
        if self.stops_at_once:
            self.stops_at_once = False
            raise _StopNow(self.request)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """While nothing of the training changes, in an evaluation or waiting for data, a signal stops it at once."""
        self.stops_at_once = True
        try:
            if (
                self.request >= 128
            ):  # looked at when later ones already raise, so that none is missed
                raise _StopNow(self.request)
            yield
        finally:
            self.stops_at_once = False

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict() | {
            "iteration": self.done,
            "skipped": self.skipped,
            "optimizer": self.optimizer.state_dict(),
            "grad_scaler": self.grad_scaler.state_dict(),
            "loss_normalizer": self.loss_normalizer,
        }
        if self.ema is not None:
            state["ema_steps"] = int(self.ema.n_averaged)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        ours, theirs = (
            part["param_groups"] for part in (self.optimizer.state_dict(), state["optimizer"])
        )
        if [{key: type(value) for key, value in group.items()} for group in ours] != [
            {key: type(value) for key, value in group.items()} for group in theirs
        ]:
            raise UserError("its optimizer has other settings for the parameters than this run's")
        self.done, self.skipped = state["iteration"], int(state["skipped"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.grad_scaler.load_state_dict(state["grad_scaler"])
        self.loss_normalizer = state["loss_normalizer"]
        if self.ema is not None:
            self.ema.n_averaged.fill_(state["ema_steps"])


def _where_to_look(report: str) -> str:
    repeat = (
        f"`gpvit replay --input {report}` repeats it"
        if os.path.exists(report)
        else "It cannot be repeated"
    )
    return f"{repeat}; to go on, change its cause, or begin from an earlier checkpoint"


@torch.no_grad()
def copy_all(sources: list[Tensor], targets: list[Tensor]) -> None:
    if sources:  # a model may have no statistics, and PyTorch minds
        torch._foreach_copy_(targets, sources)

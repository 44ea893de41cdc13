"""The training loop: reproducible, and stopped by all processes together between two iterations.

An iteration happens in all processes or in none:

1. ``_next_batch`` loads a batch. The processes then agree whether to continue: one that stopped
   alone would leave the others waiting for it in their next collective operation.
2. ``_copy_buffers`` copies the state that a forward pass changes, such as batch norm statistics.
3. ``_step`` computes losses and gradients, and updates the weights. If it fails before the update,
   ``_undo`` restores the copy, so that the state before the iteration can be saved.
4. Hooks update the schedule; then :class:`.Checkpointer` sets ``is_consistent``: from ``_step``'s
   update until then, the state is between two iterations and cannot be saved.
"""

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

# Requests of a process to all others before an iteration. The highest one of all processes wins.
# Within a process, an error wins over its other requests.
CONTINUE, STOP_ERROR, STOP_EARLY = 0, 1, 2
SIGNAL_BASE = 128  # 128 + n: stop because of signal n; also the exit code, by convention

REPORTED_KEYS = ("file_name", "image_id", "index", "position")  # of an image, for `gpvit replay`


class _StopNow(SystemExit):
    """A signal during an evaluation or while loading data, which others may not have received."""


class _EarlyStop(Exception):
    """Training ends before ``max_iter``."""


class Trainer(TrainerBase):
    """The training loop, each iteration of which happens in all processes or in none.

    The global random number generators are seeded with (seed, iteration, rank) before each
    iteration, so that an iteration can be repeated without the ones before it.

    Args:
        model: takes a list of images, returns a dict of losses.
        optimizer: of the model's parameters.
        seed: of all randomness.
        output_dir: where reports of iterations with non-finite values are written.
        amp: ``enabled`` and ``dtype`` ("bfloat16" or "float16") of autocast.
        clip_norm: largest L2 norm of all gradients together; 0 disables clipping.
        accumulate: number of parts that a batch is split into for gradient accumulation.
        ema_decay: decay of the exponential moving average of the weights; 0 disables it.
        skip_budget: number of unusable images that may be skipped in the complete run.
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
                f"train.clip_norm={clip_norm} must be at least 0 (0 disables clipping), and "
                f"train.ema_decay={ema_decay} at least 0 and below 1"
            )
        if amp.dtype not in ("bfloat16", "float16"):
            raise UserError(f"train.amp.dtype must be bfloat16 or float16, got {amp.dtype}")
        self.model, self.optimizer = model.train(), optimizer
        self.seed, self.output_dir, self.clip_norm = seed, output_dir, clip_norm
        self.accumulate, self.skip_budget = accumulate, skip_budget
        self.device_type = next(model.parameters()).device.type
        self.amp_enabled, self.amp_dtype = amp.enabled, getattr(torch, amp.dtype)
        # Gradients underflow in float16 without loss scaling; bfloat16 has the range of float32.
        scale_loss = self.amp_enabled and self.amp_dtype == torch.float16
        self.grad_scaler = torch.amp.GradScaler(self.device_type, enabled=scale_loss)
        self.ema = None
        if ema_decay:
            averaging = get_ema_multi_avg_fn(ema_decay)
            self.ema = AveragedModel(unwrap_ddp(model), multi_avg_fn=averaging, use_buffers=True)

        self.done = 0  # completed iterations
        self.skipped = 0  # images, in all processes
        self.request = CONTINUE  # of this process, to all processes
        self.raise_on_signal = False  # or finish the iteration and stop before the next one
        self._data_seconds = self._total_seconds = 0.0  # of the run since it was started or resumed
        self._step_start = self._data_time = 0.0  # of this iteration, in seconds
        # Whether weights, optimizer, schedule and ``done`` are all those between two iterations.
        # The optimizer step sets it to False; Checkpointer.after_step sets it to True, after the
        # hooks that belong to the iteration.
        self.is_consistent = True
        # A CPU group of its own, so that agreeing on a request does not wait for the GPU.
        # Any: new_group is also typed to return the number of a process outside the group.
        self._group: Any = dist.new_group(backend="gloo") if comm.get_world_size() > 1 else None
        self._buffers = list(model.buffers())
        self._buffers_before = [torch.empty_like(buffer) for buffer in self._buffers]

    def train(self, data_loader: Iterable[list[dict[str, Any]]], max_iter: int) -> None:
        """Train from iteration :attr:`done` to ``max_iter``.

        Args:
            data_loader: yields lists of images without end, starting with those of iteration
                :attr:`done`; see :mod:`.loader`.
            max_iter: total number of iterations.

        Raises:
            SystemExit: a signal stopped the run; the exit code is 128 + its number.
            UserError: an error stopped the run.
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
                self.max_iter = self.done  # for the hooks: this was the last iteration
            except (Exception, SystemExit) as error:
                self._shut_down(error, batches)
                reason = self._failure_elsewhere(error)
                if reason:
                    raise ProcessError(reason) from error
                raise
            stop_workers(batches)  # they need memory, which the evaluation may need, too
            self.iter = self.done
            waiting = self._data_seconds / max(self._total_seconds, 1e-9)
            logger.info(f"{waiting:.0%} of the time was spent waiting for data")
            self.after_train()

    def run_step(self, batches: Iterator[list[dict[str, Any]]]) -> None:
        """Run an iteration, and undo it if it fails before the weights are updated."""
        self._step_start = time.perf_counter()
        batch = self._next_batch(batches)
        seed_everything(self.seed, self.iter, comm.get_rank())
        self._copy_buffers()
        try:
            metrics = self._step(batch)
        except BaseException as error:
            if self.is_consistent:
                self._undo()
            if isinstance(error, torch.OutOfMemoryError):
                raise ProcessError(self._out_of_memory(batch)) from error
            # Raised by Detectron2 for non-finite proposals, which other processes may not have.
            if isinstance(error, FloatingPointError):
                report = self._write_report(
                    [self._inputs_and_losses(batch, {})], None, f"_rank{comm.get_rank()}"
                )
                raise ProcessError(
                    f"iteration {self.iter}: {error} {_replay_hint(report)}"
                ) from error
            raise
        self._write_metrics(metrics)

    def _step(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Update the weights, and return losses and data time, averaged over the processes."""
        losses = self.forward_and_backward(batch)
        norm = self._clip_gradients()
        # Not new_tensor, which copies the number to the GPU.
        data_time = losses["total_loss"].new_full((), self._data_time)
        metrics = self._averaged(losses | {"data_time": data_time})
        # Total loss and norm are the same in all processes (DDP averages the gradients), and so is
        # the decision. With loss scaling, gradients overflow now and then: GradScaler skips such a
        # step and lowers the scale, so that they are only an error once it has fallen below 1.
        may_overflow = self.grad_scaler.is_enabled() and self.grad_scaler.get_scale() >= 1
        if not (metrics["total_loss"].isfinite() and (may_overflow or norm.isfinite())):
            processes = comm.gather(self._inputs_and_losses(batch, losses))
            report = self._write_report(processes, float(norm))
            # Only process 0 knows if the report exists: others may not share its disk.
            hint = comm.all_gather(_replay_hint(report))[0]
            raise UserError(f"iteration {self.iter}: loss or gradient is not finite. {hint}")
        self.is_consistent = False
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update_parameters(unwrap_ddp(self.model))
        return metrics

    def forward_and_backward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Compute the gradients of a batch, in :attr:`accumulate` parts.

        Returns:
            The losses of the batch, scalars, and their sum "total_loss".
        """
        part_size = -(-len(batch) // self.accumulate)  # rounded up
        starts = range(0, len(batch), part_size)
        means: dict[str, Tensor] = {}
        for start in starts:
            part = batch[start : start + part_size]
            # Treats losses as means over the images, so that the parts add up to the batch.
            weight = len(part) / len(batch)
            # DDP averages the gradients over the processes in the last backward pass only.
            sync = (
                self.model.no_sync()
                if isinstance(self.model, DistributedDataParallel) and start != starts[-1]
                else nullcontext()
            )
            with sync:
                with torch.autocast(self.device_type, self.amp_dtype, enabled=self.amp_enabled):
                    losses = self.model(part)
                losses["total_loss"] = sum(losses.values())
                self.grad_scaler.scale(losses["total_loss"] * weight).backward()
            for name, loss in losses.items():
                means[name] = means.get(name, 0.0) + loss.detach() * weight
        self.after_backward()
        return means

    def _clip_gradients(self) -> Tensor:
        """Unscale and clip the gradients, and return their L2 norm before clipping."""
        if self.grad_scaler.is_enabled():
            self.grad_scaler.unscale_(self.optimizer)
        parameters, gradients = [], []
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameters.append(parameter)
                gradients.append(parameter.grad)
        norm = nn.utils.get_total_norm(gradients)
        if self.clip_norm:
            nn.utils.clip_grads_with_norm_(parameters, self.clip_norm, norm)
        return norm

    def _averaged(self, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        """Average scalars over the processes. A NaN in one process gives NaN in all of them."""
        means = torch.stack([metric.float() for metric in metrics.values()])
        if comm.get_world_size() > 1:
            dist.all_reduce(means)  # in the default group, since the scalars may be on the GPU
            means /= comm.get_world_size()
        return dict(zip(metrics, means.cpu()))

    # Agreeing to continue or to stop

    def _next_batch(self, batches: Iterator[list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """Return the next batch of this process, if all processes continue.

        Raises:
            SystemExit, _EarlyStop, UserError: in all processes, when one of them requests it.
        """
        batch, error = self._load(batches)
        self._data_time = time.perf_counter() - self._step_start
        reasons: list[str] = []  # why images were skipped
        for image in batch:
            reasons += image["skipped"]
            if "image" not in image:  # no usable image was found to take its place
                error = image["skipped"][-1]
        if self.skip_budget:
            for reason in reasons:
                logger.warning(f"skipped: {one_line(reason, LINE_LIMIT)}")

        code, newly_skipped = self._agree(STOP_ERROR if error else self.request, len(reasons))
        skipped = self.skipped + newly_skipped
        if self.skip_budget and newly_skipped:
            logger.warning(f"{skipped} images skipped so far, {self.skip_budget} allowed")
        if skipped > self.skip_budget and code < SIGNAL_BASE:
            code = STOP_ERROR
            error = error or (reasons[-1] if reasons else None)
            if error:
                error += (
                    "; fix the file and continue with --resume, or raise "
                    f"train.skip_budget={self.skip_budget}"
                )
        if code >= SIGNAL_BASE:
            raise SystemExit(code)
        if code == STOP_EARLY:
            raise _EarlyStop
        if code == STOP_ERROR:
            # Without an error: the images were skipped before the run was resumed with less budget.
            too_many = f"{skipped} images were skipped, train.skip_budget allows {self.skip_budget}"
            raise UserError(next(filter(None, comm.all_gather(error)), too_many))
        self.skipped = skipped
        return batch

    def _load(
        self, batches: Iterator[list[dict[str, Any]]]
    ) -> tuple[list[dict[str, Any]], str | None]:
        """Return the next batch and no error; or an empty batch and the error message, if any.

        There is no error after a signal, which :attr:`request` holds for all processes.
        """
        try:
            with self.interruptible():
                return next(batches), None
        except _StopNow:
            return [], None
        except RuntimeError as failure:  # PyTorch's, about a data-loading process
            first_line = str(failure).splitlines()[0]
            reason = loading_failure(failure) or f"a data-loading process failed: {first_line}"
            return [], f"iteration {self.iter}: {reason}"

    def _agree(self, request: int, skipped: int) -> tuple[int, int]:
        """Return the highest request of all processes, and how many images they skipped."""
        if self._group is None:
            return request, skipped
        # One row per process: (request, skipped). Each process fills its own, the sum is all rows.
        table = torch.zeros(comm.get_world_size(), 2, dtype=torch.int64)
        table[comm.get_rank()] = torch.tensor([request, skipped])
        dist.all_reduce(table, group=self._group)
        return int(table[:, 0].max()), int(table[:, 1].sum())

    def _request_stop(self, number: int, frame: object) -> None:
        """Handle a signal: request a stop before the next iteration, or raise if allowed."""
        # No logging here: the signal may have interrupted a handler in the middle of a line.
        self.request = SIGNAL_BASE + number
        if self.raise_on_signal:
            self.raise_on_signal = False  # once: a second signal must not interrupt the stop
            raise _StopNow(self.request)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let signals raise immediately in a block, which must not change the state."""
        self.raise_on_signal = True
        try:
            # Only now, so that no signal between the check and the assignment above is lost.
            if self.request >= SIGNAL_BASE:
                raise _StopNow(self.request)
            yield
        finally:
            self.raise_on_signal = False

    def _shut_down(self, error: BaseException, batches: Iterator[list[dict[str, Any]]]) -> None:
        """Stop loading data, and let the hooks save the state."""
        if isinstance(error, SystemExit):
            for number in (signal.SIGTERM, signal.SIGINT):
                if error.code == SIGNAL_BASE + number:  # a hook may exit with another code
                    logger.info(f"{number.name}: stopping after {self.done} iterations")
        stop_workers(batches)
        for hook in self._hooks:
            if isinstance(hook, StopHook):
                hook.on_stop()
        # SystemExit and UserError are raised in all processes; none may exit before the state is
        # saved. Their subclasses, _StopNow and ProcessError, are raised in one process alone.
        if type(error) in (SystemExit, UserError):
            comm.synchronize()

    def _failure_elsewhere(self, error: BaseException) -> str | None:
        """Return the message for an error of a worker or another rank; None for other errors."""
        if isinstance(error, UserError):
            return None
        # When a data-loading process dies, PyTorch raises from a signal handler, at any statement.
        reason = loading_failure(error)
        if reason:
            return f"iteration {self.iter}: {reason}"
        # With the gloo backend, a lost connection is a RuntimeError, known by its text only.
        if "gloo" in str(error) or isinstance(error, dist.DistError):
            return f"another process ended in iteration {self.iter}"
        return None

    # Undoing an iteration

    def _copy_buffers(self) -> None:
        """Copy the state that a forward pass changes."""
        _copy_all(self._buffers, to=self._buffers_before)

    def _undo(self) -> None:
        """Restore the model as it was before the iteration.

        Weights and optimizer are unchanged: :meth:`_step` updates them last.
        """
        self.optimizer.zero_grad()
        _copy_all(self._buffers_before, to=self._buffers)

    # Reports

    def _out_of_memory(self, batch: list[dict[str, Any]]) -> str:
        sizes = []
        for image in batch:
            _, height, width = image["image"].shape
            sizes.append(f"{width}x{height}")
        return (
            f"out of memory in iteration {self.iter} of process {comm.get_rank()}, with images of "
            f"{', '.join(sizes)} pixels (width x height): raise train.accumulate and resume, or "
            "start a new run with a lower dataloader.max_size or dataloader.train.total_batch_size"
        )

    def _inputs_and_losses(
        self, batch: list[dict[str, Any]], losses: dict[str, Tensor]
    ) -> dict[str, Any]:
        """Return the part of this process in a report."""
        images = []
        for image in batch:
            images.append({key: image.get(key) for key in REPORTED_KEYS})
        return {
            "rank": comm.get_rank(),
            "losses": {name: float(loss) for name, loss in losses.items()},
            "images": images,
        }

    def _write_report(
        self, processes: list[dict[str, Any]], norm: float | None, suffix: str = ""
    ) -> str:
        """Write what ``gpvit replay`` needs to repeat the iteration, and return the file's path.

        Args:
            processes: the part of each process; empty in processes that do not write.
            norm: L2 norm of the gradients, if they were computed.
            suffix: of the file name.
        """
        path = os.path.join(self.output_dir, f"not_finite_{self.iter:07}{suffix}.json")
        if processes:
            content = {
                "iteration": self.iter,
                "seed": self.seed,
                "gradient_norm": norm,
                "processes": processes,
            }
            text = json.dumps(finite_or_text(content), indent=1)
            with (
                best_effort("the report for `gpvit replay` was not written"),
                atomic_write(path) as partial,
            ):
                partial.write_text(text, encoding="utf-8")
        return path

    def _write_metrics(self, metrics: dict[str, Tensor]) -> None:
        numbers = {name: float(value) for name, value in metrics.items()}
        seconds = time.perf_counter() - self._step_start
        self._data_seconds += numbers["data_time"]
        self._total_seconds += seconds
        data_share = numbers["data_time"] / seconds
        self.storage.put_scalars(**numbers, data_share=data_share, smoothing_hint=False)

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return the state but for the weights, which :class:`.Checkpointer` saves.

        It has the states of the hooks, of optimizer and gradient scaler, the counts of iterations
        and skipped images, and the buffers that the model's state dict lacks.
        """
        state = super().state_dict() | {
            "iteration": self.done,
            "skipped": self.skipped,
            "optimizer": self.optimizer.state_dict(),
            "grad_scaler": self.grad_scaler.state_dict(),
            "buffers": unsaved_buffers(self.model),
        }
        if self.ema is not None:
            state["ema_steps"] = int(self.ema.n_averaged)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`.

        Raises:
            UserError: it belongs to another optimizer or model.
        """
        super().load_state_dict(state)
        # PyTorch compares the numbers of groups and parameters only, not their settings.
        expected = _types_of_settings(self.optimizer.state_dict())
        if _types_of_settings(state["optimizer"]) != expected:
            raise UserError(
                "the optimizer settings in the checkpoint are not those of this run's optimizer; "
                "resume with the config of the checkpoint"
            )
        self.done, self.skipped = state["iteration"], int(state["skipped"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.grad_scaler.load_state_dict(state["grad_scaler"])
        load_unsaved_buffers(self.model, state)
        if self.ema is not None:
            self.ema.n_averaged.fill_(state["ema_steps"])


def unsaved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that the model's state dict lacks, such as RetinaNet's average."""
    model = unwrap_ddp(model)
    saved = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name not in saved}


def load_unsaved_buffers(model: nn.Module, state: dict[str, Any]) -> None:
    """Restore :func:`unsaved_buffers` from a trainer's state.

    Raises:
        UserError: a buffer has another shape.
    """
    values = dict(state.get("buffers", {}))
    normalizer = state.get("loss_normalizer")
    if normalizer is not None:  # a number in older states
        values["loss_normalizer"] = torch.tensor(float(normalizer), dtype=torch.float64)
    for name, buffer in unsaved_buffers(model).items():
        if name not in values:
            continue
        if values[name].shape != buffer.shape:
            raise UserError(
                f"the buffer {name} has shape {tuple(values[name].shape)} in the checkpoint, but "
                f"{tuple(buffer.shape)} in the model; resume with the config of the checkpoint"
            )
        buffer.copy_(values[name])


def _replay_hint(report: str) -> str:
    replay = (
        f"Run `gpvit replay --input {report}` to repeat it"
        if os.path.exists(report)
        else "It cannot be repeated (there is no report)"
    )
    return f"{replay}; to continue, fix the cause, or resume from an earlier checkpoint"


def _types_of_settings(optimizer: dict[str, Any]) -> list[dict[str, type]]:
    """Return the type of each setting, such as "lr", of each parameter group, by its name.

    Names and types tell the optimizers apart. Values do not: the schedule changes them.
    """
    groups = []
    for group in optimizer["param_groups"]:
        groups.append({name: type(value) for name, value in group.items()})
    return groups


@torch.no_grad()
def _copy_all(sources: list[Tensor], *, to: list[Tensor]) -> None:
    """Copy each tensor to the one in the same position of ``to``."""
    if sources:  # a model may have no buffers, and _foreach_copy_ refuses empty lists
        torch._foreach_copy_(to, sources)

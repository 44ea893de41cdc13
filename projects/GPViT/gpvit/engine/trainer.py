"""The training loop's step."""

import time
from collections.abc import Iterable

import torch
import torch.distributed as dist
from detectron2.engine import SimpleTrainer
from detectron2.layers.batch_norm import NaiveSyncBatchNorm
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class Trainer(SimpleTrainer):
    """Detectron2's trainer with mixed precision on any device and gradient clipping.

    Its own AMPTrainer insists on CUDA, and always scales the loss.

    Args:
        model: takes a batch, returns a dict of losses.
        data_loader: gives batches without end.
        optimizer: of the model's parameters.
        amp: ``enabled`` (True, False, or "auto": on GPUs) and ``dtype`` ("bfloat16" or "float16") of autocast.
        clip_norm: largest L2 norm of all gradients together; 0 for no clipping.
    """

    def __init__(
        self, model: nn.Module, data_loader: Iterable, optimizer: torch.optim.Optimizer, amp: DictConfig, clip_norm: float
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self.device_type = next(model.parameters()).device.type
        self.amp_enabled = self.device_type == "cuda" if amp.enabled == "auto" else amp.enabled
        self.amp_dtype = getattr(torch, amp.dtype)
        # float16 underflows without a scaled loss; bfloat16 has the range of float32.
        scale_loss = self.amp_enabled and self.amp_dtype == torch.float16
        self.grad_scaler = torch.amp.GradScaler(self.device_type, enabled=scale_loss)
        self.clip_norm = clip_norm

    def run_step(self) -> None:
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        with torch.autocast(self.device_type, self.amp_dtype, enabled=self.amp_enabled):
            losses = self.model(data)
        self.optimizer.zero_grad()
        self.grad_scaler.scale(sum(losses.values())).backward()
        self.after_backward()
        if self.clip_norm > 0:
            self.grad_scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self._write_metrics(losses, data_time)  # raises where a loss is not finite, before the weights change
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict:
        return super().state_dict() | {"grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def build_ddp(model: nn.Module, **options: bool) -> nn.Module:
    """The model as each process of a job trains it."""
    on_gpu = next(model.parameters()).device.type == "cuda"
    if dist.is_initialized() and not on_gpu:
        model = _with_cpu_sync_bn(model)
    if comm.get_world_size() == 1:
        return model
    return DistributedDataParallel(model, device_ids=[torch.cuda.current_device()] if on_gpu else None, **options)


def _with_cpu_sync_bn(module: nn.Module) -> nn.Module:
    """PyTorch's SyncBatchNorm works on GPUs only; Detectron2 has one that does not need them."""
    for name, child in module.named_children():
        module.add_module(name, _with_cpu_sync_bn(child))
    if not isinstance(module, nn.SyncBatchNorm):
        return module
    norm = NaiveSyncBatchNorm(module.num_features, module.eps, module.momentum, stats_mode="N")
    norm.load_state_dict(module.state_dict())
    norm.weight, norm.bias = module.weight, module.bias  # the very parameters, which an optimizer may hold already
    return norm

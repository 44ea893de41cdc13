"""Data-parallel training."""

from typing import Any

import torch
import torch.distributed as dist
from detectron2.layers.batch_norm import NaiveSyncBatchNorm
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def unwrap_ddp(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


def build_ddp(model: nn.Module, **options: Any) -> nn.Module:
    """The model as each process of a job trains it."""
    on_gpu = next(model.parameters()).device.type == "cuda"
    if dist.is_initialized() and not on_gpu:
        model = _with_cpu_sync_bn(model)
    if comm.get_world_size() == 1:
        return model
    return DistributedDataParallel(
        model, device_ids=[torch.cuda.current_device()] if on_gpu else None, **options
    )


def _with_cpu_sync_bn(module: nn.Module) -> nn.Module:
    """PyTorch's SyncBatchNorm works on GPUs only; Detectron2 has one that does not need them."""
    for name, child in module.named_children():
        module.add_module(name, _with_cpu_sync_bn(child))
    if not isinstance(module, nn.SyncBatchNorm):
        return module
    norm = NaiveSyncBatchNorm(module.num_features, module.eps, module.momentum, stats_mode="N")
    norm.load_state_dict(module.state_dict())
    norm.weight, norm.bias = (
        module.weight,
        module.bias,
    )  # the very parameters, which an optimizer may hold already
    return norm

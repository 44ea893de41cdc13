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
    """Prepare a model for training in each process of a job.

    Args:
        model: on the device that it is trained on.
        options: of DistributedDataParallel.

    Returns:
        The model, wrapped in DistributedDataParallel if there are several processes.
    """
    on_gpu = next(model.parameters()).device.type == "cuda"
    if dist.is_initialized() and not on_gpu:
        model = _with_cpu_sync_bn(model)
    if comm.get_world_size() == 1:
        return model
    device_ids = [torch.cuda.current_device()] if on_gpu else None
    return DistributedDataParallel(model, device_ids=device_ids, **options)


def _with_cpu_sync_bn(module: nn.Module) -> nn.Module:
    """Replace PyTorch's SyncBatchNorm, which needs a GPU, by Detectron2's implementation."""
    for name, child in module.named_children():
        module.add_module(name, _with_cpu_sync_bn(child))
    if not isinstance(module, nn.SyncBatchNorm):
        return module
    norm = NaiveSyncBatchNorm(module.num_features, module.eps, module.momentum, stats_mode="N")
    norm.load_state_dict(module.state_dict())
    # The same Parameter objects, since an optimizer may refer to them already.
    norm.weight, norm.bias = module.weight, module.bias
    return norm

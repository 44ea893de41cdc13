"""Models on the simulated GPU (simulated_gpu.py): devices, numbers, and waits of the host."""

import contextlib
import copy
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from detectron2.config import instantiate
from detectron2.layers import ROIAlign
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from gpvit.config import load_config
from simulated_gpu import simulated_gpu
from torch import Tensor, nn

FEW_BOXES = [
    "model.proposal_generator.post_nms_topk=[20,10]",
    "model.roi_heads.batch_size_per_image=8",
]
NARROW_NET = ["model.backbone.net.embed_dim=24"]
NARROW_ADAPTER = ["model.backbone.bottom_up.net.embed_dim=24"]
# Config -> overrides.
MODELS = {
    "quickstart": FEW_BOXES,
    "cascade_mask_rcnn_gpvit_l1": NARROW_NET + FEW_BOXES,
    "published/mask_rcnn_gpvit_l1_1x": NARROW_ADAPTER + FEW_BOXES,
    "published/retinanet_gpvit_l1_1x": NARROW_ADAPTER,
    "published/segformer_gpvit_l1": ["model.backbone.embed_dim=24"],
    "published/upernet_gpvit_l1": ["model.backbone.embed_dim=24"],
    "quickstart_semantic": ["model.sem_seg_head.class_weights=null"],
    "quickstart_classifier": [],
}
SLOW = ("published/segformer_gpvit_l1", "published/upernet_gpvit_l1")


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    path = REPOSITORY / "configs" / f"{name}.py"
    return instantiate(load_config(str(path), MODELS[name]).model).train()


def batch_for(name: str) -> list[dict[str, Any]]:
    """Two images with labels of all tasks."""
    torch.manual_seed(1)
    sizes = [(64, 64)] * 2 if "classifier" in name else [(64, 96), (96, 64)]
    boxes = torch.tensor([[10.0, 10, 40, 40], [20, 20, 60, 50], [5, 30, 50, 60]])
    batch = []
    for height, width in sizes:
        masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist()):
            mask[y0:y1, x0:x1] = True
        instances = Instances((height, width), gt_boxes=Boxes(boxes), gt_masks=BitMasks(masks))
        instances.gt_classes = torch.zeros(len(boxes), dtype=torch.int64)
        batch.append(
            {
                "image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8),
                "height": height,
                "width": width,
                "instances": instances,
                "sem_seg": torch.randint(0, 3, (height, width)),
                "label": 1,
            }
        )
    return batch


def test_operations_that_mix_devices_raise_an_error() -> None:
    with simulated_gpu():
        on_gpu, on_cpu = torch.ones(3, device="cuda"), torch.ones(3)
        with pytest.raises(RuntimeError, match="expected all tensors to be on cuda:0"):
            on_gpu + on_cpu
        with pytest.raises(RuntimeError, match=r"numpy\(\) is not supported"):
            on_gpu.numpy()
        assert (on_gpu * torch.tensor(2.0)).device == on_gpu.device  # numbers may be mixed
        assert (on_gpu + on_cpu.to("cuda")).cpu().tolist() == [2, 2, 2]


def test_waits_for_the_gpu_are_counted_with_their_file() -> None:
    with simulated_gpu() as gpu:
        x = torch.arange(4.0, device="cuda")
        before = sum(gpu.other_waits.values())
        x.sum().item()
        x[x > 1]
        x.cpu()
        x.nonzero()
        x[torch.tensor([0, 1])]
        waits = {reason.rpartition(": ")[2] for reason in gpu.other_waits}
        assert sum(gpu.other_waits.values()) == before + 5
    assert waits >= {"item", "boolean index", "to CPU", "nonzero", "to GPU"}
    assert all("test_simulated_gpu.py" in reason for reason in gpu.other_waits)
    assert not gpu.waits


def test_autocast_follows_the_rules_of_cuda() -> None:
    layer, x = nn.Linear(4, 4), torch.ones(2, 4)
    with simulated_gpu():
        layer.to("cuda")
        with torch.autocast("cuda", torch.bfloat16):
            y = layer(x.to("cuda"))
            assert y.dtype == torch.bfloat16
            assert y.softmax(1).dtype == torch.float32  # bfloat16 on the CPU


def test_deterministic_algorithms_keep_the_operator_of_roi_align(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # torchvision's replacement in Python needs tens of GB.
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    replacement = import_module("torchvision.ops.roi_align")
    monkeypatch.setattr(replacement, "_roi_align", lambda *_: pytest.fail("not the operator"))
    pooler = ROIAlign((3, 5), spatial_scale=0.5, sampling_ratio=2)
    features, boxes = torch.rand(1, 2, 8, 8), torch.tensor([[0, 1.0, 2, 9, 12]])
    expected = pooler(features, boxes)
    with simulated_gpu():
        pooled = pooler(features.to("cuda"), boxes.to("cuda"))
        torch.testing.assert_close(pooled.cpu(), expected)
    assert expected.shape == (1, 2, 3, 5)


def train(model: nn.Module, batch: Sequence[dict], device: str, *, amp: bool) -> dict[str, Tensor]:
    """Return losses, gradients and updated parameters of an iteration, on the CPU."""
    model = copy.deepcopy(model).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.manual_seed(2)
    with EventStorage(0), torch.autocast(device, torch.bfloat16, enabled=amp):
        losses = model(batch)
    sum(losses.values()).backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.device == parameter.device, name
    return {name: loss.detach().cpu() for name, loss in losses.items()}


@pytest.mark.long
@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in MODELS],
)
def test_losses_on_the_gpu_are_those_on_the_cpu(name: str, amp: bool) -> None:
    model, batch = build(name), batch_for(name)
    expected = train(model, batch, "cpu", amp=amp)
    with simulated_gpu() as gpu:
        losses = train(model, batch, "cuda", amp=amp)
    tolerance = 1e-2 if amp else 1e-5
    for loss, value in expected.items():
        torch.testing.assert_close(losses[loss], value, rtol=tolerance, atol=tolerance, msg=loss)
    assert sum(gpu.waits.values()) <= WAITS.get(name, 0)


def test_gradients_on_the_gpu_are_those_on_the_cpu() -> None:
    """In float64: the loss of a detector jumps where two scores are nearly equal."""
    backbone = build("quickstart").backbone.double()
    image = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    gradients = []
    for device in ("cpu", "cuda"):
        context = simulated_gpu() if device == "cuda" else contextlib.nullcontext()
        with context:
            net = copy.deepcopy(backbone).to(device)
            sum(level.square().sum() for level in net(image.to(device)).values()).backward()
            gradients.append([parameter.grad.cpu() for parameter in net.parameters()])
    scale = max(gradient.norm() for gradient in gradients[0])
    for expected, gradient in zip(*gradients, strict=True):
        assert (gradient - expected).norm() <= 1e-12 * scale


# Times that the package makes the host wait in a training iteration: it reads RetinaNet's
# normalizer, and copies images and labels to the GPU.
WAITS = {
    "published/retinanet_gpvit_l1_1x": 1,
    "published/segformer_gpvit_l1": 4,
    "published/upernet_gpvit_l1": 4,
    "quickstart_semantic": 5,
    "quickstart_classifier": 3,
}

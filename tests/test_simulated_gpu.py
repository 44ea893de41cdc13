"""Models on the simulated GPU (simulated_gpu.py): devices, numbers, and waits of the host."""

import contextlib
import copy
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import gpvit
import pytest
import torch
import torch.distributed as dist
from conftest import REPOSITORY
from detectron2.config import instantiate
from detectron2.layers import ROIAlign
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from gpvit.config import load_config
from gpvit.modeling import layers
from gpvit.modeling.backbone.gpvit import GroupPropagationBlock, WindowBlock
from gpvit.modeling.classifier import AttentionPooling
from gpvit.modeling.segmentation import predicting_class_maps
from gpvit.utils.errors import UserError
from gpvit.utils.precision import choose_dtype, inference_precision, prediction_layers
from simulated_gpu import simulated_gpu
from torch import Tensor, nn
from torch.nn import functional

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
        assert on_gpu[torch.tensor([0, 2])].device == on_gpu.device  # indices may be on the CPU
        assert (on_gpu + on_cpu.to("cuda")).cpu().tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    "operation",
    [
        lambda gpu, cpu: cpu[gpu.long()],
        lambda gpu, cpu: cpu[gpu > 0],
        lambda gpu, cpu: gpu.index_put_((torch.tensor([0, 1]),), cpu[:2]),
        lambda gpu, cpu: cpu.index_put_((torch.tensor([0, 1]),), gpu[:2]),
        lambda gpu, cpu: torch.stack([gpu[0], cpu[0]]),
        lambda gpu, cpu: cpu[0].add_(gpu[0]),
        lambda gpu, cpu: functional.embedding(cpu[0].long(), gpu[:, None]),
        lambda gpu, cpu: torch.randperm(3, device="cuda", generator=torch.Generator()),
    ],
)
def test_operations_that_mix_devices_in_other_ways_raise_an_error(
    operation: Callable[[Tensor, Tensor], Tensor],
) -> None:
    with simulated_gpu(), pytest.raises(RuntimeError, match="to be on cuda:0|is on the CPU"):
        operation(torch.ones(3, device="cuda"), torch.ones(3))


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


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_boxes_are_not_rounded_to_the_dtype_of_the_features(device: str) -> None:
    pooler = ROIAlign((4, 4), spatial_scale=0.25, sampling_ratio=0)
    features = torch.arange(-250.0, 262).expand(1, 1, 8, 512)  # the value is the column - 250
    boxes = torch.tensor([[0, 1003.0, 2, 1043, 12]])  # bfloat16 has 1000, 1004, 1008 ... here
    expected = torch.tensor([1008.0, 1018, 1028, 1038]) * 0.25 - 0.5 - 250  # centers of the bins
    with simulated_gpu() if device == "cuda" else contextlib.nullcontext():
        maps = features.to(device, torch.bfloat16)
        with torch.autocast(device, torch.bfloat16):
            pooled = pooler(maps, boxes.to(device))
        assert pooled.dtype == torch.bfloat16
        torch.testing.assert_close(pooled[0, 0, 0].float().cpu(), expected, rtol=0, atol=0.05)


def attention_blocks(size: str) -> nn.ModuleList:
    """All kinds of attention of a size: in stripes, from and to the map, and pooling."""
    torch.manual_seed(0)
    dim = gpvit.SIZES[size]["embed_dim"]
    blocks = [WindowBlock(dim, 6, 0.0), GroupPropagationBlock(dim, 6, 4, 0.0, "BN")]
    return nn.ModuleList([*blocks, AttentionPooling(dim, 6)]).eval()


def run_blocks(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C)."""
    window, group_propagation, pooling = blocks
    return pooling(group_propagation(window(x)).permute(0, 3, 1, 2))


@pytest.mark.parametrize("size", gpvit.SIZES)
@pytest.mark.parametrize(
    ("dtype", "multiple"), [(torch.float32, 4), (torch.bfloat16, 8), (torch.float16, 8)]
)
def test_heads_on_a_gpu_have_a_width_of_its_fused_kernels(
    size: str, dtype: torch.dtype, multiple: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = attention_blocks(size)
    x = torch.randn(1, 4, 6, gpvit.SIZES[size]["embed_dim"])
    widths = []
    fused = functional.scaled_dot_product_attention

    def attend(*args: Tensor, **options: float) -> Tensor:
        widths.append({tensor.shape[-1] for tensor in args})
        return fused(*args, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", attend)
    with torch.no_grad():
        expected = run_blocks(blocks, x)
        of_heads = [width for (width,) in widths]
        assert of_heads[:2] == [blocks[0].norm1.weight.numel() // 12] * 2  # on the CPU, as they are
        widths.clear()
        with simulated_gpu(), torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            pooled = run_blocks(blocks.to("cuda"), x.to("cuda")).float().cpu()
    padded = [width for (width,) in widths]
    assert padded == [-(-width // multiple) * multiple for width in of_heads]
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(pooled, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("size", ["L1", "L2"])
def test_padded_heads_are_exact(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(layers.HEAD_MULTIPLES, torch.float64, 16)
    x = torch.randn(1, 4, 6, gpvit.SIZES[size]["embed_dim"], dtype=torch.float64)
    results = []
    for device in ("cpu", "cuda"):
        with simulated_gpu() if device == "cuda" else contextlib.nullcontext():
            blocks = attention_blocks(size).double().to(device)
            pooled = run_blocks(blocks, x.to(device))
            pooled.square().sum().backward()
            gradients = [parameter.grad.cpu() for parameter in blocks.parameters()]
            results.append([pooled.detach().cpu(), *gradients])
    scale = max(expected.norm() for expected in results[0][1:])
    for expected, found in zip(*results, strict=True):
        assert (found - expected).norm() <= 1e-12 * scale


def train(
    model: nn.Module, batch: Sequence[dict], device: str, *, amp: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return losses and gradients of an iteration, on the CPU, and update the parameters."""
    model = copy.deepcopy(model).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.manual_seed(2)
    with EventStorage(0), torch.autocast(device, torch.bfloat16, enabled=amp):
        losses = model(batch)
    sum(losses.values()).backward()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer.step()
    gradients = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.device == parameter.device, name
            gradients[name] = parameter.grad.cpu()
            assert not torch.equal(parameter, before[name]) or not gradients[name].any(), name
    return {name: loss.detach().cpu() for name, loss in losses.items()}, gradients


@pytest.mark.long
@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in MODELS],
)
def test_losses_on_the_gpu_are_those_on_the_cpu(name: str, amp: bool) -> None:
    model, batch = build(name), batch_for(name)
    expected, gradients = train(model, batch, "cpu", amp=amp)
    with simulated_gpu() as gpu:
        losses, found = train(model, batch, "cuda", amp=amp)
    print(f"{name} | training{' in bfloat16' * amp} | {gpu.operations} | {dict(gpu.waits)}")
    tolerance = 1e-2 if amp else 1e-5
    assert losses.keys() == expected.keys() and found.keys() == gradients.keys()
    for loss, value in expected.items():
        torch.testing.assert_close(losses[loss], value, rtol=tolerance, atol=tolerance, msg=loss)
    assert gpu.waits == WAITS.get(name, {})
    if not amp:
        assert relative_distance(found, gradients) < 0.03  # float32 and batch norm of two images


def relative_distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the relative L2 distance of all gradients together."""
    squares = [(found[name] - value).square().sum() for name, value in expected.items()]
    total = sum(value.square().sum() for value in expected.values())
    return float(sum(squares) / total) ** 0.5


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


def predict(
    model: nn.Module, batch: Sequence[dict], device: str, dtype: torch.dtype
) -> list[dict[str, Any]]:
    """Return the outputs of a model on the CPU."""
    model = copy.deepcopy(model).eval().to(device)
    with torch.no_grad(), inference_precision(dtype, model):
        outputs = model(batch)
    found = []
    for output in outputs:
        found.append({name: value.to("cpu") for name, value in output.items()})
    return found


def build_confident(name: str) -> nn.Module:
    """A model whose scores differ: those of random weights are nearly equal."""
    model = build(name)
    for module in prediction_layers(model):
        module.weight.data *= 30
    return model


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in MODELS],
)
def test_predictions_on_the_gpu_are_those_on_the_cpu(name: str) -> None:
    model, batch = build_confident(name), batch_for(name)
    expected = predict(model, batch, "cpu", torch.float32)
    with simulated_gpu() as gpu:
        found = predict(model, batch, "cuda", torch.float32)
    for theirs, ours in zip(expected, found, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            if isinstance(value, Tensor):
                torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-4)
            else:
                assert len(value) > 0
                assert fraction_found(value, ours[key]) >= 0.98
                assert fraction_found(ours[key], value) >= 0.98
    print(f"{name} | inference | {gpu.operations} | {dict(gpu.waits)}")
    assert gpu.waits == WAITS_OF_INFERENCE.get(name, {})


@pytest.mark.long
@pytest.mark.parametrize("name", ["quickstart", "published/retinanet_gpvit_l1_1x"])
def test_detections_in_bfloat16_are_those_in_float32(name: str) -> None:
    """With random weights, detections of other models jump from box to box."""
    model, batch = build_confident(name), batch_for(name)
    with simulated_gpu():
        expected = predict(model, batch, "cuda", torch.float32)
        found = predict(model, batch, "cuda", torch.bfloat16)
    for theirs, ours in zip(expected, found, strict=True):
        # Masks of random weights are close to 0.5 everywhere.
        instances = theirs["instances"], ours["instances"]
        for detections in instances:
            detections.get_fields().pop("pred_masks", None)
        assert fraction_found(*instances, pixels=2, score=0.05) > 0.85
        assert fraction_found(*reversed(instances), pixels=2, score=0.05) > 0.85


@pytest.mark.parametrize("window", [0, 48])
@pytest.mark.parametrize(("dtype", "equal"), [(torch.float32, 0.999), (torch.bfloat16, 0.97)])
def test_class_map_on_the_gpu_is_that_on_the_cpu(
    window: int, dtype: torch.dtype, equal: float
) -> None:
    model, batch = build_confident("quickstart_semantic"), batch_for("quickstart_semantic")
    model.window, model.stride = window, 32
    maps = []
    with predicting_class_maps(model):
        maps.append(predict(model, batch, "cpu", torch.float32))
        with simulated_gpu():
            maps.append(predict(model, batch, "cuda", dtype))
    for expected, found in zip(*maps, strict=True):
        assert len(expected["sem_seg"].unique()) > 1
        assert (found["sem_seg"] == expected["sem_seg"]).float().mean() > equal


def fraction_found(
    expected: Instances, found: Instances, pixels: float = 0.05, score: float = 1e-3
) -> float:
    """Return the fraction of detections that are found, with masks of at least 0.9 IoU."""
    number = 0
    for index in range(len(expected)):
        same = found.pred_classes == expected.pred_classes[index]
        same &= (found.scores - expected.scores[index]).abs() < score
        boxes = found.pred_boxes.tensor - expected.pred_boxes.tensor[index]
        same &= (boxes.abs() < pixels).all(dim=1)
        if expected.has("pred_masks"):
            mask = expected.pred_masks[index]
            both = (found.pred_masks & mask).sum((1, 2))
            same &= both >= 0.9 * (found.pred_masks | mask).sum((1, 2))
        number += bool(same.any())
    return number / len(expected)


@pytest.mark.long
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in MODELS],
)
def test_predictions_are_in_float32_whatever_the_body_runs_in(name: str, device: str) -> None:
    model, batch = build_confident(name), batch_for(name)
    names = {module: key.rpartition(".")[2] for key, module in model.named_modules()}
    of_body, of_predictions = set(), {}

    def look(module: nn.Module, args: tuple, output: Tensor) -> None:
        if names[module] in PREDICTION_LAYERS[name]:
            of_predictions[names[module]] = output.dtype
        elif isinstance(module, nn.Conv2d):
            of_body.add(output.dtype)

    with simulated_gpu() if device == "cuda" else contextlib.nullcontext():
        model.eval().to(device)
        for module in model.modules():
            module.register_forward_hook(look)
        with torch.no_grad(), inference_precision(torch.bfloat16, model):
            outputs = model(batch)
        for output in outputs:
            values = []
            for value in output.values():
                values += value.get_fields().values() if isinstance(value, Instances) else [value]
            tensors = [getattr(value, "tensor", value) for value in values]
            assert {tensor.dtype for tensor in tensors} <= {
                torch.float32,
                torch.int64,
                torch.bool,
            }
    assert torch.bfloat16 in of_body
    assert of_predictions == dict.fromkeys(PREDICTION_LAYERS[name], torch.float32)
    assert not any("forward" in vars(module) for module in model.modules())


R_CNN = ("anchor_deltas", "objectness_logits", "bbox_pred", "cls_score", "predictor")
PREDICTION_LAYERS = {
    "quickstart": R_CNN,
    "cascade_mask_rcnn_gpvit_l1": R_CNN,
    "published/mask_rcnn_gpvit_l1_1x": R_CNN,
    "published/retinanet_gpvit_l1_1x": ("bbox_pred", "cls_score"),
    "published/segformer_gpvit_l1": ("predictor",),
    "published/upernet_gpvit_l1": ("predictor",),
    "quickstart_semantic": ("predictor",),
    "quickstart_classifier": ("head",),
}
# Times that the package makes the host wait in a training iteration: it reads RetinaNet's
# normalizer, and copies images and labels to the GPU.
WAITS = {
    "published/retinanet_gpvit_l1_1x": {"gpvit/modeling/detectors.py: item": 1},
    "published/segformer_gpvit_l1": {"gpvit/modeling/segmentation.py: to GPU": 4},
    "published/upernet_gpvit_l1": {"gpvit/modeling/segmentation.py: to GPU": 4},
    "quickstart_semantic": {"gpvit/modeling/segmentation.py: to GPU": 4},
    "quickstart_classifier": {"gpvit/modeling/classifier.py: to GPU": 3},
}
# The same for inference: it copies each of the two images to the GPU.
WAITS_OF_INFERENCE = {
    "published/segformer_gpvit_l1": {"gpvit/modeling/segmentation.py: to GPU": 2},
    "published/upernet_gpvit_l1": {"gpvit/modeling/segmentation.py: to GPU": 2},
    "quickstart_semantic": {"gpvit/modeling/segmentation.py: to GPU": 2},
    "quickstart_classifier": {"gpvit/modeling/classifier.py: to GPU": 2},
}


def test_retinanet_shares_its_normalizer_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    model, shared = build("published/retinanet_gpvit_l1_1x"), []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: shared.append(tensor.device.type))
    with simulated_gpu():
        average = model.to("cuda")._ema_update("loss_normalizer", 50, 100.0)
    assert shared == ["cuda"]
    assert average == pytest.approx(0.9 * 100 + 0.1 * 25)


@pytest.mark.parametrize(
    ("name", "device", "capability", "expected"),
    [
        ("auto", "cpu", (0, 0), torch.float32),
        ("auto", "cuda", (8, 0), torch.bfloat16),
        ("auto", "cuda:1", (7, 5), torch.float32),
        ("bfloat16", "cuda", (7, 5), torch.bfloat16),
        ("float16", "cuda", (7, 5), torch.float16),
        ("bfloat16", "cpu", (0, 0), torch.bfloat16),
    ],
)
def test_default_dtype_is_that_of_the_device(
    name: str,
    device: str,
    capability: tuple[int, int],
    expected: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda card: asked.append(str(card)) or capability
    )
    assert choose_dtype(name, device) == expected
    assert asked == ([device] if name == "auto" and device != "cpu" else [])


def test_unknown_dtype_is_refused() -> None:
    with pytest.raises(UserError, match="^dtype must be one of auto, float32, .*, got float8$"):
        choose_dtype("float8", "cpu")


def test_float16_without_a_gpu_is_refused() -> None:
    with pytest.raises(UserError, match="^float16 needs a CUDA device, not cpu: use float32 or bf"):
        choose_dtype("float16", "cpu")


@pytest.mark.parametrize(("device", "expected"), [("cpu", True), ("cuda", False)])
def test_inputs_of_linear_layers_are_recomputed_on_cpus_only(
    device: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    recomputed = []
    original = layers.checkpoint

    def checkpoint(*args: Any, **options: Any) -> Tensor:
        recomputed.append(args)
        return original(*args, **options)

    monkeypatch.setattr(layers, "checkpoint", checkpoint)
    with simulated_gpu() if device == "cuda" else contextlib.nullcontext():
        block = WindowBlock(24, 6, 0.0).to(device)
        block(torch.randn(1, 4, 6, 24, device=device, requires_grad=True))
    assert bool(recomputed) == expected

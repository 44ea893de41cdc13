"""The adapter: numerical equivalence to the official one, initialization, training."""

import math

import official
import pytest
import torch
import torch.nn.functional as F
from conftest import REPOSITORY
from detectron2.config import instantiate
from gpvit import GPViT, GPViTAdapter, checkpoint
from gpvit.config import load_config
from gpvit.modeling.deformable_attention import DeformableAttention, cell_centers, sample_by_bag
from torch import Tensor, nn

SHAPES = [(8, 12), (4, 6), (2, 3)]  # of the branch's tokens in the reference
REFERENCE = official.Reference("adapter_l1_parts")


def tiny(out_features: tuple[str, ...] = ("f2", "f3", "f4", "f5"), **options) -> GPViTAdapter:
    """A small adapter in which every part influences the output."""
    torch.manual_seed(0)
    net = GPViT(embed_dim=24, num_heads=2, group_tokens=(0, 4, 0, 4), final_norm=False, **options)
    adapter = GPViTAdapter(net, out_features=out_features, num_heads=2, stem_width=8)
    for injector in adapter.injectors:
        nn.init.normal_(injector.gamma)
    for module in adapter.modules():
        if isinstance(module, DeformableAttention):
            nn.init.normal_(module.offsets.weight, std=0.1)
            nn.init.normal_(module.weights.weight, std=0.1)
    return adapter


def image(seed: int = 0) -> Tensor:
    return official.image(seed, (2, 3, 64, 96))


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Outputs of the parts of the published L1 adapter, by their names in the reference file."""
    path = official.save(tmp_path_factory.mktemp("weights") / "mask_rcnn.pth", "maskrcnn", "L1")
    cfg = load_config(str(REPOSITORY / "configs/published/mask_rcnn_gpvit_l1_1x.py"))
    model = instantiate(cfg.model).eval()
    checkpoint.load(model, path)
    with torch.no_grad():
        return parts(model.backbone.bottom_up)


def parts(adapter: GPViTAdapter) -> dict[str, Tensor]:
    c1, levels = adapter.spatial_prior(official.image(4, (2, 3, 64, 96)))
    results = {"spm_c1": c1}
    for name, level, shape in zip(("spm_c2", "spm_c3", "spm_c4"), levels, SHAPES):
        assert level.shape[1:3] == shape
        results[name] = level.flatten(1, 2)

    for scale, factor in (("unit", 1), ("tiny", 1e-3)):  # tiny: each norm's epsilon matters
        x = (official.feature(220, (2, 96, 216)) * factor).unflatten(1, SHAPES[0])
        c = official.feature(221, (2, 126, 216)) * factor
        results[f"{scale}_injector0"] = adapter.injectors[0](x, c, SHAPES).flatten(1, 2)
        results[f"{scale}_extractor0"] = adapter.extractors[0](c, x, SHAPES)
        results[f"{scale}_extra_extractor3_1"] = adapter.extractors[5](c, x, SHAPES)
        results[f"{scale}_extractor0_ffn"] = adapter.extractors[0].ffn(c, SHAPES)

    device = torch.device("cpu")
    results["ref_points_injector"] = cell_centers(SHAPES[:1], device)[None, :, None]
    results["ref_points_extractor"] = cell_centers(SHAPES, device)[None, :, None]

    value = official.feature(230, (2, 126, 6, 36))
    locations = official.feature(231, (2, 50, 6, 3, 4, 2)) * 0.4 + 0.5
    weights = official.feature(232, (2, 50, 6, 12)).softmax(-1).view(2, 50, 6, 3, 4)
    results["deform_weights"] = weights
    results["deform_out"] = sample_by_bag(value, SHAPES, locations, weights)
    return results


def test_every_reference_array_is_checked(arrays: dict[str, Tensor]) -> None:
    assert arrays.keys() == REFERENCE.manifest["arrays"].keys()


@pytest.mark.parametrize("name", REFERENCE.manifest["arrays"])
def test_each_part_matches_official_implementation(name: str, arrays: dict[str, Tensor]) -> None:
    REFERENCE.check(name, arrays[name])


def literal_sample(
    value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """As in the official implementation: samples level by level, stacked, weighted, summed."""
    heads = value.shape[2]
    levels = []
    for level, (height, width) in enumerate(shapes):
        grid, value = value[:, : height * width], value[:, height * width :]
        # (B, h w, heads, C / heads) -> (B * heads, C / heads, h, w)
        grid = grid.permute(0, 2, 3, 1).unflatten(-1, (height, width)).flatten(0, 1)
        # (B * heads, L, points, 2), from -1 to 1
        points = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
        levels.append(
            F.grid_sample(grid, points, mode="bilinear", padding_mode="zeros", align_corners=False)
        )
    weights = weights.transpose(1, 2).flatten(0, 1)[:, None]  # (B * heads, 1, L, levels, points)
    samples = (torch.stack(levels, dim=-2) * weights).sum((-2, -1))  # (B * heads, C / heads, L)
    return samples.unflatten(0, (-1, heads)).permute(0, 3, 1, 2).flatten(2)


# Samples inside of the image, around its border, and far outside.
@pytest.mark.parametrize("spread", [0.3, 1, 20])
@pytest.mark.parametrize("shapes", [[(5, 7), (3, 4), (1, 2)], [(6, 3)], [(1, 1), (2, 9)]])
def test_sampling_and_gradients_match_literal_form(
    shapes: list[tuple[int, int]], spread: float
) -> None:
    torch.manual_seed(0)
    cells, levels = sum(height * width for height, width in shapes), len(shapes)
    value = torch.randn(2, cells, 3, 4, dtype=torch.float64, requires_grad=True)
    from_center = torch.rand(2, 11, 3, levels, 5, 2, dtype=torch.float64) - 0.5
    locations = (0.5 + spread * from_center).requires_grad_()
    weights = torch.randn(2, 11, 3, levels, 5, dtype=torch.float64, requires_grad=True)
    fast = sample_by_bag(value, shapes, locations, weights)
    literal = literal_sample(value, shapes, locations, weights)
    assert fast.shape == (2, 11, 12)
    torch.testing.assert_close(fast, literal, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(fast)
    inputs = (value, locations, weights)
    gradients = (torch.autograd.grad(out, inputs, direction) for out in (fast, literal))
    for ours, theirs in zip(*gradients):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("place", [-1e9, 1e9])
def test_samples_far_outside_of_image_are_zero(place: float) -> None:
    out = sample_by_bag(
        torch.ones(1, 6, 1, 4),
        [(2, 3)],
        torch.full((1, 1, 1, 1, 1, 2), place),
        torch.ones(1, 1, 1, 1, 1),
    )
    assert torch.equal(out, torch.zeros(1, 1, 4))


def test_initial_offsets_point_in_all_directions() -> None:
    adapter = GPViTAdapter(GPViT(embed_dim=24, group_tokens=(0,) * 4, final_norm=False))
    attentions = [module for module in adapter.modules() if isinstance(module, DeformableAttention)]
    assert [attention.sampling for attention in attentions] == [(6, 3, 4)] * 4 + [(6, 1, 4)] * 6
    for attention in attentions:
        heads, levels, points = attention.sampling
        expected = torch.empty(heads, levels, points, 2)
        for head in range(heads):
            x, y = math.cos(2 * math.pi * head / 6), math.sin(2 * math.pi * head / 6)
            for point in range(points):
                distance = (point + 1) / max(abs(x), abs(y))
                expected[head, :, point] = torch.tensor([x * distance, y * distance])
        torch.testing.assert_close(attention.offsets.bias, expected.flatten())
        assert not attention.offsets.weight.any()
        assert not attention.weights.weight.any() and not attention.weights.bias.any()


def test_initial_injector_is_identity() -> None:
    adapter = GPViTAdapter(GPViT(embed_dim=24, group_tokens=(0,) * 4, final_norm=False))
    for injector in adapter.injectors:
        x = torch.randn(2, 8, 12, 24)
        assert torch.equal(injector(x, torch.randn(2, 126, 24), SHAPES), x)


def test_initial_level_embeddings_are_standard_normal() -> None:
    torch.manual_seed(0)
    adapter = GPViTAdapter(
        GPViT(embed_dim=2400, group_tokens=(0,), final_norm=False), num_interactions=1
    )
    assert adapter.level_embed.shape == (3, 2400)
    assert adapter.level_embed.mean().abs() < 0.05
    assert adapter.level_embed.std().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("net_options", "options", "message"),
    [
        (dict(group_tokens=(0,) * 5), {}, "5 blocks cannot be divided into 4 equal groups"),
        (
            {},
            dict(out_features=("f1", "f3")),
            r"out_features \['f1'\] are none of \['f2', 'f3', 'f4', 'f5'\]",
        ),
        (dict(final_norm=True), {}, "build GPViT with final_norm=False"),
    ],
)
def test_invalid_options_raise(net_options: dict, options: dict, message: str) -> None:
    net = GPViT(**(dict(embed_dim=24, group_tokens=(0,) * 4, final_norm=False) | net_options))
    with pytest.raises(ValueError, match=message):
        GPViTAdapter(net, **options)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 80), (50, 64)])
def test_sides_that_are_not_multiples_of_32_raise(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"multiples of 32, got {height}x{width}"):
        tiny()(torch.randn(1, 3, height, width))


@pytest.mark.parametrize(
    "out_features", [("f2", "f3", "f4", "f5"), ("f3", "f4", "f5"), ("f2", "f4")]
)
@torch.no_grad()
def test_outputs_match_output_shape(out_features: tuple[str, ...]) -> None:
    adapter = tiny(out_features)
    outputs, shapes = adapter(image()), adapter.output_shape()
    assert tuple(outputs) == tuple(shapes) == out_features
    for name, output in outputs.items():
        stride = 2 ** int(name[1:])
        assert (shapes[name].channels, shapes[name].stride) == (24, stride)
        assert output.shape == (2, 24, 64 // stride, 96 // stride)
    assert adapter.size_divisibility == 32


@torch.no_grad()
def test_without_stride_4_only_its_layers_are_missing() -> None:
    adapter, single_stage = tiny().eval(), tiny(("f3", "f4", "f5")).eval()
    weights = adapter.state_dict()
    surplus = weights.keys() - single_stage.state_dict().keys()
    prefixes = ("spatial_prior.projection4.", "up.", "norms.f2.")
    assert surplus == {key for key in weights if key.startswith(prefixes)}
    assert len({key.rpartition(".")[0] for key in surplus}) == len(prefixes)
    for key in surplus:
        del weights[key]
    single_stage.load_state_dict(weights)
    outputs = adapter(image())
    for name, output in single_stage(image()).items():
        assert torch.equal(output, outputs[name]), name


class LiteralBatchNorm(nn.Module):
    """Batch norm in training mode, from its definition."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0, keepdim=True)
        scale, shift = (parameter[:, None, None] for parameter in (self.weight, self.bias))
        return (x - mean) / (variance + self.eps).sqrt() * scale + shift


def outputs_and_gradients(
    adapter: GPViTAdapter, x: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    outputs = adapter.train()(x)
    loss = 0
    for i, output in enumerate(outputs.values()):
        loss = loss + (output * official.feature(i, tuple(output.shape))).mean()
    loss.backward()
    return outputs, {name: parameter.grad for name, parameter in adapter.named_parameters()}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_are_correct_in_each_memory_format(memory_format: torch.memory_format) -> None:
    adapter, literal = tiny(), tiny()
    for model in (adapter, literal):
        nn.init.constant_(model.up.bias, 1000)  # batch norm is least accurate far from zero
    for module in list(literal.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(module, name, LiteralBatchNorm(child))
    _, expected = outputs_and_gradients(literal, image())
    _, gradients = outputs_and_gradients(adapter, image().contiguous(memory_format=memory_format))
    assert gradients.keys() == expected.keys()
    without_effect = ("up.bias", "spatial_prior.projection4.bias")  # a norm follows
    for name, gradient in gradients.items():
        if not name.startswith("net.") and name not in without_effect:
            distance = (gradient - expected[name]).norm() / expected[name].norm()
            assert distance <= (3e-5 if name.startswith("norms.") else 1e-3), name


def test_every_parameter_has_a_gradient() -> None:
    _, gradients = outputs_and_gradients(tiny(), image())
    assert "injectors.3.attn.offsets.weight" in gradients
    assert "extractors.5.attn.offsets.bias" in gradients
    for name, gradient in gradients.items():
        assert gradient is not None and gradient.any(), name


def test_deformable_attention_runs_in_float32_under_autocast() -> None:
    adapter = tiny()
    attentions = [module for module in adapter.modules() if isinstance(module, DeformableAttention)]
    inside, around = [], []

    def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        inside.extend([args[0].dtype, output.dtype])

    for attention in attentions:
        for linear in attention.children():
            linear.register_forward_hook(record)
    adapter.net.blocks[0].attn.proj.register_forward_hook(
        lambda module, args, out: around.append(out.dtype)
    )
    with torch.autocast("cpu", torch.bfloat16):
        outputs = adapter(image())
    assert inside == [torch.float32] * 2 * 4 * len(attentions)
    assert around == [torch.bfloat16]
    sum(output.float().sum() for output in outputs.values()).backward()
    assert adapter.injectors[0].attn.offsets.weight.grad.isfinite().all()


def test_activation_checkpointing_leaves_outputs_and_gradients_unchanged() -> None:
    results, calls = [], []
    for use_act_checkpoint in (False, True):
        adapter = tiny(use_act_checkpoint=use_act_checkpoint)
        adapter.net.blocks[0].attn.register_forward_hook(
            lambda *_, used=use_act_checkpoint: calls.append(used)
        )
        outputs, gradients = outputs_and_gradients(adapter, image())
        results.append([*outputs.values(), *gradients.values(), *adapter.buffers()])
    for plain, recomputed in zip(*results):
        assert torch.equal(plain, recomputed)
    assert calls == [False, True, True]

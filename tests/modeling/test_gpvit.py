"""What users of the backbone rely on, besides the numbers."""

import copy
from collections.abc import Iterator

import gpvit
import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.backbone import Backbone
from detectron2.solver import get_default_optimizer_params
from detectron2.structures import ImageList
from gpvit.modeling import layers
from gpvit.modeling.backbone.gpvit import StripeAttention
from gpvit.modeling.backbone.pyramid import SimpleFeaturePyramid
from gpvit.modeling.layers import attention
from gpvit.solver import layer_decay
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torchvision.ops import StochasticDepth

TINY = dict(embed_dim=24, group_tokens=(0, 8, 0, 4), pretrain_img_size=64)


def tiny(seed: int = 0, **options) -> gpvit.GPViT:
    torch.manual_seed(seed)
    return gpvit.GPViT(**(TINY | options))


@pytest.mark.parametrize("size", gpvit.SIZES)
def test_size_defines_channels_and_stride_8(size: str) -> None:
    with torch.device("meta"):
        net = gpvit.GPViT(**gpvit.SIZES[size])
    assert isinstance(net, Backbone)
    (shape,) = net.output_shape().values()
    assert (shape.channels, shape.stride) == (gpvit.SIZES[size]["embed_dim"], 8)


def test_unknown_option_raises() -> None:
    with pytest.raises(TypeError, match="drop_path_rat"):
        tiny(drop_path_rat=0.1)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 112), (16, 16), (16, 160), (160, 16)])
@torch.no_grad()
def test_rectangular_input_keeps_stride_8(height: int, width: int) -> None:
    out = tiny()(torch.randn(2, 3, height, width))
    assert out.keys() == {"last_feat"}
    assert out["last_feat"].shape == (2, 24, height // 8, width // 8)


@pytest.mark.parametrize(
    ("height", "width", "better"), [(50, 64, "64x64"), (64, 72, "64x80"), (8, 8, "16x16")]
)
def test_sides_that_are_not_multiples_of_16_raise(height: int, width: int, better: str) -> None:
    with pytest.raises(
        ValueError, match=f"multiples of 16, got {height}x{width}.*{better}"
    ) as error:
        tiny()(torch.randn(1, 3, height, width))
    assert "\n" not in str(error.value)


@torch.no_grad()
def test_images_padded_by_detectron2_are_accepted() -> None:
    net = tiny().eval()
    images = [torch.randn(3, 40, 70), torch.randn(3, 61, 33)]
    batch = ImageList.from_tensors(
        images, net.size_divisibility, padding_constraints=net.padding_constraints
    )
    assert batch.tensor.shape == (2, 3, 64, 80)
    alone = F.pad(images[1], (0, 80 - 33, 0, 64 - 61))[None]
    torch.testing.assert_close(
        net(batch.tensor)["last_feat"][1:], net(alone)["last_feat"], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    "options", [dict(embed_dim=25), dict(out_features=("block3",)), dict(frozen_blocks=5)]
)
def test_invalid_options_raise(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        tiny(**options)


def literal_stripes(module: StripeAttention, x: Tensor) -> Tensor:
    """The attention of one direction at a time, stripe by stripe and head by head."""
    B, H, W, C = x.shape
    q, k, v = F.linear(x, module.qkv.weight, module.qkv.bias).split(C, dim=-1)
    halves = []
    for half, lepe in enumerate((module.lepe_vertical, module.lepe_horizontal)):
        out = torch.zeros(B, H, W, C // 2)
        channels = slice(half * C // 2, (half + 1) * C // 2)
        stripes = [(slice(None), slice(i, i + 2)) for i in range(0, W, 2)]
        if half:
            stripes = [(slice(i, i + 2), slice(None)) for i in range(0, H, 2)]
        for rows, columns in stripes:
            qs, ks, vs = (t[:, rows, columns, channels] for t in (q, k, v))
            local = F.conv2d(
                vs.permute(0, 3, 1, 2), lepe.weight, lepe.bias, padding=1, groups=C // 2
            )
            width = C // 2 // module.num_heads
            for head in range(module.num_heads):
                part = slice(head * width, (head + 1) * width)
                qh, kh, vh = (t[..., part].flatten(1, 2) for t in (qs, ks, vs))
                weights = torch.softmax(qh @ kh.transpose(1, 2) / width**0.5, dim=-1)
                out[:, rows, columns, part] = (weights @ vh).view(*qs.shape[:3], width)
            out[:, rows, columns] += local.permute(0, 2, 3, 1)
        halves.append(out)
    return module.proj(torch.cat(halves, dim=-1))


@pytest.mark.parametrize("grid", [(2, 2), (4, 6), (10, 4)])
def test_stripe_attention_matches_literal_form(grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    module = StripeAttention(24, num_heads=6)
    nn.init.normal_(module.qkv.bias)
    x = torch.randn(2, *grid, 24, requires_grad=True)
    fast, literal = module(x, nn.Identity()), literal_stripes(module, x)
    torch.testing.assert_close(fast, literal, rtol=1e-4, atol=1e-5)
    inputs = (x, module.qkv.weight)
    gradients = torch.autograd.grad(fast.square().sum(), inputs)
    expected = torch.autograd.grad(literal.square().sum(), inputs)
    for gradient, expected_gradient in zip(gradients, expected):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-3, atol=1e-5)


def test_hooks_on_qkv_see_queries_keys_and_values_of_both_directions() -> None:
    module = StripeAttention(24, num_heads=6)
    x = torch.randn(1, 4, 6, 24)
    outputs = []
    module.qkv.register_forward_hook(lambda qkv, args, output: outputs.append(output))
    module(x, nn.Identity())
    vertical, horizontal = outputs
    assert vertical.shape == (3, 4, 2, 3, 12)  # three stripes of 4 x 2 tokens
    assert horizontal.shape == (2, 2, 6, 3, 12)  # two stripes of 2 x 6 tokens
    q, _, v = F.linear(x, module.qkv.weight, module.qkv.bias).split(24, dim=-1)
    torch.testing.assert_close(vertical[1, :, :, 0], q[0, :, 2:4, :12])
    torch.testing.assert_close(horizontal[1, :, :, 2], v[0, 2:4, :, 12:])


def test_attention_matches_literal_form() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 5, 12), torch.randn(2, 9, 12), torch.randn(2, 9, 12)
    heads = []
    for part in (slice(0, 4), slice(4, 8), slice(8, 12)):
        heads.append(
            torch.softmax(q[..., part] @ k[..., part].transpose(1, 2) / 2, dim=-1) @ v[..., part]
        )
    torch.testing.assert_close(attention(q, k, v, num_heads=3), torch.cat(heads, dim=-1))


def test_drop_path_increases_linearly_and_is_off_in_evaluation() -> None:
    net = tiny(drop_path_rate=0.3)
    rates = []
    for block in net.blocks:
        drop_path = block.drop_path if hasattr(block, "drop_path") else block.ungroup.drop_path
        rates.append(drop_path.p)
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])
    assert net.blocks[1].mixer.drop_path.p == pytest.approx(0.1)
    x = torch.randn(4, 3, 32, 32)
    net.eval()
    assert torch.equal(net(x)["last_feat"], net(x)["last_feat"])
    net = tiny(drop_path_rate=0.9, norm="FrozenBN").train()
    assert not torch.equal(net(x)["last_feat"], net(x)["last_feat"])


def test_dropped_path_keeps_residual() -> None:
    net = tiny(norm="FrozenBN").train()
    for module in net.modules():
        if isinstance(module, StochasticDepth):
            module.p = 1.0
    x = torch.randn(2, 4, 6, 24)
    window, group = net.blocks[:2]
    assert torch.equal(window.mix(x), x)
    expected = group.ungroup.join(torch.cat([x, torch.zeros_like(x)], dim=-1))
    torch.testing.assert_close(group.mix(x), expected)
    groups = torch.randn(2, 8, 24)
    assert torch.equal(group.mixer(groups), groups)


@pytest.mark.parametrize(
    ("norm", "kind"),
    [("BN", nn.BatchNorm2d), ("SyncBN", nn.SyncBatchNorm), ("FrozenBN", FrozenBatchNorm2d)],
)
def test_norm_selects_batch_norm_class(norm: str, kind: type) -> None:
    net = tiny(norm=norm, stem_convs=1)
    norms = [module for module in net.modules() if isinstance(module, kind)]
    assert len(norms) == 4  # two in the stem, one in each group block
    before = copy.deepcopy(net.state_dict())
    net.train()(torch.randn(2, 3, 32, 32))["last_feat"].sum().backward()
    changed = [key for key in changed_keys(before, net.state_dict()) if "running" in key]
    assert bool(changed) == (norm != "FrozenBN")


def changed_keys(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {key for key, value in after.items() if not torch.equal(before[key], value)}


def test_final_norm_is_optional() -> None:
    x = torch.randn(1, 3, 32, 32)
    with_norm, without = tiny().eval(), tiny(final_norm=False).eval()
    missing = with_norm.state_dict().keys() - without.state_dict().keys()
    assert missing == {"out_norms.last_feat.weight", "out_norms.last_feat.bias"}
    channels_last = without(x)["last_feat"].permute(0, 2, 3, 1)
    expected = F.layer_norm(channels_last, (24,), eps=1e-6).permute(0, 3, 1, 2)
    torch.testing.assert_close(with_norm(x)["last_feat"], expected)


@pytest.mark.parametrize("option", ["use_act_checkpoint", "recompute_inputs"])
def test_recomputation_leaves_outputs_gradients_and_statistics_unchanged(option: str) -> None:
    results = []
    for value in (False, True):
        net = tiny(**{option: value}, drop_path_rate=0.5).train()
        torch.manual_seed(1)
        out = net(torch.randn(2, 3, 64, 64))["last_feat"]
        out.square().sum().backward()
        results.append([out, *(p.grad for p in net.parameters()), *net.buffers()])
    for plain, recomputed in zip(*results):
        assert torch.equal(plain, recomputed)


@pytest.mark.parametrize(
    ("option", "fraction"), [("use_act_checkpoint", 0.3), ("recompute_inputs", 0.7)]
)
def test_recomputation_saves_memory(option: str, fraction: float) -> None:
    def saved_bytes(value: bool | None) -> int:
        blocks = tiny(**{option: value}).train().blocks
        parameters = {parameter.untyped_storage().data_ptr() for parameter in blocks.parameters()}
        kept = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                # Holding the tensor keeps its address from being used again.
                kept[storage.data_ptr()] = (storage.nbytes(), tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            nn.Sequential(*blocks)(torch.randn(1, 16, 16, 24))
        return sum(size for size, _ in kept.values())

    assert saved_bytes(True) < fraction * saved_bytes(False)
    if option == "recompute_inputs":
        assert saved_bytes(None) == saved_bytes(True)  # on a CPU


def test_only_frozen_blocks_keep_their_weights() -> None:
    net = tiny(frozen_blocks=2, drop_path_rate=0.3).train()
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=1.0)
    net(torch.randn(2, 3, 32, 32))["last_feat"].square().mean().backward()
    optimizer.step()
    changed = changed_keys(before, net.state_dict())
    frozen_prefixes = ("patch_embed.", "pos_embed", "blocks.0.", "blocks.1.")
    assert not [key for key in changed if key.startswith(frozen_prefixes)]
    assert "blocks.2.attn.qkv.weight" in changed
    assert "blocks.3.group_token" in changed
    assert "blocks.3.conv.norm.running_mean" in changed
    frozen = nn.Sequential(*net.blocks[:2])
    tokens = net.embed(torch.randn(2, 3, 32, 32))
    assert torch.equal(frozen(tokens), frozen(tokens))  # no drop path either


class Detector(nn.Module):
    """The part of a detector that the optimizer's rules use: names begin with "backbone.net."."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = gpvit.SimpleFeaturePyramid(
            tiny(), "last_feat", out_channels=16, scale_factors=(2.0, 1.0), norm="LN"
        )


def test_layer_decay_multiplies_learning_rate_by_depth() -> None:
    model = Detector()
    groups = get_default_optimizer_params(
        model, base_lr=1.0, lr_factor_func=layer_decay(rate=0.5, num_layers=4)
    )
    rates = {}
    for group in groups:
        for parameter in group["params"]:
            rates[id(parameter)] = group["lr"]
    expected = {
        "backbone.net.pos_embed": 0.5**5,
        "backbone.net.patch_embed": 0.5**5,
        "backbone.net.blocks.0": 0.5**4,
        "backbone.net.blocks.1": 0.5**3,
        "backbone.net.blocks.2": 0.5**2,
        "backbone.net.blocks.3": 0.5,
        "backbone.net.out_norms": 1.0,
        "backbone.simfp": 1.0,
    }
    for name, parameter in model.named_parameters():
        (prefix,) = [prefix for prefix in expected if name.startswith(prefix)]
        assert rates[id(parameter)] == expected[prefix], name


@torch.no_grad()
def test_bfloat16_autocast_stays_close() -> None:
    net, x = tiny().eval(), torch.randn(1, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        low = net(x)["last_feat"]
    torch.testing.assert_close(low.float(), net(x)["last_feat"], rtol=0.1, atol=0.1)


@pytest.mark.gpu
@torch.no_grad()
def test_gpu_and_cpu_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    net, x = tiny().eval(), torch.randn(2, 3, 64, 96)
    on_cpu = net(x)["last_feat"]
    on_gpu = net.cuda()(x.cuda())["last_feat"].cpu()
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-3, atol=1e-3)


@pytest.fixture
def nothing_compiled() -> Iterator[None]:
    """Forgets what other tests compiled, which counts for PyTorch's limit of recompilations."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.long
@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize("train", [False, True])
def test_backbone_compiles_into_one_graph(train: bool) -> None:
    net = tiny().train(train)
    # Traced as for any compiler, without needing one.
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 3, 32, 48)
    outputs, gradients = [], []
    parameters = list(net.parameters())
    for run in (net, compiled):
        output = run(x)["last_feat"]
        outputs.append(output)
        gradients.append(torch.autograd.grad(output.square().sum(), parameters, allow_unused=True))
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(*gradients):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(
            net.eval()(x)["last_feat"], compiled(x)["last_feat"], rtol=1e-4, atol=1e-5
        )


def test_inference_in_parts_matches_complete_map(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = tiny(out_features=("block0", "last_feat")).eval(), torch.randn(2, 3, 48, 64)
    before, whole = x.clone(), net(x)
    monkeypatch.setattr(layers, "TOKENS_PER_PART", 20)
    with torch.no_grad():
        parts = net(x)
    assert torch.equal(x, before)
    for name, output in parts.items():
        torch.testing.assert_close(output, whole[name].detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.long
@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize("training", [True, False])
def test_backbone_and_pyramid_are_compiled_twice_for_all_sizes(training: bool) -> None:
    """First for one size, then for all others. Small ones run in another kernel on CPUs."""
    pyramid = SimpleFeaturePyramid(
        net=tiny(), in_feature="last_feat", out_channels=8, scale_factors=(2.0, 1.0), norm="LN"
    )
    compiler = CompileCounter()
    pyramid.train(training).compile(backend=compiler, fullgraph=True)  # no graph break
    with torch.set_grad_enabled(training):
        for size in ((256, 288), (320, 384), (384, 256), (288, 288)):
            pyramid(torch.randn(1, 3, *size))
    assert compiler.frame_count == 2

"""What users of the backbone rely on, besides the numbers."""

import copy

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
from gpvit.modeling.layers import attention
from gpvit.solver import layer_decay
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

TINY = dict(embed_dim=24, group_tokens=(0, 8, 0, 4), pretrain_img_size=64)


def tiny(seed: int = 0, **options) -> gpvit.GPViT:
    torch.manual_seed(seed)
    return gpvit.GPViT(**(TINY | options))


@pytest.mark.parametrize("size", gpvit.SIZES)
def test_a_size_is_all_the_constructor_needs(size: str) -> None:
    with torch.device("meta"):
        net = gpvit.GPViT(**gpvit.SIZES[size])
    assert isinstance(net, Backbone)
    (shape,) = net.output_shape().values()
    assert (shape.channels, shape.stride) == (gpvit.SIZES[size]["embed_dim"], 8)


def test_an_option_that_does_not_exist_fails_by_name() -> None:
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
def test_other_sides_are_an_error_that_says_what_to_do(
    height: int, width: int, better: str
) -> None:
    with pytest.raises(
        ValueError, match=f"multiples of 16, got {height}x{width}.*{better}"
    ) as error:
        tiny()(torch.randn(1, 3, height, width))
    assert "\n" not in str(error.value)


@torch.no_grad()
def test_images_of_different_sizes_go_in_through_detectron2s_padding() -> None:
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
def test_impossible_options_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        tiny(**options)


def literal_stripes(module: StripeAttention, x: Tensor) -> Tensor:
    """The attention of one direction at a time, stripe by stripe and head by head."""
    B, H, W, C = x.shape
    qkv = module.qkv(x)
    q, k, v = (t.clone() for t in qkv.split(C, dim=-1))
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
def test_stripes_agree_with_their_literal_form(grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    module = StripeAttention(24, num_heads=6)
    nn.init.normal_(module.qkv.bias)
    x = torch.randn(2, *grid, 24, requires_grad=True)
    fast, literal = module(x, nn.Identity()), literal_stripes(module, x)
    torch.testing.assert_close(fast, literal, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(
        *(
            torch.autograd.grad(out.square().sum(), (x, module.qkv.weight))
            for out in (fast, literal)
        )
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_attention_agrees_with_its_literal_form() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 5, 12), torch.randn(2, 9, 12), torch.randn(2, 9, 12)
    heads = []
    for part in (slice(0, 4), slice(4, 8), slice(8, 12)):
        heads.append(
            torch.softmax(q[..., part] @ k[..., part].transpose(1, 2) / 2, dim=-1) @ v[..., part]
        )
    torch.testing.assert_close(attention(q, k, v, num_heads=3), torch.cat(heads, dim=-1))


def test_drop_path_rises_linearly_and_acts_in_training_only() -> None:
    net = tiny(drop_path_rate=0.3)
    rates = [
        block.drop_path.p if hasattr(block, "drop_path") else block.ungroup.drop_path.p
        for block in net.blocks
    ]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])
    assert net.blocks[1].mixer.drop_path.p == pytest.approx(0.1)
    x = torch.randn(4, 3, 32, 32)
    outputs = [net.eval()(x)["last_feat"] for _ in range(2)]
    assert torch.equal(*outputs)
    net = tiny(drop_path_rate=0.9, norm="FrozenBN").train()
    assert not torch.equal(net(x)["last_feat"], net(x)["last_feat"])


def test_dropped_paths_leave_the_rest_of_the_block() -> None:
    net = tiny(norm="FrozenBN").train()
    for module in net.modules():
        if isinstance(module, StochasticDepth):
            module.p = 1.0
    x = torch.randn(2, 4, 6, 24)
    window, group = net.blocks[:2]
    assert torch.equal(window.mix(x), x)
    torch.testing.assert_close(
        group.mix(x), group.ungroup.join(torch.cat([x, torch.zeros_like(x)], dim=-1))
    )
    groups = torch.randn(2, 8, 24)
    assert torch.equal(group.mixer(groups), groups)


@pytest.mark.parametrize(
    ("norm", "kind"),
    [("BN", nn.BatchNorm2d), ("SyncBN", nn.SyncBatchNorm), ("FrozenBN", FrozenBatchNorm2d)],
)
def test_the_kind_of_batch_norm_can_be_chosen(norm: str, kind: type) -> None:
    net = tiny(norm=norm, stem_convs=1)
    norms = [module for module in net.modules() if isinstance(module, kind)]
    assert len(norms) == 4  # two in the stem, one in each group block
    before = copy.deepcopy(net.state_dict())
    net.train()(torch.randn(2, 3, 32, 32))["last_feat"].sum().backward()
    moved = any(
        not torch.equal(before[key], value)
        for key, value in net.state_dict().items()
        if "running" in key
    )
    assert moved == (norm != "FrozenBN")


def test_the_final_norm_can_be_left_out() -> None:
    x = torch.randn(1, 3, 32, 32)
    with_norm, without = tiny().eval(), tiny(final_norm=False).eval()
    missing = with_norm.state_dict().keys() - without.state_dict().keys()
    assert missing == {"out_norms.last_feat.weight", "out_norms.last_feat.bias"}
    expected = F.layer_norm(without(x)["last_feat"].permute(0, 2, 3, 1), (24,), eps=1e-6).permute(
        0, 3, 1, 2
    )
    torch.testing.assert_close(with_norm(x)["last_feat"], expected)


def test_checkpointing_leaves_outputs_gradients_and_statistics_unchanged() -> None:
    results = []
    for use_act_checkpoint in (False, True):
        net = tiny(use_act_checkpoint=use_act_checkpoint, drop_path_rate=0.5).train()
        torch.manual_seed(1)
        out = net(torch.randn(2, 3, 64, 64))["last_feat"]
        out.square().sum().backward()
        results.append([out, *(p.grad for p in net.parameters()), *net.buffers()])
    for plain, recomputed in zip(*results):
        assert torch.equal(plain, recomputed)


def test_checkpointing_keeps_fewer_tensors_for_the_backward_pass() -> None:
    def saved_bytes(use_act_checkpoint: bool) -> int:
        blocks = tiny(use_act_checkpoint=use_act_checkpoint).train().blocks
        parameters = {parameter.untyped_storage().data_ptr() for parameter in blocks.parameters()}
        kept = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                kept[storage.data_ptr()] = (
                    storage.nbytes(),
                    tensor,
                )  # the tensor is kept, so no address comes twice
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            nn.Sequential(*blocks)(torch.randn(1, 16, 16, 24))
        return sum(size for size, _ in kept.values())

    assert saved_bytes(True) < 0.3 * saved_bytes(False)


def test_frozen_blocks_do_not_move_and_the_others_do() -> None:
    net = tiny(frozen_blocks=2, drop_path_rate=0.3).train()
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=1.0)
    net(torch.randn(2, 3, 32, 32))["last_feat"].square().mean().backward()
    optimizer.step()
    moved = {key for key, value in net.state_dict().items() if not torch.equal(before[key], value)}
    assert not {
        key
        for key in moved
        if key.startswith(("patch_embed.", "pos_embed", "blocks.0.", "blocks.1."))
    }
    assert {
        "blocks.2.attn.qkv.weight",
        "blocks.3.group_token",
        "blocks.3.conv.norm.running_mean",
    } <= moved
    frozen = nn.Sequential(*net.blocks[:2])
    tokens = net.embed(torch.randn(2, 3, 32, 32))
    assert torch.equal(frozen(tokens), frozen(tokens))  # no drop path either


class Detector(nn.Module):
    """As much of a detector as the optimizer's rules look at: their names begin with "backbone.net."."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = gpvit.SimpleFeaturePyramid(
            tiny(), "last_feat", out_channels=16, scale_factors=(2.0, 1.0), norm="LN"
        )


def test_layer_decay_gives_each_depth_its_own_rate() -> None:
    model = Detector()
    groups = get_default_optimizer_params(
        model, base_lr=1.0, lr_factor_func=layer_decay(rate=0.5, num_layers=4)
    )
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    by_name = {name: rates[id(p)] for name, p in model.named_parameters()}
    expected = {
        "pos_embed": 0.5**5,
        "patch_embed": 0.5**5,
        "blocks.0": 0.5**4,
        "blocks.1": 0.5**3,
        "blocks.2": 0.5**2,
    }
    expected |= {"blocks.3": 0.5, "out_norms": 1.0}
    for name, rate in by_name.items():
        if name.startswith("backbone.net."):
            (prefix,) = [prefix for prefix in expected if name.startswith(f"backbone.net.{prefix}")]
            assert rate == expected[prefix], name
        else:
            assert rate == 1.0, name


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
    torch.testing.assert_close(
        net.cuda()(x.cuda())["last_feat"].cpu(), on_cpu, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("train", [False, True])
def test_the_backbone_compiles_into_one_graph(train: bool) -> None:
    net = tiny().train(train)
    compiled = torch.compile(
        net, backend="aot_eager", fullgraph=True
    )  # traced as for any compiler, without needing one
    x = torch.randn(2, 3, 32, 48)
    outputs, gradients = [], []
    for run in (net, compiled):
        outputs.append(run(x)["last_feat"])
        gradients.append(
            torch.autograd.grad(
                outputs[-1].square().sum(), list(net.parameters()), allow_unused=True
            )
        )
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(*gradients):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(
            net.eval()(x)["last_feat"], compiled(x)["last_feat"], rtol=1e-4, atol=1e-5
        )


def test_inference_by_parts_agrees_with_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = tiny(out_features=("block0", "last_feat")).eval(), torch.randn(2, 3, 48, 64)
    before, whole = x.clone(), net(x)
    monkeypatch.setattr(layers, "TOKENS_PER_PART", 20)
    with torch.no_grad():
        parts = net(x)
    assert torch.equal(x, before)
    for name, output in parts.items():
        torch.testing.assert_close(output, whole[name].detach(), rtol=1e-4, atol=1e-5)

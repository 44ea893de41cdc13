"""The backbone is numerically equivalent to the official implementation."""

import json

import official
import pytest
import torch
from gpvit import SIZES, GPViT
from gpvit.checkpoint.published import BACKBONE, rename
from torch import Tensor

ALL_SIZES = pytest.mark.parametrize("size", SIZES)


def published_backbone(size: str, keys: str = "", **options) -> GPViT:
    net = GPViT(**SIZES[size], **options).eval()
    net.load_state_dict(rename(official.weights("backbone", keys or size), BACKBONE))
    return net


@ALL_SIZES
@pytest.mark.parametrize(("seed", "height", "width"), [(0, 224, 224), (1, 256, 352)])
@torch.no_grad()
def test_each_block_matches_official_implementation(
    size: str, seed: int, height: int, width: int
) -> None:
    reference = official.Reference(f"backbone_{size.lower()}")
    net = published_backbone(size)

    def check(name: str, tokens: Tensor) -> None:
        reference.check(f"{name}_{height}x{width}", tokens.flatten(1, 2))

    net.patch_embed.register_forward_hook(lambda module, args, out: check("patch_embed", out))
    net.blocks[0].register_forward_pre_hook(lambda module, args: check("embedded", args[0]))
    for i, block in enumerate(net.blocks):
        block.register_forward_hook(lambda module, args, out, i=i: check(f"layer{i:02}", out))
    output = net(official.image(seed, (1, 3, height, width)))
    reference.check(f"out_{height}x{width}", output["last_feat"])


@torch.no_grad()
def test_intermediate_maps_match_official_implementation() -> None:
    names = {"block2": "out2", "block5": "out5", "block8": "out8", "last_feat": "out11"}
    net = published_backbone("L1", keys="l1_multi", out_features=tuple(names))
    reference = official.Reference("backbone_l1_multi")
    for name, output in net(official.image(2, (2, 3, 160, 192))).items():
        reference.check(names[name], output)


@pytest.mark.parametrize("scale", ["unit", "tiny"])  # tiny: each norm's epsilon matters
@pytest.mark.parametrize("index", [0, 1, 11])
@torch.no_grad()
def test_steps_inside_a_block_match_official_implementation(index: int, scale: str) -> None:
    block = published_backbone("L1").blocks[index]
    steps = {}

    def record(module: torch.nn.Module, *names: str) -> None:
        """Record the module's output and, under a second name, its input."""

        def hook(module, args, out):
            steps.update(zip(names, (out.clone(), args[0].clone())))  # the MLP is added in place

        module.register_forward_hook(hook)

    if index == 1:
        record(block.group, "group_layer")
        record(block.mixer, "mixer")
        record(block.ungroup, "un_group_layer")
        record(block.ungroup.out, "un_group_layer_attn")
        record(block.ungroup.norm2, "norm2", "un_group_layer_proj")
    else:
        record(block.norm1, "norm1")
        record(block.attn.proj, "proj", "attns")
        record(block.norm2, "norm2")
        record(block.conv, "dw", "ffn")
    tokens = official.feature(100 + index, (2, 140, 216)) * {"unit": 1, "tiny": 1e-3}[scale]
    steps["out"] = block(tokens.unflatten(1, (10, 14)))
    if index == 1:
        del steps["norm2"]
    else:
        qkv = block.attn.qkv  # called for each half of the channels
        steps["qkv"] = torch.nn.functional.linear(steps["norm1"], qkv.weight, qkv.bias)
        vertical, horizontal = steps.pop("attns").chunk(2, dim=-1)
        steps |= {"attns_0": vertical, "attns_1": horizontal}
        steps["ffn"] = steps["ffn"].permute(0, 2, 3, 1)
        del steps["dw"]  # the output
    reference = official.Reference("blocks_l1")
    prefix = f"layer{index}_{scale}_"
    names = [name for name in reference.manifest["arrays"] if name.startswith(prefix)]
    assert sorted(prefix + name for name in steps) == sorted(names)
    for name, tensor in steps.items():
        reference.check(prefix + name, tensor.reshape(2, -1, tensor.shape[-1]))


# In float32, rounding may change the sign of a ReLU's input, and gradients by up to 1e-3.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-4), (torch.float32, 3e-3)])
def test_training_step_matches_official_gradients_and_statistics(
    dtype: torch.dtype, tolerance: float
) -> None:
    net = published_backbone("L1").to(dtype).train()
    reference = official.Reference("backbone_l1_train")
    output = net(official.image(6, (2, 3, 96, 128)).to(dtype))["last_feat"]
    loss = (output * official.feature(7, (2, 216, 12, 16))).mean()
    loss.backward()
    reference.check("out", output)
    reference.check("loss", loss.reshape(1))

    gradients = {theirs: net.get_parameter(ours).grad for theirs, ours in parameter_names().items()}
    norms = torch.from_numpy(reference.arrays["grad_norms"])
    assert len(norms) == len(gradients)
    for expected, (name, gradient) in zip(norms, sorted(gradients.items())):
        if not without_effect(name):
            torch.testing.assert_close(
                gradient.norm(), expected.to(dtype), rtol=tolerance, atol=0, msg=name
            )
    for name, entry in reference.manifest["arrays"].items():
        what, _, key = name.partition("|")
        if what == "grad":
            step = 7 if "every 7th" in entry["note"] else 1
            reference.check(name, gradients[key].flatten()[::step], tolerance)
        elif what == "after_one_step":
            reference.check(name, net.get_buffer(our_name(key)))


def our_name(published_name: str) -> str:
    return next(iter(rename({published_name: torch.empty(0)}, BACKBONE)))


def parameter_names() -> dict[str, str]:
    """Published names of the L1 parameters to ours."""
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    keys = [key for key in official.keys("backbone", "L1") if not key.endswith(buffers)]
    return {key: our_name(key) for key in keys}


def without_effect(name: str) -> bool:
    """Whether the parameter does not affect the output, so that its gradient is rounding noise."""
    return name.endswith(("attn.k_proj.bias", "patch_mixer.3.bias"))


@ALL_SIZES
def test_parameter_counts_match_official_implementation(size: str) -> None:
    counts = json.loads((official.FOLDER / "complexity.json").read_text())["parameters"]["backbone"]
    with torch.device("meta"):
        net = GPViT(**SIZES[size])
    assert sum(parameter.numel() for parameter in net.parameters()) == counts[size.lower()]["total"]


@pytest.mark.parametrize("keys", ["L1", "L2", "L3", "L4", "l1_multi"])
def test_name_table_covers_backbone_in_both_directions(keys: str) -> None:
    multi = (
        {"out_features": ("block2", "block5", "block8", "last_feat")} if keys == "l1_multi" else {}
    )
    with torch.device("meta"):
        net = GPViT(**SIZES[keys[:2].upper()], **multi)
    theirs = {}
    for key, shape in official.keys("backbone", keys).items():
        theirs[key] = torch.empty(shape, device="meta")
    ours = rename(theirs, BACKBONE)
    assert len(ours) == len(theirs)
    assert ours.keys() == net.state_dict().keys()
    for key, tensor in net.state_dict().items():
        assert ours[key].shape == tensor.shape, key


@pytest.mark.parametrize(
    "key", ["layers.0.qkv.wieght.x", "head.fc.weight", "layers.1.attn.qkv.weight", "norm.weight"]
)
def test_unknown_published_name_raises(key: str) -> None:
    with pytest.raises(ValueError, match=key):
        rename({key: torch.empty(1)}, BACKBONE)

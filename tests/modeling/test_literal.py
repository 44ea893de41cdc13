"""The literal backbone, to which others are compared, matches the official implementation."""

import official
import pytest
import torch
from gpvit import SIZES, GPViT
from gpvit.checkpoint.published import BACKBONE, rename
from literal import LiteralGPViT

TINY = dict(embed_dim=24, num_heads=2, group_tokens=(0, 4, 0))


def literal_backbone(size: str) -> LiteralGPViT:
    net = LiteralGPViT(**SIZES[size])
    net.load_state_dict(rename(official.weights("backbone", size), BACKBONE))
    return net


@pytest.mark.parametrize("size", ["L1", "L2"])
@torch.no_grad()
def test_literal_blocks_match_official_implementation(size: str) -> None:
    net = literal_backbone(size).eval()
    reference = official.Reference(f"backbone_{size.lower()}")
    for i, block in enumerate(net.blocks):
        name = f"layer{i:02}_256x352"
        block.register_forward_hook(
            lambda module, args, out, name=name: reference.check(name, out.flatten(1, 2))
        )
    reference.check("out_256x352", net(official.image(1, (1, 3, 256, 352)))["last_feat"])


def test_literal_training_output_matches_official_implementation() -> None:
    net = literal_backbone("L1").train()
    reference = official.Reference("backbone_l1_train")
    reference.check("out", net(official.image(6, (2, 3, 96, 128)))["last_feat"])


@pytest.mark.parametrize("size", SIZES)
def test_literal_backbone_has_the_same_state_dict(size: str) -> None:
    with torch.device("meta"):
        ours, literal = GPViT(**SIZES[size]).state_dict(), LiteralGPViT(**SIZES[size]).state_dict()
    assert ours.keys() == literal.keys()
    for key, tensor in ours.items():
        assert literal[key].shape == tensor.shape, key


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 64, 96), (1, 3, 224, 224), (1, 3, 16, 16)])
def test_backbone_matches_literal_outputs_and_gradients(
    shape: tuple[int, int, int, int], training: bool
) -> None:
    torch.manual_seed(0)
    ours = GPViT(**TINY).train(training)
    literal = LiteralGPViT(**TINY).train(training)
    literal.load_state_dict(ours.state_dict())
    image = official.image(0, shape)
    outputs = [net(image)["last_feat"] for net in (ours, literal)]
    assert (outputs[0] - outputs[1]).norm() <= 1e-5 * outputs[1].norm()
    direction = official.feature(1, tuple(outputs[0].shape))
    gradients = []
    for net, output in zip((ours, literal), outputs):
        (output * direction).mean().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in net.parameters()]))
    assert (gradients[0] - gradients[1]).norm() <= 1e-4 * gradients[1].norm()

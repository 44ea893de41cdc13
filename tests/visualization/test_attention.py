"""Visualized attention and features are those that the model computes, at no cost to inference."""

from pathlib import Path

import cv2
import gpvit
import gpvit.modeling.backbone.gpvit
import numpy as np
import pytest
import torch
from conftest import REPOSITORY, TINY
from detectron2.config import instantiate
from gpvit import checkpoint
from gpvit.cli import view_attention
from gpvit.config import inference_config, load_config
from gpvit.modeling.backbone.gpvit import GPViT, GroupPropagationBlock
from gpvit.utils.errors import UserError
from gpvit.visualization import attention_sheet
from gpvit.visualization.attention import (
    GroupMaps,
    inspect,
    principal_colors,
    strongest,
    watch_groups,
)
from omegaconf import DictConfig
from torch import Tensor, nn

TINY_MODEL = [
    override for override in TINY if override.startswith(("model", "dataloader.short_side"))
]
TINY_PUBLISHED = [
    "model.backbone.bottom_up.net.embed_dim=24",
    "model.backbone.bottom_up.net.group_tokens=[0,4,0,3]",
    "dataloader.short_side=64",
]
DETECTORS = {
    "quickstart": TINY_MODEL,
    "published/mask_rcnn_gpvit_l1_1x": TINY_PUBLISHED,
    "published/retinanet_gpvit_l1_1x": TINY_PUBLISHED,
}


def config(name: str) -> DictConfig:
    return load_config(str(REPOSITORY / "configs" / f"{name}.py"), DETECTORS[name])


def weights_of(cfg: DictConfig) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    for name, weight in model.named_parameters():
        if "group_token" in name or ".group.key" in name or ".ungroup.query" in name:
            nn.init.normal_(weight)  # so that attention is not nearly uniform
    return model.state_dict()


def predictor(name: str) -> gpvit.Predictor:
    cfg = config(name)
    classes = [str(i) for i in range(3 if name == "quickstart" else 80)]
    if name == "quickstart":
        cfg.model.roi_heads.num_classes = 3
    return gpvit.Predictor(cfg, checkpoint.File("", weights_of(cfg), classes), "cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an untrained detector, with its config."""
    path, cfg = tmp_path_factory.mktemp("weights") / "model.pth", config("quickstart")
    cfg.model.roi_heads.num_classes = 3
    checkpoint.write(
        str(path), weights_of(cfg), classes=["a", "b", "c"], inference_config=inference_config(cfg)
    )
    return path


@pytest.fixture
def block() -> GroupPropagationBlock:
    torch.manual_seed(0)
    return GroupPropagationBlock(
        24, num_heads=3, num_group_tokens=5, drop_path=0.0, norm="BN"
    ).eval()


def per_head(x: Tensor) -> Tensor:
    return x.unflatten(-1, (3, -1))


@torch.no_grad()
def test_grouping_weights_times_values_equal_output(block: GroupPropagationBlock) -> None:
    x, tokens = torch.randn(2, 4, 6, 24), 3 * block.group_token
    weights = block.group.attention_weights(tokens, x)
    assert weights.shape == (2, 3, 5, 4, 6)
    values = per_head(block.group.norm_key(x))
    output = torch.einsum("bknhw,bhwkd->bnkd", weights, values).flatten(2)
    torch.testing.assert_close(output, block.group(tokens, x))
    torch.testing.assert_close(weights.sum((3, 4)), torch.ones(2, 3, 5))


@torch.no_grad()
def test_ungrouping_weights_times_values_equal_output(
    block: GroupPropagationBlock,
) -> None:
    x, groups = torch.randn(2, 4, 6, 24), torch.randn(2, 5, 24)
    weights = block.ungroup.attention_weights(x, groups)
    returned = []
    block.ungroup.out.register_forward_pre_hook(lambda _, inputs: returned.append(inputs[0]))
    block.ungroup(x, groups)
    values = per_head(block.ungroup.value(block.ungroup.norm_key(groups)))
    expected = torch.einsum("bknhw,bnkd->bhwkd", weights, values).flatten(3)
    torch.testing.assert_close(expected, returned[0])
    torch.testing.assert_close(weights.sum(2), torch.ones(2, 3, 4, 6))


@torch.no_grad()
def test_watching_keeps_outputs_and_removes_hooks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = GPViT(embed_dim=24, group_tokens=(0, 4, 0, 3), pretrain_img_size=64).eval()
    image = torch.randn(2, 3, 64, 96)
    before = net(image)["last_feat"]
    with watch_groups(net) as maps:
        watched = net(image)["last_feat"]
    shapes = {number: kind.grouping.shape for number, kind in maps.items()}
    assert shapes == {1: (2, 4, 8, 12), 3: (2, 3, 8, 12)}
    assert torch.equal(watched, before)
    for module in net.modules():
        assert not module._forward_pre_hooks and not module._forward_hooks
    # Without watching, attention weights are not computed.
    monkeypatch.setattr(gpvit.modeling.backbone.gpvit, "attention_weights", None)
    assert torch.equal(net(image)["last_feat"], before)


@pytest.mark.parametrize("name", DETECTORS)
def test_maps_are_attention_of_the_forward_pass(name: str) -> None:
    detector = predictor(name)
    image = np.random.default_rng(0).integers(0, 256, (100, 150, 3), np.uint8)
    inspection = inspect(detector, image)
    assert inspection.size == (64, 96)
    backbone = detector.model.backbone
    net = backbone.net if name == "quickstart" else backbone.bottom_up.net
    blocks = []
    for number, block in enumerate(net.blocks):
        if isinstance(block, GroupPropagationBlock):
            blocks.append(number)
    assert list(inspection.groups) == blocks
    assert inspection.groups[blocks[0]].ungrouping.shape == (4, 8, 12)
    for maps in inspection.groups.values():
        torch.testing.assert_close(maps.ungrouping.sum(0), torch.ones(8, 12))
        torch.testing.assert_close(maps.grouping.sum((1, 2)), torch.ones(len(maps.grouping)))
    assert inspection.strides.keys() == inspection.levels.keys()
    for level, values in inspection.levels.items():
        stride = inspection.strides[level]
        assert values.shape[1:] == (-(-64 // stride), -(-96 // stride))


def test_maps_are_cropped_to_the_image() -> None:
    # 64 x 70 in the model, padded to a width of 96
    image = np.random.default_rng(0).integers(0, 256, (100, 110, 3), np.uint8)
    inspection = inspect(predictor("quickstart"), image)
    assert inspection.size == (64, 70) and inspection.groups[1].ungrouping.shape == (4, 8, 9)
    shapes = {name: values.shape[1:] for name, values in inspection.levels.items()}
    assert shapes == {
        "p2": (16, 18),
        "p3": (8, 9),
        "p4": (4, 5),
        "p5": (2, 3),
        "p6": (1, 2),
    }
    assert (inspection.groups[1].grouping.sum((1, 2)) < 1).all()  # the rest is in the padding


def test_strongest_tokens_have_the_most_cells() -> None:
    given = torch.zeros(4, 2, 3)
    given[2, 0] = 0.6  # three cells
    given[0, 1, :2] = 0.6
    given[3, 1, 2] = 0.6
    given[1] = 0.1
    assert strongest(GroupMaps(given, given)) == [2, 0, 3, 1]


def test_colors_are_principal_components() -> None:
    torch.manual_seed(0)
    strong, weak = torch.linspace(-1, 1, 60), torch.randn(60)
    channels = [10 * strong, weak, 5 * strong, 0.01 * torch.randn(60)]
    level = torch.stack(channels).unflatten(1, (6, 10))
    colors, explained = principal_colors(level)
    assert colors.shape == (6, 10, 3) and colors.min() == 0 and colors.max() == 1
    assert explained > 0.999
    assert np.corrcoef(colors[..., 0].flatten(), strong)[0, 1] > 0.99  # the sign is fixed
    assert np.corrcoef(colors[..., 1].flatten(), weak)[0, 1] > 0.9
    assert torch.equal(principal_colors(level)[0], colors)


def view(monkeypatch: pytest.MonkeyPatch, weights: Path, *arguments: str | Path) -> int:
    command = ["--weights", weights, "--device", "cpu", *arguments]
    return view_attention.main(list(map(str, command)))


def test_sheets_are_drawn_and_unreadable_images_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, weights: Path, tmp_path: Path
) -> None:
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 60, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f"{number}.png"), pixels)
    (tmp_path / "broken.png").write_bytes(b"not an image")
    out = tmp_path / "out"
    assert view(monkeypatch, weights, "--input", tmp_path / "*.png", "--output", out) == 1
    assert "broken.png: cannot be read" in capsys.readouterr().err
    sheets = {path.name: cv2.imread(str(path)) for path in out.iterdir()}
    assert sheets.keys() == {"0_groups.png", "0_features.png", "1_groups.png", "1_features.png"}
    for sheet in sheets.values():
        assert sheet.std() > 20
    assert not np.array_equal(sheets["0_groups.png"], sheets["1_groups.png"])


def test_sheets_are_not_overwritten_without_option(
    monkeypatch: pytest.MonkeyPatch, weights: Path, tmp_path: Path
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((40, 60, 3), np.uint8))
    precious = tmp_path / "out" / "a_features.png"
    precious.parent.mkdir()
    precious.write_text("precious")
    arguments = ("--input", tmp_path / "a.png", "--output", precious.parent)
    with pytest.raises(
        UserError, match=r"a_features.png already exists; give another --output, or --overwrite"
    ):
        view(monkeypatch, weights, *arguments)
    assert precious.read_text() == "precious"
    assert view(monkeypatch, weights, *arguments, "--overwrite") == 0
    assert cv2.imread(str(precious)) is not None
    with pytest.raises(UserError, match="two inputs have the same name"):
        view(monkeypatch, weights, "--input", "a/1.png", "b/1.png", "--output", tmp_path / "new")


def test_dollar_signs_in_file_names_are_not_math(
    monkeypatch: pytest.MonkeyPatch, weights: Path, tmp_path: Path
) -> None:
    cv2.imwrite(str(tmp_path / "a$b_$c.png"), np.zeros((40, 60, 3), np.uint8))
    out = tmp_path / "out"
    assert view(monkeypatch, weights, "--input", tmp_path / "a*.png", "--output", out) == 0
    names = {path.name for path in out.iterdir()}
    assert names == {"a$b_$c_groups.png", "a$b_$c_features.png"}


def test_tokens_can_be_chosen(
    monkeypatch: pytest.MonkeyPatch, weights: Path, tmp_path: Path
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((40, 60, 3), np.uint8))
    chosen = []
    draw_block = attention_sheet.Sheet.draw_block

    def remember(self: attention_sheet.Sheet, *args: object) -> None:
        chosen.append(args[3])
        draw_block(self, *args)

    monkeypatch.setattr(attention_sheet.Sheet, "draw_block", remember)
    arguments = ("--input", tmp_path / "a.png", "--output")
    assert view(monkeypatch, weights, *arguments, tmp_path, "--tokens", "3", "9") == 0
    assert chosen == [[3]]
    with pytest.raises(UserError, match=r"--tokens: no block has any of these.* 4 in block 1"):
        view(monkeypatch, weights, *arguments, tmp_path / "new", "--tokens", "4")

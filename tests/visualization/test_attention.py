"""What is drawn of the model is what the model computes, and costs nothing where it is not asked for."""

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
    principal_colours,
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
            nn.init.normal_(weight)  # so that attention is far from even
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
    return GroupPropagationBlock(24, num_heads=3, num_groups=5, drop_path=0.0, norm="BN").eval()


def per_head(x: Tensor) -> Tensor:
    return x.unflatten(-1, (3, -1))


@torch.no_grad()
def test_weights_of_grouping_times_values_are_its_output(block: GroupPropagationBlock) -> None:
    x, tokens = torch.randn(2, 4, 6, 24), 3 * block.group_token
    weights = block.group.weights(tokens, x)
    assert weights.shape == (2, 3, 5, 4, 6)
    output = torch.einsum("bknhw,bhwkd->bnkd", weights, per_head(block.group.norm_key(x))).flatten(
        2
    )
    torch.testing.assert_close(output, block.group(tokens, x))
    torch.testing.assert_close(weights.sum((3, 4)), torch.ones(2, 3, 5))


@torch.no_grad()
def test_weights_of_ungrouping_times_values_are_what_it_returns(
    block: GroupPropagationBlock,
) -> None:
    x, groups = torch.randn(2, 4, 6, 24), torch.randn(2, 5, 24)
    weights = block.ungroup.weights(x, groups)
    returned = []
    block.ungroup.out.register_forward_pre_hook(lambda _, inputs: returned.append(inputs[0]))
    block.ungroup(x, groups)
    values = per_head(block.ungroup.value(block.ungroup.norm_key(groups)))
    torch.testing.assert_close(
        torch.einsum("bknhw,bnkd->bhwkd", weights, values).flatten(3), returned[0]
    )
    torch.testing.assert_close(weights.sum(2), torch.ones(2, 3, 4, 6))


@torch.no_grad()
def test_watching_changes_no_output_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = GPViT(embed_dim=24, group_tokens=(0, 4, 0, 3), pretrain_img_size=64).eval()
    image = torch.randn(2, 3, 64, 96)
    before = net(image)["last_feat"]
    with watch_groups(net) as maps:
        watched = net(image)["last_feat"]
    assert {number: kind.gathered.shape for number, kind in maps.items()} == {
        1: (2, 4, 8, 12),
        3: (2, 3, 8, 12),
    }
    assert torch.equal(watched, before)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in net.modules())
    monkeypatch.setattr(
        gpvit.modeling.backbone.gpvit, "attention_weights", None
    )  # what is not asked for is not computed
    assert torch.equal(net(image)["last_feat"], before)


@pytest.mark.parametrize("name", DETECTORS)
def test_maps_are_those_of_the_forward_pass_without_its_padding(name: str) -> None:
    detector = predictor(name)
    picture = np.random.default_rng(0).integers(0, 256, (100, 150, 3), np.uint8)
    inspection = inspect(detector, picture)
    assert inspection.size == (64, 96)
    block = min(inspection.groups)
    net = (
        detector.model.backbone.net
        if name == "quickstart"
        else detector.model.backbone.bottom_up.net
    )
    blocks = [
        number
        for number, block in enumerate(net.blocks)
        if isinstance(block, GroupPropagationBlock)
    ]
    assert list(inspection.groups) == blocks and inspection.groups[block].given.shape == (4, 8, 12)
    for maps in inspection.groups.values():
        torch.testing.assert_close(maps.given.sum(0), torch.ones(8, 12))
        torch.testing.assert_close(maps.gathered.sum((1, 2)), torch.ones(len(maps.gathered)))
    assert inspection.strides.keys() == inspection.levels.keys()
    for level, values in inspection.levels.items():
        stride = inspection.strides[level]
        assert values.shape[1:] == (-(-64 // stride), -(-96 // stride))


def test_maps_end_with_the_picture() -> None:
    picture = np.random.default_rng(0).integers(
        0, 256, (100, 110, 3), np.uint8
    )  # 64 x 70 in the model, padded to 96
    inspection = inspect(predictor("quickstart"), picture)
    assert inspection.size == (64, 70) and inspection.groups[1].given.shape == (4, 8, 9)
    assert {name: values.shape[1:] for name, values in inspection.levels.items()} == {
        "p2": (16, 18),
        "p3": (8, 9),
        "p4": (4, 5),
        "p5": (2, 3),
        "p6": (1, 2),
    }
    assert (inspection.groups[1].gathered.sum((1, 2)) < 1).all()  # the padding has the rest


def test_the_strongest_tokens_win_the_most_cells() -> None:
    given = torch.zeros(4, 2, 3)
    given[2, 0] = 0.6  # three cells
    given[0, 1, :2] = 0.6
    given[3, 1, 2] = 0.6
    given[1] = 0.1
    assert strongest(GroupMaps(given, given)) == [2, 0, 3, 1]


def test_colours_follow_the_main_components() -> None:
    torch.manual_seed(0)
    strong, weak = torch.linspace(-1, 1, 60), torch.randn(60)
    level = torch.stack([10 * strong, weak, 5 * strong, 0.01 * torch.randn(60)]).unflatten(
        1, (6, 10)
    )
    colours, share = principal_colours(level)
    assert (
        colours.shape == (6, 10, 3) and colours.min() == 0 and colours.max() == 1 and share > 0.999
    )
    assert np.corrcoef(colours[..., 0].flatten(), strong)[0, 1] > 0.99  # the sign is fixed
    assert np.corrcoef(colours[..., 1].flatten(), weak)[0, 1] > 0.9
    assert torch.equal(principal_colours(level)[0], colours)


def view(monkeypatch: pytest.MonkeyPatch, weights: Path, *arguments: str | Path) -> int:
    command = ["--weights", weights, "--device", "cpu", *arguments]
    return view_attention.main(list(map(str, command)))


def test_sheets_are_drawn_and_a_broken_picture_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, weights: Path, tmp_path: Path
) -> None:
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 60, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f"{number}.png"), pixels)
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    out = tmp_path / "out"
    assert view(monkeypatch, weights, "--input", tmp_path / "*.png", "--output", out) == 1
    assert "broken.png: cannot be read" in capsys.readouterr().err
    sheets = {path.name: cv2.imread(str(path)) for path in out.iterdir()}
    assert sheets.keys() == {"0_groups.png", "0_features.png", "1_groups.png", "1_features.png"}
    assert all(sheet.std() > 20 for sheet in sheets.values())
    assert not np.array_equal(sheets["0_groups.png"], sheets["1_groups.png"])


def test_sheets_are_not_written_over_unless_asked_to(
    monkeypatch: pytest.MonkeyPatch, weights: Path, tmp_path: Path
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((40, 60, 3), np.uint8))
    precious = tmp_path / "out" / "a_features.png"
    precious.parent.mkdir()
    precious.write_text("precious")
    arguments = ("--input", tmp_path / "a.png", "--output", precious.parent)
    with pytest.raises(
        UserError, match=r"there is .*a_features.png already; give another --output, or --overwrite"
    ):
        view(monkeypatch, weights, *arguments)
    assert precious.read_text() == "precious"
    assert view(monkeypatch, weights, *arguments, "--overwrite") == 0
    assert cv2.imread(str(precious)) is not None
    with pytest.raises(UserError, match="two inputs have the same name"):
        view(monkeypatch, weights, "--input", "a/1.png", "b/1.png", "--output", tmp_path / "new")


def test_a_name_with_dollars_is_written_as_it_is(
    monkeypatch: pytest.MonkeyPatch, weights: Path, tmp_path: Path
) -> None:
    cv2.imwrite(str(tmp_path / "a$b_$c.png"), np.zeros((40, 60, 3), np.uint8))
    assert (
        view(monkeypatch, weights, "--input", tmp_path / "a*.png", "--output", tmp_path / "out")
        == 0
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "a$b_$c_groups.png",
        "a$b_$c_features.png",
    }


def test_tokens_can_be_chosen(
    monkeypatch: pytest.MonkeyPatch, weights: Path, tmp_path: Path
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((40, 60, 3), np.uint8))
    shown = []
    draw_block = attention_sheet.Sheet.draw_block
    monkeypatch.setattr(
        attention_sheet.Sheet,
        "draw_block",
        lambda self, *args: shown.append(args[3]) or draw_block(self, *args),
    )
    assert (
        view(
            monkeypatch,
            weights,
            "--input",
            tmp_path / "a.png",
            "--output",
            tmp_path,
            "--tokens",
            "3",
            "9",
        )
        == 0
    )
    assert shown == [[3]]
    with pytest.raises(UserError, match=r"--tokens: no block has any of these.* 4 in block 1"):
        view(
            monkeypatch,
            weights,
            "--input",
            tmp_path / "a.png",
            "--output",
            tmp_path / "new",
            "--tokens",
            "4",
        )

"""Checkpoints and configs of an earlier version are read, resumed, used for inference and exported.

The files in reference/saved were written before modules were renamed. Their tensors are zeros,
which compress well, and are filled by a fixed rule here. That version also computed the expected
results.
"""

import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import official
import pytest
import torch
import train_net
from conftest import REPOSITORY
from gpvit import Predictor, checkpoint
from gpvit.cli.train import argument_parser
from gpvit.config import config_from_yaml, load_config
from gpvit.engine.resume import settings
from gpvit.export import graph as export
from PIL import Image

pytestmark = pytest.mark.long

SAVED = official.FOLDER / "saved"
NAMES = ("simple", "averaged", "mask_rcnn", "retinanet")
EXPECTED = json.loads((SAVED / "expected.json").read_text())


def make_data(folder: Path) -> Path:
    """Write a dataset of two training images and one validation image, with two rectangles each."""
    rng = np.random.default_rng(0)
    (folder / "annotations").mkdir(parents=True)
    (folder / "images").mkdir()
    for split, ids in {"train": (1, 2), "val": (3,)}.items():
        images, objects = [], []
        for id in ids:
            pixels = rng.integers(0, 80, (64, 80, 3), np.uint8)
            images.append({"id": id, "file_name": f"{id}.png", "width": 80, "height": 64})
            boxes = [(4 + id, 8, 24, 32), (40, 20 + id, 30, 20)]
            for number, (x, y, w, h) in enumerate(boxes, start=1):
                pixels[y : y + h, x : x + w, number] = 220
                objects.append(
                    {
                        "id": 10 * id + number,
                        "image_id": id,
                        "category_id": number,
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "iscrowd": 0,
                        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    }
                )
            Image.fromarray(pixels).save(folder / "images" / f"{id}.png")
        classes = [{"id": 1, "name": "green"}, {"id": 2, "name": "blue"}]
        content = {"images": images, "annotations": objects, "categories": classes}
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return folder


def filled(content: dict[str, Any]) -> dict[str, Any]:
    """Fill the weights, their average and the optimizer state of a checkpoint by a fixed rule."""
    for part in ("model", "ema"):
        for key, tensor in content.get(part, {}).items():
            tensor.copy_(torch.from_numpy(np.asarray(official.fill(key, list(tensor.shape)))))
    for number, state in content["trainer"]["optimizer"]["state"].items():
        for name in ("exp_avg", "exp_avg_sq", "momentum_buffer"):
            if name in state:
                values = 1e-3 * official.fill(f"{name}.{number}.bias", list(state[name].shape))
                state[name].copy_(torch.from_numpy(np.asarray(values)))
        if "exp_avg_sq" in state:
            state["exp_avg_sq"].square_()  # must not be negative
    return content


def saved_run(name: str, folder: Path) -> Path:
    """Restore the folder of a run after 2 of 4 iterations, with filled tensors."""
    folder.mkdir()
    (folder / "config.yaml").write_bytes((SAVED / f"{name}.yaml").read_bytes())
    path = folder / "model_0000002.pth"
    path.write_bytes(lzma.decompress((SAVED / f"{name}.pth.xz").read_bytes()))
    checkpoint.save(filled(torch.load(path, weights_only=True)), str(path))
    return folder


def resumed(run: Path, data: Path) -> list[float]:
    """Resume to iteration 4 and return the losses."""
    arguments = ["--config-file", str(run / "config.yaml"), "--data", str(data), "--resume"]
    arguments.append(f"train.output_dir={run}")
    train_net.main(argument_parser().parse_intermixed_args(arguments))
    metrics = map(json.loads, (run / "metrics.json").read_text().splitlines())
    return [entry["total_loss"] for entry in metrics if "total_loss" in entry]


def predicted(run: Path, data: Path) -> dict[str, list[Any]]:
    found = Predictor.from_checkpoint(run / "model_0000002.pth", "cpu")(data / "images" / "3.png")
    return {"boxes": found.pred_boxes.tensor[:20].tolist(), "scores": found.scores[:20].tolist()}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("small") / "data")


@pytest.mark.parametrize("name", NAMES)
def test_old_checkpoint_has_classes_and_all_tensors(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model_0000002.pth"
    path.write_bytes(lzma.decompress((SAVED / f"{name}.pth.xz").read_bytes()))
    file = checkpoint.read(str(path))
    assert file.require_classes() == ["green", "blue"]
    model = Predictor.from_checkpoint(path, "cpu").model
    assert list(model.state_dict()) == list(torch.load(path, weights_only=True)["model"])


@pytest.mark.parametrize("name", NAMES)
def test_old_checkpoint_gives_same_predictions(name: str, data: Path, tmp_path: Path) -> None:
    found = predicted(saved_run(name, tmp_path / "run"), data)
    for key, values in found.items():
        assert len(values) == len(EXPECTED[name][key]) > 0
        assert torch.allclose(torch.tensor(values), torch.tensor(EXPECTED[name][key]), atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_old_run_resumes_with_same_losses(name: str, data: Path, tmp_path: Path) -> None:
    assert resumed(saved_run(name, tmp_path / "run"), data) == pytest.approx(
        EXPECTED[name]["losses"], rel=1e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_old_checkpoint_is_exported(name: str, tmp_path: Path) -> None:
    model = Predictor.from_checkpoint(saved_run(name, tmp_path / "run"), "cpu").model
    assert len(export.export(model).graph.nodes) > 100


@pytest.mark.parametrize("path", sorted(SAVED.glob("*.yaml")), ids=lambda path: path.stem)
def test_old_config_is_read(path: Path) -> None:
    if path.stem in NAMES:
        assert load_config(str(path)).train.max_iter == 4
    else:
        assert config_from_yaml(path.read_text(), str(path)).model


@pytest.mark.parametrize(
    ("name", "expected"),
    [("quickstart", "0de23eb6e7e06e20"), ("published/retinanet_gpvit_l1_1x", "1a233cab90ca1999")],
)
def test_hash_of_settings_is_that_of_old_results(name: str, expected: str) -> None:
    cfg = load_config(str(REPOSITORY / "configs" / f"{name}.py"), ["train.device=cpu"])
    assert settings(cfg) == expected

"""`gpvit share` writes, pushes and pulls complete models and nothing else.

:mod:`stub_hub` mocks the Hugging Face Hub.
"""

import contextlib
import json
import shlex
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import gpvit
import pytest
import torch
import train_net
from conftest import REPOSITORY, TINY
from detectron2.data import DatasetCatalog, MetadataCatalog
from gpvit import checkpoint, hub
from gpvit.cli import share
from gpvit.cli.train import argument_parser
from gpvit.hub import model_card
from gpvit.utils.errors import UserError
from huggingface_hub import ModelCard, constants
from safetensors import safe_open
from stub_hub import TOKEN, Hub, Repository

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def run_folder(synthetic_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short training run with averaged weights."""
    folder = tmp_path_factory.mktemp("training")
    for name in {"data_train", "data_val"} & set(DatasetCatalog):  # of other tests: names differ
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    config = str(REPOSITORY / "configs" / "quickstart.py")
    command = ["--config-file", config, "--data", str(synthetic_data), *TINY]
    command += ["train.device=cpu", "train.max_iter=2", "train.ema_decay=0.5"]
    command.append(f"train.output_dir={folder}")
    train_net.main(argument_parser().parse_intermixed_args(command))
    return folder


@pytest.fixture(scope="module")
def model(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared model of that run; tests must not modify it."""
    folder = tmp_path_factory.mktemp("models") / "toys"
    with hub.new_folder(folder, overwrite=False) as partial:
        hub.write(str(run_folder), partial, license="apache-2.0", address=hub.local_address(folder))
    return folder


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """An empty Hub, with a user logged in."""
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    use_hub(monkeypatch, tmp_path, server.url)
    yield server
    server.shutdown()
    server.server_close()


def use_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str) -> None:
    """Set what huggingface_hub reads from environment variables when it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def push(
    weights: Path | str, output: Path | str, *options: object, license_id: str = "apache-2.0"
) -> None:
    """Run `gpvit share push`."""
    arguments = ["--weights", weights, "--output", output, "--license", license_id, *options]
    share.main(["push", *map(str, arguments)])


def pull(weights: str, output: Path) -> None:
    """Run `gpvit share pull`."""
    share.main(["pull", "--weights", weights, "--output", str(output)])


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def detections(weights: Path | str, image: Path) -> dict[str, torch.Tensor]:
    instances = gpvit.Predictor.from_checkpoint(weights, "cpu")(image)
    return {
        "boxes": instances.pred_boxes.tensor,
        "scores": instances.scores,
        "masks": instances.pred_masks,
    }


def assert_same_detections(first: Path | str, second: Path | str, data: Path) -> None:
    image = next((data / "images").glob("val_*.png"))
    expected, actual = detections(first, image), detections(second, image)
    assert len(expected["scores"])
    for name, values in expected.items():
        assert torch.equal(values, actual[name]), name


# --- The folder ---


def test_detector_loads_from_shared_folder(
    run_folder: Path, synthetic_data: Path, tmp_path: Path
) -> None:
    push(run_folder, tmp_path / "toys", license_id="mit")
    assert names_in(tmp_path / "toys") == ["README.md", "config.yaml", "model.safetensors"]
    assert_same_detections(tmp_path / "toys", run_folder, synthetic_data)


def test_shared_weights_are_averaged_and_metadata_has_no_path(
    run_folder: Path, model: Path
) -> None:
    content = torch.load(run_folder / "model_final.pth", weights_only=True)
    file = checkpoint.read(str(model))
    assert file.weights.keys() == content["ema"].keys()
    for key, tensor in file.weights.items():
        assert torch.equal(tensor, content["ema"][key])
    assert any(not torch.equal(content["model"][key], content["ema"][key]) for key in file.weights)
    assert file.classes == content["classes"] and file.config == (model / "config.yaml").read_text()
    assert file.about == {
        "license": "apache-2.0",
        "versions": content["versions"],
        "iterations": 2,
        "source": "model_final.pth",
    }
    with safe_open(model / "model.safetensors", "pt") as weights:
        metadata = str(weights.metadata())
    card, config = (model / "README.md").read_text(), (model / "config.yaml").read_text()
    for text in (metadata, card, config):
        assert str(run_folder.parent.parent) not in text and str(Path.home()) + "/" not in text


def test_card_has_results_and_datasets_of_training_run(run_folder: Path, tmp_path: Path) -> None:
    for name in ("model_final.pth", "config.yaml"):
        shutil.copy(run_folder / name, tmp_path)
    row = {"iteration": 1, "total_loss": 1.0, "bbox/AP": 1.0, "ema_bbox/AP": 12.34}
    row |= {"ema_segm/AP": 23.44, "ema_segm/APl": 34.5, "ema_bbox/AP-disc": 45.6}
    (tmp_path / "metrics.json").write_text(json.dumps(row))
    (tmp_path / "evaluation.json").write_text('{"images": 7, "weights": null}')
    hub.write(str(tmp_path), tmp_path, license="apache-2.0", address="hf://me/toys")
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "gpvit")
    assert card.data.pipeline_tag == "image-segmentation"
    assert "instance-segmentation" in card.data.tags
    boxes, masks = card.data.eval_results
    assert (boxes.metric_name, boxes.metric_value) == ("COCO AP (boxes)", 12.3)
    assert (masks.metric_name, masks.metric_value) == ("COCO AP (masks)", 23.4)
    assert boxes.dataset_name == masks.dataset_name == "data_val"
    assert "Trained for 2 iterations on data\\_train." in card.text
    assert "evaluated on 7 images of data\\_val" in card.text
    assert "| boxes | 12.3 |  |  |  |  |  |\n| masks | 23.4 |  |  |  |  | 34.5 |" in card.text
    assert "| disc | 45.6 |" in card.text
    assert f"Trained with gpvit {gpvit.__version__}, torch {torch.__version__}, det" in card.text
    assert 'from_checkpoint("hf://me/toys")' in card.text
    assert "is 64 pixels, or less if the longer side would exceed 320 pixels" in card.text


def test_card_has_metrics_of_its_checkpoint_only(tmp_path: Path) -> None:
    rows = [
        {"iteration": 3, "bbox/AP": 10.0, "bbox/AP-cat": 1.0},
        {"iteration": 7, "bbox/AP": 20.0, "total_loss": 1.0},
        {"iteration": 8, "bbox/AP": 30.0},
    ]
    truncated_line = '{"iteration": 4, "bbox/AP": 5'
    lines = [*map(json.dumps, rows), truncated_line]
    (tmp_path / "metrics.json").write_text("\n".join(lines))
    path = str(tmp_path / "model_0000004.pth")
    file = checkpoint.File(path, {}, ["cat"], about={"iterations": 4})
    assert model_card.read_training_run(file).metrics == {"bbox/AP": 10.0, "bbox/AP-cat": 1.0}


@pytest.mark.parametrize(("iterations", "ap"), [(1, 11.0), (2, 12.0), (3, 13.0)])
def test_checkpoint_after_each_iteration_has_its_own_evaluation(
    tmp_path: Path, iterations: int, ap: float
) -> None:
    """A run of 3 iterations writes its evaluations with the iterations 0, 1 and, at the end, 3."""
    rows = [
        {"iteration": 0, "bbox/AP": 11.0},
        {"iteration": 1, "bbox/AP": 12.0},
        {"iteration": 2, "total_loss": 1.0},
        {"iteration": 3, "bbox/AP": 13.0},
        [4],
    ]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "config.yaml").write_text("train: {max_iter: 3}\n")
    file = checkpoint.File(str(tmp_path / "model.pth"), {}, [], about={"iterations": iterations})
    assert model_card.read_training_run(file).metrics == {"bbox/AP": ap}


@pytest.mark.parametrize("content", ['{"weights": null}', "[]", "null", "3", "{"])
def test_unexpected_evaluation_json_is_ignored(tmp_path: Path, content: str) -> None:
    (tmp_path / "evaluation.json").write_text(content)
    file = checkpoint.File(str(tmp_path / "model.pth"), {}, [], about={"iterations": 2})
    assert model_card.read_training_run(file).images is None


def test_folder_name_is_quoted_in_command_of_card(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "o'my $(toys)"
    push(model, target)
    assert address_in_command(target / "README.md") == "path/to/o'my $(toys)"
    push(target, tmp_path / "toys")
    assert (tmp_path / "toys" / "README.md").read_text() == (model / "README.md").read_text()
    file = checkpoint.read(str(model))
    cfg, run = hub.usable_config(file), model_card.TrainingRun()
    card = model_card.model_card(file, cfg, "mit", "path/to/my toys", run)
    card.save(tmp_path / "README.md")
    assert address_in_command(tmp_path / "README.md") == "path/to/my toys"


def address_in_command(card: Path) -> str:
    [command] = [line for line in card.read_text().splitlines() if line.startswith("gpvit predict")]
    return shlex.split(command)[3]


def test_card_without_evaluation_has_no_results(run_folder: Path, tmp_path: Path) -> None:
    checkpoint_file = tmp_path / "model.pth"
    checkpoint_file.write_bytes((run_folder / "model_final.pth").read_bytes())
    hub.write(str(checkpoint_file), tmp_path, license="mit", address="hf://me/toys")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.eval_results is None and "AP" not in card.text
    assert "Trained for 2 iterations." in card.text


def test_overwrite_is_required_and_replaces_model_folders_only(
    run_folder: Path, model: Path, tmp_path: Path
) -> None:
    target = tmp_path / "toys"
    push(model, target)
    (target / "README.md").write_text("old")
    with pytest.raises(UserError, match="toys exists: add --overwrite"):
        push(model, target)
    assert (target / "README.md").read_text() == "old"
    push(model, target, "--overwrite")
    assert (target / "README.md").read_text() == (model / "README.md").read_text()
    (target / "notes.txt").write_text("notes")
    with pytest.raises(UserError, match="contains notes.txt: give a folder for the model only"):
        push(model, target, "--overwrite")
    assert names_in(tmp_path) == ["toys"]  # no temporary folders


def test_unusable_model_is_not_written(run_folder: Path, model: Path, tmp_path: Path) -> None:
    file, target = checkpoint.read(str(run_folder)), tmp_path / "toys"
    checkpoint.write(str(tmp_path / "bare.pth"), file.weights, classes=file.classes)
    checkpoint.write(str(tmp_path / "unnamed.pth"), file.weights, inference_config=file.config)
    weights = {key: tensor for key, tensor in file.weights.items() if "mask_head" not in key}
    checkpoint.write(
        str(tmp_path / "part.pth"), weights, inference_config=file.config, classes=file.classes
    )
    problems = {
        "bare": "contains no config.*--config-file",
        "unnamed": "class names",
        "part": "does not fit the model",
    }
    for name, problem in problems.items():
        with pytest.raises(UserError, match=problem):
            push(tmp_path / f"{name}.pth", target, license_id="mit")
        assert not target.exists()
    config = ("--config-file", run_folder / "config.yaml")
    push(tmp_path / "bare.pth", target, *config, license_id="mit")
    assert checkpoint.read(str(target)).config == checkpoint.read(str(model)).config


def test_license_is_required_and_must_match(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        share.main(["push", "--weights", str(model), "--output", str(tmp_path / "toys")])
    assert "--license" in capsys.readouterr().err
    shutil.copy(model / "model.safetensors", tmp_path)
    for weights in (model, tmp_path / "model.safetensors"):  # with and without a card
        message = "states the license apache-2.0, but --license is mit"
        with pytest.raises(UserError, match=message):
            push(weights, tmp_path / "toys", license_id="mit")


def test_license_under_its_old_key_is_read(model: Path, tmp_path: Path) -> None:
    file, path = checkpoint.read(str(model)), tmp_path / "model.safetensors"
    metadata = {"classes": file.classes, "inference_config": file.config, "licence": "mit"}
    checkpoint.write(str(path), file.weights, **metadata)
    assert checkpoint.read(str(path)).about["license"] == "mit"
    with pytest.raises(UserError, match="states the license mit"):
        push(path, tmp_path / "toys", license_id="apache-2.0")


# --- The Hub ---


def test_pulled_files_and_detections_equal_pushed_ones(
    stub: Hub,
    run_folder: Path,
    synthetic_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    push(run_folder, "me/toys")
    usage = 'load it with gpvit.Predictor.from_checkpoint("hf://me/toys")'
    assert f"{stub.url}/me/toys: {usage}" in capsys.readouterr().out
    pushed = dict(stub.repositories["me/toys"].commits[-1])
    assert len(stub.large) == 1  # the weights were uploaded by the LFS protocol
    pull("me/toys", tmp_path / "pulled")
    assert "3 classes (disc" in capsys.readouterr().out
    pulled = {path.name: path.read_bytes() for path in (tmp_path / "pulled").iterdir()}
    pushed.pop(".gitattributes", None)
    assert pulled == pushed
    assert b"hf://me/toys" in pulled["README.md"]
    assert_same_detections(tmp_path / "pulled", run_folder, synthetic_data)
    assert_same_detections("hf://me/toys", run_folder, synthetic_data)


def test_revision_selects_commit(stub: Hub, run_folder: Path, model: Path) -> None:
    push(run_folder, "me/toys", license_id="mit")
    push(model, "hf://me/toys", "--overwrite")
    assert checkpoint.read("hf://me/toys").about["license"] == "apache-2.0"
    assert checkpoint.read("hf://me/toys@v1").about["license"] == "mit"
    stub.repositories.clear()
    assert checkpoint.read(f"hf://me/toys@{1:040x}").about["license"] == "mit"  # from the cache


def test_edited_card_is_pushed_unchanged(stub: Hub, model: Path, tmp_path: Path) -> None:
    push(model, tmp_path / "toys")
    card = tmp_path / "toys" / "README.md"
    card.write_text(card.read_text() + "\nDo not use it for medicine.\n")
    push(tmp_path / "toys", "me/toys")
    pushed = stub.repositories["me/toys"].commits[-1]
    assert pushed["README.md"].decode() == card.read_text().replace("path/to/toys", "hf://me/toys")
    assert pushed["model.safetensors"] == (model / "model.safetensors").read_bytes()
    edited = card.read_text()
    card.write_text(edited.replace("license: apache-2.0", "license: mit"))
    with pytest.raises(UserError, match="README.md states the license mit"):
        push(tmp_path / "toys", "me/other")
    card.write_text(edited.replace("license: apache-2.0", "license: {"))
    with pytest.raises(UserError, match="cannot read the header of .*README.md"):
        push(tmp_path / "toys", "me/other")


def test_pulled_model_is_pushed_with_new_address(stub: Hub, model: Path, tmp_path: Path) -> None:
    push(model, "me/toys")
    pull("me/toys", tmp_path / "pulled")
    card = tmp_path / "pulled" / "README.md"
    card.write_text(
        card.read_text() + "\nA copy of hf://me/toys. Compare `--weights hf://me/toys-large`.\n"
    )
    push(tmp_path / "pulled", "me/toys-2")
    text = stub.repositories["me/toys-2"].commits[-1]["README.md"].decode()
    assert 'from_checkpoint("hf://me/toys-2")' in text
    assert "--weights hf://me/toys-2 --input" in text
    assert "hf://me/toys" not in text.replace("hf://me/toys-2", "").split("A copy of")[0]
    assert text.endswith("A copy of hf://me/toys. Compare `--weights hf://me/toys-large`.\n")


def test_pull_ignores_other_files_in_cache(stub: Hub, model: Path, tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in model.iterdir() if path.name != "config.yaml"}
    files |= {"evil.py": b"raise SystemExit", "more/notes.txt": b"notes"}
    stub.repositories["me/toys"] = Repository(private=False, commits=[files])
    for name in ("evil.py", "more/notes.txt"):
        assert Path(hub.download(f"hf://me/toys/{name}")).is_file()
    pull("me/toys", tmp_path / "pulled")
    assert names_in(tmp_path / "pulled") == ["README.md", "model.safetensors"]


def test_pull_writes_no_file_outside_folder(stub: Hub, model: Path, tmp_path: Path) -> None:
    push(model, "hf://me/toys")
    absolute = "/" + str(tmp_path / "model.safetensors").lstrip("/")
    names = ("../../README.md", absolute, "a/../../config.yaml", "..", "")
    stub.repositories["me/toys"].commits[-1] |= dict.fromkeys(names, b"elsewhere")
    with contextlib.suppress(UserError):
        pull("me/toys", tmp_path / "in" / "toys")
    for path in filter(Path.is_file, tmp_path.rglob("*")):
        assert path.parent == tmp_path / "in" / "toys" or path.is_relative_to(tmp_path / "cache")
        assert path.read_bytes() != b"elsewhere"


def test_existing_model_on_hub_is_kept_without_overwrite(stub: Hub, model: Path) -> None:
    push(model, "me/toys")
    message = "me/toys already has model.safetensors, config.yaml, README.md: add --overwrite"
    with pytest.raises(UserError, match=message):
        push(model, "me/toys")
    assert len(stub.repositories["me/toys"].commits) == 2


def test_private_creates_private_repository(stub: Hub, model: Path) -> None:
    push(model, "me/toys", "--private")
    assert stub.repositories["me/toys"].private
    stub.repositories["me/public"] = Repository(private=False)
    with pytest.raises(
        UserError, match="me/public exists and is public, which --private does not change"
    ):
        push(model, "me/public", "--private")
    assert len(stub.repositories["me/public"].commits) == 1


def test_errors_of_hub_are_one_line_with_hint(
    stub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stub.repositories["me/empty"] = Repository(private=False)
    stub.repositories["me/gated"] = Repository(private=False, gated=True)
    reads = {
        "hf://me/nothing": "no such repository on http://127.*hf auth login",
        "hf://me/gated": "its owner asks for consent: give it at http.*/me/gated; .*hf auth login",
        "hf://me/empty": "it has no model.safetensors",
        "hf://me/empty@v9": "it has no such branch, tag or commit",
        "hf://me": "cannot use hf://me: ",
        "hf://datasets/me/toys": "is a dataset; give hf://USER/NAME",
    }
    for address, problem in reads.items():
        assert_user_error(problem, checkpoint.read, address)
    target = tmp_path / "pulled"
    assert_user_error("me/empty has no model.safetensors", pull, "me/empty", target)
    assert_user_error("don't have the rights.*hf auth login", push, model, "they/toys")
    assert_user_error("has a revision or a file", push, model, "hf://me/toys@v1")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert_user_error("not logged in to http.*hf auth login", push, model, "me/toys")
    assert not target.exists()


def test_unknown_license_raises_before_upload(stub: Hub, run_folder: Path) -> None:
    message = r'Invalid metadata in README.md.*"license" must be one of'
    with pytest.raises(UserError, match=message) as error:
        push(run_folder, "me/toys", license_id="free")
    assert "\n" not in str(error.value)
    assert not stub.large


@pytest.mark.parametrize("xet", [False, True])
def test_failed_upload_creates_no_commit(
    stub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch, xet: bool
) -> None:
    stub.is_full = True
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)  # the mock Hub has no Xet
    message = "cannot use hf://me/toys: the transfer to or from http.* failed"
    assert_user_error(message, push, model, "me/toys")
    assert len(stub.repositories["me/toys"].commits) == 1
    stub.is_full = False
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    push(model, "me/toys")  # the repository exists now
    assert len(stub.repositories["me/toys"].commits) == 2


def test_unreachable_hub_raises(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_hub(monkeypatch, tmp_path, "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda _: None)  # between two attempts
    message = "127.0.0.1:9 cannot be reached, and it was not"
    assert_user_error(message, checkpoint.read, "hf://me/toys")
    message = "the transfer to or from http://127.0.0.1:9 failed"
    assert_user_error(message, push, model, "me/toys")


def assert_user_error(message: str, function: Callable, *arguments: object) -> None:
    """Assert that a call raises a UserError of one line."""
    with pytest.raises(UserError, match=message) as error:
        function(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "attack", ["os.system", "subprocess.run", "builtins.eval", "torch.hub.load"]
)
def test_pulled_model_cannot_run_code(stub: Hub, model: Path, tmp_path: Path, attack: str) -> None:
    file = checkpoint.read(str(model))
    config = (file.config or "").replace("detectron2.modeling.GeneralizedRCNN", attack)
    assert attack in config
    evil = tmp_path / "model.safetensors"
    checkpoint.write(str(evil), file.weights, classes=file.classes, inference_config=config)
    files = {
        "model.safetensors": evil.read_bytes(),
        "config.yaml": config.encode(),
        "evil.py": b"raise SystemExit",
    }
    stub.repositories["me/evil"] = Repository(private=False, commits=[files])
    load, target = gpvit.Predictor.from_checkpoint, tmp_path / "pulled"
    assert_user_error(f"would call {attack}", load, "hf://me/evil", "cpu")
    assert_user_error(f"would call {attack}", pull, "me/evil", target)
    assert not target.exists()
    assert not any("evil.py" in request for request in stub.requests)


def test_classes_and_config_of_wrong_type_raise(model: Path, tmp_path: Path) -> None:
    weights, path = checkpoint.read(str(model)).weights, str(tmp_path / "model.safetensors")
    for metadata in ({"classes": "cat"}, {"classes": [1]}, {"inference_config": {"model": 1}}):
        checkpoint.write(path, weights, **metadata)
        with pytest.raises(
            UserError, match="'classes' must be a list of names and 'inference_config' a string"
        ):
            checkpoint.read(path)


@pytest.mark.parametrize(
    ("target", "address"),
    [
        ("me/toys", "hf://me/toys"),
        ("hf://a/b", "hf://a/b"),
        ("./me/toys", ""),
        ("/me/toys", ""),
        ("toys", ""),
        ("a/b/c", ""),
    ],
)
def test_path_and_repository_are_distinguished(target: str, address: str) -> None:
    assert share.address_of(target) == address


def test_ambiguous_output_raises(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "output").mkdir()
    with pytest.raises(UserError, match="give ./output/toys or hf://output/toys"):
        share.address_of("output/toys")

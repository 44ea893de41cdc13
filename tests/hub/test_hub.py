"""Detectors are handed on whole, through a folder or a Hub, and nothing else is. The Hub is :mod:`stub_hub`."""

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
from gpvit import checkpoint, hub
from gpvit.cli import share
from gpvit.cli.train import argument_parser
from gpvit.hub import model_card
from gpvit.utils.errors import UserError
from huggingface_hub import ModelCard, constants
from safetensors import safe_open
from stub_hub import TOKEN, Hub, Repository

Share = Callable[..., None]


@pytest.fixture(scope="module")
def training(synthetic_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training, short, with averaged weights."""
    folder = tmp_path_factory.mktemp("training")
    command = [
        "--config-file",
        str(REPOSITORY / "configs" / "quickstart.py"),
        "--data",
        str(synthetic_data),
        *TINY,
    ]
    command += [
        "train.device=cpu",
        f"train.output_dir={folder}",
        "train.max_iter=2",
        "train.ema_decay=0.5",
    ]
    train_net.main(argument_parser().parse_intermixed_args(command))
    return folder


@pytest.fixture(scope="module")
def model(training: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That detector as it is handed on; nothing may write to it."""
    folder = tmp_path_factory.mktemp("models") / "toys"
    with hub.new_folder(folder, overwrite=False) as partial:
        hub.write(str(training), partial, licence="apache-2.0", address=hub.local_address(folder))
    return folder


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """An empty Hub, with somebody logged in to it."""
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    use_hub(monkeypatch, tmp_path, server.url)
    yield server
    server.shutdown()
    server.server_close()


def use_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str) -> None:
    """What the environment variables do that huggingface_hub reads when it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Share:
    """`gpvit share` with arguments."""

    def run(*arguments: object) -> None:
        share.main(list(map(str, arguments)))

    return run


def detections(weights: Path | str, picture: Path) -> dict[str, torch.Tensor]:
    found = gpvit.Predictor.from_checkpoint(weights, "cpu")(picture)
    return {"boxes": found.pred_boxes.tensor, "scores": found.scores, "masks": found.pred_masks}


def assert_same_detections(first: Path | str, second: Path | str, data: Path) -> None:
    picture = next((data / "images").glob("val_*.png"))
    ours, theirs = detections(first, picture), detections(second, picture)
    assert len(ours["scores"])
    for name, values in ours.items():
        assert torch.equal(values, theirs[name]), name


# --- The folder ---


def test_a_folder_is_all_it_takes_to_use_a_detector(
    run: Share, training: Path, synthetic_data: Path, tmp_path: Path
) -> None:
    run("push", "--weights", training, "--output", tmp_path / "toys", "--license", "mit")
    assert sorted(path.name for path in (tmp_path / "toys").iterdir()) == [
        "README.md",
        "config.yaml",
        "model.safetensors",
    ]
    assert_same_detections(tmp_path / "toys", training, synthetic_data)


def test_the_weights_are_the_averaged_ones_with_facts_and_without_a_path(
    training: Path, model: Path
) -> None:
    content = torch.load(training / "model_final.pth", weights_only=True)
    file = checkpoint.read(str(model))
    assert file.weights.keys() == content["ema"].keys()
    assert all(torch.equal(file.weights[key], content["ema"][key]) for key in file.weights)
    assert any(not torch.equal(content["model"][key], content["ema"][key]) for key in file.weights)
    assert file.classes == content["classes"] and file.config == (model / "config.yaml").read_text()
    assert file.about == {
        "licence": "apache-2.0", "versions": content["versions"], "iterations": 2, "source": "model_final.pth"
    }  # fmt: skip
    with safe_open(model / "model.safetensors", "pt") as weights:
        texts = [
            str(weights.metadata()),
            *((model / name).read_text() for name in ("README.md", "config.yaml")),
        ]
    for text in texts:
        assert str(training.parent.parent) not in text and str(Path.home()) + "/" not in text


def test_the_card_says_what_the_training_measured_and_where(training: Path, tmp_path: Path) -> None:
    for name in ("model_final.pth", "config.yaml"):
        shutil.copy(training / name, tmp_path)
    metrics = {
        "bbox/AP": 1.0,
        "ema_bbox/AP": 12.34,
        "ema_segm/AP": 23.44,
        "ema_segm/APl": 34.5,
        "ema_bbox/AP-disc": 45.6,
    }
    (tmp_path / "metrics.json").write_text(
        json.dumps({"iteration": 1, "total_loss": 1.0} | metrics)
    )
    (tmp_path / "evaluation.json").write_text('{"images": 7, "weights": null}')
    hub.write(str(tmp_path), tmp_path, licence="apache-2.0", address="hf://me/toys")
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "gpvit")
    assert (
        card.data.pipeline_tag == "image-segmentation" and "instance-segmentation" in card.data.tags
    )
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert values == {"AP of boxes (COCO)": 12.3, "AP of masks (COCO)": 23.4}
    assert {result.dataset_name for result in card.data.eval_results} == {"data_val"}
    assert "Trained for 2 iterations on data\\_train." in card.text
    assert "measured it on 7 images of data\\_val" in card.text
    assert "| boxes | 12.3 |  |  |  |  |  |\n| masks | 23.4 |  |  |  |  | 34.5 |" in card.text
    assert "| disc | 45.6 |" in card.text
    assert (
        f"Trained with gpvit {gpvit.__version__}, torch {torch.__version__}, detectron2 "
        in card.text
    )
    assert (
        'from_checkpoint("hf://me/toys")' in card.text
        and "scaled to 64 pixels, the longer to 320" in card.text
    )


def test_a_card_has_the_metrics_of_its_own_checkpoint_only(tmp_path: Path) -> None:
    lines = [
        {"iteration": 3, "bbox/AP": 10.0, "bbox/AP-cat": 1.0},
        {"iteration": 7, "bbox/AP": 20.0, "total_loss": 1.0},
        {"iteration": 8, "bbox/AP": 30.0},
    ]
    (tmp_path / "metrics.json").write_text(
        "\n".join(map(json.dumps, lines)) + '\n{"iteration": 4, "bbox/AP": 5'
    )
    file = checkpoint.File(
        str(tmp_path / "model_0000004.pth"), {}, ["cat"], about={"iterations": 4}
    )
    assert model_card.training_of(file).metrics == {"bbox/AP": 10.0, "bbox/AP-cat": 1.0}


@pytest.mark.parametrize(("done", "ap"), [(1, 11.0), (2, 12.0), (3, 13.0)])
def test_of_evaluations_after_every_iteration_each_checkpoint_has_its_own(
    tmp_path: Path, done: int, ap: float
) -> None:
    """As they are noted: the last one, of three, under 3, those before under 0 and 1."""
    lines = [
        {"iteration": noted, "bbox/AP": value} for noted, value in ((0, 11.0), (1, 12.0), (3, 13.0))
    ]
    lines = [*lines[:2], {"iteration": 2, "total_loss": 1.0}, lines[2], [4]]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "config.yaml").write_text("train: {max_iter: 3}\n")
    file = checkpoint.File(str(tmp_path / "model.pth"), {}, [], about={"iterations": done})
    assert model_card.training_of(file).metrics == {"bbox/AP": ap}


@pytest.mark.parametrize("content", ['{"weights": null}', "[]", "null", "3", "{"])
def test_an_evaluation_json_of_another_kind_says_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "evaluation.json").write_text(content)
    file = checkpoint.File(str(tmp_path / "model.pth"), {}, [], about={"iterations": 2})
    assert model_card.training_of(file).images is None


def test_the_command_of_a_card_takes_any_folder(run: Share, model: Path, tmp_path: Path) -> None:
    target = tmp_path / "o'my $(toys)"
    run("push", "--weights", model, "--output", target, "--license", "apache-2.0")
    assert address_in_command(target / "README.md") == "path/to/o'my $(toys)"
    run("push", "--weights", target, "--output", tmp_path / "toys", "--license", "apache-2.0")
    assert (tmp_path / "toys" / "README.md").read_text() == (model / "README.md").read_text()
    file = checkpoint.read(str(model))
    card = model_card.model_card(
        file, hub.usable_config(file), "mit", "path/to/my toys", model_card.Training()
    )
    card.save(tmp_path / "README.md")
    assert address_in_command(tmp_path / "README.md") == "path/to/my toys"


def address_in_command(card: Path) -> str:
    [command] = [line for line in card.read_text().splitlines() if line.startswith("gpvit predict")]
    return shlex.split(command)[3]


def test_nothing_is_made_up_where_nothing_is_known(training: Path, tmp_path: Path) -> None:
    checkpoint_file = tmp_path / "model.pth"
    checkpoint_file.write_bytes((training / "model_final.pth").read_bytes())
    hub.write(str(checkpoint_file), tmp_path, licence="mit", address="hf://me/toys")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.eval_results is None and "AP" not in card.text
    assert "Trained for 2 iterations." in card.text


def test_a_folder_is_replaced_only_when_told_and_only_if_it_is_a_model(
    run: Share, training: Path, model: Path, tmp_path: Path
) -> None:
    target = tmp_path / "toys"
    push = ("push", "--weights", model, "--output", target, "--license", "apache-2.0")
    run(*push)
    (target / "README.md").write_text("mine")
    with pytest.raises(UserError, match="toys exists: add --overwrite"):
        run(*push)
    assert (target / "README.md").read_text() == "mine"
    run(*push, "--overwrite")
    assert (target / "README.md").read_text() == (model / "README.md").read_text()
    (target / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes.txt: give a folder for the model alone"):
        run(*push, "--overwrite")
    assert [path.name for path in tmp_path.iterdir()] == ["toys"]  # nothing half done is left


def test_what_others_could_not_use_is_not_handed_on(
    run: Share, training: Path, model: Path, tmp_path: Path
) -> None:
    file, target = checkpoint.read(str(training)), tmp_path / "toys"
    checkpoint.write(str(tmp_path / "bare.pth"), file.weights, classes=file.classes)
    checkpoint.write(str(tmp_path / "unnamed.pth"), file.weights, inference_config=file.config)
    weights = {key: tensor for key, tensor in file.weights.items() if "mask_head" not in key}
    checkpoint.write(
        str(tmp_path / "part.pth"), weights, inference_config=file.config, classes=file.classes
    )
    problems = {
        "bare": "carries no config.*--config-file",
        "unnamed": "named classes",
        "part": "does not fit the model",
    }
    for name, problem in problems.items():
        with pytest.raises(UserError, match=problem):
            run(
                "push",
                "--weights",
                tmp_path / f"{name}.pth",
                "--output",
                target,
                "--license",
                "mit",
            )
        assert not target.exists()
    config = ("--config-file", training / "config.yaml")
    run("push", "--weights", tmp_path / "bare.pth", "--output", target, "--license", "mit", *config)
    assert checkpoint.read(str(target)).config == checkpoint.read(str(model)).config


def test_a_licence_is_neither_guessed_nor_changed(
    run: Share, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        run("push", "--weights", model, "--output", tmp_path / "toys")
    assert "--license" in capsys.readouterr().err
    shutil.copy(model / "model.safetensors", tmp_path)
    for weights in (model, tmp_path / "model.safetensors"):  # with its card, and without
        with pytest.raises(
            UserError, match="says that its licence is apache-2.0, and --license says mit"
        ):
            run("push", "--weights", weights, "--output", tmp_path / "toys", "--license", "mit")


# --- The Hub ---


def test_what_is_pushed_is_pulled_byte_for_byte_and_finds_the_same(
    run: Share,
    stub: Hub,
    training: Path,
    synthetic_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    run("push", "--weights", training, "--output", "me/toys", "--license", "apache-2.0")
    assert (
        f'{stub.url}/me/toys: load it with gpvit.Predictor.from_checkpoint("hf://me/toys")'
        in capsys.readouterr().out
    )
    pushed = stub.repositories["me/toys"].commits[-1]
    assert len(stub.large) == 1  # the weights went the way of large files
    run("pull", "--weights", "me/toys", "--output", tmp_path / "pulled")
    assert "3 classes (disc" in capsys.readouterr().out
    pulled = {path.name: path.read_bytes() for path in (tmp_path / "pulled").iterdir()}
    assert pulled == {name: content for name, content in pushed.items() if name != ".gitattributes"}
    assert b"hf://me/toys" in pulled["README.md"]
    assert_same_detections(tmp_path / "pulled", training, synthetic_data)
    assert_same_detections("hf://me/toys", training, synthetic_data)


def test_a_revision_is_what_is_read(run: Share, stub: Hub, training: Path, model: Path) -> None:
    run("push", "--weights", training, "--output", "me/toys", "--license", "mit")
    run(
        "push",
        "--weights",
        model,
        "--output",
        "hf://me/toys",
        "--license",
        "apache-2.0",
        "--overwrite",
    )
    assert checkpoint.read("hf://me/toys").about["licence"] == "apache-2.0"
    assert checkpoint.read("hf://me/toys@v1").about["licence"] == "mit"
    stub.repositories.clear()
    assert checkpoint.read(f"hf://me/toys@{1:040x}").about["licence"] == "mit"  # kept here


def test_a_card_that_was_edited_is_pushed_as_it_is(
    run: Share, stub: Hub, model: Path, tmp_path: Path
) -> None:
    run("push", "--weights", model, "--output", tmp_path / "toys", "--license", "apache-2.0")
    card = tmp_path / "toys" / "README.md"
    card.write_text(card.read_text() + "\nDo not use it for medicine.\n")
    run("push", "--weights", tmp_path / "toys", "--output", "me/toys", "--license", "apache-2.0")
    pushed = stub.repositories["me/toys"].commits[-1]
    assert pushed["README.md"].decode() == card.read_text().replace("path/to/toys", "hf://me/toys")
    assert pushed["model.safetensors"] == (model / "model.safetensors").read_bytes()
    edited = card.read_text()
    card.write_text(edited.replace("license: apache-2.0", "license: mit"))
    with pytest.raises(UserError, match="README.md says that its licence is mit"):
        run(
            "push",
            "--weights",
            tmp_path / "toys",
            "--output",
            "me/other",
            "--license",
            "apache-2.0",
        )
    card.write_text(edited.replace("license: apache-2.0", "license: {"))
    with pytest.raises(UserError, match="cannot read the header of .*README.md"):
        run(
            "push",
            "--weights",
            tmp_path / "toys",
            "--output",
            "me/other",
            "--license",
            "apache-2.0",
        )


def test_a_pulled_model_is_pushed_with_its_new_address(
    run: Share, stub: Hub, model: Path, tmp_path: Path
) -> None:
    run("push", "--weights", model, "--output", "me/toys", "--license", "apache-2.0")
    run("pull", "--weights", "me/toys", "--output", tmp_path / "pulled")
    card = tmp_path / "pulled" / "README.md"
    card.write_text(
        card.read_text() + "\nA copy of hf://me/toys. Compare `--weights hf://me/toys-large`.\n"
    )
    run(
        "push", "--weights", tmp_path / "pulled", "--output", "me/toys-2", "--license", "apache-2.0"
    )
    text = stub.repositories["me/toys-2"].commits[-1]["README.md"].decode()
    assert (
        'from_checkpoint("hf://me/toys-2")' in text and "--weights hf://me/toys-2 --input" in text
    )
    assert "hf://me/toys" not in text.replace("hf://me/toys-2", "").split("A copy of")[0]
    assert text.endswith("A copy of hf://me/toys. Compare `--weights hf://me/toys-large`.\n")


def test_only_the_files_of_a_model_are_pulled_whatever_the_cache_has(
    run: Share, stub: Hub, model: Path, tmp_path: Path
) -> None:
    files = {path.name: path.read_bytes() for path in model.iterdir() if path.name != "config.yaml"}
    files |= {"evil.py": b"raise SystemExit", "more/notes.txt": b"notes"}
    stub.repositories["me/toys"] = Repository(private=False, commits=[files])
    for name in ("evil.py", "more/notes.txt"):
        assert Path(hub.download(f"hf://me/toys/{name}")).is_file()
    run("pull", "--weights", "me/toys", "--output", tmp_path / "pulled")
    assert sorted(path.name for path in (tmp_path / "pulled").iterdir()) == [
        "README.md",
        "model.safetensors",
    ]


def test_files_of_a_hub_with_names_out_of_the_folder_are_not_written(
    run: Share, stub: Hub, model: Path, tmp_path: Path
) -> None:
    run("push", "--weights", model, "--output", "hf://me/toys", "--license", "apache-2.0")
    names = (
        "../../README.md",
        "/" + str(tmp_path / "model.safetensors").lstrip("/"),
        "a/../../config.yaml",
        "..",
        "",
    )
    stub.repositories["me/toys"].commits[-1] |= dict.fromkeys(names, b"elsewhere")
    with contextlib.suppress(UserError):
        run("pull", "--weights", "me/toys", "--output", tmp_path / "in" / "toys")
    files = [
        path
        for path in tmp_path.rglob("*")
        if path.is_file() and not path.is_relative_to(tmp_path / "cache")
    ]
    assert {path.parent for path in files} <= {tmp_path / "in" / "toys"}
    assert not any(
        path.read_bytes() == b"elsewhere" for path in tmp_path.rglob("*") if path.is_file()
    )


def test_a_model_that_is_there_is_replaced_only_when_told(
    run: Share, stub: Hub, model: Path
) -> None:
    push = ("push", "--weights", model, "--output", "me/toys", "--license", "apache-2.0")
    run(*push)
    with pytest.raises(
        UserError,
        match="me/toys has model.safetensors, config.yaml, README.md already: add --overwrite",
    ):
        run(*push)
    assert len(stub.repositories["me/toys"].commits) == 2


def test_private_is_private(run: Share, stub: Hub, model: Path) -> None:
    push = ("push", "--weights", model, "--license", "apache-2.0", "--private")
    run(*push, "--output", "me/toys")
    assert stub.repositories["me/toys"].private
    stub.repositories["me/public"] = Repository(private=False)
    with pytest.raises(
        UserError, match="me/public exists and is public, which --private does not change"
    ):
        run(*push, "--output", "me/public")
    assert len(stub.repositories["me/public"].commits) == 1


def test_errors_of_the_hub_are_one_line_that_says_what_to_do(
    run: Share, stub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stub.repositories["me/empty"] = Repository(private=False)
    stub.repositories["me/gated"] = Repository(private=False, gated=True)
    reads = {
        "hf://me/nothing": "no such repository on http://127.*hf auth login",
        "hf://me/gated": "its owner asks for consent: give it at http.*/me/gated; `hf auth login`",
        "hf://me/empty": "it has no model.safetensors",
        "hf://me/empty@v9": "it has no such branch, tag or commit",
        "hf://me": "cannot use hf://me: ",
        "hf://datasets/me/toys": "is a dataset; give hf://USER/NAME",
    }
    for address, problem in reads.items():
        assert_one_line(problem, lambda address=address: checkpoint.read(address))
    assert_one_line(
        "me/empty has no model.safetensors",
        lambda: run("pull", "--weights", "me/empty", "--output", tmp_path / "pulled"),
    )
    push = ("push", "--weights", model, "--license", "apache-2.0", "--output")
    assert_one_line("don't have the rights.*hf auth login", lambda: run(*push, "they/toys"))
    assert_one_line("names a revision or file", lambda: run(*push, "hf://me/toys@v1"))
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert_one_line("nobody is logged in to http.*hf auth login", lambda: run(*push, "me/toys"))
    assert not (tmp_path / "pulled").exists()


def test_a_licence_that_the_hub_does_not_know_is_said_before_anything_is_uploaded(
    run: Share, stub: Hub, training: Path
) -> None:
    push = ("push", "--weights", training, "--license", "free", "--output", "me/toys")
    assert_one_line(r'Invalid metadata in README.md.*"license" must be one of', lambda: run(*push))
    assert not stub.large


@pytest.mark.parametrize("xet", [False, True])
def test_a_transfer_that_fails_leaves_no_half_of_a_model(
    run: Share, stub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch, xet: bool
) -> None:
    stub.is_full = True
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)  # which the stub does not speak
    push = ("push", "--weights", model, "--license", "apache-2.0", "--output", "me/toys")
    assert_one_line(
        "cannot use hf://me/toys: the transfer to or from http.* failed", lambda: run(*push)
    )
    assert len(stub.repositories["me/toys"].commits) == 1
    stub.is_full = False
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    run(*push)  # into the repository that is there now
    assert len(stub.repositories["me/toys"].commits) == 2


def test_without_a_network_it_is_said(
    run: Share, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_hub(monkeypatch, tmp_path, "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda _: None)  # between two attempts
    assert_one_line(
        "127.0.0.1:9 cannot be reached, and it was not", lambda: checkpoint.read("hf://me/toys")
    )
    push = ("push", "--weights", model, "--license", "apache-2.0", "--output", "me/toys")
    assert_one_line("the transfer to or from http://127.0.0.1:9 failed", lambda: run(*push))


def assert_one_line(problem: str, action: Callable[[], object]) -> None:
    with pytest.raises(UserError, match=problem) as error:
        action()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "attack", ["os.system", "subprocess.run", "builtins.eval", "torch.hub.load"]
)
def test_a_pulled_model_cannot_run_code(
    run: Share, stub: Hub, model: Path, tmp_path: Path, attack: str
) -> None:
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
    for action in (
        lambda: gpvit.Predictor.from_checkpoint("hf://me/evil", "cpu"),
        lambda: run("pull", "--weights", "me/evil", "--output", tmp_path / "pulled"),
    ):
        assert_one_line(f"would call {attack}", action)
    assert not (tmp_path / "pulled").exists()
    assert not any("evil.py" in request for request in stub.requests)


def test_classes_and_config_of_the_wrong_kind_are_refused(model: Path, tmp_path: Path) -> None:
    weights, path = checkpoint.read(str(model)).weights, str(tmp_path / "model.safetensors")
    for metadata in ({"classes": "cat"}, {"classes": [1]}, {"inference_config": {"model": 1}}):
        checkpoint.write(path, weights, **metadata)
        with pytest.raises(
            UserError, match="'classes' are no list of names, or its 'inference_config' is no text"
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
def test_a_path_and_a_repository_are_told_apart(target: str, address: str) -> None:
    assert share.address_of(target) == address


def test_what_could_be_a_folder_or_a_repository_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "output").mkdir()
    with pytest.raises(UserError, match="say ./output/toys or hf://output/toys"):
        share.address_of("output/toys")

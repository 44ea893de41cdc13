"""tools/ablate.py: its variants differ as they say, and complete runs are kept."""

import functools
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ablate
import pytest
import torch
from ablation import costs, plan, runner, summary
from conftest import REPOSITORY
from detectron2.config import instantiate
from detectron2.structures import ImageList
from gpvit.config import flattened, load_config
from gpvit.modeling.backbone.gpvit import GroupPropagationBlock, TokenMixer
from gpvit.utils.errors import UserError
from gpvit.utils.files import lock_folder
from torch import nn

LARGE_IMAGES = "stride 16, images twice as large"
VARIANTS = REPOSITORY / "tools" / "ablation" / "variants.yaml"

# Stands in for train_net.py: writes an evaluation whose mask AP is best at a learning rate of 0.2.
STUB = """
import json, os, pathlib, signal, sys, time

assert "--resume" in sys.argv
options = dict(word.split("=", 1) for word in sys.argv if "=" in word)
folder = pathlib.Path(options["train.output_dir"].strip('"'))
rate, seed = float(options["optimizer.lr"]), int(options["train.seed"])
if os.path.exists("HANG"):
    save = lambda *_: (folder / "saved").touch() or sys.exit(143)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if os.path.exists("DEAF") else save)
    (folder / "started").touch()
    time.sleep(60)
if os.path.exists("FAIL") and pathlib.Path("FAIL").read_text() in folder.name:
    print("a line")
    sys.exit("error: the image is broken")
ap = 50 - 100 * abs(rate - 0.2) + seed
metrics = {"AP": ap, "APs": ap - 10, "APm": ap, "APl": "nan", "AP-disc": 1.0}
(folder / "evaluation.json").write_text(json.dumps({"results": {"segm": metrics}}))
(folder / "model_final.pth").touch()
with open("STARTED", "a") as file:
    file.write(f"{folder.name}\\n")
"""
TABLE = {
    "title": "Detection",
    "data": "synthetic",
    "best_by": "segm/AP",
    "metrics": ["segm/AP", "segm/APs"],
    "variants": [
        {
            "name": "reference",
            "config": "configs/ablation/mask_rcnn.py",
            "learning_rates": [0.1, 0.2],
        },
        {
            "name": "off",
            "group": "Group propagation",
            "overrides": ["model.backbone.net.group_tokens=[0,0,0,0]"],
        },
    ],
}
CONTENT = {"seeds": [0, 1], "synthetic": {"train": 2, "val": 2}, "tables": [TABLE]}


@pytest.fixture
def ablation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Runs the command with a stub of train_net.py; returns the names of the runs it trained."""
    stub = tmp_path / "stub.py"
    stub.write_text(STUB)
    monkeypatch.setattr(runner, "TRAIN", stub)
    monkeypatch.setattr(ablate, "in_a_process", fake_costs)
    monkeypatch.chdir(tmp_path)

    def run(content: dict[str, Any] = CONTENT, *options: str, output: str = "out") -> list[str]:
        (tmp_path / "variants.yaml").write_text(json.dumps(content))
        arguments = ["--variants", "variants.yaml", "--output", str(tmp_path / output), *options]
        monkeypatch.setattr(sys, "argv", ["ablate.py", *arguments])
        started = tmp_path / "STARTED"
        started.unlink(missing_ok=True)
        ablate.main()
        return started.read_text().split() if started.exists() else []

    return run


def test_hangup_that_nohup_ignores_is_ignored(
    ablation: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    seen = []
    stop_signals_to = runner.stop_signals_to
    monkeypatch.setattr(
        runner, "stop_signals_to", lambda *args: seen.append(args[1:]) or stop_signals_to(*args)
    )
    try:
        assert len(ablation()) == 5
    finally:
        signal.signal(signal.SIGHUP, previous)
    assert seen == [(), ()]


def fake_costs(function: object, runs: list[plan.Run], **_: object) -> dict[str, dict[str, Any]]:
    assert function is costs.measure
    Path("MEASURED").touch()
    return {run.variant: {"parameters": 1e6, "gflops": 2.0, "seconds": 0.5} for run in runs}


def test_best_learning_rate_of_the_reference_is_used_for_all_variants_and_seeds(
    ablation: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    trained = [name.rpartition("-")[0] for name in ablation()]
    assert sorted(trained) == [
        "detection-off-0.2-seed0",
        "detection-off-0.2-seed1",
        "detection-reference-0.1-seed0",
        "detection-reference-0.2-seed0",
        "detection-reference-0.2-seed1",
    ]
    tables = (tmp_path / "out" / "ablation.md").read_text()
    assert "| reference | 1.00 | 2.00 | 0.50 | 0.2 | 50.5 ± 0.7 | 40.5 ± 0.7 |" in tables
    assert "<svg" in (tmp_path / "out" / "ablation.svg").read_text()
    assert not list(tmp_path.glob("out/runs/*/*.pth"))
    output = capsys.readouterr().out
    assert "] Detection, reference, learning rate 0.2, seed 0: " in output
    assert "[2/2] Detection, reference, learning rate 0." in output
    assert "Detection, reference: the best learning rate, 0.2, is the largest one tried" in output


def test_complete_runs_are_kept_and_others_are_trained(
    ablation: Callable[..., list[str]], tmp_path: Path
) -> None:
    ablation()
    results = tmp_path / "out" / "ablation.json"
    content = json.loads(results.read_text())
    (tmp_path / "MEASURED").unlink()
    assert ablation() == []
    assert json.loads(results.read_text()) == content
    assert not (tmp_path / "MEASURED").exists()
    content["runs"] = [run for run in content["runs"] if run["variant"] != "off" or run["seed"]]
    results.write_text(json.dumps(content))
    assert [name.rpartition("-")[0] for name in ablation()] == ["detection-off-0.2-seed0"]


@pytest.mark.parametrize(
    "override",
    [
        "model.roi_heads.batch_size_per_image=8",
        "dataloader.short_side=100",
        "train.init_checkpoint=weights.pth",
        "train.amp.enabled=True",
        "dataloader.test.batch_size=3",
    ],
)
def test_runs_with_other_settings_are_trained_and_measured_again(
    ablation: Callable[..., list[str]], tmp_path: Path, override: str
) -> None:
    before = ablation()
    (tmp_path / "MEASURED").unlink()
    table = TABLE | {"overrides": [override]}
    assert len(ablation(CONTENT | {"tables": [table]})) == len(before)
    assert (tmp_path / "MEASURED").exists()


def test_settings_without_influence_on_the_result_leave_runs_complete(
    ablation: Callable[..., list[str]],
) -> None:
    ablation()
    overrides = ["dataloader.train.num_workers=0", "train.log_period=7"]
    assert ablation(CONTENT | {"tables": [TABLE | {"overrides": overrides}]}) == []


@pytest.mark.parametrize(
    ("config", "changed", "old", "new"),
    [
        ("unmixed.py", "unmixed.py", "nn.Identity()", "nn.ReLU()"),
        ("stride16_large.py", "stride16.py", "return 32", "return 64"),  # imports the changed file
    ],
)
def test_code_in_config_files_counts_as_a_setting(
    tmp_path: Path,
    synthetic_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    config: str,
    changed: str,
    old: str,
    new: str,
) -> None:
    shutil.copytree(REPOSITORY / "configs", tmp_path / "configs")
    monkeypatch.setattr(plan, "REPOSITORY", tmp_path)
    folder = tmp_path / "configs" / "ablation"
    variant = {"name": "a", "config": str(folder / config)}
    table = plan.Table(**TABLE | {"variants": [variant]})

    def digest() -> str:
        return plan.build_run(table, table.variants[0], None, 0, synthetic_data).digest()

    first = digest()
    file = folder / changed
    file.write_text("# A comment.\n" + file.read_text())
    assert digest() == first
    file.write_text(file.read_text().replace(old, new))
    assert digest() != first


def test_results_of_other_settings_are_kept_and_not_shown(
    ablation: Callable[..., list[str]], tmp_path: Path
) -> None:
    ablation()
    (tmp_path / "FAIL").touch()
    shorter = CONTENT | {"tables": [TABLE | {"overrides": ["train.max_iter=5"]}]}
    with pytest.raises(UserError):
        ablation(shorter)
    assert "reference" not in (tmp_path / "out" / "ablation.md").read_text()
    assert ablation() == []
    assert "| reference | 1.00 |" in (tmp_path / "out" / "ablation.md").read_text()


def test_name_of_the_folder_of_the_data_does_not_count(
    synthetic_data: Path, tmp_path: Path
) -> None:
    shutil.copytree(synthetic_data, tmp_path / "another")
    table = plan.Table(**TABLE)
    first, second = [
        plan.build_run(table, table.variants[0], None, 0, data).digest()
        for data in (synthetic_data, tmp_path / "another")
    ]
    assert first == second


def test_runs_on_other_data_are_trained_again(
    ablation: Callable[..., list[str]], tmp_path: Path
) -> None:
    before = ablation()
    more = CONTENT | {"synthetic": {"train": 3, "val": 2}}
    with pytest.raises(UserError, match="does not have 3 training and 2 validation images: remove"):
        ablation(more)
    (tmp_path / "out" / "data").rename(tmp_path / "old")
    assert len(ablation(more)) == len(before)


def test_failed_run_is_reported_with_its_last_line_and_the_others_are_trained(
    ablation: Callable[..., list[str]], tmp_path: Path
) -> None:
    (tmp_path / "FAIL").write_text("off-0.2-seed0")
    message = "^Detection, off, learning rate 0.2, seed 0 ended with exit code 1: error: the image "
    with pytest.raises(UserError, match=message):
        ablation()
    assert len((tmp_path / "STARTED").read_text().split()) == 4
    tables = (tmp_path / "out" / "ablation.md").read_text()
    assert "| off (1 of 2 seeds) | 1.00 | 2.00 | 0.50 | 0.2 | 51.0 |" in tables
    (tmp_path / "FAIL").unlink()
    assert len(ablation()) == 1


def test_variants_without_all_learning_rates_are_left_out(
    ablation: Callable[..., list[str]], tmp_path: Path
) -> None:
    (tmp_path / "FAIL").write_text("reference-0.1")
    own_rates = TABLE["variants"][1] | {"name": "own", "learning_rates": [0.2]}
    table = TABLE | {"variants": [*TABLE["variants"], own_rates]}
    with pytest.raises(UserError, match="reference, learning rate 0.1, seed 0 ended"):
        ablation(CONTENT | {"tables": [table]})
    trained = [name.rpartition("-")[0] for name in (tmp_path / "STARTED").read_text().split()]
    assert sorted(trained) == [
        "detection-own-0.2-seed0",
        "detection-own-0.2-seed1",
        "detection-reference-0.2-seed0",
    ]
    tables = (tmp_path / "out" / "ablation.md").read_text()
    assert "| reference | 1.00 | 2.00 | 0.50 | — | — | — |" in tables
    assert "| off | — | — | — | — | — | — |" in tables
    assert "| own | 1.00 |" in tables


def test_costs_that_cannot_be_measured_are_reported(
    ablation: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(ablate, "in_a_process", fail)
    with pytest.raises(UserError, match="Detection: the costs cannot be measured: OutOfMemoryErr"):
        ablation()
    assert "| reference | — | — | — | 0.2 | 50.5" in (tmp_path / "out" / "ablation.md").read_text()


def test_config_that_cannot_be_loaded_is_reported_with_its_variant(
    ablation: Callable[..., list[str]],
) -> None:
    table = TABLE | {"overrides": ["model.backbone.net.no_such_key=1"]}
    with pytest.raises(UserError, match="^Detection, reference: .*no_such_key"):
        ablation(CONTENT | {"tables": [table]})


def test_interruption_after_the_last_run_counts(
    ablation: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    add = runner.Results.add

    def add_and_interrupt(results: runner.Results, run: plan.Run, **values: Any) -> None:
        add(results, run, **values)
        if len(results.runs) == 5:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)

    monkeypatch.setattr(runner.Results, "add", add_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        ablation()


def test_runs_end_when_their_progress_cannot_be_printed(
    ablation: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken_print(*values: object, **_: object) -> None:
        if "min left" in str(values):
            raise BrokenPipeError

    monkeypatch.setattr(runner, "print", broken_print, raising=False)
    with pytest.raises(BrokenPipeError):
        ablation(CONTENT, "--jobs", "1")
    assert len((tmp_path / "STARTED").read_text().split()) < 3


def test_names_of_variants_may_be_similar_long_and_have_any_characters(
    ablation: Callable[..., list[str]], tmp_path: Path
) -> None:
    names = ["a, b", "a b", "c" * 300, r"$\q$ | d"]
    variants = [TABLE["variants"][0] | {"name": name} for name in names]
    ablation(CONTENT | {"tables": [TABLE | {"variants": variants, "metrics": ["segm/AP"]}]})
    assert len(list(tmp_path.glob("out/runs/*/evaluation.json"))) == 4 * 3
    tables = (tmp_path / "out" / "ablation.md").read_text()
    assert {line.count("|") for line in tables.splitlines() if line[:1] == "|"} == {7}
    assert "<svg" in (tmp_path / "out" / "ablation.svg").read_text()


def test_sizes_are_in_the_order_of_the_heading(
    ablation: Callable[..., list[str]], tmp_path: Path
) -> None:
    ablation(CONTENT | {"tables": [TABLE | {"metrics": ["segm/APm", "segm/AP", "segm/APs"]}]})
    tables = (tmp_path / "out" / "ablation.md").read_text()
    assert "| mask AP, small / medium | mask AP |" in tables
    assert "| 40.5 / 50.5 | 50.5 ± 0.7 |" in tables


def test_number_of_failed_runs_is_reported(
    ablation: Callable[..., list[str]], tmp_path: Path
) -> None:
    (tmp_path / "FAIL").touch()
    with pytest.raises(UserError, match="^2 failures; the first one: Detection, reference, "):
        ablation()


def test_run_whose_config_changes_meanwhile_does_not_count(
    ablation: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = iter(["a", "b", "a", "changed", "changed"])
    monkeypatch.setattr(plan.Run, "digest", lambda run: next(digests))
    with pytest.raises(UserError, match="its config changed during the run"):
        ablation()
    content = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert [run["digest"] for run in content["runs"]] == ["a"]


def test_run_without_metrics_has_failed(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps({"results": {"segm": {"AP": "nan"}}}))
    with pytest.raises(UserError, match="evaluation.json has no metrics"):
        runner.read_metrics(path)


def test_output_folder_may_have_any_name(
    ablation: Callable[..., list[str]], tmp_path: Path
) -> None:
    assert len(ablation(output="a, {b} (c)=$d")) == 5
    assert len(list(tmp_path.glob("a, {b} (c)=$d/runs/*/evaluation.json"))) == 5


def test_output_folder_is_locked(ablation: Callable[..., list[str]], tmp_path: Path) -> None:
    with (
        lock_folder(tmp_path / "out"),
        pytest.raises(UserError, match="another run writes to .*: wait .*, or set another --out"),
    ):
        ablation()


# Runs the command in a process of its own, which receives the signals.
INTERRUPTED = """
import ablate, pathlib
from ablation import runner

runner.TRAIN = pathlib.Path("stub.py")
ablate.main()
"""


@pytest.mark.parametrize("numbers", [[signal.SIGINT], [signal.SIGTERM, signal.SIGHUP]])
def test_interrupted_runs_save_their_state(
    ablation: Callable[..., list[str]], tmp_path: Path, numbers: list[int]
) -> None:
    (tmp_path / "HANG").touch()
    printed = interrupt_when_started(tmp_path, numbers)
    assert "interrupted; run the same command again to resume" in printed
    assert len(list(tmp_path.glob("out/runs/*/saved"))) == 2, printed
    (tmp_path / "HANG").unlink()
    assert len(ablation()) == 5
    assert len(list(tmp_path.glob("out/runs/*"))) == 5  # resumed in the same folders


def test_signal_while_the_runs_are_stopped_does_not_stop_them_again(tmp_path: Path) -> None:
    class Process:
        def send_signal(self, number: int) -> None:
            sent.append(number)
            if len(sent) < 10:
                stopped.stop(signal.SIGHUP)

    sent: list[int] = []
    stopped = runner.Runner(tmp_path, runner.Results(tmp_path / "ablation.json"), jobs=2)
    stopped.processes = {Process(), Process()}
    stopped.stop(signal.SIGTERM)
    assert sent == [signal.SIGTERM] * 2
    stopped.stop(signal.SIGINT)
    assert sent[2:] == [signal.SIGKILL] * 2


@pytest.mark.usefixtures("ablation")
def test_second_interruption_ends_runs_that_do_not_react(tmp_path: Path) -> None:
    (tmp_path / "HANG").touch()
    (tmp_path / "DEAF").touch()
    start = time.monotonic()
    interrupt_when_started(tmp_path, [signal.SIGINT, signal.SIGINT], pause=0.2)
    assert time.monotonic() - start < 50  # the stub would take 60


def interrupt_when_started(folder: Path, numbers: list[int], pause: float = 0) -> str:
    """Send signals to the command when two runs have started; return what it printed."""
    (folder / "variants.yaml").write_text(json.dumps(CONTENT))
    command = [sys.executable, "-c", INTERRUPTED, "--variants", "variants.yaml", "--output", "out"]
    paths = [REPOSITORY / "tools", REPOSITORY / "projects" / "GPViT"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    with subprocess.Popen(
        [*command, "--jobs", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    ) as process:
        while len(list(folder.glob("out/runs/*/started"))) < 2 and process.poll() is None:
            time.sleep(0.05)
        for number in numbers:
            process.send_signal(number)
            time.sleep(pause)
        return process.communicate()[0]


def test_tables_without_data_are_left_out(
    ablation: Callable[..., list[str]], capsys: pytest.CaptureFixture
) -> None:
    other = TABLE | {"title": "Nuclei", "data": "nuclei"}
    assert len(ablation(CONTENT | {"tables": [TABLE, other]})) == 5
    assert "Nuclei: left out; give --data nuclei=DIR" in capsys.readouterr().out
    with pytest.raises(UserError, match="no table is left"):
        ablation(CONTENT | {"tables": [other]})


@pytest.mark.parametrize("folder", ["", "missing", "m" * 300])
def test_faults_of_the_option_data_are_named(
    ablation: Callable[..., list[str]], capsys: pytest.CaptureFixture, folder: str
) -> None:
    with pytest.raises(SystemExit):
        ablation(CONTENT, "--data", f"nuclei={folder}")
    assert "must be NAME=DIR with an existing DIR" in capsys.readouterr().err
    with pytest.raises(UserError, match="--data nuclie=.*: no table has data of this name"):
        ablation(CONTENT, "--data", "nuclie=.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": [0]}, r"has unknown keys \(seed\); known: seeds, synthetic, tables"),
        ({"tables": [{"title": "A"}]}, "a table lacks the key data"),
        ({"tables": ["A"]}, "tables must be a list of mappings"),
        ({"tables": [TABLE | {"metrics": ["segm/AB"]}]}, "Detection: segm/AB is not a metric"),
        ({"tables": [TABLE | {"best_by": "bbox/AP"}]}, "bbox/AP is not among the metrics"),
        (
            {"tables": [TABLE | {"variants": TABLE["variants"] * 2}]},
            "Detection: variants: reference appears twice",
        ),
        (
            {"tables": [TABLE | {"variants": [{"name": "a", "config": "configs/no.py"}]}]},
            "Detection, a: config configs/no.py does not exist",
        ),
        ({"tables": [TABLE | {"variants": [{"name": "a"}]}]}, r"config \(none\) does not exist"),
        ({"tables": [TABLE | {"variants": []}]}, "Detection: variants must be a list of mappings"),
        ({"tables": []}, "tables must be a list of mappings"),
        ({"seeds": []}, "seeds must be a list of whole numbers"),
        ({"synthetic": {"train": 0, "val": 1}}, "synthetic: train must be a whole number"),
        (
            {"tables": [TABLE | {"variants": [{"name": "a", "learning_rates": ["1e-3"]}]}]},
            "a: learning_rates must be a list of numbers above 0, such as 0.001 or 1.0e-3, got",
        ),
        (
            {"tables": [TABLE | {"variants": [{"name": "a", "overrides": "a=1"}]}]},
            "a: overrides must be a list of overrides such as train.max_iter=100, got",
        ),
        ({"tables": [TABLE | {"overrides": ["--help"]}]}, "Detection: overrides must be a list of"),
        ({"tables": [TABLE, TABLE]}, "tables: Detection appears twice"),
        ({"seeds": [0, 0]}, "seeds: 0 appears twice"),
        ({"tables": [TABLE | {"metrics": ["segm/AP"] * 2}]}, "metrics: segm/AP appears twice"),
        (
            {"tables": [TABLE | {"variants": [{"name": "a", "learning_rates": [0.1, 0.1]}]}]},
            "a: learning_rates: 0.1 appears twice",
        ),
        (
            {"tables": [TABLE | {"variants": [{"name": "a", "group": ["b"]}]}]},
            "a: group must be text, got",
        ),
        ({"tables": [TABLE | {"variants": [{"name": "a", "config": 5}]}]}, "a: config must be"),
        (
            {"tables": [TABLE | {"variants": [{"name": "a", "config": "c" * 300}]}]},
            "Detection, a: config c+ does not exist",
        ),
    ],
)
def test_faults_of_the_table_of_variants_are_named(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "variants.yaml"
    path.write_text(json.dumps(CONTENT | change))
    with pytest.raises(UserError, match=message) as error:
        plan.read_plan(path)
    assert str(error.value).startswith(str(path))


RESULT = {"table": "a", "variant": "b", "learning_rate": 0.1, "seed": 0, "digest": "c"}


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"runs": [{}], "costs": {}},
        {"runs": [RESULT], "costs": {}},
        {"runs": [RESULT | {"metrics": {"segm/AP": "high"}}], "costs": {}},
        {"runs": [], "costs": []},
        {"runs": [], "costs": {"a": {"b": {"digest": "c", "parameters": 1, "gflops": 1}}}},
        {"runs": [], "costs": {"a": {"b": {"parameters": 1, "gflops": 1, "seconds": 1}}}},
    ],
)
def test_damaged_results_are_reported(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "ablation.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"ablation.json cannot be read \(.*Error"):
        runner.Results(path)


def variant_configs(title: str) -> dict[str, Any]:
    """Config of each variant of a table of the repository."""
    (table,) = [table for table in plan.read_plan(VARIANTS).tables if table.title == title]
    configs = {}
    for variant in table.variants:
        overrides = [*table.overrides, *variant.overrides]
        configs[variant.name] = load_config(str(REPOSITORY / variant.config), overrides)
    return configs


@pytest.mark.long
def test_variants_that_claim_equal_flops_have_them() -> None:
    counts = {name: costs.count(cfg) for name, cfg in variant_configs("Detection").items()}
    reference = counts["reference"]
    for name in (
        "stride 16, wider layers",
        "Swin with FPN",
        "ViT with ViTDet's pyramid",
        "ResNet with FPN",
    ):
        assert counts[name]["gflops"] == pytest.approx(reference["gflops"], rel=0.04), name
    wider = counts["off, wider layers"]
    assert wider["gflops"] > reference["gflops"]
    assert wider["parameters"] == pytest.approx(reference["parameters"], rel=0.02)
    for name, count in counts.items():
        assert count["head_parameters"] == reference["head_parameters"], name
        assert count["head_gflops"] == pytest.approx(reference["head_gflops"], rel=1e-3), name


@pytest.mark.parametrize("title", [table.title for table in plan.read_plan(VARIANTS).tables])
def test_variants_differ_in_their_backbone_only(title: str) -> None:
    others = []
    for name, cfg in variant_configs(title).items():
        if name == LARGE_IMAGES:  # strides and sizes of boxes are doubled, too
            continue
        values = {}
        for key, value in flattened(cfg).items():
            if key.startswith(plan.SECTIONS) and not key.startswith("model.backbone"):
                values[key] = value
        others.append(values)
    assert all(values == others[0] for values in others)


def net_of(name: str) -> nn.Module:
    return instantiate(variant_configs("Detection")[name].model.backbone).net.eval()


def test_group_tokens_are_not_mixed_where_the_name_says_so() -> None:
    names = ("reference", "group tokens not mixed", "off: window blocks")
    blocks = {name: net_of(name).blocks for name in names}

    def count(name: str, kind: type[nn.Module]) -> int:
        return sum(isinstance(module, kind) for module in blocks[name].modules())

    assert [count(name, GroupPropagationBlock) for name in names] == [2, 2, 0]
    assert [count(name, TokenMixer) for name in names] == [2, 0, 0]


def test_stride_16_means_a_quarter_of_the_tokens() -> None:
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps = {name: net_of(name)(image)["last_feat"] for name in ("reference", "stride 16")}
    assert maps["reference"].shape == (1, 96, 8, 12)
    assert maps["stride 16"].shape == (1, 96, 4, 6)


def test_large_images_at_stride_16_give_the_heads_the_same_maps_and_relative_sizes() -> None:
    configs = variant_configs("Detection")
    shapes, boxes = [], []
    for name, scale in (("reference", 1), (LARGE_IMAGES, 2)):
        cfg = configs[name]
        height, width = cfg.dataloader.short_side, cfg.dataloader.max_size
        assert (height, width) == (128 * scale, 214 * scale)
        backbone = instantiate(cfg.model.backbone).eval()
        with torch.no_grad():
            maps = backbone(torch.zeros(1, 3, 128 * scale, 192 * scale))
        features = [maps[key] for key in cfg.model.proposal_generator.in_features]
        shapes.append([level.shape for level in features])
        anchors = instantiate(cfg.model.proposal_generator.anchor_generator)(features)
        boxes.append(torch.cat([level.tensor for level in anchors]) / scale)
        heads = cfg.model.roi_heads
        assert heads.box_in_features == cfg.model.proposal_generator.in_features[:-1]
        for pooler in (heads.box_pooler, heads.mask_pooler):
            assert pooler.canonical_box_size == 64 * scale
            strides = [backbone.output_shape()[key].stride for key in heads.box_in_features]
            assert list(pooler.scales) == [1 / stride for stride in strides]
    assert shapes[0] == shapes[1]
    torch.testing.assert_close(*boxes)


@pytest.mark.parametrize("name", list(variant_configs("Detection")))
def test_images_are_padded_to_whole_patches(name: str) -> None:
    backbone = instantiate(variant_configs("Detection")[name].model.backbone)
    image = torch.zeros(3, 128, 147)
    images = ImageList.from_tensors(
        [image], backbone.size_divisibility, padding_constraints=backbone.padding_constraints
    )
    # For large images, the last level of the pyramid has twice the stride.
    assert images.tensor.shape[-2:] == (128, 192 if name == LARGE_IMAGES else 160)


def test_iterations_are_timed_in_turns(
    synthetic_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = plan.Table(**TABLE)
    calls: list[str] = []
    # Seconds of the iterations: 100 of the warm-up, then 0, 1, 2, ...
    seconds = [100.0] * 2 + [float(turn // 2) for turn in range(2 * costs.ROUNDS)]
    times = itertools.accumulate(itertools.chain.from_iterable((0, each) for each in seconds))
    monkeypatch.setattr(costs.time, "perf_counter", lambda: next(times))
    runs = [plan.build_run(table, item, None, 0, synthetic_data) for item in table.variants]
    monkeypatch.setattr(costs, "count", lambda cfg: {})
    monkeypatch.setattr(
        costs,
        "build_step",
        lambda cfg: functools.partial(calls.append, str(cfg.model.backbone.net.group_tokens)),
    )
    measured = costs.measure(runs)
    assert calls == ["[0, 32, 0, 16]", "[0, 0, 0, 0]"] * (1 + costs.ROUNDS)
    assert [cost["seconds"] for cost in measured.values()] == [costs.ROUNDS // 2] * 2


def test_documented_tables_are_those_of_the_documented_runs() -> None:
    page = (REPOSITORY / "docs" / "ablation.md").read_text()
    results = runner.Results(REPOSITORY / "docs" / "ablation.json")
    variants = plan.read_plan(VARIANTS)
    for table in variants.tables:
        assert summary.table_of(table, variants.seeds, results) in page
        for variant in table.variants:
            assert results.of_variant(table, variant, variants.seeds)


@pytest.mark.slow
def test_command_trains_goes_on_after_an_interruption_and_measures(tmp_path: Path) -> None:
    table = TABLE | {"overrides": ["train.max_iter=40", "train.log_period=5", "train.device=cpu"]}
    (tmp_path / "variants.yaml").write_text(json.dumps(CONTENT | {"tables": [table]}))
    command = [sys.executable, str(REPOSITORY / "tools" / "ablate.py")]
    command += ["--variants", str(tmp_path / "variants.yaml"), "--output", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    # The file is empty until the first iterations are done; without these, nothing is saved.
    while not any(path.stat().st_size for path in tmp_path.glob("out/runs/*/metrics.json")):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    assert process.returncode == 130
    assert output.endswith("interrupted; run the same command again to resume\n")
    output = subprocess.run(command, capture_output=True, text=True, check=True)
    assert output.stderr == ""
    logs = [path.read_text() for path in tmp_path.glob("out/runs/*/output.txt")]
    assert any("resuming from" in log for log in logs)
    results = runner.Results(tmp_path / "out" / "ablation.json")
    assert len(results.runs) == 5
    assert all({"bbox/AP", "segm/AP"} <= run["metrics"].keys() for run in results.runs.values())
    assert set(results.costs["Detection"]) == {"reference", "off"}

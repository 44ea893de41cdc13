"""The tools do what the README says."""

import json
import re
import runpy
import sys
from pathlib import Path

import analyze
import benchmark
import compare_runs
import convert_checkpoint
import cv2
import evaluating
import limit
import numpy as np
import official
import pytest
import quickstart
import torch
import train_net
from conftest import REPOSITORY, TINY
from detectron2.config import instantiate
from detectron2.structures import Boxes, BoxMode, Instances
from gpvit import checkpoint
from gpvit.checkpoint.published import COCO_CLASSES
from gpvit.config import inference_config, load_config
from gpvit.cli.train import argument_parser
from gpvit.model_zoo import COCO_AP, detector_address
from gpvit.predictor import config_of
from gpvit.utils import analysis, profiler
from gpvit.utils.errors import UserError
from gpvit.visualization import drawing as visualize
from matplotlib.axes import Axes
from matplotlib.figure import Figure

DOCUMENTATION = {page: page.read_text() for page in [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]}
TOOLS = [path for path in sorted((REPOSITORY / "tools").glob("*.py")) if "ArgumentParser(" in path.read_text()]


@pytest.fixture(scope="module")
def weights(synthetic_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A barely trained detector."""
    folder = tmp_path_factory.mktemp("weights")
    command = ["--config-file", str(REPOSITORY / "configs" / "quickstart.py"), "--data", str(synthetic_data), *TINY]
    command += ["train.device=cpu", f"train.output_dir={folder}", "train.max_iter=1"]
    train_net.main(argument_parser().parse_intermixed_args(command))
    return folder / "model_final.pth"


def test_predictions_are_drawn_where_they_are() -> None:
    mask = torch.zeros(1, 700, 700, dtype=torch.bool)
    mask[:, 230:270, 430:470] = True
    instances = Instances(
        (700, 700),
        pred_boxes=Boxes(torch.tensor([[400.0, 200.0, 500.0, 300.0]])),
        scores=torch.tensor([0.9]),
        pred_classes=torch.tensor([1]),
        pred_masks=mask,
    )
    picture = visualize.draw_predictions(np.full((700, 700, 3), 128, np.uint8), instances, ["cat", "dog"])
    changed = np.argwhere(np.any(picture != 128, axis=2))
    assert picture.shape == (700, 700, 3)
    assert changed.min(0)[0] > 150 and changed.max(0)[0] < 310  # rows; the label may stand above
    assert np.abs(changed.min(0)[1] - 400) < 20 and changed.max(0)[1] < 600
    assert np.any(picture[235:265, 435:465] != 128, axis=2).all()  # the mask
    assert np.any(picture[225:275, 398:403] != 128, axis=2).any(axis=1).all()  # an edge of the box


def test_names_with_dollars_are_drawn_as_they_are() -> None:
    record = {"annotations": [{"category_id": 0, "bbox": [10, 20, 30, 40], "bbox_mode": BoxMode.XYWH_ABS}]}
    picture = visualize.draw_annotations(np.full((700, 700, 3), 128, np.uint8), record, ["a$b_$c"])
    assert np.any(picture != 128)


def test_sheet_and_curves_are_pictures(tmp_path: Path) -> None:
    picture = np.zeros((40, 60, 3), np.uint8)
    visualize.save_sheet([(picture, picture)] * 3, tmp_path / "sheet.png")
    rows = [{"iteration": i, "total_loss": 2.0 / (i + 1), "loss_cls": 1.0 / (i + 1)} for i in range(5)]
    rows.append({"iteration": 5, "bbox/AP": 30.0, "segm/AP": 25.0})
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, rows)) + '\n{"iteration": 6, "bbo')  # cut short
    visualize.save_curves(tmp_path / "metrics.json", tmp_path / "curves.png")
    for name in ("sheet.png", "curves.png"):
        assert cv2.imread(str(tmp_path / name)).std() > 10


def test_curves_of_several_validation_sets_have_their_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    labels: list[str] = []

    def remember(figure: Figure, *_: object, **__: object) -> None:
        labels.extend(text.get_text() for text in figure.axes[1].get_legend().get_texts())

    monkeypatch.setattr(Figure, "savefig", remember)
    found = {"day/segm/AP": 1.0, "a/$b/segm/AP": 2.0, "a/$b/bbox/AP": 2.0, "day/ema_segm/AP": 3.0, "day/segm/AP-cat": 4.0}
    (tmp_path / "metrics.json").write_text(json.dumps({"iteration": 5, "total_loss": 1.0} | found))
    visualize.save_curves(tmp_path / "metrics.json", tmp_path / "curves.png")
    assert labels == ["a/$b boxes", "a/$b masks", "day masks"]


@pytest.mark.parametrize("size", ["l1", "l2", "l3", "l4"])
def test_parameters_and_flops_are_the_published_ones(size: str) -> None:
    expected = json.loads((published.FOLDER / "complexity.json").read_text())
    cfg = load_config(str(REPOSITORY / "configs" / "published" / f"mask_rcnn_gpvit_{size}_1x.py"))
    model = analysis.built_on_meta(cfg.model)
    counts, counted = analysis.parameters(model), expected["parameters"]["maskrcnn"][size]
    assert sum(counts.values()) == counted["total"] and counts["rest"] == 0
    assert counts["backbone"] + counts["adapter"] == counted["backbone"]
    assert (counts["pyramid"], counts["dense head"]) == (counted["neck"], counted["rpn_head"])
    assert counts["box head"] + counts["mask head"] == counted["roi_head"]
    macs = {part: gflops / 2 for part, gflops in analysis.flops(model, 800, 1280).items()}
    assert macs["backbone"] == pytest.approx(expected["backbone_gmacs"][size]["800x1280"], rel=1e-3)
    detector = expected["maskrcnn_gmacs_800x1280"][size]
    # A bilinear sample is counted there as five multiply-accumulates and here as four, the cells that it looks up.
    with_adapter = detector["backbone_adapter"] + 0.8 * detector["deformable_sampling_by_hand"]
    assert macs["backbone"] + macs["adapter"] == pytest.approx(with_adapter, rel=1e-3)
    assert macs["pyramid"] == pytest.approx(detector["fpn"], rel=1e-3)
    assert macs["dense head"] == pytest.approx(detector["rpn"], rel=1e-3)
    assert macs["box head"] == pytest.approx(detector["box_head_1000_rois"], rel=1e-3)
    assert macs["mask head"] == pytest.approx(detector["mask_head_100_rois"], rel=1e-3)


def analyzed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *arguments: str | Path) -> str:
    """What tools/analyze.py prints, with all that it runs in this process and a single time."""
    monkeypatch.setattr(sys, "argv", ["analyze.py", *map(str, arguments)])
    monkeypatch.setattr(analyze, "in_a_process", lambda function, *args, environment=None: function(*args))
    monkeypatch.setattr(analysis, "RUNS", 1)
    analyze.main()
    return capsys.readouterr().out


def table_in(text: str) -> dict[str, list[float]]:
    """The rows of a Markdown table by their first cells."""
    rows = [line.strip("| ").split("|") for line in text.splitlines() if line.startswith("| ")][1:]
    return {row[0].strip(): [float(cell.strip(" %")) for cell in row[1:]] for row in rows}


def test_the_parts_of_a_model_add_up_to_the_whole(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    config = REPOSITORY / "configs" / "quickstart.py"
    text = analyzed(monkeypatch, capsys, "model", "--config-file", config, "--image", "64x96", "--device", "cpu")
    assert "one image of 64x96, random weights, 100 objects found" in text
    table = table_in(text)
    assert list(table) == ["backbone", "pyramid", "dense head", "box head", "mask head", "rest", "total"]
    whole = table.pop("total")
    model = analysis.built_on_meta(load_config(str(config)).model)
    assert whole[0] == pytest.approx(sum(weight.numel() for weight in model.parameters()) / 1e6, abs=0.006)
    for column, tolerance in ((0, 0.03), (1, 0.03), (3, 0.5), (4, 3)):  # roundings
        assert whole[column] == pytest.approx(sum(row[column] for row in table.values()), abs=tolerance)
    assert whole[2] == max(row[2] for row in table.values())
    assert all(row[1] > 0 and row[3] > 0 for part, row in table.items() if part != "rest")


def test_a_model_is_known_from_its_checkpoint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, weights: Path
) -> None:
    text = analyzed(monkeypatch, capsys, "model", "--weights", weights.parent, "--device", "cpu")
    total = table_in(text)["total"]
    assert "one image of 64x96," in text  # the config's own size
    loaded = [tensor.numel() for key, tensor in checkpoint.read(str(weights)).weights.items() if "running_" not in key]
    assert total[0] == pytest.approx(sum(loaded) / 1e6, abs=0.006)


def test_inner_parts_are_not_measured_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, memory = iter([0.0, 1.0, 3.0, 7.0]), iter([(5, 0), (6, 10), (6, 30), (5, 20)])
    monkeypatch.setattr(profiler.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(profiler, "memory_since_reset", lambda device: next(memory))
    model = torch.nn.Sequential(torch.nn.Identity())
    outer, inner = profiler.Meter(model, "cpu"), profiler.Meter(model[0], "cpu")
    model(torch.zeros(1))
    assert (outer.seconds, outer.own_seconds, inner.seconds, inner.own_seconds) == ([7], [5], [2], [2])
    assert (outer.peaks, outer.own_peaks, inner.peaks, inner.own_peaks) == ([25], [15], [24], [25])


def test_costs_of_the_adapter_are_measured_part_by_part(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["analyze.py", "adapter", "--image", "64x96"])
    monkeypatch.setattr(analyze, "RUNS", 1)
    analyze.main()
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    costs = {row[0].strip(): [float(cell.strip(" %")) for cell in row[1:]] for row in rows}
    assert costs["all"][1] == 100
    parts = {"patch embedding", "blocks", "spatial prior", "injectors", "extractors", "adapter with backbone"}
    assert parts < costs.keys()
    assert costs["all"][2] >= costs["adapter with backbone"][2] > 0


def benchmark_record(monkeypatch: pytest.MonkeyPatch, file: Path, *arguments: str) -> dict:
    command = ["benchmark.py", "--image", "64x64", "--runs", "2", "--json", str(file), *arguments]
    monkeypatch.setattr(sys, "argv", command)
    benchmark.main()
    return json.loads(file.read_text())


def test_the_backbone_is_timed_against_its_literal_form(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(limit, "MIN_SECONDS", 0.001)
    record = benchmark_record(monkeypatch, tmp_path / "record.json", "--mode", "training")
    assert record["ratio"] > 0 and record["memory_ratio"] > 0 and record["fraction_of_limit"] > 0
    assert record["machine"]["torch"] == torch.__version__ and record["task"]["mode"] == "training"
    assert [len(times) for times in record["all_seconds"].values()] == [2, 2]
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["gpvit", "literal", "ratio", "limit"]


@pytest.mark.slow
def test_a_whole_detector_is_timed_part_by_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    record = benchmark_record(monkeypatch, tmp_path / "record.json", "--part", "detector", "--against", "swin")
    for parts in record["parts"].values():
        assert set(parts) == {"data", "backbone", "pyramid or adapter", "proposals", "heads", "post-processing"}
        assert min(parts.values()) > 0
    assert record["detections"] == {"gpvit": 100, "swin": 100}
    assert sum(record["parts"]["gpvit"].values()) == pytest.approx(record["seconds"]["gpvit"], rel=0.5)


def test_models_that_differ_are_not_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(benchmark.published, "fill", lambda key, shape: np.random.randn(*shape))
    with pytest.raises(UserError, match="do not compute the same: relative L2 distance .* in last_feat"):
        benchmark_record(monkeypatch, tmp_path / "record.json")
    assert not (tmp_path / "record.json").exists()


@pytest.mark.slow
def test_growth_is_measured_and_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(benchmark, "GROWTH_SIDES", (64, 128))
    monkeypatch.setattr(benchmark, "GROWTH_IMAGES", (2,))
    plot = tmp_path / "growth.png"
    record = benchmark_record(monkeypatch, tmp_path / "record.json", "--against", "none", "--growth", str(plot))
    assert [(point["side"], point["images"]) for point in record["growth"]] == [(64, 1), (128, 1), (64, 2)]
    assert record["growth_ratios"]["gpvit"].keys() == {"gmacs", "seconds", "peak_mib"}
    assert cv2.imread(str(plot)).std() > 10


@pytest.mark.parametrize("size", ["L1", "L4"])
def test_the_limit_counts_what_is_published(size: str) -> None:
    task = benchmark.Task(size, (800, 1280), 1, "inference", "backbone", "float32", False)
    gmacs = sum(operation.flops for operation in benchmark.operations(task)) / 2e9
    expected = json.loads((published.FOLDER / "complexity.json").read_text())["backbone_gmacs"]
    assert gmacs == pytest.approx(expected[size.lower()]["800x1280"], rel=1e-3)


def test_an_operation_takes_the_longer_of_computing_and_moving() -> None:
    product = (10, 20, 30)
    rates = limit.Rates({product}, "cpu", torch.float32)
    rates.copy, rates.products[product] = 100.0, {"linear": 50.0, "mm": 200.0}
    linear = limit.Operation("linear", bytes=500, flops=2000, product=product)
    others = [limit.Operation("conv2d", bytes=3000, flops=10), limit.Operation("gelu", bytes=70)]
    assert rates.seconds([linear, linear, *others]) == {"linear": 20, "conv2d": 30, "gelu": 0.7}


def convert(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", *map(str, arguments)])
    convert_checkpoint.main()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_published_file_is_converted_and_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path, suffix: str
) -> None:
    official, ours, back = tmp_path / "official.pth", tmp_path / "new" / f"ours{suffix}", tmp_path / "back.pth"
    weights = official.weights("retinanet", "L1")
    torch.save({"meta": {"epoch": 12}, "state_dict": weights}, official)
    convert(monkeypatch, official, ours)
    assert f"{ours}: published RetinaNet L1, 623 tensors, 80 class names" in capsys.readouterr().out
    file = checkpoint.read(str(ours))
    assert file.about["source"] == str(official) and file.classes == COCO_CLASSES
    assert file.config == inference_config(config_of(checkpoint.read(str(official))))
    convert(monkeypatch, "--to-published", ours, back)
    content = checkpoint.read_content(str(back))
    assert content["meta"]["CLASSES"] == tuple(COCO_CLASSES) and content["state_dict"].keys() == weights.keys()
    assert all(torch.equal(content["state_dict"][key], weights[key]) for key in weights)


def test_the_backbone_of_a_converted_classifier_goes_into_a_detector(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    weights = official.weights("classifier", "L1")
    torch.save({"meta": {}, "state_dict": weights}, tmp_path / "official.pth")
    convert(monkeypatch, tmp_path / "official.pth", tmp_path / "ours.safetensors")
    model = instantiate(load_config(str(REPOSITORY / "configs" / "published" / "retinanet_gpvit_l1_1x.py")).model)
    checkpoint.load(model, str(tmp_path / "ours.safetensors"))
    assert torch.equal(model.backbone.bottom_up.net.pos_embed, weights["backbone.pos_embed"])


def test_conversion_refuses_what_it_cannot_do(monkeypatch: pytest.MonkeyPatch, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.pth"
    with pytest.raises(UserError, match="only Mask R-CNN and RetinaNet with the adapter have a counterpart"):
        convert(monkeypatch, "--to-published", weights, out)
    with pytest.raises(UserError, match="name that ends in .pth"):
        convert(monkeypatch, "--to-published", weights, tmp_path / "out.safetensors")
    with pytest.raises(UserError, match="cannot write .*below_a_file.pth: "):
        convert(monkeypatch, weights, weights / "below_a_file.pth")
    out.write_text("precious")
    with pytest.raises(UserError, match=r"there is .*out.pth already; give another output, or --overwrite"):
        convert(monkeypatch, weights, out)
    with pytest.raises(UserError, match="have a counterpart"):
        convert(monkeypatch, "--overwrite", "--to-published", weights, out)
    assert out.read_text() == "precious"
    convert(monkeypatch, "--overwrite", weights, out)
    assert checkpoint.read(str(out)).weights.keys() == checkpoint.read(str(weights)).weights.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["out.pth"]


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Two folders of trainings that are compared, of 30 and 20 AP."""
    folders = [tmp_path / "run", tmp_path / "a$b_$c"]
    for folder, ap in zip(folders, (30.0, 20.0)):
        folder.mkdir()
        rows = [{"iteration": i, "total_loss": 2.0 / i, "segm/AP": ap / i, "segm/AP-a$b_$c": ap / i} for i in (1, 2)]
        (folder / "metrics.json").write_text("\n".join(map(json.dumps, rows)))
    return list(map(str, folders))


@pytest.mark.parametrize("metric", ["segm/AP", "segm/AP-a$b_$c"])
def test_runs_are_compared_by_a_metric(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path, runs: list[str], metric: str
) -> None:
    drawn, plot = {}, Axes.plot

    def watched(axis: Axes, iterations: list[int], values: list[float], **style: str) -> list:
        drawn[style["label"]] = (iterations, values)
        return plot(axis, iterations, values, **style)

    monkeypatch.setattr(Axes, "plot", watched)
    picture = tmp_path / "new" / "runs.png"
    compare_runs.main([*runs, "--metric", metric, "--output", str(picture)])
    assert drawn == {"run": ((1, 2), (30, 15)), "a$b_$c": ((1, 2), (20, 10))}
    assert cv2.imread(str(picture)).std() > 10 and [path.name for path in picture.parent.iterdir()] == ["runs.png"]
    assert capsys.readouterr().out == "run: last 15, best 30\na$b_$c: last 10, best 20\n"


def test_runs_that_cannot_be_compared_are_named(tmp_path: Path, runs: list[str]) -> None:
    picture = tmp_path / "runs.png"
    picture.write_text("precious")
    for arguments, message in (
        ((*runs, "--output", picture), "there is .*runs.png already; give another --output, or --overwrite"),
        ((*runs, "--output", tmp_path / "x.foo"), "x.foo: the name must end in .png, .svg or .pdf"),
        ((*runs, "--output", picture / "x.png"), "cannot write .*x.png: "),
        ((*runs, "--output", tmp_path / "x.png", "--metric", "AP"), "metrics.json has no AP; it has iteration, segm/AP"),
        ((tmp_path, "--output", tmp_path / "x.png"), "metrics.json does not exist; give the folder of a training"),
    ):
        with pytest.raises(UserError, match=message):
            compare_runs.main(list(map(str, arguments)))
    assert picture.read_text() == "precious" and not [*tmp_path.glob("x*")]
    compare_runs.main([*runs, "--output", str(picture), "--overwrite"])
    assert cv2.imread(str(picture)).std() > 10


@pytest.mark.parametrize("command", ["zoo", "published"])
def test_a_table_in_the_documentation_is_what_the_tool_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, command: str
) -> None:
    assert analyzed(monkeypatch, capsys, command) in "".join(DOCUMENTATION.values())


def test_configs_say_which_ap_was_published() -> None:
    for name, (box, *mask) in COCO_AP.items():
        text = (REPOSITORY / "configs" / "published" / f"{name}.py").read_text()
        assert f"AP as published: {box} box" + "".join(f", {ap} mask" for ap in mask) + "." in text, name
    for name in ("mask_rcnn_gpvit_l1_1x", "retinanet_gpvit_l1_1x"):
        assert detector_address(name) in (REPOSITORY / "configs" / "published" / f"{name}.py").read_text()


def test_the_documentation_names_files_and_keys_that_exist() -> None:
    for page, text in DOCUMENTATION.items():
        for path in re.findall(r"(?<![\w/.-])(?:tools|configs|tests|docs)/[\w/]+\.\w+", text):
            assert (REPOSITORY / path).is_file(), (page, path)
        for path in re.findall(r"\]\(([\w./]+?)(?:#[\w-]+)?\)", text):
            assert (page.parent / path).exists(), (page, path)
    text = DOCUMENTATION[REPOSITORY / "docs" / "training.md"]
    overrides = [o.strip("'\"") for o in re.findall(r"[\w.']+=[^\s`]+", text) if "." in o.split("=")[0] and '"' not in o]
    assert len(overrides) > 12
    for override in overrides:
        load_config(str(REPOSITORY / "configs" / "mask_rcnn_gpvit_l1.py"), [override.replace("$", "")])


@pytest.mark.parametrize(("aps", "code"), [((0.35, 0.01, 0.02, 0.0), 0), ((0.1, 0, 0, 0), 1), ((0.35, 0.3, 0, 0), 1)])
def test_the_quick_start_fails_where_training_or_evaluation_is_broken(aps: tuple, code: int) -> None:
    names = ("as trained", "with classes swapped", "with masks flipped", "with random weights")
    assert quickstart.verdict(dict(zip(names, aps))) == code


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_help_is_there_for_every_tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tool: Path) -> None:
    monkeypatch.setattr(sys, "argv", [str(tool), "-h"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(tool), run_name="__main__")
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")


def test_swapping_classes_changes_every_one_and_flipping_twice_none(tmp_path: Path) -> None:
    json_file = tmp_path / "val.json"
    json_file.write_text(json.dumps({"categories": [{"id": id} for id in (2, 7, 12)]}))
    mask = np.zeros((4, 6), np.uint8, order="F")
    mask[1:3, 0:2] = 1
    results = [{"category_id": id, "segmentation": quickstart.mask_api.encode(mask), "score": 1.0} for id in (2, 7, 12)]
    assert [result["category_id"] for result in quickstart.swap_classes(results, json_file)] == [7, 12, 2]
    flipped = quickstart.flip_masks(results)
    assert np.array_equal(quickstart.mask_api.decode(flipped[0]["segmentation"]), mask[:, ::-1])
    assert quickstart.flip_masks(flipped)[0]["segmentation"]["counts"] == results[0]["segmentation"]["counts"]


def test_the_evaluation_has_the_figures_of_pycocotools(capsys: pytest.CaptureFixture) -> None:
    record = evaluating.evaluation(20)
    assert record["seconds"].keys() == {"bbox", "segm"} and record["ratio"] > 0
    assert "| both |" in capsys.readouterr().out

"""Check and time everything on a GPU, in about 10 minutes: ``make gpu``.

    python tests/benchmarks/gpu.py --output output/gpu

Weights are random, the data are synthetic, and no network is needed. Each check runs in a process
of its own, and one that fails or takes too long does not stop the others. The report, gpu.md and
the same as gpu.json, is written again after each check.
"""

from gpvit.utils.environment import prepare_command

if __name__ in ("__main__", "__mp_main__"):
    prepare_command()  # before PyTorch is imported

import argparse
import contextlib
import faulthandler
import gc
import io
import itertools
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import detectron2
import gpvit
import torch
import torch.distributed as dist
import torchvision
from detectron2.config import instantiate
from gpvit import checkpoint
from gpvit.cli import export
from gpvit.cli.main import run_command
from gpvit.cli.train import argument_parser, configure
from gpvit.config import CONFIGS, load_config
from gpvit.data.datasets.synthetic import make_dataset
from gpvit.engine.run import do_train
from gpvit.modeling.backbone.gpvit import GroupPropagationBlock, WindowBlock
from gpvit.modeling.classifier import AttentionPooling
from gpvit.utils import analysis
from gpvit.utils.errors import UserError, preview, reason_of
from gpvit.utils.files import atomic_write, finite_or_text, make_folder
from gpvit.utils.precision import inference_precision
from gpvit.utils.profiler import in_a_process, machine, memory_since_reset
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.multiprocessing import ProcessRaisedException
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))
import official
from benchmarks.backbone import (
    Step,
    Task,
    alternate,
    artificial_loss,
    build_backbone,
    fill_weights,
    save,
)

MAX_DISTANCE = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.05}  # relative L2
FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
ATTENTION_KERNEL = re.compile("flash|fmha|sdpa", re.IGNORECASE)
NOT_DETERMINISTIC = re.compile(r"(\S+) does not have a deterministic implementation")
ONNX_DEVICE, ONNX_DISTANCE = "cuda", 1e-3  # maximum difference of probabilities
# Maximum relative difference of the losses of equal runs: RoIAlign adds gradients in any order.
LOSS_DIFFERENCE = 0.05
CHECK_SECONDS, PYTEST_SECONDS, NCCL_SECONDS = 300, 150, 60  # after which these are stopped
LABELS = {"gpvit": "{}", "literal": "literal {}", "swin": "Swin-T"}
GOALS = {"times literal": 3.0, "of the limit": 0.5}  # columns of the speed table


@dataclass(frozen=True)
class Workload:
    """The sizes of everything that is run."""

    sizes: tuple[str, ...] = tuple(gpvit.SIZES)
    images: tuple[tuple[int, int], ...] = ((1024, 1024), (800, 1344))  # height, width
    batches: tuple[tuple[str, int], ...] = (("training", 2), ("inference", 4))  # images, at first
    compared_image: tuple[int, int] = (512, 512)  # on GPU and CPU
    tokens: int = 64  # sides of the map of the attention blocks
    matrix: int = 8192
    runs: int = 10
    seconds: int = 270  # after which no other row of the speed table is started
    data: tuple[int, int] = (8, 2)  # training and validation images
    iterations: int = 6
    overrides: tuple[str, ...] = ()  # of the detector's training runs
    # Too large for this memory in MiB, which model and optimizer fit into.
    large: tuple[str, ...] = (
        "dataloader.short_side=768",
        "dataloader.max_size=1280",
        "dataloader.train.total_batch_size=16",
    )
    memory: int = 512


WORKLOAD = Workload()


@dataclass
class Result:
    """What a check returns: a line, rows of a table, and why it failed if it did."""

    text: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""
    seconds: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default=Path("output/gpu"), type=Path, metavar="DIR")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise UserError("there is no GPU that PyTorch can use: see nvidia-smi, torch.version.cuda")
    make_folder(args.output)
    results = {}
    for name in CHECKS:
        start = time.perf_counter()
        try:
            result = in_a_process(attempt, name, WORKLOAD)
        except BrokenProcessPool:
            result = Result(error=f"the process crashed, or took more than {CHECK_SECONDS} s")
        result.seconds = time.perf_counter() - start
        results[name] = result
        print(f"{name} ({result.seconds:.0f} s): {summary(result)}", flush=True)
        failed = [name for name, result in results.items() if result.error]
        checks = {name: finite_or_text(asdict(result)) for name, result in results.items()}
        save(args.output / "gpu.json", {"machine": machine(), "failed": failed, "checks": checks})
        with atomic_write(args.output / "gpu.md") as partial:
            partial.write_text(markdown(results), encoding="utf-8")
    print(f"written: {args.output / 'gpu.md'}, {args.output / 'gpu.json'}")
    if failed:
        count = f"{len(failed)} of {len(results)} checks failed"
        raise UserError(f"{count}: {', '.join(failed)}; see {args.output / 'gpu.md'}")


def attempt(name: str, workload: Workload) -> Result:
    """Run a check, whatever it raises. The process exits if it takes too long."""
    faulthandler.dump_traceback_later(CHECK_SECONDS, exit=True, file=sys.__stderr__)
    try:
        return CHECKS[name](workload)
    except Exception as error:
        return Result(error=reason_of(error))
    finally:
        faulthandler.cancel_dump_traceback_later()


def summary(result: Result) -> str:
    done = result.text or f"{len(result.rows)} rows"
    return f"FAILED: {result.error}" if result.error else done


def markdown(results: dict[str, Result]) -> str:
    lines = ["# GPU report", "", "| check | seconds | result |", "|---|---:|---|"]
    for name, result in results.items():
        lines.append(f"| {name} | {result.seconds:.0f} | {cell(summary(result))} |")
    for name, result in results.items():
        lines += ["", f"## {name}", "", summary(result)]
        if result.error and result.text:
            lines += ["", result.text]
        lines += table(result.rows)
    return "\n".join(lines).rstrip() + "\n"


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a Markdown table; rows may lack columns."""
    columns: dict[str, None] = {}
    for row in rows:
        columns |= dict.fromkeys(row)
    lines = ["", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"] if rows else []
    for row in rows:
        lines.append(f"| {' | '.join(cell(row.get(column, '')) for column in columns)} |")
    return lines


def cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")


def environment(workload: Workload) -> Result:
    found = dict(machine())
    for number in range(torch.cuda.device_count()):
        memory = torch.cuda.mem_get_info(number)[1] / 2**30
        capability = ".".join(map(str, torch.cuda.get_device_capability(number)))
        name = torch.cuda.get_device_name(number)
        found[f"GPU {number}"] = f"{name}, {memory:.0f} GiB, compute capability {capability}"
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        output = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
        found["driver"] = preview(sorted(set(output.split())))
    found["CUDA"], found["cuDNN"] = torch.version.cuda, torch.backends.cudnn.version()
    if dist.is_nccl_available():
        found["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
    found |= {module.__name__: module.__version__ for module in (torchvision, detectron2)}
    gpus = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return Result(gpus, [{"what": name, "value": value} for name, value in found.items()])


def gpu_tests(workload: Workload) -> Result:
    """Run the tests with the marker gpu. With another -q, pytest would hide the result line."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-n", "0"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PYTEST_SECONDS)
    last = (run.stdout + run.stderr).strip().rpartition("\n")[2]
    is_passed = run.returncode == 0 and "passed" in last
    return Result(last, error="" if is_passed else f"exit code {run.returncode}: {last}")


@torch.no_grad()
def dtypes(workload: Workload) -> Result:
    """Compare the maps of models on the GPU with those on the CPU, and run inference."""
    torch.backends.cudnn.allow_tf32 = False  # that of matrix products is off by default
    size = workload.sizes[0]
    detector = instantiate(load_config(str(CONFIGS / "quickstart.py")).model).eval()
    models = {size: build_backbone("gpvit", size).eval(), "quick start": detector}
    image = official.image(0, (1, 3, *workload.compared_image))
    rows, distant = [], []
    for name, model in models.items():
        fill_weights(model)
        features = getattr(model, "backbone", model)
        expected = features(image)
        model.cuda()
        for dtype, allowed in MAX_DISTANCE.items():
            with inference_precision(getattr(torch, dtype), model):
                maps = features(image.cuda())
            largest = max(distance(maps[key].cpu(), expected[key]) for key in expected)
            row = {"model": name, "dtype": dtype, "relative L2": largest, "allowed": allowed}
            if model is detector:
                with inference_precision(getattr(torch, dtype), model):
                    item = {"image": image[0].mul(40).add(128).clamp(0, 255).byte()}
                    row["detections"] = len(model([item])[0]["instances"])
            rows.append(row)
            if not largest <= allowed:
                distant.append(f"{name} in {dtype} ({largest:.1e})")
    return Result(rows=rows, error=f"differs from the CPU: {', '.join(distant)}" if distant else "")


def distance(found: Tensor, expected: Tensor) -> float:
    """Return the relative L2 distance."""
    return ((found.float() - expected).norm() / expected.norm()).item()


def attention(workload: Workload) -> Result:
    """List the attention kernels of the blocks, each of which must run without the math kernel."""
    rows, unfused = [], []
    for size, dtype in itertools.product(workload.sizes, ("float32", "bfloat16")):
        dim = gpvit.SIZES[size]["embed_dim"]
        blocks = {
            "window": WindowBlock(dim, 6, 0.0),
            "group propagation": GroupPropagationBlock(dim, 6, 32, 0.0, "BN"),
            "attention pooling": AttentionPooling(dim, 6),
        }
        x = torch.randn(2, workload.tokens, workload.tokens, dim, device="cuda")
        for kind, block in blocks.items():
            if isinstance(block, AttentionPooling):
                x = x.permute(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W)
            row = {"size": size, "dtype": dtype, "block": kind}
            row |= attention_kernels(block.cuda(), x, getattr(torch, dtype))
            rows.append(row)
            if row["without math"] != "runs":
                unfused.append(f"{kind} block of {size} in {dtype}")
    return Result(rows=rows, error=f"only math: {preview(unfused)}" if unfused else "")


def attention_kernels(block: nn.Module, x: Tensor, dtype: torch.dtype) -> dict[str, str]:
    """Return the kinds and names of the kernels, and whether the block runs without math."""

    def step() -> None:
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            output = block(x)
        output.float().square().mean().backward()
        torch.cuda.synchronize()

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
    kinds, names = set(), set()
    for event in profiler.key_averages():
        if event.key.startswith("aten::_scaled_dot_product"):
            kinds |= {kind for kind in ("cudnn", "flash", "efficient", "math") if kind in event.key}
        elif event.device_type == DeviceType.CUDA and ATTENTION_KERNEL.search(event.key):
            names.add(event.key[:50])
    row = {"kernels": ", ".join(sorted(kinds)), "names": "; ".join(sorted(names))}
    try:
        with sdpa_kernel(FUSED):
            step()
    except RuntimeError as error:  # no available kernel
        return row | {"without math": reason_of(error)}
    return row | {"without math": "runs"}


def data_parallel(workload: Workload) -> Result:
    """Run a training step with NCCL and SyncBN in one process, and in one for each GPU."""
    numbers = sorted({1, torch.cuda.device_count()})
    for processes in numbers:
        with tempfile.TemporaryDirectory() as folder:
            try:
                torch.multiprocessing.spawn(
                    data_parallel_step, (processes, f"file://{folder}/store"), processes
                )
            except ProcessRaisedException as error:  # its last line is that of the process
                reason = str(error).strip().rpartition("\n")[2]
                raise RuntimeError(f"{processes} processes: {reason}") from None
    return Result(f"finite loss and equal weights in {' and '.join(map(str, numbers))} process(es)")


def data_parallel_step(rank: int, processes: int, store: str) -> None:
    torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl",
        init_method=store,
        rank=rank,
        world_size=processes,
        timeout=timedelta(seconds=NCCL_SECONDS),
    )
    torch.manual_seed(0)
    net = gpvit.GPViT(embed_dim=24, group_tokens=(0, 4), norm="SyncBN").cuda()
    model = DistributedDataParallel(net, device_ids=[rank], broadcast_buffers=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.manual_seed(rank)
    loss = artificial_loss(model(torch.randn(2, 3, 64, 64, device="cuda")))
    loss.backward()
    optimizer.step()
    values = [value for value in net.state_dict().values() if value.is_floating_point()]
    weights = torch.cat([value.flatten() for value in values])
    of_all = [torch.empty_like(weights) for _ in range(processes)]
    dist.all_gather(of_all, weights)
    if not loss.isfinite():
        raise RuntimeError(f"the loss is {loss.item()}")
    if not all(torch.equal(weights, others) for others in of_all):
        raise RuntimeError("weights or statistics differ between the processes")
    dist.destroy_process_group()


def determinism(workload: Workload) -> Result:
    """Train a detector twice in deterministic mode, and compare the losses.

    Those of the first iteration must be equal; see LOSS_DIFFERENCE for the others.
    """
    losses, peaks = [], []
    with dataset(workload) as data, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in range(2):
            memory_since_reset("cuda")
            output = data.parent / f"run{number}"
            train("quickstart", data, output, workload, *workload.overrides)
            peaks.append(memory_since_reset("cuda")[1])
            losses.append(losses_of(output))
    text = f"{len(losses[0])} iterations, peak {max(peaks):.0f} MiB; {not_deterministic(caught)}"
    largest, different = 0.0, []
    for number, (first, second) in enumerate(zip(*losses, strict=True)):
        for name, loss in first.items():
            difference = 0.0
            if loss != second[name]:
                difference = abs(loss - second[name]) / max(abs(loss), abs(second[name]))
            largest = max(largest, difference)
            if difference > (LOSS_DIFFERENCE if number else 0):
                different.append(f"{name} of iteration {number}")
    text = f"losses differ by up to {largest:.1e}: {text}" if largest else f"equal losses: {text}"
    return Result(text, error=f"these differ: {preview(different)}" if different else "")


def compilation(workload: Workload) -> Result:
    """Train a detector with a compiled backbone."""
    with dataset(workload) as data:
        output = data.parent / "run"
        train("quickstart", data, output, workload, "train.compile=True", *workload.overrides)
        losses = losses_of(output)
    return Result(f"{len(losses)} iterations")


def resume(workload: Workload) -> Result:
    """Resume a classifier's training run from its middle: the weights must be equal."""
    middle = workload.iterations // 2
    options = [f"train.checkpointer.period={middle}", "train.ema_decay=0.9"]
    # Without the best checkpoint, which is that of the last iteration.
    options += ["dataloader.train.total_batch_size=6", "train.best_metric=''"]
    name, final = "quickstart_classifier", []
    with dataset(workload) as data, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        output = data.parent / "run"
        for is_resumed in (False, True):
            train(name, data, output, workload, *options, resume=is_resumed)
            path = output / "model_final.pth"
            final.append(torch.load(path, map_location="cpu", weights_only=True))
            path.unlink()
            left = [path.name for path in output.glob("model_*.pth")]
            if left != [f"model_{middle:07}.pth"]:
                raise RuntimeError(f"the run would be resumed from {preview(left)}")
    different = []
    for key in ("model", "ema"):
        for weight, value in final[0][key].items():
            if not torch.equal(value, final[1][key][weight]):
                different.append(f"{key}.{weight}")
    text = f"{len(final[0]['model'])} tensors and their averages; {not_deterministic(caught)}"
    return Result(text, error=f"these differ: {preview(different)}" if different else "")


def out_of_memory(workload: Workload) -> Result:
    """Train with too little memory, and then with enough in the same process."""
    limit = workload.memory * 2**20 / torch.cuda.mem_get_info()[1]
    with dataset(workload) as data:
        torch.cuda.set_per_process_memory_fraction(limit)
        try:
            train("quickstart", data, data.parent / "large", workload, *workload.large)
        except UserError as error:
            message = str(error)
        else:
            raise RuntimeError(f"everything fits into {workload.memory} MiB")
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        if "out of memory in iteration" not in message:
            raise RuntimeError(message)
        train("quickstart", data, data.parent / "small", workload, *workload.overrides)
    return Result(f"{message} -- and the process went on")


@contextlib.contextmanager
def dataset(workload: Workload) -> Iterator[Path]:
    """Yield synthetic data in a temporary folder, next to which a run may write."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        with contextlib.redirect_stdout(io.StringIO()):
            make_dataset(data, *workload.data)
        yield data


def train(
    name: str, data: Path, output: Path, workload: Workload, *overrides: str, resume: bool = False
) -> None:
    """Train a model of configs/ in deterministic mode, as train_net.py does."""
    arguments = ["--config-file", str(CONFIGS / f"{name}.py"), "--data", str(data)]
    options = dict(output_dir=output, device="cuda", deterministic=True, eval_period=0)
    options |= dict(log_period=1, max_iter=workload.iterations, pictures=0)
    arguments += [f"train.{key}={value}" for key, value in options.items()]
    arguments += [f"dataloader.{split}.num_workers=0" for split in ("train", "test")]
    args = argument_parser().parse_intermixed_args([*arguments, *overrides])
    with contextlib.redirect_stdout(io.StringIO()):  # its log, and tables of the evaluation
        do_train(configure(args), resume=resume)


def losses_of(output: Path) -> list[dict[str, float]]:
    """Return the losses of each iteration."""
    losses = []
    for line in (output / "metrics.json").read_text().splitlines():
        found = {name: value for name, value in json.loads(line).items() if "loss" in name}
        losses += [found] if found else []
    return losses


def not_deterministic(caught: list[warnings.WarningMessage]) -> str:
    """Name the operations that PyTorch has warned of."""
    messages = "\n".join(str(warning.message) for warning in caught)
    names = sorted(set(NOT_DETERMINISTIC.findall(messages)))
    return f"without a deterministic algorithm: {', '.join(names) or 'none'}"


def onnx_runtime(workload: Workload) -> Result:
    """Compare an exported classifier in ONNX Runtime on the GPU with PyTorch on the CPU."""
    if find_spec("onnxruntime") is None:
        return Result("not installed")
    import onnxruntime

    if f"{ONNX_DEVICE.upper()}ExecutionProvider" not in onnxruntime.get_available_providers():
        return Result("not installed")
    cfg = load_config(str(CONFIGS / "quickstart_classifier.py"))
    model = instantiate(cfg.model)
    fill_weights(model)
    image = torch.randint(0, 256, (64, 96, 3), dtype=torch.uint8).numpy()
    with tempfile.TemporaryDirectory() as folder:
        classes = [f"class {index}" for index in range(cfg.model.num_classes)]
        weights = {"model": model.state_dict(), "classes": classes}
        checkpoint.save(weights, f"{folder}/model.pth")
        predictor = gpvit.Predictor(cfg, f"{folder}/model.pth", "cpu", "float32")
        path = Path(folder) / "model.onnx"
        export.write(predictor, path, export.metadata(predictor))
        exported = gpvit.Predictor.from_checkpoint(path, ONNX_DEVICE)
        difference = (exported(image) - predictor(image)).abs().max().item()
    text = f"largest difference {difference:.1e}, at most {ONNX_DISTANCE:.0e} is allowed"
    return Result(text, error="" if difference <= ONNX_DISTANCE else text)


def speed(workload: Workload) -> Result:
    """Time the backbones in bfloat16, and compare them with the literal form and the limit."""
    start = time.monotonic()
    factor = torch.randn(workload.matrix, workload.matrix, device="cuda", dtype=torch.bfloat16)
    seconds = min(alternate({"product": lambda: torch.mm(factor, factor)}, 50)["product"])
    limit = 2 * workload.matrix**3 / seconds / 1e12
    rows, errors = [], []
    for name, task in tasks(workload):
        form = "compiled" if task.compile else "eager"
        image = "x".join(map(str, task.image))
        row = dict(model=LABELS[name].format(task.size), form=form, mode=task.mode, image=image)
        rows.append(row)
        if time.monotonic() - start > workload.seconds:
            row["note"] = "left out: no time"
            continue
        try:
            row |= measure(name, task, workload.runs)
        except torch.OutOfMemoryError:
            row["note"] = "out of memory with one image"
        except Exception as error:
            errors.append(describe(row))
            row["note"] = reason_of(error)
        else:
            row["of the limit"] = row["TFLOP/s"] / limit
    text = f"limit {limit:.3g} TFLOP/s (bfloat16, {workload.matrix}³). {goals(rows)}"
    return Result(text, rows, f"failed: {preview(errors)}" if errors else "")


def tasks(workload: Workload) -> Iterator[tuple[str, Task]]:
    """Yield the rows of the speed table, the most important first: a model's name and its task.

    The first size is compared with the other models, and compiled for the first image size.
    """
    size, image = workload.sizes[0], workload.images[0]
    variants = [("gpvit", size, image, False), ("gpvit", size, image, True)]
    variants += [("literal", size, image, False), ("swin", size, image, False)]
    for image in workload.images[1:]:
        variants += [(name, size, image, False) for name in LABELS]
    for size, image in itertools.product(workload.sizes[1:], workload.images):
        variants.append(("gpvit", size, image, False))
    for variant, (mode, images) in itertools.product(variants, workload.batches):
        name, size, image, is_compiled = variant
        yield name, Task(size, image, images, mode, "backbone", "bfloat16", is_compiled)


def measure(name: str, task: Task, runs: int) -> dict[str, float]:
    """Time the largest batch that fits: that of the task, or half, a quarter, ... of it."""
    while True:
        gc.collect()
        torch.cuda.empty_cache()
        torch.compiler.reset()
        try:
            return timed(name, task, runs)
        except torch.OutOfMemoryError:
            if task.images == 1:
                raise
        task = replace(task, images=task.images // 2)


def timed(name: str, task: Task, runs: int) -> dict[str, float]:
    """Time a step. Its peak includes weights and gradients, but there is no optimizer."""
    step = Step(name, task, "")
    for _ in range(2):  # warm-up, compilation
        step()
    memory_since_reset("cuda")
    seconds = statistics.median(alternate({name: step}, runs)[name])
    _, peak = memory_since_reset("cuda")
    passes = 3 if task.training else 1  # forward, and the gradients of both factors
    tflop = passes * task.images * forward_gflops(name, task.size, task.image) / 1e3
    rates = {"images/s": task.images / seconds, "TFLOP/s": tflop / seconds}
    return {"images": task.images, "ms": 1e3 * seconds, "peak MiB": peak, **rates}


@torch.no_grad()
def forward_gflops(name: str, size: str, image: tuple[int, int]) -> float:
    """Return the GFLOPs of one image, two for each multiply-accumulate."""
    model = build_backbone(name, size).eval().requires_grad_(False).to("meta")
    return analysis.count(model, torch.empty(1, 3, *image, device="meta"))


def goals(rows: list[dict[str, Any]]) -> str:
    """Add a column with the speed relative to the literal form, and say which goals are met."""
    literal = {}
    for row in rows:
        if row["model"].startswith("literal") and "ms" in row:
            literal[row["model"].split()[1], row["mode"], row["image"]] = row["images/s"]
    for row in rows:
        key = row["model"], row["mode"], row["image"]
        if "ms" in row and key in literal:
            row["times literal"] = row["images/s"] / literal[key]
    sentences = []
    for column, goal in GOALS.items():
        measured = [row for row in rows if row["model"] in gpvit.SIZES and column in row]
        missed = [f"{describe(row)} {row[column]:.2f}" for row in measured if row[column] < goal]
        state = f"met by all {len(measured)} rows" if measured else "not measured"
        if missed:
            state = f"missed by {len(missed)} of {len(measured)} rows: {', '.join(missed)}"
        sentences.append(f"Goal of {goal:g} {column}: {state}.")
    return " ".join(sentences)


def describe(row: dict[str, Any]) -> str:
    return " ".join(row[column] for column in ("model", "form", "mode", "image"))


CHECKS: dict[str, Callable[[Workload], Result]] = {
    "environment": environment,
    "tests": gpu_tests,
    "dtypes": dtypes,
    "attention": attention,
    "NCCL": data_parallel,
    "determinism": determinism,
    "compilation": compilation,
    "resume": resume,
    "out of memory": out_of_memory,
    "ONNX Runtime": onnx_runtime,
    "speed": speed,
}


if __name__ == "__main__":
    run_command(main)

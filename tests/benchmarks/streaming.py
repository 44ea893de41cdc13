"""Time, memory and deviation of the streamed backbone, over the area of the image.

# Square images of 4, 16 and 64 megapixels; one pass for those of at most 20:
python tests/benchmarks/streaming.py --net L1 --sides 2048 4096 8192 --one-pass 20 --plot area.svg

Each measurement is a process of its own. Memory is the peak of its anonymous memory (RssAnon),
without the maps on disk. It is compared with the formula in the docstring of
gpvit.streaming.stream. Needs Linux.
"""

from gpvit.utils.environment import prepare_command

if __name__ == "__main__":
    prepare_command()  # before PyTorch is imported

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpvit import SIZES, GPViT
from gpvit.cli.main import run_command
from gpvit.streaming import stream
from gpvit.streaming.backbone import TOKENS
from matplotlib.figure import Figure

sys.path.append(str(Path(__file__).resolve().parents[1]))
from process_memory import MIB, anonymous_bytes, peak_memory

NOISE = 512  # side in pixels of the pattern that images consist of


class Pattern:
    """A normalized image of any size that is computed where it is read: (1, 3, side, side)."""

    def __init__(self, side: int) -> None:
        self.shape = (1, 3, side, side)
        self.noise = np.random.default_rng(0).standard_normal((3, NOISE, NOISE), np.float32)

    def __getitem__(self, index: tuple[slice, ...]) -> torch.Tensor:
        rows, columns = (np.arange(part.start, part.stop) for part in index[2:])
        # Whole images are not periodic: the pattern becomes weaker to the right and to the bottom.
        strength = np.float32(1) / (1 + rows[:, None] / 4096 + columns / 4096).astype(np.float32)
        region = self.noise[:, (rows % NOISE)[:, None], columns % NOISE] * strength
        return torch.from_numpy(region[None])


def formula(channels: int, tokens: int) -> int:
    """The bytes that streaming adds, as stated by gpvit.streaming.stream."""
    return 8200 * tokens + 100 * channels**2 + 35_000_000


@torch.inference_mode()
def measure(size: str, side: int, way: str, tokens: int) -> dict[str, float]:
    """Measure one way in this process: "stream", "one pass", or "deviation" between the two."""
    torch.manual_seed(0)
    net, image = GPViT(**SIZES[size]).eval(), Pattern(side)
    before = anonymous_bytes()
    start = time.perf_counter()
    with peak_memory() as peak:
        if way != "one pass":
            streamed = stream(net, image, tokens=tokens)
        if way != "stream":
            whole = image[:, :, slice(0, side), slice(0, side)]
            expected = net(whole)["last_feat"].permute(0, 2, 3, 1)
    result = {"seconds": time.perf_counter() - start, "before": before, "peak": peak[0]}
    if way == "deviation":
        difference = expected.sub(streamed).norm() / expected.norm()
        result["deviation"] = difference.item()
    return result


def in_new_process(args: argparse.Namespace, side: int, way: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--net", args.net, "--tokens", str(args.tokens)]
    command += ["--sides", str(side), "--only", way]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    return json.loads(output)


def measure_all(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure all sizes and print a Markdown table."""
    channels = SIZES[args.net]["embed_dim"]
    print("| megapixels | time | one pass | ratio | memory | formula | one pass | deviation |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    rows = []
    for side in args.sides:
        megapixels = side**2 / 1e6
        row = {"megapixels": megapixels, "stream": in_new_process(args, side, "stream")}
        row["formula"] = row["stream"]["before"] + formula(channels, args.tokens)
        cells = [f"{row['stream']['seconds']:.1f} s", "", ""]
        memory = [f"{row['stream']['peak'] / MIB:.0f} MiB", f"{row['formula'] / MIB:.0f} MiB"]
        memory += ["", ""]
        if megapixels <= args.one_pass:
            row["one pass"] = one_pass = in_new_process(args, side, "one pass")
            row["deviation"] = in_new_process(args, side, "deviation")["deviation"]
            ratio = row["stream"]["seconds"] / one_pass["seconds"]
            cells[1:] = [f"{one_pass['seconds']:.1f} s", f"{ratio:.2f}"]
            memory[2:] = [f"{one_pass['peak'] / MIB:.0f} MiB", f"{row['deviation']:.1e}"]
        print("|", " | ".join([f"{megapixels:.1f}", *cells, *memory]), "|", flush=True)
        rows.append(row)
    return rows


def plot(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draw time, memory and deviation over the area."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    figure.suptitle(title)
    time_axes, memory_axes, deviation_axes = figure.subplots(1, 3)
    for axes, label in zip(
        figure.axes, ("time in s", "anonymous memory in MiB", "deviation (relative L2)")
    ):
        axes.set(xscale="log", yscale="log", xlabel="megapixels", ylabel=label)
        axes.grid(alpha=0.3)
    for way in ("stream", "one pass"):
        measured = [row for row in rows if way in row]
        areas = [row["megapixels"] for row in measured]
        time_axes.plot(areas, [row[way]["seconds"] for row in measured], "o-", label=way)
        memory_axes.plot(areas, [row[way]["peak"] / MIB for row in measured], "o-", label=way)
    areas = [row["megapixels"] for row in rows]
    memory_axes.plot(areas, [row["formula"] / MIB for row in rows], "k:", label="formula")
    compared = [row for row in rows if "deviation" in row]
    areas = [row["megapixels"] for row in compared]
    deviation_axes.plot(areas, [row["deviation"] for row in compared], "o-", label="measured")
    deviation_axes.axhline(1e-5, color="k", linestyle=":", label="limit")
    for axes in figure.axes:
        axes.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--net", choices=SIZES, default="L1")
    parser.add_argument(
        "--sides", type=int, nargs="+", default=[2048, 4096, 8192], help="of the images, in pixels"
    )
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of a region or strip")
    parser.add_argument(
        "--one-pass", type=float, default=20, help="largest area of one pass, in megapixels"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="plot to write")
    parser.add_argument("--json", type=Path, metavar="FILE", help="measurements to write")
    parser.add_argument(
        "--only", choices=["stream", "one pass", "deviation"], help=argparse.SUPPRESS
    )
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args.net, args.sides[0], args.only, args.tokens)))
        return
    rows = measure_all(args)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    if args.plot:
        threads = torch.get_num_threads()
        plot(rows, args.plot, f"GPViT-{args.net} streamed, {threads} threads, float32")


if __name__ == "__main__":
    run_command(main)

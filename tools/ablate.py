"""Train and compare the variants in tools/ablation/variants.yaml: GPViT without parts, and peers.

    python tools/ablate.py
    python tools/ablate.py --data nuclei=DIR

It takes about three hours on two CPU cores, and uses a GPU if there is one. Each variant is trained
with several seeds. After an interruption, the same command goes on: complete runs are kept. Without
--data, tables of other datasets than the synthetic one are left out. The output folder gets

    ablation.json  metrics, settings and time of every run, and the costs of every variant
    ablation.md    the tables: mean and standard deviation over the seeds
    ablation.svg   the first table as a plot
    runs/          log and metrics of every run
"""

from gpvit.utils.environment import is_spawned, prepare_command

if __name__ == "__main__" or is_spawned():
    prepare_command()  # before PyTorch is imported

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from ablation import summary
from ablation.costs import measure
from ablation.plan import REPOSITORY, SYNTHETIC, Plan, Run, Table, build_run, read_plan
from ablation.runner import Results, Runner
from gpvit.cli.main import run_command
from gpvit.cli.options import COUNT
from gpvit.data.datasets.synthetic import make_dataset
from gpvit.utils.errors import UserError
from gpvit.utils.files import atomic_write, lock_folder
from gpvit.utils.profiler import in_a_process

# oneDNN keeps what it compiled for each shape; with all models of a table, that is more than usual.
CACHE = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "8192"}


def main() -> None:
    args = parse_arguments()
    plan = read_plan(args.variants)
    args.output.mkdir(parents=True, exist_ok=True)
    with lock_folder(args.output):
        data = dict(args.data)
        if any(table.data == SYNTHETIC for table in plan.tables):
            data[SYNTHETIC] = args.output / "data"
            make_dataset(data[SYNTHETIC], plan.synthetic.train, plan.synthetic.val)
        results = Results(args.output / "ablation.json")
        tables = []
        for table in plan.tables:
            if table.data in data:
                tables.append(table)
            else:
                print(f"{table.title}: left out; give --data {table.data}=DIR")
        try:
            train(plan, tables, data, results, Runner(args.output / "runs", results, args.jobs))
            measure_costs(tables, data, results)
        finally:
            write_summary(plan, results, args.output)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        type=named_folder,
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="dataset that the variants file names (repeatable)",
    )
    parser.add_argument(
        "--variants",
        type=Path,
        default=REPOSITORY / "tools" / "ablation" / "variants.yaml",
        metavar="FILE",
        help="table of the variants (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=REPOSITORY / "output" / "ablation",
        metavar="DIR",
        help="output folder (default: %(default)s)",
    )
    parser.add_argument(
        "--jobs",
        type=COUNT,
        default=1 if torch.cuda.is_available() else os.cpu_count(),
        metavar="N",
        help="runs at a time (default: 1 with a GPU, else one per CPU core)",
    )
    return parser.parse_args()


def named_folder(text: str) -> tuple[str, Path]:
    """Parse --data."""
    name, equals, folder = text.partition("=")
    if not name or not equals or not Path(folder).exists():
        raise argparse.ArgumentTypeError(f"must be NAME=DIR with an existing DIR, got {text}")
    return name, Path(folder).resolve()


def train(
    plan: Plan, tables: Sequence[Table], data: Mapping[str, Path], results: Results, runner: Runner
) -> None:
    """Choose learning rates with the first seed, then train every variant with every seed."""
    first_seed = plan.seeds[0]
    runs = []
    for table in tables:
        for variant in table.variants:
            for rate in variant.learning_rates:
                runs.append(build_run(table, variant, rate, first_seed, data[table.data]))
    if runs:
        runner.train(runs, "learning rates")
    runs = []
    for seed in plan.seeds:
        for table in tables:
            for variant in table.variants:
                rate = results.best_rate(table, variant, first_seed)
                runs.append(build_run(table, variant, rate, seed, data[table.data]))
    runner.train(runs, "all variants and seeds")


def measure_costs(tables: Sequence[Table], data: Mapping[str, Path], results: Results) -> None:
    """Measure the costs of the variants of each table, unless they are known."""
    for table in tables:
        runs: list[Run] = []
        for variant in table.variants:
            runs.append(build_run(table, variant, None, 0, data[table.data]))
        digests = {run.variant: run.digest() for run in runs}
        known = results.costs.get(table.title, {})
        if {name: cost["digest"] for name, cost in known.items()} == digests:
            continue
        print(f"{table.title}: measuring the time of an iteration", flush=True)
        costs = in_a_process(measure, runs, environment=CACHE)
        for name, digest in digests.items():
            costs[name]["digest"] = digest
        results.costs[table.title] = costs
        results.save()


def write_summary(plan: Plan, results: Results, output: Path) -> None:
    """Write the tables and the plot of all results."""
    with atomic_write(output / "ablation.md") as path:
        path.write_text(summary.markdown(plan, results), encoding="utf-8")
    with atomic_write(output / "ablation.svg") as path:
        summary.save_plot(plan.tables[0], plan.seeds, results, path)
    print(f"tables and plot are in {output}")


def run() -> None:
    try:
        main()
    except FileExistsError as error:
        raise UserError(str(error)) from None
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to go on")
        raise


if __name__ == "__main__":
    run_command(run)

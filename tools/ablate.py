"""Train and compare the variants in tools/ablation/variants.yaml: GPViT without parts, and peers.

    python tools/ablate.py
    python tools/ablate.py --data nuclei=DIR

It takes about three hours on two CPU cores, and uses a GPU if there is one. Each variant is trained
with several seeds. After an interruption, the same command resumes: complete runs are kept. Without
--data, tables of other datasets than the synthetic one are left out. The output folder gets

    ablation.json  metrics, time and machine of every run, and the costs of every variant
    ablation.md    the tables: mean and standard deviation over the seeds
    ablation.svg   the first table as a plot
    runs/          config, log and metrics of every run
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
from ablation.plan import REPOSITORY, SYNTHETIC, Plan, Table, build_run, read_plan
from ablation.runner import Results, Runner
from gpvit.cli.main import run_command
from gpvit.cli.options import COUNT
from gpvit.data.datasets.synthetic import make_dataset
from gpvit.engine.launch import available_cores
from gpvit.utils.errors import UserError, reason_of
from gpvit.utils.files import atomic_write, lock_folder
from gpvit.utils.profiler import in_a_process

# oneDNN keeps what it compiled for each shape; with all models of a table, that is more than usual.
CACHE = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "8192"}


def main() -> None:
    args = parse_arguments()
    plan = read_plan(args.variants)
    with lock_folder(args.output, "--output"):
        data = find_data(plan, dict(args.data), args.output / "data")
        tables = []
        for table in plan.tables:
            if table.data in data:
                tables.append(table)
            else:
                print(f"{table.title}: left out; give --data {table.data}=DIR")
        if not tables:
            raise UserError("no table is left")
        digests = {}
        for table in tables:
            for variant in table.variants:
                run = build_run(table, variant, None, 0, data[table.data])
                digests[table.title, variant.name] = run.digest()
        results = Results(args.output / "ablation.json", digests)
        runner = Runner(args.output / "runs", results, args.jobs)
        try:
            run_plan(plan, tables, data, runner, args.output)
        except KeyboardInterrupt:
            print("interrupted; run the same command again to resume")
            raise
    if runner.failures:
        first = next(iter(runner.failures.values()))
        number = len(runner.failures)
        raise UserError(f"{number} failures; the first one: " * (number > 1) + first)


def find_data(plan: Plan, data: dict[str, Path], synthetic: Path) -> dict[str, Path]:
    """Return the folders of the datasets, the synthetic one created if it does not exist."""
    for name in sorted(data.keys() - {table.data for table in plan.tables}):
        raise UserError(f"--data {name}={data[name]}: no table has data of this name")
    if any(table.data == SYNTHETIC for table in plan.tables) and SYNTHETIC not in data:
        try:
            make_dataset(synthetic, plan.synthetic.train, plan.synthetic.val)
        except FileExistsError:
            raise UserError(
                f"{synthetic} does not have {plan.synthetic.train} training and "
                f"{plan.synthetic.val} validation images: remove it, or set another --output"
            ) from None
        return data | {SYNTHETIC: synthetic}
    return data


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
        default=1 if torch.cuda.is_available() else available_cores(),
        metavar="N",
        help="runs at a time (default: 1 with a GPU, else one per CPU core)",
    )
    return parser.parse_args()


def named_folder(text: str) -> tuple[str, Path]:
    """Parse --data."""
    name, _, folder = text.partition("=")
    if not name or not folder or not os.path.exists(folder):
        raise argparse.ArgumentTypeError(f"must be NAME=DIR with an existing DIR, got {text}")
    return name, Path(folder).resolve()


def run_plan(
    plan: Plan, tables: Sequence[Table], data: Mapping[str, Path], runner: Runner, output: Path
) -> None:
    """Train and measure what is not complete, and write the summary of what is."""
    try:
        train_variants(plan, tables, data, runner)
        measure_costs(tables, data, runner)
    finally:
        write_summary(plan, runner.results, output)


def train_variants(
    plan: Plan, tables: Sequence[Table], data: Mapping[str, Path], runner: Runner
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
                if not runner.results.has_all_rates(table, variant, first_seed):
                    continue  # one of those runs failed
                rate = runner.results.best_rate(table, variant, first_seed)
                runs.append(build_run(table, variant, rate, seed, data[table.data]))
                rates = variant.learning_rates
                if seed == first_seed and len(rates) > 1 and rate in (min(rates), max(rates)):
                    end = "smallest" if rate == min(rates) else "largest"
                    print(
                        f"{table.title}, {variant.name}: the best learning rate, {rate}, is the "
                        f"{end} one tried"
                    )
    runner.train(runs, "all variants and seeds")


def measure_costs(tables: Sequence[Table], data: Mapping[str, Path], runner: Runner) -> None:
    """Measure the costs of the trained variants of each table, unless they are known."""
    results = runner.results
    trained = {key[:2] for key in results.runs}
    environment = CACHE | {"OMP_NUM_THREADS": str(runner.threads)}
    for table in tables:
        variants = [item for item in table.variants if (table.title, item.name) in trained]
        if all(results.costs_of(table, variant) for variant in variants):
            continue
        runs = [build_run(table, variant, None, 0, data[table.data]) for variant in variants]
        print(f"{table.title}: measuring the time of an iteration", flush=True)
        try:
            costs = in_a_process(measure, runs, environment=environment)
        except Exception as error:  # such as too little memory
            message = f"{table.title}: the costs cannot be measured: {reason_of(error)}"
            runner.failures[table.title,] = message
            print(f"failed: {message}", flush=True)
            continue
        for variant, cost in costs.items():
            cost["digest"] = results.digests[table.title, variant]
        results.costs[table.title] = costs
        results.save()


def write_summary(plan: Plan, results: Results, output: Path) -> None:
    """Write the tables and the plot of all results."""
    with atomic_write(output / "ablation.md") as path:
        path.write_text(summary.markdown(plan, results), encoding="utf-8")
    with atomic_write(output / "ablation.svg") as path:
        summary.save_plot(plan.tables[0], plan.seeds, results, path)
    print(f"tables and plot are in {output}")


if __name__ == "__main__":
    run_command(main)

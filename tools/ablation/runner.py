"""Training runs in processes, and the file of their results."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from statistics import mean
from typing import Any

from ablation.plan import REPOSITORY, Run, Table, Variant
from gpvit.config.values import hydra_text
from gpvit.engine.launch import available_cores
from gpvit.evaluation.metrics import TASKS
from gpvit.utils.errors import UserError, reason_of
from gpvit.utils.events import is_number, read_evaluation
from gpvit.utils.files import atomic_write, truncate_name
from gpvit.utils.profiler import machine
from gpvit.utils.signals import stop_signals_to
from gpvit.utils.text import one_line

KEY = ("table", "variant", "learning_rate", "seed")
COSTS = ("parameters", "gflops", "seconds")
TRAIN = REPOSITORY / "train_net.py"


class Results:
    """``ablation.json``: {"runs": [...], "costs": {table: {variant: {...}}}}.

    A run has the values of :data:`KEY`, the "digest" of its variant, "metrics", "seconds" (of its
    last start, if it was interrupted) and the "machine". Only runs and costs of the current
    variants are used; runs of earlier ones remain in the file.

    Args:
        path: of the file.
        digests: of the current variants, by table and variant; by default those of the runs in the
            file.
    """

    def __init__(self, path: Path, digests: Mapping[tuple[str, str], str] | None = None) -> None:
        self.path = path
        self.lock = threading.Lock()
        self.runs: dict[tuple, dict[str, Any]] = {}
        self.earlier_runs: list[dict[str, Any]] = []
        self.costs: dict[str, dict[str, Any]] = {}
        self.digests = dict(digests or {})
        if not path.exists():
            return
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            self.costs = content["costs"]
            for costs in self.costs.values():
                for cost in costs.values():
                    cost["digest"]
                    _check_numbers(cost[name] for name in COSTS)
            for run in content["runs"]:
                key = tuple(run[name] for name in KEY)
                _check_numbers(run["metrics"].values())
                if digests is None:
                    self.digests[key[:2]] = run["digest"]
                if run["digest"] == self.digests.get(key[:2]):
                    self.runs[key] = run
                else:
                    self.earlier_runs.append(run)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{path} cannot be read ({reason_of(error, 200)}): move it away to train all "
                "variants again"
            ) from None

    def has_all_rates(self, table: Table, variant: Variant, seed: int) -> bool:
        """Return whether all learning rates that a variant chooses from have results."""
        source = variant if variant.learning_rates else table.variants[0]
        keys = [(table.title, source.name, rate, seed) for rate in source.learning_rates]
        return all(key in self.runs for key in keys)

    def best_rate(self, table: Table, variant: Variant, seed: int) -> float | None:
        """Return the best learning rate of a variant; None for that of its config."""
        source = variant if variant.learning_rates else table.variants[0]
        values = {}
        for rate in source.learning_rates:
            metrics = self.runs[table.title, source.name, rate, seed]["metrics"]
            values[rate] = metrics.get(table.best_by, -1.0)
        return max(values, key=values.__getitem__) if values else None

    def of_variant(
        self, table: Table, variant: Variant, seeds: Sequence[int]
    ) -> list[dict[str, Any]]:
        """Return the runs of a variant with its best learning rate, once that is known."""
        if not self.has_all_rates(table, variant, seeds[0]):
            return []
        rate = self.best_rate(table, variant, seeds[0])
        keys = [(table.title, variant.name, rate, seed) for seed in seeds]
        return [self.runs[key] for key in keys if key in self.runs]

    def costs_of(self, table: Table, variant: Variant) -> dict[str, Any] | None:
        """Return the costs of a variant, None if they are unknown."""
        costs = self.costs.get(table.title, {}).get(variant.name)
        is_current = costs and costs["digest"] == self.digests.get((table.title, variant.name))
        return costs if is_current else None

    def add(self, run: Run, **values: Any) -> None:
        with self.lock:
            digest = self.digests[run.table, run.variant]
            self.runs[run.key] = dict(zip(KEY, run.key)) | {"digest": digest} | values
            self.save()

    def save(self) -> None:
        content = {"costs": self.costs, "runs": [*self.runs.values(), *self.earlier_runs]}
        with atomic_write(self.path) as partial:
            partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _check_numbers(values: Iterable[Any]) -> None:
    for value in values:
        if not is_number(value):
            raise ValueError(f"{value} is not a number")


class Runner:
    """Trains what is not complete, several runs at a time.

    Args:
        folder: for the output folders of the runs.
        results: gets the results of each run as soon as it is complete.
        jobs: number of runs at a time.

    Attributes:
        failures: message of each run that failed.
    """

    def __init__(self, folder: Path, results: Results, jobs: int) -> None:
        self.folder = folder
        self.results = results
        self.jobs = jobs
        self.threads = max(available_cores() // jobs, 1)
        self.machine = machine() | {"threads": self.threads}
        self.failures: dict[tuple, str] = {}
        self.processes: set[subprocess.Popen] = set()
        self.lock = threading.RLock()  # `stop` may interrupt itself
        self.is_stopped = False

    def train(self, runs: Sequence[Run], heading: str) -> None:
        """Train those of the runs that have no results and did not fail before.

        Raises:
            KeyboardInterrupt: after a signal, when all runs have saved their state.
        """
        to_do = []
        for run in runs:
            if run.key not in self.results.runs and run.key not in self.failures:
                to_do.append(run)
        done = sum(run.key in self.results.runs for run in runs)
        print(f"{heading}: {len(runs)} runs, {done} of them are complete", flush=True)
        minutes: list[float] = []
        # A closed terminal does not reach the runs either, see `train_one`. nohup ignores it.
        hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
        with stop_signals_to(self.stop, *hangup), ThreadPoolExecutor(self.jobs) as pool:
            try:
                futures = {pool.submit(self.train_one, run): run for run in to_do}
                for finished, future in enumerate(as_completed(futures), 1):
                    run = futures[future]
                    try:
                        seconds = future.result()
                    except UserError as error:
                        self.failures[run.key] = str(error)
                        print(f"failed: {error}", flush=True)
                        continue
                    if seconds is None:  # stopped
                        continue
                    minutes.append(seconds / 60)
                    number = done + len(minutes)
                    left = mean(minutes) * (len(to_do) - finished) / self.jobs
                    print(
                        f"[{number}/{len(runs)}] {run}: {minutes[-1]:.1f} min; {left:.0f} min left",
                        flush=True,
                    )
            except BaseException:
                self.stop()  # otherwise, leaving the pool would wait for all runs
                raise
        if self.is_stopped:
            raise KeyboardInterrupt

    def stop(self, number: int = signal.SIGTERM, frame: object = None) -> None:
        """Let the running processes save their state and end; kill them at a second Ctrl-C."""
        with self.lock:
            # Set first: a signal that interrupts this method must not stop the runs again.
            is_repeated, self.is_stopped = self.is_stopped, True
            if not is_repeated:
                self._send(signal.SIGTERM)
            elif number == signal.SIGINT:
                self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        for process in self.processes:
            process.send_signal(number)

    def train_one(self, run: Run) -> float | None:
        """Train and evaluate one run; return its seconds, or None if it was stopped.

        Raises:
            UserError: the run failed.
        """
        digest = self.results.digests[run.table, run.variant]
        output = self.folder / folder_name(run, digest)
        log = output / "output.txt"
        command = [sys.executable, str(TRAIN), *run.arguments]
        command += ["--resume", f"train.output_dir={hydra_text(str(output))}"]
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads)}
        start = time.monotonic()
        with self.lock:
            if self.is_stopped:
                return None
            output.mkdir(parents=True, exist_ok=True)
            with log.open("a") as file:
                # A session of its own: Ctrl-C in a terminal reaches only this process.
                process = subprocess.Popen(
                    command, stdout=file, stderr=file, env=environment, start_new_session=True
                )
            self.processes.add(process)
        code = process.wait()
        with self.lock:
            self.processes.discard(process)
        if self.is_stopped:
            return None
        if code:
            lines = log.read_text(errors="replace").splitlines() or [""]
            raise UserError(
                f"{run} ended with exit code {code}: {one_line(lines[-1], 300)}; see {log}"
            )
        seconds = time.monotonic() - start
        with self.lock:  # loading a config is not thread-safe
            is_changed = run.digest() != digest
        if is_changed:
            raise UserError(f"{run}: its config changed during the run; run the same command again")
        metrics = read_metrics(output / "evaluation.json")
        self.results.add(run, metrics=metrics, seconds=round(seconds), machine=self.machine)
        for checkpoint in output.glob("*.pth"):
            checkpoint.unlink()
        return seconds


def folder_name(run: Run, digest: str) -> str:
    """Return a name that says which run it is, and is unique."""
    name = re.sub(r"[^\w.-]+", "_", f"{run.table}-{run.variant}-{run.learning_rate}").lower()
    unique = hashlib.sha256(repr((run.key, digest)).encode()).hexdigest()[:12]
    return f"{truncate_name(name)}-seed{run.seed}-{unique}"


def read_metrics(path: Path) -> dict[str, float]:
    """Return the metrics in the ``evaluation.json`` of a run, without those of single classes.

    Raises:
        UserError: it has none.
    """
    metrics = {}
    for task, values in read_evaluation(path).get("results", {}).items():
        for name, value in values.items():
            if task in TASKS and name in TASKS[task].metrics and is_number(value):
                metrics[f"{task}/{name}"] = round(value, 3)
    if not metrics:
        raise UserError(f"{path} has no metrics")
    return metrics

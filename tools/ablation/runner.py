"""Training runs in processes, and the file of their results."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from ablation.plan import REPOSITORY, Run, Table, Variant
from gpvit.evaluation.metrics import TASKS
from gpvit.utils.errors import UserError
from gpvit.utils.events import is_number, read_evaluation
from gpvit.utils.files import atomic_write
from gpvit.utils.profiler import machine
from gpvit.utils.signals import stop_signals_to
from gpvit.utils.text import one_line

KEY = ("table", "variant", "learning_rate", "seed")
TRAIN = REPOSITORY / "train_net.py"


class Results:
    """``ablation.json``: {"runs": [...], "costs": {table: {variant: {...}}}}.

    A run has the values of :data:`KEY`, "digest" (see :meth:`.Run.digest`), "metrics", "seconds"
    (of its last start, if it was interrupted) and "threads" (None on a GPU).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.Lock()
        self.runs: dict[tuple, dict[str, Any]] = {}
        self.costs: dict[str, dict[str, Any]] = {}
        if not path.exists():
            return
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            self.costs = content["costs"]
            for run in content["runs"]:
                self.runs[tuple(run[key] for key in KEY)] = run
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            reason = one_line(f"{type(error).__name__}: {error}", 200)
            raise UserError(f"{path} cannot be read ({reason}): remove it") from None

    def of(self, run: Run) -> dict[str, Any] | None:
        return self.runs.get(run.key)

    def best_rate(self, table: Table, variant: Variant, seed: int) -> float | None:
        """Return the best learning rate of a variant; None for that of its config."""
        if not variant.learning_rates:
            reference = table.variants[0]
            return self.best_rate(table, reference, seed) if reference.learning_rates else None
        values = {}
        for rate in variant.learning_rates:
            run = self.runs.get((table.title, variant.name, rate, seed))
            values[rate] = run["metrics"].get(table.best_by, -1.0) if run else -1.0
        return max(values, key=values.__getitem__)

    def of_variant(
        self, table: Table, variant: Variant, seeds: Sequence[int]
    ) -> list[dict[str, Any]]:
        """Return the runs of a variant with its best learning rate."""
        rate = self.best_rate(table, variant, seeds[0])
        keys = [(table.title, variant.name, rate, seed) for seed in seeds]
        return [self.runs[key] for key in keys if key in self.runs]

    def add(self, run: Run, **values: Any) -> None:
        with self.lock:
            self.runs[run.key] = dict(zip(KEY, run.key)) | values
            self.save()

    def save(self) -> None:
        facts = machine()
        facts.pop("threads")
        content = {"machine": facts, "costs": self.costs, "runs": list(self.runs.values())}
        with atomic_write(self.path) as partial:
            partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


class Runner:
    """Trains what is not complete, several runs at a time.

    Args:
        folder: for the output folders of the runs.
        results: gets the results of each run as soon as it is complete.
        jobs: number of runs at a time.
    """

    def __init__(self, folder: Path, results: Results, jobs: int) -> None:
        self.folder = folder
        self.results = results
        self.jobs = jobs
        self.threads = max((os.cpu_count() or 1) // jobs, 1)
        self.processes: set[subprocess.Popen] = set()
        self.lock = threading.RLock()  # `stop` may interrupt itself
        self.is_stopped = False

    def train(self, runs: Sequence[Run], heading: str) -> None:
        """Train those of the runs that have no results.

        Raises:
            UserError: a run failed. The others were stopped.
            KeyboardInterrupt: after a signal, when all runs have saved their state.
        """
        to_do = []
        for run in runs:
            digest, known = run.digest(), self.results.of(run)
            if known is None or known["digest"] != digest:
                to_do.append((run, digest))
        done = len(runs) - len(to_do)
        print(f"{heading}: {len(runs)} runs, {done} of them are complete", flush=True)
        minutes: list[float] = []
        with stop_signals_to(self.stop), ThreadPoolExecutor(self.jobs) as pool:
            futures = [pool.submit(self.train_one, run, digest) for run, digest in to_do]
            for (run, _), future in zip(to_do, futures):
                try:
                    seconds = future.result()
                except BaseException:
                    self.stop()
                    raise
                if seconds is None:
                    raise KeyboardInterrupt
                minutes.append(seconds / 60)
                number = done + len(minutes)
                left = mean(minutes) * (len(runs) - number) / self.jobs
                print(
                    f"[{number}/{len(runs)}] {run}: {minutes[-1]:.1f} min; {left:.0f} min left",
                    flush=True,
                )

    def stop(self, *_: object) -> None:
        """Let the running processes save their state and end; at the second call, kill them."""
        with self.lock:
            number = signal.SIGKILL if self.is_stopped else signal.SIGTERM
            self.is_stopped = True
            for process in self.processes:
                process.send_signal(number)

    def train_one(self, run: Run, digest: str) -> float | None:
        """Train and evaluate one run; return its seconds, or None if it was stopped."""
        name = re.sub(r"[^\w.-]+", "_", f"{run.table}-{run.variant}-{run.learning_rate}").lower()
        output = self.folder / f"{name}-seed{run.seed}-{digest}"
        log = output / "output.txt"
        command = [sys.executable, str(TRAIN), *run.arguments]
        command += ["--resume", f"train.output_dir={output}"]
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
        threads = None if torch.cuda.is_available() else self.threads
        self.results.add(
            run,
            digest=digest,
            metrics=read_results(output),
            seconds=round(seconds),
            threads=threads,
        )
        for checkpoint in output.glob("*.pth"):
            checkpoint.unlink()
        return seconds


def read_results(output: Path) -> dict[str, float]:
    """Return the metrics in the evaluation.json of a run, without those of single classes."""
    metrics = {}
    for task, values in read_evaluation(output / "evaluation.json")["results"].items():
        for name, value in values.items():
            if name in TASKS[task].metrics and is_number(value):
                metrics[f"{task}/{name}"] = round(value, 3)
    return metrics

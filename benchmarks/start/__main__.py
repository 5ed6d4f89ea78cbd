"""How soon a run takes its first step, and its next one after a worker was killed, beside an empty function."""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.start.program import Program, ProgramError

EPILOG = """
`start` counts from the command (`python -m orchestrator run jobs/pretrain_digits.yaml`, on a Ray of its own) until all
workers have taken their first step. `restart` counts from a SIGKILL to one worker until all workers have taken a step
again. Beside each: a TorchTrainer (gloo, as many workers) whose function does nothing, from its command until all
workers have entered it, and from a SIGKILL until they have entered it again. Job and empty function take turns. The
set is packed, the MLflow database is there, and one start of each comes first that is not counted.

The table says where the seconds of a start go, by the slowest worker. The last line is JSON: for each number of workers
`start` and `restart` with `job_s`, `empty_s` (medians), `ratio`, and all values; `phases` of both.
"""

SETTLE_SECONDS = 3.0  # until Ray Train's controller has polled the group: a worker that dies earlier may end it
PHASES = {  # stamp -> what has been done when it is written
    "ray.init": "driver: imports and checks",
    "ray.init done": "Ray: the cluster",
    "fit": "driver: Ray Train",
    "worker": "controller, and the workers' processes",
    "group done": "process group, with the import of torch",
    "function": "imports of the function",
    "data done": "data: index and order",
    "engine done": "model and engine",
    "restore done": "checkpoint",
    "step done": "first step",
}


def job_words(folder: str) -> list[str]:
    """The digits job with everything of its own in a folder."""
    keys = {
        "name": f"run{time.time_ns()}",
        "schedule.length.steps": 100_000,
        "checkpoint.url": folder,
        "checkpoint.every.steps": 20,
        "evaluate.every.steps": 100_000,
        "tracking.uri": f"sqlite:///{folder}/mlflow.db",
        "data.pack.to": f"{folder}/digits",
        "data.train.url": f"{folder}/digits/train",
        "data.eval.test.url": f"{folder}/digits/test",
    }
    return [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]


def measure_job(folder: str, workers: int) -> dict[str, Any]:
    """One start and one restart of the job."""
    words = ["run", "jobs/pretrain_digits.yaml", *job_words(folder), "--set", f"cluster.workers={workers}"]
    name = words[words.index("--set") + 1].partition("=")[2]
    with Program("orchestrator", words) as program:
        first = program.wait("step done", workers)
        phases = phases_of(program, workers)
        while not list(Path(folder).glob(f"{name}/step-*/manifest.json")):
            time.sleep(0.05)
        killed = program.kill_worker()
        again = program.wait("step done", workers, after=killed)
    return {"start": first[-1].time - program.began, "restart": again[-1].time - killed, "phases": phases}


def measure_empty(folder: str, workers: int) -> dict[str, Any]:
    """One start and one restart of the empty function."""
    with Program("benchmarks.start.empty", [f"{folder}/empty{time.time_ns()}", str(workers)]) as program:
        first = program.wait("function", workers)
        phases = phases_of(program, workers)
        time.sleep(SETTLE_SECONDS)
        killed = program.kill_worker()
        again = program.wait("function", workers, after=killed)
    return {"start": first[-1].time - program.began, "restart": again[-1].time - killed, "phases": phases}


def phases_of(program: Program, workers: int) -> dict[str, float]:
    """Seconds of each phase of the first start; those that did not happen are left out."""
    before, found = program.began, {}
    for name, phase in PHASES.items():
        stamps = program.stamps_of(name)[:workers]
        if stamps:
            now = max(before, stamps[-1].time)
            found[phase] = now - before
            before = now
    return found


def report(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians, ratios and all values of both."""
    found: dict[str, Any] = {}
    for what in ("start", "restart"):
        values = {name: [round(run[what], 2) for run in measured] for name, measured in runs.items()}
        job, empty = (statistics.median(values[name]) for name in ("job", "empty"))
        found[what] = {"job_s": job, "empty_s": empty, "ratio": round(job / empty, 3), **values}
    found["phases"] = {
        name: {
            phase: round(statistics.median(run["phases"][phase] for run in measured if phase in run["phases"]), 2)
            for phase in PHASES.values()
            if any(phase in run["phases"] for run in measured)
        }
        for name, measured in runs.items()
    }
    return found


def print_table(workers: int, found: dict[str, Any]) -> None:
    """What people read."""
    print(f"\n{workers} worker{'s' if workers > 1 else ''}: seconds, medians")
    print(f"{'':<44}{'job':>8}{'empty':>8}{'ratio':>8}")
    for what in ("start", "restart"):
        row = found[what]
        print(f"{what:<44}{row['job_s']:8.2f}{row['empty_s']:8.2f}{row['ratio']:8.2f}")
    for phase in PHASES.values():
        cells = [found["phases"][name].get(phase) for name in ("job", "empty")]
        if any(cell is not None for cell in cells):
            print(f"  {phase:<42}" + "".join(f"{'' if cell is None else format(cell, '.2f'):>8}" for cell in cells))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table and, last, one JSON line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.start",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repeats", type=int, default=5, help="starts and restarts of each (default: 5)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], metavar="N", help="(default: 1 2)")
    parser.add_argument("--quick", action="store_true", help="shows that it works: one start each, with one worker")
    options = parser.parse_args(arguments)
    if options.quick:
        options.repeats, options.workers = 1, [1]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="benchmark-start-", ignore_cleanup_errors=True) as folder:
        for workers in options.workers:
            runs: dict[str, list[dict[str, Any]]] = {"job": [], "empty": []}
            for turn in range(options.repeats + (not options.quick)):
                for name, measure in (("empty", measure_empty), ("job", measure_job)):
                    try:
                        run = measure(folder, workers)
                    except ProgramError as error:
                        print(f"error: {name}: {error}", file=sys.stderr)
                        return 1
                    line = f"start {run['start']:.2f} s, restart {run['restart']:.2f} s"
                    print(f"{workers} workers, turn {turn}: {name}: {line}", file=sys.stderr, flush=True)
                    runs[name].append(run)
            if not options.quick:
                runs = {name: measured[1:] for name, measured in runs.items()}  # the first had a cold cache
            results[str(workers)] = report(runs)
            print_table(workers, results[str(workers)])
    print(json.dumps({"repeats": options.repeats, "workers": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Starts one job in two terminals at the same moment, many times, and counts who trains and who says so.

Each command is whole: it has a process and a private Ray of its own, and both write into one run's folder, on the
local disk or in a bucket (an emulator of Google Cloud Storage, and one of S3).
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from data import storage
from infra.local.stores import gcs_server, reached_by, s3_server

EPILOG = """
A pair counts as good if one command trains to the end (exit code 0) and the other ends with exit code 2 and a line that
names the first by its process; and if the run has one identity, every step once in the ledger and in MLflow, one run in
MLflow, and one complete checkpoint of the last step.

Exit code 1: a pair was not good. Its output is printed.
"""
ROOT = Path(__file__).resolve().parents[2]
JOB = "jobs/pretrain_digits.yaml"
PLACES = ("disk", "gs", "s3")
APART = 0.3
"""Seconds between the two starts, at most. A random part of it is waited, so that different moments meet."""


@dataclass(frozen=True)
class Ended:
    """A command that has ended.

    Attributes:
        pid: of its process.
        code: its exit code.
        output: what it printed on both streams.
    """

    pid: int
    code: int
    output: str


@dataclass(frozen=True)
class Traces:
    """What a pair left behind.

    Attributes:
        identities: number of `run.json` files, plus one for each other identity that a checkpoint names.
        ledger, points: how often each step of the run was recorded.
        tracked: number of runs in MLflow.
        final: number of complete checkpoints of the last step.
    """

    identities: int
    ledger: Counter[int]
    points: Counter[int]
    tracked: int
    final: int


def verdict(pair: Sequence[Ended], traces: Traces, steps: int) -> str:
    """Why a pair is not good, in one line; empty if it is."""
    if sorted(each.code for each in pair) != [0, 2]:
        return f"exit codes {' and '.join(str(each.code) for each in pair)}, not 0 and 2"
    trained, other = sorted(pair, key=lambda each: each.code)
    errors = [line for line in other.output.splitlines() if "trains this run; stop that command first" in line]
    if not any(f"(process {trained.pid}," in line for line in errors):
        return f"the command that left does not name process {trained.pid} as the owner"
    once = Counter(range(steps))
    found = {
        "identities": (traces.identities, 1),
        "runs in MLflow": (traces.tracked, 1),
        "checkpoints of the last step": (traces.final, 1),
        "steps in the ledger more or less than once": (len(_unlike(traces.ledger, once)), 0),
        "points in MLflow more or less than once": (len(_unlike(traces.points, once)), 0),
    }
    return "; ".join(f"{count} {what}, not {wanted}" for what, (count, wanted) in found.items() if count != wanted)


def _unlike(one: Counter[int], other: Counter[int]) -> set[int]:
    return {step for step in one | other if one[step] != other[step]}


def run_pair(folder: Path, name: str, url: str, options: argparse.Namespace, pause: float) -> str:
    """Starts the job twice, `pause` seconds apart, and waits for both. Returns why the pair is not good."""
    words = [sys.executable, "-m", "orchestrator", "run", JOB]
    for key, value in settings(folder, name, url, options.steps).items():
        words += ["--set", f"{key}={value}"]
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    commands, paths = [], [folder / f"{name}-{number}.log" for number in (1, 2)]
    try:
        for path in paths:
            with path.open("w") as log:
                commands.append(
                    subprocess.Popen(
                        words, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                        start_new_session=True,
                    )
                )  # fmt: skip
            time.sleep(pause)
        deadline = time.monotonic() + options.patience
        for command in commands:
            with suppress(subprocess.TimeoutExpired):
                command.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for command in commands:
            end(command)
    pair = [Ended(each.pid, each.returncode, path.read_text()) for each, path in zip(commands, paths, strict=True)]
    reason = verdict(pair, traces_of(f"{url}/{name}", folder, name, options.steps), options.steps)
    return f"{reason}\n{pair[0].output}\n{pair[1].output}" if reason else ""


def end(command: "subprocess.Popen[bytes]") -> None:
    """Kills a command that has not ended, with its Ray."""
    if command.poll() is None:
        for process in psutil.Process(command.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        command.kill()
        command.wait()


def settings(folder: Path, name: str, url: str, steps: int) -> dict[str, Any]:
    """Changes of the digits job: one worker, a point and a ledger entry a step, one checkpoint at the end.

    Both commands of a pair pack the images, too.
    """
    digits = f"{folder}/digits/{name}"
    return {
        "name": name,
        "model.depth": 2,
        "cluster.workers": 1,
        "schedule.length.steps": steps,
        "schedule.warmup.steps": 5,
        "evaluate.every.steps": steps,
        "checkpoint.url": url,
        "checkpoint.every.steps": steps,
        "data.pack.to": digits,
        "data.train.url": f"{digits}/train",
        "data.eval.test.url": f"{digits}/test",
        "tracking.uri": f"sqlite:///{folder}/mlflow.db",
        "tracking.every.steps": 1,
        "tracking.record_samples": "true",
    }


def traces_of(run: str, folder: Path, name: str, steps: int) -> Traces:
    """What is in the run's folder, and under its name in MLflow."""
    from mlflow import MlflowClient

    names = storage.contents(run)
    complete = [
        each for each in names if each.startswith("step-") and "manifest.json" in storage.contents(f"{run}/{each}")
    ]
    owners = {json.loads(storage.read(f"{run}/{each}/owner.json"))["run"] for each in complete}
    identity = {json.loads(storage.read(f"{run}/run.json"))["id"]} if "run.json" in names else set()
    ledger: Counter[int] = Counter()
    for file in storage.contents(f"{run}/samples") if "samples" in names else []:
        ledger.update(int(step) for step in json.loads(storage.read(f"{run}/samples/{file}"))["steps"])
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("vit")
    where = f"attributes.run_name = '{name}'"
    runs = client.search_runs([experiment.experiment_id], filter_string=where) if experiment else []
    points = Counter(p.step - 1 for run in runs for p in client.get_metric_history(run.info.run_id, "train/loss"))
    final = sum(each.startswith(f"step-{steps:09d}") for each in complete)
    return Traces(len(identity | owners), ledger, points, len(runs), final)


@contextmanager
def places(folder: Path, wanted: Sequence[str]) -> Iterator[dict[str, str]]:
    """The URL under which the runs of each place lie; its servers run inside the block."""
    urls = {}
    with ExitStack() as stack:
        if "disk" in wanted:
            urls["disk"] = f"{folder}/disk/runs"
        if "gs" in wanted:
            urls["gs"] = f"{stack.enter_context(reached_by(stack.enter_context(gcs_server())))}/runs"
        if "s3" in wanted:
            urls["s3"] = f"{stack.enter_context(reached_by(stack.enter_context(s3_server())))}/runs"
        yield urls


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos.two_terminals",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--times", type=int, default=20, help="pairs in each place (%(default)s)")
    parser.add_argument("--places", nargs="+", choices=PLACES, default=PLACES, help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=600, help="of each run; it must outlast the wait of 17 s")
    parser.add_argument("--seed", type=int, default=0, help="of the pauses between the two starts (%(default)s)")
    parser.add_argument("--patience", type=float, default=600, help="seconds for a pair (%(default)s)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    dice = random.Random(options.seed)
    good, bad = Counter[str](), Counter[str]()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="two-terminals-") as temporary:
        folder = Path(temporary)
        with places(folder, options.places) as urls:
            pairs = [(place, number) for number in range(options.times) for place in urls]
            for done, (place, number) in enumerate(pairs):
                reason = run_pair(folder, f"{place}-{number}", urls[place], options, APART * dice.random())
                good[place] += not reason
                bad[place] += bool(reason)
                left = (time.monotonic() - began) / (done + 1) * (len(pairs) - done - 1)
                say(
                    f"{done + 1}/{len(pairs)} {place}: {reason or 'one trained, the other named it'}; {left:.0f} s left"
                )
    print(f"{'':8}{'pairs':>6}{'good':>6}")
    for place in options.places:
        print(f"{place:8}{good[place] + bad[place]:6}{good[place]:6}")
    print(json.dumps({"good": good, "bad": bad, "seconds": round(time.monotonic() - began, 1)}))
    return int(any(bad.values()))


if __name__ == "__main__":
    sys.exit(main())

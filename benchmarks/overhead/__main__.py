"""Measures what a whole job (Ray Train, data, tracking, checkpoints) costs beyond the bare training step."""

import argparse
import itertools
import json
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.overhead.programs import NAME, WARM_UP, bare_steps, database, job_command
from benchmarks.overhead.turns import OwnClock, Program
from benchmarks.shared.curve import Curve, read_curve

ROOT = Path(__file__).resolve().parents[2]


EPILOG = """
The same model, precision and batch train twice:

bare  one process with only the engine, on the images of the job's first epoch, which are decoded beforehand
job   `python -m orchestrator run` on a Ray of its own, from JPEGs in WebDataset shards, with a point of its curves in
      MLflow every --track steps and a checkpoint every --save steps; timed from one point of its curve to the last
      one. Everything in between is included; evaluation does not occur

overhead = 1 - bare / job, of their seconds per step. The two run in turns of --turn seconds. All processes of the other
one are stopped meanwhile, so that a machine whose speed drifts slows both down. Both compute on the same cores, the
last --threads, because the cores of a shared machine differ by several percent. A turn starts when the computing
processes continue, 0.3 s after the program's other processes: the work of these on overdue timers is not counted.
`se` is the standard error of the overhead, from its spread over stretches of about four turns. The overhead includes
checkpoints as often as --save says; without_checkpoints is the median of the stretches without any.

On a GPU, where a stopped process keeps its memory, and with --turn 0, the job runs after the bare program. `se` is then
null, and there is beside_step: the share of the job's time, by its own clock, in which its engine did not compute.

On a CPU, --threads cores compute, and the job uses the others for the work that a machine with a GPU does on its CPUs.
"""
IN_ENGINE = ("forward", "backward", "optimizer")  # phases of a step that are the engine's
FOREVER = 10**9


def in_turns(options: argparse.Namespace, shards: Path, folder: Path) -> dict[str, Any]:
    """Runs both in turns. Returns the fields of the JSON line."""
    stamps, log = folder / "bare.txt", folder / "job.txt"
    with stamps.open("w") as bare_log, log.open("w") as job_log:
        words = bare_command(options, shards, FOREVER)
        bare = Program("bare", words, cwd=ROOT, environment=environment(), log=bare_log)
        job = None
        try:
            while len(read_stamps(stamps)) < WARM_UP:
                if bare.process.poll() is not None:
                    raise RuntimeError(f"the bare step ended early: {last_line(stamps)}")
                time.sleep(0.5)
            cpus = set(sorted(os.sched_getaffinity(0))[-options.threads :])
            bare.stop()
            bare.compute_on(cpus)
            words = job_command(options, shards, folder)
            job = Program("job", words, cwd=ROOT, environment=environment(), log=job_log)
            while job.process.poll() is None and newest_step(folder) < WARM_UP:
                time.sleep(0.5)
            job.compute_on(cpus)
            while job.process.poll() is None:
                job.stop()
                bare.go_on()
                time.sleep(options.turn)
                bare.stop()
                job.go_on()
                until = time.monotonic() + options.turn
                while job.process.poll() is None and time.monotonic() < until:
                    time.sleep(0.05)
            job.stop()
        finally:
            for program in (bare, job):
                if program:
                    program.kill()
    if job.process.returncode:
        raise RuntimeError(f"the job ended with exit code {job.process.returncode}: {last_line(log)}")
    curve, _ = read_curve(database(folder), NAME)
    stalls = read_curve(database(folder), NAME, "speed/checkpoint_stall_seconds")[1]
    return compare(curve, stalls, job.clock, read_stamps(stamps), bare.clock, least=4 * options.turn)


def compare(
    curve: Curve, stalls: Sequence[float], job: OwnClock, stamps: Sequence[float], bare: OwnClock, *, least: float
) -> dict[str, Any]:
    """The result of the turns.

    Args:
        curve: when the job's steps were done.
        stalls: total seconds of waiting for checkpoints, at the curve's points.
        job, bare: the programs' clocks.
        stamps: when the bare program's steps were done.
        least: shortest stretch to compare, in seconds, long enough for turns of both.
    """
    first = bisect_left(curve.steps, WARM_UP)
    stretches: list[float] = []
    quiet: list[float] = []
    borders = [first]
    while (there := bisect_left(curve.times, curve.times[borders[-1]] + least)) < len(curve.steps):
        borders.append(max(there, borders[-1] + 1))
    for here, there in itertools.pairwise(borders):
        steps = curve.steps[there] - curve.steps[here]
        job_s = (job(curve.times[there]) - job(curve.times[here])) / steps
        if bare_s := mean_step(stamps, bare, curve.times[here], curve.times[there]):
            stretches.append(1 - bare_s / job_s)
            if stalls[there] == stalls[here]:
                quiet.append(stretches[-1])
    steps = curve.steps[-1] - curve.steps[first]
    job_s = (job(curve.times[-1]) - job(curve.times[first])) / steps
    bare_s = mean_step(stamps, bare, curve.times[first], curve.times[-1])
    if bare_s is None or len(stretches) < 2:
        raise RuntimeError("too few turns: use more --steps or a shorter --turn")
    return {
        "overhead": 1 - bare_s / job_s,
        "se": statistics.stdev(stretches) / len(stretches) ** 0.5,
        "without_checkpoints": statistics.median(quiet) if quiet else None,
        "bare_s": bare_s,
        "job_s": job_s,
        "stretches": stretches,
        "steps": steps,
    }


def mean_step(stamps: Sequence[float], clock: OwnClock, begin: float, end: float) -> float | None:
    """Seconds per step by the program's clock, of the steps between two times; None if there are fewer than two."""
    inside = stamps[bisect_left(stamps, begin) : bisect_right(stamps, end)]
    return (clock(inside[-1]) - clock(inside[0])) / (len(inside) - 1) if len(inside) > 1 else None


def one_after_the_other(options: argparse.Namespace, shards: Path, folder: Path) -> dict[str, Any]:
    """Runs the bare program, then the job. Returns the fields of the JSON line."""
    stamps, log = folder / "bare.txt", folder / "job.txt"
    with stamps.open("w") as bare_log:
        words = bare_command(options, shards, options.steps)
        subprocess.run(words, cwd=ROOT, env=environment(), stdout=bare_log, check=True)
    done = read_stamps(stamps)
    with log.open("w") as job_log:
        words = job_command(options, shards, folder)
        run = subprocess.run(words, cwd=ROOT, env=environment(), stdout=job_log, stderr=subprocess.STDOUT)
    if run.returncode:
        raise RuntimeError(f"the job ended with exit code {run.returncode}: {last_line(log)}")

    curve, _ = read_curve(database(folder), NAME)
    first = bisect_left(curve.steps, WARM_UP)
    split = {phase: read_curve(database(folder), NAME, f"time/{phase}")[1] for phase in (*IN_ENGINE, "step")}
    timed = range(first + 1, len(split["step"]))  # all windows have the same number of steps
    engine = sum(split[phase][n] for phase in IN_ENGINE for n in timed)
    bare_s = (done[-1] - done[WARM_UP - 1]) / options.steps
    job_s = (curve.times[-1] - curve.times[first]) / (curve.steps[-1] - curve.steps[first])
    return {
        "overhead": 1 - bare_s / job_s,
        "se": None,
        "bare_s": bare_s,
        "job_s": job_s,
        "beside_step": 1 - engine / sum(split["step"][n] for n in timed),
        "data_wait_fraction": read_curve(database(folder), NAME, "speed/data_wait_fraction")[1][-1],
        "checkpoint_stall_seconds": read_curve(database(folder), NAME, "speed/checkpoint_stall_seconds")[1][-1],
    }


def bare_command(options: argparse.Namespace, shards: Path, steps: int) -> list[str]:
    return [sys.executable, "-m", "benchmarks.overhead", *options.words, "--bare", str(shards), "--steps", str(steps)]


def environment() -> dict[str, str]:
    return {**os.environ, "RAY_ADDRESS": "local", "DS_ACCELERATOR": "cuda" if on_gpu() else "cpu"}


def on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def newest_step(folder: Path) -> int:
    """The newest step of the curve in MLflow's database; 0 if there is none yet."""
    try:
        with closing(sqlite3.connect(f"file:{folder}/mlflow.db?mode=ro", uri=True)) as connection:
            return int(connection.execute("select max(step) from metrics where key = 'train/loss'").fetchone()[0] or 0)
    except sqlite3.OperationalError:  # the database does not exist yet, or is busy
        return 0


def read_stamps(file: Path) -> list[float]:
    lines = file.read_text().splitlines(keepends=True)
    return [float(line) for line in lines if line.endswith("\n") and line[0].isdigit() and line.count(".") == 1]


def last_line(file: Path) -> str:
    return (file.read_text().strip().splitlines() or ["it wrote nothing"])[-1]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overhead",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default="ViT-B/16", help="(%(default)s)")
    add("--image-size", type=int, default=224, help="pixels a side (%(default)s)")
    add("--batch", type=int, default=2, help="images a step (%(default)s, for a CPU)")
    add("--precision", choices=["bf16", "float32"], default="float32", help="(%(default)s)")
    add("--checkpointing", choices=["none", "selective", "full"], default="none", help="(%(default)s)")
    add("--zero-stage", type=int, default=1, help="(%(default)s)")
    add("--steps", type=int, default=120, help="timed steps of each program (%(default)s)")
    add("--track", type=int, default=5, help="steps between points in MLflow (%(default)s)")
    add("--save", type=int, default=60, help="steps between checkpoints (%(default)s)")
    add("--turn", type=float, help="seconds of a turn (CPU: 3; GPU: 0, which means no turns)")
    threads = max(1, (os.cpu_count() or 2) - 1)
    add("--threads", type=int, default=threads, help="that compute on a CPU (%(default)s)")
    add("--bare", metavar="SHARDS", help=argparse.SUPPRESS)  # a child process
    options = parser.parse_args(arguments)
    options.turn = (0.0 if on_gpu() else 3.0) if options.turn is None else options.turn
    if options.steps < 2 * options.track:
        parser.error(f"--steps: give two points in MLflow, at least {2 * options.track} with --track {options.track}")
    options.words = list(sys.argv[1:] if arguments is None else arguments)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and, last, one JSON line."""
    options = parse(arguments)
    if options.bare:
        bare_steps(options)
        return 0
    from benchmarks.data.sets import write_tars

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no process stays stopped
    with tempfile.TemporaryDirectory(prefix="benchmark-overhead-") as temporary:
        shards, folder = Path(temporary) / "shards", Path(temporary) / "run"
        shards.mkdir()
        folder.mkdir()
        write_tars(shards, images=128, samples=64 * options.batch, seed=0)
        found = (in_turns if options.turn else one_after_the_other)(options, shards, folder)
    print(f"bare {found['bare_s']:.4f} s a step, job {found['job_s']:.4f} s")
    error = "" if found["se"] is None else f" (standard error {found['se']:.1%})"
    print(f"overhead {found['overhead']:.1%}{error}")
    if found.get("without_checkpoints") is not None:
        print(f"without checkpoints {found['without_checkpoints']:.1%}")
    if "beside_step" in found:
        print(f"waited for data {found['data_wait_fraction']:.1%} of the time, for checkpoints", end=" ")
        print(f"{found['checkpoint_stall_seconds']:.2f} s in total; outside the engine {found['beside_step']:.1%}")
    print(json.dumps({**found, "model": options.model, "save": options.save, "turn": options.turn}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

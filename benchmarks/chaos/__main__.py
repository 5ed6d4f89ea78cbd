"""Measures what a run loses to many faults of many kinds, while its cluster grows and shrinks."""

import argparse
import json
import logging
import math
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

from benchmarks.chaos import report
from benchmarks.chaos.faults import (
    CONTINUED,
    DISK,
    KINDS,
    RESIZE,
    RESTARTED,
    SIZES,
    START_SIZE,
    Event,
    schedule,
    strike,
)
from benchmarks.chaos.world import BATCH, ChaosError, Job, World, until
from benchmarks.shared.curve import read_curve

EPILOG = """
The same job runs twice on a cluster of this machine with Ray's own autoscaler: first undisturbed with two workers (the
quiet run), then with faults and one to three workers (the chaos run). The images and the checkpoints are in a bucket
(an emulator behind a proxy), the curves on an MLflow server. A fault comes only when the run has passed the step at
which the previous fault occurred. For a full disk, a small disk is mounted, which needs root; else these two kinds are
left out.

samples  lost, repeated: the ledger of the final history, compared with the order, which is arithmetic
steps    redone: the newest step of an attempt, less the step at which the next attempt continued
goodput  seconds per step of the quiet run (from the first point to the last, including saves), times steps, over the
         wall time of the chaos run, from the start of the first command to the end of the last one
seconds lost per fault: the wall time of the chaos run, less that of the quiet run, over the number of faults
restarts that were not needed: attempts that continued during a fault that training should outlast
weights  the norm of the difference of both runs' weights, over the norm of the quiet run's

Exit code 1: samples, steps or points were lost or repeated, the weights differ by more than --tolerance, or the run
failed, or ended before the last fault.

The faults:
""" + "\n".join(f"{kind:19}{what}" for kind, what in KINDS.items())


FAULTY = 0.6
"""The part of the run over which the faults are spread. The rest is a reserve: training goes on during many faults."""


def quiet(world: World, options: argparse.Namespace) -> float:
    """Runs the job undisturbed. Returns its wall time in seconds."""
    world.cluster.set_workers(START_SIZE, START_SIZE)
    began = time.monotonic()
    job = world.new_job("quiet", options.steps, options.every, START_SIZE)
    finish(job, options.patience)
    return time.monotonic() - began


def chaos(world: World, events: Sequence[Event], options: argparse.Namespace) -> tuple[list[report.Struck], float]:
    """Runs the job and carries out the events. Returns the events that happened, and the wall time in seconds."""
    began = time.monotonic()
    job = world.new_job("chaos", options.steps, options.every, [min(SIZES), max(SIZES)])
    happened: list[report.Struck] = []
    workers = START_SIZE
    for number, event in enumerate(events):
        wait_for_step(job, event.step, options.patience)
        if job.code == 0:
            say(f"the run ended before event {number + 1} of {len(events)}")
            break
        passed = time.monotonic() - began
        if passed > 60 * options.minutes:
            say(f"{options.minutes:g} minutes have passed: the run goes to its end without the last faults")
            break
        left = passed / max(1, number) * (len(events) - number)
        to = f" to {event.workers}" if event.kind == RESIZE else ""
        say(
            f"{number + 1}/{len(events)} at step {job.step}: {event.kind}{to}"
            + (f", {left:.0f} s left" if number else "")
        )
        attempts = len(job.attempts)
        start = strike(event, world)
        if event.kind in (*RESTARTED, RESIZE):
            wait_for_attempt(job, attempts, event.workers, options.patience)
        wait_for_step(job, job.peak + 1, options.patience)
        after = job.attempts[-1].workers if job.attempts else workers
        happened.append(report.Struck(event, start, time.time(), workers, after))
        workers = after
    finish(job, options.patience)
    return happened, time.monotonic() - began


def wait_for_step(job: Job, step: int, patience: float) -> None:
    """Waits until the run has shown a step, or has ended successfully."""
    until(lambda: job.step >= step or ended(job), f"step {step}\n{job.tail()}", patience)


def wait_for_attempt(job: Job, before: int, workers: int, patience: float) -> None:
    """Waits until a new attempt continues (with `workers` workers, unless that is 0), or the run has succeeded."""

    def is_there() -> bool:
        if workers:
            return bool(job.attempts) and job.attempts[-1].workers == workers
        return len(job.attempts) > before

    until(lambda: is_there() or ended(job), f"{workers or 'any'} workers that continue", patience)


def finish(job: Job, patience: float) -> None:
    """Waits until the run has ended successfully; each step may take at most `patience` seconds."""
    while not ended(job):
        wait_for_step(job, job.step + 1, patience)


def ended(job: Job) -> bool:
    """Whether the run has ended successfully.

    Raises:
        ChaosError: the run has failed.
    """
    if job.code:
        raise ChaosError(f"the job ended with exit code {job.code}\n{job.tail()}")
    return job.code == 0


def evaluate(
    world: World, happened: Sequence[report.Struck], walls: tuple[float, float], options: argparse.Namespace
) -> dict[str, Any]:
    """Prints the table and returns the fields of the JSON line."""
    from data import SampleOrder, open_index
    from orchestrator.history.ledger import trained_samples

    curve, losses = read_curve(world.tracker.database, "chaos")
    quiet_curve, quiet_losses = read_curve(world.tracker.database, "quiet")
    a_step = quiet_curve.seconds_a_step()
    order = SampleOrder(open_index(f"{world.bucket.url}/shapes/train"), batch_size=BATCH)
    lost, repeated = report.count_samples(trained_samples(world.run_url("chaos")), order, options.steps)
    quiet_counts = report.count_samples(trained_samples(world.run_url("quiet")), order, options.steps)
    (step, weights), (quiet_step, quiet_weights) = (
        report.read_weights(world.run_url(name)) for name in ("chaos", "quiet")
    )
    if not step == quiet_step == options.steps:
        raise ChaosError(f"the last checkpoints are of steps {step} and {quiet_step}, not of {options.steps}")
    redone = report.redone_steps(world.job.attempts, curve)
    redone_by_event = [report.redone_after(struck, world.job.attempts, redone) for struck in happened]
    seconds = [report.seconds_lost(struck, curve, a_step) for struck in happened]
    print(report.table(happened, seconds, redone_by_event))
    faults = [struck for struck in happened if struck.event.kind != RESIZE]
    continued = [struck for struck in faults if struck.event.kind in CONTINUED]
    pairs = list(zip(happened, redone_by_event, strict=True))
    return {
        "faults": len(faults),
        "lost": lost,
        "repeated": repeated,
        "redone_steps": sum(redone),
        "goodput": round(a_step * options.steps / walls[1], 4),
        "loss_chaos": losses[-1],
        "loss_quiet": quiet_losses[-1],
        "max_weight_difference": report.weight_difference(weights, quiet_weights),
        "redone_steps_max_a_fault": max((n for struck, n in pairs if struck.event.kind != RESIZE), default=0),
        "redone_steps_resizing": sum(n for struck, n in pairs if struck.event.kind == RESIZE),
        "restarts_not_needed": sum(
            struck.began < attempt.time <= struck.back for struck in continued for attempt in world.job.attempts
        ),
        "checkpoint_interval": options.every,
        "seconds_lost_a_fault": round((walls[1] - walls[0]) / max(1, len(faults)), 2),
        "faults_by_kind": dict(sorted(Counter(struck.event.kind for struck in faults).items())),
        "workers": sorted({size for struck in happened for size in (struck.before, struck.after)}),
        "points_missing": options.steps - len(curve.steps),
        "quiet_lost_repeated": quiet_counts,
        "steps": options.steps,
        "seconds_a_step_quiet": round(a_step, 4),
        "wall_seconds": round(walls[1], 1),
        "wall_seconds_quiet": round(walls[0], 1),
        "seed": options.seed,
    }


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--faults", type=int, default=25, help="number of faults (%(default)s)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="no fault comes later in the chaos run")
    parser.add_argument("--seed", type=int, default=0, help="of kinds, order and targets (%(default)s)")
    parser.add_argument("--steps", type=int, help="of the run (30 per fault)")
    parser.add_argument("--resizes", type=int, help="changes of the number of workers (one per 10 faults, at least 3)")
    parser.add_argument("--every", type=int, default=20, help="steps between checkpoints (%(default)s)")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="for the difference of the weights (%(default)s)")
    parser.add_argument("--patience", type=float, default=600, help="seconds to wait for progress (%(default)s)")
    parser.add_argument("--folder", type=Path, help="for logs and curves; is kept (default: temporary)")
    options = parser.parse_args(arguments)
    options.steps = options.steps or 30 * options.faults
    options.resizes = options.faults // 10 if options.resizes is None else options.resizes
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # killed clients of the proxy cause errors here
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends all processes, as Ctrl-C does
    try:
        with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
            folder = (options.folder or Path(temporary)).absolute()
            folder.mkdir(parents=True, exist_ok=True)
            with World(folder, options.patience) as world:
                kinds = [kind for kind in KINDS if world.has_disk or kind not in DISK]
                events = schedule(
                    options.faults,
                    int(FAULTY * options.steps),
                    options.seed,
                    2 * options.every,
                    resizes=options.resizes,
                    kinds=kinds,
                )
                if not world.has_disk:
                    say(f"no disk can be mounted here, so these faults are left out: {', '.join(DISK)}")
                say("the quiet run")
                alone = quiet(world, options)
                say(f"the quiet run took {alone:.0f} s; the chaos run")
                happened, wall = chaos(world, events, options)
                found = evaluate(world, happened, (alone, wall), options)
    except (ChaosError, ValueError) as error:
        print(f"error: python -m benchmarks.chaos: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found))
    missed = found["lost"], found["repeated"], found["points_missing"], found["faults"] < options.faults
    return int(any(missed) or found["max_weight_difference"] > options.tolerance)


if __name__ == "__main__":
    sys.exit(main())

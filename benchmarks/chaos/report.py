"""The result of a chaos run: samples, steps, seconds and weights, from the files and curves of the run.

Samples are counted in the ledger of the final history and compared with the order, which is arithmetic. Redone steps
and seconds come from the points of the training curve: MLflow holds each step once, with the time at which it was first
done.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.chaos.faults import RESIZE, Event
from benchmarks.chaos.world import Attempt
from benchmarks.shared.curve import Curve
from data import Order, storage

START_SECONDS = 3.0
"""New workers need more time than this from their first line to their first step. The old ones are gone before it."""


@dataclass(frozen=True)
class Struck:
    """An event that was carried out.

    Attributes:
        event: as planned.
        began: when it began, in seconds since the epoch.
        back: when the run passed the step that it had reached before, in seconds since the epoch.
        before, after: number of workers before and after the event.
    """

    event: Event
    began: float
    back: float
    before: int
    after: int


def count_samples(trained: Mapping[int, Sequence[int]], order: Order, steps: int) -> tuple[int, int]:
    """(samples lost, samples repeated): compares the samples of each step with those that it should have trained on.

    A sample in the wrong step counts as repeated in that step, and as lost in its own.
    """
    lost = repeated = 0
    for step in range(max([steps, *(step + 1 for step in trained)])):
        wanted = Counter(i for i in order.batch(step) if i >= 0) if step < steps else Counter()
        found = Counter(trained.get(step, ()))
        lost += (wanted - found).total()
        repeated += (found - wanted).total()
    return lost, repeated


def redone_steps(attempts: Sequence[Attempt], curve: Curve) -> list[int]:
    """The number of steps that each attempt redid.

    Assumes that every attempt passes the step that the previous one reached, because no fault comes earlier.
    """
    return [max(0, curve.peak(attempt.time - START_SECONDS) - attempt.step) for attempt in attempts]


def seconds_lost(struck: Struck, curve: Curve, seconds_a_step: float) -> float:
    """From the event until the run got beyond where it was, without the useful time of the steps done meanwhile."""
    done = curve.peak(struck.back) - curve.peak(struck.began)
    return struck.back - struck.began - seconds_a_step * done


def redone_after(struck: Struck, attempts: Sequence[Attempt], redone: Sequence[int]) -> int:
    """Number of steps redone by the attempts that an event caused."""
    pairs = zip(attempts, redone, strict=True)
    return sum(steps for attempt, steps in pairs if struck.began < attempt.time <= struck.back)


def weight_difference(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> float:
    """Norm of the difference of all weights together, over the norm of the weights `other`."""
    if one.keys() != other.keys():
        raise ValueError(f"weights differ in their names: {sorted(one.keys() ^ other.keys())[:3]}")
    ours, theirs = (np.concatenate([weights[name] for name in sorted(weights)]) for weights in (one, other))
    return float(np.linalg.norm(ours.astype(np.float64) - theirs) / np.linalg.norm(theirs.astype(np.float64)))


def read_weights(run_url: str) -> tuple[int, dict[str, np.ndarray]]:
    """(step, flat weights by name) of a run's newest complete checkpoint, joined from its files."""
    from safetensors.numpy import load

    names = sorted(storage.contents(run_url), reverse=True)
    newest = next(name for name in names if "manifest.json" in storage.contents(f"{run_url}/{name}"))
    manifest = json.loads(storage.read(f"{run_url}/{newest}/manifest.json"))
    files = {name: load(storage.read(f"{run_url}/{newest}/{name}")) for name in manifest["files"]}
    weights = {name: np.full(size, np.nan, np.float32) for name, size in manifest["parameters"].items()}
    for state, name, start, size, file in manifest["fragments"]:
        if state == "weight":
            weights[name][start : start + size] = files[file][f"{state}/{name}@{start}"]
    return int(manifest["step"]), weights


def table(events: Sequence[Struck], lost: Sequence[float], redone: Sequence[int]) -> str:
    """One line per kind of event, with means and largest values."""
    kinds: dict[str, list[int]] = defaultdict(list)
    for number, struck in enumerate(events):
        kinds[struck.event.kind].append(number)
    lines = [f"{'':22}{'times':>6}{'seconds lost, mean':>20}{'most':>8}{'steps redone, mean':>20}{'most':>6}"]
    for kind, numbers in sorted(kinds.items(), key=lambda entry: (entry[0] == RESIZE, entry[0])):
        seconds, steps = [lost[n] for n in numbers], [redone[n] for n in numbers]
        mean = sum(seconds) / len(seconds), sum(steps) / len(steps)
        lines.append(f"{kind:22}{len(numbers):6}{mean[0]:20.1f}{max(seconds):8.1f}{mean[1]:20.1f}{max(steps):6}")
    return "\n".join(lines)

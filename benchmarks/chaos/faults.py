"""What goes wrong in a chaos run, and when: a seeded schedule, and the actions.

step     40        85       120        171 ...
         fault     resize   fault      fault      spread evenly, in an order that the seed decides
         hang      3        node       driver,    every kind comes once before any kind comes twice
                                       saving
"""

import contextlib
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import psutil

from benchmarks.chaos.damage import damage_checkpoint, tear_file
from benchmarks.chaos.world import World, until
from infra.local.cluster import ClusterError

RESIZE = "resize"
RESTARTED = {
    "worker": "SIGKILL to a training worker",
    "worker, saving": "the same while the state is written to local disk",
    "worker, uploading": "the same while a checkpoint has no manifest yet",
    "hang": "SIGSTOP to a training worker",
    "hang, raylet": "SIGSTOP to the raylet of a training worker",
    "notice": "SIGTERM to a training worker",
    "node": "a node is lost",
    "node, uploading": "the same while a checkpoint has no manifest yet",
    "drain": "a node is drained, and lost at the deadline",
    "driver": "SIGKILL to the job's process, which is submitted again",
    "driver, saving": "the same while the state is written to local disk",
    "stop": "SIGTERM to the job's process, which must end with exit code 143, and is submitted again",
    "torn file": "SIGKILL to the job's process; a file that the run reads back ends in half a line at the next start",
    "damage": "the same; the newest checkpoint is damaged at the next start",
    "keep": "the same; the next start keeps 2 checkpoints instead of 4, or 4 again",
}
CONTINUED = {
    "storage": "the bucket of images and checkpoints answers 503 for 1 to 10 s",
    "storage, saved": "the same, from 0 to 2 s after a checkpoint became complete",
    "tracker": "the MLflow server is killed, and started again after 1 to 10 s",
    "tracker, saved": "the same, from 0 to 2 s after a checkpoint became complete",
    "disk": "the disk of the nodes' temporary files is full for 1 to 10 s",
    "disk, saving": "the same, from a moment when the state is written to it",
    "pause": "SIGSTOP to a training worker, and SIGCONT after 1 to 5 s",
    "pause, controller": "SIGSTOP to Ray Train's controller, and SIGCONT after 1 to 10 s",
    "pause, raylet": "SIGSTOP to a raylet, and SIGCONT after 1 to 5 s",
}
"""Faults during which training must continue."""
KINDS = RESTARTED | CONTINUED
DISK = ("disk", "disk, saving")  # need the right to mount a small disk
SIZES = (1, 2, 3)
START_SIZE = 2
KEEP = (4, 2)  # values of checkpoint.keep, in turn
GRACE = 10  # seconds from a drain to the loss of the node
SLOW = 0.25  # seconds added to each request while waiting for an upload, so that a kill can hit the upload
AFTER_SAVE = 2.0  # seconds after a complete checkpoint in which an outage begins, at most


@dataclass(frozen=True)
class Event:
    """A planned fault or resize.

    Attributes:
        step: number of steps after which it comes.
        kind: one of KINDS, or RESIZE.
        draw: random number in [0, 1) that determines the target or the duration.
        workers: with RESIZE, the new number of workers; otherwise 0.
    """

    step: int
    kind: str
    draw: float
    workers: int = 0


def schedule(
    faults: int, steps: int, seed: int, first: int, *, resizes: int = 0, kinds: Sequence[str] = tuple(KINDS)
) -> list[Event]:
    """A schedule of faults and of changes of the number of workers, from step `first` to step `steps`.

    Every kind comes once first. From then on, one of `RESTARTED` comes with four of `CONTINUED`, which take less time.

    Args:
        resizes: number of changes; at least every other size of `SIZES` comes once.
        kinds: those that can come.

    Raises:
        ValueError: there are fewer than two steps per event.
    """
    dice = random.Random(seed)
    order: list[str] = dice.sample(kinds, len(kinds))
    restarted, continued = (
        _rounds(dice, [kind for kind in kinds if kind in group]) for group in (RESTARTED, CONTINUED)
    )
    while len(order) < faults:
        few = [next(source) for source in (restarted, *4 * [continued])]
        order += dice.sample(few, len(few))
    sizes = [size for size in dice.sample(SIZES, len(SIZES)) if size != START_SIZE]
    changes = max(len(sizes), resizes)
    while len(sizes) < changes:
        sizes += [size for size in dice.sample(SIZES, len(SIZES)) if size != sizes[-1]]
    # Fault n has the position n + 0.5, and the changes are spread evenly between the faults.
    places = [(number + 0.5, kind, 0) for number, kind in enumerate(order[:faults])]
    places += [(change * faults / changes, RESIZE, sizes[change]) for change in range(changes)]
    gap = (steps - first) / (len(places) + 1)
    if gap < 2:
        raise ValueError(f"{steps} steps are too few for {faults} faults")
    return [
        Event(first + round((place + dice.uniform(0.2, 0.8)) * gap), kind, dice.random(), workers)
        for place, (_, kind, workers) in enumerate(sorted(places))
    ]


def _rounds(dice: random.Random, kinds: Sequence[str]) -> Iterator[str]:
    """The kinds over and over, each time in another order."""
    while True:
        yield from dice.sample(kinds, len(kinds))


def strike(event: Event, world: World) -> float:
    """Carries out an event, including the end of an outage. Returns when it began, in seconds since the epoch."""
    what, _, where = event.kind.partition(", ")
    if where in ("saving", "uploading", "saved"):
        _await_moment(world, where, event)
    actions: dict[str, Callable[[World, Event], float]] = {
        "worker": _signal(signal.SIGKILL),
        "hang": _hang_raylet if where == "raylet" else _signal(signal.SIGSTOP),
        "notice": _signal(signal.SIGTERM),
        "node": _lose_node,
        "drain": _drain,
        "driver": _kill_driver,
        "stop": _stop_driver,
        "torn file": _tear,
        "damage": _damage,
        "keep": _change_keep,
        "storage": _close_store,
        "tracker": _end_tracker,
        "disk": _fill_disk,
        "pause": _pause,
        RESIZE: _resize,
    }
    return actions[what](world, event)


def _await_moment(world: World, moment: str, event: Event) -> None:
    """Waits until a checkpoint is being saved or uploaded, or has just become complete."""
    if moment == "saved":
        before = set(world.checkpoints())
        until(lambda: set(world.checkpoints()) - before, "a complete checkpoint", world.patience, pause=0.02)
        time.sleep(AFTER_SAVE * event.draw)
        return
    world.proxy.set(delay=SLOW)
    try:
        condition = world.is_saving if moment == "saving" else world.is_uploading
        until(condition, f"a checkpoint that is {moment}", world.patience, pause=0.002)
    finally:
        world.proxy.set()


def _signal(number: signal.Signals) -> Callable[[World, Event], float]:
    def action(world: World, event: Event) -> float:
        process, _ = _target(world, event)
        began = time.time()
        process.send_signal(number)
        return began

    return action


def _target(world: World, event: Event) -> tuple[psutil.Process, str]:
    """The training worker that the event hits, and its node."""
    workers = until(world.training_workers, "training workers", world.patience)
    return workers[int(event.draw * len(workers))]


def _lose_node(world: World, event: Event) -> float:
    _, node = _target(world, event)
    began = time.time()
    world.cluster.kill_node(node)
    return began


def _drain(world: World, event: Event) -> float:
    _, node = _target(world, event)
    began = time.time()
    world.cluster.drain(node, GRACE)
    time.sleep(GRACE)
    with contextlib.suppress(ClusterError):  # the autoscaler may have ended it already
        world.cluster.kill_node(node)
    return began


def _hang_raylet(world: World, event: Event) -> float:
    process, node = _target(world, event)
    began = time.time()
    process.parents()[0].suspend()
    until(lambda: all(each.id != node for each in world.cluster.workers()), "Ray to miss a node", world.patience)
    with contextlib.suppress(ClusterError):  # the autoscaler may have ended it already
        world.cluster.kill_node(node)
    return began


def _kill_driver(world: World, event: Event) -> float:
    began = time.time()
    world.job.kill()
    world.job.start()
    return began


def _stop_driver(world: World, event: Event) -> float:
    began = time.time()
    world.job.terminate(world.patience)
    world.job.start()
    return began


def _tear(world: World, event: Event) -> float:
    began = time.time()
    world.job.kill()
    tear_file(world.run_url(world.job.name), world.scratch, event.draw)
    world.job.start()
    return began


def _damage(world: World, event: Event) -> float:
    until(lambda: len(world.checkpoints()) > 1, "two intact checkpoints", world.patience)
    began = time.time()
    world.job.kill()
    damage_checkpoint(f"{world.run_url(world.job.name)}/{max(world.checkpoints())}", event.draw)
    world.job.start()
    return began


def _change_keep(world: World, event: Event) -> float:
    began = time.time()
    world.job.kill()
    world.keep = next(keep for keep in KEEP if keep != world.keep)
    world.job.start(f"checkpoint.keep={world.keep}")
    return began


def _close_store(world: World, event: Event) -> float:
    began = time.time()
    world.proxy.set(fail=1.0)
    time.sleep(_outage(event))
    world.proxy.set()
    return began


def _end_tracker(world: World, event: Event) -> float:
    began = time.time()
    world.tracker.kill()
    time.sleep(_outage(event))
    world.tracker.start()
    return began


def _fill_disk(world: World, event: Event) -> float:
    began = time.time()
    with world.full_disk():
        time.sleep(_outage(event))
    return began


def _pause(world: World, event: Event) -> float:
    if event.kind == "pause, controller":
        seconds = _outage(event)
        process = until(world.controllers, "Ray Train's controller", world.patience)[0]
    else:
        seconds = 1 + 4 * event.draw
        process, _ = _target(world, event)
        if event.kind == "pause, raylet":
            process = process.parents()[0]
    began = time.time()
    process.suspend()
    time.sleep(seconds)
    with contextlib.suppress(psutil.NoSuchProcess):
        process.resume()
    return began


def _outage(event: Event) -> float:
    return 1 + 9 * event.draw


def _resize(world: World, event: Event) -> float:
    """Changes the number of workers. Drains surplus nodes first, because the autoscaler ends nodes without notice."""
    began = time.time()
    nodes = [node.id for node in world.cluster.workers()]
    world.cluster.set_workers(event.workers, max(event.workers, len(nodes)))
    leaving = nodes[event.workers :]
    for node in leaving:
        world.cluster.drain(node, GRACE)
    if leaving:
        until(lambda: not world.trains_on(leaving), "workers that leave the drained nodes", world.patience)
        for node in leaving:
            with contextlib.suppress(ClusterError):
                world.cluster.kill_node(node)
    world.cluster.set_workers(event.workers, event.workers)
    return began

"""What goes wrong in a chaos run, and when: a seeded schedule, and the actions.

step     40        85       120        171 ...
         kill      resize   kill       kill       spread evenly over the run, in an order that the seed decides
         hang      4        node       driver,    every kind comes once before any kind comes twice
                                       saving
"""

import contextlib
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from benchmarks.chaos.world import World, until
from infra.local.cluster import ClusterError

RESIZE = "resize"
KINDS = {
    "worker": "SIGKILL to a training worker",
    "worker, saving": "the same while the state is written to local disk",
    "worker, uploading": "the same while a checkpoint has no manifest yet",
    "hang": "SIGSTOP to a training worker",
    "notice": "SIGTERM to a training worker",
    "node": "a node is lost",
    "node, uploading": "the same while a checkpoint has no manifest yet",
    "drain": "a node is drained, and lost at the deadline",
    "driver": "SIGKILL to the job's process, which is submitted again",
    "driver, saving": "the same while the state is written to local disk",
    "storage": "the bucket of images and checkpoints answers 503 for 5 to 15 s",
    "tracker": "the MLflow server is killed, and started again after 5 to 15 s",
}
WITHOUT_RESTART = ("storage", "tracker")  # training must continue
SIZES = (1, 2, 3, 4)
START_SIZE = 2
GRACE = 10  # seconds from a drain to the loss of the node
SLOW = 0.25  # seconds added to each request while waiting for an upload, so that a kill can hit the upload


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


def schedule(kills: int, steps: int, seed: int, first: int) -> list[Event]:
    """A schedule of `kills` kills and of changes of the number of workers, from step `first` to the end of the run.

    Raises:
        ValueError: there are fewer than two steps per event.
    """
    dice = random.Random(seed)
    kinds: list[str] = []
    while len(kinds) < kills:
        kinds += dice.sample(list(KINDS), len(KINDS))
    sizes = [size for size in dice.sample(SIZES, len(SIZES)) if size != START_SIZE]
    changes = max(len(sizes), kills // 3)
    while len(sizes) < changes:
        sizes += [size for size in dice.sample(SIZES, len(SIZES)) if size != sizes[-1]]
    # Kill n has the position n + 0.5, and the changes are spread evenly between the kills.
    order = [(number + 0.5, kind, 0) for number, kind in enumerate(kinds[:kills])]
    order += [(change * kills / changes, RESIZE, sizes[change]) for change in range(changes)]
    gap = (steps - first) / (len(order) + 1)
    if gap < 2:
        raise ValueError(f"{steps} steps are too few for {kills} kills")
    return [
        Event(first + round((place + dice.uniform(0.2, 0.8)) * gap), kind, dice.random(), workers)
        for place, (_, kind, workers) in enumerate(sorted(order))
    ]


def strike(event: Event, world: World) -> float:
    """Carries out an event, including the end of an outage. Returns when it began, in seconds since the epoch."""
    what, _, moment = event.kind.partition(", ")
    if moment:
        _await_moment(world, moment)
    actions: dict[str, Callable[[World, Event], float]] = {
        "worker": _signal(signal.SIGKILL),
        "hang": _signal(signal.SIGSTOP),
        "notice": _signal(signal.SIGTERM),
        "node": _lose_node,
        "drain": _drain,
        "driver": _kill_driver,
        "storage": _close_store,
        "tracker": _end_tracker,
        RESIZE: _resize,
    }
    return actions[what](world, event)


def _await_moment(world: World, moment: str) -> None:
    """Waits until a checkpoint is being saved or uploaded."""
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


def _kill_driver(world: World, event: Event) -> float:
    began = time.time()
    world.job.kill()
    world.job.start()
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


def _outage(event: Event) -> float:
    return 5 + 10 * event.draw


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

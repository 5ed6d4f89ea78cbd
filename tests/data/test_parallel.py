import os
import time
from multiprocessing import active_children

import pytest

from data import parallel
from data.parallel import Pace, spread


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are worth their start for any work."""
    monkeypatch.setattr(parallel, "PROCESS_SECONDS", 0.0)
    monkeypatch.setattr(parallel, "usable_cpus", lambda: 8)


def pid_and_square(number: int) -> tuple[int, int]:
    return os.getpid(), number**2


def fail_at_three(number: int) -> int:
    if number == 3:
        raise ValueError("three")
    return number


def die(number: int) -> None:
    os._exit(1)


def sleep_long_after_the_first(number: int) -> int:
    if number:
        time.sleep(600)
    return number


def test_results_come_in_order_from_other_processes(at_once):
    results = list(spread(pid_and_square, range(20), 2))
    assert [square for _, square in results] == [n**2 for n in range(20)]
    assert os.getpid() not in {pid for pid, _ in results}


@pytest.mark.parametrize(("tasks", "workers"), [(range(3), 1), (range(1), 8), (range(0), 8)])
def test_one_worker_or_one_task_needs_no_process(tasks, workers, at_once):
    assert list(spread(pid_and_square, tasks, workers)) == [(os.getpid(), n**2) for n in tasks]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_comes_at_its_turn(workers, at_once):
    results = spread(fail_at_three, range(6), workers)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)


def test_a_process_that_is_killed_is_told(at_once):
    with pytest.raises(ChildProcessError, match="try fewer workers"):
        list(spread(die, range(4), 2))


def test_work_that_nobody_wants_is_stopped(at_once):
    results = spread(sleep_long_after_the_first, range(8), 2)
    assert next(results) == 0
    began = time.monotonic()
    results.close()
    assert time.monotonic() - began < 20
    assert not active_children()


def pid_after(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def test_small_work_starts_no_process(monkeypatch):
    """100 calls of a millisecond need no others; of 40 calls of 0.1 s, most come from two others that start in 1 s."""
    monkeypatch.setattr(parallel, "usable_cpus", lambda: 2)
    assert set(spread(pid_after, [0.001] * 100, 2)) == {os.getpid()}
    monkeypatch.setattr(parallel, "PROCESS_SECONDS", 1.0)
    found = list(spread(pid_after, [0.1] * 40, 2))
    assert found[0] == os.getpid()
    assert len(set(found[1:]) - {os.getpid()}) == 2


def test_one_core_starts_no_process(monkeypatch, at_once):
    monkeypatch.setattr(parallel, "usable_cpus", lambda: 1)
    assert set(spread(pid_after, [0.001] * 5, 8)) == {os.getpid()}


@pytest.mark.parametrize(
    ("start", "workers", "seconds", "left", "sooner"),
    [
        (10, 2, 1.0, 19, False),  # 19 s alone, 19.5 s with another
        (10, 2, 1.0, 21, True),  # 21 s, 20.5 s
        (10, 100, 1.0, 12, True),  # 12 s, 11 s
        (10, 100, 1.0, 11, False),  # 11 s, 11 s
        (10, 1, 1.0, 1000, False),
        (10, 8, 1000.0, 1, False),  # one call is one process's
        (0, 2, 0.0, 2, True),
    ],
)
def test_the_rule(start, workers, seconds, left, sooner, monkeypatch):
    clock = iter([5.0, 5.0 + seconds])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    pace = Pace(start, workers)
    assert pace.timed(lambda: "result") == "result"
    assert pace.others_are_sooner(left) == sooner

import os
import time
from multiprocessing import active_children

import pytest

from data.parallel import spread


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


def test_results_come_in_order_from_other_processes():
    results = list(spread(pid_and_square, range(20), 2))
    assert [square for _, square in results] == [n**2 for n in range(20)]
    assert os.getpid() not in {pid for pid, _ in results}


@pytest.mark.parametrize(("tasks", "workers"), [(range(3), 1), (range(1), 8), (range(0), 8)])
def test_one_worker_or_one_task_needs_no_process(tasks, workers):
    assert list(spread(pid_and_square, tasks, workers)) == [(os.getpid(), n**2) for n in tasks]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_comes_at_its_turn(workers):
    results = spread(fail_at_three, range(6), workers)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)


def test_a_process_that_is_killed_is_told():
    with pytest.raises(ChildProcessError, match="try fewer workers"):
        list(spread(die, range(4), 2))


def test_work_that_nobody_wants_is_stopped():
    results = spread(sleep_long_after_the_first, range(8), 2)
    assert next(results) == 0
    began = time.monotonic()
    results.close()
    assert time.monotonic() - began < 20
    assert not active_children()

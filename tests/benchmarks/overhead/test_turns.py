"""benchmarks/overhead/turns.py: outside of its turn, a program is stopped with all its processes."""

import os
import random
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.overhead.turns import OwnClock, Program

GRANDCHILD = "import time, sys\nwhile True: open(sys.argv[1], 'a').write('x'); time.sleep(0.01)"
CHILD = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]], start_new_session=True)
while True: time.sleep(0.01)
"""
WORKING = "import threading, time; threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start(); time.sleep(99)"
IDLE = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', sys.argv[1]]); time.sleep(99)"


def test_own_clock_is_the_time_within_turns() -> None:
    dice = random.Random(0)
    borders = sorted(dice.sample(range(1000), 20))
    turns = list(zip(borders[::2], borders[1::2], strict=True))
    clock = OwnClock([(float(a), float(b)) for a, b in turns])
    for moment in range(0, 1001, 7):
        assert clock(moment) == sum(1 for second in range(moment) if any(a <= second < b for a, b in turns))


def test_a_program_is_stopped_with_all_its_processes(tmp_path: Path) -> None:
    written = tmp_path / "written"
    command = [sys.executable, "-c", CHILD, GRANDCHILD, str(written)]
    with (tmp_path / "log").open("w") as log:
        program = Program("test", command, cwd=tmp_path, environment=dict(os.environ), log=log)
    try:
        wait_for(lambda: written.exists() and written.stat().st_size > 0)
        program.stop()
        size = written.stat().st_size
        time.sleep(0.5)
        assert written.stat().st_size == size
        program.go_on()
        wait_for(lambda: written.stat().st_size > size)
        program.stop()
        (first, second) = program.clock.turns
        assert second[0] - first[1] > 0.5
    finally:
        program.kill()
    mine = [p for p in psutil.process_iter(["cmdline"]) if str(written) in (p.info["cmdline"] or [])]
    _, alive = psutil.wait_procs(mine, timeout=10)
    assert not alive, alive


def test_only_the_computing_threads_are_tied(tmp_path: Path) -> None:
    """Of two processes, one has a working thread and a waiting main thread, and the other is idle."""
    with (tmp_path / "log").open("w") as log:
        program = Program(
            "tied", [sys.executable, "-c", IDLE, WORKING], cwd=tmp_path, environment=dict(os.environ), log=log
        )
    try:
        before, cpu = os.sched_getaffinity(program.process.pid), min(os.sched_getaffinity(0))

        def threads() -> dict[int, float]:
            (child,) = psutil.Process(program.process.pid).children() or [psutil.Process(program.process.pid)]
            return {thread.id: thread.user_time for thread in child.threads()}

        wait_for(lambda: len(threads()) == 2 and max(threads().values()) > 1)
        program.compute_on({cpu})
        busy = max(threads(), key=lambda thread: threads()[thread])
        others = {program.process.pid, *threads()} - {busy}
        assert os.sched_getaffinity(busy) == {cpu}
        assert all(os.sched_getaffinity(thread) == before for thread in others)
        assert len(others) == 2
    finally:
        program.kill()


def wait_for(condition: object) -> None:
    deadline = time.monotonic() + 30
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            pytest.fail("the condition was not met")
        time.sleep(0.02)

"""benchmarks/overhead: the result for two programs whose speeds are known, and its errors."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.overhead import __main__ as overhead
from benchmarks.overhead.programs import WARM_UP
from benchmarks.overhead.turns import OwnClock
from benchmarks.shared.curve import Curve
from tests.paths import ROOT


def test_overhead_of_two_programs_on_a_machine_that_drifts() -> None:
    """A bare step is 1 s of work, one of the job 1.25 s, plus 5 s for a save. The machine slows down all the time."""
    now, turns, work, stamps = 0.0, {"bare": [], "job": []}, {"bare": 0.0, "job": 0.0}, []
    steps, times, stalls, tick = [], [], [], 0.001
    due = 1.25
    while len(steps) < 40:
        for name in ("bare", "job"):
            start = now
            while now < start + 4.0:
                now += tick
                work[name] += tick * (1 - now / 900)
                if name == "bare" and work["bare"] >= len(stamps) + 1:
                    stamps.append(now)
                if name == "job" and work["job"] >= due:
                    steps.append(len(steps) + 1)
                    times.append(now)
                    stalls.append(5.0 * ((len(steps) - 1) // 15))  # the points at 16 and 31 follow a save
                    due += 1.25 + (5.0 if len(steps) % 15 == 0 else 0.0)
            turns[name].append((start, now))
    every = [n for n, step in enumerate(steps) if step % 5 == 0 or step == 1]
    curve = Curve([steps[n] for n in every], [times[n] for n in every])
    found = overhead.compare(
        curve, [stalls[n] for n in every], OwnClock(turns["job"]), stamps, OwnClock(turns["bare"]), least=16.0
    )
    assert found["steps"] == 40 - 5  # counted from the first point after WARM_UP
    assert WARM_UP <= 5
    saved = 1.25 + 2 * 5.0 / found["steps"]
    assert found["overhead"] == pytest.approx(1 - 1 / saved, abs=0.02)
    assert found["without_checkpoints"] == pytest.approx(1 - 1 / 1.25, abs=0.02)
    assert 0 < found["se"] < 0.2


def test_what_cannot_be_compared_is_an_error(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.overhead", "--steps", "5"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 2
    assert "give two points in MLflow, at least 10 with --track 5" in run.stderr
    with pytest.raises(RuntimeError, match="too few turns"):
        overhead.compare(Curve([5, 10], [1.0, 2.0]), [0, 0], OwnClock([(0, 9)]), [1.5], OwnClock([(0, 9)]), least=1.0)

    stamps = tmp_path / "bare.txt"
    stamps.write_text("a library said 1.5\n1764300000.25\n17643000")  # the last line is incomplete
    assert overhead.read_stamps(stamps) == [1764300000.25]
    assert overhead.newest_step(tmp_path) == 0

"""The arithmetic of the chaos benchmark's report, on histories whose answers are known."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.chaos import report
from benchmarks.chaos.faults import Event
from benchmarks.chaos.world import Attempt
from benchmarks.shared.curve import Curve
from orchestrator.history.ledger import trained_samples


class TwoEpochs:
    """Samples 0 .. 9 in batches of 4: three steps per epoch, with masked slots at the end."""

    batch_size, num_samples, steps_per_epoch = 4, 10, 3

    def batch(self, step: int) -> list[int]:
        first = step % 3 * 4
        return [i if i < 10 else -1 for i in range(first, first + 4)]


def write(folder: Path, attempt: int, rank: int, steps: dict[int, list[int]]) -> None:
    """Writes a file of a ledger, in the format of `orchestrator/history/ledger.py`."""
    (folder / "samples").mkdir(exist_ok=True)
    path = folder / "samples" / f"{min(steps):09d}-{max(steps) + 1:09d}-rank-{rank:05d}-{attempt}.json"
    path.write_text(json.dumps({"attempt": attempt, "steps": steps}))


def test_samples_are_counted_in_the_final_history(tmp_path: Path) -> None:
    write(tmp_path, 1, 0, {0: [0, 1], 1: [4, 5], 2: [8, 9]})
    write(tmp_path, 1, 1, {0: [2, 3], 1: [6, 7]})
    write(tmp_path, 2, 0, {1: [4, 5, 6, 7], 2: [8, 9], 3: [0, 1, 2, 3], 4: [4, 5, 6, 7]})  # from step 1 on, again
    write(tmp_path, 3, 0, {5: [8, 9]})
    assert report.count_samples(trained_samples(str(tmp_path)), TwoEpochs(), steps=6) == (0, 0)

    write(tmp_path, 4, 0, {4: [4, 5, 6, 6]})  # 7 is lost, 6 is repeated
    assert report.count_samples(trained_samples(str(tmp_path)), TwoEpochs(), steps=6) == (1, 1)
    write(tmp_path, 4, 1, {5: [8, 9]})
    assert report.count_samples(trained_samples(str(tmp_path)), TwoEpochs(), steps=7) == (1 + 4, 1)  # step 6 is missing
    assert report.count_samples(trained_samples(str(tmp_path)), TwoEpochs(), steps=5) == (1, 1 + 2)  # one step too many


def test_steps_and_seconds() -> None:
    """A step a second to step 30, a kill, and 15 s later an attempt from step 20 on. Redone steps have no points."""
    times = [float(second) for second in (*range(1, 31), *range(30 + 15 + 11, 30 + 15 + 41))]
    curve = Curve(list(range(1, 61)), times)
    attempts = [Attempt(45.5, 20, 2)]
    assert report.redone_steps(attempts, curve) == [10]
    struck = report.Struck(Event(25, "worker", 0.5), began=30.2, back=56.2, before=2, after=2)
    assert report.seconds_lost(struck, curve, seconds_a_step=1.0) == pytest.approx(26 - 1)
    assert report.redone_after(struck, attempts, [10]) == 10
    later = report.Struck(Event(40, "tracker", 0.5), began=57.2, back=60.2, before=2, after=2)
    assert report.seconds_lost(later, curve, seconds_a_step=1.0) == pytest.approx(0)
    assert report.redone_after(later, attempts, [10]) == 0
    table = report.table([struck, later], [25.0, 0.0], [10, 0])
    assert table.splitlines()[2].split() == ["worker", "1", "25.0", "25.0", "10.0", "10"]


def test_the_difference_is_that_of_all_weights_together() -> None:
    here = {"a": np.array([3.0, 0.0], np.float32), "b": np.array([4.0], np.float32)}
    there = {"a": np.array([3.0, 0.5], np.float32), "b": np.array([4.0], np.float32)}
    assert report.weight_difference(here, here) == 0
    assert report.weight_difference(there, here) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="names"):
        report.weight_difference(here, {"a": here["a"]})


def test_weights_are_read_from_the_newest_complete_checkpoint(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    for step, manifest in ((20, True), (40, True), (60, False)):
        folder = tmp_path / f"step-{step:09d}-00000000"
        folder.mkdir()
        pieces = {"weight/w@0": np.full(2, step, np.float32), "exp_avg/w@0": np.zeros(3, np.float32)}
        save_file(pieces, folder / "one")
        save_file({"weight/w@2": np.full(1, -step, np.float32)}, folder / "two")
        fragments = [["weight", "w", 0, 2, "one"], ["weight", "w", 2, 1, "two"], ["exp_avg", "w", 0, 3, "one"]]
        record = {"step": step, "files": {"one": {}, "two": {}}, "parameters": {"w": 3}, "fragments": fragments}
        if manifest:
            (folder / "manifest.json").write_text(json.dumps(record))
    step, weights = report.read_weights(str(tmp_path))
    assert step == 40
    assert weights["w"].tolist() == [40, 40, -40]

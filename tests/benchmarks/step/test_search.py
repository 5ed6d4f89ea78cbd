"""The search for a contender's best batch, against brute force."""

import itertools
import random
from pathlib import Path

from benchmarks.step.search import GAIN, Remembered, Trial, climb, expected_peak


def brute_force(rates: dict[int, float], peaks: dict[int, int], limit: int) -> int | None:
    """The best batch among those that the rule allows, by its definition."""
    best = None
    for number, batch in enumerate(rates):
        before = list(rates)[:number]
        pays = all(rates[b] >= GAIN * rates[a] for a, b in itertools.pairwise(before))
        if pays and all(peaks[b] <= limit for b in (*before, batch)) and (best is None or rates[batch] > rates[best]):
            best = batch
    return best


def test_the_search_finds_what_brute_force_finds() -> None:
    """On random rates, with linearly growing memory: no batch that is too large is tried, and none is missed."""
    draw = random.Random(0)
    outcomes = set()
    for _ in range(500):
        rates = {batch: draw.uniform(1, 1.1) * draw.choice((1, batch**0.3)) for batch in (1, 2, 4, 8, 16)}
        peaks = {batch: 100 + 10 * batch for batch in rates}
        limit = draw.choice((105, 115, 150, 500))
        tried: list[int] = []

        def attempt(batch: int, rates=rates, peaks=peaks, tried=tried) -> Trial | None:  # type: ignore[no-untyped-def]
            tried.append(batch)
            return Trial(batch, [rates[batch]], peaks[batch], 0.0)

        trials = climb(list(rates), attempt, limit=limit, at_rest=100)
        best = max(trials, key=lambda trial: trial.best_rate, default=None)
        expected = brute_force(rates, peaks, limit)
        assert (best.batch if best else None) == expected
        assert all(peaks[batch] <= limit for batch in tried[1:]), "tried a batch that was predictably too large"
        outcomes.add(expected)
    assert outcomes == {None, 1, 2, 4, 8, 16}


def test_the_search_ends_when_the_memory_is_exhausted() -> None:
    """Only the attempt reports it, as on a system that does not report the bytes in use."""
    trials = climb((1, 2, 4, 8), lambda b: Trial(b, [float(b)], None, 0.0) if b < 4 else None, limit=1, at_rest=None)
    assert [trial.batch for trial in trials] == [1, 2]
    assert climb((1, 2), lambda b: None, limit=1, at_rest=0) == []


def test_expected_peaks_lie_on_a_line() -> None:
    trials = [Trial(2, [1.0], 100 + 2 * 30, 0.0), Trial(4, [1.1], 100 + 4 * 30, 0.0)]
    assert expected_peak(trials, 8, at_rest=7) == 100 + 8 * 30
    assert expected_peak(trials[:1], 4, at_rest=100) == 100 + 4 * 30


def test_best_batches_are_remembered(tmp_path: Path) -> None:
    file = tmp_path / "batches.json"
    Remembered(str(file)).put("ours", 8)
    again = Remembered(str(file))
    again.put("timm", 4)
    assert [Remembered(str(file)).get(name) for name in ("ours", "timm", "other")] == [8, 4, None]
    assert Remembered(None).get("ours") is None

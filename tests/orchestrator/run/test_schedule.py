"""Learning rate and lengths, against the paper's formulas written a second time and points worked out by hand."""

import math
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import load_job
from orchestrator.job.kinds import PretrainJob
from orchestrator.job.values import Duration
from orchestrator.run.schedule import Calendar, is_time, learning_rate, steps_of

JFT_STEPS = 1_035_650  # 14 epochs of ceil(303e6 / 4096) = 73,975 steps


def reference(base: float, total: int, warmup: int, decay: str, end: float) -> np.ndarray:
    """Learning rates of steps 0..total, as a table."""
    steps = np.arange(total + 1, dtype=np.float64)
    progress = np.clip((steps - warmup) / (total - warmup), 0, 1)
    down = np.interp(progress, [0, 1], [base, end]) if decay == "linear" else base * np.cos(np.pi * progress / 2) ** 2
    up = np.interp(steps, [0, warmup], [0, 1]) if warmup else np.ones_like(steps)
    return down * up


@pytest.mark.parametrize("decay", ["linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 1, 100])
def test_the_whole_run_follows_the_formula(decay: Literal["linear", "cosine"], warmup: int) -> None:
    rates = [
        learning_rate(step, base=3e-4, total_steps=1000, warmup_steps=warmup, decay=decay, end_lr=1e-5)
        for step in range(1001)
    ]
    np.testing.assert_allclose(rates, reference(3e-4, 1000, warmup, decay, 1e-5), rtol=1e-12, atol=1e-18)


def test_known_points_of_the_h14_recipe() -> None:
    def rate(step: int) -> float:
        return learning_rate(step, base=3e-4, total_steps=JFT_STEPS, warmup_steps=10_000, decay="linear")

    assert rate(0) == 0
    assert rate(5_000) == pytest.approx(1.5e-4)
    assert rate(10_000) == pytest.approx(3e-4)
    assert rate((10_000 + JFT_STEPS) // 2) == pytest.approx((3e-4 + 1e-5) / 2)
    assert rate(JFT_STEPS) == pytest.approx(1e-5)
    assert rate(JFT_STEPS + 10**6) == pytest.approx(1e-5)


def test_known_points_of_a_cosine() -> None:
    def rate(step: int) -> float:
        return learning_rate(step, base=0.03, total_steps=20_500, warmup_steps=500, decay="cosine")

    assert rate(250) == pytest.approx(0.015)
    assert rate(500) == pytest.approx(0.03)
    assert rate(500 + 20_000 // 3) == pytest.approx(0.03 * 0.75, rel=1e-3)  # cos(60 degrees) = 1/2
    assert rate(10_500) == pytest.approx(0.015)
    assert rate(20_500) == pytest.approx(0, abs=1e-18)


def test_a_run_that_is_all_warm_up_rises_to_the_end() -> None:
    rates = [learning_rate(step, base=1.0, total_steps=4, warmup_steps=4, decay="cosine") for step in range(5)]
    assert rates == [0, 0.25, 0.5, 0.75, 1]


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        (Duration(steps=10_000), 10_000),
        (Duration(epochs=14), JFT_STEPS),
        (Duration(epochs=0.5), 36_988),  # 36,987.5, to the even neighbour
        (Duration(epochs=1e-9), 1),
        (Duration(images=303_000_000), 73_975),
        (Duration(images=4096), 1),
        (Duration(images=4097), 2),
        (Duration(images=1), 1),
    ],
)
def test_durations_in_steps(duration: Duration, steps: int) -> None:
    assert steps_of(duration, batch_size=4096, steps_per_epoch=math.ceil(303e6 / 4096)) == steps


@given(every=st.integers(1, 50), total=st.integers(1, 200))
def test_what_is_due_is_every_so_many_steps_and_the_end_and_nothing_else(every: int, total: int) -> None:
    due = [step for step in range(total + 1) if is_time(step, every, total)]
    assert due == sorted({*range(every, total + 1, every), total})


def test_a_calendar_is_the_jobs_durations_in_steps() -> None:
    job = load_job(
        "jobs/pretrain_digits.yaml",
        [
            *("batch_size=100", "data.train.lanes=1", "schedule.length={epochs: 3}", "schedule.warmup={images: 450}"),
            *("tracking.every={steps: 4}", "evaluate.every={epochs: 1.5}", "checkpoint.every={images: 901}"),
        ],
    )
    assert isinstance(job, PretrainJob)
    calendar = Calendar.of(job, steps_per_epoch=14)

    assert (calendar.total_steps, calendar.warmup_steps) == (42, 5)
    assert [step for step in range(43) if calendar.log_due(step)] == [*range(4, 42, 4), 42]
    assert [step for step in range(43) if calendar.evaluation_due(step)] == [21, 42]
    assert [step for step in range(43) if calendar.save_due(step)] == [10, 20, 30, 40, 42]
    assert [calendar.is_over(step) for step in (0, 41, 42)] == [False, False, True]
    assert calendar.epoch(21) == 1.5

    section = job.schedule
    for step in range(42):
        expected = learning_rate(
            step, base=job.optimizer.lr, total_steps=42, warmup_steps=5, decay=section.decay, end_lr=section.end_lr
        )
        assert calendar.lr(step) == expected


def test_an_evaluator_has_a_time_of_its_own() -> None:
    sets = {"pets": {"train": "a", "test": "b"}}
    job = load_job(
        "jobs/pretrain_digits.yaml",
        {
            "schedule.length": {"steps": 25},
            "evaluate.every": {"steps": 4},
            "evaluators": {"few_shot": {"sets": sets, "every": {"steps": 10}}, "knn": {"sets": sets}},
        },
    )
    assert isinstance(job, PretrainJob)
    calendar = Calendar.of(job, 100)
    steps = range(26)
    assert [t for t in steps if calendar.held_out_due(t)] == [4, 8, 12, 16, 20, 24, 25]
    assert [t for t in steps if calendar.evaluator_due("knn", t)] == [4, 8, 12, 16, 20, 24, 25]
    assert [t for t in steps if calendar.evaluator_due("few_shot", t)] == [10, 20, 25]
    assert [t for t in steps if calendar.evaluation_due(t)] == [4, 8, 10, 12, 16, 20, 24, 25]

"""The order of things in the loop, with parts that note their calls. Whole runs are in tests/runs."""

from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.cluster.notices import PlannedExit, Reason
from orchestrator.run.schedule import Calendar
from orchestrator.training.health import Diverged, RollBack
from orchestrator.training.loop import train_to_the_end


class Notes:
    """Stands for every part of a run, and notes calls by name. `answers` has what calls return or raise, in turn."""

    def __init__(self, **answers: list[Any]) -> None:
        self.calls: list[str] = []
        self._answers = answers

    def part(self, *names: str) -> SimpleNamespace:
        return SimpleNamespace(**{name: self._noting(name) for name in names})

    def _noting(self, name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            numbers = [str(a) for a in (*arguments, *options.values()) if isinstance(a, int)]
            self.calls.append(f"{name}({', '.join(numbers)})")
            answer = self._answers[name].pop(0) if self._answers.get(name) else None
            if isinstance(answer, BaseException):
                raise answer
            return answer

        return call


class History(SimpleNamespace):
    def __enter__(self) -> "History":
        return self

    def __exit__(self, *error: object) -> None:
        self.exit()


def run(notes: Notes, *, steps: int = 4) -> list[str]:
    """Train with `resume` answering where each attempt begins; returns the calls."""
    calendar = Calendar(
        total_steps=steps,
        warmup_steps=0,
        steps_per_epoch=2,
        log_every=2,
        evaluate_every=2,
        save_every=3,
        base_lr=1.0,
        end_lr=0.0,
        decay="cosine",
    )
    batch = {"images": None, "labels": None, "weights": None, "valid": None}
    batches = notes.part("close")
    batches.after = lambda step: (SimpleNamespace(step=t, **batch) for t in range(step, steps))
    checkpoints = notes.part("resume", "save", "leave", "roll_back")
    checkpoints.is_best = lambda step: False
    history = notes.part("stepped", "log_training", "end", "exit")
    parts: Any = SimpleNamespace(
        task=SimpleNamespace(seeds=lambda batch: None),
        calendar=calendar,
        engine=notes.part("train_step", "gradient_norm"),
        batches=batches,
        health=SimpleNamespace(stepped=notes._noting("healthy"), metrics=dict),
        history=History(**vars(history)),
        reporter=notes.part(),
        notices=notes.part("agree"),
        held_out=notes.part("is_owed", "measure"),
        checkpoints=checkpoints,
    )
    train_to_the_end(parts)
    return notes.calls


def test_what_a_run_does_when_nothing_happens() -> None:
    step = ["train_step()", "stepped({0})", "healthy()"]

    def of(number: int, *more: str) -> list[str]:
        return [*(line.format(number) for line in step), *more]

    assert run(Notes(resume=[0])) == [
        *("resume()", "is_owed(0)"),
        *of(1, "agree()"),
        *of(2, "gradient_norm()", "log_training(2)", "agree()", "measure(2)"),
        *of(3, "agree()", "save(3, False)"),
        *of(4, "gradient_norm()", "log_training(4)", "agree()", "measure(4)", "save(4, True)"),
        *("close()", "end()", "exit()"),
    ]


def test_a_complete_run_trains_nothing_and_ends() -> None:
    assert run(Notes(resume=[4])) == ["resume()", "is_owed(4)", "close()", "end()", "exit()"]


def test_an_interrupted_evaluation_comes_before_the_next_step() -> None:
    calls = run(Notes(resume=[2], is_owed=[True]))
    assert calls[:4] == ["resume()", "is_owed(2)", "measure(2)", "train_step()"]


@pytest.mark.parametrize(
    ("answers", "calls"),
    [
        ({"agree": [None, Reason.PREEMPTION]}, ["agree()", "leave(2)", "close()", "exit()"]),
        ({"measure": [Reason.RESIZE]}, ["agree()", "measure(2)", "leave(2)", "close()", "exit()"]),
        ({"agree": [None, None, Reason.TERMINATION]}, ["agree()", "leave(3)", "close()", "exit()"]),
    ],
    ids=["between steps, nothing is measured first", "while measuring", "at a step that is due to be saved"],
)
def test_a_notice_ends_the_attempt_with_a_checkpoint(answers: dict[str, list[Any]], calls: list[str]) -> None:
    notes = Notes(resume=[0], leave=[PlannedExit("on purpose")], **answers)
    with pytest.raises(PlannedExit):
        run(notes)
    assert notes.calls[-len(calls) :] == calls


def test_a_notice_while_an_interrupted_evaluation_is_done_again() -> None:
    notes = Notes(resume=[2], is_owed=[True], measure=[Reason.PREEMPTION], leave=[PlannedExit("on purpose")])
    with pytest.raises(PlannedExit):
        run(notes)
    assert notes.calls == ["resume()", "is_owed(2)", "measure(2)", "leave(2)", "close()", "exit()"]


def test_rolling_back_restores_and_goes_on_to_the_end() -> None:
    calls = run(Notes(resume=[0, 3], healthy=[None, None, None, RollBack("too many")]))
    back = calls.index("roll_back()")
    assert calls[back - 1 : back + 4] == ["healthy()", "roll_back()", "close()", "resume()", "is_owed(3)"]
    assert calls[back + 4] == "train_step()"
    assert calls[-3:] == ["close()", "end()", "exit()"]


def test_a_run_that_diverged_ends_without_a_result() -> None:
    notes = Notes(resume=[0], healthy=[Diverged("again")])
    with pytest.raises(Diverged):
        run(notes)
    assert notes.calls[-3:] == ["healthy()", "close()", "exit()"]

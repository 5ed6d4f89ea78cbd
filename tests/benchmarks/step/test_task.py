"""A task is passed to its process as JSON."""

from benchmarks.step.task import Task
from tests.benchmarks.step.tiny import TASK


def test_a_task_is_the_same_after_json() -> None:
    assert Task.from_json(TASK.to_json()) == TASK

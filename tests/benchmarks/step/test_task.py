"""How a task reaches its process."""

from benchmarks.step.task import Task
from tests.benchmarks.step.tiny import TASK


def test_a_task_survives_the_way_to_its_process() -> None:
    assert Task.from_json(TASK.to_json()) == TASK

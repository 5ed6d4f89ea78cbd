"""Counts of the steps that were skipped because they are not finite. Too many in a row roll the run back.

One skipped step means a bad sample or a rare overflow, and training continues. `training.max_bad_steps` in a row mean
that the weights themselves are bad: the run rolls back to its last checkpoint, once, and stops if that does not help.

The counts belong to the weights: they are saved with a checkpoint and restored with it. The mark that the run was
rolled back is not reset by the restore that follows, and is saved with the next checkpoint. If the workers die before
that, the run may roll back once more; so may a run that was stopped here and is submitted again.

Counting never blocks the host. The result of a step stays on the device, and the count is read one step late, when the
device is already working on the next step. Only a count that is one short of the limit is read at once.
"""

from typing import NoReturn

import torch
from torch import Tensor

from data import Batch
from orchestrator.engine.step import Engine, StepResult
from orchestrator.names import IN_A_ROW, SKIPPED, WENT_BACK
from orchestrator.training.diagnosis import diagnose
from orchestrator.wording import count


class RollBack(Exception):
    """The run must continue from its last checkpoint. The message is the reason, in one line."""


class Diverged(Exception):
    """The run must stop. The message is the reason, in one line."""


class Health:
    """Counts skipped steps; the counts are the same on all ranks.

    Args:
        engine: takes the steps.
        max_bad_steps: number of skipped steps in a row that is too many. With 1, the host waits for every step.
    """

    def __init__(self, engine: Engine, max_bad_steps: int) -> None:
        self._engine = engine
        self._limit = max_bad_steps
        self._went_back = False

        cuda = engine.device.type == "cuda"
        self._counts = torch.zeros(2, dtype=torch.int64, device=engine.device)  # in a row, in total
        self._late = torch.zeros(2, dtype=torch.int64, pin_memory=cuda)
        self._copied = torch.cuda.Event() if cuda else None

    def resume(self, metrics: dict[str, float]) -> None:
        """Continue the counts of a checkpoint's metrics; without metrics, start at 0."""
        counts = torch.tensor([int(metrics.get(name, 0)) for name in (IN_A_ROW, SKIPPED)])
        self._counts.copy_(counts)
        self._late.copy_(counts)
        self._went_back = self._went_back or bool(metrics.get(WENT_BACK, 0))

    def stepped(self, result: StepResult, batch: Batch, seeds: Tensor | None) -> None:
        """Count a step on `batch` with `seeds`. All ranks must call it.

        Raises:
            RollBack: on all ranks, if there are too many skipped steps in a row for the first time.
            Diverged: on all ranks, if it is the second time.
        """
        late = self._one_step_late()
        skipped = ~result.applied
        self._counts += skipped
        self._counts[0] *= skipped
        self._late.copy_(self._counts, non_blocking=True)
        if self._copied is not None:
            self._copied.record()
        if late + 1 >= self._limit and (row := int(self._counts[0])) >= self._limit:
            self._give_up(row, batch, seeds)

    def metrics(self) -> dict[str, float]:
        """The counts, for MLflow and for the checkpoint. Waits for a GPU."""
        row, skipped = self._counts.tolist()
        return {SKIPPED: float(skipped), IN_A_ROW: float(row), WENT_BACK: float(self._went_back)}

    def _one_step_late(self) -> int:
        if self._copied is not None:
            self._copied.synchronize()
        return int(self._late[0])

    def _give_up(self, row: int, batch: Batch, seeds: Tensor | None) -> NoReturn:
        reason = (
            f"step {batch.step + 1}: {count(row, 'step')} in a row skipped (training.max_bad_steps = {self._limit}): "
            f"{diagnose(self._engine, batch, seeds)}"
        )
        if self._went_back:
            raise Diverged(f"{reason}; going back to a checkpoint did not help")
        self._went_back = True
        raise RollBack(reason)

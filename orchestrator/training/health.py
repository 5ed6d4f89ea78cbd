"""Steps that were skipped because they were not finite: counted, and too many in a row end the patience with them.

One skipped step is a bad sample or a rare overflow, and training goes on. `training.max_bad_steps` in a row say that
the weights themselves are no good: the run goes back to its last checkpoint, once, and stops if that did not help.

The counts are part of the history that the weights hold: they are saved with a checkpoint and restored with it. That
the run went back outlives the restore that it causes, and is saved with the next checkpoint. If the workers die before
that, the run may go back once more; so may a run that was stopped here and is submitted again.

Counting costs no wait. The step's verdict stays on the device, and the count is read one step late, when the device
already has the next step to work on. Only a count that is one short of the limit is read at once.
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
    """The run must go on from its last checkpoint. The message is one line, the reason."""


class Diverged(Exception):
    """The run must stop. The message is one line."""


class Health:
    """Counts skipped steps, on every rank alike.

    Args:
        max_bad_steps: skipped steps in a row that are too many. With 1, every step is waited for.
    """

    def __init__(self, engine: Engine, max_bad_steps: int) -> None:
        self._engine, self._limit = engine, max_bad_steps
        self._went_back = False
        cuda = engine.device.type == "cuda"
        self._counts = torch.zeros(2, dtype=torch.int64, device=engine.device)  # skipped in a row, skipped in all
        self._late = torch.zeros(2, dtype=torch.int64, pin_memory=cuda)
        self._copied = torch.cuda.Event() if cuda else None

    def resume(self, metrics: dict[str, float]) -> None:
        """Go on counting from a checkpoint's metrics; from 0 with none."""
        counts = torch.tensor([int(metrics.get(name, 0)) for name in (IN_A_ROW, SKIPPED)])
        self._counts.copy_(counts)
        self._late.copy_(counts)
        self._went_back = self._went_back or bool(metrics.get(WENT_BACK, 0))

    def stepped(self, result: StepResult, batch: Batch, seeds: Tensor | None) -> None:
        """Note a step's verdict; `batch` and `seeds` are what it was trained on. Collective when there are too many.

        Raises:
            RollBack: too many in a row for the first time; on all ranks alike.
            Diverged: for the second time; on all ranks alike.
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
        """The counts, for MLflow and for the checkpoint; a GPU is waited for."""
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

"""The methods of every order of samples, as a loader and its reader use them."""

from typing import Protocol

import numpy as np

MASKED = -1  # the sample id of a slot without a sample


class Order(Protocol):
    """Which samples make up each step.

    Attributes:
        batch_size: B, slots of a step over all workers.
        num_samples: samples of an epoch.
        steps_per_epoch: steps of an epoch.
    """

    batch_size: int
    num_samples: int
    steps_per_epoch: int

    @property
    def masked_share(self) -> float:
        """Share of an epoch's slots that have no sample: of the last batches, or of each one if a batch is larger than
        its set."""

    def batch(self, step: int) -> list[int]:
        """Sample ids of a step, slot by slot; -1 is a masked slot. Length batch_size."""

    def slots(self, step: int, start: int, stop: int) -> np.ndarray:
        """Sample ids of slots start .. stop-1 of a step: int64 (stop - start,). Other slots take no time.

        Raises:
            ValueError: there is no such step, or there are no such slots. So do all methods that take them.
        """

    def epoch(self, step: int) -> int:
        """The epoch of a step, from 0."""

    def epochs(self, step: int, start: int, stop: int) -> np.ndarray:
        """For slots start .. stop-1, the number of the pass over the slot's source: int64 (stop - start,)."""

    def blocks_entered(
        self, step: int, start: int, stop: int, since: int = 0, until: int | None = None
    ) -> list[tuple[int, np.ndarray]]:
        """The samples that a reader has to fetch at `step`: those of the blocks that slots start .. stop-1 enter there.

        A block is entered at `step` if these slots use it at `step` and not in steps since .. step-1. Of each such
        block these are the ids that the slots use in steps step .. until-1 (default: to the block's end). Over
        consecutive steps from `since` on, every used id comes exactly once in each pass, at or before its step.

        Returns:
            [(pass, int64 ids in storage order), ...], without empty ones.
        """

    def most_waiting(self, start: int, stop: int) -> int:
        """The most samples of slots start .. stop-1 that wait at one time: given by `blocks_entered`, not used yet.

        What is read ahead of the step comes on top.
        """

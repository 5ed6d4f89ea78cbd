"""What every order of samples promises to a loader."""

from typing import Protocol

import numpy as np

MASKED = -1  # the sample id of a slot without a sample


class Order(Protocol):
    """What a loader and its reader need to know of the samples of every step.

    Attributes:
        batch_size: B, slots of a step over all workers.
        num_samples: samples of an epoch.
        steps_per_epoch: steps that use as many.
    """

    batch_size: int
    num_samples: int
    steps_per_epoch: int

    def batch(self, step: int) -> list[int]:
        """Sample ids of a step, slot by slot; -1 is a masked slot. Length batch_size."""

    def slots(self, step: int, start: int, stop: int) -> np.ndarray:
        """Sample ids of slots start .. stop-1 of a step: int64 (stop - start,). Costs nothing for other slots.

        Raises:
            ValueError: there is no such step, or there are no such slots (every method that takes them).
        """

    def epoch(self, step: int) -> int:
        """The epoch of the whole that a step belongs to, from 0."""

    def epochs(self, step: int, start: int, stop: int) -> np.ndarray:
        """For slots start .. stop-1, which pass over its own source each is in: int64 (stop - start,)."""

    def blocks_entered(
        self, step: int, start: int, stop: int, since: int = 0, until: int | None = None
    ) -> list[tuple[int, np.ndarray]]:
        """What a reader has to fetch at `step`: the blocks that slots start .. stop-1 enter there.

        Of each lane block that these slots touch at `step` and did not touch in steps since .. step-1, the ids that
        they use in steps step .. until-1 (default: to the block's end). Over consecutive steps from `since` on, every
        id that the slots use is given exactly once in each pass, at or before the step that uses it.

        Returns:
            [(pass, int64 ids in storage order), ...], without empty ones.
        """

    def most_waiting(self, start: int, stop: int) -> int:
        """The most samples of slots start .. stop-1 that wait at one time: given by `blocks_entered`, not used yet.

        What is read ahead of the step comes on top.
        """

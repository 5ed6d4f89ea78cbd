"""The samples of one epoch laid end to end, shard by shard."""

from dataclasses import dataclass

import numpy as np

from data.order import selection


@dataclass(frozen=True, eq=False)
class EpochLine:
    """The selected samples of one epoch laid end to end.

    Attributes:
        starts: int64 (runs + 1,): the position of each run on the line, in the epoch's order; last the line's length.
        shift: int64 (runs,): sample id minus line position within that run.
        turn: rotation of the line: position p of the rotated line is position (p + turn) mod length of the runs.
    """

    starts: np.ndarray
    shift: np.ndarray
    turn: int

    def ids(self, positions: np.ndarray) -> np.ndarray:
        """Sample ids at these positions of the line: int64, same shape."""
        positions = (positions + self.turn) % self.starts[-1]
        return positions + self.shift[np.searchsorted(self.starts, positions, side="right") - 1]


def epoch_line(
    selected: selection.Selection, shard_bounds: np.ndarray, shard_order: np.ndarray, turn: int
) -> EpochLine:
    """Lay the runs out shard by shard, in `shard_order`; shard s has runs shard_bounds[s] .. shard_bounds[s+1]-1."""
    sizes = np.diff(shard_bounds)[shard_order]
    # Of each shard in turn, the numbers of its runs: a count over all runs, moved to where the shard's begin.
    runs = np.arange(sizes.sum()) + np.repeat(shard_bounds[shard_order] - (np.cumsum(sizes) - sizes), sizes)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(selected.count[runs])])
    return EpochLine(starts, selected.first[runs] - starts[:-1], turn)

"""Exchange of a few numbers between all ranks. Collective: every rank calls these functions, in the same order."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def all_reduce_sums(values: Sequence[Tensor]) -> list[float]:
    """Sum scalars over all ranks, in float64, and bring the sums to the host."""
    stacked = torch.stack([value.double() for value in values])
    dist.all_reduce(stacked)
    return [float(x) for x in stacked]


def on_all_ranks(value: int) -> list[int]:
    """Every rank's value, in the order of the ranks."""
    values = [0] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values

"""Numbers that all ranks exchange."""

import torch.distributed as dist


def on_all_ranks(value: int) -> list[int]:
    """Every rank's value, by rank. Collective."""
    values = [0] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values

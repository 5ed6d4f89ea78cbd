"""A process group of one, for an engine that trains in a single process."""

import os

import torch
import torch.distributed as dist


def join_alone(device: torch.device) -> None:
    """Creates the process group of this process alone. Its store listens on a free local port."""
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1")  # DeepSpeed reads them
    store = dist.TCPStore("127.0.0.1", 0, world_size=1, is_master=True)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=0, world_size=1)

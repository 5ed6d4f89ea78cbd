"""Run a function on N real processes joined by torch.distributed (gloo), as Ray Train would, but without Ray."""

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["infra.local.ranks_preload"])


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Call `function(*args)` on each rank; returns what each rank returned, or raises with the first traceback."""
    with tempfile.TemporaryDirectory() as rendezvous:
        queue = _context.Queue()
        processes = [
            _context.Process(target=_rank_main, args=(rank, world_size, rendezvous, queue, function, args))
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        results: dict[int, Any] = {}
        failure = None
        for _ in processes:
            rank, result, error = queue.get(timeout=300)
            results[rank] = result
            if error is not None:
                failure = error
                break
        for process in processes:
            if failure is not None:
                process.kill()
            process.join(timeout=60)
    if failure is not None:
        raise RuntimeError(f"a rank failed:\n{failure}")
    return [results[rank] for rank in range(world_size)]


def _rank_main(
    rank: int, world_size: int, rendezvous: str, queue: Any, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    import torch
    import torch.distributed as dist

    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), DS_ACCELERATOR="cpu")
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}/store", rank=rank, world_size=world_size)
        queue.put((rank, function(*args), None))
    except BaseException:
        queue.put((rank, None, traceback.format_exc()))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()

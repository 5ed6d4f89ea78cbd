"""Runs a function in N processes joined by torch.distributed (gloo), as Ray Train does, but without Ray.

The processes are forked from a server that has done the slow imports once (`ranks_preload`).
"""

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

RESULT_SECONDS = 300  # for the next rank to return
EXIT_SECONDS = 60  # for a process to end after its rank has returned

_TRAINING = "infra.local.ranks_preload"
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([_TRAINING])


def preload(*modules: str) -> None:
    """Have the server import these modules, too. It must not run yet."""
    _context.set_forkserver_preload([_TRAINING, *modules])


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Calls `function(*args)` on each rank, on one thread each, and returns the results by rank.

    Args:
        function: importable by its name, since the other processes receive it pickled; so are `args` and the results.

    Raises:
        RuntimeError: a rank failed. The message has its traceback; the other ranks are killed.
        queue.Empty: no rank returned within RESULT_SECONDS.
    """
    with tempfile.TemporaryDirectory() as rendezvous:
        queue, received = _context.Queue(), _context.Event()
        processes = [
            _context.Process(target=_rank_main, args=(rank, world_size, rendezvous, queue, received, function, args))
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        results: dict[int, Any] = {}
        failure = None
        for _ in processes:
            rank, result, error = queue.get(timeout=RESULT_SECONDS)
            results[rank] = result
            if error is not None:
                failure = error
                break
        received.set()
        for process in processes:
            if failure is not None:
                process.kill()
            process.join(timeout=EXIT_SECONDS)
    if failure is not None:
        raise RuntimeError(f"a rank failed:\n{failure}")
    return [results[rank] for rank in range(world_size)]


def _rank_main(
    rank: int,
    world_size: int,
    rendezvous: str,
    queue: Any,
    received: Any,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    import torch
    import torch.distributed as dist

    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), DS_ACCELERATOR="cpu")
    os.environ["LOCAL_SIZE"] = "1"  # sockets; without it, DeepSpeed runs `numactl` in every micro-batch of stage 3
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}/store", rank=rank, world_size=world_size)
        queue.put((rank, function(*args), None))
    except BaseException:
        queue.put((rank, None, traceback.format_exc()))
    finally:
        received.wait(RESULT_SECONDS)  # tensors of a result are fetched from this process
        if dist.is_initialized():
            dist.destroy_process_group()

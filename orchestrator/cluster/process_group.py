"""torch.distributed among the workers, set up as by Ray Train's own `TorchConfig`.

Only workers import torch for it. `TorchConfig` imports torch in the driver and in Ray Train's controller, too: 1.5 s
of CPU each, one after the other, before the first worker starts.
"""

import gc
import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import ray
from ray._private.ray_constants import env_integer
from ray.exceptions import GetTimeoutError
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.constants import (
    DEFAULT_TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S,
    TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S,
)
from ray.train.v2._internal.util import TrainingFramework


@contextmanager
def imports_without_collection() -> Iterator[None]:
    """Pause Python's garbage collector: what an import makes stays, and looking through it took a tenth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # else the next collection would look through all of it
        gc.enable()


@dataclass
class ProcessGroup(BackendConfig):
    """Ray Train's configuration of the process group.

    Attributes:
        backend: of torch.distributed: gloo or nccl.
        timeout_s: seconds that a collective may take.
    """

    backend: str
    timeout_s: int = 1800

    @property
    def backend_cls(self) -> type[Backend]:
        """What sets the group up."""
        return _Setup

    @property
    def train_func_context(self) -> Any:
        """A context manager for what each worker runs."""
        return _on_own_gpu

    @property
    def framework(self) -> TrainingFramework:
        """Of which Ray Train notes the version."""
        return TrainingFramework.TORCH

    def to_dict(self) -> dict[str, Any]:
        """The settings, for Ray's dashboard."""
        return asdict(self)


class _Setup(Backend):
    """Sets the process group up, in Ray Train's controller."""

    share_cuda_visible_devices = True  # of a node, among its workers

    def on_start(self, worker_group: Any, backend_config: ProcessGroup) -> None:
        """Called when the workers are there."""
        address, port = worker_group.execute_single(0, get_address_and_port)
        world_size = len(worker_group)
        ray.get(
            [
                worker_group.execute_single_async(rank, _join, backend_config, address, port, rank, world_size)
                for rank in range(world_size)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: ProcessGroup) -> None:
        """Called before the workers are ended."""
        seconds = env_integer(TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S, DEFAULT_TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S)
        try:
            ray.get(worker_group.execute_async(_leave, len(worker_group)), timeout=seconds)
        except GetTimeoutError:
            logging.getLogger(__name__).warning("the workers have not left the process group in %d s", seconds)


def _join(config: ProcessGroup, address: str, port: int, rank: int, world_size: int) -> None:
    """Join the group; runs on each worker."""
    with imports_without_collection():
        from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group
    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
    _set_torch_distributed_env_vars()
    # DeepSpeed's launcher sets it, too. Without it, DeepSpeed on a CPU counts devices by running `numactl`, at each
    # reduction of gradients at ZeRO stage 3.
    os.environ["LOCAL_SIZE"] = os.environ["LOCAL_WORLD_SIZE"]
    _setup_torch_process_group(config.backend, rank, world_size, "env://", config.timeout_s)


def _leave(world_size: int) -> None:
    """Leave the group; runs on each worker."""
    from ray.train.torch.config import _shutdown_torch

    _shutdown_torch(destroy_process_group=world_size > 1)


def _on_own_gpu() -> AbstractContextManager[Any]:
    """Makes the worker's GPU the current one; runs on each worker."""
    from ray.train.torch.config import TorchConfigContextManager

    return TorchConfigContextManager()

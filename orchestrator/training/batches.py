"""The batches that a worker trains and measures on: its slots of every step, decoded ahead by threads."""

from collections.abc import Callable, Iterator

import torch.distributed as dist

from data import Augment, Batch, Cache, Index, Loader, Order
from orchestrator.cluster.watchdog import Heartbeat
from orchestrator.engine.step import Engine
from orchestrator.history.history import History
from orchestrator.job import data_sections, sections
from orchestrator.job.choices import HeldOutAugment
from orchestrator.job.kinds import AnyRun, NetworkJob
from orchestrator.run.training_set import TrainingSet


def open_loader(
    job: AnyRun,
    index: Index,
    order: Order,
    slots: int,
    augment: data_sections.Augment | HeldOutAugment,
    start: int,
    stop: int,
    *,
    num_classes: int | None,
) -> Loader:
    """This worker's slots of the steps from `start` to `stop` of an order. The caller closes the loader.

    Args:
        job: with a known image size.
        index, order: the set and its order.
        slots: of this worker, in each batch.
        augment: from a decoded image to the network's input.
        start, stop: steps.
        num_classes: samples with labels of this number or more are unusable; None: those beyond the set's classes.
    """
    assert job.model.image_size is not None
    return Loader(
        index,
        order,
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        image_size=job.model.image_size,
        augment=Augment(**augment.model_dump()),
        seed=job.seed if isinstance(job, NetworkJob) else 0,  # nothing is random in a measurement
        start_step=start,
        stop_step=stop,
        slots_per_rank=slots,
        threads=job.data.workers or max(1, int(job.cluster.resources_per_worker.get("CPU", 1))),
        prefetch=job.data.prefetch,
        num_classes=num_classes,
        memory=job.data.memory,
        cache=None if job.data.cache_dir is None else Cache(job.data.cache_dir, job.data.cache_size),
        mask_unreadable=job.data.unreadable == "mask",
    )


def classes_of(job: NetworkJob) -> int | None:
    """Classes of the network's head; None if it has none."""
    return job.model.num_classes if isinstance(job.model, sections.Model) else None


class TrainingBatches:
    """The batches of a run, from any step to its end.

    Args:
        job, data, engine: the run's.
        total_steps: length of the run.
        heartbeat: tells that the worker lives, with each batch.
        history: counts the time that training waits for batches.
        record: is given each batch before it is trained on.
    """

    def __init__(
        self,
        job: NetworkJob,
        data: TrainingSet,
        engine: Engine,
        *,
        total_steps: int,
        heartbeat: Heartbeat,
        history: History,
        record: Callable[[Batch], None],
    ) -> None:
        self._job = job
        self._data = data
        self._engine = engine
        self._total_steps = total_steps
        self._heartbeat = heartbeat
        self._history = history
        self._record = record
        self._loader: Loader | None = None

    def after(self, step: int) -> Iterator[Batch]:
        """The batches of step `step`, `step` + 1, ... until the end of the run."""
        augment = self._job.data.train.augment
        self._loader = open_loader(
            self._job,
            self._data.index,
            self._data.order,
            self._engine.micro_batch * self._engine.micro_batches,
            augment,
            step,
            self._total_steps,
            num_classes=classes_of(self._job),
        )
        for batch in self._heartbeat.around(self._history.timed(self._loader)):
            self._record(batch)
            yield batch

    def close(self) -> None:
        """Stop the threads that decode."""
        if self._loader is not None:
            self._loader.close()
            self._loader = None

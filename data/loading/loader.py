"""The local slice of every step, as uint8 batches ready for the accelerator.

    fetch threads (reader.py)  ──>  decode threads, a few samples a task  ──>  batch, in slot order  ──>  training loop

Decoding runs in threads, not processes: OpenCV releases Python's lock, so threads use every core without copying a
pixel. Each batch is a new zeroed buffer that belongs to the consumer, so that a batch never changes later. Fresh pages
take about a thousandth of the time of decoding into them.
"""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Self

import cv2
import numpy as np
import torch

from data.errors import BadSample
from data.images.augment import Augment
from data.loading.budget import decoded_bytes
from data.loading.cache import Cache
from data.loading.reader import Reader, Sample, Statistics, UnreadableSample
from data.order import MASKED, Order
from data.parallel import usable_cpus
from data.shards import fields
from data.shards.index import Index

TASK_SAMPLES = 16  # samples of a decode task: many against its overhead, few against a batch


class MaskedSample(NamedTuple):
    """A sample that cannot be used: its slot is masked. `key` is empty if even that cannot be read."""

    sample_id: int
    key: str
    shard: str
    cause: str


@dataclass(frozen=True, eq=False)
class Batch:
    """One worker's slots of one step: n slots, the same number on every worker, with at most L labels each.

    Attributes:
        step: number of the training step, from 0.
        ids: int64 (n,), sample ids; -1 is a masked slot.
        images: uint8 (n, 3, H, W), RGB 0..255, in channels-last memory. Masked slots are black.
        labels: int64 (n, L), padded with -1. L is 1 for single-label data, else the most labels of an image here.
        weights: float32 (n, L), of the labels; 0 for padding.
        valid: bool (n,): the slot holds a usable sample.
        slots: int64 (n,), place in the global batch; -1 for padding.
        bad: samples whose slots are masked because they cannot be used.
        keys: n names of the samples in their shards; "" is a masked slot.
    """

    step: int
    ids: torch.Tensor
    images: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    valid: torch.Tensor
    slots: torch.Tensor
    bad: list[MaskedSample]
    keys: list[str]


Outcome = tuple[int, str, fields.Labels | MaskedSample]  # of a sample: place in the batch, key, labels or cause


@dataclass(frozen=True, eq=False)
class _Unfinished:
    """A batch that is being decoded."""

    step: int
    ids: np.ndarray
    slots: np.ndarray
    images: torch.Tensor
    tasks: Sequence[Future[list[Outcome]]]
    multi_label: bool

    def finish(self) -> Batch:
        """Wait for the decoders and collect the labels."""
        outcomes = [outcome for task in self.tasks for outcome in task.result()]
        bad = [result for _, _, result in outcomes if isinstance(result, MaskedSample)]
        labelled = [(place, key, result) for place, key, result in outcomes if not isinstance(result, MaskedSample)]
        width = max((len(found.classes) for _, _, found in labelled), default=1) if self.multi_label else 1
        labels = np.full((len(self.ids), max(width, 1)), -1, np.int64)
        weights = np.zeros(labels.shape, np.float32)
        valid = np.zeros(len(self.ids), bool)
        keys = [""] * len(self.ids)
        for place, key, found in labelled:
            labels[place, : len(found.classes)] = found.classes
            weights[place, : len(found.classes)] = found.weights
            valid[place] = True
            keys[place] = key
        return Batch(
            step=self.step,
            ids=torch.from_numpy(np.where(valid, self.ids, MASKED)),
            images=self.images.permute(0, 3, 1, 2),
            labels=torch.from_numpy(labels),
            weights=torch.from_numpy(weights),
            valid=torch.from_numpy(valid),
            slots=torch.from_numpy(self.slots),
            bad=bad,
            keys=keys,
        )


class Loader:
    """Iterator over this worker's batches of steps start_step .. stop_step-1. Threads start at once.

    Args:
        index, order: the data set and its order.
        rank, world_size: number of this worker, and of all workers. Of B slots, a worker has ceil(B / world_size) in a
            row.
        image_size: side of the images, pixels.
        augment: augmentation of the images, a pure function of (seed, epoch, sample id).
        slots_per_rank: slots of a batch, padded with masked ones. Default and least: ceil(B / world_size).
        threads: decoding threads. Default: one for each CPU of this process.
        prefetch: batches that are decoded ahead of the one in use.
        num_classes: samples with labels of this number or more are unusable. Default: the index's.
        memory: bytes for samples, encoded and decoded. Default: those that the order needs, and 256 MiB to read ahead.
        cache: of whole shards on a local disk.
        mask_unreadable: if a shard stays unreadable, its samples are masked; else it is an error.

    Use it in a `with`, or iterate to its end, or call `close()`. `next()` raises the errors of the threads.

    Raises:
        ValueError: arguments that do not fit together.
        DataError: `memory` is too little for the order.
    """

    def __init__(
        self,
        index: Index,
        order: Order,
        *,
        rank: int,
        world_size: int,
        image_size: int,
        augment: Augment,
        seed: int,
        start_step: int = 0,
        stop_step: int,
        slots_per_rank: int | None = None,
        threads: int | None = None,
        prefetch: int = 2,
        num_classes: int | None = None,
        memory: int | None = None,
        cache: Cache | None = None,
        mask_unreadable: bool = False,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size} workers")
        share = -(-order.batch_size // world_size)
        if slots_per_rank is not None and slots_per_rank < share:
            raise ValueError(f"slots_per_rank {slots_per_rank} is less than the {share} slots that a worker has")
        augment.check(image_size)
        self._slots = range(min(rank * share, order.batch_size), min((rank + 1) * share, order.batch_size))
        self._size = slots_per_rank or share
        self._order = order
        self._index = index
        self._num_classes = num_classes or index.num_classes
        self._image_size = image_size
        self._augment = augment
        self._seed = seed
        self._steps = iter(range(start_step, stop_step))
        self._prefetch = prefetch
        self._pending: deque[_Unfinished] = deque()
        cv2.setNumThreads(1)  # each thread decodes a whole image: OpenCV's own threads would compete with ours
        self._reader = Reader(
            index,
            order,
            self._slots,
            start_step,
            stop_step,
            memory=None if memory is None else memory - decoded_bytes(self._size, image_size, prefetch),
            cache=cache,
            mask_unreadable=mask_unreadable,
        )
        self._decoders = ThreadPoolExecutor(threads or usable_cpus(), thread_name_prefix="data-decode")
        self._fill()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if not self._pending:
            self.close()
            raise StopIteration
        unfinished = self._pending.popleft()
        self._fill()
        try:
            return unfinished.finish()
        except BaseException:
            self.close()
            raise

    def statistics(self) -> Statistics:
        """The reader's counts so far."""
        return self._reader.statistics()

    def close(self) -> None:
        """Stop the threads and drop all batches that are left. It may be called twice."""
        self._pending.clear()
        self._steps = iter(range(0))
        self._reader.close()
        self._decoders.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _fill(self) -> None:
        """Keep `prefetch` batches in work besides the one that is handed over."""
        while len(self._pending) <= self._prefetch and (step := next(self._steps, None)) is not None:
            self._pending.append(self._start(step))

    def _start(self, step: int) -> _Unfinished:
        ids = np.full(self._size, MASKED, np.int64)
        ids[: len(self._slots)] = self._order.slots(step, self._slots.start, self._slots.stop)
        slots = np.full(self._size, MASKED, np.int64)
        slots[: len(self._slots)] = self._slots
        # numpy's zeros are huge pages, which the decoders are the first to touch. torch would fill them here.
        images = np.zeros((self._size, self._image_size, self._image_size, 3), np.uint8)
        epochs = np.zeros(self._size, np.int64)
        epochs[: len(self._slots)] = self._order.epochs(step, self._slots.start, self._slots.stop)
        used = np.flatnonzero(ids != MASKED)
        tasks = [
            self._decoders.submit(self._decode, step, ids, epochs, images, used[first : first + TASK_SAMPLES])
            for first in range(0, len(used), TASK_SAMPLES)
        ]
        return _Unfinished(step, ids, slots, torch.from_numpy(images), tasks, self._index.multi_label)

    def _decode(
        self, step: int, ids: np.ndarray, epochs: np.ndarray, images: np.ndarray, places: np.ndarray
    ) -> list[Outcome]:
        """Decode the samples at some places of a batch into its buffer."""
        numbers, passes = ids[places].tolist(), epochs[places].tolist()
        samples = self._reader.take(step, list(zip(passes, numbers, strict=True)))
        return [
            (
                place,
                sample.key if isinstance(sample, Sample) else "",
                self._render(sample, images[place], epoch, number),
            )
            for place, sample, epoch, number in zip(places.tolist(), samples, passes, numbers, strict=True)
        ]

    def _render(
        self, sample: Sample | UnreadableSample, image: np.ndarray, epoch: int, sample_id: int
    ) -> fields.Labels | MaskedSample:
        if isinstance(sample, UnreadableSample):
            return MaskedSample(sample_id, "", sample.shard, sample.cause)
        try:
            rule = self._index.label_rule(sample_id)
            labels = rule.usable(sample.fields, self._num_classes, self._index.multi_label)
            encoded = fields.image_bytes(sample.fields)
            self._augment.render(encoded, image, seed=self._seed, epoch=epoch, sample_id=sample_id)
            return labels
        except BadSample as bad:
            return MaskedSample(sample_id, sample.key, sample.shard, bad.cause)

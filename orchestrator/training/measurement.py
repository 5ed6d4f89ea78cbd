"""What an evaluator measures with: the network as it is now, and any set of images, shared out over the workers."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist

from data import Batch, Index, MaskedSample, SampleOrder, open_index
from orchestrator.job.choices import HeldOutAugment
from orchestrator.job.kinds import AnyRun
from orchestrator.training.batches import open_loader

MIDDLE = HeldOutAugment(crop="center")


class Network(Protocol):
    """What evaluators compute with: the engine of a run, or a trained network (`training/evaluation/frozen.py`).

    Attributes:
        device: of the weights.
        micro_batch: images that one call of `logits` or `features` may take.
        micro_batches: such parts of this rank's share of a batch.
    """

    device: torch.device
    micro_batch: int
    micro_batches: int

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Logits in evaluation mode, float32 (n, K), of uint8 images (n, 3, H, W). Collective."""

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """What the head reads, in evaluation mode: float32 (n, F), of uint8 images (n, 3, H, W). Collective."""


@dataclass(frozen=True, eq=False)
class HeldOutSet:
    """One pass over a set of images.

    Attributes:
        index: of the set.
        batches: this worker's slots of each batch, in the order of the index; each image is in one slot of one worker.
        positive: a label is right if its weight is above this.
    """

    index: Index
    batches: Iterator[Batch]
    positive: float = 0.0


@dataclass(frozen=True, eq=False)
class Measurement:
    """One evaluation: an evaluator is called with it on every rank at the same step.

    Attributes:
        engine: computes logits with the weights of this step.
        job: the job, with absolute URLs.
        step: updates made.
        num_classes: of the network's head; None if it has none.
        kept: what evaluators keep for each other until this evaluation ends, such as the features of a set.
    """

    engine: Network
    job: AnyRun
    step: int
    num_classes: int | None
    _around: Callable[[Iterable[Any]], Iterator[Any]]
    _report_bad: Callable[[str, Iterable[MaskedSample]], None]
    kept: dict[Any, Any] = field(default_factory=dict)

    @contextmanager
    def open(
        self,
        name: str,
        url: str,
        augment: HeldOutAugment = MIDDLE,
        positive: float = 0.0,
        *,
        own_classes: bool = False,
    ) -> Iterator[HeldOutSet]:
        """Open a set of images for one pass; every rank opens the same ones in the same order.

        Args:
            name: under which unusable images are listed beside the run.
            url: folder of shards with an index.json.
            augment: from a decoded image to the network's input.
            positive: a label is right if its weight is above this.
            own_classes: its classes are its own; else images with labels beyond the network's classes are unusable.

        Raises:
            DataError: the set cannot be opened.
            EvaluationCutOff: while batches are taken: a notice that this attempt has to end.
        """
        index = open_index(url)
        order = SampleOrder(index, batch_size=self.job.batch_size, shuffle=False)
        classes = index.num_classes if own_classes else self.num_classes
        slots = self.engine.micro_batch * self.engine.micro_batches
        with open_loader(
            self.job, index, order, slots, augment, 0, order.steps_per_epoch, num_classes=classes
        ) as loader:
            yield HeldOutSet(index, self._usable(name, loader), positive)

    def on_one(self, solve: Callable[[], dict[str, float]]) -> dict[str, float]:
        """What `solve` returns on rank 0, on every rank. Collective.

        It may take long: it runs in a thread of rank 0, beside heartbeats and notices.

        Raises:
            EvaluationCutOff: a notice that this attempt has to end. `solve` is then abandoned.
            RuntimeError: `solve` failed; the cause has the error of rank 0.
        """
        outcome: list[Any] = [None, None]  # its result, its error

        def run() -> None:
            try:
                if self.engine.device.type == "cuda":
                    torch.cuda.set_device(self.engine.device)  # each thread has its own
                outcome[0] = solve()
            except Exception as error:
                outcome[1] = error

        thread = threading.Thread(target=run, name="solve", daemon=True)
        if dist.get_rank() == 0:
            thread.start()
        for _ in self._around(self._until_ended(thread)):
            pass  # a heartbeat, and a look at the notices
        error = outcome[1]
        shared = [outcome[0], None if error is None else f"{type(error).__name__}: {error}"]
        dist.broadcast_object_list(shared)
        metrics, failure = shared
        if failure is not None:
            raise RuntimeError(f"an evaluator failed on rank 0: {failure}") from error
        found: dict[str, float] = metrics
        return found

    def _until_ended(self, thread: threading.Thread) -> Iterator[None]:
        """Items, as many on every rank, until a thread of rank 0 ends."""
        ended = torch.zeros((), device=self.engine.device)
        while True:
            if dist.get_rank() == 0:
                thread.join(timeout=1.0)
                ended.fill_(not thread.is_alive())
            dist.broadcast(ended, 0)
            if ended:
                return
            yield

    def _usable(self, name: str, loader: Iterable[Batch]) -> Iterator[Batch]:
        for batch in self._around(loader):
            self._report_bad(name, batch.bad)
            yield batch

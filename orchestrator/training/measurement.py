"""What an evaluator measures with: the network as it is now, and any set of images, shared out over the workers."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from data import Batch, Index, MaskedSample, SampleOrder, open_index
from orchestrator.engine.step import Engine
from orchestrator.job import data_sections
from orchestrator.job.kinds import NetworkJob
from orchestrator.training.batches import open_loader

MIDDLE = data_sections.HeldOutAugment(crop="center")


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
    """

    engine: Engine
    job: NetworkJob
    step: int
    _around: Callable[[Iterable[Batch]], Iterator[Batch]]
    _report_bad: Callable[[str, Iterable[MaskedSample]], None]

    @contextmanager
    def open(
        self, name: str, url: str, augment: data_sections.HeldOutAugment = MIDDLE, positive: float = 0.0
    ) -> Iterator[HeldOutSet]:
        """Open a set of images for one pass; every rank opens the same ones in the same order.

        Args:
            name: under which unusable images are listed beside the run.
            url: folder of shards with an index.json.
            augment: from a decoded image to the network's input.
            positive: a label is right if its weight is above this.

        Raises:
            DataError: the set cannot be opened.
            EvaluationCutOff: while batches are taken: a notice that this attempt has to end.
        """
        index = open_index(url)
        order = SampleOrder(index, batch_size=self.job.batch_size, shuffle=False)
        with open_loader(self.job, index, order, self.engine, augment, 0, order.steps_per_epoch) as loader:
            yield HeldOutSet(index, self._usable(name, loader), positive)

    def _usable(self, name: str, loader: Iterable[Batch]) -> Iterator[Batch]:
        for batch in self._around(loader):
            self._report_bad(name, batch.bad)
            yield batch

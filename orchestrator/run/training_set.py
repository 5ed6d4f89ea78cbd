"""What a job trains on: one set or several, whole, a fixed part, or without near-duplicates of test images.

Sets without weights are one large set: their shards are shuffled together. Sets with weights share every batch: each
has a fixed number of its slots, and passes of its own.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from data.order.exclude import open_exclusions
from data.order.mixture import Mixture, shares
from data.order.sample_order import Order, SampleOrder
from data.order.selection import Selection, everything, joined, subset, without
from data.shards.index import Index, concatenate, open_index
from orchestrator.job.sections import Source, TrainSet


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """The samples of a run.

    Attributes:
        index: of all its sets, one after another.
        order: which of them make up each step.
        digest: of what is trained on: the shards, and the choice among their samples.
    """

    index: Index
    order: Order
    digest: str


def open_training_set(settings: TrainSet, *, seed: int, batch_size: int) -> TrainingSet:
    """Open the sets of `data.train`, whose URLs are absolute, and put them in order.

    Raises:
        DataError: a set cannot be opened, or the numbers do not fit it.
    """
    sources = list(settings.all_sources().values())
    indexes = [open_index(source.url) for source in sources]
    selections = [select(source, index) for source, index in zip(sources, indexes, strict=True)]
    return compose(settings, indexes, selections, seed=seed, batch_size=batch_size)


def select(source: Source, index: Index) -> Selection:
    """The part of a set that takes part.

    Raises:
        DataError: the subset is larger than the set, or the list of exclusions is not of this set.
    """
    chosen = everything(index) if source.subset is None else subset(index, source.subset)
    return chosen if source.exclude is None else without(chosen, open_exclusions(source.exclude, index))


def compose(
    settings: TrainSet, indexes: Sequence[Index], selections: Sequence[Selection], *, seed: int, batch_size: int
) -> TrainingSet:
    """Put opened sets in order; `indexes` and `selections` are those of `settings.all_sources()`.

    Raises:
        DataError: the numbers do not fit the sets.
    """
    whole = concatenate(indexes) if len(indexes) > 1 else indexes[0]
    weights = [source.weight for source in settings.all_sources().values() if source.weight is not None]
    if weights and len(indexes) > 1:
        order: Order = _mixture(settings, indexes, selections, weights, seed=seed, batch_size=batch_size)
    else:
        order = SampleOrder(
            whole,
            seed=seed,
            batch_size=batch_size,
            lanes=settings.lanes,
            block=settings.block,
            selected=joined(indexes, selections),
        )
    return TrainingSet(whole, order, _digest(indexes, selections))


def _mixture(
    settings: TrainSet,
    indexes: Sequence[Index],
    selections: Sequence[Selection],
    weights: Sequence[float],
    *,
    seed: int,
    batch_size: int,
) -> Mixture:
    parts, first_id = [], 0
    for index, selection, slots in zip(indexes, selections, shares(weights, batch_size), strict=True):
        lanes = None if settings.lanes is None else max(1, settings.lanes * slots // batch_size)
        order = SampleOrder(index, seed=seed, batch_size=slots, lanes=lanes, block=settings.block, selected=selection)
        parts.append((order, first_id))
        first_id += index.num_samples
    return Mixture(parts)


def _digest(indexes: Sequence[Index], selections: Sequence[Selection]) -> str:
    """The index's own digest for one whole set, so that it says the same as the index; else one of all choices."""
    if len(indexes) == 1 and selections[0].num_samples == indexes[0].num_samples:
        return indexes[0].digest
    digest = hashlib.sha256()
    for index, selection in zip(indexes, selections, strict=True):
        digest.update(index.digest.encode())
        digest.update(selection.first.tobytes() + selection.count.tobytes())
    return digest.hexdigest()

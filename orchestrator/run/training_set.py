"""What a job trains on: one set or several, whole, a fixed part, or without near-duplicates of test images.

Sets without weights are one large set: their shards are shuffled together. Sets with weights share every batch: each
has a fixed number of its slots, and passes of its own.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data import Index, Mixture, Order, SampleOrder, open_index
from data.errors import DataError
from data.order.exclude import open_exclusions
from data.order.mixture import shares
from data.order.selection import Selection, everything, joined, subset, without
from data.shards.index import concatenate
from orchestrator.job.data_sections import Source, TrainSet


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """The samples of a run.

    Attributes:
        index: of all its sets, one after another.
        order: which of them make up each step.
        digest: of what is trained on: the shards, how their labels are read, and the choice among their samples.
    """

    index: Index
    order: Order
    digest: str


class TrainingSetError(DataError):
    """The training set cannot be used. The message does not repeat the key.

    Attributes:
        key: the key of the job that is wrong.
        others: what else is wrong.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key
        self.others: tuple[TrainingSetError, ...] = ()


def _as_written(key: str, url: str) -> str:
    return url


def _open(key: str, url: str) -> Index:
    return open_index(url)


def open_training_set(
    settings: TrainSet,
    *,
    seed: int,
    batch_size: int,
    resolve: Callable[[str, str], str] = _as_written,
    open_set: Callable[[str, str], Index] = _open,
) -> TrainingSet:
    """Open the sets of `data.train` and put them in order.

    Args:
        settings: `data.train`, with absolute URLs unless `resolve` and `open_set` make them so.
        seed, batch_size: the job's.
        resolve: (key, URL) -> absolute URL, for lists of exclusions.
        open_set: (key, URL) -> index, for sets of images.

    Raises:
        TrainingSetError: a set is for measuring only, the numbers do not fit it, or a list of exclusions is of another.
        DataError: a set cannot be opened.
    """
    indexes, selections = [], []
    wrong: list[TrainingSetError] = []
    for key, source in settings.all_sources().items():
        index = open_set(f"{key}.url", source.url)
        try:
            if index.measure_only:
                raise TrainingSetError(f"{key}.url", f"{source.url} is for measuring only: {index.measure_only}")
            selections.append(_selection(key, source, index, resolve))
            indexes.append(index)
        except TrainingSetError as error:
            wrong.append(error)
    if wrong:
        wrong[0].others = tuple(wrong[1:])
        raise wrong[0]
    try:
        order = _order(settings, indexes, selections, seed=seed, batch_size=batch_size)
    except DataError as error:
        raise TrainingSetError("data.train.sources" if settings.sources else "data.train.url", str(error)) from error
    whole = concatenate(indexes) if len(indexes) > 1 else indexes[0]
    return TrainingSet(whole, order, _digest(indexes, selections))


def _selection(key: str, source: Source, index: Index, resolve: Callable[[str, str], str]) -> Selection:
    """The samples of a set that are trained on."""
    wrong = f"{key}.subset"
    try:
        chosen = everything(index) if source.subset is None else subset(index, source.subset)
        if source.exclude is None:
            return chosen
        wrong = f"{key}.exclude"
        return without(chosen, open_exclusions(resolve(wrong, source.exclude), index))
    except DataError as error:
        raise TrainingSetError(wrong, str(error)) from error


def _order(
    settings: TrainSet, indexes: Sequence[Index], selections: Sequence[Selection], *, seed: int, batch_size: int
) -> Order:
    weights = [source.weight for source in settings.all_sources().values() if source.weight is not None]
    if weights and len(indexes) > 1:
        return _mixture(settings, indexes, selections, weights, seed=seed, batch_size=batch_size)
    return SampleOrder(
        concatenate(indexes) if len(indexes) > 1 else indexes[0],
        seed=seed,
        batch_size=batch_size,
        lanes=settings.lanes,
        block=settings.block,
        selected=joined(indexes, selections),
    )


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
    """The index's own digest for one whole set, so that it says the same as the index; else one of all choices.

    A stated rule of labels is such a choice: with another rule the same shards have other labels.
    """
    rules = [index.label_rule().identity() for index in indexes]
    if len(indexes) == 1 and selections[0].num_samples == indexes[0].num_samples and not rules[0]:
        return indexes[0].digest
    digest = hashlib.sha256()
    for index, selection, rule in zip(indexes, selections, rules, strict=True):
        digest.update(index.digest.encode())
        digest.update(selection.first.tobytes() + selection.count.tobytes())
        digest.update(rule.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()

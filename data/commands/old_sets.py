"""Faults of sets that earlier versions packed without a word. Such a set's index does not say which version packed it.

The set stays as it is, and so do the samples of a running job. The remedy is to pack it again from its source.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from data.packing.verify import Checked, Fault
from data.shards.class_names import class_names, shown
from data.shards.index import INDEX_NAME, Index
from data.sources.walk.names import is_hidden

PACKED_BY = "packed_by"
AGAIN = "pack it again from its source into another folder"
SHOWN_CLASSES = 3


def is_old(index: Index) -> bool:
    """Whether an earlier version packed this set, not another tool."""
    return bool(index.source) and PACKED_BY not in index.about


def faults_of_old_sets(index: Index, found: Sequence[Checked]) -> list[Fault]:
    """The faults of a set that an earlier version packed; none of another set.

    Args:
        found: of each shard, with the hashes of its keys.
    """
    if not is_old(index):
        return []
    names = class_names(index)
    return [Fault(INDEX_NAME, what) for what in (*_keys(index, found), *_numbers(names), *_system_folders(names))]


def _keys(index: Index, found: Sequence[Checked]) -> Iterator[str]:
    together = sum(
        shard.samples - one.samples
        for shard, one in zip(index.shards, found, strict=True)
        if one.sha256 == shard.sha256 and one.samples < shard.samples
    )
    if together:
        yield (
            f"{together:,} samples have the key of the sample before them, so that nothing can read them apart and "
            f"training refuses the set: {AGAIN} (indexing it again would lose them)"
        )
    keys = np.concatenate([np.zeros(0, np.uint64), *(one.keys for one in found)])
    _, times = np.unique(keys, return_counts=True)
    repeated = int((times > 1).sum())
    if repeated:
        harm = ", and some images may have the labels of others" if index.source.startswith("img2dataset") else ""
        yield f"{repeated:,} keys come more than once, because names in the source repeat{harm}: {AGAIN}"


def _numbers(names: Sequence[str]) -> Iterator[str]:
    places = [place for place, name in enumerate(names) if not is_hidden(name)]
    try:
        numbers = [float(names[place]) for place in places]
    except ValueError:
        return
    ordered = sorted(numbers)
    wrong = [place for place, one, other in zip(places, numbers, ordered, strict=True) if one != other]
    if wrong:
        text = ", ".join(f"class {place} is {shown(names[place])}" for place in wrong[:SHOWN_CLASSES])
        yield (
            f"the names of the classes are numbers, sorted as text ({text}): a class has another number than its name, "
            f"and perhaps than in its test set; {AGAIN}, and its test set, too"
        )


def _system_folders(names: Sequence[str]) -> Iterator[str]:
    wrong = [place for place, name in enumerate(names) if is_hidden(name)]
    if wrong:
        text = ", ".join(f"class {place} is {shown(names[place])}" for place in wrong[:SHOWN_CLASSES])
        more = f" and {len(wrong) - SHOWN_CLASSES:,} more" if len(wrong) > SHOWN_CLASSES else ""
        yield (
            f"{len(wrong):,} classes are hidden or system folders ({text}{more}), and the numbers of all classes after "
            f"them are too large: {AGAIN}"
        )

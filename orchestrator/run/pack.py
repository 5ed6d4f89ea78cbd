"""The sources of `data.pack`: each makes shards in a folder's `train` and `test`, unless they are there.

`orchestrator.job.tables.SOURCES` names them, and what else there is.
"""

from typing import Any

import numpy as np

from data import Index, storage
from data.shards.index import INDEX_NAME, Shard
from orchestrator.job.choices import Pack

SPLITS = ("train", "test")


def digits(folder: str) -> None:
    """scikit-learn's handwritten digits."""
    from data.sources.digits import pack_digits

    if missing_sets(folder):
        pack_digits(folder)


def shapes(folder: str, **keys: Any) -> None:
    """Drawn images; `keys` are those of `orchestrator.job.choices.Shapes`."""
    from data.sources.shapes import pack_shapes

    pack_shapes(folder, **keys, show_progress=True)


def missing_sets(folder: str) -> list[str]:
    """URLs of the sets that a source of `data.pack` would make in a folder."""
    urls = [storage.join(folder, split) for split in SPLITS]
    return [url for url in urls if not storage.exists(storage.join(url, INDEX_NAME))]


def expected_sets(settings: Pack, folder: str) -> dict[str, Index | None]:
    """The sets that are not packed yet, by URL: indexes of one shard without bytes; None if the source cannot say."""
    missing = missing_sets(folder)
    contents = settings.contents() if missing else None
    return {url: None if contents is None else _expected(url, *contents[url.rpartition("/")[2]]) for url in missing}


def _expected(url: str, samples: int, num_classes: int, multi_label: bool) -> Index:
    shard = Shard("not-packed-yet.tar", samples, 0, "", np.zeros(0, np.int64))
    return Index(storage.join(url, INDEX_NAME), (shard,), num_classes, multi_label)

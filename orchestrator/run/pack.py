"""The sources of `data.pack`: each makes shards in a folder's `train` and `test`, unless they are there.

`orchestrator.job.tables.SOURCES` names them, and what else there is.
"""

from typing import Any

from data import storage
from data.shards.index import INDEX_NAME


def digits(folder: str) -> None:
    """scikit-learn's handwritten digits."""
    from data.sources.digits import SPLITS, pack_digits

    if not all(storage.exists(storage.join(folder, f"{split}/{INDEX_NAME}")) for split in SPLITS):
        pack_digits(folder)


def shapes(folder: str, **keys: Any) -> None:
    """Drawn images; `keys` are those of `orchestrator.job.choices.Shapes`."""
    from data.sources.shapes import pack_shapes

    pack_shapes(folder, **keys, show_progress=True)

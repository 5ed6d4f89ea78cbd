"""WebDataset shards -> deterministic order -> parallel decoding -> uint8 batches.

Which samples make up step t, and what augmentation does to them, are pure functions of (seed, t).
"""

from typing import TYPE_CHECKING, Any

from data.errors import DataError
from data.images.augment import Augment
from data.order.mixture import Mixture
from data.order.sample_order import Order, SampleOrder
from data.shards.index import Index, Shard, open_index

if TYPE_CHECKING:
    from data.loading.loader import Batch, Loader

__all__ = ["Augment", "Batch", "DataError", "Index", "Loader", "Mixture", "Order", "SampleOrder", "Shard", "open_index"]


def __getattr__(name: str) -> Any:
    """Import the loader when it is first used: it needs torch, seconds that `python -m data` need not spend."""
    if name in ("Batch", "Loader"):
        from data.loading import loader

        return getattr(loader, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

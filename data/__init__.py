"""WebDataset shards -> deterministic order -> parallel decoding -> uint8 batches.
Names are imported when they are first used: the loader needs torch, which `python -m data` does not."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data.errors import Cause, DataError, Unreadable
    from data.images.augment import Augment
    from data.loading.cache import Cache
    from data.loading.loader import Batch, Loader, MaskedSample
    from data.loading.webdataset import webdataset
    from data.order import Order, SampleOrder
    from data.order.mixture import Mixture
    from data.shards.index import Index, Shard, open_index

_MODULES = {
    "Augment": "data.images.augment",
    "Batch": "data.loading.loader",
    "Cache": "data.loading.cache",
    "Cause": "data.errors",
    "DataError": "data.errors",
    "Index": "data.shards.index",
    "Loader": "data.loading.loader",
    "MaskedSample": "data.loading.loader",
    "Mixture": "data.order.mixture",
    "Order": "data.order",
    "SampleOrder": "data.order",
    "Shard": "data.shards.index",
    "Unreadable": "data.errors",
    "open_index": "data.shards.index",
    "webdataset": "data.loading.webdataset",
}

__all__ = [
    "Augment",
    "Batch",
    "Cache",
    "Cause",
    "DataError",
    "Index",
    "Loader",
    "MaskedSample",
    "Mixture",
    "Order",
    "SampleOrder",
    "Shard",
    "Unreadable",
    "open_index",
    "webdataset",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)

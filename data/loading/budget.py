"""How much memory one worker's images need, encoded and decoded."""

from data.loading.reader import window_bytes
from data.order.sample_order import Order
from data.shards.index import Index


def decoded_bytes(slots: int, image_size: int, prefetch: int) -> int:
    """The decoded batches of a worker: `prefetch` ahead, the one in use and the one being handed over."""
    return (prefetch + 2) * slots * image_size**2 * 3


def needed_bytes(index: Index, order: Order, slots: range, image_size: int, prefetch: int) -> int:
    """The least `memory` that a loader of these slots can be given."""
    return window_bytes(index, order, slots) + decoded_bytes(len(slots), image_size, prefetch)

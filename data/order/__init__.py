"""Which samples make up step t: pure functions of (seed, step). Imports `shards` and `splitmix`."""

from data.order.sample_order import MASKED, Order, SampleOrder

__all__ = ["MASKED", "Order", "SampleOrder"]

"""Which samples make up step t: pure functions of (seed, step). Imports `shards`, `storage`, `errors` and
`splitmix`."""

from data.order.protocol import MASKED, Order
from data.order.sample_order import SampleOrder

__all__ = ["MASKED", "Order", "SampleOrder"]

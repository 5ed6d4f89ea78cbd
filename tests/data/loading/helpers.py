"""Helpers of the tests of reading."""

from data.order import MASKED, Order


def places(order: Order, step: int, slots: range) -> list[tuple[int, int]]:
    """(pass, id) of the valid slots of a step."""
    ids = order.slots(step, slots.start, slots.stop)
    passes = order.epochs(step, slots.start, slots.stop)
    return [(number, sample) for number, sample in zip(passes.tolist(), ids.tolist(), strict=True) if sample != MASKED]

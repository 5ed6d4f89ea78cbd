import pytest

from data.errors import DataError
from data.loading import budget
from data.loading.budget import window_bytes
from data.loading.reader import Reader
from data.order import SampleOrder
from data.order.mixture import Mixture
from data.shards.index import concatenate
from tests.tars import uniform_index

MB = 1 << 20


def test_memory_that_the_window_does_not_fit_in():
    """The error's numbers are right: the block that it names fits, and no larger one does."""
    index = uniform_index([500] * 8, 64, 20_480)
    memory = 12 * MB
    order = SampleOrder(index, batch_size=32, lanes=4, block=1000)
    with pytest.raises(DataError, match=r"allow more memory, or set data\.train\.block to at most (\d+)$") as raised:
        Reader(index, order, range(32), 0, 10, memory=memory)
    assert str(raised.value).startswith("memory://nowhere: ")
    block = int(str(raised.value).split()[-1])

    def needed(block: int) -> int:
        return window_bytes(index, SampleOrder(index, batch_size=32, lanes=4, block=block), range(32))

    assert needed(block) <= memory < needed(block + 1)
    with pytest.raises(DataError, match=r"allow more memory$"):
        Reader(index, order, range(32), 0, 10, memory=MB)


def test_sources_of_different_sizes_count_by_their_share():
    """Half of a batch are small images and half are large ones. So are the waiting samples, for sets of any lengths."""
    small, large = uniform_index([4000], 64, 2048), uniform_index([100], 64, 100 * 1024)
    order = Mixture(
        [(SampleOrder(source, batch_size=8, block=50), first) for source, first in ((small, 0), (large, 4000))]
    )
    reads_bytes = 2 * budget.FETCH_THREADS * budget.LEAST_READ_BYTES
    per_sample = (window_bytes(concatenate([small, large]), order, range(16)) - reads_bytes) / order.most_waiting(0, 16)
    assert per_sample == pytest.approx((2048 + 100 * 1024) / 2, rel=0.03)

import itertools

import pytest

from data.loading.schedule import schedule
from data.order import SampleOrder
from tests.data.loading.helpers import places
from tests.tars import uniform_index


@pytest.mark.parametrize(("lanes", "block", "slots"), [(8, 64, range(16)), (4, 200, range(3, 9)), (1, 1024, range(16))])
def test_every_id_is_read_once_and_in_time(lanes, block, slots):
    """From the middle of an epoch across its end: a step's samples are in reads for this step or an earlier one."""
    index = uniform_index([300, 200, 500], 64, 2048)
    order = SampleOrder(index, batch_size=16, lanes=lanes, block=block, seed=1)
    steps = range(20, order.steps_per_epoch + 25)
    scheduled = list(schedule(index, order, slots, steps.start, steps.stop, longest=100_000))
    brought = {}
    for entry in scheduled:
        for sample in entry.read.wanted.tolist():
            assert (entry.number, sample) not in brought
            brought[entry.number, sample] = entry.step
    assert [entry.step for entry in scheduled] == sorted(entry.step for entry in scheduled)
    used = {place: step for step in steps for place in places(order, step, slots)}
    assert brought.keys() == used.keys()
    assert all(brought[place] <= step for place, step in used.items())


@pytest.mark.parametrize("percent", [0, 50, 90])
def test_the_first_batch_waits_for_little(percent):
    """At any place in an epoch: for a stride group a sample, not for their blocks."""
    index = uniform_index([4096] * 16, 64, 50 * 1024)
    order = SampleOrder(index, batch_size=8, lanes=4, block=1024)
    step = order.steps_per_epoch * percent // 100
    scheduled = schedule(index, order, range(8), step, order.steps_per_epoch)
    first = [entry.read for entry in itertools.takewhile(lambda entry: entry.step == step, scheduled)]
    assert sum(read.count for read in first) <= 8 * 64
    assert sum(len(ids) for _, ids in order.blocks_entered(step, 0, 8, since=step)) > 3 * 8 * 64

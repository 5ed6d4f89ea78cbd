"""The table of what a step sends against a fresh count."""

import pytest

from benchmarks.scaling.model import bucket_shares
from benchmarks.scaling.tally import TRAFFIC, expected, tally
from infra.local.ranks import run_ranks
from orchestrator.engine.settings import REDUCE_BUCKET

PARAMETERS = 655_835_251  # of H/14 with 18,291 classes and a representation of 1,280


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_table_says_what_is_sent(stage: int) -> None:
    """A fresh count of two micro-batches, between two processes; one of each is in the table as well."""
    counted = {(c.kind, c.phase): c for c in run_ranks(2, tally, stage, 2)[0]}
    table = {(c.kind, c.phase): c for c in expected(stage, 2)}
    assert counted.keys() == table.keys()
    for key, row in table.items():
        assert counted[key].calls == row.calls, key
        # Norms and biases weigh ten times more in the network that is counted, which is a tenth as wide.
        assert counted[key].size == pytest.approx(row.size, abs=0.02), key
    # A gradient that no longer fits leaves some of its bucket empty, so there may be one bucket more.
    ideal = len(bucket_shares(PARAMETERS, REDUCE_BUCKET))
    assert all(ideal <= t.calls <= ideal + 1 for t in TRAFFIC[stage] if t.hides == "backward")

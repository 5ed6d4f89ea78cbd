"""The table of the data that ranks exchange, against a fresh count."""

import pytest

from benchmarks.scaling.model import bucket_shares
from benchmarks.scaling.tally import TRAFFIC, expected, tally
from infra.local.ranks import run_ranks
from orchestrator.engine.settings import REDUCE_BUCKET

PARAMETERS = 655_835_251  # of H/14 with 18,291 classes and a representation of 1,280


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_table_equals_a_fresh_count(stage: int) -> None:
    """Two processes count a step of two micro-batches. The table has entries per step and per micro-batch."""
    counted = {(c.kind, c.phase): c for c in run_ranks(2, tally, stage, 2)[0]}
    table = {(c.kind, c.phase): c for c in expected(stage, 2)}
    assert counted.keys() == table.keys()
    for key, row in table.items():
        assert counted[key].calls == row.calls, key
        # Norms and biases are a ten times larger share of the counted network, which is a tenth as wide.
        assert counted[key].size == pytest.approx(row.size, abs=0.02), key
    # A gradient that does not fit into the rest of a bucket leaves it partly empty, so there may be one bucket more.
    ideal = len(bucket_shares(PARAMETERS, REDUCE_BUCKET))
    assert all(ideal <= t.calls <= ideal + 1 for t in TRAFFIC[stage] if t.hides == "backward")

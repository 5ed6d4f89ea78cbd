"""benchmarks/scaling --check: predicted bytes by hand, and real processes behind a throttled link."""

import os
import subprocess

import pytest

from benchmarks.scaling import check


def test_predicted_bytes_by_hand() -> None:
    """Stage 1, two processes: a ring sends all of the 2 bytes for the all-reduce, and half of them for the gather."""
    assert check.sent_bytes(1, 2, 1000) == pytest.approx(2000 + 1000)
    assert check.sent_bytes(3, 4, 1000) == pytest.approx(1.5 * 2000 + 0.75 * 2000)
    slow, fast = (check.predicted(0.1, 1, 2, 10**6, rate) for rate in (10, 20))
    assert slow - 0.1 == pytest.approx(2 * (fast - 0.1))


@pytest.mark.servers
def test_behind_a_throttled_link() -> None:
    """Real processes send the bytes of the table, and at half the rate a step is longer by about its bytes."""
    if why := check.missing():
        pytest.skip(why)
    fast, slow = check.check([2], [1], [100.0, 50.0], 3)
    for row in (fast, slow):
        assert row["sent_ratio"] == pytest.approx(1.0, abs=0.1)
        assert 0.6 < row["ratio"] < 1.8
    assert slow["measured_s"] > 1.4 * fast["measured_s"]
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert f"scaling-{os.getpid()}-" not in left

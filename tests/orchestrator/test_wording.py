"""Numbers as people read them."""

import pytest

from orchestrator.wording import count, duration, one_line


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, "0s"), (59.6, "1m00s"), (65, "1m05s"), (3725, "1h02m"), (47 * 3600 + 59, "47h00m"), (50 * 3600, "2d02h")],
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_counts() -> None:
    assert [count(n, "worker") for n in (1, 2)] == ["1 worker", "2 workers"]


def test_an_error_on_one_line() -> None:
    assert one_line(ValueError("no\n  such\tfile ")) == "no such file"

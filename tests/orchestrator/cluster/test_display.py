"""What the terminal and the log show."""

from orchestrator.cluster.board import Progress
from orchestrator.cluster.display import describe


def test_a_log_line() -> None:
    p = Progress(step=250, total_steps=1000, loss=1.23456, rate=1234.5, mfu=0.456, seconds_left=125, note="", workers=2)
    expected = "step 250/1,000 (25%), loss 1.2346, 1,234.5 images/s, MFU 45.6%, 2 workers, 2m05s left"
    assert describe(p) == expected


def test_what_is_not_known_yet_is_not_shown() -> None:
    p = Progress(step=0, total_steps=10, note="", workers=1)
    assert describe(p) == "step 0/10 (0%), 1 worker"

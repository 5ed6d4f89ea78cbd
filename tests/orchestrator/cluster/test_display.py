"""What the terminal and the log show."""

import fcntl
import os
import pty
import struct
import termios

import pytest

from orchestrator.cluster.board import Progress
from orchestrator.cluster.display import columns, describe


def test_a_log_line() -> None:
    p = Progress(step=250, total_steps=1000, loss=1.23456, rate=1234.5, mfu=0.456, seconds_left=125, note="", workers=2)
    expected = "step 250/1,000 (25%), loss 1.2346, 1,234.5 images/s, MFU 45.6%, 2 workers, 2m05s left"
    assert describe(p) == expected


def test_what_is_not_known_yet_is_not_shown() -> None:
    p = Progress(step=0, total_steps=10, note="", workers=1)
    assert describe(p) == "step 0/10 (0%), 1 worker"


def test_a_step_without_valid_samples_shows_no_loss() -> None:
    p = Progress(step=1, total_steps=10, rate=10.0, mfu=0.1, note="", workers=1)
    assert describe(p) == "step 1/10 (10%), 10.0 images/s, MFU 10.0%, 1 worker"


def test_a_terminal_of_no_columns_has_80(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    main, terminal = pty.openpty()
    with os.fdopen(main, "rb"), os.fdopen(terminal, "w") as stream:
        for width, expected in ((0, 80), (100, None)):
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
            assert columns(stream) == expected
        monkeypatch.setenv("COLUMNS", "0")
        assert columns(stream) == 80

import io

import pytest

from data.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_line():
    shown = Progress("packing", "images", total=9000, done=1200)
    with shown:
        assert shown.line(10.0) == "1,200 of 9,000 images (13%)"
        shown.advance(300)
        assert shown.line(10.0) == "1,500 of 9,000 images (17%), 30.0 images/s, 04:10 left"


def test_bytes_are_as_people_read_them():
    shown = Progress("verify", "bytes", total=2_957_312, stream=io.StringIO())
    with shown:
        shown.advance(1_738_821)
        assert shown.line(10.0) == "1.74 MB of 2.96 MB (59%), 174 kB/s, 00:07 left"


def test_a_log_gets_a_line_every_few_seconds(monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr("data.progress.time.monotonic", lambda: now[0])
    log = io.StringIO()
    with Progress("packing", "images", total=100, stream=log) as shown:
        for _ in range(10):
            now[0] += 2.0
            shown.advance(10)
    assert log.getvalue().splitlines() == [
        "packing: 30 of 100 images (30%), 5 images/s, 00:14 left",
        "packing: 60 of 100 images (60%), 5 images/s, 00:08 left",
        "packing: 90 of 100 images (90%), 5 images/s, 00:02 left",
    ]


def test_a_terminal_gets_a_bar():
    terminal = Terminal()
    with Progress("packing", "images", total=100, done=40, stream=terminal) as shown:
        shown.advance(60)
    assert "packing:  40%" in terminal.getvalue()
    assert "packing: 100%" in terminal.getvalue()
    assert "100/100" in terminal.getvalue()

"""The queue on disk: order, survival of kills and of broken disks."""

import json
import logging
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from orchestrator.tracking.spool import SpooledQueue


def records(count: int, first: int = 0) -> list[dict[str, int]]:
    return [{"n": n} for n in range(first, first + count)]


def drain(queue: SpooledQueue, limit: int = 7) -> list[dict[str, int]]:
    """Everything up to the end of a finished queue, popped as it comes."""
    taken = []
    while batch := queue.peek(limit):
        taken += batch
        queue.pop(len(batch))
    return taken


def test_first_in_first_out_between_two_threads(tmp_path: Path) -> None:
    queue = SpooledQueue(tmp_path / "q.jsonl")
    taken: list[dict[str, int]] = []
    consumer = threading.Thread(target=lambda: taken.extend(drain(queue, limit=random.Random(0).randrange(1, 50))))
    consumer.start()
    for record in records(3000):
        queue.put(record)
    queue.finish()
    consumer.join(30)
    assert taken == records(3000)
    queue.close()
    assert not queue.path.exists(), "nothing is left, so no file is"


def test_a_record_is_on_disk_before_it_is_seen_and_until_it_is_popped(tmp_path: Path) -> None:
    queue = SpooledQueue(tmp_path / "q.jsonl")
    for n, record in enumerate(records(50), start=1):
        queue.put(record)
        assert queue.peek(100)[0] == {"n": 0}
        while len(queue.peek(100)) < n:
            pass
        assert [json.loads(line) for line in queue.path.read_text().splitlines()] == records(n)
    queue.pop(49)
    assert queue.peek(100) == [{"n": 49}]
    queue.close()
    assert json.loads(queue.path.read_text().splitlines()[-1]) == {"n": 49}


def test_what_was_not_popped_comes_first_in_the_next_queue(tmp_path: Path) -> None:
    first = SpooledQueue(tmp_path / "q.jsonl")
    for record in records(10):
        first.put(record)
    first.close()
    assert len(first) == 10
    second = SpooledQueue(tmp_path / "q.jsonl")
    for record in records(5, first=10):
        second.put(record)
    second.finish()
    assert drain(second) == records(15)
    assert second.wait_drained(0)
    second.close()


def test_a_killed_producer_loses_nothing(tmp_path: Path) -> None:
    """A real process puts 500 records into the queue, none is delivered, and it is killed."""
    path = tmp_path / "q.jsonl"
    program = (
        "import sys, time; from pathlib import Path; from orchestrator.tracking.spool import SpooledQueue\n"
        "queue = SpooledQueue(Path(sys.argv[1]))\n"
        "[queue.put({'n': n}) for n in range(500)]\n"
        "while len(queue.peek(1000)) < 500: time.sleep(0.01)\n"
        "print('ready', flush=True); time.sleep(600)"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    with path.open("ab") as file:
        file.write(b'{"n":50')  # and had it been killed while it wrote the next one:
    queue = SpooledQueue(path)
    queue.put({"n": 500})
    queue.finish()
    assert drain(queue) == records(501)
    queue.close()


def test_a_damaged_line_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(b'{"n":0}\n\x00\x00garbage\n{"n":1}\n')
    queue = SpooledQueue(path)
    queue.finish()
    with caplog.at_level(logging.WARNING):
        assert drain(queue) == records(2)
    assert ["line 2 is damaged" in message for message in caplog.messages] == [True]
    queue.close()


def test_without_a_disk_the_queue_goes_on_in_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("not a folder")
    queue = SpooledQueue(tmp_path / "file" / "q.jsonl")
    for record in records(20):
        queue.put(record)
    queue.finish()
    assert drain(queue) == records(20)
    queue.close()
    assert ["cannot be written" in message for message in caplog.messages] == [True], "one warning"


def test_a_full_disk_is_given_up_in_mid_run(tmp_path: Path) -> None:
    """A real process that may write files of 1,000 bytes only."""
    program = (
        "import resource, signal, sys; from pathlib import Path; from orchestrator.tracking.spool import SpooledQueue\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "queue = SpooledQueue(Path(sys.argv[1])); [queue.put({'n': n}) for n in range(500)]; queue.finish()\n"
        "taken = []\n"
        "while batch := queue.peek(600): taken += batch; queue.pop(len(batch))\n"
        "print([each['n'] for each in taken] == list(range(500)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "q.jsonl")], check=True, capture_output=True, text=True
    )
    assert done.stdout == "True\n"
    assert done.stderr.count("cannot be written") == 1

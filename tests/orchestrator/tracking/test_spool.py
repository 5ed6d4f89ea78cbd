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

from orchestrator.tracking.points import check_record
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


POINT = {"time": 1, "step": 2, "metrics": {"train/loss": 0.5}}
STRANGE: list[object] = [
    {"n": 1},
    {**POINT, "step": 10**18},  # a point that would outrank all others
    {**POINT, "step": "x"},
    {**POINT, "time": -1},
    {**POINT, "time": 10**30},
    {**POINT, "metrics": ["train/loss"]},
    {**POINT, "metrics": {"train/loss": "low"}},
    {**POINT, "metrics": {"train/loss": 10**400}},
    {"files": "../../etc"},
    {"files": ["profile"]},
    [1, 2],
    7,
    None,
]


def test_strange_records_are_left_out_and_their_file_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "q.jsonl"
    lines = [json.dumps(POINT), *map(json.dumps, STRANGE), json.dumps({"files": "profile/a"}), '{"time": 1, "st']
    path.write_text("\n".join(lines))
    with caplog.at_level(logging.WARNING):
        queue = SpooledQueue(path, check=check_record)
        queue.finish()
        assert drain(queue) == [POINT, {"files": "profile/a"}]
    queue.close()
    assert caplog.messages == [
        f"{path}: the last line is torn and was left out",
        *(f"{path}: line {number} is damaged and was left out" for number in range(2, len(STRANGE) + 2)),
    ]


def goes_on(path: Path) -> None:
    queue = SpooledQueue(path, check=check_record)
    queue.put(POINT)
    queue.finish()
    assert drain(queue) == [POINT]
    queue.close()


def test_a_folder_in_the_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").mkdir()
    goes_on(tmp_path / "q.jsonl")


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("precious")
    (tmp_path / "q.jsonl").symlink_to(tmp_path / "outside")
    goes_on(tmp_path / "q.jsonl")
    assert (tmp_path / "outside").read_text() == "precious"


def test_much_that_is_damaged_is_said_in_a_few_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "q.jsonl").write_text("rubbish\n" * 1030)
    with caplog.at_level(logging.WARNING):
        goes_on(tmp_path / "q.jsonl")
    assert len(caplog.messages) == 21
    assert "1,010 more lines are damaged" in caplog.messages[-1]


def test_rubbish_in_the_file(tmp_path: Path) -> None:
    for content in (b"", b"\x00" * 999, b"\xff\n\xfe\n", b"[" * 100_000 + b"\n"):
        (tmp_path / "q.jsonl").write_bytes(content)
        goes_on(tmp_path / "q.jsonl")

"""Bad samples on two real ranks: exact counts, one list, the same verdict everywhere."""

import errno
import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from data import storage
from data.errors import Cause
from data.loading.loader import MaskedSample
from infra.local.ranks import run_ranks
from orchestrator.history.quarantine import QUARANTINE, Quarantine, TooManyBadSamples, read_quarantine


def quarantine(run: str, *, limit: float = 0.5, set_size: int = 100) -> Quarantine:
    return Quarantine(run, limit=limit, set_size=set_size, device=torch.device("cpu"))


def bad(number: int, cause: str) -> MaskedSample:
    return MaskedSample(number, f"key{number}", "shards/000000.tar", cause)


def two_epochs(run: str) -> tuple[dict[str, float], list[str], dict[str, float]]:
    """Each rank meets two bad samples of its own in each of two epochs; then the account goes on from a checkpoint."""
    rank = dist.get_rank()
    account = quarantine(run)
    messages = []
    for epoch in range(2):
        account.add([bad(rank, Cause.EMPTY), bad(10 + rank, Cause.OUTSIDE if rank else Cause.EMPTY)], slots=50)
        messages += account.collect(epoch)
        account.check()
    saved = account.metrics()
    account.close()
    again = quarantine(run)
    again.resume(saved)
    again.add_held_out("val", [bad(0, Cause.NO_LABEL)] if rank else [])
    again.add([bad(0, Cause.EMPTY)], slots=10)
    messages += again.collect(2)
    again.close()
    return saved, messages, again.metrics()


def test_counts_and_list(tmp_path: Path) -> None:
    results = run_ranks(2, two_epochs, str(tmp_path))
    for saved, _, again in results:  # the same on every rank
        assert saved == {"train/bad_samples": 8, "train/bad/empty_image": 6, "train/bad/label_outside_the_classes": 2}
        assert again == {"train/bad_samples": 10, "train/bad/empty_image": 8, "train/bad/label_outside_the_classes": 2}
    listed = {(entry["set"], entry["id"], entry["cause"]) for entry in read_quarantine(str(tmp_path))}
    train = {("train", 0, Cause.EMPTY), ("train", 1, Cause.EMPTY), ("train", 10, Cause.EMPTY)}
    assert listed == train | {("train", 11, Cause.OUTSIDE), ("val", 0, Cause.NO_LABEL)}
    assert len((tmp_path / QUARANTINE).read_text().splitlines()) == len(listed)
    told = results[0][1]
    assert len([line for line in told if line.startswith("masked key")]) == len(listed)  # each is said once
    assert results[1][1] == []


def verdicts(run: str, limit: float, set_size: int, of_step: list[tuple[int, int, int]]) -> list[str]:
    """(epoch, bad, slots) of each step on each rank -> why the run was stopped there; empty if it was not."""
    account = quarantine(run, limit=limit, set_size=set_size)
    found = []
    for epoch, count, slots in of_step:
        account.add([bad(number, Cause.EMPTY) for number in range(count)], slots=slots)
        account.collect(epoch)
        try:
            account.check()
            found.append("")
        except TooManyBadSamples as stop:
            found.append(str(stop))
    account.close()
    return found


@pytest.mark.parametrize(
    ("limit", "set_size", "of_step", "expected"),
    [
        (0.1, 100, [(0, 5, 50), (1, 5, 50)], [False, False]),  # exactly a tenth of 2 x 50, twice
        (0.1, 100, [(0, 6, 50), (1, 5, 50)], [True, False]),
        (0.1, 100, [(0, 5, 10), (0, 0, 40)], [False, False]),  # half of what was seen, a tenth of the set
        (0.1, 10**6, [(0, 50, 50), (0, 800, 5000), (0, 400, 5000)], [False, True, True]),  # after 10,000 samples
        (0.0, 100, [(0, 0, 50), (0, 1, 50)], [False, True]),
    ],
)
def test_the_limit(
    tmp_path: Path, limit: float, set_size: int, of_step: list[tuple[int, int, int]], expected: list[bool]
) -> None:
    found = run_ranks(2, verdicts, str(tmp_path), limit, set_size, of_step)
    assert found[0] == found[1]
    assert [bool(verdict) for verdict in found[0]] == expected
    for verdict in filter(None, found[0]):
        assert Cause.EMPTY in verdict
        assert str(tmp_path) in verdict
        assert "\n" not in verdict


def store_away(run: str) -> list[str]:
    account = quarantine(run)
    account.add([bad(1, Cause.EMPTY)], slots=10)
    messages = account.collect(0)
    account._writer.submit(lambda: None).result()  # the write before it is over
    messages += account.collect(0)
    Path(run).unlink()  # a file where the run's folder should be
    account.close()
    return messages


def test_a_list_that_cannot_be_written_is_written_later(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.write_text("in the way")
    [messages] = run_ranks(1, store_away, str(run))
    assert any("could not be written" in line for line in messages)
    assert [entry["id"] for entry in read_quarantine(str(run))] == [1]


TORN = [
    b'{"set": "train", "id": 7, "key": "000007", "sha',
    b"\x00\xff\xfe",
    b"[1, 2]",
    b"7",
    b"[" * 100_000,
    b'{"set": "train"}',
    b'{"set": ["train"], "id": 1, "key": "", "shard": "", "cause": ""}',
    b'{"set": "train", "id": "1", "key": "", "shard": "", "cause": ""}',
    b'{"set": "train", "id": 1e999, "key": "", "shard": "", "cause": ""}',
    b'{"set": "train", "id": %s, "key": "", "shard": "", "cause": ""}' % (b"9" * 5000),
    b'{"set": "train", "id": 1, "key": "", "shard": {}, "cause": ""}',
]


def test_torn_lines_are_left_out_and_named(tmp_path: Path) -> None:
    """Nothing else is lost, and the next write repairs the list."""
    entries = [{"set": "train", "id": n, "key": f"{n}", "shard": "a.tar", "cause": "empty image"} for n in (3, 4)]
    lines = [json.dumps(entry).encode() for entry in entries]
    for torn in TORN:
        (tmp_path / QUARANTINE).write_bytes(b"\n".join([lines[0], torn, lines[1]]))
        said: list[str] = []
        assert read_quarantine(str(tmp_path), said.append) == entries
        assert said == [f"{tmp_path}/{QUARANTINE}: line 2 is damaged and was left out"]
    (tmp_path / QUARANTINE).write_bytes(b"\n".join([lines[0], *TORN, lines[1]]))
    assert run_ranks(1, starts_with_torn_lines, str(tmp_path)) == [
        [f"{tmp_path}/{QUARANTINE}: line {n} is damaged and was left out" for n in range(2, len(TORN) + 2)]
    ]
    assert [entry["id"] for entry in read_quarantine(str(tmp_path), pytest.fail)] == [3, 4, 9]


def starts_with_torn_lines(run: str) -> list[str]:
    account = quarantine(run)
    messages = account.collect(0)
    account.add([bad(9, Cause.EMPTY)], slots=1)
    assert account.collect(0)[0].startswith("masked key9")
    account.close()
    return messages


def test_a_folder_in_the_place_of_the_list_ends_no_run(tmp_path: Path) -> None:
    (tmp_path / QUARANTINE).mkdir()
    ((message,),) = run_ranks(1, starts_with_torn_lines, str(tmp_path))
    assert message.startswith(f"{tmp_path}/{QUARANTINE}: cannot be read and was left out (IsADirectoryError")


def test_a_list_on_a_bad_sector_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While an outage of its store does: else the next write would replace the list by a short one."""

    def read(url: str) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(storage, "read", read)
    said: list[str] = []
    assert read_quarantine(str(tmp_path), said.append) == []
    assert said == [f"{tmp_path}/{QUARANTINE}: cannot be read and was left out (OSError: [Errno 5] Input/output error)"]
    with pytest.raises(OSError, match="Input/output error"):
        read_quarantine("s3://bucket/run", said.append)

"""Notes of an interrupted packing that are torn: what they describe is packed again, to the same bytes."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from data import DataError
from data.packing.pack import Options, pack
from tests.data.packing.test_pack import Numbers, digests, interrupt

OPTIONS = Options(samples_per_shard=100)
SOURCE = Numbers(600, bad=(5, 230))


def changed(**changes: object) -> Callable[[str], str]:
    return lambda text: json.dumps({**json.loads(text), **changes})


def shard(**changes: object) -> Callable[[str], str]:
    return lambda text: json.dumps({**json.loads(text), "shard": {**json.loads(text)["shard"], **changes}})


def contents(**changes: object) -> Callable[[str], str]:
    return lambda text: json.dumps({**json.loads(text), "contents": {**json.loads(text)["contents"], **changes}})


HARMS: dict[str, Callable[[str], str]] = {
    "half": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "rubbish": lambda text: "\x00\ufffd{",
    "list": lambda text: "[1, 2]",
    "deep": lambda text: "[" * 100_000,
    "number": lambda text: "9" * 5000,
    "other shard": changed(number=3),
    "beyond": changed(number=10**9),
    "no number": changed(number="2"),
    "no shard": changed(shard=None),
    "skipped": changed(skipped=[["a"]]),
    "skipped numbers": changed(skipped=[[1, 2, "x"]]),
    "lost": changed(contents=[]),
    "samples": shard(samples="100"),
    "offsets": shard(offsets=[[1], [2]]),
    "huge offsets": shard(offsets=[10**30]),
    "checksum": shard(sha256="../../etc"),
    "elsewhere": shard(url="/etc/passwd"),
    "more": shard(code="x"),
    "counts": contents(label_counts={"a": 1}),
    "huge counts": contents(label_counts={"1": 1e999}),
    "extensions": contents(extensions=[1]),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("undisturbed")
    pack(str(folder), SOURCE, OPTIONS)
    return digests(folder)


def interrupted(folder: Path) -> Path:
    """A packing that was killed after four of six shards; returns the note of the third one."""
    with pytest.raises(KeyboardInterrupt):
        pack(str(folder), SOURCE, OPTIONS, runner=interrupt(4))
    return folder / "packing" / "000002.json"


@pytest.mark.parametrize("harm", HARMS)
def test_a_torn_note_is_left_out(
    harm: str, undisturbed: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    note = interrupted(tmp_path)
    note.write_bytes(HARMS[harm](note.read_text()).encode())
    kept = (tmp_path / "000001.tar").stat().st_mtime_ns
    with caplog.at_level(logging.WARNING):
        pack(str(tmp_path), SOURCE, OPTIONS)
    assert digests(tmp_path) == undisturbed
    assert (tmp_path / "000001.tar").stat().st_mtime_ns == kept
    (message,) = caplog.messages
    assert str(note) in message
    assert "\n" not in message


@pytest.mark.parametrize("content", ["", "{", "[1]", "[" * 100_000, "\x00"])
def test_a_torn_plan_is_named_and_nothing_is_lost(content: str, tmp_path: Path) -> None:
    interrupted(tmp_path)
    (tmp_path / "packing" / "plan.json").write_text(content)
    before = digests(tmp_path)
    with pytest.raises(DataError, match=r"packing/plan\.json: damaged \(\w+\).*--force$"):
        pack(str(tmp_path), SOURCE, OPTIONS)
    assert digests(tmp_path) == before


@pytest.mark.parametrize("name", ["plan.json", "000002.json"])
def test_a_folder_in_the_place_of_a_note(name: str, tmp_path: Path) -> None:
    interrupted(tmp_path)
    os.remove(tmp_path / "packing" / name)
    (tmp_path / "packing" / name).mkdir()
    with pytest.raises(DataError, match=rf"packing/{name}: "):
        pack(str(tmp_path), SOURCE, OPTIONS)


def test_a_torn_list_of_what_was_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A complete packing is still complete; the counts lack the torn lines."""
    packed = pack(str(tmp_path), SOURCE, OPTIONS)
    skipped = tmp_path / "skipped.jsonl"
    lines = skipped.read_text().splitlines()
    skipped.write_text("\n".join([lines[0], lines[1][:9], "[1]", '{"key": 1, "reason": 2}']))
    with caplog.at_level(logging.WARNING):
        again = pack(str(tmp_path), SOURCE, OPTIONS)
    assert not again.wrote
    assert (packed.skipped, again.skipped) == ({"bad luck": 2}, {"bad luck": 1})
    assert [message.partition(" is damaged")[0] for message in caplog.messages] == [
        f"{skipped}: line {number}" for number in (2, 3, 4)
    ]

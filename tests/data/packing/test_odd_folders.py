"""Sets in folders with odd names, on every store: packed, cut off, continued, checked, read, deleted.

A neighbour, whose name the odd one is as a pattern or after an escape, keeps all of its files.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from data import storage
from data.__main__ import main
from data.errors import Unreadable
from data.loading.reader import Reader
from data.order import MASKED, SampleOrder
from data.packing.pack import Options, pack
from data.shards.index import Index, open_index
from infra.local.stores import file_server
from tests.data.packing.test_pack import Numbers, interrupt
from tests.data.storage.odd_names import STORES, gs, local, memory
from tests.paths import ROOT

PAIRS = (
    ("v[12]", "v1"),
    ("set [v2]", "set v"),
    ("v{1,2}", "v2"),
    ("v*?", "v12"),
    ("a b#1", "a b"),
    ("v%20x", "v x"),
    ("図書 +&=", "図書"),
    (".v", "v"),
    ("-v", "v3"),
    ("~", "x"),
    ("x.tar", "x"),
    ("x.json", "x"),
    ("v#2", "v"),
    ("v\n1", "v"),
)
OPTIONS = Options(samples_per_shard=30)
SOURCE = Numbers(100, bad=(3,))


@pytest.fixture(autouse=True)
def _sheets_lie_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module", params=STORES, ids=lambda store: store.__name__)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with request.param(tmp_path_factory.mktemp("store")) as url:
        yield url


def files(url: str) -> dict[str, bytes]:
    return {entry.name: storage.read(f"{url}/{entry.name}") for entry in storage.entries(url) if not entry.is_folder}


def read_all(index: Index) -> list[str]:
    """The key of every sample, as training reads them."""
    order = SampleOrder(index, seed=1, batch_size=16, lanes=2, block=16)
    keys = []
    with Reader(index, order, range(16), 0, order.steps_per_epoch) as reader:
        for step in range(order.steps_per_epoch):
            ids = [number for number in order.batch(step) if number != MASKED]
            keys += [sample.key for sample in reader.take(step, [(0, number) for number in ids])]
    return sorted(keys)


@pytest.mark.parametrize(("name", "neighbour"), PAIRS)
def test_a_set_in_a_folder_with_an_odd_name(place: str, name: str, neighbour: str) -> None:
    if place.startswith("s3://") and "\n" in name:
        pytest.skip("Moto serves no such name")
    url, beside = f"{place}/{name}", f"{place}/{neighbour}"
    for number in (1, 2):  # a packing of the neighbour that was cut off, with its notes
        storage.write_atomic(f"{beside}/packing/00000{number}.json", b"a note")
        storage.write_atomic(f"{beside}/00000{number}.tar", b"a tar")
    before = files(beside) | files(f"{beside}/packing")

    with pytest.raises(KeyboardInterrupt):
        pack(url, SOURCE, OPTIONS, runner=interrupt(2))
    packed = pack(url, SOURCE, OPTIONS)
    assert packed.wrote
    assert storage.contents(f"{url}/packing") == {}
    assert not pack(url, SOURCE, OPTIONS).wrote
    assert main(["verify", url, "--workers", "1"]) == 0
    assert main(["show", url]) == 0
    expected = [f"{number:06d}" for number in range(100) if number != 3]
    assert read_all(open_index(url)) == expected

    storage.remove(f"{url}/index.json")
    assert main(["pack", "--index-only", url]) == 0
    assert open_index(url).digest == packed.index.digest
    assert pack(url, Numbers(40), OPTIONS, force=True).index.num_samples == 40
    assert files(beside) | files(f"{beside}/packing") == before
    storage.remove_folder(url)
    assert not storage.exists(url)
    assert files(beside) | files(f"{beside}/packing") == before


@pytest.mark.parametrize("place", [local, memory], ids=["local", "memory"], indirect=True)
def test_a_cut_off_packing_goes_on_in_a_folder_with_an_odd_name(place: str) -> None:
    """The finished shards are not made again."""
    made = []

    def count(function, calls):  # type: ignore[no-untyped-def]
        for call in calls:
            made.append(call)
            yield function(*call)

    for name, _ in PAIRS:
        storage.remove_folder(f"{place}/{name}")  # a neighbour of the test before
        with pytest.raises(KeyboardInterrupt):
            pack(f"{place}/{name}", SOURCE, OPTIONS, runner=interrupt(3))
        made.clear()
        pack(f"{place}/{name}", SOURCE, OPTIONS, runner=count)
        assert len(made) == 1, name
        storage.remove_folder(f"{place}/{name}")


def test_a_set_on_a_web_server(tmp_path: Path) -> None:
    """Written to a disk, read by URL: verified, shown and read as training does."""
    names = [name for name, _ in PAIRS][::2]
    for name in names:
        pack(f"{tmp_path}/{name}", SOURCE, OPTIONS)
        for shard in range(2):  # shards may have odd names as well
            (tmp_path / name / f"00000{shard}.tar").rename(tmp_path / name / f"s [{shard}] #?%20+.tar")
        (tmp_path / name / "index.json").unlink()
        assert main(["pack", "--index-only", f"{tmp_path}/{name}"]) == 0
    for ranges in (True, False):
        with file_server(tmp_path, ranges=ranges) as server:
            for name in names:
                url = f"{storage.join(server.url, name)}/"  # the slash says that x.json is a folder
                assert len(read_all(open_index(url))) == 99
                assert main(["verify", url, "--workers", "1"]) == 0
                assert main(["show", url]) == 0


@pytest.mark.parametrize("place", [local, memory, gs], ids=["local", "memory", "gs"], indirect=True)
def test_images_of_folders_and_files_with_odd_names(place: str) -> None:
    png = cv2.imencode(".png", np.zeros((2, 2), np.uint8))[1].tobytes()
    names = [name for name, _ in PAIRS if not name.startswith(".")]  # hidden folders are left out
    for name in names:
        for file in (f"{name}.png", "1.png", "[1].png"):
            storage.write_atomic(f"{place}/pictures [1]/{name}/{file}", png)
    assert main(["pack", "folder", f"{place}/packed", "--from", f"{place}/pictures [1]"]) == 0
    index = open_index(f"{place}/packed")
    assert (index.num_classes, index.num_samples) == (len(names), 3 * len(names))
    assert list(index.class_names or []) == sorted(names)


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii"])
def test_a_name_that_the_terminal_cannot_show(tmp_path: Path, encoding: str) -> None:
    folder = f"{tmp_path}/図書{os.fsdecode(bytes([0xFF]))}"
    pack(folder, SOURCE, OPTIONS)
    words = [sys.executable, "-m", "data", "verify", folder, "--workers", "1"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, env=os.environ | {"PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"no faults" in done.stdout


@pytest.mark.parametrize("place", [local], ids=["local"], indirect=True)
def test_a_pipe_with_the_name_of_a_shard(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing waits for its writer: not checking, not indexing, not training."""
    url = f"{place}/piped"
    pack(url, SOURCE, OPTIONS)
    os.remove(f"{url}/000001.tar")
    os.mkfifo(f"{url}/000001.tar")
    assert main(["verify", url, "--workers", "1"]) == 1
    assert "000001.tar: is a pipe, not a file" in capsys.readouterr().out
    assert main(["pack", "--index-only", url]) == 2
    assert "000001.tar: is a pipe, not a file" in capsys.readouterr().err
    with pytest.raises(Unreadable, match=r"000001\.tar: cannot be read \(is a pipe, not a file") as raised:
        read_all(open_index(url))
    assert not raised.value.away

import json
import pickle
import uuid

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import DataError, Index, Shard, open_index, storage
from data.index import write_index


def small_index(url: str, **changes) -> Index:
    shards = (
        Shard("a.tar", 130, 9000, "ab" * 32, np.array([0, 4096, 8192])),
        Shard("/elsewhere/b.tar", 0, 1024, "cd" * 32, np.array([], np.int64)),
        Shard("sub/c.tar", 1, 2048, "ef" * 32, np.array([0])),
    )
    options = {"num_classes": 7, "multi_label": True, "extensions": ("cls", "jpg"), "source": "test"} | changes
    return Index(url=url, shards=options.pop("shards", shards), **options)


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_written_and_read(tmp_path, kind):
    folder = str(tmp_path / "new") if kind == "local" else f"memory://{uuid.uuid4()}"
    index = small_index(f"{folder}/index.json")
    write_index(index)
    for url in (folder, f"{folder}/", f"{folder}/index.json"):
        read = open_index(url)
        assert read.num_samples == 131
        assert (read.num_classes, read.multi_label, read.extensions, read.source) == (7, True, ("cls", "jpg"), "test")
        assert [shard.offsets.tolist() for shard in read.shards] == [[0, 4096, 8192], [], [0]]
        assert read.digest == index.digest
        assert [read.shard_url(n) for n in range(3)] == [f"{folder}/a.tar", "/elsewhere/b.tar", f"{folder}/sub/c.tar"]
    assert pickle.loads(pickle.dumps(read)).locate(130) == (2, 0)


def test_same_bytes_every_time_and_nothing_left_beside(tmp_path):
    write_index(small_index(f"{tmp_path}/index.json"))
    first = (tmp_path / "index.json").read_bytes()
    write_index(small_index(f"{tmp_path}/index.json"))
    assert (tmp_path / "index.json").read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["index.json"]
    assert json.loads(first)["shards"][0]["offsets"] == [0, 4096, 8192]


def test_digest_follows_the_samples_only():
    base = small_index("x/index.json")
    shards = base.shards
    assert small_index("y/index.json", num_classes=9, source="other").digest == base.digest
    changed = Shard("a.tar", 130, 9000, "ac" * 32, shards[0].offsets)
    for other in ((changed, *shards[1:]), shards[:2], tuple(reversed(shards))):
        assert small_index("x/index.json", shards=other).digest != base.digest


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_locate_is_the_inverse_of_counting(make_index, counts):
    index = make_index(counts)
    expected = [(shard, position) for shard, count in enumerate(counts) for position in range(count)]
    assert [index.locate(sample) for sample in range(index.num_samples)] == expected
    for outside in (-1, index.num_samples):
        with pytest.raises(IndexError):
            index.locate(outside)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "wids"}, "corrupt index .it is not an index of this program"),
        ({"version": 2}, "index version 2, this program reads 1; index again with"),
        ({"num_samples": 132}, "corrupt index .the shards' counts do not add up"),
        ({"stride": 32}, "corrupt index .a.tar: 3 offsets for 130 samples"),
        ({"shards": []}, "corrupt index .it lists no shards"),
        ({"shards": [{"url": "a.tar"}]}, "corrupt index .no 'samples'"),
        ({"shards": 7}, "corrupt index"),
    ],
)
def test_index_that_contradicts_itself(tmp_path, changes, words):
    write_index(small_index(f"{tmp_path}/index.json"))
    path = tmp_path / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(DataError, match=words) as raised:
        open_index(str(tmp_path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe"])
def test_not_an_index(tmp_path, content):
    (tmp_path / "index.json").write_bytes(content)
    with pytest.raises(DataError, match=r"index.json: corrupt index"):
        open_index(str(tmp_path))


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        open_index(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=f"no index.json there; .*pack --index-only {tmp_path}"):
        open_index(str(tmp_path))
    with pytest.raises(DataError, match="does not exist"):
        open_index(f"memory://{uuid.uuid4()}")
    with pytest.raises(DataError, match=r"nosuch://bucket/index.json: Protocol not known"):
        open_index("nosuch://bucket")


def test_file_in_place_of_a_folder(tmp_path):
    (tmp_path / "train").write_text("not a folder")
    with pytest.raises(DataError, match=r"train: no index.json there"):
        open_index(str(tmp_path / "train"))


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("gs://b/train/index.json", "gs://b/train"),
        ("/data/index.json", "/data"),
        ("index.json", "."),
        ("gs://b/x/", "gs://b"),
        ("memory://m/index.json", "memory://m"),
    ],
)
def test_parent(url, folder):
    assert storage.parent(url) == folder


def test_found_again_from_another_working_directory(tmp_path, monkeypatch):
    """Ray's workers do not run where the job was submitted."""
    write_index(small_index(f"{tmp_path}/set/index.json"))
    monkeypatch.chdir(tmp_path)
    index = open_index("set")
    monkeypatch.chdir("/")
    assert index.shard_url(0) == f"{tmp_path}/set/a.tar"


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_index(small_index("~/set/index.json"))
    assert open_index("~/set").num_samples == 131
    assert (tmp_path / "set" / "index.json").exists()

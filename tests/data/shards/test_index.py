import base64
import json
import pickle
import struct
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import DataError, Index, Shard, open_index, storage
from data.shards.index import concatenate, write_index
from tests.paths import ROOT


def small_index(url: str, **changes) -> Index:
    shards = (
        Shard("a.tar", 130, 9000, "ab" * 32, np.array([0, 4096, 8192])),
        Shard("/elsewhere/b.tar", 0, 1024, "cd" * 32, np.array([], np.int64)),
        Shard("sub/c.tar", 1, 2048, "ef" * 32, np.array([0])),
    )
    options = {"num_classes": 7, "multi_label": True, "extensions": ("cls", "jpg"), "source": "test"} | changes
    return Index(url=url, shards=options.pop("shards", shards), **options)


def as_version_1(content: bytes) -> bytes:
    """The same index in the first version's format: offsets as numbers, no counts of labels."""
    record = json.loads(content)
    for shard in record["shards"]:
        places = base64.b64decode(shard["offsets"])
        shard["offsets"] = [512 * place for place in struct.unpack(f"<{len(places) // 4}I", places)]
    del record["label_counts"]
    return json.dumps(record | {"version": 1}).encode()


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_written_and_read(tmp_path, kind):
    folder = str(tmp_path / "new") if kind == "local" else f"memory://{uuid.uuid4()}"
    index = small_index(f"{folder}/index.json", label_counts={6: 1, 0: 120, 3: 10})
    write_index(index)
    for url in (folder, f"{folder}/", f"{folder}/index.json"):
        read = open_index(url)
        assert read.num_samples == 131
        assert (read.num_classes, read.multi_label, read.extensions, read.source) == (7, True, ("cls", "jpg"), "test")
        assert [shard.offsets.tolist() for shard in read.shards] == [[0, 4096, 8192], [], [0]]
        assert list(read.label_counts.items()) == [(0, 120), (3, 10), (6, 1)]
        assert read.digest == index.digest
        assert [read.shard_url(n) for n in range(3)] == [f"{folder}/a.tar", "/elsewhere/b.tar", f"{folder}/sub/c.tar"]
    assert pickle.loads(pickle.dumps(read)).locate(130) == (2, 0)


def test_same_bytes_every_time_and_nothing_left_beside(tmp_path):
    write_index(small_index(f"{tmp_path}/index.json"))
    first = (tmp_path / "index.json").read_bytes()
    write_index(small_index(f"{tmp_path}/index.json"))
    assert (tmp_path / "index.json").read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["index.json"]
    assert base64.b64decode(json.loads(first)["shards"][0]["offsets"]) == struct.pack("<3I", 0, 8, 16)


def test_version_1_is_still_read(tmp_path):
    """No set must be indexed again. Such an index is written as version 2."""
    path = tmp_path / "index.json"
    write_index(small_index(str(path)))
    second = path.read_bytes()
    path.write_bytes(as_version_1(second))
    assert path.read_bytes() != second
    read = open_index(str(tmp_path))
    assert [shard.offsets.tolist() for shard in read.shards] == [[0, 4096, 8192], [], [0]]
    assert all(shard.offsets.dtype == np.int64 for shard in read.shards)
    assert read.digest == small_index("x").digest
    assert read.label_counts == {}
    write_index(read)
    assert path.read_bytes() == second


@pytest.mark.parametrize(
    ("offsets", "fits"), [([0, 512 * (2**32 - 1)], True), ([0, 512 << 32], False), ([0, 700], False)]
)
def test_offsets_that_no_tar_has(tmp_path, offsets, fits):
    index = small_index(f"{tmp_path}/index.json", shards=(Shard("a.tar", 65, 2**41, "ab", np.array(offsets)),))
    if fits:
        write_index(index)
        assert open_index(str(tmp_path)).shards[0].offsets.tolist() == offsets
    else:
        with pytest.raises(DataError, match=r"a.tar: byte offsets must be multiples of 512 below 2 TB"):
            write_index(index)


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
        ({"version": 3}, "index version 3, this program reads 2 and older; index again with"),
        ({"num_samples": 132}, "corrupt index .the shards' counts do not add up"),
        ({"stride": 32}, "corrupt index .a.tar: 3 offsets for 130 samples"),
        ({"shards": []}, "corrupt index .it lists no shards"),
        ({"stride": 0}, "corrupt index .stride 0"),
        ({"stride": 10**12}, "corrupt index .stride 1000000000000"),
        ({"num_classes": -1}, "corrupt index .-1 classes"),
        ({"extensions": [1, 2]}, "corrupt index .1 in extensions is no text"),
        ({"extensions": "cls"}, "corrupt index .extensions is no list"),
        ({"extensions": None}, "corrupt index .extensions is no list"),
        ({"source": 5}, "corrupt index .5 in source is no text"),
        ({"class_names": "cat"}, "corrupt index .class_names is no list"),
        ({"class_names": ["cat", 7]}, "corrupt index .7 in class_names is no text"),
        ({"about": [1]}, "corrupt index"),
        ({"about": {"merged": "x"}}, "corrupt index .'x' in about.merged is no whole number"),
        ({"about": {"found": 1.5}}, "corrupt index .1.5 in about.found is no whole number"),
        ({"about": {"label_rule": 3}}, "corrupt index .label_rule is no record"),
        (
            {"about": {"label_rule": {"version": 3}}},
            "corrupt index .label_rule of version 3, this program reads 1 and 2",
        ),
        ({"shards": [{"url": "a.tar"}]}, "corrupt index .shard 0: no 'samples'"),
        ({"shards": ["a.tar"]}, "corrupt index .shard 0: "),
        ({"shards": 7}, "corrupt index"),
        ({"num_classes": 1e999}, "corrupt index"),
        ({"label_counts": {"7": 1}}, "corrupt index .1 images of label 7, of 131 and 7 classes"),
        ({"label_counts": {"-1": 1}}, "corrupt index .1 images of label -1"),
        ({"label_counts": {"1": 132}}, "corrupt index .132 images of label 1"),
        ({"label_counts": {"1": 0}}, "corrupt index .0 images of label 1"),
        ({"label_counts": {"cat": 1}}, "corrupt index .*'cat'"),
        ({"label_counts": [1]}, "corrupt index"),
    ],
)
def test_index_that_contradicts_itself(tmp_path, changes, words):
    write_index(small_index(f"{tmp_path}/index.json"))
    path = tmp_path / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(DataError, match=words) as raised:
        open_index(str(tmp_path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("shard", "changes", "words"),
    [
        (0, {"samples": -1}, "a.tar: -1 samples in 9000 bytes"),
        (0, {"bytes": -1}, "a.tar: 130 samples in -1 bytes"),
        (0, {"bytes": 10**30}, "a.tar: 130 samples in 10{30} bytes"),
        (0, {"samples": 10**12}, "a.tar: 3 offsets for 10{12} samples"),
        (0, {"bytes": 8192}, "a.tar: the offsets do not ascend within its 8192 bytes"),
        (0, {"offsets": [0, 4096, 4096]}, "a.tar: the offsets do not ascend within"),
        (0, {"offsets": [4096, 0, 8192]}, "a.tar: the offsets do not ascend within"),
        (0, {"offsets": [-512, 0, 8192]}, "a.tar: the offsets do not ascend within"),
        (0, {"offsets": [0, 4096]}, "a.tar: 2 offsets for 130 samples"),
        (2, {"offsets": "AAAA"}, "shard 2: "),
        (2, {"offsets": "AAA"}, "shard 2: "),
        (2, {"offsets": "!AAAAAA=="}, "shard 2: "),
        (2, {"offsets": [[0]]}, "shard 2: "),
        (2, {"offsets": None}, "shard 2: "),
        (2, {"offsets": [2**70]}, "shard 2: "),
        (2, {"samples": "one"}, "shard 2: .*'one'"),
        (2, {"url": "../c.tar"}, "../c.tar: it lies outside the index's folder"),
        (2, {"url": "sub/../../c.tar"}, "sub/../../c.tar: it lies outside the index's folder"),
    ],
)
def test_shard_that_contradicts_itself(tmp_path, version, shard, changes, words):
    path = tmp_path / "index.json"
    write_index(small_index(str(path)))
    record = json.loads(as_version_1(path.read_bytes()) if version == 1 else path.read_bytes())
    record["shards"][shard] |= changes
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match=f"corrupt index .{words}.*index again with") as raised:
        open_index(str(tmp_path))
    assert "\n" not in str(raised.value)


def test_shard_urls_that_stay_inside(tmp_path):
    path = tmp_path / "set" / "index.json"
    write_index(small_index(str(path)))
    record = json.loads(path.read_text())
    urls = ["sub/../a.tar", f"{tmp_path}/x/../b.tar", "..c.tar"]
    for shard, url in zip(record["shards"], urls, strict=True):
        shard["url"] = url
    path.write_text(json.dumps(record))
    assert [shard.url for shard in open_index(str(path)).shards] == urls


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
    """Ray's workers run in another folder than the command."""
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


def test_concatenate(tmp_path):
    """Ids of the second set follow those of the first; every shard keeps its URL and its offsets."""
    first = small_index(f"{tmp_path}/one/index.json", label_counts={0: 120, 6: 11})
    shards = (Shard("d.tar", 200, 90_000, "12" * 32, np.array([0, 51_200])), first.shards[1])
    second = Index("gs://bucket/two/index.json", shards, 9, False, ("png",), "other", 100, {0: 3, 8: 197})
    joint = concatenate([first, second])
    assert joint.num_samples == 331
    assert joint.locate(131) == (3, 0)
    assert joint.locate(330) == (3, 199)
    assert [joint.shard_url(n) for n in range(5)] == [
        *(first.shard_url(n) for n in range(3)),
        "gs://bucket/two/d.tar",
        "/elsewhere/b.tar",
    ]
    assert (joint.num_classes, joint.multi_label, joint.source) == (9, True, "test + other")
    assert joint.extensions == ("cls", "jpg", "png")
    assert joint.label_counts == {0: 123, 6: 11, 8: 197}
    assert joint.stride == 1600
    assert [shard.offsets.tolist() for shard in joint.shards] == [[0], [], [0], [0], []]
    assert concatenate([first, small_index("x/index.json")]).label_counts == {}
    same = concatenate([first, first])
    assert (same.stride, same.source) == (64, "test")
    assert [shard.offsets.tolist() for shard in same.shards[:3]] == [[0, 4096, 8192], [], [0]]
    assert concatenate([first]) is first


OPEN_AND_MEASURE = """
import sys
import data

index = data.open_index(sys.argv[1])
batch = data.SampleOrder(index, batch_size=4096).batch(1_000_000)
for line in open("/proc/self/status"):
    if line.startswith("VmHWM:"):
        print(index.num_samples, len(set(batch)), int(line.split()[1]) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
def test_full_size_opens_in_little_memory(tmp_path):
    """303M samples in 30,000 uneven shards: opening the index and computing a late batch takes less than 300 MB."""
    counts = [9_000 + (n * 7919) % 2201 for n in range(30_000)]
    places = np.arange(-(-max(counts) // 64)) * (64 * 100 * 1024)  # images of 100 kB
    shards = tuple(
        Shard(
            f"{n:06d}.tar",
            count,
            count * 100 * 1024 + 512 * 50,
            f"{n:064x}",
            places[: -(-count // 64)] + 512 * (n % 50),
        )
        for n, count in enumerate(counts)
    )
    write_index(
        Index(f"{tmp_path}/index.json", shards, 21_841, True, label_counts=dict.fromkeys(range(21_841), 13_873))
    )
    command = [sys.executable, "-c", OPEN_AND_MEASURE, str(tmp_path)]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert int(printed[0]) == sum(counts) > 303_000_000
    assert int(printed[1]) == 4096
    assert int(printed[2]) < 300


def test_names_of_several_sets():
    """Those of the first set with names; numbers as names say less."""
    sets = [small_index(f"/{n}/index.json", class_names=names) for n, names in enumerate([(), ("0", "1"), ("a", "b")])]
    assert concatenate(sets).class_names == ("a", "b")
    assert concatenate(sets[:2]).class_names == ("0", "1")
    assert concatenate(sets[:1] * 2).class_names == ()

"""A key is one sample, for every source whose names may repeat: tars of classes, and several downloads in a folder."""

import io
import itertools
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from data import open_index
from data.__main__ import main
from data.packing.pack import Options, pack
from data.packing.verify import faults_of_the_whole, verify
from data.shards import tar
from data.sources.class_tars import class_tars
from data.sources.img2dataset import Columns, Img2dataset
from tests.tars import packed_samples

Members = list[tuple[str, bytes]]


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, members: Members) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def check(folder: Path) -> None:
    """The set is whole for the index, for `verify`, and for reading from the middle."""
    index = open_index(str(folder))
    results = list(verify(index, decode=True))
    assert [fault for _, one in results for fault in one.faults] == []
    assert sum(one.samples for _, one in results) == index.num_samples
    counts = sum((one.label_counts for _, one in results[1:]), results[0][1].label_counts)
    assert faults_of_the_whole(index, {name: one.sha256 for name, one in results}, counts) == []
    for shard in index.shards:
        content = (folder / shard.url).read_bytes()
        assert len(list(tar.samples(tar.members(content)))) == shard.samples


def test_class_tars_with_equal_names(tmp_path):
    """Three classes that number their images from 000; two names are there once."""
    (tmp_path / "in").mkdir()
    expected: dict[str, tuple[bytes, int]] = {}
    for number, name in enumerate(("cat", "dog", "owl")):
        members = [(f"{place:03d}.png", png(100 * number + place)) for place in range(20)]
        expected |= {f"{name}/{stem[:-4]}": (content, number) for stem, content in members}
        own = png(1000 + number)
        write_tar(tmp_path / "in" / f"{name}.tar", [*members, (f"only_{name}.png", own)])
        expected[f"only_{name}"] = own, number
    for options in (Options(samples_per_shard=7), Options(shuffle_seed=None), Options()):
        out = tmp_path / f"out{options.samples_per_shard}{options.shuffle_seed}"
        assert pack(str(out), class_tars("x", str(tmp_path / "in")), options).index.num_samples == 63
        found = packed_samples(out)
        assert {key: (fields["png"], int(fields["cls"])) for key, fields in found} == expected
        assert len(found) == 63
        check(out)


def test_keys_stay_unique_with_the_class_in_front(tmp_path):
    """Names in folders, a name twice in a tar, and names that already look like numbered keys."""
    (tmp_path / "in").mkdir()
    names = {
        "a": [
            "x.png",
            "x.jpg",
            "x.png",
            "b/x.png",
            "a/x.png",
            "a/x~2.png",
            "./x.png",
            "dots.in.it.png",
            "no_extension",
        ],
        "b": ["x.png", "a/x.png", "b/x.png", "x~2.png", "dots_in_it.png", "a/x~3.png"],
        "__a__": ["x.png", "x.png"],
        "v1.2": ["x.png", "\udcff.png", "\udcff.png", "猫.png"],
    }
    seeds = itertools.count()
    images: list[bytes] = []
    for name, files in names.items():
        members = [(file, png(next(seeds))) for file in files]
        images += [content for _, content in members]
        write_tar(tmp_path / "in" / f"{name}.tar", members)
    pack(str(tmp_path / "out"), class_tars("x", str(tmp_path / "in")), Options(samples_per_shard=4))
    found = packed_samples(tmp_path / "out")
    assert len({key for key, _ in found}) == len(found) == len(images)
    assert sorted(fields["png"] for _, fields in found) == sorted(images)
    assert {"猫", "v1.2/\udcff", "b/dots_in_it", "a/dots_in_it"} <= {key for key, _ in found}
    check(tmp_path / "out")


def download(folder: Path, tars: dict[str, list[tuple[str, int]]], keys_in_parquet: bool = True) -> None:
    """Tars of img2dataset: (key, row of the label table) of each image."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, images in tars.items():
        members: Members = []
        for key, row in images:
            record = json.dumps({"labels": [row], "id": row}).encode()
            members += [(f"{key}.png", png(row)), (f"{key}.json", record)]
        write_tar(folder / f"{name}.tar", members)
        (folder / f"{name}_stats.json").write_text(json.dumps({"count": len(images), "successes": len(images)}))
        keys = [key for key, _ in images]
        if keys_in_parquet:
            table = {"key": keys, "id": [row for _, row in images], "status": ["success"] * len(keys)}
            pa.parquet.write_table(pa.table(table), folder / f"{name}.parquet")


def label_table(path: Path, rows: int) -> str:
    lines = [f"{row},{row}" for row in range(rows)]
    path.write_text("\n".join(["id,labels", *lines]))
    return str(path)


@pytest.mark.parametrize("with_table", [True, False])
@pytest.mark.parametrize("per_shard", [1000, 7])
def test_two_downloads_in_one_folder(tmp_path, with_table, per_shard):
    """Equal keys in two tars: each image has the labels of its own row. A third tar's keys stay as they are."""
    numbers = [f"{number:09d}" for number in range(20)]
    download(
        tmp_path / "in",
        {
            "a-00000": [(key, row) for row, key in enumerate(numbers)],
            "b-00000": [(key, 20 + row) for row, key in enumerate(reversed(numbers))],
            "c-00001": [(f"{10_000 + row:09d}", 40 + row) for row in range(10)],
        },
    )
    table = label_table(tmp_path / "labels.csv", 50) if with_table else None
    result = pack(str(tmp_path / "out"), Img2dataset(str(tmp_path / "in"), table), Options(samples_per_shard=per_shard))
    assert (result.index.num_samples, result.skipped) == (50, {})
    found = packed_samples(tmp_path / "out")
    for row, (_, fields) in enumerate(found):
        assert (fields["png"], json.loads(fields["json"])["labels"]) == (png(row), [row])
    keys = [f"a-00000/{key}" for key in numbers] + [f"b-00000/{key}" for key in reversed(numbers)]
    assert [key for key, _ in found] == keys + [f"{10_000 + row:09d}" for row in range(10)]
    check(tmp_path / "out")


def test_a_table_that_is_joined_by_keys_that_repeat(tmp_path):
    """Its rows may be those of the other tar's images. Only images whose key is there once get labels."""
    download(tmp_path / "in", {"a": [("1", 0), ("2", 1)], "b": [("2", 2), ("3", 3)]})
    (tmp_path / "labels.csv").write_text("key,labels\n1,0\n2,1\n3,3\n")
    source = Img2dataset(str(tmp_path / "in"), str(tmp_path / "labels.csv"), Columns(key="key"))
    result = pack(str(tmp_path / "out"), source)
    assert [(key, json.loads(fields["json"])["labels"]) for key, fields in packed_samples(tmp_path / "out")] == [
        ("1", [0]),
        ("3", [3]),
    ]
    assert result.skipped == {"other tars have its key, by which the label table is joined": 2}


@pytest.mark.parametrize("with_table", [True, False])
def test_keys_that_are_unique_stay(tmp_path, with_table):
    """Renamed tars, tars whose ranges of keys overlap, and tars without a Parquet file."""
    tars = {"x": [("1", 0), ("3", 1), ("5", 2)], "y": [("2", 3), ("4", 4)], "z": [("9", 5)], "empty": []}
    download(tmp_path / "in", tars, keys_in_parquet=with_table)
    table = label_table(tmp_path / "labels.csv", 6) if with_table else None
    pack(str(tmp_path / "out"), Img2dataset(str(tmp_path / "in"), table))
    assert [key for key, _ in packed_samples(tmp_path / "out")] == ["1", "3", "5", "2", "4", "9"]
    check(tmp_path / "out")


@pytest.mark.parametrize("with_table", [True, False])
def test_a_key_twice_in_one_download(tmp_path, with_table):
    """With a table, no image gets a row that may be that of the other; with labels of their own, both are packed."""
    download(tmp_path / "in", {"00000": [("1", 0), ("2", 1), ("1", 2), ("00000/1", 3), ("1~2", 4), ("3", 5)]})
    table = label_table(tmp_path / "labels.csv", 6) if with_table else None
    result = pack(str(tmp_path / "out"), Img2dataset(str(tmp_path / "in"), table), Options(samples_per_shard=2))
    found = packed_samples(tmp_path / "out")
    rows = [json.loads(fields["json"])["labels"][0] for _, fields in found]
    assert [fields["png"] for _, fields in found] == [png(row) for row in rows]
    assert len({key for key, _ in found}) == len(found)
    if with_table:
        assert rows == [1, 3, 4, 5]
        assert set(result.skipped) == {
            "several rows of one key in img2dataset's Parquet file",
            "another image of the same tar has its key",
        }
    else:
        assert rows == [0, 1, 2, 3, 4, 5]
    assert result.found == 6
    check(tmp_path / "out")


def test_repeated_keys_in_tars_of_others_are_read_as_ever(tmp_path, capsys):
    """Neighbours with one key are one sample, in one tar or at its stride; apart, and across tars, they are several.
    The index, `verify` and reading from the middle count the same."""
    keys = [
        ["a", "a", "b", "a", "c", "c", "c"],
        ["c", "b"],
        [f"k{number // 2}" for number in range(400)],
        ["k199", *(f"{number % 3}" for number in range(200))],
    ]
    for number, part in enumerate(keys):
        members: Members = []
        for place, key in enumerate(part):
            members += [(f"{key}.png", png(place)), (f"{key}.cls", b"1")]
        write_tar(tmp_path / f"{number}.tar", members)
    assert main(["pack", "--index-only", str(tmp_path)]) == 0
    counts = [len(list(itertools.groupby(part))) for part in keys]
    index = open_index(str(tmp_path))
    assert [shard.samples for shard in index.shards] == counts == [4, 2, 200, 201]
    assert [one.samples for _, one in verify(index)] == counts
    from data.loading.ranges import fetch, plan_reads

    for first in range(0, index.num_samples, 3):
        wanted = np.arange(first, min(first + 2, index.num_samples))
        for read in plan_reads(index, wanted):
            found = fetch(index, read)
            shard = read.shard
            groups = [key for key, _ in itertools.groupby(keys[shard])]
            assert [one.key for one in found.values()] == [groups[i - int(index.starts[shard])] for i in read.wanted]
    capsys.readouterr()

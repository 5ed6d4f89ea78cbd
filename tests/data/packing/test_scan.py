import io
import json
import tarfile

import pytest

from data import DataError, open_index, storage
from data.packing.scan import find_shards, index_shards
from data.shards.writer import ShardWriter
from data.version import VERSION


def test_index_of_existing_shards_equals_the_packers(digits, tmp_path):
    for path in (digits / "train").glob("*.tar"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    calls = []
    index, contents = index_shards(str(tmp_path), progress=lambda *done: calls.append(done))
    packed = json.loads((digits / "train" / "index.json").read_text())
    assert json.loads((tmp_path / "index.json").read_text()) == packed | {"source": "", "about": {"packed_by": VERSION}}
    assert sum(index.label_counts.values()) == index.num_samples
    assert index.digest == open_index(str(digits / "train")).digest
    assert (contents.unlabelled, contents.without_image) == (0, 0)
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_odd_members_between_samples(tmp_path):
    """Folders, metadata and names without a dot do not count, neither here nor in the reader's offsets."""
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        folder = tarfile.TarInfo("x")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for number in range(130):
            for name in (f"x/{number:03d}.png", f"x/{number:03d}.cls"):
                info = tarfile.TarInfo(name)
                archive.addfile(info)
            archive.addfile(tarfile.TarInfo("README"))
    index, contents = index_shards(str(tmp_path))
    with tarfile.open(tmp_path / "a.tar") as archive:
        expected = [archive.getmember(f"x/{number:03d}.png").offset for number in (0, 64, 128)]
    assert index.shards[0].offsets.tolist() == expected
    assert (index.num_samples, contents.unlabelled) == (130, 130)


def test_patterns(digits, monkeypatch):
    train = f"{digits}/train"
    names = [f"{number:06d}.tar" for number in range(4)]
    assert find_shards(train) == find_shards(f"{train}/") == (train, names)
    assert find_shards(f"{train}/{{000002..000000}}.tar") == (train, names[2::-1])
    assert find_shards(f"{train}/00000[1-2]*.tar") == (train, names[1:3])
    assert find_shards(f"{train}/000003.tar") == (train, names[3:])
    assert find_shards(f"{digits}/{{train,test}}/000000.tar") == (str(digits), ["train/000000.tar", "test/000000.tar"])
    assert find_shards("memory://bucket/a/{0..1}.tar") == ("memory://bucket/a", ["0.tar", "1.tar"])
    for url in (str(digits), f"{train}/*.zip"):
        with pytest.raises(DataError, match=r"no .tar files there"):
            find_shards(url)
    with pytest.raises(DataError, match="no common folder"):
        find_shards("gs://{one,other}/0.tar")
    monkeypatch.chdir(digits)
    assert find_shards("train/000003.tar") == find_shards("./train/000003.tar") == (train, names[3:])
    with pytest.raises(DataError, match="the braces do not match"):
        find_shards(f"{train}/{{0..1.tar")


@pytest.mark.parametrize("home", ["memory:/", ""])
def test_a_name_that_looks_like_a_pattern_is_a_name(tmp_path, home):
    """Of a folder or a file, if it exists; also of a folder in which a pattern begins."""
    top = f"{home}{tmp_path}"
    for folder in ("set [v2]", "{a,b}", "v*", "a", "b", "v1", "x.tar", "deep/{x}"):
        for name in ("0.tar", "1.tar", "{0,1}.tar", "*.tar"):
            storage.write_atomic(f"{top}/{folder}/{name}", b"")
    for folder in ("set [v2]", "{a,b}", "v*", "x.tar"):
        assert find_shards(f"{top}/{folder}") == (f"{top}/{folder}", ["*.tar", "0.tar", "1.tar", "{0,1}.tar"])
    assert find_shards(f"{top}/v*/*.tar") == (f"{top}/v*", ["*.tar"])
    assert find_shards(f"{top}/v*/?.tar") == (f"{top}/v*", ["*.tar", "0.tar", "1.tar"])
    assert find_shards(f"{top}/{{a,b}}/{{0,1}}.tar") == (f"{top}/{{a,b}}", ["{0,1}.tar"])
    assert find_shards(f"{top}/{{a,b}}/{{1,0}}.tar") == (f"{top}/{{a,b}}", ["1.tar", "0.tar"])
    assert find_shards(f"{top}/deep/{{x}}/{{1,0}}.tar") == (f"{top}/deep/{{x}}", ["1.tar", "0.tar"])
    assert find_shards(f"{top}/{{b,a}}/0.tar") == (f"{top}", ["b/0.tar", "a/0.tar"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x1f\x8b" + bytes(600), "bad.tar: not a readable tar: no tar header at byte 0"),
        (b"", "no sample has an image"),
    ],
)
def test_unreadable_tars(tmp_path, content, words):
    (tmp_path / "bad.tar").write_bytes(content)
    with pytest.raises(DataError, match=words):
        index_shards(str(tmp_path))
    assert not (tmp_path / "index.json").exists()


def small_tar(fields: int = 2) -> tuple[bytes, list[tarfile.TarInfo]]:
    """130 samples of an image and a label (and a text), and its members."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for number in range(130):
            for extension in ("png", "cls", "txt")[:fields]:
                content = b"7" * (700 if extension == "png" else 1)
                info = tarfile.TarInfo(f"a/{number:04d}.{extension}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    file.seek(0)
    with tarfile.open(fileobj=file) as archive:
        return file.getvalue(), archive.getmembers()


@pytest.mark.parametrize(
    ("member", "into", "samples", "cut"),
    [
        (2 * 100, 700, 101, 1),  # in an image: its sample counts
        (2 * 128, 700, 129, 1),  # the sample's offset is in the index
        (2 * 100 + 1, 512, 101, 1),  # between a label's header and its content: the image already counts
        (2 * 100, 100, 100, 1),  # a part of a header belongs to no sample
        (2 * 100, 0, 100, 0),  # between two samples
        (2 * 100 + 1, 0, 101, 0),  # between an image and its label
    ],
)
def test_tar_cut_short(tmp_path, member, into, samples, cut):
    """Its whole samples and the one in whose middle it ends have ids. The ids after it are right."""
    content, members = small_tar()
    (tmp_path / "0.tar").write_bytes(content[: members[member].offset + into])
    (tmp_path / "1.tar").write_bytes(content)
    index, contents = index_shards(str(tmp_path))
    assert [shard.samples for shard in index.shards] == [samples, 130]
    assert contents.cut_short == ([f"{tmp_path}/0.tar"] if cut else [])
    assert index.shards[0].bytes == members[member].offset + into
    starts = [info.offset for info in members[::2]]
    assert index.shards[0].offsets.tolist() == starts[:samples:64]
    assert contents.unlabelled == (into == 512 or member % 2)


def test_tar_cut_short_in_a_long_name(tmp_path):
    """The name is in records before the header; the cut is after them."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for number in range(2):
            info = tarfile.TarInfo(f"{'long/' * 60}{number}.png")
            info.size = 5000
            archive.addfile(info, io.BytesIO(bytes(5000)))
    (tmp_path / "a.tar").write_bytes(file.getvalue()[: file.getvalue().index(b"1.png") + 3000])
    index, contents = index_shards(str(tmp_path))
    assert (index.num_samples, len(contents.cut_short)) == (2, 1)


def test_given_number_of_classes_and_label_counts(tmp_path):
    with ShardWriter(str(tmp_path), "a.tar") as writer:
        for number, cls in enumerate((b"1", b"1", b"4", b"x")):
            writer.write(str(number), {"png": b"x", "cls": cls})
        writer.write("5", {"png": b"x", "cls": b"4 1"})
        writer.close()
    index, contents = index_shards(str(tmp_path), num_classes=3)
    assert (index.num_classes, dict(index.label_counts), contents.unlabelled) == (3, {1: 3}, 1)
    assert contents.label_counts == {1: 3, 4: 2}
    assert dict(open_index(str(tmp_path)).label_counts) == {1: 3}
    assert index_shards(str(tmp_path))[0].num_classes == 5


def test_lists_of_one_label_make_a_multi_label_set(tmp_path):
    """The form decides: images of the next shard may have more labels."""
    with ShardWriter(str(tmp_path), "a.tar") as writer:
        writer.write("0", {"png": b"x", "json": b'{"labels": [4]}'})
        writer.close()
    index, _ = index_shards(str(tmp_path))
    assert (index.multi_label, index.num_classes) == (True, 5)


def test_a_store_that_refuses_is_one_line(tmp_path):
    """Here a folder named like a shard; on a cloud, missing rights."""
    (tmp_path / "a.tar").mkdir()
    with pytest.raises(DataError, match=r"a.tar: cannot be opened \(IsADirectoryError"):
        index_shards(str(tmp_path))

import io
import struct
import zlib
from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import webdataset
from PIL import Image

from data import DataError, open_index
from data.packing.pack import Options, pack
from data.shards import tar
from data.shards.class_names import ClassList, read_class_list
from data.sources.classes.holdout import Holdout
from data.sources.folder import Folder, unique_keys


def samples(folder: Path) -> dict[str, dict[str, bytes]]:
    """Fields by key, read by WebDataset."""
    urls = sorted(str(path) for path in folder.glob("*.tar"))
    return {sample["__key__"]: sample for sample in webdataset.WebDataset(urls, shardshuffle=False)}


def save(path: Path, file_format: str, mode: str = "RGB", size: tuple[int, int] = (8, 6)) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, file_format)
    return path.read_bytes()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes, and the other files of real folders."""
    root = tmp_path / "images"
    save(root / "cat" / "1.jpg", "JPEG")
    save(root / "cat" / "deep" / "2.v1.JPEG", "JPEG", "CMYK")
    save(root / "cat" / "1.png", "PNG")
    save(root / "dog" / "called.jpg", "PNG")
    save(root / "dog" / "old.bmp", "BMP")
    save(root / "dog" / "old.gif", "GIF", "P")
    save(root / "dog" / "scan.tif", "TIFF")
    save(root / "dog" / "new.webp", "WEBP")
    save(root / "stray.jpg", "JPEG")
    (root / "dog" / "empty.jpg").write_bytes(b"")
    (root / "dog" / "text.jpg").write_bytes(b"not an image")
    (root / "dog" / "Thumbs.db").write_bytes(b"x")
    return root


def test_class_folders(images, tmp_path):
    packed = pack(str(tmp_path / "out"), Folder(str(images)))
    found = samples(tmp_path / "out")
    by_label = {key: int(sample["cls"]) for key, sample in found.items()}
    assert by_label == {
        "cat/1": 0,
        "cat/1~2": 0,
        "cat/deep/2_v1": 0,
        "dog/called": 1,
        "dog/old": 1,
        "dog/old~2": 1,
        "dog/scan": 1,
        "dog/new": 1,
    }
    assert packed.skipped == {
        "system file": 1,
        "in no class folder": 1,
        "empty image": 1,
        "not an image: text": 1,
    }
    assert (tmp_path / "out" / "classes.txt").read_text() == "cat\ndog\n"
    index = open_index(str(tmp_path / "out"))
    assert (index.num_classes, index.multi_label, dict(index.label_counts)) == (2, False, {0: 3, 1: 5})


def test_bytes_are_unchanged_and_the_extension_is_right(images, tmp_path):
    """JPEG (also CMYK), PNG and WebP are unchanged; other formats become PNG with the same pixels."""
    pack(str(tmp_path / "out"), Folder(str(images)))
    found = samples(tmp_path / "out")
    for key, extension, file in (
        ("cat/1", "jpg", "cat/1.jpg"),
        ("cat/deep/2_v1", "jpg", "cat/deep/2.v1.JPEG"),
        ("dog/called", "png", "dog/called.jpg"),
        ("dog/new", "webp", "dog/new.webp"),
    ):
        assert found[key][extension] == (images / file).read_bytes()
    for key, file in (("dog/old", "dog/old.bmp"), ("dog/scan", "dog/scan.tif"), ("dog/old~2", "dog/old.gif")):
        ours = np.asarray(Image.open(io.BytesIO(found[key]["png"])).convert("RGB"))
        assert np.array_equal(ours, np.asarray(Image.open(images / file).convert("RGB")))


def test_keys_are_unique():
    paths = ["a/x.jpg", "a/x.png", "a/x~2.jpg", "a/x.y.jpg", "a/x_y.jpg", "b/x.jpg"]
    assert unique_keys(paths) == ["a/x", "a/x~3", "a/x~2", "a/x_y", "a/x_y~2", "b/x"]


def test_keys_of_names_that_webdataset_would_not_take():
    paths = ["a.b/name", "a/.jpg", "a/_jpg.png", "__a__/1.jpg", "class__a__/1.jpg", "__a__.jpg", "v1.2/x.y.z"]
    keys = ["a.b/name", "a/_jpg", "a/_jpg~2", "class__a__/1", "class__a__/1~2", "__a__", "v1.2/x_y"]
    assert unique_keys(paths) == keys
    assert [tar.split_name(f"{key}.jpg") for key in keys] == [(key, "jpg") for key in keys]


@pytest.mark.parametrize("file_format", ["csv", "parquet"])
def test_table_of_several_labels(images, tmp_path, file_format):
    rows = {
        "path": ["cat/1.jpg", "./dog/scan.tif", "dog/new.webp", "gone.jpg"],
        "labels": ["old wet", "wet", "", "old"],
    }
    table = tmp_path / f"labels.{file_format}"
    if file_format == "csv":
        lines = (f"{path},{labels}" for path, labels in zip(*rows.values(), strict=True))
        table.write_text("\n".join(["path,labels", *lines]))
    else:
        rows["labels"] = [words.split() for words in rows["labels"]]
        pa.parquet.write_table(pa.table(rows), table)
    packed = pack(str(tmp_path / "out"), Folder(str(images), str(table)))
    found = samples(tmp_path / "out")
    assert {key: sample["json"] for key, sample in found.items()} == {
        "cat/1": b'{"labels": [0, 1]}',
        "dog/scan": b'{"labels": [1]}',
        "dog/new": b'{"labels": []}',
    }
    assert packed.skipped == {
        "no row in the label table": 8,
        "in the label table, no such file": 1,
        "system file": 1,
    }
    assert (packed.index.num_classes, packed.index.multi_label) == (2, True)
    assert (tmp_path / "out" / "classes.txt").read_text() == "old\nwet\n"


def test_a_table_may_name_images_in_hidden_folders(images, tmp_path):
    """Its rows say what is meant. Hidden folders that no row names are left out."""
    save(images / ".cache" / "deep" / "1.jpg", "JPEG")
    save(images / ".git" / "2.jpg", "JPEG")
    (tmp_path / "labels.csv").write_text("path,label\n./.cache/deep/1.jpg,1\ncat/1.jpg,0\n")
    packed = pack(str(tmp_path / "out"), Folder(str(images), str(tmp_path / "labels.csv")))
    assert samples(tmp_path / "out").keys() == {"cat/1", ".cache/deep/1"}
    assert packed.skipped["hidden or system folder"] == 1


def test_table_of_numbers(images, tmp_path):
    """Class numbers do not change. The number of classes follows from the largest."""
    table = tmp_path / "labels.csv"
    table.write_text("label,path\n7,cat/1.jpg\n2,dog/new.webp\n")
    packed = pack(str(tmp_path / "out"), Folder(str(images), str(table)))
    assert {key: sample["cls"] for key, sample in samples(tmp_path / "out").items()} == {"cat/1": b"7", "dog/new": b"2"}
    assert (packed.index.num_classes, packed.index.multi_label) == (8, False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,kind\na,1\n", "has no column 'label'"),
        ("path,label\ncat/1.jpg,1\n./cat/1.jpg,2\n", r"cat/1.jpg is listed more than once"),
        ("path,label\ncat/1.jpg,1 2\n", "holds one label a row"),
    ],
)
def test_tables_that_cannot_be_used(images, tmp_path, text, words):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        Folder(str(images), str(tmp_path / "labels.csv"))


def test_from_another_file_system(images, tmp_path):
    """The same shards for images from another store."""
    memory = fsspec.filesystem("memory")
    memory.put(str(images), "/flowers", recursive=True)
    for url, out in ((str(images), "a"), ("memory://flowers", "b")):
        pack(str(tmp_path / out), Folder(url), Options(samples_per_shard=3))
    assert open_index(str(tmp_path / "a")).digest == open_index(str(tmp_path / "b")).digest


def test_a_missing_file_is_an_error_of_one_line(images, tmp_path):
    """As on a machine of a cluster that does not see the folder."""
    source = Folder(str(images))
    (images / "cat" / "1.jpg").unlink()
    with pytest.raises(DataError, match=r"cat/1.jpg: missing for the process that packs it"):
        pack(str(tmp_path / "out"), source)


def test_changed_images_are_another_set(images, tmp_path):
    pack(str(tmp_path / "out"), Folder(str(images)))
    assert not pack(str(tmp_path / "out"), Folder(str(images))).wrote
    save(images / "dog" / "more.jpg", "JPEG")
    with pytest.raises(DataError, match="already holds 'folder"):
        pack(str(tmp_path / "out"), Folder(str(images)))


def packed_labels(folder: Path) -> dict[str, int]:
    return {key: int(sample["cls"]) for key, sample in samples(folder).items()}


def test_folders_that_are_numbers_are_class_numbers(tmp_path):
    """Also with a gap; sorted as text, 10 would come before 2."""
    for number in (0, 1, 2, 3, 4, 5, 6, 8, 9, 10):
        save(tmp_path / "images" / str(number) / "a.png", "PNG")
    packed = pack(str(tmp_path / "out"), Folder(str(tmp_path / "images")))
    assert all(int(key.split("/")[0]) == label for key, label in packed_labels(tmp_path / "out").items())
    assert packed.index.class_names == tuple(str(number) for number in range(11))
    assert packed.index.num_classes == 11


def test_a_list_of_classes_gives_a_part_the_same_numbers(images, tmp_path):
    """A test folder that lacks a class keeps the numbers of the training set."""
    train = pack(str(tmp_path / "train"), Folder(str(images))).index
    save(tmp_path / "test" / "dog" / "a.png", "PNG")
    classes = read_class_list(train.url)
    test = pack(str(tmp_path / "out"), Folder(str(tmp_path / "test"), classes=classes)).index
    assert packed_labels(tmp_path / "out") == {"dog/a": 1}
    assert (test.class_names, test.num_classes) == (train.class_names, 2)


def test_holding_out(tmp_path):
    """Both parts have one list of classes, and each image goes to one of them; the keys are those of the whole set."""
    for number in range(40):
        save(tmp_path / "images" / ("a", "b", "b", "b")[number % 4] / f"{number}.png", "PNG")
    save(tmp_path / "images" / "alone" / "x.png", "PNG")
    save(tmp_path / "images" / "stray.png", "PNG")
    source = Folder(str(tmp_path / "images"))
    parts = source.split(Holdout(20, is_percentage=True))
    packed = {name: pack(str(tmp_path / name), part) for name, part in parts.items()}
    found = {name: packed_labels(tmp_path / name) for name in parts}
    assert Counter(found["val"].values()) == {0: 2, 2: 6}
    assert Counter(found["train"].values()) == {0: 8, 1: 1, 2: 24}
    pack(str(tmp_path / "all"), source)
    assert found["train"] | found["val"] == packed_labels(tmp_path / "all")
    for one in packed.values():
        assert one.index.class_names == ("a", "alone", "b")
        assert one.index.num_classes == 3
    assert [one.skipped for one in packed.values()] == [{"in no class folder": 1}, {}]
    assert packed["train"].index.source.startswith("folder/train ")


def test_names_with_blanks_and_rows_without_a_label(images, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_bytes(
        b'path,label\ncat/1.jpg,"golden retriever, old"\ncat/1.png,caf\xe9\ndog/called.jpg,\n,lost\n'
        b'dog/new.webp,"line\nbreak"\ngone.jpg,\n'
    )
    source = Folder(str(images), str(table))
    packed = pack(str(tmp_path / "out"), source)
    names = ("caf\udce9", "golden retriever, old", "line\nbreak", "lost")
    assert packed.index.class_names == names
    assert packed_labels(tmp_path / "out") == {"cat/1": 1, "cat/1~2": 0, "dog/new": 2}
    skipped = [(one.key, one.reason) for one in source.skipped]
    assert ("dog/called.jpg", "no label in the label table") in skipped
    assert ("gone.jpg", "in the label table, no such file") in skipped
    assert ("row 4", "no path in the label table") in skipped
    assert read_class_list(f"{tmp_path}/out/classes.txt").names == names


@pytest.mark.parametrize("kind", [pa.float64(), pa.int32(), pa.string(), pa.dictionary(pa.int8(), pa.string())])
def test_whole_floats_are_numbers(images, tmp_path, kind):
    """pandas writes a column of integers as floats if one is missing."""
    values = pa.array([10, None, 2]).cast(pa.string()).cast(kind)
    rows = pa.table({"path": ["cat/1.jpg", "cat/1.png", "dog/new.webp"], "label": values})
    pa.parquet.write_table(rows, tmp_path / "labels.parquet")
    packed = pack(str(tmp_path / "out"), Folder(str(images), f"{tmp_path}/labels.parquet"))
    assert packed_labels(tmp_path / "out") == {"cat/1": 10, "dog/new": 2}
    assert packed.skipped["no label in the label table"] == 1
    assert packed.index.num_classes == 11


@pytest.mark.parametrize("cell", ['["golden retriever", "cat"]', "['golden retriever', 'cat']"])
def test_lists_of_names_in_a_cell(images, tmp_path, cell):
    pa.csv.write_csv(pa.table({"path": ["cat/1.jpg"], "labels": [cell]}), tmp_path / "labels.csv")
    packed = pack(str(tmp_path / "out"), Folder(str(images), f"{tmp_path}/labels.csv"))
    assert packed.index.class_names == ("cat", "golden retriever")
    assert samples(tmp_path / "out")["cat/1"]["json"] == b'{"labels": [1, 0]}'


def test_a_class_that_may_be_lost_is_warned_about(images):
    """A link to a disk that is not mounted. The image behind another link would be one of a class that is there."""
    (images / "bird").symlink_to("/nowhere/bird")
    (images / "cat" / "link").symlink_to("/nowhere/1")
    (images / "gone.jpg").symlink_to("/nowhere/1.jpg")
    (warning,) = Folder(str(images)).warnings
    assert warning.startswith("bird is a link that leads nowhere; if it is a class,")
    assert not Folder(str(images), classes=ClassList("x", ("cat", "dog"))).warnings


def tiny_png(value: int) -> bytes:
    """One grey pixel; the bytes do not depend on any library's version."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes([0, value]), 0)),
        (b"IEND", b""),
    ]
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_sets_of_good_sources_keep_their_identity(tmp_path):
    """The names and digests are those of the version before hidden folders, links and first bytes were looked at."""
    root = tmp_path / "root"
    for number, name in enumerate(("dog", "a cat", "Übel")):
        for place, extension in enumerate(("png", "JPG", "png", "jpeg")):
            path = root / name / ("deep" if place == 3 else ".") / f"{place}.v1.{extension}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(tiny_png(10 * number + place))
        (root / name / "0_v1.png").write_bytes(tiny_png(99 + number))
        for other in ("Thumbs.db", "notes.txt", "README", "x.strange"):
            (root / name / other).write_bytes(b"words\n")
    (root / "stray.jpg").write_bytes(tiny_png(7))
    rows = (
        f"{path.relative_to(root)},{'red wet' if path.name < '2' else 'wet'}\n" for path in sorted(root.rglob("*.png"))
    )
    (tmp_path / "labels.csv").write_text("path,labels\n" + "".join(rows))

    index = pack(str(tmp_path / "a"), Folder(str(root))).index
    assert (index.source, index.digest[:16], index.num_samples) == ("folder cbafbaf5a80f", "05e49fb86459a60e", 15)
    index = pack(str(tmp_path / "b"), Folder(str(root), str(tmp_path / "labels.csv"))).index
    assert (index.source, index.digest[:16], index.num_samples) == ("folder 93e1805f4383", "e7976ccf06e3b153", 9)

"""Random archives, read a second time by Python's tarfile: everything in them is packed, with its label, or named."""

import io
import json
import os
import random
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from data import DataError
from data.__main__ import main
from data.packing.pack import Options, pack
from data.packing.verify import verify
from data.sources.class_tars import class_tars
from data.sources.img2dataset import Img2dataset
from tests.tars import packed_samples

SYSTEM = ("__MACOSX", "@eaDir", ".git", "$RECYCLE.BIN")
OTHER_TYPES = (
    tarfile.DIRTYPE,
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.FIFOTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.GNUTYPE_SPARSE,
    b"V",
)


def image(rng: random.Random) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(rng.getrandbits(32)).integers(0, 255, (3, 3, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, rng.choice(["PNG", "JPEG"]))
    return file.getvalue()


def content(rng: random.Random) -> bytes:
    if rng.random() < 0.8:
        return image(rng)
    return rng.choice([b"", b"<html>404</html>", b"\0" * 700, b"hello"])


def base_name(rng: random.Random) -> str:
    return rng.choice(
        [
            f"{rng.randrange(6):03d}.png",
            f"{rng.randrange(6):03d}.jpg",
            f"n{rng.randrange(99)}_{rng.randrange(99)}.JPEG",
            f"photo.v{rng.randrange(3)}.png",
            f"photo{rng.randrange(3)}",
            f"._{rng.randrange(3)}.png",
            ".DS_Store",
            "Thumbs.db",
            f".{rng.randrange(3)}.png",
            f"猫 {rng.randrange(3)}.png",
            f"\udcff{rng.randrange(3)}.png",
            f"a\nb{rng.randrange(3)}.png",
            f"{'x' * 150}{rng.randrange(3)}.png",
            "readme.txt",
            "inner.tar",
            "~2.png",
            "000~2.png",
        ]
    )


def member_name(rng: random.Random, classes: list[str]) -> str:
    folders = rng.choice(
        [[], [], [], ["."], ["deep", "deeper"], [rng.choice(classes)], [rng.choice(SYSTEM)], ["__x__"]]
    )
    return "/".join([*folders, base_name(rng)])


def write_archive(path: Path, rng: random.Random, classes: list[str]) -> None:
    form = rng.choice([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
    with tarfile.open(path, "w", format=form) as archive:
        names: list[str] = ["nothing"]
        for _ in range(rng.randrange(14)):
            info = tarfile.TarInfo(member_name(rng, classes))
            if rng.random() < 0.25:
                info.type = rng.choice(OTHER_TYPES)
                if info.type in (tarfile.LNKTYPE, tarfile.SYMTYPE):
                    target = rng.choice(names)
                    to = os.path.relpath(target, os.path.dirname(info.name) or ".")
                    info.linkname = to if info.type == tarfile.SYMTYPE else target
                    names.append(info.name)
                archive.addfile(info)
                continue
            data = content(rng)
            info.size = len(data)
            names.append(info.name)
            if form == tarfile.PAX_FORMAT and rng.random() < 0.3:
                info.pax_headers = {"comment": "a long comment " * 50}
            archive.addfile(info, io.BytesIO(data))


def hidden(name: str) -> bool:
    """By the rule in words: a folder of a system, its own files, and the notes of macOS that begin with `._`."""
    *folders, base = name.split("/")
    return bool({*folders} & {*SYSTEM}) or base.startswith("._") or base in (".DS_Store", "Thumbs.db")


def is_image(data: bytes) -> bool:
    try:
        Image.open(io.BytesIO(data)).load()
    except OSError:
        return False
    return True


def leads_to(archive: tarfile.TarFile, link: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """The regular file that a link leads to, if any; through other links, too."""
    by_name = {os.path.normpath(member.name): member for member in archive.getmembers()}
    for _ in range(50):
        if link is None or link.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
            return link
        if link.type not in (tarfile.LNKTYPE, tarfile.SYMTYPE):
            return None
        folder = os.path.dirname(link.name) if link.type == tarfile.SYMTYPE else ""
        link = by_name.get(os.path.normpath(os.path.join(folder, link.linkname)))
    return None


def plain_reading(folder: Path) -> tuple[Counter[tuple[bytes, int]], Counter[str], int]:
    """(images with their labels, names of everything else, number of all things), by tarfile alone. A link to a hidden
    file is that file, under the link's name."""
    packed: Counter[tuple[bytes, int]] = Counter()
    named: Counter[str] = Counter()
    total = 0
    tars = sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))
    for label, path in enumerate(tars):
        with tarfile.open(path) as archive:
            for member in archive.getmembers():
                total += 1
                regular = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)
                linked = member.type in (tarfile.LNKTYPE, tarfile.SYMTYPE) and leads_to(archive, member)
                data = archive.extractfile(linked or member).read() if regular or linked else b""
                if is_image(data) and not hidden(member.name) and (regular or hidden(linked.name)):
                    packed[data, label] += 1
                else:
                    named[f"{path.stem}/{member.name}"] += 1
    for path in folder.rglob("*"):
        if path.is_file() and path not in tars:
            total += 1
            named[str(path.relative_to(folder))] += 1
    return packed, named, total


def samples(folder: Path) -> Counter[tuple[bytes, int]]:
    found = packed_samples(folder)
    assert len({key for key, _ in found}) == len(found)
    return Counter((fields.get("png") or fields["jpg"], int(fields["cls"])) for _, fields in found)


def skipped(folder: Path) -> Counter[str]:
    path = folder / "skipped.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    assert all(line["reason"] for line in lines)
    return Counter({line["key"]: 0 for line in lines}) + Counter(line["key"] for line in lines)


@pytest.mark.parametrize("seed", range(25))
def test_class_tars(tmp_path, seed):
    rng = random.Random(seed)
    folder = tmp_path / "in"
    folder.mkdir()
    classes = ["ant", "bee", "v1.5", "猫"][: rng.randint(1, 4)]
    for name in classes:
        write_archive(folder / f"{name}.tar", rng, classes)
    for name in rng.sample(["readme.txt", "._ant.tar", "ant.tar.gz", "sub/ant.tar", "sub/x.png"], rng.randrange(4)):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"hello")
    packed, named, total = plain_reading(folder)
    if not packed:
        return
    options = Options(samples_per_shard=rng.choice([0, 3]), shuffle_seed=rng.choice([None, 0]))
    result = pack(str(tmp_path / "out"), class_tars("x", str(folder)), options)
    assert samples(tmp_path / "out") == packed
    assert skipped(tmp_path / "out") == named
    assert (result.found, result.merged) == (total, 0)
    assert sum(result.skipped.values()) == named.total()
    assert [fault for _, one in verify(result.index) for fault in one.faults] == []


@pytest.mark.parametrize("seed", range(6))
def test_a_tar_of_class_tars(tmp_path, seed):
    """Gives what the folder of the same tars gives."""
    rng = random.Random(100 + seed)
    (tmp_path / "in").mkdir()
    classes = ["ant", "bee", "cow"]
    for name in classes:
        write_archive(tmp_path / "in" / f"{name}.tar", rng, classes)
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(tmp_path / "in", "winter")
        archive.addfile(tarfile.TarInfo("winter/readme.txt"))
    packed, named, total = plain_reading(tmp_path / "in")
    if packed:
        result = pack(str(tmp_path / "out"), class_tars("x", str(tmp_path / "all.tar")))
        assert samples(tmp_path / "out") == packed
        assert skipped(tmp_path / "out") == named + Counter(["winter", "winter/readme.txt"])
        assert result.found == total + 2


def write_download(folder: Path, rng: random.Random, row: int) -> tuple[dict[int, bytes], list[str], int]:
    """A few tars as img2dataset writes them, with keys that repeat from tar to tar, and other things. Returns
    (images by their row in the label table, names of everything else, number of rows without an image)."""
    images: dict[int, bytes] = {}
    named: list[str] = []
    failed = 0
    first_key = rng.choice([0, 1000])
    for tar_number in range(rng.randint(1, 4)):
        name = rng.choice([f"{tar_number:05d}", f"part-{tar_number}"])
        rows: list[dict[str, object]] = []
        successes = 0
        with tarfile.open(folder / f"{name}.tar", "w") as archive:

            def add(
                member: str, data: bytes, kind: bytes = tarfile.REGTYPE, archive: tarfile.TarFile = archive
            ) -> None:
                info = tarfile.TarInfo(member)
                info.size, info.type = len(data), kind
                archive.addfile(info, io.BytesIO(data))

            for place in range(rng.randrange(8)):
                if rng.random() < 0.3:
                    extra, kind = rng.choice(
                        [("folder", tarfile.DIRTYPE), ("pipe.png", tarfile.FIFOTYPE), ("._x", tarfile.REGTYPE)]
                    )
                    add(extra, b"", kind)
                    named.append(f"{name}/{extra}")
                key = f"{first_key + place:09d}"
                arrived = rng.random() < 0.8
                rows.append({"key": key, "id": row, "status": "success" if arrived else "failed_to_download"})
                if not arrived:
                    failed += 1
                else:
                    successes += 1
                    data = content(rng)
                    add(f"{key}.jpg", data)
                    add(f"{key}.json", json.dumps({"id": row, "labels": [row]}).encode())
                    if rng.random() < 0.3:
                        add(f"{key}.txt", b"a caption")
                    if rng.random() < 0.1:
                        add(f"{key}.jpg", b"again")
                        named.append(f"{name}/{key}.jpg")
                    if is_image(data):
                        images[row] = data
                    else:
                        named.append(f"{name}/{key}")
                row += 1
            if rng.random() < 0.3:
                add("lonely.json", b"{}")
                named.append(f"{name}/lonely")
        columns = {one: [line[one] for line in rows] for one in ("key", "id", "status")}
        pa.parquet.write_table(
            pa.table(columns, pa.schema([("key", pa.string()), ("id", pa.int64()), ("status", pa.string())])),
            folder / f"{name}.parquet",
        )
        stats = {"count": len(rows), "successes": successes}
        (folder / f"{name}_stats.json").write_text(json.dumps(stats))
    for other in rng.sample(["notes.txt", "00099.parquet", "00099_stats.json", "._00000.tar", "sub/00000.tar"], 2):
        (folder / other).parent.mkdir(exist_ok=True)
        (folder / other).write_bytes(b"hello")
        named.append(other)
    return images, named, failed


@pytest.mark.parametrize("seed", range(30))
def test_img2dataset(tmp_path, seed):
    rng = random.Random(seed)
    folder = tmp_path / "in"
    folder.mkdir()
    images, named, failed = write_download(folder, rng, 0)
    if not images:
        return
    table = None
    if rng.random() < 0.5:
        table = str(tmp_path / "labels.csv")
        Path(table).write_text("id,labels\n" + "".join(f"{row},{row}\n" for row in range(50)))
    options = Options(samples_per_shard=rng.choice([2, 99]))
    result = pack(str(tmp_path / "out"), Img2dataset(str(folder), table), options)
    found = packed_samples(tmp_path / "out")
    assert len({key for key, _ in found}) == len(found)
    labels = [(json.loads(fields["json"])["labels"][0], fields.get("jpg") or fields["png"]) for _, fields in found]
    assert (dict(labels), len(labels)) == (images, len(images))
    lines = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert Counter(line["key"] for line in lines if "things" not in line and "did not get" not in line["reason"]) == (
        Counter(named)
    )
    assert sum(line.get("things", 1) for line in lines if "did not get" in line["reason"]) == failed
    assert result.found == len(images) + len(named) + failed
    assert [fault for _, one in verify(result.index) for fault in one.faults] == []


def test_links(tmp_path):
    """Hard and symbolic ones: to a file under its own name, to a hidden file, to a folder, to nothing, in a circle."""
    (tmp_path / "in").mkdir()
    shown, kept = image(random.Random(0)), image(random.Random(1))
    with tarfile.open(tmp_path / "in" / "ant.tar", "w") as archive:
        for name, data in (("a/x.png", shown), (".cache/y.png", kept)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target, kind in (
            ("a/same.png", "x.png", tarfile.SYMTYPE),
            ("a/hard.png", "a/x.png", tarfile.LNKTYPE),
            ("a/cached.png", "../.cache/y.png", tarfile.SYMTYPE),
            ("a/through.png", "cached.png", tarfile.SYMTYPE),
            ("a/wrong.png", "a/x.png", tarfile.SYMTYPE),
            ("a/me.png", "me.png", tarfile.SYMTYPE),
            ("a/one.png", "two.png", tarfile.SYMTYPE),
            ("a/two.png", "one.png", tarfile.SYMTYPE),
            ("b", "folder", tarfile.SYMTYPE),
            ("folder", "", tarfile.DIRTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.linkname, info.type = target, kind
            archive.addfile(info)
    result = pack(str(tmp_path / "out"), class_tars("x", str(tmp_path / "in")))
    assert samples(tmp_path / "out") == Counter({(shown, 0): 1, (kept, 0): 2})
    assert result.skipped == {
        "a link in a tar to what is in the tar under its own name": 3,
        "a link in a tar that leads back to itself": 3,
        "a link in a tar that leads to nothing in it": 1,
        "hidden or system file": 1,
        "a folder in a tar; its files are read by their own names": 1,
    }
    assert result.found == 12


def test_tars_that_would_be_lost(tmp_path, capsys):
    """Links that lead nowhere, pipes, folders, compressed tars, and two tars of one class are errors in one line."""
    folder = tmp_path / "in"
    folder.mkdir()
    write_archive(folder / "ant.tar", random.Random(0), ["ant"])

    def said(*arguments: str) -> str:
        assert main(["pack", *arguments, str(tmp_path / "out"), "--from", str(folder)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert not (tmp_path / "out").exists()
        return line

    (folder / "ant_stats.json").write_text('{"successes": 0}')
    for make, words, both in (
        (lambda path: path.symlink_to("nowhere.tar"), "bee.tar: link that leads nowhere; its images would be", True),
        (lambda path: os.mkfifo(path), "bee.tar: pipe; its images would be lost", True),
        (lambda path: path.mkdir(), "bee.tar is a folder", True),
        (lambda path: path.write_bytes(b"no tar"), "bee.tar: cannot be opened (ReadError", False),
        (lambda path: path.write_bytes(b""), "bee.tar: cannot be opened (ReadError: empty file)", False),
    ):
        make(folder / "bee.tar")
        assert words in said("imagenet21k")
        assert (words if both else "bee_stats.json: is missing") in said("img2dataset")
        (folder / "bee.tar").rmdir() if (folder / "bee.tar").is_dir() else (folder / "bee.tar").unlink()
    for name in ("bee.tar.gz", "bee.TAR", "bee.tar.bz2"):
        (folder / name).write_bytes(b"")
        assert f"{name} is no class tar, and there is no bee.tar" in said("imagenet21k")
        (folder / name).unlink()
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(folder / "ant.tar", "a/ant.tar")
        archive.add(folder / "ant.tar", "b/ant.tar")
    assert main(["pack", "imagenet21k", str(tmp_path / "out"), "--from", str(tmp_path / "all.tar")]) == 2
    assert "2 tars are called ant: a class has one tar" in capsys.readouterr().err


def test_an_archive_in_an_archive_ends_where_it_ends(tmp_path):
    """A class tar that is cut short between two images does not run into the next; bytes behind an end are named."""
    names = ["a.png", "b.png"]
    with tarfile.open(tmp_path / "whole.tar", "w") as archive:
        for seed, name in enumerate(names):
            data = image(random.Random(seed))
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
            ends = archive.offset
    whole = (tmp_path / "whole.tar").read_bytes()
    for content_, words in ((whole[:ends], "cut short: the archive ant in it has no end"), (whole + whole, None)):
        with tarfile.open(tmp_path / "all.tar", "w") as archive:
            for name, data in (("ant.tar", content_), ("bee.tar", whole)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        if words is None:
            result = pack(str(tmp_path / "out"), class_tars("x", str(tmp_path / "all.tar")))
            assert (result.index.num_samples, list(result.skipped.values())) == (4, [1])
            assert skipped(tmp_path / "out") == Counter(["ant"])
        else:
            with pytest.raises(DataError, match=words):
                class_tars("x", str(tmp_path / "all.tar"))

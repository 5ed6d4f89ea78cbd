"""Random archives, read a second time by Python's tarfile: everything in them is packed, with its label, or named."""

import io
import json
import random
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.packing.pack import Options, pack
from data.packing.verify import verify
from data.sources.class_tars import class_tars

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
                    info.linkname = rng.choice(names)
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


def plain_reading(folder: Path) -> tuple[Counter[tuple[bytes, int]], Counter[str], int]:
    """(images with their labels, names of everything else, number of all things), by tarfile alone."""
    packed: Counter[tuple[bytes, int]] = Counter()
    named: Counter[str] = Counter()
    total = 0
    tars = sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))
    for label, path in enumerate(tars):
        with tarfile.open(path) as archive:
            for member in archive.getmembers():
                total += 1
                regular = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)
                data = archive.extractfile(member).read() if regular else b""
                if regular and is_image(data) and not hidden(member.name):
                    packed[data, label] += 1
                else:
                    named[f"{path.stem}/{member.name}"] += 1
    for path in folder.rglob("*"):
        if path.is_file() and path not in tars:
            total += 1
            named[str(path.relative_to(folder))] += 1
    return packed, named, total


def samples(folder: Path) -> Counter[tuple[bytes, int]]:
    found: dict[tuple[str, str], dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                key, _, extension = member.name.rpartition(".")
                fields = found.setdefault((path.name, key), {})
                assert extension not in fields
                fields[extension] = archive.extractfile(member).read()
    keys = [key for _, key in found]
    assert len(set(keys)) == len(keys)
    return Counter((fields.get("png") or fields["jpg"], int(fields["cls"])) for fields in found.values())


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

"""Sets of good sources keep their name and their bytes. The expected values are those of the version before keys were
made unique and identical images merged; a packing that it began continues under this one."""

import hashlib
import json
import struct
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from data import open_index
from data.__main__ import main
from tests.data.sources.test_unique_keys import label_table, write_tar


def grey(value: int) -> bytes:
    """A PNG of one pixel, without compression: the same bytes with every library."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = zlib.compress(bytes([0, value]), 0)
    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.fixture
def sources(tmp_path) -> Path:
    for number, name in enumerate(("n02", "n01", "n11")):
        (tmp_path / "tars").mkdir(exist_ok=True)
        members = [(f"{name}_{place}.JPEG", grey(20 * number + place)) for place in range(12)]
        write_tar(tmp_path / "tars" / f"{name}.tar", members)
    (tmp_path / "coyo").mkdir()
    for number in range(2):
        rows = range(10 * number, 10 * number + 10)
        keys = [f"{number:05d}{row:04d}" for row in rows]
        members = [(f"{key}.png", grey(row)) for key, row in zip(keys, rows, strict=True)]
        write_tar(tmp_path / "coyo" / f"{number:05d}.tar", members)
        pa.parquet.write_table(pa.table({"key": keys, "id": list(rows)}), tmp_path / "coyo" / f"{number:05d}.parquet")
        (tmp_path / "coyo" / f"{number:05d}_stats.json").write_text(json.dumps({"count": 10, "successes": 10}))
    label_table(tmp_path / "labels.csv", 20)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "splits"),
    [
        (
            ["imagenet21k", "--from", "tars", "--holdout", "5", "--no-merge-identical"],
            {"train": "7c1ca0b8c6eb42ee", "val": "8fef84c250e5d483"},
        ),
        (["img2dataset", "--from", "coyo", "--labels", "labels.csv"], {"": "cc3a57a932bab946"}),
    ],
)
def test_names_and_bytes(sources, monkeypatch, words, splits):
    monkeypatch.chdir(sources)
    assert main(["pack", words[0], "out", *words[1:], "--shard-samples", "6"]) == 0
    found = {}
    for split in splits:
        index = open_index(f"out/{split}" if split else "out")
        found[split] = hashlib.sha256(f"{index.source} {index.digest}".encode()).hexdigest()[:16]
    assert found == splits

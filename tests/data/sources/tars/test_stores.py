"""Tars in an object store, packed into an object store, in folders with odd names: cut off, continued, packed once."""

import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from data import DataError, open_index, storage
from data.__main__ import main
from data.packing.pack import pack
from data.sources.class_tars import class_tars
from data.sources.img2dataset import Img2dataset
from data.sources.tars import identical
from infra.local.stores import gcs_server, reached_by, s3_server
from tests.data.sources.test_unique_keys import label_table, png, write_tar


def put(path, url: str) -> None:
    storage.write_atomic(url, path.read_bytes())


@pytest.mark.parametrize("server", [gcs_server, s3_server, None])
def test_class_tars_are_merged(tmp_path, server, monkeypatch, capsys):
    """Eight images in two classes each; 000.png is in both classes with other bytes."""
    members = [(f"{number:03d}.png", png(number)) for number in range(9)]
    write_tar(tmp_path / "ant.tar", members)
    write_tar(tmp_path / "bee.tar", [("000.png", png(99)), *members[1:]])
    monkeypatch.setattr(identical, "PART", 4)

    def check(bucket: str) -> None:
        source, dest = f"{bucket}/winter [21]", f"{bucket}/set {{1}}"
        for name in ("ant.tar", "bee.tar"):
            put(tmp_path / name, f"{source}/{name}")
        storage.write_atomic(f"{source}/readme.txt", b"hello")
        command = ["pack", "imagenet21k", dest, "--from", source, "--holdout", "3"]
        write, written = identical._write_part, []

        def cut_off(*call):
            if len(written) == 2:
                raise DataError("cut off")
            written.append(call[1])
            return write(*call)

        monkeypatch.setattr(identical, "_write_part", cut_off)
        assert main(command) == 2
        monkeypatch.setattr(identical, "_write_part", lambda *call: written.append(call[1]) or write(*call))
        assert main(command) == 0
        assert main(command) == 0
        monkeypatch.setattr(identical, "_write_part", write)
        assert sorted(written) == list(range(5))
        assert capsys.readouterr().out.count("already packed") == 2
        indexes = [open_index(f"{dest}/{split}") for split in ("train", "val")]
        assert [index.num_samples for index in indexes] == [7, 3]
        assert sum(index.about["merged"] for index in indexes) == 8
        assert sum(sum(index.label_counts.values()) for index in indexes) == 18
        assert [sum(index.about["skipped"].values()) for index in indexes] == [1, 0]
        for index in indexes:
            assert main(["verify", index.url, "--workers", "1"]) == 0

    if server is None:
        check("memory://tars")
        storage.remove_folder("memory://tars")
    else:
        with server() as running, reached_by(running) as bucket:
            check(bucket)


@pytest.mark.parametrize("server", [gcs_server, s3_server])
def test_downloads(tmp_path, server):
    """Two tars with equal keys."""
    with server() as running, reached_by(running) as bucket:
        source = f"{bucket}/coyo [v1]"
        for number, name in enumerate("ab"):
            rows = range(10 * number, 10 * number + 10)
            write_tar(tmp_path / f"{name}.tar", [(f"{row % 10:09d}.png", png(row)) for row in rows])
            keys = [f"{row % 10:09d}" for row in rows]
            pa.parquet.write_table(pa.table({"key": keys, "id": list(rows)}), tmp_path / f"{name}.parquet")
            (tmp_path / f"{name}_stats.json").write_text(json.dumps({"count": 12, "successes": 10}))
            for path in (tmp_path / f"{name}.tar", tmp_path / f"{name}.parquet", tmp_path / f"{name}_stats.json"):
                put(path, f"{source}/{path.name}")
        result = pack(str(tmp_path / "out"), Img2dataset(source, label_table(tmp_path / "labels.csv", 20)))
        assert (result.index.num_samples, result.found) == (20, 24)
        with tarfile.open(tmp_path / "out" / "000000.tar") as archive:
            members = {member.name: archive.extractfile(member).read() for member in archive}
        for row in range(20):
            key = f"{'ab'[row // 10]}/{row % 10:09d}"
            assert members[f"{key}.png"] == png(row)
            assert json.loads(members[f"{key}.json"])["labels"] == [row]


def test_listing_errors_are_errors(tmp_path, monkeypatch):
    """A folder of the store that cannot be listed is not an empty one."""
    import fsspec

    write_tar(tmp_path / "ant.tar", [("0.png", png(0))])
    put(tmp_path / "ant.tar", "memory://listed/ant.tar")
    assert len(class_tars("x", "memory://listed")) == 1
    positions = np.arange(1)
    assert len(list(class_tars("x", "memory://listed").reading(positions)())) == 1
    monkeypatch.setattr(
        type(fsspec.filesystem("memory")), "store", property(lambda self: (_ for _ in ()).throw(PermissionError("no")))
    )
    with pytest.raises(DataError, match="no"):
        class_tars("x", "memory://listed")

import tarfile

import pytest

from data.errors import DataError
from data.packing.scan import index_shards
from data.shards.writer import ShardWriter


def test_writer_with_long_names(tmp_path):
    """tarfile reads names that are too long for ustar."""
    keys = ["ü" * 90, "long/" * 60 + "name", "plain"]
    with ShardWriter(str(tmp_path), "a.tar") as writer:
        for key in keys:
            writer.write(key, {"jpg": key.encode(), "cls": b"0"})
        shard = writer.close()
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert [info.name for info in archive] == [f"{key}.{kind}" for key in keys for kind in ("jpg", "cls")]
        assert archive.extractfile(f"{keys[1]}.jpg").read() == keys[1].encode()
    scanned, _ = index_shards(str(tmp_path / "a.tar"))
    assert (scanned.shards[0].sha256, scanned.shards[0].bytes, scanned.num_samples) == (shard.sha256, shard.bytes, 3)


def test_a_repeated_neighbour_is_refused(tmp_path):
    """Readers join neighbours with one key. Equal keys further apart are two samples for all readers."""
    with ShardWriter(str(tmp_path), "a.tar") as writer:
        for key in ("a/1", "b/1", "a/1"):
            writer.write(key, {"cls": b"1"})
        with pytest.raises(DataError, match=r"/a.tar: two samples with the key 'a/1' follow each other"):
            writer.write("a/1", {"png": b"1"})
        assert writer.close().samples == 3

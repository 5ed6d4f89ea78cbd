import hashlib
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from sklearn.datasets import load_digits

from data import DataError, open_index
from data.packing.pack import _plan
from data.packing.scan import index_shards
from data.sources.digits import OPTIONS, Digits, pack_digits


def snapshot(folder: Path) -> dict[str, tuple[str, int]]:
    """Checksum and modification time of every file."""
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_digits_hold_scikit_learns_arrays(digits):
    """Read with WebDataset and PIL: all 1,797 images with exact values, each in one split."""
    data = load_digits()
    seen = {}
    for split in ("train", "test"):
        urls = sorted(str(path) for path in (digits / split).glob("*.tar"))
        for sample in webdataset.WebDataset(urls, shardshuffle=False).decode("pil"):
            image = np.asarray(sample["png"]).astype(float)
            seen[int(sample["__key__"])] = split
            assert np.array_equal(np.rint(image[..., 0] * 16 / 255), data.images[int(sample["__key__"])])
            assert sample["cls"] == data.target[int(sample["__key__"])]
    assert sorted(seen) == list(range(1797))
    held_out = np.array([seen[number] == "test" for number in range(1797)])
    for number in range(10):
        assert held_out[data.target == number].mean() == pytest.approx(0.2, abs=0.005)


def test_digits_png_is_grey(digits):
    with tarfile.open(digits / "train" / "000000.tar") as archive:
        image = Image.open(archive.extractfile("000000.png"))
        assert (image.mode, image.size) == ("L", (8, 8))


def test_digits_index(digits):
    index = open_index(str(digits / "train"))
    assert [shard.samples for shard in index.shards] == [400, 400, 400, 242]
    assert (index.num_classes, index.multi_label, index.extensions) == (10, False, ("cls", "png"))
    for number, shard in enumerate(index.shards):
        content = Path(index.shard_url(number)).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (shard.bytes, shard.sha256)
        with tarfile.open(index.shard_url(number)) as archive:
            assert [info.offset for info in archive][:: 2 * 64] == shard.offsets.tolist()


def test_same_bytes_every_time_and_left_alone_when_complete(digits, tmp_path):
    assert pack_digits(str(tmp_path))
    first = snapshot(tmp_path)
    shards = [f"train/00000{number}.tar" for number in range(4)] + ["test/000000.tar"]
    assert set(first) == {*shards, "train/index.json", "test/index.json"}
    assert {name: digest for name, (digest, _) in first.items()} == {
        name: digest for name, (digest, _) in snapshot(digits).items()
    }
    assert not pack_digits(str(tmp_path))
    assert snapshot(tmp_path) == first


@pytest.mark.parametrize("damage", ["shard missing", "shard cut", "interrupted"])
def test_incomplete_is_packed_again(digits, tmp_path, damage):
    pack_digits(str(tmp_path))
    shard = tmp_path / "train" / "000002.tar"
    if damage == "shard missing":
        shard.unlink()
    elif damage == "shard cut":
        shard.write_bytes(shard.read_bytes()[:-512])
    else:  # killed before its first shard was finished
        (tmp_path / "train" / "index.json").unlink()
        (tmp_path / "train" / "packing").mkdir()
        (tmp_path / "train" / "packing" / "plan.json").write_text(json.dumps(_plan(Digits("train"), OPTIONS)))
        shard.write_bytes(shard.read_bytes()[:1000])
    assert pack_digits(str(tmp_path))
    assert {name: digest for name, (digest, _) in snapshot(tmp_path).items()} == {
        name: digest for name, (digest, _) in snapshot(digits).items()
    }


def test_somebody_elses_shards_are_not_touched(digits, tmp_path):
    (tmp_path / "train").mkdir()
    mine = tmp_path / "train" / "000000.tar"
    mine.write_bytes((digits / "test" / "000000.tar").read_bytes())
    before = snapshot(tmp_path)
    with pytest.raises(DataError, match=r"holds .tar files that this program did not pack"):
        pack_digits(str(tmp_path))
    mine.rename(tmp_path / "train" / "mine.tar")
    index_shards(str(tmp_path / "train"))
    with pytest.raises(DataError, match="already holds shards of another tool"):
        pack_digits(str(tmp_path))
    assert snapshot(tmp_path)["train/mine.tar"] == before["train/000000.tar"]
    assert pack_digits(str(tmp_path), force=True)
    assert snapshot(tmp_path / "train").keys() == snapshot(digits / "train").keys()

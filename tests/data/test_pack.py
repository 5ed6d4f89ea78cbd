import hashlib
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from sklearn.datasets import load_digits

from data import DataError, open_index
from data.pack import find_shards, index_shards, pack
from data.shards import ShardWriter
from data.sources.digits import pack_digits


def snapshot(folder: Path) -> dict[str, tuple[str, int]]:
    """Checksum and modification time of every file."""
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_digits_hold_scikit_learns_arrays(digits):
    """Read back with WebDataset and PIL: all 1,797 images, to the value, each in one split."""
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
    else:  # killed while it wrote the third shard: the marker is there, the index is not
        (tmp_path / "train" / "index.json").unlink()
        (tmp_path / "train" / "packing").write_text("digits/train")
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


@pytest.mark.parametrize("workers", [1, 2])
def test_index_of_existing_shards_equals_the_packers(digits, tmp_path, workers):
    for path in (digits / "train").glob("*.tar"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    calls = []
    index, contents = index_shards(str(tmp_path), workers=workers, progress=lambda *done: calls.append(done))
    packed = json.loads((digits / "train" / "index.json").read_text())
    assert json.loads((tmp_path / "index.json").read_text()) == packed | {"source": ""}
    assert index.digest == open_index(str(digits / "train")).digest
    assert (contents.unlabelled, contents.without_image) == (0, 0)
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_odd_members_between_samples(tmp_path):
    """Folders, metadata and names without a dot count as nothing, here and in the reader's offsets."""
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
    assert find_shards("gs://bucket/a/{0..1}.tar") == ("gs://bucket/a", ["0.tar", "1.tar"])
    for url in (str(digits), f"{train}/*.zip"):
        with pytest.raises(DataError, match=r"no .tar files there"):
            find_shards(url)
    with pytest.raises(DataError, match="no folder in common"):
        find_shards("gs://{one,other}/0.tar")
    monkeypatch.chdir(digits)
    assert find_shards("train/000003.tar") == find_shards("./train/000003.tar") == (train, names[3:])
    with pytest.raises(DataError, match="the braces do not match"):
        find_shards(f"{train}/{{0..1.tar")


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


def test_truncated_tar(digits, tmp_path):
    content = (digits / "test" / "000000.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(content[: len(content) // 2 + 100])
    with pytest.raises(DataError, match=r"cut.tar: not a readable tar: ends in the middle of the entry"):
        index_shards(str(tmp_path))


def test_lists_of_one_label_make_a_multi_label_set(tmp_path):
    """The form counts: such an image may have more labels in the next shard."""
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


def test_writer_with_long_names(tmp_path):
    """tarfile reads back what ustar alone could not hold."""
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


def test_pack_streams_any_number_of_samples(tmp_path):
    samples = ((f"{number:03d}", {"png": b"x", "cls": b"%d" % number}) for number in range(250))
    assert pack(str(tmp_path), samples, source="test", samples_per_shard=100)
    index = open_index(str(tmp_path))
    assert [shard.samples for shard in index.shards] == [100, 100, 50]
    assert index.num_classes == 250


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "data", *arguments], capture_output=True, text=True, check=False)


def test_command_line(tmp_path):
    """pack, pack again, index, show: what a user does, in real processes."""
    packed = command("pack", "digits", str(tmp_path), "--json")
    assert (packed.returncode, packed.stderr) == (0, "")
    facts = json.loads(packed.stdout.splitlines()[-1])
    assert facts["packed"]
    assert facts["train"]["num_samples"] + facts["test"]["num_samples"] == 1797
    assert "already packed: 1,442 samples of 10 classes in 4 shards" in command("pack", "digits", str(tmp_path)).stdout
    shown = command("show", str(tmp_path / "train"), "--json")
    assert json.loads(shown.stdout.splitlines()[-1]) == facts["train"]
    assert "64 of 8x8" in shown.stdout
    indexed = command("pack", "--index-only", str(tmp_path / "train"), "--workers", "2", "--json")
    assert (indexed.returncode, indexed.stderr) == (0, "")
    assert json.loads(indexed.stdout.splitlines()[-1])["digest"] == facts["train"]["digest"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "required: COMMAND"),
        (("pack",), "give SOURCE and DEST, or --index-only URL"),
        (("pack", "cifar", "x"), "'cifar'"),
        (("pack", "--index-only", "/nowhere"), "/nowhere: no .tar files there"),
        (("pack", "digits", "--index-only", "/nowhere"), "--index-only takes one URL"),
        (("pack", "digits", "/proc/nowhere"), "/proc/nowhere"),
        (("show", "/nowhere"), "/nowhere: does not exist"),
        (("show", "gs-typo://bucket/x"), "Protocol not known: gs-typo"),
    ],
)
def test_wrong_commands_are_one_line(arguments, words):
    result = command(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert words in result.stderr


def test_help_teaches():
    result = command("pack", "--help")
    assert result.returncode == 0
    assert "python -m data pack --index-only URL" in result.stdout

"""ImageNet-21k in miniature, with pictures that stand in several class tars."""

import io
import json
import random
import tarfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import DataError, open_index
from data.__main__ import main
from data.packing import pack as packing
from data.ray_session import in_process
from data.sources.class_tars import class_tars
from data.sources.tars import identical
from data.sources.tars.identical import merged, read_digests

CLASSES = [f"n{number:08d}" for number in range(6)]


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> tuple[Path, dict[bytes, set[int]], int]:
    """(folder of the class tars, classes of each image's bytes, number of files): half of 90 images have copies, one of
    them in its own class. Two empty files and two files that are no images are copies of nothing."""
    folder = tmp_path_factory.mktemp("winter21")
    rng = random.Random(0)
    classes: dict[bytes, set[int]] = defaultdict(set)
    files: dict[int, list[bytes]] = {number: [] for number in range(len(CLASSES))}
    for seed in range(90):
        image = png(seed)
        for number in rng.sample(range(len(CLASSES)), rng.choice([1, 1, 2, 4])):
            classes[image].add(number)
            files[number].append(image)
    files[3].append(files[3][0])
    for number in (1, 2):
        files[number] += [b"", b"<html>404</html>"]
    count = 0
    for number, contents in files.items():
        rng.shuffle(contents)
        with tarfile.open(folder / f"{CLASSES[number]}.tar", "w") as archive:
            for place, content in enumerate(contents):
                info = tarfile.TarInfo(f"{CLASSES[number]}_{place}.JPEG")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
                count += 1
    return folder, dict(classes), count


def samples(folder: Path) -> list[tuple[str, dict[str, bytes]]]:
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                key, _, extension = member.name.partition(".")
                assert extension not in found.setdefault(key, {})
                found[key][extension] = archive.extractfile(member).read()
    return list(found.items())


def command(folder: Path, dest: Path, *more: str) -> list[str]:
    return ["pack", "imagenet21k", str(dest), "--from", str(folder), "--holdout", "20", *more]


def test_each_image_is_one_sample_with_all_its_classes(release, tmp_path, capsys):
    folder, classes, count = release
    assert main([*command(folder, tmp_path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    found: dict[bytes, list[int]] = {}
    for split in ("train", "val"):
        for _, fields in samples(tmp_path / split):
            assert fields["png"] not in found  # so none is in train and in val
            found[fields["png"]] = json.loads(fields["json"])["labels"]
        assert open_index(str(tmp_path / split)).multi_label
    assert found == {image: sorted(numbers) for image, numbers in classes.items()}
    totals = [facts[split]["found"] for split in ("train", "val")]
    packed = [facts[split]["num_samples"] for split in ("train", "val")]
    gone = [facts[split]["merged"] for split in ("train", "val")]
    skipped = [sum(facts[split]["skipped"].values()) for split in ("train", "val")]
    assert (sum(totals), sum(packed), sum(skipped)) == (count, len(classes), 4)
    assert sum(gone) == count - len(classes) - 4
    assert packed[1] + skipped[1] == 20
    for split, number in (("train", gone[0]), ("val", gone[1])):
        assert main(["show", str(tmp_path / split), "--no-sheet"]) == 0
        assert f"merged   {number:,} files with the bytes of another one" in capsys.readouterr().out
        assert main(["verify", str(tmp_path / split), "--workers", "1"]) == 0
    assert open_index(str(tmp_path / "train")).about["merge_identical"] is True


def test_digests_are_read_once(release, tmp_path, monkeypatch):
    """A pass that is cut off goes on with what is missing; a start after the end reads no image."""
    folder, classes, _ = release
    source = class_tars("imagenet21k/train", str(folder))
    read: list[str] = []
    read_places = identical.read_places

    def counted(names, places):
        read.extend(names)
        return read_places(names, places)

    def cut_off(function, calls):
        for number, call in enumerate(calls):
            if number == 3:
                raise KeyboardInterrupt
            yield function(*call)

    monkeypatch.setattr(identical, "read_places", counted)
    monkeypatch.setattr(identical, "PART", 16)
    with pytest.raises(KeyboardInterrupt):
        read_digests(str(tmp_path), source, cut_off)
    assert len(read) == 48
    found = read_digests(str(tmp_path), source, in_process)
    assert len(read) == len(set(read)) == len(source)
    assert np.array_equal(found, read_digests(str(tmp_path), source, in_process))
    assert len(read) == len(source)
    assert len(merged("x", source, found)) == len(classes) + 4

    damaged = sorted((tmp_path / "digests").glob("*.sha256"))[1]
    damaged.write_bytes(damaged.read_bytes()[:-5])
    assert np.array_equal(found, read_digests(str(tmp_path), source, in_process))
    assert len(read) == len(source) + 16

    with pytest.raises(DataError, match="digests: holds the digests of other images"):
        read_digests(str(tmp_path), source.chosen("x", np.arange(9)), in_process)
    assert np.array_equal(found, read_digests(str(tmp_path), source, in_process))
    few = read_digests(str(tmp_path), source.chosen("x", np.arange(9)), in_process, force=True)
    assert np.array_equal(few, found[:9])


def test_the_command_twice_and_after_a_cut_off(release, tmp_path, monkeypatch, capsys):
    folder, _, _ = release
    shard = packing.pack_shard
    made: list[int] = []

    def cut_off(folder, number, *rest):
        if len(made) == 2:
            raise OSError("cut off")
        made.append(number)
        return shard(folder, number, *rest)

    monkeypatch.setattr(packing, "pack_shard", cut_off)
    assert main(command(folder, tmp_path, "--shard-samples", "9")) == 2
    assert "cut off" in capsys.readouterr().err
    monkeypatch.setattr(packing, "pack_shard", shard)
    assert main(command(folder, tmp_path, "--shard-samples", "9", "--no-merge-identical")) == 2
    assert "train: its identical images are merged: go on without --no-merge-identical" in capsys.readouterr().err
    digests = [(path.name, path.stat().st_mtime_ns) for path in sorted((tmp_path / "digests").iterdir())]
    assert main(command(folder, tmp_path, "--shard-samples", "9")) == 0
    assert "\npacked: " in f"\n{capsys.readouterr().out}"
    assert main(command(folder, tmp_path, "--shard-samples", "9")) == 0
    assert "already packed: " in capsys.readouterr().out
    assert [(path.name, path.stat().st_mtime_ns) for path in sorted((tmp_path / "digests").iterdir())] == digests


def test_without_merging(release, tmp_path, capsys):
    """Each file is a sample with one label. The other choice is recognised in what is packed or begun."""
    folder, _, count = release
    assert main(command(folder, tmp_path / "a", "--no-merge-identical")) == 0
    indexes = [open_index(str(tmp_path / "a" / split)) for split in ("train", "val")]
    assert [index.source.split()[0] for index in indexes] == ["imagenet21k/train", "imagenet21k/val"]
    assert not indexes[0].multi_label
    assert sum(index.num_samples for index in indexes) == count - 4
    assert not (tmp_path / "a" / "digests").exists()

    capsys.readouterr()
    assert main(command(folder, tmp_path / "a")) == 2
    said = capsys.readouterr().err
    assert "a/train: its identical images are not merged: go on with --no-merge-identical, " in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "a" / "digests").exists()

    plan = {"version": 1, "name": "imagenet21k/train"}
    (tmp_path / "c" / "train" / "packing").mkdir(parents=True)
    (tmp_path / "c" / "train" / "packing" / "plan.json").write_text(json.dumps(plan))
    assert main(command(folder, tmp_path / "c")) == 2
    assert "c/train: its identical images are not merged" in capsys.readouterr().err
    assert main(["pack", "digits", str(tmp_path / "d")]) == 0
    assert main(command(folder, tmp_path / "d")) == 2
    assert "d/train: already holds digits/train" in capsys.readouterr().err
    assert main(command(folder, tmp_path / "a", "--force")) == 0
    assert open_index(str(tmp_path / "a" / "val")).multi_label

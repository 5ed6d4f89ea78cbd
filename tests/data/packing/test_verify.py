import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest

from data import Index, Shard, open_index, parallel
from data.__main__ import main
from data.shards.index import write_index
from data.shards.writer import ShardWriter

SAMPLES = 70  # a shard: two of the index's offsets


@pytest.fixture(scope="session")
def sound(tmp_path_factory, encode) -> Path:
    """Three shards of 70 samples of three classes. Do not write to it."""
    folder = tmp_path_factory.mktemp("sound")
    write_set(folder, [[sample(encode, n, shard * SAMPLES + n) for n in range(SAMPLES)] for shard in range(3)])
    return folder


@pytest.fixture
def folder(sound, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(sound, tmp_path / "set"))


def sample(encode: Callable[..., bytes], number: int, key: object) -> tuple[str, dict[str, bytes]]:
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
    return f"k{key}", {"jpg": encode(pixels, "JPEG"), "cls": str(number % 3).encode()}


def write_set(folder: Path, shards: list[list[tuple[str, dict[str, bytes]]]], **changes: object) -> Index:
    entries = []
    for number, samples in enumerate(shards):
        with ShardWriter(str(folder), f"{number:06d}.tar") as writer:
            for key, fields in samples:
                writer.write(key, fields)
            entries.append(writer.close())
    index = Index(str(folder / "index.json"), tuple(entries), num_classes=3, multi_label=False)
    write_index(replace(index, **changes))
    return index


def change_index(folder: Path, number: int, **changes: object) -> None:
    """Rewrite the entry of one shard."""
    index = open_index(str(folder))
    shards = list(index.shards)
    shards[number] = replace(shards[number], **changes)
    write_index(replace(index, shards=tuple(shards)))


def faults(folder: Path | str, capsys, *words: str) -> list[str]:
    """The lines of the command. Checks its exit code and that `--json` has the same faults."""
    code = main(["verify", str(folder), "--workers", "1", "--json", *words])
    lines = capsys.readouterr().out.splitlines()
    found, facts = lines[:-2], json.loads(lines[-1])
    assert found == [f"{fault['shard']}: {fault['what']}" for fault in facts["faults"]]
    assert code == (1 if found else 0)
    assert lines[-2].startswith(f"{len(found)} fault" if found else "no faults: ")
    return found


@pytest.mark.parametrize("words", [[], ["--decode"]])
def test_a_sound_set_has_no_faults(sound, capsys, words):
    assert faults(sound, capsys, *words) == []


def test_the_digits_have_no_faults(digits, capsys):
    assert faults(digits / "train", capsys, "--decode") == []


def test_a_flipped_bit_in_an_image(folder, capsys):
    """At any place in the shard's data the checksum shows it, without decoding."""
    path = folder / "000001.tar"
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        content[archive.getmembers()[20].offset_data + 300] ^= 4
    path.write_bytes(content)
    found = hashlib.sha256(content).hexdigest()
    was = open_index(str(folder)).shards[1].sha256
    assert faults(folder, capsys) == [f"000001.tar: SHA-256 is {found} instead of {was}"]


def test_a_flipped_bit_in_a_header(folder, capsys):
    path = folder / "000002.tar"
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        header = archive.getmembers()[2 * 40].offset  # of sample 40
    content[header + 3] ^= 1
    path.write_bytes(content)
    lines = faults(folder, capsys)
    assert [line.split(" is ")[0] for line in lines[:1]] == ["000002.tar: SHA-256"]
    assert lines[1:] == [  # sample 39 does not count: it may have had more fields
        f"000002.tar: not a readable tar after 39 samples: no tar header at byte {header}",
        "000002.tar: 39 samples instead of 70",
    ]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_shard(folder, capsys, share):
    path = folder / "000000.tar"
    whole = path.read_bytes()
    content = whole[: int(len(whole) * share)]
    path.write_bytes(content)
    lines = faults(folder, capsys)
    assert lines[0] == f"000000.tar: {len(content)} bytes instead of {len(whole)}"
    assert any(line.endswith("samples instead of 70") for line in lines)
    assert all(line.startswith("000000.tar: ") for line in lines)


def test_missing_extra_and_renamed_shards(folder, capsys):
    (folder / "000000.tar").rename(folder / "renamed.tar")
    assert faults(folder, capsys) == ["000000.tar: missing", "renamed.tar: not in the index"]


def test_shards_in_folders_below(tmp_path, sound, capsys):
    """Unlisted tars are searched in all folders of the index."""
    index = open_index(str(sound))
    (tmp_path / "a").mkdir()
    for shard in index.shards:
        shutil.copy(sound / shard.url, tmp_path / "a")
    shards = tuple(replace(shard, url=f"a/{shard.url}") for shard in index.shards)
    write_index(replace(index, url=str(tmp_path / "index.json"), shards=shards))
    assert faults(tmp_path, capsys) == []
    shutil.copy(sound / "000000.tar", tmp_path / "a" / "copy.tar")
    assert faults(tmp_path, capsys) == ["a/copy.tar: not in the index"]


def test_swapped_shards(folder, capsys):
    first, second = folder / "000000.tar", folder / "000001.tar"
    contents = first.read_bytes(), second.read_bytes()
    second.write_bytes(contents[0])
    first.write_bytes(contents[1])
    lines = faults(folder, capsys)
    assert "000000.tar: has the content that was indexed as 000001.tar" in lines
    assert "000001.tar: has the content that was indexed as 000000.tar" in lines
    assert not any("000002" in line for line in lines)


def test_a_shard_listed_twice_and_a_copy(folder, capsys):
    index = open_index(str(folder))
    write_index(replace(index, shards=(*index.shards, index.shards[0])))
    assert faults(folder, capsys) == ["000000.tar: listed 2 times in the index"]
    shutil.copy(folder / "000000.tar", folder / "000003.tar")
    write_index(replace(index, shards=(*index.shards, replace(index.shards[0], url="000003.tar"))))
    assert faults(folder, capsys) == ["000003.tar: indexed with the same content as 000000.tar: its samples come twice"]


def test_wrong_entries_of_the_index(folder, capsys):
    offsets = open_index(str(folder)).shards[1].offsets
    change_index(folder, 0, samples=69)
    change_index(folder, 1, offsets=offsets + np.array([0, 512]))
    size = (folder / "000002.tar").stat().st_size
    change_index(folder, 2, bytes=size + 512)
    assert faults(folder, capsys) == [
        "000000.tar: 70 samples instead of 69",
        f"000001.tar: sample 64 begins at byte {offsets[1]}, the index says {offsets[1] + 512}",
        f"000002.tar: {size} bytes instead of {size + 512}",
    ]


def test_wrong_label_counts(sound, tmp_path, capsys):
    folder = tmp_path / "set"
    shutil.copytree(sound, folder)
    index = open_index(str(folder))
    right = {0: 3 * 24, 1: 3 * 23, 2: 3 * 23}
    write_index(replace(index, label_counts=right))
    assert faults(folder, capsys) == []
    write_index(replace(index, label_counts={0: 72, 1: 70}))
    assert faults(folder, capsys) == [
        "index.json: class 1: 70 images in the index, 69 in the shards",
        "index.json: class 2: 0 images in the index, 69 in the shards",
    ]


def test_classes_that_are_only_claimed_cost_nothing(folder, capsys):
    index = open_index(str(folder))
    write_index(replace(index, num_classes=10**12, label_counts={0: 72, 1: 69, 10**11: 69}))
    assert faults(folder, capsys) == [
        "index.json: class 2: 0 images in the index, 69 in the shards",
        "index.json: class 100000000000: 69 images in the index, 0 in the shards",
    ]


def test_bad_samples_that_were_indexed_are_named_by_key(tmp_path, encode, capsys):
    """Faults that were there when the index was made, in one line for each sample and kind."""
    good = [sample(encode, n, f"good{n}") for n in range(3)]
    image = good[0][1]["jpg"]
    bad = [
        ("outside", {"jpg": image, "cls": b"3"}),
        ("none", {"jpg": image}),
        ("words", {"jpg": image, "cls": b"cat"}),
        ("several", {"jpg": image, "cls": b"0 1"}),
        ("imageless", {"cls": b"1"}),
        ("empty", {"jpg": b"", "cls": b"1"}),
        ("kgood1", {"jpg": image, "cls": b"1"}),
        ("cut", {"jpg": image[: len(image) // 2], "cls": b"1"}),
        ("text", {"jpg": b"<html>no such image</html>", "cls": b"1"}),
    ]
    write_set(tmp_path, [good + bad])
    without_decoding = {
        "000000.tar: sample 'outside': label outside the classes",
        "000000.tar: sample 'none': no label",
        "000000.tar: sample 'words': unreadable label",
        "000000.tar: sample 'several': several labels",
        "000000.tar: sample 'imageless': no image",
        "000000.tar: sample 'empty': empty image",
        "000000.tar: sample 'kgood1': key used before",
    }
    found = faults(tmp_path, capsys)
    assert (set(found), len(found)) == (without_decoding, len(without_decoding))
    decoded = {f"000000.tar: sample {key!r}: undecodable image" for key in ("cut", "text")}
    assert set(faults(tmp_path, capsys, "--decode")) == without_decoding | decoded


def test_several_labels_are_fine_in_a_multi_label_set(tmp_path, encode, capsys):
    image = sample(encode, 0, 0)[1]["jpg"]
    write_set(tmp_path, [[("a", {"jpg": image, "cls": b"0 1"}), ("b", {"jpg": image, "cls": b"2"})]], multi_label=True)
    assert faults(tmp_path, capsys) == []


def test_one_field_twice_in_a_sample(tmp_path, encode, capsys):
    """Readers use the first one. Two fields of one name are a fault."""
    image = sample(encode, 0, 0)[1]["jpg"]
    write_set(tmp_path, [[("a", {"jpg": image, "cls": b"0", "JPG": image, "CLS": b"2"})]])
    assert faults(tmp_path, capsys) == [
        "000000.tar: sample 'a': several .jpg fields",
        "000000.tar: sample 'a': several .cls fields",
    ]


def test_many_bad_samples_are_named_first_and_then_counted(tmp_path, encode, capsys):
    image = sample(encode, 0, 0)[1]["jpg"]
    write_set(tmp_path, [[(f"{n}", {"jpg": image, "cls": b"7"}) for n in range(25)]])
    assert faults(tmp_path, capsys) == [
        *(f"000000.tar: sample '{n}': label outside the classes" for n in range(10)),
        "000000.tar: and 15 more samples: label outside the classes",
    ]


def test_processes_find_the_same_in_the_same_order(folder, capsys, monkeypatch):
    monkeypatch.setattr(parallel, "PROCESS_SECONDS", 0.0)  # so little work would start none
    monkeypatch.setattr(parallel, "usable_cpus", lambda: 3)
    (folder / "000000.tar").unlink()
    change_index(folder, 2, samples=69)
    alone = faults(folder, capsys)
    assert main(["verify", str(folder), "--workers", "3"]) == 1
    assert capsys.readouterr().out.splitlines()[:-1] == alone


def test_another_file_system(sound, capsys):
    memory = fsspec.filesystem("memory")
    memory.put(str(sound), "/verified", recursive=True)
    try:
        assert faults("memory://verified", capsys) == []
        memory.rm_file("/verified/000001.tar")
        memory.pipe_file("/verified/more.tar", b"")
        assert faults("memory://verified", capsys) == ["000001.tar: missing", "more.tar: not in the index"]
    finally:
        memory.rm("/verified", recursive=True)


def test_a_shard_that_cannot_be_opened(folder, capsys):
    (folder / "000001.tar").unlink()
    (folder / "000001.tar").mkdir()
    (line,) = [line for line in faults(folder, capsys) if line.startswith("000001.tar")]
    assert "cannot be opened (IsADirectoryError" in line
    assert str(folder) not in line.partition("(")[0]


def test_without_an_index_it_is_a_usage_error(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "data", "verify", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert "--index-only" in result.stderr


def test_an_index_of_a_shard_in_another_place(tmp_path, sound, capsys):
    """Absolute URLs: the folder of the shards is searched, too."""
    index = open_index(str(sound))
    shards = tuple(replace(shard, url=index.shard_url(number)) for number, shard in enumerate(index.shards))
    assert all(isinstance(shard, Shard) for shard in shards)
    write_index(replace(index, url=str(tmp_path / "index.json"), shards=shards[:2]))
    assert faults(tmp_path, capsys) == [f"{sound / '000002.tar'}: not in the index"]

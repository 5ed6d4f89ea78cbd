"""Sets as earlier versions wrote them: no word in the index about who packed it, and names in classes.txt alone."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data.__main__ import main
from data.shards.index import Index, Shard, write_index
from tests.data.sources.test_unique_keys import png

Sample = tuple[str, int]  # key, label


def old_set(folder: Path, shards: list[list[Sample]], names: list[str], source: str = "folder 0123456789ab") -> None:
    """Write shards whose index counts each write as a sample, as the earlier writer did."""
    folder.mkdir()
    entries = []
    for number, samples in enumerate(shards):
        file, offsets = io.BytesIO(), []
        with tarfile.open(fileobj=file, mode="w") as archive:
            for place, (key, label) in enumerate(samples):
                if place % 64 == 0:
                    offsets.append(archive.offset)
                for extension, content in (("png", png(place)), ("cls", str(label).encode())):
                    info = tarfile.TarInfo(f"{key}.{extension}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        content = file.getvalue()
        (folder / f"{number:06d}.tar").write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        entries.append(Shard(f"{number:06d}.tar", len(samples), len(content), sha256, np.array(offsets, np.int64)))
    index = Index(str(folder / "index.json"), tuple(entries), len(names), False, ("cls", "png"), source)
    write_index(index)
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in names))


def faults(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    code = main(["verify", str(folder), "--workers", "1", "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["faults"]
    assert code == (1 if found else 0)
    return [fault["what"] for fault in found if fault["shard"] == "index.json"]


def test_a_good_old_set_has_no_faults(tmp_path, capsys):
    old_set(tmp_path / "a", [[("x/1", 0), ("x/2", 1)], [("y/1", 2)]], ["cat", "dog", "owl"])
    assert faults(tmp_path / "a", capsys) == []
    old_set(tmp_path / "b", [[("1", 0), ("2", 1)]], ["0", "1", "2"])
    assert faults(tmp_path / "b", capsys) == []


def test_repeated_keys(tmp_path, capsys):
    old_set(tmp_path / "a", [[("000", 0), ("000", 1), ("001", 0)], [("001", 1)]], ["cat", "dog"])
    together, repeated = faults(tmp_path / "a", capsys)
    assert together.startswith("1 samples have the key of the sample before them")
    assert "pack it again from its source" in together
    assert repeated.startswith("1 keys come more than once")
    old_set(tmp_path / "b", [[("000", 0)], [("000", 1)]], ["cat", "dog"], "img2dataset 0123456789ab")
    (repeated,) = faults(tmp_path / "b", capsys)
    assert "some images may have the labels of others" in repeated


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["0", "1", "10", "11", "2"], "(class 2 is 10, class 3 is 11, class 4 is 2)"),
        (["-1", "0", "1", "10", "2"], "(class 3 is 10, class 4 is 2)"),
        (["0.0", "1.0", "10.0", "2.0"], "(class 2 is 10.0, class 3 is 2.0)"),
    ],
)
def test_numbers_sorted_as_text(tmp_path, capsys, names, said):
    old_set(tmp_path / "a", [[(str(number), number) for number in range(len(names))]], names)
    (fault,) = faults(tmp_path / "a", capsys)
    assert f"are numbers, sorted as text {said}" in fault


def test_system_folders_as_classes(tmp_path, capsys):
    names = [".Trash-1000", ".ipynb_checkpoints", "@eaDir", "__MACOSX", "cat"]
    old_set(tmp_path / "a", [[(str(number), number) for number in range(len(names))]], names)
    (fault,) = faults(tmp_path / "a", capsys)
    assert fault.startswith("4 classes are hidden or system folders (class 0 is .Trash-1000, ")
    assert "@eaDir and 1 more" in fault
    names = [".git", "0", "1", "10", "2"]
    old_set(tmp_path / "b", [[(str(number), number) for number in range(len(names))]], names)
    assert len(faults(tmp_path / "b", capsys)) == 2


def test_sets_of_this_version_and_of_others_are_not_meant(tmp_path, capsys):
    names = ["0", "1", "10", "2"]
    old_set(tmp_path / "a", [[(str(number), number) for number in range(4)]], names, source="")
    assert faults(tmp_path / "a", capsys) == []
    old_set(tmp_path / "b", [[(str(number), number) for number in range(4)]], names)
    index = json.loads((tmp_path / "b" / "index.json").read_text())
    (tmp_path / "b" / "index.json").write_text(json.dumps(index | {"about": {"packed_by": "0.1.0"}}))
    assert faults(tmp_path / "b", capsys) == []
    assert main(["show", str(tmp_path / "b"), "--no-sheet"]) == 0
    assert "version  0.1.0" in capsys.readouterr().out

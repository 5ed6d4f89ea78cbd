"""Random names through folders, lists of classes, tables and a split: numbers equal a plain definition of them.

Each image ends with the text of its own class, so that what was packed is read from the shards alone.
"""

import csv
import io
import json
import os
import shutil
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import DataError, open_index
from data.packing.pack import pack
from data.shards import tar
from data.shards.class_names import read_class_list, text_list
from data.sources.classes.holdout import Holdout
from data.sources.folder import Folder
from data.sources.walk.names import is_hidden

PNG = cv2.imencode(".png", np.zeros((1, 1, 3), np.uint8))[1].tobytes()
ODD = ["golden retriever", " a", "a ", "a, b", '"q"', "[1]", "{x}", "line\nbreak", "\t", "\x7f", "猫", "é", "e\u0301"]
BYTES = [os.fsdecode(name) for name in (b"\xff", b"caf\xe9", b"\xe9\n")]
NUMBERS = st.one_of(st.integers(0, 12).map(str), st.sampled_from(["00", "07", "-1", "2.0", "2019", "1e1", "٣"]))
MIXED = st.one_of(st.sampled_from(ODD + BYTES), NUMBERS, st.text(max_size=5))
NAMES = st.one_of(
    st.lists(st.integers(0, 12).map(str), min_size=1, max_size=8, unique=True),
    st.lists(NUMBERS, min_size=1, max_size=6, unique=True),
    st.lists(
        st.one_of(st.sampled_from(ODD + BYTES), NUMBERS, st.text(max_size=5)), min_size=1, max_size=8, unique=True
    ),
).map(lambda names: [name for name in names if may_be_a_folder(name)])
EXAMPLES = settings(max_examples=60, deadline=None)


def may_be_a_folder(name: str) -> bool:
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return bool(name) and not {"/", "\0"} & set(name) and len(encoded) < 200 and not is_hidden(name)


def make(root: Path, images: dict[str, int]) -> Path:
    """A folder of each name, with so many images."""
    for name, count in images.items():
        folder = root / name
        folder.mkdir(parents=True)
        for number in range(count):
            (folder / f"{number}.png").write_bytes(PNG + name.encode("utf-8", "surrogateescape"))
    return root


def packed_labels(folder: Path) -> list[tuple[str, list[int]]]:
    """(text in the image, labels) of each sample, from the bytes of the shards."""
    found = []
    for path in sorted(folder.glob("*.tar")):
        for sample in tar.samples(tar.read_members(io.BytesIO(path.read_bytes()), 1 << 20)):
            text = bytes(sample.fields["png"])[len(PNG) :].decode("utf-8", "surrogateescape")
            label = json.loads(bytes(sample.fields.get("cls") or sample.fields["json"]))
            found.append((text, label["labels"] if isinstance(label, dict) else [label]))
    return found


def looks_like_a_number(text: str) -> bool:
    try:
        return float(text) not in (np.inf, -np.inf) and text.lower() != "nan" and "_" not in text
    except ValueError:
        return False


def plain_numbers(names: list[str]) -> dict[str, int] | None:
    """The numbers of folders; None if they leave open what they mean."""
    if all(name and all(unicodedata.category(mark) == "Nd" for mark in name) for name in names):
        numbers = {name: int(name) for name in names}
        dense = max(numbers.values()) < 2 * len(names)
        return numbers if dense and len(set(numbers.values())) == len(names) else None
    if all(looks_like_a_number(name) for name in names):
        return None
    return {name: sorted(names).index(name) for name in names}


@EXAMPLES
@given(NAMES, st.data())
def test_folders_lists_and_a_split(names, data):
    names = names or ["a"]
    counts = [data.draw(st.integers(0, 4)) for _ in names]
    images = dict(zip(names, counts, strict=True)) | {names[0]: 5}
    shuffled = data.draw(st.permutations(names))
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        make(root / "images", images)
        expected = plain_numbers(names)
        if expected is None:
            with pytest.raises(DataError, match="--classes"):
                Folder(str(root / "images"))
        else:
            source = Folder(str(root / "images"))
            pack(str(root / "out"), source)
            found = packed_labels(root / "out")
            assert Counter(text for text, _ in found) == Counter({name: n for name, n in images.items() if n})
            assert all(label == [expected[text]] for text, label in found)
            index = open_index(str(root / "out"))
            assert all(index.class_names[number] == name for name, number in expected.items())
            assert len(index.class_names) == index.num_classes == max(expected.values()) + 1
            assert read_class_list(str(root / "out/classes.txt")).names == index.class_names

            part = names[:1]  # a test folder that lacks the other classes
            make(root / "part", dict.fromkeys(part, 1))
            pack(str(root / "test"), Folder(str(root / "part"), classes=read_class_list(str(root / "out"))))
            assert packed_labels(root / "test") == [(name, [expected[name]]) for name in part]
            assert open_index(str(root / "test")).class_names == index.class_names

            most = sum(max(count - 1, 0) for count in images.values())
            parts = source.split(Holdout(data.draw(st.integers(1, most))))
            for split, one in parts.items():
                pack(str(root / split), one)
            train, val = packed_labels(root / "train"), packed_labels(root / "val")
            assert sorted(train + val) == sorted(found)
            assert {text for text, _ in train} == {text for text, _ in found}
            assert open_index(str(root / "train")).class_names == open_index(str(root / "val")).class_names
            assert open_index(str(root / "train")).class_names == index.class_names
            shutil.rmtree(root / "out")

        (root / "list.txt").write_bytes(text_list(shuffled))
        (root / "list.json").write_text(json.dumps(shuffled))
        for form in ("txt", "json"):
            pack(str(root / form), Folder(str(root / "images"), classes=read_class_list(str(root / f"list.{form}"))))
            assert all(label == [shuffled.index(text)] for text, label in packed_labels(root / form))
            assert list(open_index(str(root / form)).class_names) == list(shuffled)


LABELS = st.one_of(
    st.lists(st.sampled_from(["0", "1", "2", "10", "11.0", "03", "", "nan", "1e1"]), min_size=1, max_size=6),
    st.lists(st.sampled_from(["0", "1", "-1", "2.5", "10", ""]), min_size=1, max_size=6),
    st.lists(st.sampled_from([*ODD, *BYTES, "", "7", "10"]), min_size=1, max_size=8),
)


def plain_labels(values: list[str]) -> dict[str, int | None] | None:
    """The number of each label, None for a missing one; None if a number is no class."""
    said = [value for value in values if value.strip().lower() not in ("", "nan")]
    if all(looks_like_a_number(value) for value in said):
        if any(float(value) < 0 or float(value) % 1 for value in said):
            return None
        return {value: int(float(value)) if value in said else None for value in values}
    names = sorted({value for value in values if value.strip()})
    return {value: names.index(value) if value in names else None for value in values}


@EXAMPLES
@given(LABELS, st.sampled_from(["csv", "parquet", "labels"]))
def test_tables(values, kind):
    if kind != "csv":
        values = [value for value in values if value not in BYTES] or ["a"]
    if kind != "labels":
        values = [value for value in values if value != "[1]"] or ["a"]  # a list, in a cell of text
    expected = plain_labels(values)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        (root / "images").mkdir()
        for number in range(len(values)):
            (root / "images" / f"{number}.png").write_bytes(PNG + str(number).encode())
        paths = [f"{number}.png" for number in range(len(values))]
        table = root / ("t.csv" if kind == "csv" else "t.parquet")
        if kind == "csv":
            with table.open("w", newline="", errors="surrogateescape") as file:
                csv.writer(file, lineterminator="\n").writerows([["path", "label"], *zip(paths, values, strict=True)])
        else:
            column = [[value] for value in values] if kind == "labels" else values
            pa.parquet.write_table(pa.table({"path": paths, "labels" if kind == "labels" else "label": column}), table)
        if expected is None:
            with pytest.raises(DataError, match="is no class number"):
                Folder(str(root / "images"), str(table))
            return
        source = Folder(str(root / "images"), str(table))
        labels = {int(path.partition(".")[0]): expected[value] for path, value in zip(paths, values, strict=True)}
        if kind == "labels":
            pack(str(root / "out"), source)
            assert {int(text): label for text, label in packed_labels(root / "out")} == {
                number: [] if label is None else [label] for number, label in labels.items()
            }
            return
        assert Counter(one.key for one in source.skipped) == Counter(
            f"{number}.png" for number, label in labels.items() if label is None
        )
        if len(source):
            pack(str(root / "out"), source)
            assert {int(text): label for text, label in packed_labels(root / "out")} == {
                number: [label] for number, label in labels.items() if label is not None
            }

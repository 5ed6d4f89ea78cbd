import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import open_index
from data.__main__ import main
from data.commands.contact_sheet import (
    ALARM,
    CAPTION,
    FRAME,
    GAP,
    PAPER,
    TILE,
    Tile,
    contact_sheet,
    find,
    spread_ids,
    write_picture,
)
from data.commands.show import _class_lines
from data.errors import DataError
from data.shards.index import Index, write_index
from data.shards.writer import ShardWriter


def colour(number: int) -> np.ndarray:
    """An image of one colour, which encodes its number: uint8 (48, 64, 3)."""
    return np.full((48, 64, 3), (number * 5 % 256, number * 11 % 256, 40 + number % 200), np.uint8)


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


@pytest.fixture(scope="session")
def coloured(tmp_path_factory) -> Path:
    """Three shards of 100 images, sample n of colour n; 5, 70 and 250 are bad."""
    folder = tmp_path_factory.mktemp("coloured")
    bad = {5: {"png": png(colour(5)), "cls": b"9"}, 70: {"png": b"", "cls": b"1"}, 250: {"cls": b"1"}}
    shards = []
    for number in range(3):
        with ShardWriter(str(folder), f"{number:06d}.tar") as writer:
            for n in range(100 * number, 100 * number + 100):
                writer.write(f"k{n}", bad.get(n, {"png": png(colour(n)), "cls": str(n % 3).encode()}))
            shards.append(writer.close())
    counts = {0: 100, 1: 98, 2: 99}
    write_index(Index(str(folder / "index.json"), tuple(shards), 3, False, ("cls", "png"), label_counts=counts))
    return folder


def test_every_sample_can_be_found_by_its_id(coloured):
    index = open_index(str(coloured))
    for n in (0, 1, 63, 64, 99, 100, 163, 164, 299):
        found = find(index, n)
        assert (found.key, found.classes, found.size, found.cause) == (f"k{n}", (n % 3,), (48, 64), "")
        assert np.array_equal(found.image, colour(n))


@pytest.mark.parametrize(
    ("sample_id", "cause", "drawn"),
    [(5, "label outside the classes", True), (70, "empty image", False), (250, "no image", False)],
)
def test_a_bad_sample_comes_with_its_cause(coloured, sample_id, cause, drawn):
    found = find(open_index(str(coloured)), sample_id)
    assert (found.key, found.cause, found.image is not None) == (f"k{sample_id}", cause, drawn)


def test_a_shard_that_is_missing_or_cut_short_is_a_cause(coloured, tmp_path):
    index = open_index(str(coloured))
    (tmp_path / "000000.tar").write_bytes((coloured / "000000.tar").read_bytes()[:30_000])
    moved = replace(index, url=str(tmp_path / "index.json"))
    assert find(moved, 0).cause == ""
    assert find(moved, 99).cause in ("shard cut short", "unreadable shard")
    assert find(moved, 200).cause == "unreadable shard"


def test_samples_of_a_small_set_are_evenly_spread(coloured):
    assert spread_ids(open_index(str(coloured)), 6) == [0, 50, 100, 150, 200, 250]
    assert spread_ids(open_index(str(coloured)), 1000) == list(range(300))


def test_samples_of_a_large_set_are_where_the_index_has_offsets(make_index):
    """One short read a sample, and one sample of each shard."""
    index = make_index([9_000, 1, 20_000, 31_000, 0, 4_000])
    ids = spread_ids(index, 48)
    starts = index.starts[np.searchsorted(index.starts, ids, side="right") - 1]
    assert ((np.array(ids) - starts) % index.stride == 0).all()
    assert len(ids) == 48
    assert np.abs(np.diff(ids) - index.num_samples / 48).max() <= 2 * index.stride
    assert ids == spread_ids(index, 48)


def test_an_empty_index_has_nothing_to_show(make_index):
    assert spread_ids(make_index([0]), 48) == []


def at(row: int, column: int) -> tuple[int, int]:
    return GAP + row * (TILE + CAPTION + GAP), GAP + column * (TILE + GAP)


def test_tiles_stand_in_rows():
    tiles = [Tile(colour(n), str(n)) for n in range(7)]
    sheet = contact_sheet(tiles, columns=4)
    assert sheet.shape == (GAP + 2 * (TILE + CAPTION + GAP), GAP + 4 * (TILE + GAP), 3)
    for n in range(7):
        top, left = at(*divmod(n, 4))
        assert (sheet[top + TILE // 2, left + TILE // 2] == colour(n)[0, 0]).all()
        assert (sheet[top + TILE : top + TILE + CAPTION, left : left + TILE] != PAPER).any()  # the caption
    top, left = at(1, 3)
    assert (sheet[top:, left:] == PAPER).all()


@pytest.mark.parametrize("shape", [(400, 100), (100, 400), (8, 8), (3, 500), (160, 160), (100, 130)])
def test_an_image_is_shown_whole_and_in_proportion(shape):
    """Its colour covers the expected number of pixels, about; the rest of the tile is frame."""
    sheet = contact_sheet([Tile(np.full((*shape, 3), (10, 200, 10), np.uint8), "")], columns=1)
    tile = sheet[GAP : GAP + TILE, GAP : GAP + TILE]
    shown = (tile == (10, 200, 10)).all(axis=2)
    assert (shown | (tile == FRAME).all(axis=2)).all()
    height, width = shown.any(axis=1).sum(), shown.any(axis=0).sum()
    assert shown.sum() == height * width
    assert max(height, width) > TILE * 0.7
    assert height / width == pytest.approx(shape[0] / shape[1], rel=0.3, abs=1 / TILE)


def test_a_bad_tile_is_marked():
    with_image, without = Tile(colour(3), "k3", "several labels"), Tile(None, "k4", "no image")
    sheet = contact_sheet([with_image, without], columns=2)
    for column in range(2):
        top, left = at(0, column)
        assert (sheet[top, left : left + TILE] == ALARM).all()
        assert (sheet[top : top + TILE, left] == ALARM).all()


def test_long_captions_stay_in_their_column():
    sheet = contact_sheet([Tile(colour(1), "a very long name of a class " * 9), Tile(colour(2), "")], columns=2)
    top, left = at(0, 1)
    assert (sheet[top + TILE :, left - GAP : left + TILE] == PAPER).all()


def test_a_picture_of_another_kind_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"sheet\.gif: a picture is a \.png or a \.jpg"):
        write_picture(str(tmp_path / "sheet.gif"), np.zeros((2, 2, 3), np.uint8))


def show(capsys, *words: str) -> tuple[str, dict]:
    assert main(["show", *words, "--json"]) == 0
    out = capsys.readouterr().out
    return out, json.loads(out.splitlines()[-1])


def test_show_tells_counts_classes_and_sizes(coloured, capsys):
    text, facts = show(capsys, str(coloured), "--no-sheet")
    assert "samples  300 in 3 shards of 100 to 100" in text
    assert "98 to 100 images a class, median 99" in text
    assert "largest: 0 (100), 2 (99), 1 (98)" in text
    assert "64x48" in text
    assert facts["num_samples"] == 300
    assert "sheet" not in facts


@given(st.dictionaries(st.integers(0, 12), st.integers(1, 300), min_size=1), st.integers(13, 40))
def test_the_distribution_over_the_classes(counts, num_classes):
    """Against a list with a place for each class."""
    index = Index("x", (), num_classes, False, label_counts=counts)
    dense = np.array([counts.get(label, 0) for label in range(num_classes)])
    lines = [f"{dense.min()} to {dense.max()} images a class, median {np.median(dense):,.0f}"]
    if (dense == 0).any():
        lines.append(f"{(dense == 0).sum()} without an image")
    largest = [label for label in np.argsort(-dense, kind="stable")[:5] if dense[label]]
    lines.append("largest: " + ", ".join(f"{label} ({dense[label]})" for label in largest))
    assert _class_lines(index, ()) == lines


@pytest.mark.parametrize(
    ("about", "line"),
    [
        ({}, None),
        ({"label_rule": {"version": 2}}, None),
        (
            {"label_rule": {"version": 2, "key": "a.b", "kind": "name"}},
            "labels   under the key 'a.b' of .json, of the kind name",
        ),
        ({"label_rule": {"version": 1, "unlabelled": True}}, "labels   none are meant"),
        (
            {"min_probability": 0.1, "hard": True},
            "labels   with a probability above 0.1, each with weight 1 in place of a probability",
        ),
    ],
)
def test_show_tells_how_labels_are_read(coloured, tmp_path, capsys, about, line):
    for path in coloured.glob("*.tar"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    write_index(replace(open_index(str(coloured)), url=f"{tmp_path}/index.json", about=about))
    text, _ = show(capsys, str(tmp_path), "--no-sheet")
    assert [one.strip() for one in text.splitlines() if one.startswith("  labels ")] == ([line] if line else [])


def test_classes_that_are_only_claimed_cost_nothing(coloured, tmp_path, capsys):
    index = replace(open_index(str(coloured)), num_classes=10**12)
    for path in coloured.glob("*.tar"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    write_index(replace(index, url=f"{tmp_path}/index.json"))
    text, _ = show(capsys, str(tmp_path), "--no-sheet")
    assert "0 to 100 images a class, median 0\n" in text
    assert "999,999,999,997 without an image\n" in text
    assert "largest: 0 (100), 2 (99), 1 (98)\n" in text


def test_show_names_the_classes(coloured, tmp_path, capsys):
    for path in coloured.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "classes.txt").write_text("Äpfel\nbirds\n")
    text, _ = show(capsys, str(tmp_path), "--no-sheet")
    assert "largest: 0 Äpfel (100), 2 (99), 1 birds (98)" in text


def test_show_writes_real_samples_into_a_sheet(coloured, tmp_path, capsys):
    """48 tiles, the n-th in the colour of the n-th of the evenly spread samples."""
    path = tmp_path / "sheet.png"
    text, facts = show(capsys, str(coloured), "--sheet", str(path))
    assert facts["sheet"] == str(path)
    assert f"48 samples in {path}" in text
    sheet = cv2.imread(str(path))[..., ::-1]
    ids = spread_ids(open_index(str(coloured)), 48)
    assert len(ids) == 48
    for place, n in enumerate(ids):
        top, left = at(*divmod(place, 8))
        assert n in (70, 250) or (sheet[top + TILE // 2, left + TILE // 2] == colour(n)[0, 0]).all()


def test_show_writes_sheet_jpg_where_it_was_called(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _, facts = show(capsys, str(digits / "train"))
    assert facts["sheet"] == "sheet.jpg"
    assert cv2.imread("sheet.jpg").shape[1] > 8 * TILE


def test_show_of_a_damaged_set_still_shows_the_rest(coloured, tmp_path, capsys):
    for path in coloured.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "000001.tar").unlink()
    text, _ = show(capsys, str(tmp_path), "--no-sheet")
    assert "16 of unreadable shard" in text

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest

from data import SampleOrder, open_index, parallel
from data.__main__ import main
from data.dedup import search
from data.order.exclude import open_exclusions
from data.shards.index import Index, write_index
from data.shards.writer import ShardWriter

TILE = 106


def write_set(folder: Path, images: Mapping[str, bytes], per_shard: int) -> Index:
    keys = list(images)
    shards = []
    for number, first in enumerate(range(0, len(keys), per_shard)):
        with ShardWriter(str(folder), f"{number:06d}.tar") as writer:
            for key in keys[first : first + per_shard]:
                writer.write(key, {"jpg": images[key], "cls": b"0"})
            shards.append(writer.close())
    index = Index(str(folder / "index.json"), tuple(shards), num_classes=1, multi_label=False)
    write_index(index)
    return index


def jpeg(image: np.ndarray, quality: int = 90) -> bytes:
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def scaled(image: np.ndarray, scale: float) -> np.ndarray:
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


COPIES = {
    "same": jpeg,
    "half": lambda image: jpeg(scaled(image, 0.5)),
    "double": lambda image: jpeg(scaled(image, 2.0)),
    "quality30": lambda image: jpeg(image, 30),
    "cropped": lambda image: jpeg(image[7:, :-7]),
    "brighter": lambda image: jpeg(np.clip(image * 1.2 + 10, 0, 255).astype(np.uint8)),
    "mirrored": lambda image: jpeg(image[:, ::-1]),
    "grey": lambda image: jpeg(np.repeat(image.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)),
}


@pytest.fixture(scope="session")
def tiles(photos) -> list[np.ndarray]:
    """24 pieces of two real photographs that do not overlap, without the emptiest pieces (sky)."""
    pieces = [
        np.ascontiguousarray(photo[TILE * row : TILE * (row + 1), TILE * column : TILE * (column + 1)])
        for photo in photos
        for row in range(4)
        for column in range(6)
    ]
    return sorted(pieces, key=lambda piece: -piece.std())[:24]


@pytest.fixture(scope="session")
def planted(tiles, tmp_path_factory) -> Path:
    """Two test sets, of pieces 0-3 and 4-7, and a training set of pieces 8-23 with copies of the test images: the n-th
    kind of copy is one of piece n. It also has a blank image and one that cannot be decoded."""
    folder = tmp_path_factory.mktemp("planted")
    write_set(folder / "first", {f"test{n}": jpeg(tiles[n]) for n in range(4)}, per_shard=3)
    write_set(folder / "second", {f"test{n}": jpeg(tiles[n]) for n in range(4, 8)}, per_shard=3)
    train: dict[str, bytes] = {}
    for number in range(16):
        train[f"other{number}"] = jpeg(tiles[8 + number])
        if number % 2:
            kind = list(COPIES)[number // 2]
            train[kind] = COPIES[kind](tiles[number // 2])
    train["blank"] = jpeg(np.full((90, 90, 3), 77, np.uint8))
    train["broken"] = jpeg(tiles[0])[:900]
    write_set(folder / "train", train, per_shard=6)
    return folder


def train_keys(planted: Path) -> list[str]:
    keys = []
    for number in range(16):
        keys.append(f"other{number}")
        if number % 2:
            keys.append(list(COPIES)[number // 2])
    return [*keys, "blank", "broken"]


def run(capsys, folder: Path, *words: str) -> tuple[int, str, dict]:
    code = main(
        ["dedup", str(folder / "train"), "--against", str(folder / "first"), str(folder / "second"), "--json", *words]
    )
    out = capsys.readouterr().out
    return code, out, json.loads(out.splitlines()[-1])


@pytest.mark.parametrize("workers", ["1", "2"])
def test_planted_copies_are_found_and_nothing_else(planted, tmp_path, capsys, workers, monkeypatch):
    monkeypatch.setattr(parallel, "PROCESS_SECONDS", 0.0)  # so little work would start none
    monkeypatch.setattr(parallel, "usable_cpus", lambda: 2)
    out = tmp_path / "list.json"
    code, text, facts = run(capsys, planted, "--out", str(out), "--workers", workers)
    keys = train_keys(planted)
    index = open_index(str(planted / "train"))
    ids = open_exclusions(str(out), index)
    assert {keys[number] for number in ids} == set(COPIES)
    assert code == 0
    assert (facts["excluded"], facts["blank"], facts["unreadable"], facts["unread"]) == (8, 1, 1, [])
    assert [(one["excluded"], one["compared"]) for one in facts["against"]] == [(4, 4), (4, 4)]
    assert "8 of 26 images (30.77%) are near-duplicates" in text


def test_each_finding_names_both_images(planted, tmp_path, capsys):
    out = tmp_path / "list.json"
    run(capsys, planted, "--out", str(out), "--workers", "1")
    record = json.loads(out.read_text())
    keys, index = train_keys(planted), open_index(str(planted / "train"))
    tests = [open_index(str(planted / name)) for name in ("first", "second")]
    assert [one["digest"] for one in record["against"]] == [test.digest for test in tests]
    assert record["index"]["digest"] == index.digest
    for one in record["samples"]:
        kind = list(COPIES).index(one["key"])  # of the image of this number
        assert keys[one["id"]] == one["key"]
        assert index.shards[index.locate(one["id"])[0]].url == one["shard"]
        assert (one["against"], one["test_id"], one["test_key"]) == (kind // 4, kind % 4, f"test{kind}")
        assert one["test_shard"] == tests[kind // 4].shards[kind % 4 // 3].url
        assert 0 <= one["distance"] <= search.DISTANCE
        assert search.LIKENESS <= one["likeness"] <= 1


def test_the_list_lies_beside_the_index_and_the_data_set_stays_as_it_is(planted, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(planted, folder)
    before = {path.name: path.read_bytes() for path in (folder / "train").iterdir()}
    code, text, _ = run(capsys, folder, "--workers", "1")
    after = {path.name: path.read_bytes() for path in (folder / "train").iterdir()}
    assert code == 0
    assert set(after) - set(before) == {"exclusions.json"}
    assert all(after[name] == content for name, content in before.items())
    assert f"written to {folder}/train/exclusions.json" in text


def test_training_never_sees_an_excluded_sample(planted, tmp_path, capsys):
    out = tmp_path / "list.json"
    run(capsys, planted, "--out", str(out), "--workers", "1")
    index = open_index(str(planted / "train"))
    order = SampleOrder(index, seed=1, batch_size=4, lanes=2, block=4, exclude=open_exclusions(str(out), index))
    for epoch in range(3):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        seen = [train_keys(planted)[number] for step in steps for number in order.batch(step) if number >= 0]
        assert sorted(seen) == sorted(set(train_keys(planted)) - set(COPIES))


def test_the_pairs_are_drawn(planted, tmp_path, capsys):
    """Eight pairs, four a row: copies beside their originals, from which they differ little."""
    sheet = tmp_path / "pairs.png"
    run(capsys, planted, "--out", str(tmp_path / "list.json"), "--workers", "1", "--sheet", str(sheet))
    picture = cv2.imread(str(sheet))
    assert picture.shape[1] > 8 * 160
    row = picture[10:170].astype(int)  # the first row of tiles
    lefts = [10 + column * 170 + column // 2 * 16 for column in range(8)]
    shown = [
        cv2.resize(row[:, left : left + 160].astype(np.uint8), (16, 16), interpolation=cv2.INTER_AREA) for left in lefts
    ]
    grey = [tile.mean(axis=2).ravel() for tile in shown]
    for pair in range(4):
        upright = np.corrcoef(grey[2 * pair], grey[2 * pair + 1])[0, 1]
        turned = np.corrcoef(grey[2 * pair], shown[2 * pair + 1][:, ::-1].mean(axis=2).ravel())[0, 1]
        assert max(upright, turned) > 0.75


def test_unreadable_shards_are_reported_and_the_others_compared(planted, tmp_path, capsys):
    """The ids after the gap are right; the exit code says that the list is not complete."""
    folder = tmp_path / "copy"
    shutil.copytree(planted, folder)
    shards = sorted((folder / "train").glob("*.tar"))
    shards[0].unlink()
    shards[2].write_bytes(shards[2].read_bytes()[:-9000])
    code = main(
        ["dedup", f"{folder}/train", "--against", f"{folder}/first", f"{folder}/second", "--workers", "1", "--json"]
    )
    out, err = capsys.readouterr()
    facts = json.loads(out.splitlines()[-1])
    assert code == 1
    assert facts["unread"] == ["000000.tar", "000002.tar"]
    assert "000000.tar: not compared to its end: missing" in err
    record = json.loads((folder / "train" / "exclusions.json").read_text())
    assert record["unread"] == facts["unread"]
    keys = train_keys(planted)
    found = {one["key"] for one in record["samples"]}
    assert all(keys[one["id"]] == one["key"] for one in record["samples"])
    assert {key for key in COPIES if not 0 <= keys.index(key) < 6 and not 12 <= keys.index(key) < 18} <= found


def test_a_test_set_that_cannot_be_read_stops_it(planted, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(planted, folder)
    (folder / "second" / "000001.tar").unlink()
    words = ["dedup", f"{folder}/train", "--against", f"{folder}/first", f"{folder}/second"]
    result = subprocess.run(
        [sys.executable, "-m", "data", *words, "--workers", "1"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert "second/000001.tar: missing; `python -m data verify" in result.stderr
    assert not (folder / "train" / "exclusions.json").exists()


def test_the_data_set_is_not_compared_with_itself(planted, capsys):
    assert main(["dedup", str(planted / "train"), "--against", str(planted / "train")]) == 2
    assert "the data set itself" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_to_is_told_before_the_work(planted, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    words = ["--out", str(tmp_path / "file" / "list.json"), "--workers", "1"]
    code = main(["dedup", str(planted / "train"), "--against", str(planted / "first"), *words])
    err = capsys.readouterr().err
    assert (code, len(err.splitlines())) == (2, 1)
    assert "choose another place with --out" in err


def test_many_equal_test_images_are_one_finding_for_each_test_set(tiles, tmp_path, capsys):
    """The same image five times in a test set: the training image is listed once."""
    similar = {f"a{n}": jpeg(tiles[0], quality) for n, quality in enumerate((20, 25, 90, 30, 35))}
    write_set(tmp_path / "test", similar, per_shard=2)
    train = {"copy": jpeg(tiles[0], 90), **{f"o{n}": jpeg(tiles[n]) for n in range(8, 12)}}
    write_set(tmp_path / "train", train, per_shard=2)
    assert main(["dedup", str(tmp_path / "train"), "--against", str(tmp_path / "test"), "--workers", "1"]) == 0
    capsys.readouterr()
    (one,) = json.loads((tmp_path / "train" / "exclusions.json").read_text())["samples"]
    assert (one["key"], one["test_key"][0], one["distance"]) == ("copy", "a", 0)


def test_a_candidate_whose_details_differ_is_no_copy(planted, tmp_path, capsys, monkeypatch):
    out = tmp_path / "list.json"
    run(capsys, planted, "--out", str(out), "--workers", "1")
    found = [one["likeness"] for one in json.loads(out.read_text())["samples"]]
    limit = sorted(found)[4]
    monkeypatch.setattr(search, "LIKENESS", limit)
    run(capsys, planted, "--out", str(out), "--workers", "1")
    kept = [one["likeness"] for one in json.loads(out.read_text())["samples"]]
    assert kept == [similar for similar in found if similar >= limit]
    assert len(kept) == len(COPIES) - 4


def test_a_test_set_with_nothing_to_compare_is_refused(planted, tmp_path, capsys):
    blank = jpeg(np.full((90, 90, 3), 77, np.uint8))
    write_set(tmp_path / "test", {"a": blank, "b": b"no image"}, per_shard=2)
    words = ["--out", str(tmp_path / "list.json"), "--workers", "1"]
    assert main(["dedup", str(planted / "train"), "--against", str(tmp_path / "test"), *words]) == 2
    assert "no image to compare with" in capsys.readouterr().err
    assert not (tmp_path / "list.json").exists()


def test_a_crop_is_found_from_either_side(tiles, tmp_path):
    """The training image may be a crop of the test image, or the test image one of it."""
    whole = write_set(tmp_path / "whole", {f"w{n}": jpeg(tile) for n, tile in enumerate(tiles)}, per_shard=8)
    crops = {f"c{n}": jpeg(tile[: -TILE // 20, TILE // 20 :]) for n, tile in enumerate(tiles)}
    crop = write_set(tmp_path / "crop", crops, per_shard=8)
    for test, train in ((whole, crop), (crop, whole)):
        images, _ = search.hash_test_sets([test])
        found = [
            (int(train.starts[number]) + match.position, int(images.sample[match.test]))
            for number, compared in enumerate(search.compare(train, images))
            for match in compared.matches
        ]
        assert all(a == b for a, b in found)
        assert len(found) >= 0.9 * len(tiles)

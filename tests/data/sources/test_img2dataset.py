"""img2dataset's output in miniature: tars, Parquet files and statistics as its WebDataset writer writes them."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import webdataset
from PIL import Image

from data import DataError, open_index
from data.__main__ import main
from data.packing.pack import Options, pack
from data.sources.img2dataset import Columns, Img2dataset
from data.sources.label_table import LabelTable
from data.sources.soft_labels import Kept

CLASSES = 50
NOT_GOT = {"img2dataset did not get the image": 11}


def labels_of(number: int) -> tuple[list[int], list[float]]:
    """Labels and probabilities of the table's row `number`."""
    rng = np.random.default_rng(number)
    chosen = rng.choice(CLASSES, 5, replace=False)
    return chosen.tolist(), np.round(rng.random(5), 6).tolist()


def coyo_id(number: int) -> int:
    """Large numbers that are not in the order of the rows."""
    return 1125899906842624 + (number * 7919) % 100_003


def jpeg(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory) -> Path:
    """Three tars of 20, 10 and 15 rows, of which every fourth failed to download, and the label table."""
    root = tmp_path_factory.mktemp("coyo")
    folder = root / "images"
    folder.mkdir()
    number = 0
    for shard, rows in enumerate((20, 10, 15)):
        table = {"key": [], "status": [], "id": [], "url": []}
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as archive:
            for place in range(rows):
                key, good = f"{shard:05d}{place:04d}", number % 4 != 1
                table["key"].append(key)
                table["status"].append("success" if good else "failed_to_download")
                table["id"].append(coyo_id(number))
                table["url"].append(f"http://x/{number}")
                if good:
                    labels, probabilities = labels_of(number)
                    record = {"key": key, "id": coyo_id(number), "labels": labels, "label_probs": probabilities}
                    for extension, content in (("jpg", jpeg(number)), ("json", json.dumps(record).encode())):
                        info = tarfile.TarInfo(f"{key}.{extension}")
                        info.size = len(content)
                        archive.addfile(info, io.BytesIO(content))
                number += 1
        pa.parquet.write_table(pa.table(table), folder / f"{shard:05d}.parquet")
        stats = {"count": rows, "successes": table["status"].count("success")}
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps(stats))
    (root / "labels").mkdir()
    for part, numbers in enumerate((range(30), range(30, 60))):
        rows = [labels_of(number) for number in numbers]
        table = pa.table(
            {
                "id": [coyo_id(number) for number in numbers],
                "imagehash": [f"{number:x}" for number in numbers],
                "labels": [row[0] for row in rows],
                "label_probs": [row[1] for row in rows],
            }
        )
        pa.parquet.write_table(table, root / "labels" / f"part-{part}.parquet", row_group_size=7)
    return root


def expected() -> dict[str, int]:
    """Row by key, of the downloaded images."""
    keys = [f"{shard:05d}{place:04d}" for shard, rows in enumerate((20, 10, 15)) for place in range(rows)]
    return {key: number for number, key in enumerate(keys) if number % 4 != 1}


def samples(folder: Path) -> dict[str, dict[str, bytes]]:
    urls = sorted(str(path) for path in folder.glob("*.tar"))
    return {sample["__key__"]: sample for sample in webdataset.WebDataset(urls, shardshuffle=False)}


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("per_shard", [1000, 12, 5])
def test_images_get_their_labels(downloaded, tmp_path, table, per_shard):
    """Also if shards begin in the middle of tars. Labels are from the table, or from the images' own records."""
    labels = str(downloaded / "labels") if table else None
    packed = pack(str(tmp_path), Img2dataset(str(downloaded / "images"), labels), Options(samples_per_shard=per_shard))
    found = samples(tmp_path)
    assert list(found) == list(expected())  # in the order of the download
    for key, number in expected().items():
        record = json.loads(found[key]["json"])
        assert (record["labels"], record["probabilities"]) == labels_of(number)
        assert found[key]["jpg"] == jpeg(number)
    assert packed.index.multi_label
    assert packed.skipped == NOT_GOT
    assert (packed.found, packed.index.num_samples) == (45, 34)


def test_csv_table_and_missing_rows(downloaded, tmp_path):
    lines = ["key;probs", "id,classes,p"]
    for number in range(0, 45, 2):
        labels, probabilities = labels_of(number)
        lines.append(f'{coyo_id(number)},"{labels}","{probabilities}"')
    (tmp_path / "labels.csv").write_text("\n".join(lines[1:]))
    columns = Columns("id", "classes", "p")
    source = Img2dataset(str(downloaded / "images"), str(tmp_path / "labels.csv"), columns, num_classes=CLASSES)
    packed = pack(str(tmp_path / "out"), source)
    even = {key: number for key, number in expected().items() if number % 2 == 0}
    found = samples(tmp_path / "out")
    assert list(found) == list(even)
    for key, number in even.items():
        assert json.loads(found[key]["json"])["labels"] == labels_of(number)[0]
    assert packed.skipped == {"no row in the label table": len(expected()) - len(even), **NOT_GOT}
    assert packed.index.num_classes == CLASSES


def test_command_line(downloaded, tmp_path, capsys):
    words = ["--from", str(downloaded / "images"), "--labels", str(downloaded / "labels"), "--num-classes", "30"]
    assert main(["pack", "img2dataset", str(tmp_path), *words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    inside = [number for number in expected().values() if max(labels_of(number)[0]) < 30]
    assert (facts["num_samples"], facts["num_classes"]) == (len(inside), 30)
    assert facts["skipped"] == {"label outside the classes": len(expected()) - len(inside), **NOT_GOT}


def test_table_looks_up_by_numbers_and_by_text(tmp_path):
    """Against a dictionary. Of rows with equal keys the first counts."""
    rng = np.random.default_rng(0)
    numbers = rng.integers(-(2**62), 2**62, 500)
    keys = [*numbers.tolist(), *numbers[:20].tolist()]
    for name, values in (("numbers", keys), ("text", [f"http://x/{key}" for key in keys])):
        url = str(tmp_path / f"{name}.parquet")
        pa.parquet.write_table(pa.table({"k": values, "labels": [[row] for row in range(520)]}), url, row_group_size=64)
        table = LabelTable(url, "k", "labels", "p")
        first = {}
        for row, value in enumerate(values):
            first.setdefault(value, row)
        wanted = [*values[::7], 5 if name == "numbers" else "http://x/none"]
        rows = table.rows(wanted).tolist()
        assert rows == [first.get(value, -1) for value in wanted]
        found = table.reading(sorted(set(rows) - {-1}))()
        assert found == {row: ([row], []) for row in set(rows) - {-1}}


def test_downloads_that_cannot_be_used(downloaded, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for path in (downloaded / "images").iterdir():
        (images / path.name).write_bytes(path.read_bytes())
    (images / "00001_stats.json").write_text('{"successes": 9}')
    with pytest.raises(DataError, match=r"00001.tar: holds 7 images, its _stats.json says 9"):
        pack(str(tmp_path / "out"), Img2dataset(str(images)))
    (images / "00001_stats.json").write_text('{"successes": 6}')
    with pytest.raises(DataError, match=r"00001.tar: holds 7 images, its _stats.json says 6"):
        pack(str(tmp_path / "out2"), Img2dataset(str(images)))
    (images / "00001_stats.json").write_text('{"successes": 7}')
    content = (images / "00001.tar").read_bytes()
    (images / "00001.tar").write_bytes(content[:5000])
    with pytest.raises(DataError, match=r"00001.tar: ends in the middle .*; download it again"):
        pack(str(tmp_path / "out3"), Img2dataset(str(images)))
    (images / "00001_stats.json").unlink()
    with pytest.raises(DataError, match="did not finish this tar"):
        Img2dataset(str(images))
    with pytest.raises(DataError, match=r"part-0.parquet: has no column 'number'; there are: id, imagehash"):
        Img2dataset(str(downloaded / "images"), str(downloaded / "labels"), Columns(key="number"))


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize(("above", "hard"), [(0.9, True), (0.9, False), (0.0, True), (None, True)])
def test_labels_above_a_probability(downloaded, tmp_path, capsys, table, above, hard):
    """Compared with a plain filter; images without such a label are left out, counted and listed."""
    words = ["--num-classes", str(CLASSES)] + ["--labels", str(downloaded / "labels")] * table + ["--hard"] * hard
    words += [] if above is None else ["--min-probability", str(above)]
    command = ["pack", "img2dataset", str(tmp_path), "--from", str(downloaded / "images"), *words, "--json"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    facts = json.loads(printed.splitlines()[-1])
    wanted = {}
    for key, number in expected().items():
        pairs = [(one, p) for one, p in zip(*labels_of(number), strict=True) if above is None or p > above]
        if pairs:
            labels, probabilities = map(list, zip(*pairs, strict=True))
            wanted[key] = {"labels": labels} if hard else {"labels": labels, "probabilities": probabilities}
    assert {key: json.loads(sample["json"]) for key, sample in samples(tmp_path).items()} == wanted
    left = len(expected()) - len(wanted)
    assert facts["skipped"].get("no label above --min-probability", 0) == left
    assert (left > 0) == (above == 0.9)
    index = open_index(str(tmp_path))
    notes = {key: value for key, value in index.about.items() if key in ("min_probability", "hard")}
    assert notes == ({} if above is None else {"min_probability": above}) | ({"hard": True} if hard else {})
    assert index.num_samples == len(wanted)
    assert main(["verify", str(tmp_path)]) == 0
    if above is not None:
        with pytest.raises(DataError, match="already holds"):
            pack(str(tmp_path), Img2dataset(str(downloaded / "images"), num_classes=CLASSES))


def test_probabilities_that_are_not_there(downloaded, tmp_path):
    kept = Kept(0.5)
    columns = Columns(probabilities="p")
    with pytest.raises(DataError, match=r"part-0.parquet: has no column 'p'; there are: "):
        Img2dataset(str(downloaded / "images"), str(downloaded / "labels"), columns, kept=kept)
    with pytest.raises(DataError, match=r"nothing to pack \(34 x no probabilities, which --min-probability needs"):
        pack(str(tmp_path), Img2dataset(str(downloaded / "images"), None, columns, kept=kept))


@pytest.mark.parametrize("text", ["1", "-0.1", "nan", "x", "50%"])
def test_probabilities_that_are_none(tmp_path, capsys, text):
    with pytest.raises(SystemExit) as exit:
        main(["pack", "img2dataset", str(tmp_path), "--from", str(tmp_path), "--min-probability", text])
    assert exit.value.code == 2

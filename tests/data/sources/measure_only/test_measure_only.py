"""ReaL, ImageNet-V2 and ObjectNet in miniature: files with the layout of the official ones, made by other libraries."""

import gzip
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from data import open_index
from data.__main__ import main
from orchestrator.job.data_sections import TrainSet
from orchestrator.run.training_set import TrainingSetError, open_training_set
from tests.data.sources.test_imagenet import TRUTH, WNIDS, devkit, jpeg, tar


def samples(folder: Path) -> dict[str, dict[str, bytes]]:
    urls = sorted(str(path) for path in folder.glob("*.tar"))
    return {sample["__key__"]: sample for sample in webdataset.WebDataset(urls, shardshuffle=False)}


def refuses_training(folder: Path) -> bool:
    with pytest.raises(TrainingSetError, match="for measuring only"):
        open_training_set(TrainSet.model_validate({"url": str(folder)}), seed=0, batch_size=2)
    return True


# ------------------------------------------------------------------------------------------------------------- ReaL


@pytest.fixture
def validation(tmp_path: Path) -> Path:
    folder = tmp_path / "official"
    folder.mkdir()
    order = (2, 1, 6, 4, 3, 5)
    files = {f"ILSVRC2012_val_{number:08d}.JPEG": jpeg(100 + number) for number in order}
    (folder / "ILSVRC2012_img_val.tar").write_bytes(tar(files))
    (folder / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(devkit())
    (folder / "real.json").write_text(json.dumps([[0], [], [3, 1], [2], [], [1, 1]]))
    return folder


def test_real_has_the_labels_of_each_images_number(validation, tmp_path, capsys):
    assert len(TRUTH) == 6
    assert main(["pack", "imagenet-real", str(tmp_path / "real"), "--from", str(validation)]) == 0
    said = capsys.readouterr().out
    assert "found 6 = packed 4 + merged 0 + skipped 2" in said
    assert "skipped 2: no label in real.json" in said
    found = {key: json.loads(sample["json"])["labels"] for key, sample in samples(tmp_path / "real").items()}
    expected = {1: [0], 3: [1, 3], 4: [2], 6: [1]}
    assert found == {f"ILSVRC2012_val_{number:08d}": labels for number, labels in expected.items()}
    named = [json.loads(line)["key"] for line in (tmp_path / "real" / "skipped.jsonl").read_text().splitlines()]
    assert sorted(named) == ["ILSVRC2012_val_00000002.JPEG", "ILSVRC2012_val_00000005.JPEG"]
    index = open_index(str(tmp_path / "real"))
    assert (index.multi_label, index.num_classes, index.class_names) == (True, 4, tuple(sorted(WNIDS)))
    assert index.measure_only == "ImageNet ReaL"
    assert refuses_training(tmp_path / "real")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[[0], [1]]", "a list of 2 where a list for each of 6 images is expected"),
        ("{}", "a dict where a list for each of 6 images"),
        ("[[0], [], [4], [2], [], [1]]", "image 3 has the labels [4], not class numbers below 4"),
        ("[[0], [], [true], [2], [], [1]]", "image 3 has the labels [True]"),
        ("[[0], 1, [1], [2], [], [1]]", "image 2 has the labels 1"),
        ("[[0]", "not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_other_labels_of_real_are_refused(validation, tmp_path, capsys, content, words):
    (validation / "real.json").write_text(content)
    assert main(["pack", "imagenet-real", str(tmp_path / "real"), "--from", str(validation)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert "real.json" in line
    assert not (tmp_path / "real").exists()


def test_real_without_its_labels_says_where_they_are(validation, tmp_path, capsys):
    (validation / "real.json").rename(tmp_path / "elsewhere.json")
    assert main(["pack", "imagenet-real", str(tmp_path / "real"), "--from", str(validation)]) == 2
    assert "reassessed-imagenet" in capsys.readouterr().err
    options = ["--from", str(validation), "--labels", str(tmp_path / "elsewhere.json")]
    assert main(["pack", "imagenet-real", str(tmp_path / "real"), *options]) == 0


# -------------------------------------------------------------------------------------------------------- ImageNet-V2

FORMAT = "imagenetv2-matched-frequency-format-val"


def v2_files() -> dict[str, bytes]:
    """Two images of classes whose numbers sorted as text are in another order, and what else may lie there."""
    files = {f"{FORMAT}/{number}/{place}.jpeg": jpeg(place) for number in (0, 1, 2, 10, 100, 999) for place in (0, 1)}
    return files | {f"{FORMAT}/readme.txt": b"hello", f"{FORMAT}/7/._0.jpeg": b"", f"{FORMAT}/8/0.jpeg": b"no image"}


def v2_sources(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    content = tar(v2_files())
    (tmp_path / "v2.tar").write_bytes(content)
    (tmp_path / "v2.tar.gz").write_bytes(gzip.compress(content))
    with tarfile.open(tmp_path / "v2.tar") as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    yield from (
        ("tar", tmp_path / "v2.tar"),
        ("gz", tmp_path / "v2.tar.gz"),
        ("folder", tmp_path / "unpacked" / FORMAT),
    )


def test_folders_of_v2_are_class_numbers(tmp_path, capsys):
    for name, source in v2_sources(tmp_path):
        dest = tmp_path / "packed" / name
        assert main(["pack", "imagenet-v2", str(dest), "--from", str(source), "--shard-samples", "5"]) == 0
        assert "found 15 = packed 12 + merged 0 + skipped 3" in capsys.readouterr().out
        found = {}
        for key, sample in samples(dest).items():
            number, place = key.split("/")[-2:]
            assert sample["jpg"] == jpeg(int(place))
            found[int(number), int(place)] = int(sample["cls"])
        assert found == {(number, place): number for number in (0, 1, 2, 10, 100, 999) for place in (0, 1)}
        index = open_index(str(dest))
        assert (index.num_classes, index.class_names, index.measure_only) == (1000, (), "ImageNet-V2")
    assert refuses_training(tmp_path / "packed" / "gz")


@pytest.mark.parametrize("cut", [1 / 3, 0.999])
def test_an_archive_of_v2_that_is_cut_short_is_refused(tmp_path, capsys, cut):
    for name, source in list(v2_sources(tmp_path))[:2]:
        content = source.read_bytes()
        source.write_bytes(content[: int(len(content) * cut) if name == "gz" else int(len(content) * cut) // 512 * 512])
        if name == "tar" and cut > 0.9:
            source.write_bytes(tar(v2_files()).rstrip(b"\0"))
        assert main(["pack", "imagenet-v2", str(tmp_path / name), "--from", str(source)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert str(source) in line
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize("what", ["nothing", "empty", "names"])
def test_other_folders_are_not_v2(tmp_path, capsys, what):
    if what != "nothing":
        (tmp_path / "v2").mkdir()
    if what == "names":
        (tmp_path / "v2" / "n01440764").mkdir()
        (tmp_path / "v2" / "n01440764" / "0.jpeg").write_bytes(jpeg(0))
    assert main(["pack", "imagenet-v2", str(tmp_path / "packed"), "--from", str(tmp_path / "v2")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


# ---------------------------------------------------------------------------------------------------------- ObjectNet

LABELS = ("barber chair", "alarm", "crane", "folding chair", "crane", "banana")  # lines of the label file
NUMBERS = {"0": 5, "1": 1, "2": 3, "3": 0, "4": 2, "5": 4}  # class number: line


@pytest.fixture
def objectnet(tmp_path: Path) -> Path:
    root = tmp_path / "objectnet-1.0"
    (root / "mappings").mkdir(parents=True)
    (root / "mappings" / "imagenet_to_label_2012_v2").write_text("".join(f"{name}\n" for name in LABELS))
    files = {
        "pytorch_to_imagenet_2012_id.json": NUMBERS,
        "folder_to_objectnet_label.json": {"chair": "Chair", "banana": "Banana", "air_freshener": "Air freshener"},
        "objectnet_to_imagenet_1k.json": {"Chair": "barber chair; folding chair", "Banana": "banana"},
    }
    for name, content in files.items():
        (root / "mappings" / name).write_text(json.dumps(content))
    for folder in ("chair", "banana", "air_freshener"):
        (root / "images" / folder).mkdir(parents=True)
        for number in range(2):
            pixels = np.full((12, 16, 3), (255, 0, 0), np.uint8)
            pixels[2:-2, 2:-2] = np.random.default_rng(number).integers(0, 255, (8, 12, 3))
            Image.fromarray(pixels).save(root / "images" / folder / f"{number}.png")
    (root / "images" / "chair" / "narrow.png").write_bytes(png(4))
    return root


def png(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, "PNG")
    return file.getvalue()


def test_objectnet_has_the_classes_of_its_mappings_and_no_border(objectnet, tmp_path, capsys):
    assert main(["pack", "objectnet", str(tmp_path / "packed"), "--from", str(objectnet)]) == 0
    assert "found 7 = packed 4 + merged 0 + skipped 3" in capsys.readouterr().out
    found = samples(tmp_path / "packed")
    labels = {key: json.loads(sample["json"])["labels"] for key, sample in found.items()}
    assert labels == {"chair/0": [2, 3], "chair/1": [2, 3], "banana/0": [0], "banana/1": [0]}
    for key, sample in found.items():
        with Image.open(io.BytesIO(sample["png"])) as image:
            expected = np.random.default_rng(int(key[-1])).integers(0, 255, (8, 12, 3))
            assert np.array_equal(np.asarray(image), expected)
    index = open_index(str(tmp_path / "packed"))
    assert (index.num_classes, index.about["class_map"]) == (1000, {"Chair": [2, 3], "Banana": [0]})
    assert refuses_training(tmp_path / "packed")


def test_indexing_again_keeps_the_note(objectnet, tmp_path):
    assert main(["pack", "objectnet", str(tmp_path / "packed"), "--from", str(objectnet)]) == 0
    assert main(["pack", "--index-only", str(tmp_path / "packed")]) == 0
    assert open_index(str(tmp_path / "packed")).about["class_map"]["Chair"] == [2, 3]
    assert refuses_training(tmp_path / "packed")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("objectnet_to_imagenet_1k.json", {"Chair": "stool"}, "'stool', which 'Chair' is mapped to, is not the name"),
        ("objectnet_to_imagenet_1k.json", {"Chair": "crane"}, "is the name of several classes"),
        ("objectnet_to_imagenet_1k.json", {"Sofa": "banana"}, "no images of classes that ImageNet has"),
        ("objectnet_to_imagenet_1k.json", [], "a list where an object is expected"),
        ("pytorch_to_imagenet_2012_id.json", {"0": 6}, "maps 0 to 6, which is no line"),
        ("pytorch_to_imagenet_2012_id.json", {"0": -1}, "maps 0 to -1, which is no line"),
        ("folder_to_objectnet_label.json", {"chair": "Chair"}, "the folder air_freshener is not in mappings/"),
        ("folder_to_objectnet_label.json", None, "does not exist"),
    ],
)
def test_other_mappings_of_objectnet_are_refused(objectnet, tmp_path, capsys, name, content, words):
    path = objectnet / "mappings" / name
    path.unlink() if content is None else path.write_text(json.dumps(content))
    assert main(["pack", "objectnet", str(tmp_path / "packed"), "--from", str(objectnet)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not (tmp_path / "packed").exists()

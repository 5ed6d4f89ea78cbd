"""A small data set that TFDS itself prepares, if the package is installed (requirements-tfds.txt)."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from data import DataError
from data.__main__ import main
from data.packing.pack import pack
from data.sources.tfds import Tfds

tfds = pytest.importorskip("tensorflow_datasets", reason="the optional requirements-tfds.txt is not installed")


def jpeg(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()


def grey_png(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


class Tiny(tfds.core.GeneratorBasedBuilder):
    """10 training and 4 test images."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=["ant", "bee", "cat"]),
            "tags": tfds.features.Sequence(tfds.features.ClassLabel(num_classes=9)),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(range(10)), "test": self._generate_examples(range(10, 14))}

    def _generate_examples(self, numbers):
        for number in numbers:
            yield number, {"image": io.BytesIO(jpeg(number)), "label": number % 3, "tags": list(range(number % 4))}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> str:
    builder = Tiny(data_dir=str(tmp_path_factory.mktemp("tfds")), file_format="array_record")
    builder.download_and_prepare()
    return str(builder.data_dir)


def samples(folder: Path) -> list[dict[str, bytes]]:
    urls = sorted(str(path) for path in folder.glob("*.tar"))
    return list(webdataset.WebDataset(urls, shardshuffle=False))


def test_all_splits(prepared, tmp_path):
    assert main(["pack", "tfds", str(tmp_path), "--from", prepared]) == 0
    label_of = {jpeg(number): b"%d" % (number % 3) for number in range(14)}
    found = {split: samples(tmp_path / split) for split in ("train", "test")}
    for split, count in (("train", 10), ("test", 4)):
        assert len(found[split]) == count
        assert all(sample["cls"] == label_of[sample["jpg"]] for sample in found[split])  # the stored bytes themselves
        assert (tmp_path / split / "classes.txt").read_text().split() == ["ant", "bee", "cat"]
    assert len({sample["jpg"] for split in found.values() for sample in split}) == 14


def test_slices_and_lists_of_labels(prepared, tmp_path):
    words = ["--from", prepared, "--split", "train[:6]", "--label-key", "tags"]
    assert main(["pack", "tfds", str(tmp_path), *words]) == 0
    tags_of = {jpeg(number): list(range(number % 4)) for number in range(10)}
    found = samples(tmp_path / "train_6")
    assert len(found) == 6
    assert all(json.loads(sample["json"])["labels"] == tags_of[sample["jpg"]] for sample in found)


class Clevr(tfds.core.GeneratorBasedBuilder):
    """Nested features like CLEVR's and KITTI's: the number is that of the objects."""

    VERSION = tfds.core.Version("3.1.0")

    def _info(self):
        objects = {
            "size": tfds.features.ClassLabel(names=["large", "small"]),
            "pixel_coords": tfds.features.Tensor(shape=(3,), dtype=np.float32),
        }
        features = {"image": tfds.features.Image(), "objects": tfds.features.Sequence(objects)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number in range(3, 11):
            objects = [{"size": 0, "pixel_coords": (0.0, 0.0, 5.0 + number + place)} for place in range(number)]
            yield number, {"image": io.BytesIO(grey_png(number)), "objects": objects}


def test_a_task_with_a_derived_label(tmp_path):
    builder = Clevr(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    prepared = str(builder.data_dir)
    for task, expected in (
        ("clevr-count", {number: number - 3 for number in range(3, 11)}),
        ("clevr-distance", {3: 0, 4: 2, 5: 4, 6: 5, 7: 5, 8: 5, 9: 5, 10: 5}),  # 8, 9, 10, 11 ... away
    ):
        assert main(["pack", "tfds", str(tmp_path / task), "--from", prepared, "--task", task]) == 0
        found = {
            int(np.asarray(Image.open(io.BytesIO(sample["png"])))[0, 0, 0]): int(sample["cls"])
            for sample in samples(tmp_path / task / "train")
        }
        assert found == expected
    with pytest.raises(DataError, match="the task kitti-distance is one of kitti, this is clevr"):
        Tfds(prepared, "train", task="kitti-distance")


def test_what_cannot_be_packed(prepared, tmp_path):
    with pytest.raises(DataError, match="no split 'dev'; there are: t"):
        Tfds(prepared, "dev")
    with pytest.raises(
        DataError, match="name the feature with the label by --label-key; there are: image, label, tags"
    ):
        Tfds(prepared, "train", label="name")
    with pytest.raises(DataError, match="no data set that TFDS prepared"):
        Tfds(str(tmp_path), "train")
    for path in Path(prepared).iterdir():
        content = path.read_bytes()
        if path.name == "dataset_info.json":
            content = content.replace(b"array_record", b"tfrecord")
        (tmp_path / path.name.replace("array_record", "tfrecord")).write_bytes(content)
    with pytest.raises(DataError, match="prepared in a format without random access"):
        pack(str(tmp_path / "out"), Tfds(str(tmp_path), "train"))

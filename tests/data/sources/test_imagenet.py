"""ILSVRC2012 and ImageNet-21k in miniature: archives with the layout of the official ones, made by other libraries."""

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import webdataset
from PIL import Image

from data import DataError, open_index
from data.__main__ import main
from data.packing.pack import pack
from data.sources.class_tars import class_tars
from data.sources.classes.holdout import Holdout
from data.sources.imagenet import imagenet21k, read_devkit

# Sorted WordNet ids and their numbers in the devkit: another order, as in the official one.
WNIDS = {"n01440764": 3, "n01443537": 1, "n02105855": 4, "n07747607": 2}
GROUP = "n00001740"  # the devkit also lists groups of classes
TRUTH = [4, 2, 2, 1, 3, 1]  # devkit numbers of validation images 1 ...


def jpeg(seed: int, file_format: str = "JPEG", mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(file, file_format)
    return file.getvalue()


def tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def devkit() -> bytes:
    rows = [(number, wnid, f"the {wnid}", "", 0, 0, 0, 0) for wnid, number in WNIDS.items()]
    rows.append((5, GROUP, "a group", "", 2, 0, 0, 0))
    names = (
        "ILSVRC2012_ID",
        "WNID",
        "words",
        "gloss",
        "num_children",
        "children",
        "wordnet_height",
        "num_train_images",
    )
    synsets = np.array(sorted(rows), dtype=[(name, object) for name in names])
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": synsets.reshape(-1, 1)})
    root = "ILSVRC2012_devkit_t12"
    truth = "".join(f"{number}\n" for number in TRUTH).encode()
    files = {
        f"{root}/readme.txt": b"hello",
        f"{root}/data/meta.mat": meta.getvalue(),
        f"{root}/data/ILSVRC2012_validation_ground_truth.txt": truth,
    }
    return tar(files, "w:gz")


@pytest.fixture(scope="module")
def images() -> dict[str, dict[str, bytes]]:
    """Five images a class; one is a PNG and one CMYK, as in the official archives."""
    made = {}
    for place, wnid in enumerate(WNIDS):
        files = {f"{wnid}_{number}.JPEG": jpeg(10 * place + number) for number in range(5)}
        made[wnid] = files
    made["n02105855"]["n02105855_2.JPEG"] = jpeg(77, "PNG")
    made["n07747607"]["n07747607_3.JPEG"] = jpeg(78, "JPEG", "CMYK")
    return made


@pytest.fixture(scope="module")
def validation() -> dict[str, bytes]:
    """The validation images, in an order of their own."""
    return {f"ILSVRC2012_val_{number:08d}.JPEG": jpeg(100 + number) for number in (2, 1, 6, 4, 3, 5)}


@pytest.fixture(scope="module")
def archives(images, validation, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("official")
    class_files = {f"{wnid}.tar": tar(files) for wnid, files in sorted(images.items(), reverse=True)}
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar(class_files))
    (folder / "ILSVRC2012_img_val.tar").write_bytes(tar(validation))
    (folder / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(devkit())
    (folder / "21k").mkdir()
    for name, content in class_files.items():
        (folder / "21k" / name).write_bytes(content)
    return folder


def samples(folder: Path) -> dict[str, dict[str, bytes]]:
    urls = sorted(str(path) for path in folder.glob("*.tar"))
    return {sample["__key__"]: sample for sample in webdataset.WebDataset(urls, shardshuffle=False)}


def test_both_splits(archives, images, validation, tmp_path, capsys):
    assert main(["pack", "imagenet", str(tmp_path), "--from", str(archives), "--shard-samples", "7"]) == 0
    assert "packed: 20 samples of 4 classes in 3 shards" in capsys.readouterr().out
    order = sorted(WNIDS)
    train = samples(tmp_path / "train")
    assert len(train) == 20
    for wnid, files in images.items():
        for name, content in files.items():
            sample = train[name.removesuffix(".JPEG")]
            extension = "png" if name == "n02105855_2.JPEG" else "jpg"
            assert (sample[extension], int(sample["cls"])) == (content, order.index(wnid))
    wnid_of = {number: wnid for wnid, number in WNIDS.items()}
    val = samples(tmp_path / "val")
    assert len(val) == len(TRUTH)
    for number, truth in enumerate(TRUTH, start=1):
        name = f"ILSVRC2012_val_{number:08d}"
        assert val[name]["jpg"] == validation[f"{name}.JPEG"]
        assert int(val[name]["cls"]) == order.index(wnid_of[truth])
    for split in ("train", "val"):
        assert (tmp_path / split / "classes.txt").read_text().split() == order
        assert open_index(str(tmp_path / split)).num_classes == 4


def test_the_devkits_numbers_are_not_the_sorted_ones(archives):
    """Against torchvision's way of reading it (parse_devkit_archive), written out."""
    with tarfile.open(archives / "ILSVRC2012_devkit_t12.tar.gz") as archive:
        file = io.BytesIO(archive.extractfile("ILSVRC2012_devkit_t12/data/meta.mat").read())
    meta = scipy.io.loadmat(file, squeeze_me=True)["synsets"]
    children = list(zip(*meta, strict=True))[4]
    leaves = [meta[number] for number, count in enumerate(children) if count == 0]
    numbers, wnids = list(zip(*leaves, strict=True))[:2]
    wnid_of = dict(zip(numbers, wnids, strict=True))
    classes, truth = read_devkit(str(archives / "ILSVRC2012_devkit_t12.tar.gz"))
    assert [classes[place] for place in truth] == [wnid_of[number] for number in TRUTH]
    assert truth.tolist() != [number - 1 for number in TRUTH]


def test_21k_from_a_folder_or_a_tar_of_tars(archives, images):
    """The same images in the same order. The right number is held out, and none comes twice."""
    one, other = (imagenet21k(str(archives / place), Holdout(6)) for place in ("21k", "ILSVRC2012_img_train.tar"))
    found = []
    for split, count in (("train", 14), ("val", 6)):
        assert len(one[split]) == count
        positions = np.arange(count)
        items = list(one[split].reading(positions)())
        assert items == list(other[split].reading(positions)())
        found += [item.key for item in items]
    assert sorted(found) == sorted(name.removesuffix(".JPEG") for files in images.values() for name in files)
    assert list(imagenet21k(str(archives / "21k"), Holdout(0))) == ["train"]
    with pytest.raises(DataError, match="cannot hold out 20 of 20 images"):
        imagenet21k(str(archives / "21k"), Holdout(20))


def test_empty_and_broken_members_are_skipped(tmp_path):
    (tmp_path / "n1.tar").write_bytes(tar({"n1_1.JPEG": jpeg(1), "n1_2.JPEG": b"", "n1_3.JPEG": b"nothing"}))
    packed = pack(str(tmp_path / "out"), class_tars("x", str(tmp_path)))
    assert packed.skipped == {"empty image": 1, "not an image: text": 1}
    assert list(samples(tmp_path / "out")) == ["n1_1"]


def test_archives_that_cannot_be_used(archives, tmp_path):
    whole = (archives / "21k" / "n01440764.tar").read_bytes()
    with tarfile.open(archives / "21k" / "n01440764.tar") as archive:
        third = archive.getmembers()[2]
    for length, words in (
        (third.offset_data + 100, r"n1.tar: cannot be opened \(ReadError: unexpected end of data"),
        (third.offset, "n1.tar: cut short: the archive n1 in it has no end"),
    ):
        (tmp_path / "n1.tar").write_bytes(whole[:length])
        with pytest.raises(DataError, match=words):
            class_tars("x", str(tmp_path))
    (tmp_path / "all.tar.gz").write_bytes(gzip.compress(whole))
    with pytest.raises(DataError, match=r"all.tar.gz: compressed tars cannot be read from the middle"):
        imagenet21k(str(tmp_path / "all.tar.gz"), Holdout(0))
    with pytest.raises(DataError, match=r"n1.tar: not ILSVRC2012's devkit"):
        read_devkit(str(tmp_path / "n1.tar"))
    with pytest.raises(DataError, match="does not exist; it has the classes of the validation images"):
        read_devkit(str(tmp_path / "nowhere.tar.gz"))
    (tmp_path / "ILSVRC2012_img_val.tar").write_bytes(tar({"ILSVRC2012_val_00000001.JPEG": jpeg(1)}))
    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").write_bytes((archives / "ILSVRC2012_devkit_t12.tar.gz").read_bytes())
    from data.sources.imagenet import imagenet

    with pytest.raises(DataError, match="are not the images 1 to 6"):
        imagenet(str(tmp_path), "val")


def test_class_tars_that_are_numbers_are_class_numbers(tmp_path):
    """As class folders are; an empty tar has its number, too."""
    for number in range(11):
        files = {} if number == 1 else {f"{number}_a.JPEG": jpeg(number)}
        (tmp_path / f"{number}.tar").write_bytes(tar(files))
    packed = pack(str(tmp_path / "out"), class_tars("tars", str(tmp_path)))
    samples = webdataset.WebDataset(str(tmp_path / "out/000000.tar"), shardshuffle=False)
    assert {sample["__key__"].split("_")[0]: int(sample["cls"]) for sample in samples} == {
        str(number): number for number in range(11) if number != 1
    }
    assert packed.index.class_names == tuple(str(number) for number in range(11))
    for number in range(5):
        (tmp_path / f"{number}.tar").unlink()
    (tmp_path / "2019.tar").write_bytes(tar({}))
    with pytest.raises(DataError, match=r"are the class tars 10, 2019, 5 ... class numbers or names\?.*; rename them"):
        class_tars("tars", str(tmp_path))

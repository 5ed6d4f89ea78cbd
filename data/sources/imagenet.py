"""ImageNet from its official archives.

ILSVRC2012 (1,281,167 training and 50,000 validation images, 1,000 classes): `ILSVRC2012_img_train.tar` holds one tar a
class; `ILSVRC2012_img_val.tar` holds the images alone, and the devkit has their classes in a numbering of its own, 1 to
1,000. Here, as in TensorFlow Datasets and torchvision, a class's number is the place of its WordNet id in sorted order.
The file names of a PNG and 22 CMYK JPEGs end in .JPEG: they are packed by their content.

ImageNet-21k (14.2M files, about 12.4M different images, 21,841 or 21,843 classes by release): one tar a class, in a
folder or in one large tar.
"""

import io
import re
import tarfile

import numpy as np

from data import storage
from data.errors import DataError
from data.packing.source import Skipped
from data.ray_session import Runner, in_process
from data.sources.class_tars import TarImages, class_tars, tar_images
from data.sources.classes.holdout import Holdout
from data.sources.tars.identical import check_merging, merged, read_digests
from data.sources.tars.members import HIDDEN, Archive, Members, is_hidden, list_members
from data.splitmix import Purpose, key, permutation

TRAIN_TAR = "ILSVRC2012_img_train.tar"
VAL_TAR = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
NOT_MERGED, MERGED = "imagenet21k", "imagenet21k-merged"  # names of the source in an index


def imagenet(folder: str, split: str) -> TarImages:
    """The split "train" or "val" of ILSVRC2012, from the archives in `folder`.

    Raises:
        DataError: an archive is missing, or is another file.
    """
    if split == "train":
        return class_tars("imagenet/train", storage.join(folder, TRAIN_TAR))
    everything = list_members(Archive(storage.absolute(storage.join(folder, VAL_TAR)), 0, ""))
    classes, truth = read_devkit(storage.join(folder, DEVKIT))
    numbers = np.array([validation_number(name) for name in everything.names], np.int64)
    others = [_other(everything.names[place]) for place in np.flatnonzero(numbers == 0).tolist()]
    members = Members(
        everything.url,
        [everything.names[place] for place in np.flatnonzero(numbers).tolist()],
        everything.offsets[numbers > 0],
        everything.sizes[numbers > 0],
        [*everything.skipped, *others],
    )
    numbers = numbers[numbers > 0]
    if len(numbers) != len(truth) or not np.array_equal(np.sort(numbers), np.arange(1, len(truth) + 1)):
        raise DataError(
            f"{members.url}: its images are not the images 1 to {len(truth):,} whose classes are in {DEVKIT}"
        )
    return tar_images("imagenet/val", [members], [truth[numbers - 1]], classes)


def validation_number(name: str) -> int:
    """The number in the name of a validation image; 0 if it is none."""
    match = None if is_hidden(name) else re.search(r"_(\d{8})\.JPEG$", name)
    return int(match[1]) if match else 0


def _other(name: str) -> Skipped:
    return Skipped(name, HIDDEN if is_hidden(name) else "not called as a validation image")


def read_devkit(url: str) -> tuple[list[str], np.ndarray]:
    """(WordNet ids, sorted; for validation image i + 1 the place of its class among them, int64 (n,)).

    Raises:
        DataError: it is not the devkit.
    """
    from scipy.io import loadmat

    try:
        with storage.reporting(url):
            content = storage.read(url)
    except FileNotFoundError as error:
        raise DataError(f"{url}: does not exist; it has the classes of the validation images") from error
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            members = [member for member in archive if member.isfile()]
            files = {member.name.rpartition("/")[2]: archive.extractfile(member).read() for member in members}  # type: ignore[union-attr]
        meta = loadmat(io.BytesIO(files["meta.mat"]), squeeze_me=True)
        ground_truth = files["ILSVRC2012_validation_ground_truth.txt"]
    except (tarfile.TarError, OSError, EOFError, KeyError) as error:
        raise DataError(f"{url}: not ILSVRC2012's devkit for tasks 1 and 2 ({error})") from error
    leaves = meta["synsets"][meta["synsets"]["num_children"] == 0]  # the others are groups of classes
    wnids = {int(number): str(wnid) for number, wnid in zip(leaves["ILSVRC2012_ID"], leaves["WNID"], strict=True)}
    classes = sorted(wnids.values())
    places = {number: classes.index(wnid) for number, wnid in wnids.items()}
    return classes, np.array([places[int(line)] for line in ground_truth.split()], np.int64)


def imagenet21k(
    url: str, holdout: Holdout, *, merge_into: str | None = None, runner: Runner = in_process, force: bool = False
) -> dict[str, TarImages]:
    """{"train": ..., "val": ...} from the class tars at `url`. The release has no validation set.

    The same picture stands in several class tars. With `merge_into`, images with the same bytes are one sample with the
    classes of all of them, and images are held out by content; without it, a copy of a held-out image can be in train.

    Args:
        holdout: images of val, drawn from all images. None: there is no val.
        merge_into: DEST; DEST/digests gets a list of all images' SHA-256.
        runner: runs the calls that read the images for that.
        force: replace the digests of other images.

    Raises:
        DataError: there are no tars, or not more images than are held out.
    """
    everything = class_tars("imagenet21k/train", url)
    if merge_into is not None and len(everything):
        digests = read_digests(merge_into, everything, runner, force=force)
        everything = merged(f"{MERGED}/train", everything, digests)
    name = everything.name.removesuffix("/train")
    held_out = holdout.of(len(everything))
    if held_out >= len(everything) > 0:
        raise DataError(f"{url}: cannot hold out {held_out:,} of {len(everything):,} images")
    splits = {"train": everything}
    if held_out:
        order = permutation(key(Purpose.HOLDOUT), len(everything))
        splits = {
            "train": everything.chosen(f"{name}/train", np.sort(order[held_out:]), everything.skipped),
            "val": everything.chosen(f"{name}/val", np.sort(order[:held_out])),
        }
    for split in splits.values():
        split.about = {"merge_identical": merge_into is not None}
    return splits


def check_imagenet21k(dest: str, merge: bool) -> None:
    """Check that DEST/train and DEST/val are not packed, or begun, with the other choice of merging.

    Raises:
        DataError: one is.
    """
    if merge:
        advice = "its identical images are not merged: go on with --no-merge-identical"
        check_merging(dest, ("train", "val"), MERGED, NOT_MERGED, advice)
    else:
        advice = "its identical images are merged: go on without --no-merge-identical"
        check_merging(dest, ("train", "val"), NOT_MERGED, MERGED, advice)

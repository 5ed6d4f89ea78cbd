"""Mistakes with `pack folder` that look like success: shards among the images, and splits that become classes."""

import os
from collections.abc import Sequence

from data import storage
from data.errors import DataError

SPLITS = frozenset(
    ("train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval", "holdout", "held_out")
)


def check_dest(dest: str, images: str, parts: Sequence[str]) -> None:
    """Check that the shards of `parts` ("" for DEST itself) do not go into the folder of the images.

    Raises:
        DataError: DEST, or a part's folder in it, is that folder or lies in it.
    """
    source = _place(images)
    for part in parts:
        place = _place(storage.join(dest, part) if part else dest)
        if f"{place}/".startswith(f"{source}/"):
            where = "is the folder of the images" if place == source else "lies in the folder of the images"
            raise DataError(
                f"DEST {dest} {where} ({images}): the next packing would find the shards there; choose another DEST, "
                "or say --yes if that is meant"
            )


def check_classes(images: str, names: Sequence[str]) -> None:
    """Check that the classes are not the splits of a data set.

    Raises:
        DataError: the folders are called train, test or the like.
    """
    splits = sorted(name for name in names if name.lower() in SPLITS)
    if splits and (len(splits) == len(names) or len(splits) > 1):
        listed = " and ".join(f'"{name}"' for name in splits)
        raise DataError(
            f"--from {images}: its classes would be {listed}, which are the names of splits; pack each split by itself "
            f"(--from {storage.join(images, splits[0])}), or say --yes if these are classes"
        )


def _place(url: str) -> str:
    """The URL as it can be compared; of a local one the place that links lead to."""
    url = storage.absolute(url)
    return os.path.realpath(url).rstrip("/") if storage.is_local(url) else url.rstrip("/")

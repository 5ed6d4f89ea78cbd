"""What to do about a folder that should be a data set and has no index."""

from contextlib import suppress

from data import storage

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
SEARCHED, DEPTH = 5, 2  # folders in each folder, and the levels below the folder, that are searched for images
FEW = 20  # folders that are asked whether they are the data set that was meant


def advice(folder: str, index_name: str) -> str:
    """What `folder`, which exists, seems to hold, and the command or the URL that makes a data set of it."""
    names = _names(folder)
    if not any(name.endswith(".tar") for name in names):
        if sets := [name for name in names[:FEW] if index_name in _names(storage.join(folder, name))]:
            return f"no {index_name} there, but in {', '.join(sets)}: did you mean {storage.join(folder, sets[0])}?"
        if _has_images(folder, names, DEPTH):
            return (
                f"no {index_name} there, but image files: pack them once with "
                f"`python -m data pack folder DEST --from {folder}`, and give DEST"
            )
    return f"no {index_name} there; to index WebDataset tars run `python -m data pack --index-only {folder}`"


def _names(folder: str) -> list[str]:
    with suppress(Exception):  # a web server may list nothing, and the advice is only a guess
        return sorted(storage.contents(folder))
    return []


def _has_images(folder: str, names: list[str], depth: int) -> bool:
    """Whether there is an image file among the names in a folder, or in one of the first folders in it."""
    if any(name.lower().endswith(IMAGES) for name in names):
        return True
    inner = [storage.join(folder, name) for name in names if not name.startswith(".")][: SEARCHED if depth else 0]
    return any(_has_images(place, _names(place), depth - 1) for place in inner)

"""ObjectNet: 50,273 photographs of objects in unusual places and positions (2019). ImageNet has 113 of its 313 classes.

The release's `mappings` lead from a folder to its class, from there to names of ImageNet classes, and from a name to
its number: line i of `imagenet_to_label_2012_v2` names class n if `pytorch_to_imagenet_2012_id` has {"n": i}. A
sample's labels are the numbers of all ImageNet classes of its object. An answer is right if the best of all 1,000 is
among them; the index keeps the numbers of all 113 classes, for the best answer among those alone.

The images have a red border of a pixel or two, against training on them, which the licence forbids. Two pixels a side
are cut off here.
"""

import json
from collections.abc import Iterator, Sequence
from functools import partial

import cv2
import numpy as np

from data import storage
from data.errors import BadSample, Cause, DataError
from data.images.decode import decode
from data.packing.source import Item, Reading, Skipped, Source, ahead, fingerprint, image_field, label_field, read_file
from data.shards.index import CLASS_MAP
from data.sources.folder import unique_keys
from data.sources.measure_only import IMAGENET_CLASSES, measure_only
from data.sources.walk import images, walk

BORDER = 2  # pixels a side
NOT_IMAGENET = "of a class that ImageNet does not have"
NO_CLASS_FOLDER = "in no class folder"


class ObjectNet(Source):
    """The images of the classes that ImageNet has.

    Args:
        url: the unpacked release, with the folders `images` and `mappings`.

    Raises:
        DataError: a file is missing or is another one, or a folder is in no mapping.
    """

    name = "objectnet"
    num_classes = IMAGENET_CLASSES
    multi_label = True

    def __init__(self, url: str) -> None:
        root = storage.absolute(url)
        classes, names = read_mappings(storage.join(root, "mappings"))
        self._url = storage.join(root, "images")
        listing = walk(self._url)
        sizes, unread = images(self._url, listing.files)
        self.skipped = [*listing.skipped, *unread]
        paths = []
        for path in sorted(sizes):
            folder = path.split("/")[0] if "/" in path else ""
            if folder and folder not in names:
                raise DataError(f"{self._url}: the folder {folder} is not in mappings/folder_to_objectnet_label.json")
            if names.get(folder) in classes:
                paths.append(path)
            else:
                self.skipped.append(Skipped(path, NOT_IMAGENET if folder else NO_CLASS_FOLDER))
        if not paths:
            raise DataError(f"{self._url}: no images of classes that ImageNet has")
        self.found = listing.found
        self._paths, self._keys = paths, unique_keys(paths)
        self._labels = [classes[names[path.split("/")[0]]] for path in paths]
        self.fingerprint = fingerprint(
            f"{path}\t{sizes[path]}\t{labels}" for path, labels in zip(paths, self._labels, strict=True)
        )
        self.mean_bytes = sum(sizes[path] for path in paths) / len(paths)
        self.about = measure_only("ObjectNet, whose licence forbids it") | {CLASS_MAP: classes}

    def __len__(self) -> int:
        return len(self._paths)

    def reading(self, positions: np.ndarray) -> Reading:
        chosen = positions.tolist()
        return partial(
            _read,
            self._url,
            [self._paths[place] for place in chosen],
            [self._keys[place] for place in chosen],
            [self._labels[place] for place in chosen],
        )


def read_mappings(folder: str) -> tuple[dict[str, list[int]], dict[str, str]]:
    """({ObjectNet class: its ImageNet class numbers}, {folder: ObjectNet class}).

    Raises:
        DataError: a file is missing, or does not fit the others.
    """
    numbers = _json_object(folder, "pytorch_to_imagenet_2012_id.json")
    lines = _text(folder, "imagenet_to_label_2012_v2").splitlines()
    named: dict[str, list[int]] = {}
    for number, line in numbers.items():
        if (
            not number.isdecimal()
            or int(number) >= IMAGENET_CLASSES
            or type(line) is not int
            or not 0 <= line < len(lines)
        ):
            raise DataError(f"{folder}: pytorch_to_imagenet_2012_id.json maps {number} to {line}, which is no line")
        named.setdefault(lines[line].strip(), []).append(int(number))
    classes = {}
    for name, text in _json_object(folder, "objectnet_to_imagenet_1k.json").items():
        wanted = [one.strip() for one in str(text).split(";")]
        for one in wanted:
            if len(named.get(one, ())) != 1:
                what = "is not the name of an ImageNet class" if one not in named else "is the name of several classes"
                raise DataError(f"{folder}: {one!r}, which {name!r} is mapped to, {what} in imagenet_to_label_2012_v2")
        classes[name] = sorted(named[one][0] for one in wanted)
    return classes, {one: str(name) for one, name in _json_object(folder, "folder_to_objectnet_label.json").items()}


def _json_object(folder: str, name: str) -> dict[str, object]:
    url, text = storage.join(folder, name), _text(folder, name)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{url}: not JSON ({str(error)[:100]})") from error
    if not isinstance(found, dict):
        raise DataError(f"{url}: a {type(found).__name__} where an object is expected")
    return found


def _text(folder: str, name: str) -> str:
    url = storage.join(folder, name)
    try:
        with storage.reporting(url):
            return storage.read(url).decode()
    except FileNotFoundError as error:
        raise DataError(f"{url}: does not exist; --from is the release's folder with images and mappings") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{url}: not text") from error


def _read(url: str, paths: Sequence[str], keys: Sequence[str], labels: Sequence[list[int]]) -> Iterator[Item | Skipped]:
    contents = ahead(partial(_read_image, url), paths)
    for path, key, numbers, content in zip(paths, keys, labels, contents, strict=True):
        try:
            extension, image = image_field(without_border(content))
        except BadSample as bad:
            yield Skipped(path, bad.cause)
            continue
        yield Item(key, {extension: image} | label_field(numbers, multi_label=True))


def _read_image(url: str, path: str) -> bytes:
    return read_file(storage.join(url, path))


def without_border(content: bytes) -> bytes:
    """The image without two pixels a side, as PNG.

    Raises:
        BadSample: it is no image, or nothing is left of it.
    """
    _, image = image_field(content)
    inner = decode(image)[BORDER:-BORDER, BORDER:-BORDER]
    if not inner.size:
        raise BadSample(Cause.UNDECODABLE)
    _, png = cv2.imencode(".png", cv2.cvtColor(inner, cv2.COLOR_RGB2BGR))
    return png.tobytes()

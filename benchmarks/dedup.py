"""Measures what `python -m data dedup` finds: recall for kinds of copies, and the rate of false positives.

    python -m benchmarks.dedup [--photos FOLDER] [--shapes N] [--workers N]

Images of each kind are packed and compared by the code of the command. Half of the images are the test set. Copies of
these give recall; the other half, which contains no copies, gives the false positives. Photographs are tiles of those
in scikit-learn and matplotlib, or all .jpg and .jpeg files under FOLDER. The latter are used whole for recall, and
whole and cut into quarters, for more pairs, for false positives. The last line is JSON.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np

from data.dedup import search
from data.images.decode import decode
from data.parallel import usable_cpus
from data.shards.index import Index, Shard, write_index
from data.shards.writer import ShardWriter
from data.sources.shape_drawing import shape_image

SAMPLES_PER_SHARD = 128
QUALITY = 90  # of copies, unless their kind says otherwise
TILE = 160  # pixels a side

Image = np.ndarray  # uint8 (height, width, 3), RGB
Copy = Callable[[Image, np.random.Generator], bytes]


def jpeg(image: Image, quality: int = QUALITY) -> bytes:
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def resized(image: Image, scale: float) -> Image:
    kernel = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=kernel)


def squared(image: Image, side: int) -> Image:
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)


def cropped(image: Image, share: float, random: np.random.Generator) -> Image:
    """A random part of the image, with each side shorter by `share`."""
    height, width = (round(side * (1 - share)) for side in image.shape[:2])
    top, left = (
        int(random.integers(whole - rest + 1)) for whole, rest in zip(image.shape, (height, width), strict=False)
    )
    return image[top : top + height, left : left + width]


def toned(image: Image, contrast: float, brightness: float = 0.0) -> Image:
    return np.clip((image.astype(np.float32) - 128) * contrast + 128 + brightness, 0, 255).astype(np.uint8)


def grey(image: Image) -> Image:
    return np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)


COPIES: Mapping[str, Copy] = {
    "the same file": lambda image, random: jpeg(image),
    "resized to 0.5": lambda image, random: jpeg(resized(image, 0.5)),
    "resized to 2": lambda image, random: jpeg(resized(image, 2.0)),
    "squeezed to 224 x 224": lambda image, random: jpeg(squared(image, 224)),
    "resized to 32 x 32": lambda image, random: jpeg(squared(image, 32)),
    "JPEG quality 50": lambda image, random: jpeg(image, 50),
    "JPEG quality 30": lambda image, random: jpeg(image, 30),
    "5 % cropped off": lambda image, random: jpeg(cropped(image, 0.05, random)),
    "10 % cropped off": lambda image, random: jpeg(cropped(image, 0.1, random)),
    "15 % cropped off": lambda image, random: jpeg(cropped(image, 0.15, random)),
    "30 % brighter": lambda image, random: jpeg(np.clip(image * 1.3, 0, 255).astype(np.uint8)),
    "30 % darker": lambda image, random: jpeg((image * 0.7).astype(np.uint8)),
    "40 % more contrast": lambda image, random: jpeg(toned(image, 1.4)),
    "gamma 0.7": lambda image, random: jpeg(np.rint(255 * (image / 255) ** 0.7).astype(np.uint8)),
    "mirrored": lambda image, random: jpeg(image[:, ::-1]),
    "grey": lambda image, random: jpeg(grey(image)),
    "5 % cropped, 0.5, mirrored, brighter, quality 50": lambda image, random: jpeg(
        toned(resized(cropped(image, 0.05, random), 0.5)[:, ::-1], 1.1, 15), 50
    ),
}


def packed(folder: Path, images: Iterable[bytes]) -> Index:
    """Writes shards of encoded images. The key of an image is its number."""
    shards: list[Shard] = []
    numbered = enumerate(images)
    for first in numbered:
        with ShardWriter(str(folder), f"{len(shards):06d}.tar") as writer:
            for number, content in chain([first], islice(numbered, SAMPLES_PER_SHARD - 1)):
                writer.write(f"{number:08d}", {"jpg": content, "cls": b"0"})
            shards.append(writer.close())
    index = Index(str(folder / "index.json"), tuple(shards), num_classes=1, multi_label=False)
    write_index(index)
    return index


def matches(index: Index, images: search.TestImages, workers: int) -> list[tuple[int, int]]:
    """(number of the training image, number of the test image) of every match."""
    return [
        (int(index.starts[number]) + match.position, int(images.sample[match.test]))
        for number, compared in enumerate(search.compare(index, images, workers))
        for match in compared.matches
    ]


def recall(images: list[Image], workers: int) -> dict[str, float]:
    """By kind, the share of copies that are matched with their original.

    The last two kinds are the reverse: the test image is a crop of the training image.
    """
    with TemporaryDirectory() as folder:
        tests, _ = search.hash_test_sets([packed(Path(folder, "test"), map(jpeg, images))], workers)
        random = np.random.default_rng(0)
        index = packed(Path(folder, "copies"), (copy(image, random) for copy in COPIES.values() for image in images))
        hits = np.zeros((len(COPIES), len(images)), bool)
        for place, test in matches(index, tests, workers):
            row, number = divmod(place, len(images))
            hits[row, number] = number == test
        found = dict(zip(COPIES, hits.mean(axis=1).tolist(), strict=True))
        whole = packed(Path(folder, "whole"), map(jpeg, images))
        for share in (0.05, 0.1):
            random = np.random.default_rng(0)
            crops = packed(Path(folder, f"crops{share}"), (jpeg(cropped(image, share, random)) for image in images))
            tests, _ = search.hash_test_sets([crops], workers)
            kind = f"test image cropped from it by {share:.0%}"
            found[kind] = sum(a == b for a, b in matches(whole, tests, workers)) / len(images)
    return found


def false_positives(tests: list[Image], others: list[Image], workers: int) -> dict[str, float]:
    """Matches between images that are not copies of each other, and the rate of comparison."""
    with TemporaryDirectory() as folder:
        hashed, _ = search.hash_test_sets([packed(Path(folder, "test"), map(jpeg, tests))], workers)
        index = packed(Path(folder, "other"), map(jpeg, others))
        began = time.perf_counter()
        found = matches(index, hashed, workers)
        seconds = time.perf_counter() - began
    pairs = len(tests) * len(others)
    return {
        "test_images": len(tests),
        "images": len(others),
        "false_images": len({image for image, _ in found}),
        "per_image": len({image for image, _ in found}) / len(others),
        "per_pair": len(found) / pairs,
        "per_pair_95%_bound": max(len(found) + 2 * len(found) ** 0.5, 3) / pairs,
        "images_per_s_per_worker": len(others) / seconds / workers,
    }


def tiles(image: Image, height: int, width: int) -> list[Image]:
    """The image cut into pieces of that size, without the rest at the borders."""
    rows, columns = image.shape[0] // height, image.shape[1] // width
    return [
        image[height * row : height * (row + 1), width * column : width * (column + 1)]
        for row in range(rows)
        for column in range(columns)
    ]


def bundled_photographs() -> list[Image]:
    import matplotlib
    from sklearn.datasets import load_sample_images

    hopper = Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg").read_bytes()
    return [*load_sample_images().images, decode(hopper)]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dedup", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", metavar="FOLDER", type=Path, help="of photographs, instead of the bundled ones")
    parser.add_argument("--shapes", metavar="N", type=int, default=1000, help="number of drawn images (1000)")
    parser.add_argument("--workers", metavar="N", type=int, default=usable_cpus(), help="processes (one per core)")
    options = parser.parse_args()

    if options.photos:
        files = sorted(path for path in options.photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
        photos = [decode(path.read_bytes()) for path in files]
        pieces = [[photo, *tiles(photo, photo.shape[0] // 2, photo.shape[1] // 2)] for photo in photos]
    else:
        photos = [tile for photo in bundled_photographs() for tile in tiles(photo, TILE, TILE)]
        pieces = [[photo] for photo in photos]
    shapes = [shape_image(0, "train", number)[0] for number in range(options.shapes)]

    facts: dict[str, object] = {"distance": search.DISTANCE, "likeness": search.LIKENESS}
    for name, images, groups in (("photographs", photos, pieces), ("shapes", shapes, [[image] for image in shapes])):
        print(f"{name}: {len(images)} images", flush=True)
        found = recall(images[::2], options.workers)
        for kind, share in found.items():
            print(f"  {share:7.1%}  {kind}", flush=True)
        tests, others = ([piece for group in groups[half::2] for piece in group] for half in (0, 1))
        false = false_positives(tests, others, options.workers)
        print(f"  {false['false_images']} of {false['images']} others are mistaken for one of {false['test_images']}")
        print(f"  false positives per pair: {false['per_pair']:.1e}, at most {false['per_pair_95%_bound']:.1e} (95 %)")
        print(f"  {false['images_per_s_per_worker']:,.0f} images/s per worker")
        facts[name] = {"recall": found, "false_positives": false}
    print(json.dumps(facts))


if __name__ == "__main__":
    main()

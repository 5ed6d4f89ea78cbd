"""The same images in every library's format.

The images are crops of scikit-learn's two photographs at random scale, some mirrored, with other exposure and colours.
Like ImageNet's, they have 500x375 pixels and about 50 KB at JPEG quality 90. The set repeats a few thousand different
images under other keys until it is several times as long as the shuffle windows.
"""

import itertools
import shutil
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import cv2
import numpy as np

HEIGHT, WIDTH = 375, 500
QUALITY = 90
SHARD_SAMPLES = 1024
MIN_SHARDS = 8  # each of WebDataset's workers needs one
CHUNK_BYTES = 64 << 20  # size of a file in the formats of streaming and litdata: about that of a shard


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder, which is renamed to `folder` at the end, so that `folder` is always complete."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    partial.rename(folder)


def write_tars(folder: Path, *, images: int, samples: int, seed: int) -> None:
    """Writes WebDataset tars with WebDataset's own writer, and an index.

    Args:
        images: number of different images.
        samples: size of the set; sample n is image n % images.
    """
    import webdataset

    from data.packing.scan import index_shards

    encoded = photographs(images, seed)
    length = min(SHARD_SAMPLES, -(-samples // MIN_SHARDS))
    for shard, first in enumerate(range(0, samples, length)):
        with webdataset.TarWriter(str(folder / f"{shard:06d}.tar")) as writer:
            for number in range(first, min(first + length, samples)):
                writer.write({"__key__": f"{number:09d}", "jpg": encoded[number % images], "cls": number % 1000})
    index_shards(str(folder))


def write_mds(tars: Path, folder: Path) -> None:
    """Writes the set in MosaicML Streaming's format, with its own writer."""
    from benchmarks.data.pipelines import import_streaming

    columns = {"jpg": "bytes", "cls": "int"}
    with import_streaming().MDSWriter(out=str(folder), columns=columns, size_limit=CHUNK_BYTES) as writer:
        for encoded, label in read_tars(tars):
            writer.write({"jpg": encoded, "cls": label})


def write_litdata(tars: Path, folder: Path) -> None:
    """Writes the set in LitData's format, with its own writer."""
    import litdata

    shards = [str(path) for path in sorted(tars.glob("*.tar"))]
    litdata.optimize(_litdata_samples, shards, str(folder), chunk_bytes=CHUNK_BYTES, num_workers=1, verbose=False)


def _litdata_samples(shard: str) -> Iterator[dict[str, object]]:
    for encoded, label in read_tar(Path(shard)):
        yield {"jpg": encoded, "cls": label}


def read_tars(folder: Path) -> Iterator[tuple[bytes, int]]:
    """(JPEG, label) of every sample of the set, in storage order."""
    return itertools.chain.from_iterable(map(read_tar, sorted(folder.glob("*.tar"))))


def read_tar(path: Path) -> Iterator[tuple[bytes, int]]:
    """(JPEG, label) of every sample of a tar, read with the standard library."""
    with tarfile.open(path) as archive:
        for _, fields in itertools.groupby(archive, lambda member: member.name.partition(".")[0]):
            contents = {Path(field.name).suffix: archive.extractfile(field).read() for field in fields}  # type: ignore[union-attr]
            yield contents[".jpg"], int(contents[".cls"])


def photographs(count: int, seed: int) -> list[bytes]:
    """`count` different JPEGs."""
    from sklearn.datasets import load_sample_images

    originals = [np.asarray(image) for image in load_sample_images().images]
    cv2.setNumThreads(1)
    with ThreadPoolExecutor() as pool:
        return list(pool.map(partial(_photograph, originals, seed), range(count)))


def _photograph(originals: list[np.ndarray], seed: int, number: int) -> bytes:
    """A crop of at least half the height of an original, with another exposure and colour balance."""
    draws = np.random.default_rng([seed, number])
    original = originals[number % len(originals)]
    height = int(draws.uniform(0.5, 1) * original.shape[0])
    width = min(height * WIDTH // HEIGHT, original.shape[1])
    y, x = draws.integers(original.shape[0] - height + 1), draws.integers(original.shape[1] - width + 1)
    crop = original[y : y + height, x : x + width]
    scaling = cv2.INTER_AREA if height > HEIGHT else cv2.INTER_CUBIC
    image = cv2.resize(crop[:, ::-1] if draws.integers(2) else crop, (WIDTH, HEIGHT), interpolation=scaling)
    levels = np.linspace(0, 1, 256)[:, None] ** draws.uniform(0.7, 1.4) * draws.uniform(0.8, 1.1, 3)
    image = cv2.LUT(image, np.clip(255 * levels, 0, 255).astype(np.uint8)[None])
    done, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    assert done
    return encoded.tobytes()

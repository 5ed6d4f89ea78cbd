"""An index for WebDataset shards that exist: `python -m data pack --index-only`."""

import posixpath
from collections.abc import Callable

from braceexpand import braceexpand

from data import storage
from data.errors import DataError
from data.ray_session import session
from data.shards.fields import IMAGE_EXTENSIONS
from data.shards.index import INDEX_NAME, Index, Shard, write_index
from data.shards.writer import Contents, contents_index, scan_shard


def index_shards(
    url: str,
    *,
    workers: int = 1,
    num_classes: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Index, Contents]:
    """Scan WebDataset tars that exist and write `index.json` in their (common) folder.

    Args:
        url: a folder (all *.tar in it), a tar, or a pattern with braces or stars: train-{0000..0099}.tar. The order of
            the shards, and so the sample ids, is that of the braces, else of the names.
        workers: tars scanned at one time; more than one on Ray.
        num_classes: how many classes there are: samples with labels beyond will be masked. 0: the largest label + 1.
        progress: called with (shards done, shards in all).

    Raises:
        DataError: no tars, no images in them, or one that cannot be read.
    """
    with storage.reporting(url):
        folder, names = find_shards(url)
    found: dict[int, Shard] = {}
    total = Contents()
    with session(min(workers, len(names))) as runner:
        calls = ((folder, name, number) for number, name in enumerate(names))
        for number, shard, contents in runner(_scan_numbered, calls):
            found[number] = shard
            total.update(contents)
            progress(len(found), len(names))
    total.cut_short.sort()
    shards = [found[number] for number in range(len(names))]
    index = contents_index(storage.join(folder, INDEX_NAME), shards, total, source="", num_classes=num_classes)
    if total.without_image == index.num_samples:
        raise DataError(
            f"{url}: no sample has an image field ({', '.join(IMAGE_EXTENSIONS)}); found: "
            f"{', '.join(sorted(total.extensions)) or 'nothing'}"
        )
    write_index(index)
    return index, total


def find_shards(url: str) -> tuple[str, list[str]]:
    """The folder that all the shards of `url` lie under, and their names in it, in order.

    Raises:
        DataError: there are none, or they have no folder in common.
    """
    url = storage.absolute(url)
    if "{" in url:
        try:
            urls = list(braceexpand(url))
        except ValueError as error:
            raise DataError(f"{url}: the braces do not match") from error
    elif "*" in url:
        urls = [
            storage.join(storage.parent(url), name)
            for name in storage.matching(storage.parent(url), posixpath.basename(url))
        ]
    elif url.endswith(".tar"):
        urls = [url]
    else:
        urls = [storage.join(url, name) for name in storage.matching(url, "*.tar")]
    if not urls:
        raise DataError(f"{url}: no .tar files there (compressed ones cannot be read from the middle: decompress them)")
    folder = storage.parent(urls[0])
    while not all(other.startswith(f"{folder}/") for other in urls):
        if storage.parent(folder) == folder:
            raise DataError(f"{url}: the shards have no folder in common, where their index could lie")
        folder = storage.parent(folder)
    return folder, [other[len(folder) + 1 :] for other in urls]


def _scan_numbered(folder: str, name: str, number: int) -> tuple[int, Shard, Contents]:
    shard, contents = scan_shard(folder, name)
    return number, shard, contents

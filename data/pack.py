"""Images to indexed shards, and an index for shards that other tools wrote."""

import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, islice, repeat
from multiprocessing import get_context

from braceexpand import braceexpand

from data import storage
from data.errors import DataError
from data.fields import IMAGE_EXTENSIONS
from data.index import INDEX_NAME, Index, Shard, open_index, write_index
from data.shards import Contents, ShardWriter, scan_shard

IN_PROGRESS = "packing"  # a file that marks a folder whose shards are ours but not all there yet

Samples = Iterable[tuple[str, Mapping[str, bytes]]]


def pack(folder: str, samples: Samples, *, source: str, samples_per_shard: int, force: bool = False) -> bool:
    """Write (key, {extension: bytes}) samples as shards 000000.tar, 000001.tar ... with an index, to any fsspec URL.

    The index is written last: a folder that has one is complete. A folder that `source` has packed before is left
    alone unless `force` is set; one that was interrupted is packed anew.

    Returns:
        Whether anything was written.

    Raises:
        DataError: the folder holds something else.
    """
    if not force and _is_packed(folder, source):
        return False
    index_url, marker = storage.join(folder, INDEX_NAME), storage.join(folder, IN_PROGRESS)
    storage.write_atomic(marker, source.encode())
    storage.remove(index_url)
    for name in storage.matching(folder, "*.tar"):
        storage.remove(storage.join(folder, name))
    shards: list[Shard] = []
    contents, remaining = Contents(), iter(samples)
    for first in remaining:
        with ShardWriter(folder, f"{len(shards):06d}.tar") as writer:
            for key, fields in chain([first], islice(remaining, samples_per_shard - 1)):
                writer.write(key, fields)
                contents.add(fields)
            shards.append(writer.close())
    write_index(_index(index_url, shards, contents, source))
    storage.remove(marker)
    return True


def index_shards(
    url: str, *, workers: int = 1, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[Index, Contents]:
    """Scan WebDataset tars that exist and write `index.json` in their (common) folder.

    Args:
        url: a folder (all *.tar in it), a tar, or a pattern with braces or stars: train-{0000..0099}.tar. The order of
            the shards, and so the sample ids, is that of the braces, else of the names.
        workers: processes.
        progress: called with (shards done, shards in all).

    Raises:
        DataError: no tars, no images in them, or one that cannot be read.
    """
    with storage.reporting(url):
        folder, names = find_shards(url)
    shards, contents = [], Contents()
    for shard, found in _scan(folder, names, workers):
        shards.append(shard)
        contents.update(found)
        progress(len(shards), len(names))
    index = _index(storage.join(folder, INDEX_NAME), shards, contents, source="")
    if contents.without_image == index.num_samples:
        raise DataError(
            f"{url}: no sample has an image field ({', '.join(IMAGE_EXTENSIONS)}); found: "
            f"{', '.join(sorted(contents.extensions)) or 'nothing'}"
        )
    write_index(index)
    return index, contents


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


def _scan(folder: str, names: list[str], workers: int) -> Iterator[tuple[Shard, Contents]]:
    if workers == 1:
        yield from map(scan_shard, repeat(folder), names)
        return
    # Fresh processes: a fork would copy fsspec's event loop without its thread.
    with ProcessPoolExecutor(min(workers, len(names)), mp_context=get_context("spawn")) as pool:
        yield from pool.map(scan_shard, repeat(folder), names)


def _is_packed(folder: str, source: str) -> bool:
    """Whether `source` was packed into `folder` and all of it is still there."""
    if not storage.exists(storage.join(folder, INDEX_NAME)):
        if storage.matching(folder, "*.tar") and not storage.exists(storage.join(folder, IN_PROGRESS)):
            raise DataError(
                f"{folder}: holds .tar files that this program did not pack; choose another folder, "
                f"or index them with `python -m data pack --index-only {folder}`"
            )
        return False
    index = open_index(folder)
    if index.source != source:
        held = f"{index.source!r}" if index.source else "shards of another tool"
        raise DataError(f"{folder}: already holds {held}; choose another folder, or replace it with --force")
    return all(storage.size(index.shard_url(number)) == shard.bytes for number, shard in enumerate(index.shards))


def _index(url: str, shards: list[Shard], contents: Contents, source: str) -> Index:
    return Index(
        url=url,
        shards=tuple(shards),
        num_classes=contents.num_classes,
        multi_label=contents.multi_label,
        extensions=tuple(sorted(contents.extensions)),
        source=source,
    )

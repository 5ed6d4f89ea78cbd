"""An indexed set as a pipeline of the package WebDataset, for code that is written for it.

    shards  ──>  split by node  ──>  split by worker  ──>  shuffle  ──>  read  ──>  shuffle  ──>  decode

The steps of `webdataset.WebDataset` that open and parse tars are replaced, because they lose samples silently: a tar
that ends between two members counts as whole there. They also open gs:// through a command-line tool, and s3:// not at
all. Here shards are read as the loader reads them: by the index, from any store, with retries. So the samples, their
keys and their labels are the loader's, and it is known how many there must be.

What differs from the loader: the order depends on the number of workers, and a pass cannot be resumed in its middle.
"""

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import webdataset as wds
from PIL import Image
from webdataset.utils import pytorch_worker_info

from data import bounds
from data.errors import BadSample, DataError, Unreadable
from data.images.decode import decode as decode_image
from data.loading.ranges import Read, Sample, UnreadableSample, fetch, plan_reads
from data.shards import fields
from data.shards.index import Index, open_index

Handler = Callable[[Exception], bool]  # True: go on without what failed. False: end the pass. Or it raises.
Fetched = dict[int, Sample | UnreadableSample]  # by sample id


class IndexedSet(wds.WebDataset):
    """A `webdataset.WebDataset` over the shards of an index. It gives each sample as WebDataset does, undecoded:

        {"__key__": "000017", "__url__": "gs://bucket/train/000000.tar", "__id__": 17, "jpg": b"...", "cls": b"3"}

    `__id__` is the sample id, as in the index, in exclusion lists and in quarantine.jsonl.

    Attributes:
        index: the set, with `num_samples` and `num_classes`.
    """

    def __init__(self, index: Index, *, shuffle: int, handler: Handler) -> None:
        self.index = index
        stages = [_Shards(index), wds.split_by_node, wds.split_by_worker, _Read(index, handler)]
        if shuffle:
            stages.insert(3, _Shuffle(len(index.shards), initial=len(index.shards)))
            stages.append(_Shuffle(shuffle))
        wds.DataPipeline.__init__(self, *stages)  # WebDataset's own would open and parse the tars itself


def webdataset(
    url: str,
    *,
    shuffle: int = 0,
    decode: Literal["pil", "uint8"] | None = "pil",
    handler: Handler = wds.reraise_exception,
) -> IndexedSet:
    """A `webdataset.WebDataset` over an indexed set: `for image, label in data.webdataset("gs://bucket/train")`.

    One pass gives every sample exactly once over all nodes (torch.distributed, or RANK and WORLD_SIZE) and all workers
    of a DataLoader: each has whole shards of its own, the same ones in every pass. So nodes differ in their number of
    samples. All methods of WebDataset can follow: `.map_tuple(transform, None)`, `.batched(64)`, `.repeat()` ...

    Args:
        url: the set's folder or its index.json, in any store.
        shuffle: shuffles each worker's shards, and their samples in a buffer of this many. Each pass has another order:
            seeds come from Python's `random`, which torch.manual_seed decides in a DataLoader's workers. 0: storage
            order.
        decode: "pil" gives pairs of an RGB `PIL.Image.Image` and its label, "uint8" pairs of an RGB array, uint8
            (height, width, 3), and its label. A label is an int; in a multi-label set it is an array, float32
            (num_classes,), with the weight of each class. None gives undecoded samples, as `IndexedSet` says.
        handler: called with the error of a shard or of a sample. The default raises it.
            `webdataset.warn_and_continue` goes on without what failed, and a warning says what that is.

    Raises:
        DataError: there is no index at `url`. In a pass: a shard that cannot be read, or is not as indexed; an image or
            a label that the loader would not use, either; fewer shards than nodes.
        ValueError: another `decode` or a negative `shuffle`.
    """
    if decode not in ("pil", "uint8", None):
        raise ValueError(f"decode {decode!r} is none of 'pil', 'uint8' and None")
    if shuffle < 0:
        raise ValueError(f"shuffle {shuffle} is negative")
    index = open_index(url)
    if decode and index.multi_label and index.num_classes > bounds.CLASSES:
        raise DataError(
            f"{index.url}: {index.num_classes:,} classes are more than {bounds.CLASSES:,}: too many for an array of "
            "weights; use decode=None, or index again with --num-classes"
        )
    dataset = IndexedSet(index, shuffle=shuffle, handler=handler)
    return dataset if decode is None else dataset.map(_Pair(index, decode), handler=handler)


class _Shards:
    """First stage: the shards of the index, in its order."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def __call__(self) -> Iterator[dict[str, Any]]:
        shards, nodes = len(self._index.shards), pytorch_worker_info()[1]
        if shards < nodes:
            raise DataError(f"{self._index.url}: {shards} shards cannot be split among {nodes} nodes; pack more shards")
        for number in range(shards):
            yield {"url": self._index.shard_url(number), "number": number}


class _Shuffle:
    """WebDataset's shuffle, with another order in every pass."""

    def __init__(self, size: int, **options: int) -> None:
        self._size, self._options = size, options

    def __call__(self, source: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        rng = random.Random(random.getrandbits(64))
        shuffled: Iterator[dict[str, Any]] = wds.shuffle(self._size, rng=rng, **self._options)(iter(source))
        return shuffled


class _Read:
    """The samples of shards, whose next range is read while the present one is used."""

    def __init__(self, index: Index, handler: Handler) -> None:
        self._index, self._handler = index, handler

    def __call__(self, shards: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for read, coming in self._ahead(read for shard in shards for read in self._reads(shard["number"])):
            try:
                found = coming.result()
            except Unreadable as error:
                if not self._handler(Unreadable(f"{error} ({read.count} samples are missing)", away=error.away)):
                    return
                continue
            for sample_id, sample in found.items():
                if isinstance(sample, Sample):
                    names = {"__key__": sample.key, "__url__": sample.shard, "__id__": sample_id}
                    yield names | sample.fields
            if (missing := _missing(read, found)) is not None and not self._handler(missing):
                return

    def _reads(self, number: int) -> list[Read]:
        return plan_reads(self._index, np.arange(*self._index.starts[number : number + 2]))

    def _ahead(self, reads: Iterator[Read]) -> Iterator[tuple[Read, Future[Fetched]]]:
        pool = ThreadPoolExecutor(1, thread_name_prefix="data-webdataset")
        try:
            waiting: deque[tuple[Read, Future[Fetched]]] = deque()
            for read in reads:
                waiting.append((read, pool.submit(fetch, self._index, read, keep=None)))
                if len(waiting) > 1:
                    yield waiting.popleft()
            yield from waiting
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _missing(read: Read, found: Fetched) -> Unreadable | None:
    """The error of a shard that ends before the range does."""
    lost = [sample for sample in found.values() if isinstance(sample, UnreadableSample)]
    if not lost:
        return None
    place = f"bytes {read.begin} to {read.end}"
    return Unreadable(f"{lost[0].shard}: {lost[0].cause} in {place} ({len(lost)} samples are missing)")


class _Pair:
    """A sample's image and label, by the loader's rules."""

    def __init__(self, index: Index, decode: Literal["pil", "uint8"]) -> None:
        self._index, self._decode = index, decode

    def __call__(self, sample: dict[str, Any]) -> tuple[Image.Image | np.ndarray, int | np.ndarray]:
        try:
            labels = self._index.label_rule().usable(sample, self._index.num_classes, self._index.multi_label)
            pixels = decode_image(fields.image_bytes(sample))
        except BadSample as bad:
            raise DataError(f"{sample['__url__']}: sample {sample['__key__']!r}: {bad.cause}") from bad
        return Image.fromarray(pixels) if self._decode == "pil" else pixels, self._label(labels)

    def _label(self, labels: fields.Labels) -> int | np.ndarray:
        if not self._index.multi_label:
            return labels.classes[0]
        weights = np.zeros(self._index.num_classes, np.float32)
        weights[list(labels.classes)] = labels.weights
        return weights

"""Images to indexed WebDataset shards, in parallel. A killed run continues with the shards that are missing.

The contents of every shard are fixed before anything is written. The N items of a source are permuted by a seed, unless
they are already mixed, and cut into M = ceil(N / n) runs: run s is N s // M .. N (s + 1) // M - 1, so their lengths
differ by at most one. So shards can be made in any order, by any number of processes and several times, and their bytes
are always the same.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data import storage
from data.errors import BadSample, Cause, DataError
from data.images.signature import why_unusable
from data.images.transcode import Transcode
from data.packing import notes
from data.packing.alone import alone_in
from data.packing.notes import Entry
from data.packing.source import Item, Reading, Skipped, Source
from data.progress import Progress
from data.ray_session import Calls, Runner, in_process
from data.shards import tar
from data.shards.class_names import CLASSES_NAME, text_list
from data.shards.contents import Contents, contents_index
from data.shards.fields import IMAGE_EXTENSIONS
from data.shards.index import INDEX_NAME, Index, Shard, write_index
from data.shards.label_rule import CLEAR
from data.shards.writer import ShardWriter
from data.splitmix import Purpose, key, permutation
from data.version import VERSION as PROGRAM_VERSION

SHARD_BYTES = 200_000_000  # long reads, and thousands of shards for the largest sets
FEWEST_SHARDS = 16  # of a small set, so that it is packed in parallel, too
SMALLEST_SHARD = 256  # samples of a small set's shards: fewer shards come before smaller ones
VERSION = 1  # of the shards that the same source and options give


@dataclass(frozen=True)
class Options:
    """How to pack.

    Attributes:
        shuffle_seed: of the permutation of the items. None keeps the source's order; mixed sources always keep it.
        samples_per_shard: most samples of a shard. 0: shards of about 200 MB before transcoding, and at least 16 of
            them if the set has enough samples.
        full_shards: fill all shards but the last, instead of balancing them.
        transcode: the change of each image; None keeps its bytes.
    """

    shuffle_seed: int | None = 0
    samples_per_shard: int = 0
    full_shards: bool = False
    transcode: Transcode | None = None


DEFAULTS = Options()


@dataclass(frozen=True)
class Packed:
    """The set at the destination. What the source's listing found is packed, or merged, or skipped.

    Attributes:
        wrote: whether this call wrote it.
        skipped: number of things that were left out, by reason.
        found: number of things that the listing met (`Source.found`).
        merged: number of things that became part of another thing's sample.
    """

    index: Index
    wrote: bool
    skipped: dict[str, int]
    found: int
    merged: int


def pack(
    folder: str,
    source: Source,
    options: Options = DEFAULTS,
    *,
    runner: Runner = in_process,
    force: bool = False,
    show_progress: bool = False,
) -> Packed:
    """Write the items of `source` as shards 000000.tar, 000001.tar ... with an index, to any fsspec URL.

    Items that cannot be samples are left out, counted by reason and listed in skipped.jsonl. Class names go to the
    index, and for people to classes.txt. A complete folder is not touched; an interrupted packing is completed.

    Args:
        runner: runs the calls that make the shards (data.ray_session.session); by default this process does.
        force: replace any content of the folder.

    Raises:
        DataError: the folder holds another set, an item cannot be read, nothing is left to pack, or the source lost
            something that it had found.
    """
    folder = storage.absolute(folder)
    balance(source, len(source), source.skipped)
    if not len(source):
        raise _nothing(folder, source, source.skipped)
    plan = _plan(source, options)
    with alone_in(folder):
        if not force and (index := notes.complete(folder, plan["source"])) is not None:
            return _packed_before(folder, index)
        return _pack(folder, source, options, plan, runner, force, show_progress)


def _pack(
    folder: str,
    source: Source,
    options: Options,
    plan: dict[str, Any],
    runner: Runner,
    force: bool,
    show_progress: bool,
) -> Packed:
    """Write the shards that are missing, and the index."""
    order = (
        None if plan["shuffle_seed"] is None else permutation(key(Purpose.PACKING, plan["shuffle_seed"]), len(source))
    )
    edges = _edges(plan)
    shards: dict[int, Shard] = {}
    skipped: dict[int, list[Skipped]] = {}
    contents = Contents(multi_label=source.multi_label)

    def take(entry: Entry) -> None:
        shards[entry.number], skipped[entry.number] = entry.shard, entry.skipped
        contents.update(entry.contents)

    for entry in () if force else notes.resume(folder, plan):
        take(entry)
    if not shards:
        notes.start(folder, plan)
    lengths = np.diff(edges)
    todo = [number for number in range(plan["shards"]) if number not in shards]

    def call(number: int) -> tuple[Any, ...]:
        reading = source.reading(_positions(order, edges, number))
        return folder, number, reading, source.num_classes, options.transcode

    shown: AbstractContextManager[Progress | None] = nullcontext()
    if show_progress:
        shown = Progress(f"packing {source.name}", "images", len(source), len(source) - int(lengths[todo].sum()))
    with shown as progress:
        for entry in runner(pack_shard, Calls(call, todo)):
            take(entry)
            if progress is not None:
                progress.advance(int(lengths[entry.number]))
    left_out = [*source.skipped, *(one for number in range(plan["shards"]) for one in skipped[number])]
    found = balance(source, sum(shard.samples for shard in shards.values()), left_out)
    reasons = _by_reason(left_out)
    about = {"packed_by": PROGRAM_VERSION, "found": found, "merged": source.merged, "skipped": reasons}
    index = _conclude(folder, source, plan, shards, contents, left_out, {**source.about, **about})
    return Packed(index, True, reasons, found, source.merged)


def balance(source: Source, packed: int, left_out: Sequence[Skipped]) -> int:
    """The number of things that the source's listing found, which all must have gone somewhere.

    Raises:
        DataError: some are neither packed nor merged nor skipped, or there are more than were found.
    """
    skipped = sum(one.things for one in left_out)
    gone = packed + source.merged + skipped
    found = gone if source.found is None else source.found
    if found != gone:
        raise DataError(
            f"{source.name}: found {found:,} things, but {packed:,} packed + {source.merged:,} merged + {skipped:,} "
            f"skipped make {gone:,}: the program lost count; nothing is indexed, please report it"
        )
    return found


def pack_shard(folder: str, number: int, reading: Reading, num_classes: int, transcode: Transcode | None) -> Entry:
    """Write one shard and then its note. It runs in any process.

    Raises:
        DataError: an item cannot be read, or the shard cannot be written.
    """
    contents, skipped = Contents(), []
    name = notes.tar_name(number)
    with ShardWriter(folder, name) as writer:
        for one in reading():
            item = _prepared(one, num_classes, transcode)
            if isinstance(item, Skipped):
                skipped.append(item)
            else:
                writer.write(item.key, item.fields)
                contents.add(item.fields)
        shard = writer.close()
    entry = Entry(number, shard, contents, skipped)
    notes.finish(folder, entry)
    return entry


def _prepared(one: Item | Skipped, num_classes: int, transcode: Transcode | None) -> Item | Skipped:
    """The item as it goes into the shard, or the reason why it is left out."""
    if isinstance(one, Skipped):
        return one
    if not _is_key(one.key):
        return Skipped(one.key, "name that cannot be a WebDataset key")
    try:
        classes = CLEAR.labels(one.fields).classes
        if num_classes and any(number >= num_classes for number in classes):
            return Skipped(one.key, Cause.OUTSIDE)
        if transcode is None:
            return one
        pairs = (
            _transcoded(transcode, extension, content) if extension in IMAGE_EXTENSIONS else (extension, content)
            for extension, content in one.fields.items()
        )
        return Item(one.key, dict(pairs))
    except BadSample as bad:
        return Skipped(one.key, bad.cause)


def _is_key(key: str) -> bool:
    """Whether readers find a sample of this key in a tar."""
    try:
        key.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a character that no file's name holds, but an object's may
        return False
    return "\0" not in key and tar.split_name(f"{key}.jpg") == (key, "jpg")


def _transcoded(transcode: Transcode, extension: str, content: bytes) -> tuple[str, bytes]:
    try:
        return transcode(extension, content)
    except BadSample as bad:
        if bad.cause == Cause.UNDECODABLE:
            raise BadSample(why_unusable(content)) from bad
        raise


def _plan(source: Source, options: Options) -> dict[str, Any]:
    """Everything that decides the bytes of the shards, and the name of it that the index keeps."""
    per_shard = options.samples_per_shard or _default_samples(source)
    plan = {
        "version": VERSION,
        "name": source.name,
        "fingerprint": source.fingerprint,
        "items": len(source),
        "shards": max(1, -(-len(source) // per_shard)),
        "full_shards": per_shard if options.full_shards else None,
        "shuffle_seed": None if source.mixed else options.shuffle_seed,
        "transcode": asdict(options.transcode) if options.transcode else None,
    }
    identity = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:12]
    return plan | {"source": f"{source.name} {identity}" if source.fingerprint else source.name}


def _default_samples(source: Source) -> int:
    by_bytes = max(1, int(SHARD_BYTES / max(source.mean_bytes, 1.0)))
    return min(by_bytes, max(SMALLEST_SHARD, -(-len(source) // FEWEST_SHARDS)))


def _edges(plan: dict[str, Any]) -> np.ndarray:
    """The position in the order at which each shard begins, and last the order's length: int64 (shards + 1,)."""
    numbers = np.arange(plan["shards"] + 1, dtype=np.int64)
    if plan["full_shards"]:
        return np.minimum(numbers * plan["full_shards"], plan["items"])
    return numbers * plan["items"] // plan["shards"]


def _positions(order: np.ndarray | None, edges: np.ndarray, number: int) -> np.ndarray:
    begin, end = edges[number], edges[number + 1]
    return np.arange(begin, end) if order is None else order[begin:end]


def _conclude(
    folder: str,
    source: Source,
    plan: dict[str, Any],
    shards: dict[int, Shard],
    contents: Contents,
    left_out: Sequence[Skipped],
    about: Mapping[str, Any],
) -> Index:
    """Write the lists and last the index; remove empty shards and the notes."""
    kept = [shards[number] for number in sorted(shards) if shards[number].samples]
    if not kept:
        notes.clear(folder)
        for number in shards:
            storage.remove(storage.join(folder, notes.tar_name(number)))
        raise _nothing(folder, source, left_out)
    for number in shards:
        if not shards[number].samples:
            storage.remove(storage.join(folder, notes.tar_name(number)))
    skipped = "".join(f"{_skipped_line(one)}\n" for one in left_out).encode()
    for name, content in ((notes.SKIPPED, skipped), (CLASSES_NAME, text_list(source.class_names))):
        if content:
            storage.write_atomic(storage.join(folder, name), content)
    index_url = storage.join(folder, INDEX_NAME)
    index = contents_index(
        index_url,
        kept,
        contents,
        plan["source"],
        num_classes=source.num_classes,
        class_names=source.class_names,
        about=about,
    )
    write_index(index)
    notes.clear(folder)
    return index


def _nothing(folder: str, source: Source, left_out: Sequence[Skipped]) -> DataError:
    counts = _by_reason(left_out)
    reasons = ", ".join(f"{count:,} x {reason}" for reason, count in counts.items())
    return DataError(f"{folder}: {source.name} gave nothing to pack ({reasons or 'it is empty'})")


def _packed_before(folder: str, index: Index) -> Packed:
    """The complete set that is there. An index of an earlier version does not say what was found."""
    url = storage.join(folder, notes.SKIPPED)
    reasons = _by_reason(notes.read_skipped(url) if storage.exists(url) else [])
    merged = int(index.about.get("merged", 0))
    found = int(index.about.get("found", index.num_samples + merged + sum(reasons.values())))
    return Packed(index, False, reasons, found, merged)


def _skipped_line(one: Skipped) -> str:
    """A line of skipped.jsonl. The number of things is stated if it is not 1."""
    record: dict[str, Any] = {"key": one.key, "reason": one.reason}
    return json.dumps(record if one.things == 1 else record | {"things": one.things})


def _by_reason(left_out: Iterable[Skipped]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for one in left_out:
        counts[one.reason] += one.things
    return dict(counts.most_common())

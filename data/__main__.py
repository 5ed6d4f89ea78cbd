"""Command line of the data plane: `python -m data COMMAND --help`."""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from data import storage
from data.decode import decode
from data.errors import BadSample, DataError
from data.fields import image_bytes
from data.index import Index, open_index
from data.pack import index_shards
from data.reader import fetch, plan_reads
from data.sources import SOURCES

PEEKED_SAMPLES = 64
PROGRESS_SECONDS = 5.0

PACK_HELP = """\
Make WebDataset shards with an index.json beside them, or only the index for shards that exist.

  python -m data pack digits DEST        scikit-learn's 1,797 digits to DEST/train and DEST/test
  python -m data pack --index-only URL   index tars made by any WebDataset writer, where they are

DEST and URL are local folders or anything fsspec opens (gs://bucket/path, s3://bucket/path); URL may also be one
tar or a pattern such as 'gs://bucket/train/{00000..00999}.tar'. Samples are an image (.jpg .jpeg .png .webp) and its
labels (.cls: a number, or several; .json: {"label": 3} or {"labels": [3, 7], "weights": [1, 0.5]}).
What is there and complete is left alone.
"""


class Parser(argparse.ArgumentParser):
    """Errors as everywhere in this project: one line on stderr, exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help explains)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        facts = options.run(options)
    except (DataError, OSError) as error:
        print(f"python -m data {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(facts))
    return 0


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="python -m data", description="WebDataset shards: make, index, look at.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    pack = commands.add_parser(
        "pack",
        help="images to shards with an index, or an index for existing shards",
        description=PACK_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    pack.add_argument("source", nargs="?", choices=sorted(SOURCES), help="where the images come from")
    pack.add_argument("dest", nargs="?", help="folder to write to")
    pack.add_argument("--index-only", metavar="URL", help="index the tars at URL instead")
    pack.add_argument("--workers", type=int, default=1, metavar="N", help="processes that scan for --index-only (1)")
    pack.add_argument("--force", action="store_true", help="replace what is at DEST, whatever it is")
    pack.set_defaults(run=lambda options: run_pack(pack, options))

    show = commands.add_parser("show", help="print what a data set holds", description="Print what a data set holds.")
    show.add_argument("url", metavar="URL", help="its folder or its index.json")
    show.set_defaults(run=run_show)

    for command in (pack, show):
        command.add_argument("--json", action="store_true", help="print one JSON object last")
    return top


def run_pack(command: argparse.ArgumentParser, options: argparse.Namespace) -> dict[str, object]:
    if options.index_only:
        if options.source or options.workers < 1:
            command.error("--index-only takes one URL, no SOURCE, and at least one worker")
        return run_index_only(options.index_only, options.workers)
    if not (options.source and options.dest):
        command.error("give SOURCE and DEST, or --index-only URL")
    wrote = SOURCES[options.source](options.dest, options.force)
    splits = {split: open_index(storage.join(options.dest, split)) for split in ("train", "test")}
    for index in splits.values():
        print(f"{'packed' if wrote else 'already packed'}: {_summary(index)}")
    return {"packed": wrote} | {split: _facts(index) for split, index in splits.items()}


def run_index_only(url: str, workers: int) -> dict[str, object]:
    began = reported = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal reported
        now = time.monotonic()
        if now - reported >= PROGRESS_SECONDS and done < total:
            reported = now
            left = (now - began) / done * (total - done)
            print(f"{done:,} of {total:,} shards, {left:,.0f} s left", file=sys.stderr)

    index, contents = index_shards(url, workers=workers, progress=progress)
    for count, what in ((contents.unlabelled, "readable label"), (contents.without_image, "image")):
        if count:
            print(f"{count:,} samples without a {what}: their slots will be masked", file=sys.stderr)
    print(f"indexed: {_summary(index)}")
    return _facts(index) | {"unlabelled": contents.unlabelled, "without_image": contents.without_image}


def run_show(options: argparse.Namespace) -> dict[str, object]:
    index = open_index(options.url)
    counts = [shard.samples for shard in index.shards]
    print(storage.parent(index.url))
    print(f"  samples  {index.num_samples:,} in {len(counts):,} shards of {min(counts):,} to {max(counts):,}")
    print(f"  classes  {index.num_classes:,}, {'any number of labels' if index.multi_label else 'one label'} an image")
    print(f"  bytes    {index.num_bytes:,}, {index.num_bytes / max(index.num_samples, 1):,.0f} a sample")
    print(f"  images   {_image_sizes(index)}")
    print(f"  fields   {', '.join(index.extensions)}")
    print(f"  source   {index.source or 'another tool'}")
    print(f"  digest   {index.digest}")
    return _facts(index)


def _summary(index: Index) -> str:
    return (
        f"{index.num_samples:,} samples of {index.num_classes:,} classes in {len(index.shards):,} shards, "
        f"{index.num_bytes:,} bytes, at {storage.parent(index.url)}"
    )


def _facts(index: Index) -> dict[str, object]:
    return {
        "url": index.url,
        "num_samples": index.num_samples,
        "shards": len(index.shards),
        "bytes": index.num_bytes,
        "num_classes": index.num_classes,
        "multi_label": index.multi_label,
        "extensions": list(index.extensions),
        "source": index.source,
        "digest": index.digest,
    }


def _image_sizes(index: Index) -> str:
    """Sizes of the first images, the commonest first."""
    sizes: Counter[str] = Counter()
    for read in plan_reads(index, np.arange(min(PEEKED_SAMPLES, index.num_samples))):
        for sample in fetch(index, read).values():
            try:
                height, width, _ = decode(image_bytes(sample.fields)).shape
                sizes[f"{width}x{height}"] += 1
            except BadSample as bad:
                sizes[bad.cause] += 1
    common = ", ".join(f"{count} of {size}" for size, count in sizes.most_common(3))
    return f"{common}{' ...' if len(sizes) > 3 else ''} (first {sizes.total()}; width x height)"


if __name__ == "__main__":
    sys.exit(main())

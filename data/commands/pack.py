"""`python -m data pack`."""

import argparse
import sys
import time

from data import storage
from data.commands.parsing import Commands, Outcome, facts, summary
from data.index import open_index
from data.pack import index_shards
from data.sources import SOURCES

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


def add(commands: "Commands[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Put the command on the command line."""
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
    return pack


def run_pack(command: argparse.ArgumentParser, options: argparse.Namespace) -> Outcome:
    if options.index_only:
        if options.source or options.workers < 1:
            command.error("--index-only takes one URL, no SOURCE, and at least one worker")
        return run_index_only(options.index_only, options.workers)
    if not (options.source and options.dest):
        command.error("give SOURCE and DEST, or --index-only URL")
    wrote = SOURCES[options.source](options.dest, options.force)
    splits = {split: open_index(storage.join(options.dest, split)) for split in ("train", "test")}
    for index in splits.values():
        print(f"{'packed' if wrote else 'already packed'}: {summary(index)}")
    return {"packed": wrote} | {split: facts(index) for split, index in splits.items()}, 0


def run_index_only(url: str, workers: int) -> Outcome:
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
    print(f"indexed: {summary(index)}")
    return facts(index) | {"unlabelled": contents.unlabelled, "without_image": contents.without_image}, 0

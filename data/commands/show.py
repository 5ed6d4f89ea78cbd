"""`python -m data show`."""

import argparse
import heapq
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from data import storage
from data.commands.contact_sheet import Found, Tile, contact_sheet, find, spread_ids, write_picture
from data.commands.parsing import Commands, Outcome, facts, stated
from data.shards.class_names import class_names, shown
from data.shards.index import Index, open_index

COLUMNS, ROWS = 8, 6
READ_THREADS = 8
SHEET_NAME = "sheet.jpg"
LARGEST = 5

HELP = """\
Print what a data set holds, and draw a sheet of samples with their labels, evenly spread over all shards. Samples that
cannot be used are red, with the cause. The names of the classes are those in the index, or else the lines of
classes.txt beside it.
"""


def add(commands: "Commands[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Add the command to the command line."""
    show = commands.add_parser(
        "show",
        help="print what a data set holds, and draw samples",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    show.add_argument("url", metavar="URL", help="the data set's folder or its index.json")
    sheet = show.add_mutually_exclusive_group()
    sheet.add_argument(
        "--sheet", metavar="FILE", default=SHEET_NAME, help=f"the picture, a .jpg or .png ({SHEET_NAME})"
    )
    sheet.add_argument("--no-sheet", action="store_true", help="write no picture")
    show.set_defaults(run=run_show)
    return show


def run_show(options: argparse.Namespace) -> Outcome:
    index = open_index(options.url)
    names = class_names(index)
    counts = [shard.samples for shard in index.shards]
    with ThreadPoolExecutor(READ_THREADS) as pool:
        found = list(pool.map(partial(find, index), spread_ids(index, COLUMNS * ROWS)))
    print(storage.parent(index.url))
    print(f"  samples  {index.num_samples:,} in {len(counts):,} shards of {min(counts):,} to {max(counts):,}")
    print(f"  classes  {index.num_classes:,}, {'any number of labels' if index.multi_label else 'one label'} an image")
    for line in _class_lines(index, names):
        print(f"           {line}")
    if how := stated(index):
        print(f"  labels   {how}")
    print(f"  bytes    {index.num_bytes:,}, {index.num_bytes / max(index.num_samples, 1):,.0f} a sample")
    print(f"  images   {_image_sizes(found)}")
    print(f"  fields   {', '.join(index.extensions)}")
    print(f"  source   {index.source or 'another tool'}")
    print(f"  version  {index.about.get('packed_by', 'unknown: an earlier one')}")
    if "merge_identical" in index.about:
        print(f"  merged   {_merged(index)}")
    print(f"  digest   {index.digest}")
    record = facts(index) | {"label_counts": {str(label): count for label, count in sorted(index.label_counts.items())}}
    if not options.no_sheet:
        write_picture(options.sheet, contact_sheet([_tile(one, names) for one in found], COLUMNS))
        print(f"  sheet    {len(found)} samples in {options.sheet}")
        record["sheet"] = options.sheet
    return record, 0


def _merged(index: Index) -> str:
    """What became of files with the same bytes."""
    if not index.about["merge_identical"]:
        return "none: files with the same bytes are samples of their own"
    merged = index.about.get("merged", 0)
    return f"{merged:,} files with the bytes of another one, whose sample has the classes of all"


def _class_lines(index: Index, names: Sequence[str]) -> list[str]:
    """The distribution of the images over the classes, if the index has it."""
    if not index.label_counts:
        return []
    counts = sorted(index.label_counts.values())  # of the classes that have images: the others are only a claim
    empty = index.num_classes - len(counts)
    middle = ((index.num_classes - 1) // 2 - empty, index.num_classes // 2 - empty)
    median = sum(counts[place] if place >= 0 else 0 for place in middle) / 2
    lines = [f"{0 if empty else counts[0]:,} to {counts[-1]:,} images a class, median {median:,.0f}"]
    if empty:
        lines.append(f"{empty:,} without an image")
    largest = heapq.nsmallest(LARGEST, index.label_counts.items(), key=lambda pair: (-pair[1], pair[0]))
    common = ", ".join(f"{_class_name(label, names)} ({count:,})" for label, count in largest)
    return [*lines, f"largest: {common}"]


def _class_name(label: int, names: Sequence[str]) -> str:
    return f"{label} {shown(names[label])}" if label < len(names) else str(label)


def _image_sizes(found: Sequence[Found]) -> str:
    """The sizes of the images, the most frequent first."""
    sizes = Counter(f"{one.size[1]}x{one.size[0]}" if one.size else one.cause for one in found)
    common = ", ".join(f"{count} of {size}" for size, count in sizes.most_common(3))
    return f"{common}{' ...' if len(sizes) > 3 else ''} ({len(found)} samples; width x height)"


def _tile(found: Found, names: Sequence[str]) -> Tile:
    caption = ", ".join(_class_name(label, names) for label in found.classes) or found.key
    return Tile(found.image, caption, found.cause)

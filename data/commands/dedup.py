"""`python -m data dedup`."""

import argparse
import sys
from collections.abc import Sequence

from data import storage
from data.commands.contact_sheet import Tile, contact_sheet, find, write_picture
from data.commands.parsing import Commands, Outcome
from data.dedup import search
from data.errors import DataError
from data.order.exclude import Excluded, write_exclusions
from data.parallel import usable_cpus
from data.progress import Progress
from data.shards.index import Index, open_index

EXAMPLES = 5
PAIRS = 24
PAIRS_A_ROW = 4

HELP = """\
Find images of a data set that are near-duplicates of downstream test images: resized, recompressed, brightened,
mirrored, grey, or cropped by up to about a tenth.

  python -m data dedup gs://bucket/train --against /data/cifar/test /data/pets/test

Writes the list of samples to leave out; the data set and its index do not change. Training leaves them out if the job
names the list. Look at some pairs before you use it: --sheet pairs.jpg draws the most doubtful ones. Drawings of a few
pixels, such as digits, resemble each other without being copies.
The exit code is 1 if a shard could not be read: then the list is not complete.
"""


def add(commands: "Commands[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Add the command to the command line."""
    command = commands.add_parser(
        "dedup",
        help="find near-duplicates of test images",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("url", metavar="URL", help="the training set's folder or its index.json")
    command.add_argument("--against", metavar="URL", nargs="+", required=True, help="packed downstream test sets")
    command.add_argument("--out", metavar="URL", help="file of the list (exclusions.json beside the index)")
    command.add_argument("--sheet", metavar="FILE", help=f"draw the {PAIRS} most doubtful pairs: a .jpg or .png")
    command.add_argument(
        "--workers",
        type=int,
        default=usable_cpus(),
        metavar="N",
        help="most processes, which start if that ends sooner (one a core)",
    )
    command.set_defaults(run=lambda options: run_dedup(command, options))
    return command


def run_dedup(command: argparse.ArgumentParser, options: argparse.Namespace) -> Outcome:
    if options.workers < 1:
        command.error("--workers is at least 1")
    index = open_index(options.url)
    tests = [open_index(url) for url in options.against]
    for test in tests:
        if test.digest == index.digest:
            raise DataError(f"{storage.parent(test.url)}: this is the data set itself: every image would be left out")
    out = options.out or storage.join(storage.parent(index.url), "exclusions.json")
    _check_writable(out)

    images, sets = search.hash_test_sets(tests, options.workers)
    if not len(images.source):
        raise DataError(f"{', '.join(options.against)}: no image to compare with: all are blank or unreadable")
    found: list[Excluded] = []
    unread: list[str] = []
    blank = bad = 0
    with Progress("dedup", "images", index.num_samples) as progress:
        for number, compared in enumerate(search.compare(index, images, options.workers)):
            found += search.excluded(index, number, compared, images, sets)
            blank, bad = blank + compared.blank, bad + compared.bad
            if compared.fault:
                unread.append(index.shards[number].url)
                print(f"{unread[-1]}: not compared to its end: {compared.fault}", file=sys.stderr)
            progress.advance(compared.samples)
    against = [
        {
            "url": test.url,
            "digest": test.digest,
            "images": test.num_samples,
            "compared": len(one.names),
            "blank": one.blank,
            "unreadable": one.bad,
            "excluded": sum(each.against == number for each in found),
        }
        for number, (test, one) in enumerate(zip(tests, sets, strict=True))
    ]
    with storage.reporting(out):
        write_exclusions(out, index, found, against=against, method=search.METHOD, unread=unread)
    if options.sheet:
        _draw_pairs(options.sheet, index, tests, found)

    excluded = len({one.id for one in found})
    share = excluded / max(index.num_samples, 1)
    print(f"{excluded:,} of {index.num_samples:,} images ({share:.2%}) are near-duplicates of test images")
    _print_examples(tests, found)
    for count, what in ((blank, "blank images"), (bad, "unreadable images")):
        if count:
            print(f"  {count:,} {what} were not compared")
    print(f"written to {out}")
    record = {"url": index.url, "out": out, "num_samples": index.num_samples, "excluded": excluded}
    return record | {"against": against, "blank": blank, "unreadable": bad, "unread": unread}, 1 if unread else 0


def _print_examples(tests: Sequence[Index], found: Sequence[Excluded]) -> None:
    """Print how many images each test set excludes, with a few of them."""
    for number, test in enumerate(tests):
        mine = [one for one in found if one.against == number]
        hit = len({one.test_id for one in mine})
        place = storage.parent(test.url)
        print(f"  {len(mine):,} repeat {hit:,} of the {test.num_samples:,} images at {place}")
        for one in mine[:EXAMPLES]:
            print(f"    {one.shard} {one.key} = {one.test_shard} {one.test_key} (likeness {one.likeness:.2f})")
        if len(mine) > EXAMPLES:
            print("    ...")


def _check_writable(url: str) -> None:
    """Check that the list can be written, before hours of comparing.

    Raises:
        DataError: it cannot be written.
    """
    trial = f"{url}.trial"
    try:
        with storage.reporting(url):
            storage.write_atomic(trial, b"")
            storage.remove(trial)
    except DataError as error:
        raise DataError(f"{error}; choose another place with --out") from error


def _draw_pairs(path: str, index: Index, tests: Sequence[Index], found: Sequence[Excluded]) -> None:
    doubtful = sorted(found, key=lambda one: (one.likeness, one.id))[:PAIRS]
    tiles: list[Tile] = []
    for one in doubtful:
        train, test = find(index, one.id), find(tests[one.against], one.test_id)
        tiles.append(Tile(train.image, f"train {one.key}  {one.likeness:.2f}", train.cause))
        tiles.append(Tile(test.image, f"test {one.test_key}", test.cause))
    write_picture(path, contact_sheet(tiles, columns=2 * PAIRS_A_ROW, group=2))
    print(f"{len(doubtful)} pairs drawn in {path}")

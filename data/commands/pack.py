"""`python -m data pack`. The options of each source are in pack_sources.py."""

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from data import bounds, storage
from data.commands.pack_options import positive
from data.commands.pack_sources import add_sources, class_count
from data.commands.parsing import Commands, Outcome, facts, stated, summary
from data.errors import DataError
from data.packing.pack import Packed, pack
from data.packing.scan import find_shards, index_shards
from data.progress import Progress
from data.ray_session import session
from data.shards.class_names import read_class_list, warn_of_one_based, warn_of_untrained
from data.shards.index import CLASS_MAP, MEASURE_ONLY, open_index
from data.shards.label_rule import CLEAR, KINDS, LabelRule

PACK_HELP = """\
Make WebDataset shards with an index.json beside them, or only the index of existing shards.

  python -m data pack SOURCE DEST ...    images to shards; `python -m data pack SOURCE --help` explains each SOURCE
  python -m data pack --index-only URL   index the tars of any WebDataset writer in place

DEST and URL are local folders or URLs of any store of fsspec (gs://bucket/path, s3://bucket/path). URL may also be a
tar, or a pattern such as 'gs://bucket/train/{00000..00999}.tar'. A sample is an image (.jpg .jpeg .png .webp) and its
labels (.cls: one number or several; .json: {"label": 3} or {"labels": [3, 7], "weights": [1, 0.5]}; text of a number,
such as "3" or 3.0, is a number). Labels in another place or of another kind are stated once, when the tars are indexed,
and the index keeps the statement:

  --label-key annotation.category        a key of .json; a dot leads to an inner key, a number to a place in a list
  --label-kind number                    class numbers, also in a list under a key that is not "labels"
  --label-kind name                      names of classes, numbered in sorted order, or as the list --classes says
  --label-kind one-hot                   lists of zeros and ones, one for each class
  --unlabelled                           there are no labels, or few

Tars that are indexed again without these options are read as their index says already.

A complete set is not touched; an interrupted packing continues. The bytes of the shards depend on the source and its
options, not on --workers. More than one worker run on Ray: on the cluster that RAY_ADDRESS names, whose machines must
all see the images and DEST, or else on a private cluster on this machine. This process makes the first shards itself,
and measures: Ray is started once it would end the rest sooner, with the 15 seconds that its start takes.
"""


def add(commands: "Commands[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Add the command to the command line."""
    command = commands.add_parser(
        "pack",
        help="images to shards with an index, or an index for existing shards",
        description=PACK_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--index-only", metavar="URL", help="only index the tars at URL")
    command.add_argument("--num-classes", type=class_count, metavar="N", help="number of classes (largest label + 1)")
    command.add_argument(
        "--label-key",
        dest="key_of_label",
        type=label_key,
        metavar="KEY",
        help="with --index-only: the label's key in .json, as a.b",
    )
    command.add_argument(
        "--label-kind", dest="kind_of_label", choices=KINDS, help="with --index-only: what labels are (numbers)"
    )
    command.add_argument(
        "--classes",
        dest="class_list",
        metavar="FILE",
        help="with --index-only: names by class number: an index, a JSON list, or text with one a line (those found)",
    )
    command.add_argument(
        "--unlabelled", action="store_true", help="with --index-only: index a set without any readable label, too"
    )
    command.add_argument(
        "--workers", type=positive, default=1, metavar="N", help="tars at a time (1), if that ends sooner"
    )
    command.set_defaults(run=lambda options: run_pack(command, options))
    add_sources(command)
    return command


def label_key(text: str) -> str:
    """argparse type: a key of `.json`."""
    if not 0 < len(text) <= bounds.KEY_CHARACTERS:
        raise argparse.ArgumentTypeError(f"{len(text):,} characters are no key; give 1 to {bounds.KEY_CHARACTERS:,}")
    return text


def run_pack(command: argparse.ArgumentParser, options: argparse.Namespace) -> Outcome:
    if options.index_only:
        if options.source:
            command.error("--index-only takes one URL and no SOURCE")
        return run_index_only(options)
    if not options.source:
        command.error("give SOURCE and DEST, or --index-only URL")
    stated = (options.key_of_label, options.kind_of_label, options.class_list, options.unlabelled or None)
    if any(one is not None for one in stated):
        command.error(
            "--label-key, --label-kind, --unlabelled and, before SOURCE, --classes belong to --index-only; "
            "the options of a SOURCE follow it"
        )
    began = time.monotonic()
    packed: dict[str, Packed] = {}
    warnings: dict[str, list[str]] = {}
    with session(options.workers) as runner:
        options.runner = runner  # for sources that read images before they can list them
        for split, source, how in options.sources(options):
            packed[split] = pack(
                storage.join(options.dest, split) if split else options.dest,
                source,
                how,
                runner=runner,
                force=options.force,
                show_progress=True,
            )
            print_summary(packed[split])
            indexes = packed[split].index, packed.get("train", packed[split]).index
            found = warn_of_one_based(packed[split].index), warn_of_untrained(*indexes)
            warnings[split] = [*source.warnings, *filter(None, found)]
            print_warnings(warnings[split])
    wrote = any(one.wrote for one in packed.values())
    described = {split: facts(one.index) | counts(one) | {"warnings": warnings[split]} for split, one in packed.items()}
    record = {"packed": wrote, "seconds": round(time.monotonic() - began, 3)}
    return record | described.pop("", {}) | described, 0


def print_summary(packed: Packed) -> None:
    """Print the set at the destination, and what was left out by reason."""
    print(f"{'packed' if packed.wrote else 'already packed'}: {summary(packed.index)}")
    skipped = sum(packed.skipped.values())
    found, merged, samples = packed.found, packed.merged, packed.index.num_samples
    print(f"  found {found:,} = packed {samples:,} + merged {merged:,} + skipped {skipped:,}")
    for reason, count in packed.skipped.items():
        print(f"  skipped {count:,}: {reason}")
    if packed.skipped:
        print(f"  their names are in {storage.parent(packed.index.url)}/skipped.jsonl")


def counts(packed: Packed) -> dict[str, object]:
    """What the source held, and where it went, for `--json`."""
    return {"found": packed.found, "merged": packed.merged, "skipped": packed.skipped}


def print_warnings(texts: Sequence[str]) -> None:
    for text in texts:
        print(f"warning: {text}", file=sys.stderr)


def label_statement(options: argparse.Namespace, folder: str) -> tuple[LabelRule, Sequence[str]]:
    """How the labels are read, and the names of the classes by number: what the options say, or, if they say nothing,
    what was said when the tars in `folder` were indexed before."""
    key, kind, unlabelled = options.key_of_label or "", options.kind_of_label or "", options.unlabelled
    if options.class_list is not None:
        return LabelRule(key=key, kind=kind, unlabelled=unlabelled), read_class_list(options.class_list).names
    if not (key or kind or unlabelled):
        with suppress(DataError):  # there is none, or one that cannot be read
            index = open_index(folder)
            before = index.label_rule()
            said = replace(before, version=CLEAR.version, class_names=())
            names = () if index.source else index.class_names
            if not said.is_clear or said.unlabelled or names:
                print(f"labels are read as the index that is there says: {stated(index) or 'with names of classes'}")
            return said, names
    return LabelRule(key=key, kind=kind, unlabelled=unlabelled), ()


def notes_to_keep(folder: str) -> dict[str, Any]:
    """What the index that is there says of a set that is for measuring only, as it was packed."""
    with suppress(DataError):  # there is none, or one that cannot be read
        index = open_index(folder)
        if index.measure_only:
            return {key: value for key, value in index.about.items() if key in (MEASURE_ONLY, CLASS_MAP)}
    return {}


def run_index_only(options: argparse.Namespace) -> Outcome:
    with storage.reporting(options.index_only):
        folder, shards = find_shards(options.index_only)
    rule, names = label_statement(options, folder)
    with Progress("indexing", "shards", len(shards)) as shown:
        index, contents = index_shards(
            options.index_only,
            workers=options.workers,
            num_classes=options.num_classes or 0,
            rule=rule,
            class_names=names,
            must_have_labels=not rule.unlabelled,
            about=notes_to_keep(folder),
            progress=lambda done, total: shown.advance(1),
        )
    for url in contents.cut_short:
        print(f"{url}: cut short; its last sample will be masked if fields are missing", file=sys.stderr)
    if contents.unlabelled and not rule.unlabelled:
        first = f" (in the first {contents.example})" if contents.example else ""
        print(
            f"{contents.unlabelled:,} samples without a readable label{first}: their slots will be masked",
            file=sys.stderr,
        )
    if contents.without_image:
        print(f"{contents.without_image:,} samples without an image: their slots will be masked", file=sys.stderr)
    outside = sum(count for label, count in contents.label_counts.items() if label >= index.num_classes)
    if outside:
        print(f"{outside:,} labels are not below {index.num_classes:,}: their slots will be masked", file=sys.stderr)
    print(f"indexed: {summary(index)}")
    print_warnings(warnings := list(filter(None, [warn_of_one_based(index)])))
    if contents.cut_short:
        print(f"  cut short: {len(contents.cut_short):,} shard{'s'[: len(contents.cut_short) > 1]}")
    return facts(index) | {
        "unlabelled": contents.unlabelled,
        "without_image": contents.without_image,
        "cut_short": contents.cut_short,
        "labels_outside": outside,
        "warnings": warnings,
    }, 0

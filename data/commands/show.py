"""`python -m data show`."""

import argparse
from collections import Counter

import numpy as np

from data import storage
from data.commands.parsing import Commands, Outcome, facts
from data.decode import decode
from data.errors import BadSample
from data.fields import image_bytes
from data.index import Index, open_index
from data.reader import fetch, plan_reads

PEEKED_SAMPLES = 64


def add(commands: "Commands[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Put the command on the command line."""
    show = commands.add_parser("show", help="print what a data set holds", description="Print what a data set holds.")
    show.add_argument("url", metavar="URL", help="its folder or its index.json")
    show.set_defaults(run=run_show)
    return show


def run_show(options: argparse.Namespace) -> Outcome:
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
    return facts(index), 0


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

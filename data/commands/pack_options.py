"""What the sources of `python -m data pack` have in common on the command line."""

import argparse
import textwrap
from collections.abc import Callable, Iterator

from data.commands.parsing import Commands
from data.images.transcode import FORMATS, QUALITY, Transcode
from data.packing.pack import Options
from data.packing.source import Source

Splits = Iterator[tuple[str, Source, Options]]
"""(folder under DEST, or "" for DEST itself; the source that is packed there; how it is packed)."""

TRANSCODING = (
    "Images are stored unchanged, with the extension of their content; BMP, GIF, TIFF and PNM become PNG. With "
    "--resize, --format or --quality they are decoded (the EXIF orientation is ignored) and re-encoded, by default in "
    f"quality {QUALITY}; with --resize alone, images that are small enough are stored unchanged. Unreadable images are "
    "skipped, counted by reason and listed in DEST/skipped.jsonl, so that shards differ in their numbers of images."
)


def positive(text: str) -> int:
    """argparse type: an integer of at least 1."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def source_parser(
    sources: "Commands[argparse.ArgumentParser]",
    name: str,
    summary: str,
    text: str,
    example: str,
    splits: Callable[[argparse.Namespace], Splits],
) -> argparse.ArgumentParser:
    """Add a source: `splits` makes what it packs from the options."""
    paragraphs = (
        f"{summary[0].upper()}{summary[1:]}.",
        textwrap.fill(text, 110),
        f"  python -m data pack {name} {example}",
    )
    source = sources.add_parser(
        name,
        help=summary,
        description="\n\n".join(paragraphs),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source.add_argument("dest", metavar="DEST", help="folder to write to, local or any fsspec URL")
    source.add_argument("--force", action="store_true", help="replace any content of DEST")
    source.add_argument(
        "--workers",
        type=positive,
        default=argparse.SUPPRESS,
        metavar="N",
        help="shards at a time (1), on Ray if that ends sooner",
    )
    source.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object last")
    source.set_defaults(sources=splits)
    return source


def from_option(source: argparse.ArgumentParser, text: str) -> None:
    """Add --from, where the images are."""
    source.add_argument("--from", dest="images", required=True, metavar="URL", help=text)


def shard_samples(source: argparse.ArgumentParser) -> None:
    """Add --shard-samples."""
    source.add_argument(
        "--shard-samples",
        type=positive,
        default=0,
        metavar="N",
        help="most samples of a shard (200 MB; 16 shards or more)",
    )


def shuffling(source: argparse.ArgumentParser) -> None:
    """Add --shard-samples and the options of the order."""
    shard_samples(source)
    source.add_argument("--shuffle-seed", type=int, default=0, metavar="S", help="seed of the images' order (0)")
    source.add_argument("--no-shuffle", action="store_true", help="keep the source's order")


def transcoding(source: argparse.ArgumentParser) -> None:
    """Add the options of re-encoding."""
    source.add_argument("--resize", type=positive, metavar="PIXELS", help="shrink the shorter side to so many")
    source.add_argument("--format", choices=FORMATS, help="format of the images (their own)")
    source.add_argument(
        "--quality",
        type=int,
        choices=range(1, 101),
        metavar="Q",
        help=f"quality of JPEG and WebP, 1 to 100 ({QUALITY})",
    )


def pack_options(options: argparse.Namespace) -> Options:
    """How the images are packed, by the options."""
    transcode = None
    if any(getattr(options, name, None) for name in ("resize", "format", "quality")):
        transcode = Transcode(options.resize, options.format, options.quality)
    seed = None if getattr(options, "no_shuffle", True) else options.shuffle_seed
    return Options(shuffle_seed=seed, samples_per_shard=options.shard_samples, transcode=transcode)

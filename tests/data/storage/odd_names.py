"""Names that a store, a shell, a URL or a pattern could take for something else, and the stores to try them on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.local.stores import gcs_server, reached_by, s3_server

NAMES = (
    "v[1]",
    "v[12]",
    "runs [v2]",
    "v*",
    "v?",
    "v{1,2}",
    "{v}",
    "v[!x]",
    "v**",
    "a b  c ",
    " a",
    "v#1",
    "v#2.5",
    "v%20x",
    "100%",
    "v%5B1%5D",
    "a+b",
    "a&b=c",
    "v?generation=3",
    "a::b",
    "memory::v",
    "a:b@c",
    "bücher",
    "図書 🐦",
    ".hidden",
    "-rf",
    "~",
    "~x",
    "$HOME",
    "`v`'\"",
    "v\\1",
    "v\n1",
    "v\t1",
    "é",
    "e\u0301",
    "x.tar",
    "x.json",
)
"""Folders, and files in them."""

NOT_ON_S3 = ("v\n1",)
"""Names that Moto does not serve; Amazon's own store does."""

NEIGHBOURS = ("v1", "v2", "v", "vx", "v12", "1", "runs v", "runs 2", "{v", "a b c", "v 1", "v x", "b", "x", "HOME", "a")
"""Names that the odd ones match, begin with or turn into, if they are taken for patterns or escapes."""


@contextmanager
def local(folder: Path) -> Iterator[str]:
    """The URL of an empty place on the disk."""
    yield f"{folder}/local"


@contextmanager
def memory(folder: Path) -> Iterator[str]:
    yield f"memory://{folder}"


@contextmanager
def gs(folder: Path) -> Iterator[str]:
    with gcs_server() as server, reached_by(server) as url:
        yield f"{url}/place"


@contextmanager
def s3(folder: Path) -> Iterator[str]:
    with s3_server() as server, reached_by(server) as url:
        yield f"{url}/place"


STORES = (local, memory, gs, s3)
"""Functions, so that only the tests of the last two carry the mark `servers`."""

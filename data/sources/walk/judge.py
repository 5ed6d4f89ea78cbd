"""Which files of a listing are images. Its name decides where it is known, and else a file's first bytes."""

from collections.abc import Mapping
from functools import partial

from data import bounds
from data.errors import Cause, DataError
from data.images.signature import HEAD_BYTES, kind, why_unusable
from data.packing.source import Skipped, ahead, read_file
from data.sources.walk.names import extension_of, is_image_name, is_system_file, is_unread

SYSTEM = "system file"
CLOSED = "no image extension, and it may not be read"
EMPTY = "empty file"
HUGE = f"larger than {bounds.IMAGE_BYTES >> 30} GiB"
UNKNOWN = "not an image: unknown kind of file"


def images(url: str, files: Mapping[str, int]) -> tuple[dict[str, int], list[Skipped]]:
    """(size by path of those of `files` under `url` that are taken as images, the others with a reason).

    Files with an image's extension are taken as images; packing them shows whether they are. Files of extensions that
    are not known are images if their first bytes are those of one.
    """
    sizes: dict[str, int] = {}
    skipped, unknown = [], []
    for path, size in files.items():
        name = path.rpartition("/")[2]
        if size > bounds.IMAGE_BYTES:
            skipped.append(Skipped(path, HUGE))
        elif is_image_name(name):
            sizes[path] = size
        elif is_system_file(name):
            skipped.append(Skipped(path, SYSTEM))
        elif is_unread(name):
            skipped.append(Skipped(path, f"unread: .{extension_of(name)} file"))
        else:
            unknown.append(path)
    heads = ahead(partial(_head, url.rstrip("/"), files), unknown)
    for path, head in zip(unknown, heads, strict=True):
        if isinstance(head, str):
            skipped.append(Skipped(path, head))
        elif (found := kind(head)) is not None and found.is_packed:
            sizes[path] = files[path]
        else:
            skipped.append(Skipped(path, _reason(head)))
    return sizes, skipped


def _head(folder: str, files: Mapping[str, int], path: str) -> bytes | str:
    """The first bytes of a file, or why there are none."""
    size = files[path] or HEAD_BYTES  # a web server may not state it
    try:
        return read_file(f"{folder}/{path}", 0, min(size, HEAD_BYTES)) or EMPTY
    except DataError as error:
        if isinstance(error.__cause__, PermissionError):
            return CLOSED
        raise


def _reason(head: bytes) -> str:
    reason = why_unusable(head)
    return UNKNOWN if reason == Cause.UNDECODABLE else reason

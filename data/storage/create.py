"""Writing a file only if there is none: how several processes agree on one of them."""

import os
from contextlib import suppress

from fsspec.implementations.local import LocalFileSystem

from data.storage.patience import limited, patiently
from data.storage.urls import resolve


def create(url: str, content: bytes) -> bool:
    """Put `content` at `url` unless something is there. Returns whether it was put.

    Local disks, Google Cloud Storage and S3 decide in one step. Some servers that imitate them ignore the condition, so
    that two processes may both be answered True: read the content back where that matters. Missing folders are made.
    """
    fs, path = resolve(url)
    if isinstance(fs, LocalFileSystem):
        fs.makedirs(fs._parent(path), exist_ok=True)
        try:
            with open(path, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            return False
        return True

    def attempt() -> bool:
        try:
            fs.pipe_file(path, content, mode="create", **limited(fs, len(content)))
        except Exception as error:
            if _is_refused(error):
                return False
            raise
        return True

    with suppress(FileExistsError):
        return patiently(attempt)
    return False


def _is_refused(error: Exception) -> bool:
    """Whether the store answered that something is there: 412 or 409 of Google Cloud Storage and S3."""
    status = getattr(error, "code", None) or getattr(error, "status", None)
    text = f"{error} {error.__cause__}"
    return isinstance(error, FileExistsError) or str(status) in ("409", "412") or "PreconditionFailed" in text

"""What a URL names: its file system, its parts, its server.

A path is taken as it is written: no character of it is a pattern, a version, a fragment or an escape. So a local
folder, and a folder in a bucket, may have any name. The exception is a URL of http:// or https://, which escapes names
by the rules of the web: `join` escapes the name that it adds, and a question mark begins a query.

Environment variables that lead to an emulator, or to another store with the same interface: `STORAGE_EMULATOR_HOST`
for gs://, `AWS_ENDPOINT_URL` for s3://. `FSSPEC_GS='{"token": "anon"}'` keeps gcsfs from searching for credentials.
"""

import os
import posixpath
import re
import socket
from typing import cast
from urllib.parse import quote, urlsplit

# Else gcsfs asks for a bucket's storage layout before its first operation, and waits a minute if there is no answer.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

import fsspec
from fsspec.implementations.local import LocalFileSystem

from data.errors import DataError

S3_PACKAGE = "s3fs is not installed; run `pip install -r requirements-s3.txt`"


BUCKETS = ("gs", "gcs", "s3", "s3a")
WEB = ("http", "https")
LOCAL = ("file", "local")
_PROTOCOL = re.compile("([A-Za-z][A-Za-z0-9+.-]*)://")


def resolve(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of `url` and the path in it, which is literal: fsspec would read `#2`, `?versionId=` and `::`.

    Raises:
        DataError: the protocol is unknown or its package is not installed, or no store has such a path.
    """
    if "\0" in url:
        raise DataError(f"{url!r}: a path cannot hold a zero byte")
    protocol = _protocol(url)
    if protocol in (None, *LOCAL):
        return LocalFileSystem(), absolute(url)
    try:
        if protocol in WEB:  # a web server never sees a fragment
            return fsspec.filesystem(protocol), url.replace("#", "%23")
        path = url.partition("://")[2]
        if protocol in BUCKETS:
            return fsspec.filesystem(protocol), path.rstrip("/")
        if protocol == "memory":
            return fsspec.filesystem(protocol), f"/{path.strip('/')}".rstrip("/")
        return cast(tuple[fsspec.AbstractFileSystem, str], fsspec.core.url_to_fs(url))
    except Exception as error:  # a back end may already connect here, and each has its own errors
        missing = isinstance(error, ImportError) and url.startswith(("s3://", "s3a://"))
        reason = S3_PACKAGE if missing else " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{url}: {reason}") from error


def is_web(fs: fsspec.AbstractFileSystem) -> bool:
    """Whether a file system is fsspec's for HTTP. Only then is `storage/web.py` imported, with aiohttp."""
    return "http" in fs.protocol


def absolute(url: str) -> str:
    """The URL that means the same from any working directory: workers may change theirs."""
    protocol = _protocol(url)
    if protocol in LOCAL:
        url = url.partition("://")[2]
    return os.path.abspath(os.path.expanduser(url)) if protocol in (None, *LOCAL) else url


def is_absolute(url: str) -> bool:
    """Whether `url` is complete by itself: it has a protocol, or is a local path from the root. `~` is a name here."""
    return url.startswith("/") or _protocol(url) is not None


def is_local(url: str) -> bool:
    """Whether `url` is a path on this machine."""
    return _protocol(url) in (None, *LOCAL)


def join(folder: str, name: str) -> str:
    """`name` inside the URL `folder`, or `name` itself if it is absolute."""
    if is_absolute(name):
        return name
    return f"{folder.rstrip('/')}/{quote(name) if _protocol(folder) in WEB else name}"


def parent(url: str) -> str:
    """The folder that holds `url`."""
    protocol = _PROTOCOL.match(url)
    head = protocol[0] if protocol else ""
    folder = posixpath.dirname(url[len(head) :].rstrip("/"))
    return f"{head}{folder}" if head else folder or "."


def check_reachable(url: str) -> None:
    """Try for three seconds to reach the server of a gs:// URL, or of an s3:// URL if `AWS_ENDPOINT_URL` names it.

    Without a network their libraries take most of a minute, and pages of log, to say so. Other URLs pass.

    Raises:
        DataError: the server does not answer.
    """
    server = urlsplit(_endpoint(url) or "")
    if server.hostname is None or os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return  # no known server, or an emulator's address in a form that only gcsfs understands
    port = server.port or (80 if server.scheme == "http" else 443)
    try:
        socket.create_connection((server.hostname, port), timeout=3.0).close()
    except OSError as error:
        raise DataError(f"{url}: cannot reach {server.hostname} ({error.strerror or error})") from error


def _endpoint(url: str) -> str | None:
    """The server of an object store's URL, if it is known without asking the library."""
    if url.startswith(("gs://", "gcs://")):
        return os.environ.get("STORAGE_EMULATOR_HOST") or "https://storage.googleapis.com"
    if url.startswith(("s3://", "s3a://")):
        return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return None


def _protocol(url: str) -> str | None:
    """The protocol of `url` in small letters; None for a local path."""
    found = _PROTOCOL.match(url)
    return found[1].lower() if found else None

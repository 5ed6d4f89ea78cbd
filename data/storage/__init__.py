"""Bytes by URL: local files, gs://, s3://, https://, with retries. Imports `errors` alone.
Use it as `from data import storage; storage.read(url)`."""

from data.storage.create import create
from data.storage.files import (
    describe,
    exists,
    get_file,
    is_folder,
    open_read,
    open_write,
    put_file,
    read,
    read_range,
    remove,
    reporting,
    size,
    write_atomic,
)
from data.storage.listing import Entry, contents, entries, is_outage, matching, remove_folder
from data.storage.urls import absolute, check_reachable, is_absolute, is_local, join, parent, resolve

__all__ = [
    "Entry",
    "absolute",
    "check_reachable",
    "contents",
    "create",
    "describe",
    "entries",
    "exists",
    "get_file",
    "is_absolute",
    "is_folder",
    "is_local",
    "is_outage",
    "join",
    "matching",
    "open_read",
    "open_write",
    "parent",
    "put_file",
    "read",
    "read_range",
    "remove",
    "remove_folder",
    "reporting",
    "resolve",
    "size",
    "write_atomic",
]

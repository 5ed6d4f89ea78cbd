"""Everything that lies in a folder of images, on any store: files, of which some are images, and what is left out."""

from collections.abc import Collection

from data import storage
from data.errors import DataError
from data.sources.walk.judge import images
from data.sources.walk.listing import Listing
from data.sources.walk.local import walk_local
from data.sources.walk.store import walk_store

__all__ = ["Listing", "images", "walk"]


def walk(url: str, entered: Collection[str] = ()) -> Listing:
    """List the folder at `url`, an absolute URL, to its last file.

    Hidden and system folders are left out as one thing each (names.py), but for those in `entered`, paths without a
    final slash. On a local disk, links are followed (local.py).

    Raises:
        DataError: there is no such folder, or a folder in it cannot be listed: an error of the store is never an empty
            folder.
    """
    try:
        with storage.reporting(url):
            listing = (walk_local if storage.is_local(url) else walk_store)(url, entered)
    except FileNotFoundError as error:
        raise DataError(f"{url}: does not exist, or holds nothing") from error
    listing.skipped.sort()
    return listing

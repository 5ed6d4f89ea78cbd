"""Ranges, lengths and listings of files on web servers. Faults of fsspec's own functions would lose data:

- A server without ranges answers with the whole file and status 200. fsspec returns that as the range.
- fsspec takes any failed request for a file's length as "no such file". So a bad connection means missing data.
- fsspec compares the links of a listing with the folder's URL as text. So a folder or a file is lost if its name is
  escaped in one of them, as `v[1]` is in `v%5B1%5D`.
"""

import asyncio
from html.parser import HTMLParser
from typing import cast
from urllib.parse import unquote, urljoin, urlsplit

import aiohttp
from fsspec.asyn import sync
from fsspec.implementations.http import HTTPFileSystem

from data.errors import DataError

SKIP_BYTES = 1 << 20
AS_IT_IS = {"Accept-Encoding": "identity"}  # lengths and ranges are of the file, not of a compressed form
NO_HEAD = frozenset([403, 405, 501])  # status of servers that reject HEAD


def read_range(fs: HTTPFileSystem, url: str, begin: int, end: int, seconds: float) -> bytes:
    """Bytes begin .. end-1, fewer if the file ends earlier, from servers with or without ranges.

    Raises:
        FileNotFoundError: there is no such file.
        TimeoutError: it took more than `seconds`; for a server without ranges, nothing came for so long.
        aiohttp.ClientError: any other answer, or none.
    """
    return cast(bytes, sync(fs.loop, _read_range, fs, url, begin, end, seconds))


def length(fs: HTTPFileSystem, url: str, seconds: float) -> int | None:
    """Length of the file in bytes; None if the server does not state it. Raises as `read_range` does."""
    return cast(int | None, sync(fs.loop, _length, fs, url, timeout=seconds))


def entries(fs: HTTPFileSystem, url: str, seconds: float) -> list[tuple[str, int, bool]]:
    """Name, size (0: unknown) and whether it is a folder, of everything in a folder whose page lists it as links.

    Raises:
        DataError: the server sends no such page.
        FileNotFoundError, TimeoutError, aiohttp.ClientError: as of `read_range`.
    """
    return cast(list[tuple[str, int, bool]], sync(fs.loop, _entries, fs, url, timeout=seconds))


async def _read_range(fs: HTTPFileSystem, url: str, begin: int, end: int, seconds: float) -> bytes:
    session = await fs.set_session()
    headers = {**AS_IT_IS, "Range": f"bytes={begin}-{end - 1}"}
    silence = aiohttp.ClientTimeout(total=None, sock_connect=seconds, sock_read=seconds)
    async with (
        asyncio.timeout(seconds) as limit,
        session.get(fs.encode_url(url), headers=headers, timeout=silence, **fs.kwargs) as response,
    ):
        if response.status == 416:  # the file ends before the range begins
            return b""
        fs._raise_not_found_for_status(response, url)
        if response.status == 206:
            stated = response.headers.get("Content-Range", "")
            if not stated.startswith(f"bytes {begin}-"):
                raise ValueError(f"{url}: the server was asked for bytes {begin} to {end} and sent {stated!r}")
            return await response.read()
        limit.reschedule(None)  # the whole file comes: the bytes before the range take time, too
        kept, position = bytearray(), 0
        while position < end and (piece := await response.content.read(SKIP_BYTES)):
            kept += piece[max(begin - position, 0) : end - position]
            position += len(piece)
        return bytes(kept)


async def _length(fs: HTTPFileSystem, url: str) -> int | None:
    session = await fs.set_session()
    async with session.head(fs.encode_url(url), headers=AS_IT_IS, allow_redirects=True, **fs.kwargs) as response:
        if response.status not in NO_HEAD:
            fs._raise_not_found_for_status(response, url)
            return _stated(response.headers.get("Content-Length"))
    async with session.get(fs.encode_url(url), headers=AS_IT_IS, **fs.kwargs) as response:
        fs._raise_not_found_for_status(response, url)
        return _stated(response.headers.get("Content-Length"))


def _stated(text: str | None) -> int | None:
    return None if text is None else int(text)


async def _entries(fs: HTTPFileSystem, url: str) -> list[tuple[str, int, bool]]:
    session = await fs.set_session()
    async with session.get(fs.encode_url(f"{url.rstrip('/')}/"), **fs.kwargs) as response:
        fs._raise_not_found_for_status(response, url)
        if response.content_type != "text/html":
            raise DataError(f"{url}: the server lists no folder here; name the files instead")
        links = _Links()
        links.feed(await response.text(errors="replace"))
        home = response.url
    folder = f"{home.raw_path.rstrip('/')}/"
    base, folder = str(home.origin()) + folder, unquote(folder)
    found: dict[str, bool] = {}
    for link in links.found:
        try:
            target = urlsplit(urljoin(base, link.strip()))
        except ValueError:  # not a URL
            continue
        path = unquote(target.path)
        name = path.removeprefix(folder).removesuffix("/")
        if target.hostname == home.raw_host and path.startswith(folder) and name and "/" not in name:
            found[name] = found.get(name, False) or path.endswith("/")
    return [(name, 0, is_folder) for name, is_folder in found.items()]


class _Links(HTMLParser):
    """Collects the targets of a page's links in `found`."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found += [value for name, value in attrs if name == "href" and value]

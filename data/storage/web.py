"""Ranges and lengths of files on web servers. Two faults of fsspec's own functions would lose data:

- A server without ranges answers with the whole file and status 200. fsspec returns that as the range.
- fsspec takes any failed request for a file's length as "no such file". So a bad connection means missing data.
"""

import asyncio
from typing import cast

import aiohttp
from fsspec.asyn import sync
from fsspec.implementations.http import HTTPFileSystem

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

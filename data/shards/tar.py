"""Tar members and WebDataset samples from any byte range that begins at a header.

The standard library's tarfile reads a file from its start; training reads ranges from the middle of shards, millions
of times. This parser takes a buffer and returns views into it, without copying. It reads all that tar writers produce:
ustar with the prefix field, GNU long names and base-256 sizes, and pax records for path and size. A header may claim
any size: what follows it is only kept up to the bounds in bounds.py.
"""

import zlib
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from data import bounds
from data.errors import DataError

RECORD = 512
ZERO = bytes(RECORD)
REGULAR = frozenset([b"0", b"\0", b"7"])  # type flags of plain files: ustar, old tar, contiguous
RECORDS = frozenset([b"L", b"x", b"K", b"g"])  # about the next member: GNU and pax; or defaults for the archive (g)
CHECKSUM = slice(148, 156)
NAME, SIZE, PREFIX = slice(0, 100), slice(124, 136), slice(345, 500)
SPARSE_GOES_ON = (482, 504)  # GNU: whether a record of the list of parts follows, in the header and in such a record


class EndsEarly(DataError):
    """A tar that ends in the middle of an entry."""


class SupportsRead(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Member(NamedTuple):
    """One entry of a tar: its name, its bytes, and the offsets of its first header and of the next entry's header.

    `is_file` is False for folders, links and devices. `too_long`: it has more than `bounds.FIELD_BYTES`, and `data` is
    empty.
    """

    name: str
    data: memoryview
    offset: int
    end: int
    is_file: bool
    too_long: bool = False


@dataclass(slots=True)
class TarSample:
    """Consecutive members with one key. `offset` is that of the first header."""

    key: str
    offset: int
    fields: dict[str, memoryview] = field(default_factory=dict)


class _Rest(NamedTuple):
    """What a buffer ends with: the bytes of the buffer that its next entry needs, and that entry if it is too long."""

    needed: int
    long: Member | None = None


def members(buffer: bytes | memoryview) -> Iterator[Member]:
    """The entries of a tar that are whole in `buffer`, which begins at a header.

    Stops at the end-of-archive record or at the first entry that is not complete. Offsets count from the buffer's
    start.

    Raises:
        DataError: bytes that are no tar header. The caller adds the file's name and what to do.
    """
    yield from _entries(memoryview(buffer))


def _entries(view: memoryview) -> Generator[Member, None, _Rest]:
    """As `members`. Returns what the buffer ends with."""
    position = start = 0
    long_name: str | None = None
    pax: dict[str, str] = {}
    while position + RECORD <= len(view):
        header = bytes(view[position : position + RECORD])
        if header == ZERO:
            return _Rest(position + RECORD)
        if not _checksum_holds(header):
            raise DataError(f"no tar header at byte {position}")
        try:
            size = int(pax["size"]) if "size" in pax else _number(header[SIZE])
        except ValueError:
            size = -1
        if size < 0:
            raise DataError(f"an impossible size in the tar header at byte {position}")
        kind = header[156:157]
        body = _after_sparse_list(view, position) if kind == b"S" else position + RECORD
        end = body + -(-size // RECORD) * RECORD
        is_record = kind in RECORDS
        if (end if is_record else body) - start > bounds.RECORD_BYTES:
            raise DataError(f"more than {bounds.RECORD_BYTES:,} bytes of records before a member, at byte {start}")
        too_long = not is_record and size > bounds.FIELD_BYTES
        name = "" if is_record else pax.get("path") or long_name or _name(header)
        if end > len(view):
            long = Member(name, view[:0], start, end, kind in REGULAR, True) if too_long and body <= len(view) else None
            return _Rest(body if too_long else end, long)
        data = view[body : body + size]
        if kind == b"L":  # GNU: the next member's name
            long_name = _text(bytes(data))
        elif kind == b"x":  # pax: records about the next member
            try:
                pax = _pax_records(bytes(data))
            except ValueError as error:
                raise DataError(f"damaged pax records at byte {position}") from error
        elif not is_record:
            yield Member(name, view[:0] if too_long else data, start, end, kind in REGULAR, too_long)
            long_name, pax, start = None, {}, end
        position = end
    return _Rest(position + RECORD)


def read_members(file: SupportsRead, chunk: int) -> Iterator[Member]:
    """The entries of a whole tar, read once from start to end, `chunk` bytes at a time. Offsets are the file's.

    Raises:
        EndsEarly: it ends in the middle of an entry.
        DataError: not a tar.
    """
    parts: list[bytes] = []
    base, length, needed = 0, 0, RECORD  # offset of the parts, their bytes, and those that the next entry needs
    while content := file.read(chunk):
        parts.append(content)
        length += len(content)
        if length < needed:
            continue
        buffer, consumed = b"".join(parts), 0
        entries = _entries(memoryview(buffer))
        while True:
            try:
                member = next(entries)
            except StopIteration as stop:
                rest: _Rest = stop.value
                break
            consumed = member.end
            yield member._replace(offset=base + member.offset, end=base + member.end)
        if rest.long is not None:
            if not _skip(file, rest.long.end - length, chunk):
                raise EndsEarly(f"ends in the middle of the entry at byte {base + consumed}")
            yield rest.long._replace(offset=base + rest.long.offset, end=base + rest.long.end)
            parts, base, length, needed = [], base + rest.long.end, 0, RECORD
            continue
        parts, base, length, needed = [buffer[consumed:]], base + consumed, length - consumed, rest.needed - consumed
        if parts[0][:RECORD] == ZERO:
            while file.read(chunk):  # to the end: `file` may count or hash the bytes
                pass
            return
    if length:
        raise EndsEarly(f"ends in the middle of the entry at byte {base}")


def _skip(file: SupportsRead, count: int, chunk: int) -> bool:
    """Read over `count` bytes. Returns False if the file ends before."""
    while count > 0:
        content = file.read(min(chunk, count))
        if not content:
            return False
        count -= len(content)
    return True


def samples(found: Iterable[Member]) -> Iterator[TarSample]:
    """Group members as WebDataset does: neighbours with the same name up to the first dot of the file name.

    Field names are the rest of the file name, in lower case. Names without a stem or a dot, and `__meta__` entries,
    belong to no sample. A field that comes twice in one sample keeps its first content. A field that is
    too long is missing, and so is one with which the sample would be longer than `bounds.SAMPLE_BYTES`.
    """
    current: TarSample | None = None
    length = 0
    for member in found:
        split = split_name(member.name) if member.is_file else None
        if split is None:
            continue
        key, extension = split
        if current is None or key != current.key:
            if current is not None:
                yield current
            current, length = TarSample(key, member.offset), 0
        length += len(member.data)
        if not member.too_long and length <= bounds.SAMPLE_BYTES:
            current.fields.setdefault(extension, member.data)
    if current is not None:
        yield current


def split_name(name: str) -> tuple[str, str] | None:
    """(key, extension) of a member by WebDataset's rule, or None for one that belongs to no sample.

    >>> split_name("train/000017.seg.PNG")
    ('train/000017', 'seg.png')
    """
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    first = name.partition("/")[0]
    if not stem or not dot or (len(first) >= 4 and first.startswith("__") and first.endswith("__")):
        return None
    return folder + slash + stem, extension.lower()


def _checksum_holds(header: bytes) -> bool:
    """Whether the header's bytes add up to the checksum that it states; the checksum's own bytes count as spaces.

    The lower half of Adler-32 is 1 + the sum modulo 65521: the same test in compiled code, ten times as fast.
    """
    try:
        stated = _number(header[CHECKSUM])
    except ValueError:
        return False
    total = (zlib.adler32(header) & 0xFFFF) - 1 - sum(header[CHECKSUM]) + 8 * ord(" ")
    return (total - stated) % 65521 == 0


def _number(text: bytes) -> int:
    """Octal text, or GNU's base-256 if the top bit is set."""
    if text[0] & 0x80:
        return int.from_bytes(text[1:], "big")
    return int(text.rstrip(b"\0 ").lstrip() or b"0", 8)


def _text(field_bytes: bytes) -> str:
    return field_bytes.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _name(header: bytes) -> str:
    prefix = header[PREFIX].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""  # GNU tar has times there
    return _text(prefix + b"/" + header[NAME] if prefix else header[NAME])


def _after_sparse_list(view: memoryview, position: int) -> int:
    """Where the data of GNU's sparse member begins: records with a list of its parts may follow the header."""
    flag, after = SPARSE_GOES_ON
    body = position + RECORD
    goes_on = view[position + flag]
    while goes_on and body + RECORD <= len(view):
        goes_on = view[body + after]
        body += RECORD
    return body + RECORD if goes_on else body


def _pax_records(data: bytes) -> dict[str, str]:
    """`LENGTH KEY=VALUE\\n` records, the length counting all of the record. Raises ValueError."""
    records, position = {}, 0
    while position < len(data) and data[position] != 0:
        begin = data.index(b" ", position) + 1
        end = position + int(data[position : begin - 1])
        if end <= begin:
            raise ValueError("a record that ends before it begins")
        name, _, value = data[begin : end - 1].partition(b"=")
        records[name.decode()] = value.decode("utf-8", "surrogateescape")
        position = end
    return records

"""Image files of every kind, written byte by byte: what Pillow and OpenCV themselves do not write."""

import struct
import zlib
from collections.abc import Iterator

import numpy as np

HEIGHT, WIDTH = 13, 21
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def noise(channels: int, bits: int, seed: int = 0) -> np.ndarray:
    """Random values of `bits` bits, (HEIGHT, WIDTH, channels)."""
    values = np.random.default_rng(seed).integers(0, 1 << bits, (HEIGHT, WIDTH, channels))
    return values.astype(np.uint16 if bits > 8 else np.uint8)


def packed(row: np.ndarray, bits: int, order: str = ">") -> bytes:
    """The values of one row, bit after bit, filled up to whole bytes."""
    values = row.reshape(-1)
    if bits >= 8:
        return values.astype(f"{order}u{bits // 8}").tobytes()
    each = (values[:, None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(each.reshape(-1).astype(np.uint8)).tobytes()


def png(values: np.ndarray, bits: int, colour: int, interlaced: bool = False, **chunks: bytes) -> bytes:
    """A PNG with the given chunks before its pixels."""
    passes = [values[top::down, left::across] for top, left, down, across in ADAM7] if interlaced else [values]
    rows = b"".join(b"\0" + packed(row, bits) for image in passes if image.size for row in image)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour, 0, 0, interlaced)
    parts = {"IHDR": head, **chunks, "IDAT": zlib.compress(rows), "IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + name.encode()
        + content
        + struct.pack(">I", zlib.crc32(name.encode() + content))
        for name, content in parts.items()
    )


def pngs() -> Iterator[tuple[str, bytes]]:
    """Every colour type, depth and interlacing, with and without transparency and a gamma."""
    depths = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
    for colour, bits, interlaced in ((c, b, i) for c, all_bits in depths.items() for b in all_bits for i in (0, 1)):
        values = noise(channels[colour], bits)
        chunks = {"gAMA": struct.pack(">I", 100_000), "sRGB": b"\0", "pHYs": struct.pack(">IIB", 10, 20, 1)}
        palette = {"PLTE": noise(3, 8, 1).reshape(-1, 3)[: 1 << bits].tobytes()} if colour == 3 else {}
        transparent = {0: b"\0\1", 2: b"\0\1\0\2\0\3", 3: bytes(range(0, 200, 100))[: 1 << bits]}.get(colour)
        name = f"png-{colour}-{bits}-{'adam7' if interlaced else 'plain'}"
        yield name, png(values, bits, colour, bool(interlaced), **palette)
        yield f"{name}-chunks", png(values, bits, colour, bool(interlaced), **chunks, **palette)
        if transparent is not None:
            yield f"{name}-trns", png(values, bits, colour, bool(interlaced), **palette, tRNS=transparent)


def bmp(
    rows: bytes, bits: int, *, header: int = 40, method: int = 0, masks: bytes = b"", colours: bytes = b""
) -> bytes:
    """A BMP with the rows as given; a negative height in the header is not used."""
    if header == 12:
        info = struct.pack("<IHHHH", 12, WIDTH, HEIGHT, 1, bits)
    else:
        info = struct.pack("<IiiHHIIiiII", header, WIDTH, HEIGHT, 1, bits, method, len(rows), 0, 0, 0, 0)
        info = (info + (masks if header > 40 else b"")).ljust(header, b"\0") + (masks if header == 40 else b"")
    start = 14 + len(info) + len(colours)
    return struct.pack("<2sIHHI", b"BM", start + len(rows), 0, 0, start) + info + colours + rows


def bmps() -> Iterator[tuple[str, bytes]]:
    """Palettes of 1, 4 and 8 bits, plain and run-length coded; 16, 24 and 32 bits, with masks and with alpha."""

    def rows(values: np.ndarray, bits: int) -> bytes:
        lines = [packed(row, bits, "<") for row in values]
        return b"".join(line + bytes(-len(line) % 4) for line in lines)

    for bits in (1, 4, 8):
        table = noise(4, 8, 1).reshape(-1, 4)[: 1 << bits]
        yield f"bmp-{bits}", bmp(rows(noise(1, bits), bits), bits, colours=table.tobytes())
        yield f"bmp-{bits}-os2", bmp(rows(noise(1, bits), bits), bits, header=12, colours=table[:, :3].tobytes())
    table = noise(4, 8, 1).reshape(-1, 4).tobytes()[: 4 * 256]
    runs = b"".join(bytes([WIDTH - 4, line, 0, 4, 9, 8, 7, 6, 0, 0]) for line in range(HEIGHT)) + b"\0\1"
    yield "bmp-rle8", bmp(runs, 8, method=1, colours=table)
    yield (
        "bmp-rle4",
        bmp(
            b"".join(bytes([WIDTH, 16 * line + 3, 0, 0]) for line in range(HEIGHT)) + b"\0\1",
            4,
            method=2,
            colours=table[:64],
        ),
    )
    yield "bmp-16", bmp(rows(noise(1, 16), 16), 16)
    yield "bmp-565", bmp(rows(noise(1, 16), 16), 16, method=3, masks=struct.pack("<III", 0xF800, 0x7E0, 0x1F))
    yield "bmp-24", bmp(rows(noise(3, 8), 8), 24)
    yield "bmp-24-os2", bmp(rows(noise(3, 8), 8), 24, header=12)
    yield "bmp-32", bmp(rows(noise(4, 8), 8), 32)
    rgba = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    yield "bmp-32-alpha", bmp(rows(noise(4, 8), 8), 32, header=124, method=3, masks=rgba)
    yield "bmp-32-masks", bmp(rows(noise(4, 8), 8), 32, method=3, masks=struct.pack("<III", 0xFF, 0xFF00, 0xFF0000))


def tiff(values: np.ndarray, bits: int, photometric: int, order: str, **options: int | list[int]) -> bytes:
    """An uncompressed TIFF in strips of 5 rows or tiles of 16 x 16, chunky or planar."""
    channels, planar = values.shape[2], options.get("planar", 1) == 2
    planes = [values[..., number : number + 1] for number in range(channels)] if planar else [values]
    pieces = []
    for plane in planes:
        if options.get("tiled"):
            wide = np.pad(plane, ((0, -HEIGHT % 16), (0, -WIDTH % 16), (0, 0)))
            parts = [wide[:, left : left + 16] for left in range(0, wide.shape[1], 16)]
        else:
            parts = [plane[top : top + 5] for top in range(0, HEIGHT, 5)]
        pieces += [b"".join(packed(row, bits, order) for row in part) for part in parts]
    tags: dict[int, tuple[int, list[int]]] = {  # tag -> (type: 3 = 16 bits, 4 = 32 bits; values)
        256: (4, [WIDTH]),
        257: (4, [HEIGHT]),
        258: (3, [bits] * channels),
        259: (3, [1]),
        262: (3, [photometric]),
        277: (3, [channels]),
        284: (3, [2 if planar else 1]),
    }
    if options.get("tiled"):
        tags |= {322: (4, [16]), 323: (4, [16])}
    else:
        tags |= {278: (4, [5])}
    for name, tag in (("colours", 320), ("extra", 338), ("inks", 332), ("orientation", 274)):
        if (given := options.get(name)) is not None:
            tags[tag] = (3, given if isinstance(given, list) else [given])
    places, lengths = (324, 325) if options.get("tiled") else (273, 279)
    tags[lengths] = (4, [len(piece) for piece in pieces])
    tags[places] = (4, [0] * len(pieces))
    directory_bytes, extra = 2 + 12 * len(tags) + 4, b""
    data = 8 + directory_bytes + sum(len(v) * (2 if kind == 3 else 4) + 3 & ~3 for kind, v in tags.values())
    tags[places] = (4, [data + sum(map(len, pieces[:number])) for number in range(len(pieces))])
    entries = b""
    for tag, (kind, numbers) in sorted(tags.items()):
        content = struct.pack(f"{order}{len(numbers)}{'H' if kind == 3 else 'I'}", *numbers)
        if len(content) > 4:
            place = struct.pack(f"{order}I", 8 + directory_bytes + len(extra))
            extra += content + bytes(-len(content) % 4)
        else:
            place = content.ljust(4, b"\0")
        entries += struct.pack(f"{order}HHI", tag, kind, len(numbers)) + place
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    directory = struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    return (start + directory + extra).ljust(data, b"\0") + b"".join(pieces)


def tiffs() -> Iterator[tuple[str, bytes]]:
    """Grey, black and white either way round, palettes, colours, inks; alpha of both kinds; planes, tiles, turned."""
    for order, end in (("<", "little"), (">", "big")):
        for bits in (1, 2, 4, 8, 16):
            for photometric in (0, 1):
                yield f"tiff-grey{bits}-{photometric}-{end}", tiff(noise(1, bits), bits, photometric, order)
        for bits in (1, 2, 4, 8):
            colours = np.random.default_rng(1).integers(0, 65536, 3 << bits).tolist()
            yield f"tiff-palette{bits}-{end}", tiff(noise(1, bits), bits, 3, order, colours=colours)
        for bits in (8, 16):
            yield f"tiff-rgb{bits}-{end}", tiff(noise(3, bits), bits, 2, order)
            yield f"tiff-cmyk{bits}-{end}", tiff(noise(4, bits), bits, 5, order, inks=1)
            for extra in (0, 1, 2):
                yield f"tiff-rgb{bits}-extra{extra}-{end}", tiff(noise(4, bits), bits, 2, order, extra=extra)
        yield f"tiff-grey-alpha-{end}", tiff(noise(2, 8), 8, 1, order, extra=2)
    yield "tiff-planes", tiff(noise(3, 8), 8, 2, "<", planar=2)
    yield "tiff-planes-alpha", tiff(noise(4, 8), 8, 2, "<", planar=2, extra=2)
    yield "tiff-tiles", tiff(noise(3, 8), 8, 2, "<", tiled=1)
    yield "tiff-tiles-planes", tiff(noise(3, 8), 8, 2, "<", tiled=1, planar=2)
    for orientation in range(1, 9):
        yield f"tiff-turned{orientation}", tiff(noise(3, 8), 8, 2, "<", orientation=orientation)


def pnms() -> Iterator[tuple[str, bytes]]:
    """P1 to P6, with largest values of 1, 100, 255, 1,000 and 65,535, and a comment."""
    for letter, channels in ((2, 1), (3, 3), (5, 1), (6, 3)):
        for largest in (1, 100, 255, 1_000, 65_535):
            values = np.random.default_rng(0).integers(0, largest + 1, (HEIGHT, WIDTH, channels)).reshape(-1)
            body = values.astype(">u2" if largest > 255 else "u1").tobytes()
            text = " ".join(map(str, values.tolist())).encode()
            head = f"P{letter}\n# a comment\n{WIDTH} {HEIGHT}\n{largest}\n".encode()
            yield f"pnm-{letter}-{largest}", head + (body if letter > 3 else text)
    bits = noise(1, 1)
    head = f"{WIDTH} {HEIGHT}\n".encode()
    yield "pnm-1", b"P1\n" + head + " ".join(map(str, bits.reshape(-1).tolist())).encode()
    yield "pnm-4", b"P4\n" + head + b"".join(packed(row, 1) for row in bits)

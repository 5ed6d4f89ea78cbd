"""Decoded images against Pillow, and refused files."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data import bounds
from data.errors import BadSample, Cause
from data.images.decode import decode, decode_window, read_header, reduction
from tests.paths import ROOT

FORMATS = ["JPEG", "PNG", "WEBP"]


def by_pil(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")).astype(int)


def saved(image: Image.Image, file_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def outcome(encoded: bytes) -> np.ndarray | str:
    """The image, or the cause why there is none."""
    try:
        return decode(encoded)
    except BadSample as bad:
        return bad.cause


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_start(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    """Signature and header."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)


def with_size(encoded: bytes, width: int, height: int) -> bytes:
    """The same file, but its header claims another size."""
    forged = bytearray(encoded)
    if encoded[:2] == b"\xff\xd8":
        frame = next(at for at in range(len(encoded)) if encoded[at : at + 2] in (b"\xff\xc0", b"\xff\xc2"))
        struct.pack_into(">HH", forged, frame + 5, height, width)
    elif encoded[12:16] == b"IHDR":
        return png_start(width, height) + encoded[33:]
    elif encoded[12:16] == b"VP8 ":
        struct.pack_into("<HH", forged, 26, width, height)
    elif encoded[12:16] == b"VP8L":
        forged[21:25] = ((width - 1) | (height - 1) << 14 | forged[24] >> 4 << 28).to_bytes(4, "little")
    else:
        forged[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(forged)


@pytest.mark.parametrize(
    ("file_format", "mode", "options", "tolerance"),
    [
        ("PNG", "RGB", {}, 0),
        ("PNG", "L", {}, 0),
        ("PNG", "P", {}, 0),
        ("PNG", "P", {"transparency": 3}, 0),
        ("PNG", "P", {"bits": 4}, 0),
        ("PNG", "L", {"transparency": 100}, 0),
        ("PNG", "1", {}, 0),
        ("PNG", "LA", {}, 0),
        ("WEBP", "RGB", {"lossless": True}, 0),
        ("WEBP", "RGB", {"quality": 80}, 0),
        ("JPEG", "RGB", {}, 0),
        ("JPEG", "RGB", {"progressive": True}, 0),
        ("JPEG", "L", {}, 0),
        ("JPEG", "L", {"progressive": True}, 0),
        ("JPEG", "CMYK", {}, 3),  # no colour profile: the two libraries round differently
        ("JPEG", "CMYK", {"progressive": True}, 3),
    ],
)
def test_rgb_as_pil_decodes_it(photos, encode, file_format, mode, options, tolerance):
    encoded = encode(photos[0], file_format, mode, **options)
    pixels = decode(encoded)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (427, 640, 3))
    assert np.abs(pixels.astype(int) - by_pil(encoded)).max() <= tolerance


@pytest.mark.parametrize("transform", [0, 2])
def test_cmyk_with_black_ink(photos, transform):
    """All four inks, stored as such (0) and as YCCK (2), inverted as Adobe does: against Pillow and the formula."""
    inks = Image.merge("CMYK", [*Image.fromarray(photos[0]).split(), Image.fromarray(photos[1][..., 0] // 2)])
    encoded = bytearray(saved(inks, "JPEG", quality=95))
    encoded[encoded.index(b"Adobe") + 11] = transform
    pixels = decode(bytes(encoded)).astype(int)
    assert np.abs(pixels - by_pil(bytes(encoded))).max() <= 3
    stored = np.asarray(Image.open(io.BytesIO(encoded))).astype(float)
    assert np.abs(pixels - (255 - stored[..., :3]) * (255 - stored[..., 3:]) / 255).max() <= 3


@pytest.mark.parametrize(
    ("file_format", "options"),
    [("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("WEBP", {"quality": 90, "exact": True})],
)
def test_alpha_is_dropped(photos, file_format, options):
    """The colours are as stored, also those of transparent pixels."""
    alpha = np.random.default_rng(0).integers(0, 256, (427, 640, 1), dtype=np.uint8)
    encoded = saved(Image.fromarray(np.concatenate([photos[0], alpha], axis=2)), file_format, **options)
    assert np.array_equal(decode(encoded), by_pil(encoded))
    if "quality" not in options:
        assert np.array_equal(decode(encoded), photos[0])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_are_cut_to_eight(channels):
    values = np.random.default_rng(0).integers(0, 65536, (20, 30, channels), dtype=np.uint16)
    encoded = cv2.imencode(".png", values)[1].tobytes()
    bgr = np.broadcast_to(values[..., :3] >> 8, (20, 30, 3))
    assert np.array_equal(decode(encoded), bgr[..., ::-1])


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_ignored(photos, file_format, orientation):
    image, turned = Image.fromarray(photos[0][:50, :70]), Image.Exif()
    turned[0x0112] = orientation
    assert np.array_equal(decode(saved(image, file_format, exif=turned)), decode(saved(image, file_format)))


@pytest.mark.parametrize(("file_format", "options"), [("WEBP", {"lossless": True}), ("PNG", {})])
def test_the_first_picture_of_an_animation(photos, file_format, options):
    frames = [Image.fromarray(photo[:60, :80]) for photo in photos]
    encoded = saved(frames[0], file_format, save_all=True, append_images=frames[1:], duration=100, **options)
    assert Image.open(io.BytesIO(encoded)).n_frames == 2
    assert np.array_equal(decode(encoded), photos[0][:60, :80])


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_reduced_scale_as_libjpeg_gives_it(photos, encode, scale):
    """PIL's draft mode asks libjpeg for the same reduction."""
    encoded = encode(photos[1][:400, :600], "JPEG", quality=90)
    drafted = Image.open(io.BytesIO(encoded))
    drafted.draft("RGB", (600 // scale, 400 // scale))
    assert np.array_equal(decode(encoded, scale), np.asarray(drafted))


def test_reduced_sides_are_rounded_up(photos, encode):
    assert decode(encode(photos[0], "JPEG"), 8).shape == (54, 80, 3)


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_window_of_any_format(photos, encode, file_format):
    encoded = encode(photos[0], file_format)
    window = decode_window(encoded, read_header(encoded), (30, 50), (100, 1000))
    assert np.array_equal(window, decode(encoded)[30:130, 50:])


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("kept", [20, 0.5, -2])
def test_truncated_files_are_refused(photos, encode, file_format, kept):
    """A header, half of the file, all but two bytes."""
    encoded = encode(photos[0], file_format)
    cut = encoded[: int(len(encoded) * kept) if isinstance(kept, float) else kept]
    with pytest.raises(BadSample) as caught:
        decode(cut)
    assert caught.value.cause == Cause.UNDECODABLE


def test_empty():
    with pytest.raises(BadSample) as caught:
        decode(b"")
    assert caught.value.cause == Cause.EMPTY


@pytest.mark.parametrize("file_format", ["BMP", "TIFF", "GIF", "JPEG2000", "PPM"])
def test_other_formats_are_refused(photos, file_format):
    """Although OpenCV reads all of them."""
    encoded = saved(Image.fromarray(photos[0][:20, :20]), file_format)
    assert cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR) is not None
    with pytest.raises(BadSample) as caught:
        decode(encoded)
    assert caught.value.cause == Cause.UNDECODABLE


@pytest.mark.parametrize(
    "content", [b"<html>not found</html>", b"\0", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP"]
)
def test_garbage_is_refused(content):
    with pytest.raises(BadSample) as caught:
        decode(content)
    assert caught.value.cause == Cause.UNDECODABLE


@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"exif": b"Exif\0\0" + bytes(5000)}),
        ("JPEG", {"icc_profile": bytes(70000)}),
        ("PNG", {}),
        ("PNG", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}),
    ],
)
def test_the_size_in_the_header_as_pil_reads_it(photos, encode, file_format, options):
    encoded = encode(photos[0][:123, :457], file_format, **options)
    assert read_header(encoded)[:2] == (file_format.lower(), Image.open(io.BytesIO(encoded)).size[::-1])
    assert read_header(encoded).size == (123, 457)


@pytest.mark.parametrize("between", [b"\xff", b"\xff\xff\xff", b"\0junk", b"\xff\0", b"\xff\xd3", b"\xff\xe5\0\x02"])
def test_what_may_stand_between_a_jpegs_segments(photos, encode, between):
    """OpenCV decodes all of these, so the size must be found in all of them."""
    encoded = encode(photos[0][:40, :50], "JPEG")
    second = 4 + int.from_bytes(encoded[4:6], "big")
    padded = encoded[:second] + between + encoded[second:]
    assert read_header(padded).size == (40, 50)
    assert np.array_equal(decode(padded), decode(encoded))


@given(st.sampled_from([b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBPVP8"]), st.binary(max_size=60))
def test_reading_a_header_never_fails_otherwise(start, tail):
    try:
        size = read_header(start + tail).size
    except BadSample:
        return
    assert 0 < size[0] * size[1] <= bounds.PIXELS


SOME_OF_EACH = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("PNG", {}),
    ("WEBP", {}),
    ("WEBP", {"lossless": True}),
    ("WEBP", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}),
]


@pytest.mark.parametrize(("file_format", "options"), SOME_OF_EACH)
def test_too_many_pixels(photos, encode, file_format, options):
    """A JPEG's own bytes cannot hold so many. A WebP without extensions cannot claim so many."""
    encoded = with_size(encode(photos[0][:40, :50], file_format, **options), 65_500, 15_000)
    with pytest.raises(BadSample) as caught:
        decode(encoded)
    assert caught.value.cause == (Cause.HUGE if file_format == "PNG" or "exif" in options else Cause.UNDECODABLE)


def test_a_jpeg_of_one_colour_is_within_what_its_bytes_can_hold():
    for options in ({}, {"progressive": True}, {"quality": 1, "optimize": True}, {"subsampling": 0}):
        for mode in ("L", "RGB", "CMYK"):
            encoded = saved(Image.new(mode, (4_000, 3_000)), "JPEG", **options)
            assert read_header(encoded).size == (3_000, 4_000)


@pytest.mark.parametrize(("file_format", "options"), SOME_OF_EACH)
def test_a_size_that_is_not_the_contents(photos, encode, file_format, options):
    """Refused, or filled up: an image always has the size in its header, from which the crop is computed."""
    result = outcome(with_size(encode(photos[0][:40, :50], file_format, **options), 60, 60))
    assert result == Cause.UNDECODABLE if isinstance(result, str) else result.shape == (60, 60, 3)


def test_the_limit_of_pixels():
    assert bounds.PIXELS == 16_384 * 16_384
    assert read_header(png_start(16_384, 16_384)).size == (16_384, 16_384)
    for size in ((16_385, 16_384), (2**28 + 1, 1), (2**31 - 1, 2**31 - 1)):
        with pytest.raises(BadSample, match=Cause.HUGE):
            read_header(png_start(*size))


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
@pytest.mark.parametrize("file_format", FORMATS)
def test_no_pixels(photos, encode, file_format, size):
    encoded = with_size(encode(photos[0][:40, :50], file_format), *size)
    with pytest.raises(BadSample, match=Cause.UNDECODABLE):
        decode(encoded)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_bombs_cost_no_memory(tmp_path):
    """A decodable file of 50 kB with 20,000 x 20,000 pixels, and headers that claim the largest sizes.

    OpenCV and libwebp take memory for all pixels, but touch only the rows that are there.
    """
    rows = zlib.compress(bytes(20_000 * 2_501), 9)
    (tmp_path / "0").write_bytes(png_start(20_000, 20_000, 1, 0) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b""))
    small = Image.new("RGB", (64, 64))
    for name, (file_format, options) in enumerate(SOME_OF_EACH, 1):
        sides = (16_383, 16_383) if file_format == "WEBP" else (65_500, 65_500)
        (tmp_path / f"{name}").write_bytes(with_size(saved(small, file_format, **options), *sides))
    program = """
import pathlib, sys
from data.images.decode import decode
from data.errors import BadSample
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
for path in pathlib.Path(sys.argv[1]).iterdir():
    try:
        decode(path.read_bytes())
    except BadSample as bad:
        print(bad.cause)
print(peak() - before)
"""
    result = subprocess.run(
        [sys.executable, "-c", program, tmp_path], cwd=ROOT, capture_output=True, text=True, check=True
    )
    *causes, kilobytes = result.stdout.splitlines()
    assert sorted(causes) == [Cause.HUGE] * 2 + [Cause.UNDECODABLE] * 5
    assert int(kilobytes) < 40_000


@pytest.mark.parametrize(
    ("file_format", "mode", "options"),
    [
        ("JPEG", "RGB", {}),
        ("JPEG", "RGB", {"progressive": True}),
        ("JPEG", "CMYK", {}),
        ("PNG", "RGB", {}),
        ("PNG", "P", {}),
        ("WEBP", "RGB", {}),
        ("WEBP", "RGBA", {"lossless": True}),
    ],
)
def test_damaged_files_give_an_image_or_a_bad_sample(photos, encode, file_format, mode, options):
    encoded = encode(photos[0][100:160, 100:170], file_format, mode, **options)
    generator = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(encoded)
        for _ in range(generator.integers(1, 5)):
            damaged[generator.integers(len(damaged))] = generator.integers(256)
        if generator.random() < 0.3:
            del damaged[generator.integers(len(damaged)) :]
        result = outcome(bytes(damaged))
        if isinstance(result, str):
            assert result in (Cause.EMPTY, Cause.UNDECODABLE, Cause.HUGE)
        else:
            assert (result.dtype, result.shape) == (np.uint8, (*read_header(bytes(damaged)).size, 3))


@pytest.mark.parametrize(
    ("window", "target", "scale"),
    [
        ((448, 448), (224, 224), 2),
        ((447, 900), (224, 224), 1),
        ((4000, 4000), (224, 224), 8),
        ((900, 899), (224, 224), 4),
    ],
)
def test_reduction(window, target, scale):
    assert reduction(window, target) == scale

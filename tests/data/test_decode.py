import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data.decode import decode, jpeg_size, reduction
from data.errors import BadSample


def by_pil(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")).astype(int)


@pytest.mark.parametrize(
    ("file_format", "mode", "options", "tolerance"),
    [
        ("PNG", "RGB", {}, 0),
        ("PNG", "L", {}, 0),
        ("PNG", "P", {}, 0),
        ("PNG", "1", {}, 0),
        ("PNG", "LA", {}, 0),
        ("WEBP", "RGB", {"lossless": True}, 0),
        ("JPEG", "RGB", {}, 0),
        ("JPEG", "RGB", {"progressive": True}, 0),
        ("JPEG", "L", {}, 0),
        ("JPEG", "CMYK", {}, 3),  # no colour profile: the two round differently
    ],
)
def test_rgb_as_pil_decodes_it(photos, encode, file_format, mode, options, tolerance):
    encoded = encode(photos[0], file_format, mode, **options)
    pixels = decode(encoded)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (427, 640, 3))
    assert np.abs(pixels.astype(int) - by_pil(encoded)).max() <= tolerance


def test_alpha_is_dropped(photos, encode):
    """The colours stay as stored, also where they are transparent."""
    alpha = np.random.default_rng(0).integers(0, 256, (427, 640, 1), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.concatenate([photos[0], alpha], axis=2)).save(file, "PNG")
    assert np.array_equal(decode(file.getvalue()), photos[0])


def test_sixteen_bits_are_cut_to_eight():
    values = np.random.default_rng(0).integers(0, 65536, (20, 30), dtype=np.uint16)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    assert np.array_equal(decode(file.getvalue()), np.repeat((values >> 8)[..., None], 3, axis=2))


def test_exif_orientation_is_ignored(photos, encode):
    turned = Image.Exif()
    turned[0x0112] = 6
    assert np.array_equal(decode(encode(photos[0], "JPEG", exif=turned)), decode(encode(photos[0], "JPEG")))


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_reduced_scale_as_libjpeg_gives_it(photos, encode, scale):
    """PIL's draft mode asks libjpeg for the same reduction."""
    encoded = encode(photos[1][:400, :600], "JPEG", quality=90)
    drafted = Image.open(io.BytesIO(encoded))
    drafted.draft("RGB", (600 // scale, 400 // scale))
    assert np.array_equal(decode(encoded, scale), np.asarray(drafted))


def test_reduced_sides_are_rounded_up(photos, encode):
    assert decode(encode(photos[0], "JPEG"), 8).shape == (54, 80, 3)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("kept", [0, 20, 0.5, -2])
def test_truncated_files_are_refused(photos, encode, file_format, kept):
    """Nothing, a header, half of the file, all but two bytes."""
    encoded = encode(photos[0], file_format)
    cut = encoded[: int(len(encoded) * kept) if isinstance(kept, float) else kept]
    with pytest.raises(BadSample):
        decode(cut)


def test_garbage_is_refused():
    with pytest.raises(BadSample, match="undecodable image"):
        decode(b"<html>not found</html>")


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"exif": b"Exif\0\0" + bytes(5000)}, {"icc_profile": bytes(70000)}]
)
def test_jpeg_size_as_pil_reads_it(photos, encode, options):
    encoded = encode(photos[0][:123, :457], "JPEG", **options)
    assert jpeg_size(encoded) == Image.open(io.BytesIO(encoded)).size[::-1] == (123, 457)


def test_jpeg_size_of_other_files(photos, encode):
    encoded = encode(photos[0], "JPEG")
    assert jpeg_size(encode(photos[0], "PNG")) is None
    assert jpeg_size(b"") is None
    assert jpeg_size(encoded[:2] + b"\xff\xff" + encoded[3:]) == (427, 640)  # a fill byte before the first marker


@given(st.binary(max_size=60))
def test_jpeg_size_never_fails(tail):
    size = jpeg_size(b"\xff\xd8" + tail)
    assert size is None or min(size) > 0


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

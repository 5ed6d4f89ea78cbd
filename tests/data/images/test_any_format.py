"""What is packed and trained on equals Pillow's `convert("RGB")`, over a generated table of formats and modes.

docs/adding.md lists the differences: CMYK JPEGs are rounded differently, 16-bit grey is cut to its upper 8 bits, and
pixels without a range are refused.
"""

import io
import warnings
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from PIL import Image

from data import bounds
from data.errors import BadSample
from data.images.decode import decode
from data.packing.source import image_field
from tests.data.images import written

CMYK_ROUNDING = 3  # of 255: OpenCV's conversion of a CMYK JPEG against Pillow's


def pictures() -> dict[str, Image.Image]:
    """One picture in every mode that a file can have."""
    rows, columns = np.mgrid[: written.HEIGHT * 2, : written.WIDTH * 2]
    product = rows * columns
    colours = np.stack([columns * 5 % 256, rows * 9 % 256, (rows + columns) * 3 % 256], -1).astype(np.uint8)
    rgb, alpha = Image.fromarray(colours), Image.fromarray((product % 256).astype(np.uint8))
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    return {
        "1": rgb.convert("1"),
        "L": rgb.convert("L"),
        "LA": rgba.convert("LA"),
        "P": rgb.quantize(64),
        "RGB": rgb,
        "RGBA": rgba,
        "CMYK": Image.merge("CMYK", [*rgb.split(), alpha]),
        "YCbCr": rgb.convert("YCbCr"),
        "I;16": Image.fromarray((product * 60).astype(np.uint16)),
        "I": Image.fromarray((product * 60).astype(np.int32)),
        "F": Image.fromarray((product * 0.5).astype(np.float32)),
    }


OPTIONS: dict[str, list[dict[str, object]]] = {
    "JPEG": [
        {},
        {"progressive": True},
        {"subsampling": 0},
        {"subsampling": 1, "restart_marker_blocks": 2},
        {"keep_rgb": True},
        {"quality": 100, "subsampling": 0},
    ],
    "PNG": [{}, {"bits": 2}, {"bits": 4}, {"transparency": 3}],
    "WEBP": [{}, {"lossless": True}, {"lossless": True, "exact": True}],
    "BMP": [{}],
    "GIF": [{}, {"transparency": 3}, {"interlace": 0}],
    "TIFF": [{}, *({"compression": name} for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd"))],
    "PPM": [{}],
    "JPEG2000": [{}, {"irreversible": True}],
    "AVIF": [{}, {"quality": 100}],
}


def saved(image: Image.Image, name: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def table() -> Iterator[tuple[str, bytes]]:
    """(name, file) of everything that Pillow writes, and of what it does not."""
    for name, all_options in OPTIONS.items():
        for mode, picture in pictures().items():
            for options in all_options:
                try:
                    yield f"{name} {mode} {options}", saved(picture, name, **options)
                except (OSError, KeyError, SystemError, ValueError):  # this format has no such mode
                    continue
    for files in (written.pngs, written.bmps, written.tiffs, written.pnms):
        yield from files()
    yield from animations()


def animations() -> Iterator[tuple[str, bytes]]:
    """First frames that are smaller than the picture, or that are no part of the animation."""
    frames = [Image.fromarray(np.roll(np.asarray(pictures()["RGBA"]), step, 1)) for step in (0, 5, 9)]
    for name, options in (
        ("WEBP", {"lossless": True}),
        ("WEBP", {"background": (9, 8, 7, 6)}),
        ("GIF", {"disposal": 2}),
    ):
        yield f"{name} animation {options}", saved(frames[0], name, save_all=True, append_images=frames[1:], **options)
    for default in (False, True):
        yield (
            f"PNG animation {default}",
            saved(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=default),
        )
    gif = bytearray(saved(pictures()["P"], "GIF"))
    gif[6:10] = (99).to_bytes(2, "little") + (88).to_bytes(2, "little")  # a larger canvas
    yield "GIF larger canvas", bytes(gif)
    at = gif.index(b",", 13 + 3 * 2 ** ((gif[10] & 7) + 1))
    gif[at + 1 : at + 5] = (7).to_bytes(2, "little") + (9).to_bytes(2, "little")
    yield "GIF first frame with an offset", bytes(gif)


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dict(table())


def expected(content: bytes) -> np.ndarray | None:
    """Pillow's pixels; upper bits of 16-bit grey; None for pixels without a range, and for what Pillow cannot read."""
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except (OSError, SyntaxError, ValueError):
        return None
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        if image.format == "TIFF" and image.tag_v2[262] == 0 and image.mode == "I;16":  # white is zero
            grey = 255 - grey
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(image.convert("RGB"))


def test_the_table_is_pillows(files):
    assert len(files) > 250
    wrong, unread = [], []
    for name, content in files.items():
        wanted = expected(content)
        if wanted is None:
            unread.append(name)
            continue
        _, field = image_field(content)
        pixels = decode(field).astype(int)
        tolerance = CMYK_ROUNDING if name.startswith("JPEG CMYK") else 0
        if pixels.shape != wanted.shape or np.abs(pixels - wanted).max() > tolerance:
            wrong.append(name)
    assert wrong == []
    assert {name.split()[0] for name in unread} == {"TIFF", "PPM", "tiff-grey16-0-big", "bmp-32-masks"}, unread


def test_pixels_without_a_range_are_refused_by_name(files):
    for name in ("TIFF F {}", "TIFF I {}", "PPM F {}"):
        with pytest.raises(BadSample, match="undecodable image: pixel values without a range"):
            image_field(files[name])


def test_what_pillow_does_not_recognise_is_read_by_opencv(files):
    pam = b"P7\nWIDTH 3\nHEIGHT 1\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n" + bytes(range(9))
    assert decode(image_field(pam)[1]).reshape(-1).tolist() == list(range(9))
    white_is_zero = written.noise(1, 16)[..., 0] >> 8
    assert np.array_equal(decode(image_field(files["tiff-grey16-0-big"])[1])[..., 0], 255 - white_is_zero)
    assert decode(image_field(files["bmp-32-masks"])[1]).shape == (written.HEIGHT, written.WIDTH, 3)


def test_the_same_png_as_before(files):
    """Sets of pictures that OpenCV decoded rightly are packed to the same bytes."""
    for name in ("BMP RGB {}", "BMP P {}", "GIF P {}", "TIFF RGB {}", "PPM RGB {}", "PPM L {}", "AVIF RGB {}"):
        pixels = cv2.imdecode(np.frombuffer(files[name], np.uint8), cv2.IMREAD_COLOR)
        assert image_field(files[name])[1] == cv2.imencode(".png", pixels)[1].tobytes()


def test_no_other_format_of_pillow_is_opened(tmp_path):
    """PostScript would start a program."""
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    with pytest.raises(BadSample):
        image_field(script)
    with pytest.raises(BadSample, match="icon"):
        image_field(saved(pictures()["RGB"], "ICO"))


def test_every_file_cut_anywhere_is_refused_or_an_image(files):
    generator = np.random.default_rng(0)
    names = sorted(name for name in files if not name.startswith(("png", "JPEG ", "WEBP", "PNG")))
    for name in generator.choice(names, 60):
        content = bytearray(files[name])
        for _ in range(int(generator.integers(0, 4))):
            content[generator.integers(len(content))] = generator.integers(256)
        cut = int(generator.integers(1, len(content)))
        try:
            field = image_field(bytes(content[:cut] if generator.random() < 0.5 else content))
        except BadSample:
            continue
        assert decode(field[1]).shape[2] == 3


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("PNM", b"P6\n16385 16384\n255\n"),
        ("PAM", b"P7\nWIDTH 16385\nHEIGHT 16384\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n"),
        (
            "BMP",
            b"BM"
            + bytes(12)
            + (40).to_bytes(4, "little")
            + (30_000).to_bytes(4, "little") * 2
            + b"\1\0\x18\0"
            + bytes(24),
        ),
    ],
)
def test_more_pixels_than_the_bound(name, head):
    """By the header, without the pixels."""
    with pytest.raises(BadSample) as refused:
        image_field(head + bytes(1000))
    assert refused.value.cause == "absurd dimensions" or name == "PAM"  # which OpenCV finds to be cut short
    assert bounds.PIXELS == 1 << 28

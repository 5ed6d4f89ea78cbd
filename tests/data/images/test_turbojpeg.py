"""Windows by TurboJPEG against the whole image by OpenCV: the same pixels bit by bit, and the same errors."""

import io
import struct
import threading
from importlib import metadata

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.errors import BadSample, Cause
from data.images import turbojpeg
from data.images.decode import decode, decode_window, read_header

needs_library = pytest.mark.skipif(not turbojpeg.available(), reason="no TurboJPEG 3 library")

SAMPLINGS = {"4:4:4": 0x111111, "4:2:2": 0x211111, "4:2:0": 0x221111, "4:4:0": 0x121111, "4:1:1": 0x411111}
SCALES = (1, 2, 4, 8)


def textured(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Sharp colour edges everywhere, so that a wrong neighbour in the chroma interpolation shows."""
    coarse = np.random.default_rng(seed).integers(0, 256, (-(-height // 3), -(-width // 3), 3), dtype=np.uint8)
    return coarse.repeat(3, axis=0).repeat(3, axis=1)[:height, :width].copy()


def jpeg(image: np.ndarray, sampling: str = "4:2:0", *options: int) -> bytes:
    pixels, factors = (image[..., 0], ()) if sampling == "grey" else (image, (SAMPLINGS[sampling],))
    options += tuple(option for factor in factors for option in (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor))
    return cv2.imencode(".jpg", pixels, options)[1].tobytes()


def in_separate_scans(image: np.ndarray, half: bool) -> bytes:
    """A baseline JPEG with one scan a component, made from three grey JPEGs that share their tables."""
    planes = Image.fromarray(image).convert("YCbCr").split()
    height, width = image.shape[:2]
    small = (-(-width // 2), -(-height // 2)) if half else (width, height)
    files = []
    for plane in (planes[0], *(plane.resize(small) for plane in planes[1:])):
        file = io.BytesIO()
        plane.save(file, "JPEG", quality=85)
        files.append(file.getvalue())
    scans = [file[file.index(b"\xff\xda") + 10 : -2] for file in files]
    tables = (
        files[0][: files[0].index(b"\xff\xc0")] + files[0][files[0].index(b"\xff\xc4") : files[0].index(b"\xff\xda")]
    )
    luma = 0x22 if half else 0x11
    frame = struct.pack(">HHBHHB", 0xFFC0, 17, 8, height, width, 3) + bytes([1, luma, 0, 2, 0x11, 0, 3, 0x11, 0])
    coded = b"".join(b"\xff\xda\0\x08\x01" + bytes([n + 1]) + b"\0\0\x3f\0" + scan for n, scan in enumerate(scans))
    return tables[:2] + frame + tables[2:] + coded + b"\xff\xd9"


def window_of(encoded: bytes, scale: int, start: tuple[int, int], shape: tuple[int, int]) -> np.ndarray | None:
    return turbojpeg.decode_window(encoded, read_header(encoded).size, scale, start, shape)


def random_window(size: tuple[int, int], generator: np.random.Generator) -> tuple[tuple[int, int], tuple[int, int]]:
    y, x = (int(generator.integers(side)) for side in size)
    return (y, x), (int(generator.integers(1, size[0] - y + 1)), int(generator.integers(1, size[1] - x + 1)))


def outcome(encoded: bytes, start: tuple[int, int], shape: tuple[int, int], scale: int) -> np.ndarray | str:
    """The window or the cause of its refusal."""
    try:
        return decode_window(encoded, read_header(encoded), start, shape, scale)
    except BadSample as bad:
        return bad.cause


def assert_same_with_and_without_library(encoded: bytes, generator: np.random.Generator, monkeypatch) -> str | None:
    """For a random window at a random scale. Returns the cause of refusal, None for an image."""
    scale = int(generator.choice(SCALES))
    try:
        size = read_header(encoded).size
    except BadSample as bad:
        return bad.cause
    start, shape = random_window((-(-size[0] // scale), -(-size[1] // scale)), generator)
    fast = outcome(encoded, start, shape, scale)
    with monkeypatch.context() as context:
        context.setattr(turbojpeg, "_library", lambda: None)
        slow = outcome(encoded, start, shape, scale)
    assert isinstance(fast, str) == isinstance(slow, str)
    assert np.array_equal(fast, slow)
    return fast if isinstance(fast, str) else None


def test_the_library_in_the_wheel_is_found():
    try:
        metadata.distribution("turbojpeg")
    except metadata.PackageNotFoundError:
        pytest.skip("the wheel is not installed")
    assert turbojpeg.available()


@needs_library
@settings(max_examples=250, deadline=None)
@given(st.data())
def test_a_window_is_the_window_of_the_whole(data):
    height, width = data.draw(st.integers(1, 120)), data.draw(st.integers(1, 120))
    options = [cv2.IMWRITE_JPEG_QUALITY, data.draw(st.integers(10, 100))]
    if interval := data.draw(st.integers(0, 5)):
        options += [cv2.IMWRITE_JPEG_RST_INTERVAL, interval]
    sampling = data.draw(st.sampled_from(["grey", "4:4:4", "4:2:2", "4:2:0", "4:4:0"]))
    encoded = jpeg(textured(height, width), sampling, *options)
    assert read_header(encoded).divisible
    scale = data.draw(st.sampled_from(SCALES))
    whole = decode(encoded, scale)
    for _ in range(4):
        y, x = data.draw(st.integers(0, whole.shape[0] - 1)), data.draw(st.integers(0, whole.shape[1] - 1))
        rows, columns = data.draw(st.integers(1, whole.shape[0] - y)), data.draw(st.integers(1, whole.shape[1] - x))
        window = window_of(encoded, scale, (y, x), (rows, columns))
        assert window is not None
        assert np.array_equal(window, whole[y : y + rows, x : x + columns])


@needs_library
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("half", [False, True])
def test_components_in_scans_of_their_own(half, scale):
    image = textured(75, 93)
    encoded = in_separate_scans(image, half)
    whole = decode(encoded, scale)
    if scale == 1:  # the file is of the intended kind
        assert np.array_equal(whole, np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")))
    assert read_header(encoded).divisible
    generator = np.random.default_rng(scale)
    for _ in range(40):
        (y, x), (rows, columns) = random_window(whole.shape[:2], generator)
        window = window_of(encoded, scale, (y, x), (rows, columns))
        assert window is not None
        assert np.array_equal(window, whole[y : y + rows, x : x + columns])


@needs_library
def test_what_lies_below_is_not_decoded():
    """The purpose of windows: damage in the lower half does not matter for a window in the upper half."""
    encoded = jpeg(textured(320, 320))
    damaged = bytearray(encoded)
    damaged[len(encoded) * 3 // 4 : -2] = bytes(len(encoded) - 2 - len(encoded) * 3 // 4)
    assert not np.array_equal(decode(bytes(damaged)), decode(encoded))
    window = window_of(bytes(damaged), 1, (20, 30), (100, 200))
    assert window is not None
    assert np.array_equal(window, decode(encoded)[20:120, 30:230])


@pytest.mark.parametrize(
    "encoded",
    [
        jpeg(textured(60, 80), "4:2:0", cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        jpeg(textured(60, 80), "4:1:1"),
        jpeg(textured(60, 80)) + b"\0",  # does not end with the end marker
        jpeg(textured(60, 80))[:-2],
    ],
)
def test_not_divisible(encoded):
    assert not read_header(encoded).divisible


def test_cmyk_is_not_divisible(photos, encode):
    assert not read_header(encode(photos[0], "JPEG", "CMYK")).divisible


def test_progressive_images_without_all_scans_are_smoothed_equally(monkeypatch):
    """If there are only coarse coefficients, libjpeg smooths across blocks."""
    encoded = jpeg(textured(150, 170) // 2, "4:2:0", cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    scans = [at for at in range(len(encoded)) if encoded[at : at + 2] == b"\xff\xda"]
    generator = np.random.default_rng(0)
    for at in scans[1:]:
        for _ in range(5):
            assert assert_same_with_and_without_library(encoded[:at] + b"\xff\xd9", generator, monkeypatch) is None


@pytest.mark.parametrize("progressive", [0, 1])
@pytest.mark.parametrize("ending", [b"", b"\xff\xd9"])
def test_the_verdict_on_a_truncated_file_does_not_depend_on_the_window(progressive, ending, monkeypatch):
    """Cut at every 5 %, and once more with an end marker added: for libjpeg such a file is complete, and grey below."""
    encoded = jpeg(textured(120, 160), "4:2:0", cv2.IMWRITE_JPEG_PROGRESSIVE, progressive)
    generator = np.random.default_rng(0)
    for percent in range(5, 100, 5):
        cut = encoded[: len(encoded) * percent // 100]
        causes = {assert_same_with_and_without_library(cut + ending, generator, monkeypatch) for _ in range(12)}
        assert len(causes) == 1
        assert ending or causes == {Cause.UNDECODABLE}


@pytest.mark.parametrize("sampling", ["grey", "4:4:4", "4:2:0"])
def test_damaged_files_look_the_same_either_way(sampling, monkeypatch):
    encoded = jpeg(textured(90, 100), sampling, cv2.IMWRITE_JPEG_RST_INTERVAL, 3)
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(encoded)
        for _ in range(generator.integers(1, 4)):
            damaged[generator.integers(2, len(encoded))] = generator.integers(256)
        refused += assert_same_with_and_without_library(bytes(damaged), generator, monkeypatch) is not None
    assert 0 < refused < 150


@needs_library
def test_damage_above_the_window_is_an_error():
    """A wrong restart marker: OpenCV then decodes the whole image, for every window."""
    encoded = bytearray(jpeg(textured(160, 160), "4:2:0", cv2.IMWRITE_JPEG_RST_INTERVAL, 10))
    encoded[encoded.index(b"\xff\xd2") + 1] = 0xD5
    assert window_of(bytes(encoded), 1, (120, 0), (20, 160)) is None


def test_nothing_is_left_of_the_previous_image(monkeypatch):
    """Neither its tables, which a file may omit, nor an error."""
    encoded, generator = jpeg(textured(90, 100), "4:4:4"), np.random.default_rng(0)
    quantisation, huffman = encoded.index(b"\xff\xdb"), encoded.index(b"\xff\xc4")
    without_quantisation = encoded[:quantisation] + encoded[encoded.index(b"\xff\xc0") :]
    without_huffman = encoded[:huffman] + encoded[encoded.index(b"\xff\xda") :]
    bad_huffman = encoded[: huffman + 5] + b"\xff" * 16 + encoded[huffman + 21 :]
    other = jpeg(textured(90, 100), "4:4:4", cv2.IMWRITE_JPEG_OPTIMIZE, 1, cv2.IMWRITE_JPEG_QUALITY, 30)
    for file in (encoded, without_quantisation, other, without_huffman, bad_huffman, encoded, other) * 3:
        cause = assert_same_with_and_without_library(file, generator, monkeypatch)
        assert cause == (Cause.UNDECODABLE if file in (without_quantisation, bad_huffman) else None)
    assert turbojpeg.available() == (window_of(encoded, 1, (0, 0), (9, 9)) is not None)


@needs_library
def test_threads_do_not_disturb_one_another():
    images = [jpeg(textured(200 + 8 * n, 240, seed=n)) for n in range(4)]
    whole = [[decode(image, scale) for scale in SCALES] for image in images]
    wrong = []

    def check(first: int) -> None:
        generator = np.random.default_rng(first)
        for turn in range(150):
            which, at = (first + turn) % 4, turn % 4
            (y, x), (rows, columns) = random_window(whole[which][at].shape[:2], generator)
            window = window_of(images[which], SCALES[at], (y, x), (rows, columns))
            if window is None or not np.array_equal(window, whole[which][at][y : y + rows, x : x + columns]):
                wrong.append((first, turn))

    threads = [threading.Thread(target=check, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@needs_library
def test_a_window_outside_the_image_is_refused_by_the_library():
    assert window_of(jpeg(textured(40, 40)), 1, (30, 0), (20, 40)) is None

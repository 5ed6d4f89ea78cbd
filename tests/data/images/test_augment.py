import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, ks_2samp

from data import Augment
from data.errors import BadSample
from data.images.augment import Geometry, averaged, draw, inception_window, reduced_window
from data.images.decode import decode, reduction
from data.splitmix import Draws, Purpose, key


def scaled(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear with half-pixel centres, by formula: float (height, width, 3)."""
    result = image.astype(float)
    for axis, (size, target) in enumerate(zip(image.shape, (height, width), strict=False)):
        place = np.clip((np.arange(target) + 0.5) * size / target - 0.5, 0, size - 1)
        before = np.minimum(place.astype(int), max(size - 2, 0))
        part = (place - before).reshape([-1 if a == axis else 1 for a in range(3)])
        after = np.minimum(before + 1, size - 1)
        result = (1 - part) * result.take(before, axis) + part * result.take(after, axis)
    return result


def block_means(image: np.ndarray, down: int, across: int) -> np.ndarray:
    """Means of blocks of down x across pixels, which fill the image: float."""
    height, width = image.shape[0] // down, image.shape[1] // across
    return image.reshape(height, down, width, across, 3).mean(axis=(1, 3))


def reference(image: np.ndarray, scale: int, geometry: Geometry, image_size: int) -> tuple[np.ndarray, int]:
    """`geometry` applied step by step in floating point, to an image that the decoder has reduced by `scale`.

    Returns:
        The pixels, float, and how often a side was halved.
    """
    y, x = (round(start / scale) for start in geometry.window_start)
    height, width = (max(round(side / scale), 1) for side in geometry.window)
    window = image[y : y + height, x : x + width].astype(float)
    factors, halvings = [1, 1], 0
    for axis in (0, 1):
        while window.shape[axis] > 2 * factors[axis] * geometry.canvas[axis]:
            factors[axis] *= 2
        halvings = max(halvings, factors[axis].bit_length() - 1)
        left_over = window.shape[axis] % factors[axis]
        window = window.take(range(left_over // 2, left_over // 2 + window.shape[axis] - left_over), axis)
    canvas = scaled(block_means(window, *factors), *geometry.canvas)
    top, left = geometry.cut_start
    cut = canvas[top : top + image_size, left : left + image_size]
    return (cut[:, ::-1] if geometry.flip else cut), halvings


def rendered(augment: Augment, encoded: bytes, image_size: int, seed=0, epoch=0, sample_id=0) -> np.ndarray:
    out = np.zeros((image_size, image_size, 3), np.uint8)
    augment.render(encoded, out, seed=seed, epoch=epoch, sample_id=sample_id)
    return out


def close(pixels: np.ndarray, expected: np.ndarray) -> bool:
    """OpenCV interpolates 8-bit images in fixed point: it may differ by one level."""
    return bool(np.abs(pixels - expected).max() <= 1.01)


AUGMENTS = [
    Augment("inception"),
    Augment("inception", flip=True),
    Augment("resize", flip=True),
    Augment("resize_crop", resize=96, flip=True),
    Augment("center"),
    Augment("center", resize=120),
    Augment("resize_center", resize=100),
]


@pytest.mark.parametrize("augment", AUGMENTS, ids=lambda augment: f"{augment.crop}-{augment.flip}-{augment.resize}")
@pytest.mark.parametrize(("file_format", "options"), [("JPEG", {}), ("PNG", {"compress_level": 1})])
def test_every_crop_against_a_slow_reference(photos, encode, augment, file_format, options):
    """OpenCV interpolates 8-bit images in fixed point: it may differ by one level, and by half a level a halving."""
    scales, halved, mirrored = set(), set(), set()
    for sample_id in range(12):
        image = photos[sample_id % 2][: 427 - 60 * (sample_id % 5), : 640 - 100 * (sample_id % 4)]
        encoded, image_size = encode(image, file_format, **options), (16, 50, 84)[sample_id % 3]
        draws = Draws(key(Purpose.AUGMENT, 1, 2, sample_id))
        geometry = augment.geometry(image.shape[:2], image_size, draws)
        scale = reduction(geometry.window, geometry.canvas) if file_format == "JPEG" else 1
        expected, halvings = reference(decode(encoded, scale), scale, geometry, image_size)
        out = rendered(augment, encoded, image_size, 1, 2, sample_id)
        assert np.abs(out - expected).max() <= 1.01 + 0.5 * halvings
        scales.add(scale)
        halved.add(halvings)
        mirrored.add(geometry.flip)
    assert len(scales) > 1 or file_format == "PNG"
    assert len(halved) > 1 or file_format == "JPEG"
    assert len(mirrored) == 1 + augment.flip


@pytest.mark.parametrize(
    ("augment", "sample", "size", "expected"),
    [
        (Augment("inception", flip=True), (0, 0, 0), (375, 500), ((149, 254), (191, 223), (224, 224), (0, 0), False)),
        (Augment("inception", flip=True), (0, 0, 0), (1200, 800), ((667, 334), (373, 436), (224, 224), (0, 0), False)),
        (
            Augment("inception", flip=True),
            (7, 3, 123456789),
            (375, 500),
            ((8, 15), (337, 389), (224, 224), (0, 0), True),
        ),
        (
            Augment("inception", min_area=0.3),
            (7, 3, 123456789),
            (1200, 800),
            ((115, 4), (666, 770), (224, 224), (0, 0), False),
        ),
        (
            Augment("resize_crop", resize=448, flip=True),
            (0, 0, 0),
            (375, 500),
            ((0, 0), (375, 500), (448, 448), (161, 79), True),
        ),
        (Augment("center"), (0, 0, 0), (1200, 800), ((0, 0), (1200, 800), (384, 256), (80, 16), False)),
        (Augment("resize", flip=True), (7, 3, 123456789), (375, 500), ((0, 0), (375, 500), (224, 224), (0, 0), True)),
    ],
)
def test_the_crops_of_a_run_stay_what_they_are(augment, sample, size, expected):
    """Frozen: another crop for the same (seed, epoch, sample) would make a resumed run another run."""
    assert augment.geometry(size, 224, Draws(key(Purpose.AUGMENT, *sample))) == expected


def test_resize(photos, encode):
    out = rendered(Augment("resize"), encode(photos[0], "PNG"), 320)
    assert close(out, scaled(photos[0], 320, 320))


def test_digits_at_their_own_size_stay_as_they_are(encode):
    tiny = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(rendered(Augment("resize"), encode(tiny, "PNG"), 8), tiny)


@pytest.mark.parametrize(("resize", "shorter"), [(None, 256), (300, 300)])
def test_center(photos, encode, resize, shorter):
    """The shorter side to 256, or to `resize`, then the middle 224."""
    out = rendered(Augment("center", resize=resize), encode(photos[0], "PNG"), 224)
    width = round(640 * shorter / 427)
    canvas = scaled(photos[0], shorter, width)
    top, left = (shorter - 224) // 2, (width - 224) // 2
    assert close(out, canvas[top : top + 224, left : left + 224])


def test_resize_center(photos, encode):
    """The authors' few-shot evaluation: the whole image to 256 x 256, then the middle 224."""
    photo = photos[0][:400, :500]  # a side that shrinks more than twice would be averaged first
    canvas = scaled(photo, 256, 256)
    assert close(rendered(Augment("resize_center"), encode(photo, "PNG"), 224), canvas[16:240, 16:240])


def area_means(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The mean of the area that each new pixel covers, pixel by pixel."""
    height, width = image.shape[:2]
    out = np.zeros((rows, columns, 3))
    for i, j in itertools.product(range(rows), range(columns)):
        top, bottom = i * height / rows, (i + 1) * height / rows
        left, right = j * width / columns, (j + 1) * width / columns
        for y, x in itertools.product(
            range(int(top), min(math.ceil(bottom), height)), range(int(left), min(math.ceil(right), width))
        ):
            part = max(0, min(y + 1, bottom) - max(y, top)) * max(0, min(x + 1, right) - max(x, left))
            out[i, j] += part * image[y, x] / ((bottom - top) * (right - left))
    return out


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
@pytest.mark.parametrize("size", [(427, 640), (100, 75), (20, 16)], ids=["shrunk", "shrunk a little", "enlarged"])
def test_exact_scaling_is_the_definition(photos, encode, size, file_format):
    """Bilinear without averaging for the whole image; means of areas for the shorter side, then the middle."""
    encoded = encode(photos[0][: size[0], : size[1]], file_format)
    image = decode(encoded)
    squeezed = rendered(Augment("resize", exact=True), encoded, 32)
    assert np.abs(squeezed - scaled(image, 32, 32)).max() <= 0.51
    middle = rendered(Augment("resize_center", resize=40, exact=True), encoded, 32)
    assert np.abs(middle - scaled(image, 40, 40)[4:36, 4:36]).max() <= 0.51

    ratio = 40 / min(size)
    rows, columns = round(size[0] * ratio), round(size[1] * ratio)
    top, left = (rows - 32) // 2, (columns - 32) // 2
    center = rendered(Augment("center", resize=40, exact=True), encoded, 32)
    assert np.abs(center - area_means(image, rows, columns)[top : top + 32, left : left + 32]).max() <= 0.51


def test_resize_crop_cuts_anywhere_with_equal_chance(photos, encode):
    """The ViT paper's fine-tuning crop, small: the 5 x 5 cuts of the scaled image are equally frequent."""
    encoded, canvas = encode(photos[0][:60, :60], "PNG"), scaled(photos[0][:60, :60], 36, 36)
    counts = np.zeros((5, 5), int)
    for sample in range(1000):
        out = rendered(Augment("resize_crop", resize=36), encoded, 32, sample_id=sample)
        fits = [(y, x) for y in range(5) for x in range(5) if close(out, canvas[y : y + 32, x : x + 32])]
        assert len(fits) == 1
        counts[fits[0]] += 1
    assert chisquare(counts.ravel()).pvalue > 1e-4


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.floats(0.01, 1), st.integers(0, 2**64 - 1))
def test_inception_windows_are_legal(height, width, min_area, seed):
    (y, x), (rows, columns) = inception_window((height, width), min_area, Draws(seed))
    assert 0 <= y <= y + rows <= height
    assert 0 <= x <= x + columns <= width
    if (rows, columns) != (height, width):
        assert min_area * height * width <= rows * columns
        # The width is rounded to a pixel.
        assert 3 / 4 - 0.51 / rows <= columns / rows <= 4 / 3 + 0.51 / rows


def tensorflow_window(size: tuple[int, int], min_area: float, generator: random.Random) -> tuple[int, int, int, int]:
    """GenerateRandomCrop of tensorflow/core/kernels/image/sample_distorted_bounding_box_op.cc, rewritten."""
    height, width = size
    for _ in range(100):
        aspect = generator.uniform(3 / 4, 4 / 3)
        low, high = min_area * width * height, 1.0 * width * height
        rows, max_rows = round(math.sqrt(low / aspect)), round(math.sqrt(high / aspect))
        if round(max_rows * aspect) > width:
            max_rows = int((width + 0.5 - 1e-7) / aspect)
            if round(max_rows * aspect) > width:
                max_rows -= 1
        max_rows = min(max_rows, height)
        rows = min(rows, max_rows)
        if rows < max_rows:
            rows += generator.randrange(max_rows - rows + 1)
        columns = round(rows * aspect)
        if rows * columns < low:
            rows += 1
            columns = round(rows * aspect)
        if rows * columns > high:
            rows -= 1
            columns = round(rows * aspect)
        if low <= rows * columns <= high and 0 < columns <= width and 0 < rows <= height:
            y = generator.randrange(height - rows) if rows < height else 0
            x = generator.randrange(width - columns) if columns < width else 0
            return y, x, rows, columns
    return 0, 0, height, width


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (200, 900)])
def test_inception_windows_are_distributed_as_tensorflow_draws_them(size):
    ours = np.array([sum(inception_window(size, 0.05, Draws(seed * 7919)), ()) for seed in range(4000)])
    generator = random.Random(1)
    theirs = np.array([tensorflow_window(size, 0.05, generator) for _ in range(4000)])
    for quantity in (
        lambda w: w[:, 0],
        lambda w: w[:, 1],
        lambda w: w[:, 2] * w[:, 3],
        lambda w: w[:, 3] / w[:, 2],
    ):
        assert ks_2samp(quantity(ours), quantity(theirs)).pvalue > 1e-4


def test_flip_mirrors_half_of_the_samples_and_changes_nothing_else(photos, encode):
    encoded = encode(photos[1][:100, :120], "PNG")
    mirrored = 0
    for sample in range(400):
        plain = rendered(Augment("inception"), encoded, 16, sample_id=sample)
        flipped = rendered(Augment("inception", flip=True), encoded, 16, sample_id=sample)
        assert np.array_equal(flipped, plain) or np.array_equal(flipped, plain[:, ::-1])
        mirrored += not np.array_equal(flipped, plain)
    assert 150 < mirrored < 250  # five standard deviations


def test_pure_function_of_seed_epoch_and_sample(photos, encode):
    encoded, augment = encode(photos[0], "JPEG"), Augment("inception", flip=True)
    cases = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)]
    first = [rendered(augment, encoded, 32, *case) for case in cases]
    again = [rendered(augment, encoded, 32, *case) for case in reversed(cases)][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({image.tobytes() for image in first}) == len(cases)


def displacement(image: np.ndarray, other: np.ndarray) -> float:
    """Rows that `image` is shifted: the minimum of a parabola through the squared differences at -1, 0, +1."""
    a, b = image.astype(float), other.astype(float)
    before, at, after = (np.square(x - y).mean() for x, y in ((a[:-2], b[1:-1]), (a[1:-1], b[1:-1]), (a[2:], b[1:-1])))
    return float((before - after) / (2 * (before - 2 * at + after)))


@pytest.mark.parametrize("sample_id", range(6))
@pytest.mark.parametrize("crop", ["inception", "center", "resize"])
def test_jpeg_at_reduced_scale_shows_the_same_place(photos, encode, crop, sample_id):
    """Against the full image, averaged over the same window, whose edges are moved to whole reduced pixels."""
    encoded, augment = encode(photos[0], "JPEG", quality=95), Augment(crop, min_area=0.3)
    reduced = rendered(augment, encoded, 48, sample_id=sample_id).astype(float)
    geometry = augment.geometry((427, 640), 48, Draws(key(Purpose.AUGMENT, 0, 0, sample_id)))
    scale = reduction(geometry.window, geometry.canvas)
    assert scale > 1
    snapped = geometry._replace(
        window_start=tuple(round(start / scale) * scale for start in geometry.window_start),
        window=tuple(round(side / scale) * scale for side in geometry.window),
    )
    full = np.zeros((48, 48, 3), np.uint8)
    (y, x), (rows, columns) = reduced_window(snapped, 1)
    draw(decode(encoded)[y : y + rows, x : x + columns], snapped, full)
    assert abs(displacement(reduced, full)) < 0.1
    assert abs(displacement(reduced.swapaxes(0, 1), full.swapaxes(0, 1))) < 0.1
    assert abs(displacement(reduced[1:], full[:-1])) > 0.8  # the measure detects a shift of a pixel


def test_shrinking_averages(encode):
    """Stripes one pixel wide become uniform grey when they are scaled down, not one of their two colours."""
    stripes = np.zeros((64, 96, 3), np.uint8)
    stripes[:, ::2] = 200
    out = rendered(Augment("resize"), encode(stripes, "PNG"), 16)
    assert np.abs(out.astype(int) - 100).max() <= 1


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_averaging_is_by_blocks(data):
    """Each side by the least power of two that leaves at most twice the target, centred; rounded once a halving."""
    height, width = data.draw(st.integers(1, 200)), data.draw(st.integers(1, 200))
    target = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 60))
    image = np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    result = averaged(image, target)
    down, across = (
        next(f for f in (1, 2, 4, 8, 16, 32, 64, 128) if side <= 2 * f * goal)
        for side, goal in zip((height, width), target, strict=True)
    )
    assert result.shape == (height // down, width // across, 3)
    top, left = height % down // 2, width % across // 2
    filled = image[top : top + height // down * down, left : left + width // across * across]
    halvings = max(down, across).bit_length() - 1
    assert np.abs(result - block_means(filled, down, across)).max() <= 0.51 * halvings


def test_a_strip_does_not_become_a_giant_canvas(encode):
    strip = np.tile(np.arange(40_000, dtype=np.uint16).astype(np.uint8)[None, :, None], (4, 1, 3))
    geometry = Augment("center").geometry((4, 40_000), 224, Draws(0))
    assert geometry.canvas == (256, 8 * 256)
    assert geometry.window_start == (0, 20_000 - 16)
    out = rendered(Augment("center"), encode(strip, "PNG"), 224)
    middle = scaled(strip[:, 20_000 - 16 : 20_000 + 16], 256, 2048)[16:240, 912 : 912 + 224]
    assert close(out, middle)


def test_draw_fills_the_given_memory(photos):
    batch = np.zeros((3, 20, 20, 3), np.uint8)
    for place, flip in ((0, False), (2, True)):
        draw(photos[0][:100, :100], Geometry((0, 0), (100, 100), (20, 20), (0, 0), flip), batch[place])
    assert batch[0].any()
    assert not batch[1].any()
    assert np.array_equal(batch[0], batch[2][:, ::-1])


def test_undecodable_leaves_the_memory_alone():
    out = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(BadSample):
        Augment().render(b"\xff\xd8\xff\xe0", out, seed=0, epoch=0, sample_id=0)
    assert not out.any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"crop": "middle"}, "crop 'middle' is none of inception, resize"),
        ({"min_area": 0.0}, "min_area 0.0 is not in"),
        ({"resize": 0}, "resize 0 is not"),
    ],
)
def test_impossible_settings(options, words):
    with pytest.raises(ValueError, match=words):
        Augment(**options)


def test_canvas_smaller_than_the_image():
    with pytest.raises(ValueError, match="resize 100 is smaller than the image size 224"):
        Augment("center", resize=100).check(224)
    Augment("inception", resize=100).check(224)

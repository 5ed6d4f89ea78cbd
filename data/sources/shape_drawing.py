"""One image of textured, coloured, overlapping shapes, drawn by arithmetic.

A class is a combination of a form, a colour and a texture, ten of each. Class c has form c mod 10, colour
(c + c // 10) mod 10 and texture (c + c // 10 + c // 100) mod 10. So there are up to 1,000 classes: the first ten differ
in all three, the first hundred in form or colour, and telling all thousand apart needs all three.

Image i of a split is a pure function of (seed, split, i): its randomness is a hash of these (splitmix.py). Two splits
share the classes and nothing else. The labelled object is in front, its radius 24 to 44 % of the side; two to five
smaller ones of any class, radius 8 to 18 %, lie around and behind it. In a multi-label image one to five objects of 14
to 34 % overlap freely, and an object carries no label if less than a third of it is visible.
"""

import math
from functools import cache
from typing import NamedTuple

import cv2
import numpy as np

from data.splitmix import Draws, Purpose, key, stream

FORMS = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "crescent", "arrow", "bar")
COLOURS = {
    "red": (215, 40, 40),
    "orange": (240, 135, 25),
    "yellow": (235, 215, 45),
    "green": (50, 160, 60),
    "cyan": (60, 200, 210),
    "blue": (45, 75, 205),
    "purple": (125, 50, 165),
    "pink": (240, 130, 180),
    "brown": (125, 80, 40),
    "white": (245, 245, 245),
}
TEXTURES = ("plain", "striped", "checked", "dotted", "ringed", "shaded", "speckled", "gridded", "wavy", "rayed")
SPLITS = ("train", "test")
VERSION = 1  # of the drawing
SUBPIXEL_BITS = 4  # OpenCV draws polygons at 1/16 of a pixel
VISIBLE = 1 / 3  # of a multi-label object must be visible for its label


class Look(NamedTuple):
    """Numbers of a class's form, colour and texture."""

    form: int
    colour: int
    texture: int


def look(number: int) -> Look:
    """The look of class `number`, 0 .. 999."""
    tens, hundreds = number // 10, number // 100
    return Look(number % 10, (number + tens) % 10, (number + tens + hundreds) % 10)


def class_names(classes: int) -> list[str]:
    """Names such as "striped orange square", by class number."""
    looks = [look(number) for number in range(classes)]
    colours = list(COLOURS)
    return [f"{TEXTURES[one.texture]} {colours[one.colour]} {FORMS[one.form]}" for one in looks]


def shape_image(
    seed: int, split: str, i: int, *, classes: int = 10, image_size: int = 64, multi_label: bool = False
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Draw image i of a split.

    Returns:
        uint8 (image_size, image_size, 3), RGB; and its labels, ascending: one, or in a multi-label set one to five.
    """
    draws = Draws(key(Purpose.SHAPES, VERSION, seed, SPLITS.index(split), i))
    canvas = _ground(draws, image_size)
    if not multi_label:
        label = draws.integer(classes)
        for _ in range(2 + draws.integer(4)):
            _draw(canvas, draws, look(draws.integer(classes)), draws.uniform(0.08, 0.18), margin=0.0)
        _draw(canvas, draws, look(label), draws.uniform(0.24, 0.44), margin=0.3)
        labels = {label}
    else:
        labels = _overlapping(canvas, draws, classes)
    noise = stream(draws.integer(1 << 63), canvas.size // 8 + 1).view(np.uint8)[: canvas.size]
    grain = draws.uniform(0.0, 0.16)
    canvas += noise.reshape(canvas.shape) * np.float32(grain)
    canvas -= 127.5 * grain
    return np.clip(canvas, 0, 255, out=canvas).astype(np.uint8), tuple(sorted(labels))


def _overlapping(canvas: np.ndarray, draws: Draws, classes: int) -> set[int]:
    """Draw one to five objects. Returns the classes of those that are visible; the last one always is."""
    covers, numbers = [], []
    for _ in range(1 + draws.integer(5)):
        numbers.append(draws.integer(classes))
        covers.append(_draw(canvas, draws, look(numbers[-1]), draws.uniform(0.14, 0.34), margin=0.15) > 127)
    hidden = np.zeros(canvas.shape[:2], bool)
    labels = set()
    for number, cover in zip(reversed(numbers), reversed(covers), strict=True):
        if (cover & ~hidden).sum() >= VISIBLE * cover.sum():
            labels.add(number)
        hidden |= cover
    return labels


def _ground(draws: Draws, size: int) -> np.ndarray:
    """A dull background, float32 (size, size, 3): coarse noise between two greyish tones."""
    cells = 2 + draws.integer(7)
    noise = stream(draws.integer(1 << 63), -(-cells * cells // 8)).view(np.uint8)[: cells * cells]
    tones = []
    for _ in range(2):
        grey = draws.uniform(40, 200)
        tones.append([grey + draws.uniform(-18, 18) for _ in range(3)])
    low, high = np.array(tones, np.float32)
    grid = low + (high - low) * (noise.reshape(cells, cells, 1) / np.float32(255))
    return cv2.resize(grid, (size, size), interpolation=cv2.INTER_LINEAR)


def _draw(canvas: np.ndarray, draws: Draws, what: Look, radius: float, margin: float) -> np.ndarray:
    """Draw one object, with its centre at least `margin` of the side from the edges.

    Returns:
        uint8 (size, size), how far the object covers each pixel.
    """
    size = len(canvas)
    radius *= size
    x, y = (draws.uniform(margin, 1 - margin) * size for _ in range(2))
    angle, squeeze = draws.uniform(0, 2 * math.pi), draws.uniform(0.85, 1.0)
    across, along = radius * math.cos(angle), radius * math.sin(angle)
    placed = np.array([[across, along], [-along * squeeze, across * squeeze]])
    contours = [
        np.rint((outline @ placed + (x, y)) * (1 << SUBPIXEL_BITS)).astype(np.int32)
        for outline in _outlines()[what.form]
    ]
    cover = np.zeros((size, size), np.uint8)
    cv2.fillPoly(cover, contours, 255, cv2.LINE_AA, SUBPIXEL_BITS)
    left, top = max(int(x - radius) - 2, 0), max(int(y - radius) - 2, 0)
    right, bottom = min(int(x + radius) + 3, size), min(int(y + radius) + 3, size)
    dx = (np.arange(left, right, dtype=np.float32) - x)[None] / radius**2
    dy = (np.arange(top, bottom, dtype=np.float32) - y)[:, None] / radius**2
    u, v = dx * across + dy * along, dy * across - dx * along  # the object's own coordinates, -1 to 1
    light = draws.uniform(0.8, 1.1) * (0.4 + 0.6 * _texture(what.texture, u, v, draws))
    colour = np.array(list(COLOURS.values())[what.colour], np.float32) + draws.uniform(-15, 15)
    alpha = cover[top:bottom, left:right] * np.float32(1 / 255)
    seen = canvas[top:bottom, left:right]
    seen *= (1 - alpha)[..., None]
    seen += colour * (alpha * light)[..., None]
    return cover


def _texture(number: int, u: np.ndarray, v: np.ndarray, draws: Draws) -> np.ndarray:
    """Brightness, float32 in 0 .. 1, at object coordinates u, v."""
    phase, pitch = draws.uniform(0, 2 * math.pi), draws.uniform(7.0, 11.0)
    name = TEXTURES[number]
    if name == "plain":
        return np.ones_like(u)
    if name == "striped":
        bright = np.sin(u * pitch + phase) > 0
    elif name == "checked":
        bright = (np.sin(u * pitch + phase) > 0) ^ (np.sin(v * pitch + phase) > 0)
    elif name == "dotted":
        bright = np.sin(u * pitch + phase) + np.sin(v * pitch + phase) < 0.7
    elif name == "ringed":
        bright = np.sin(np.sqrt(u * u + v * v) * (1.3 * pitch) + phase) > 0
    elif name == "shaded":
        return np.clip(0.5 * u + 0.5, 0, 1)
    elif name == "speckled":
        noise = stream(draws.integer(1 << 63), 32).view(np.uint8).reshape(16, 16)
        bright = noise[((v + 1.5) * 5).astype(int) % 16, ((u + 1.5) * 5).astype(int) % 16] > 110
    elif name == "gridded":
        bright = (np.sin(u * pitch + phase) < 0.75) & (np.sin(v * pitch + phase) < 0.75)
    elif name == "wavy":
        bright = np.sin(u * pitch + 1.8 * np.sin(5 * v) + phase) > 0
    else:
        bright = np.sin(7 * np.arctan2(v, u) + phase) > 0
    return bright.astype(np.float32)


@cache
def _outlines() -> list[list[np.ndarray]]:
    """The forms in the order of `FORMS`: closed curves, float64 (n, 2), in the unit circle. A second one is a hole."""
    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    circle = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    spikes = np.linspace(0, 2 * np.pi, 10, endpoint=False)
    star = np.stack([np.cos(spikes), np.sin(spikes)], axis=1) * np.where(np.arange(10) % 2, 0.42, 1.0)[:, None]
    heart = np.stack(
        [16 * np.sin(turn) ** 3, 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)],
        axis=1,
    )
    outer, inner = np.linspace(0.6, 2 * np.pi - 0.6, 30), np.linspace(2 * np.pi - 0.85, 0.85, 30)
    crescent = np.concatenate(
        [
            np.stack([np.cos(outer), np.sin(outer)], axis=1),
            np.stack([0.35 + 0.72 * np.cos(inner), 0.75 * np.sin(inner)], axis=1),
        ]
    )
    a, b = 0.3, 0.95
    cross = [(a, b), (a, a), (b, a), (b, -a), (a, -a), (a, -b), (-a, -b), (-a, -a), (-b, -a), (-b, a), (-a, a), (-a, b)]
    arrow = [(1, 0), (0.15, 0.75), (0.15, 0.27), (-0.95, 0.27), (-0.95, -0.27), (0.15, -0.27), (0.15, -0.75)]
    thirds, side = np.arange(3) * 2 * np.pi / 3, np.sqrt(0.5)
    return [
        [circle],
        [np.array([(side, side), (-side, side), (-side, -side), (side, -side)])],
        [np.stack([np.cos(thirds), np.sin(thirds)], axis=1)],
        [star],
        [np.array(cross) / np.hypot(a, b)],
        [circle, circle * 0.55],
        [heart / 17.0],
        [crescent],
        [np.array(arrow)],
        [np.array([(0.97, 0.26), (-0.97, 0.26), (-0.97, -0.26), (0.97, -0.26)])],
    ]

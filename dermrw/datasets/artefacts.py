"""Draws artefacts of dermatoscopes, cameras and people: hairs, ink, rulers, gel bubbles, borders, dark corners.

For training (`data.augment=devices`) and for the stress test. Each function takes pixels uint8 `[H, W, 3]` and a random
generator and returns new pixels of the same shape. All randomness comes from the generator. Lengths are fractions of
the shorter side. Shapes and colours follow pictures of HAM10000 and of ISIC 2017 and 2020.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import cv2
import numpy as np

Draw = Callable[[np.ndarray, np.random.Generator], np.ndarray]
Colour = tuple[float, float, float]

FINE = 2  # thin shapes are drawn this much larger and then reduced, so that a line can be thinner than a pixel


def hairs(pixels: np.ndarray, rng: np.random.Generator, count: int | None = None) -> np.ndarray:
    """Long curved hairs, or the stubble of a shaved place; dark, or light in one picture of five."""
    stubble = rng.random() < 0.25
    if count is None:
        count = int(rng.integers(8, 35) if stubble else rng.integers(1, 16))
    mask, side = _canvas(pixels)
    main_direction = rng.uniform(0, np.pi)
    for _ in range(count):
        length = side * (rng.uniform(0.03, 0.1) if stubble else rng.uniform(0.3, 1.3))
        angle = main_direction + rng.normal(0, 0.25 if stubble else 0.7)
        bend = rng.normal(0, 0.1 if stubble else 0.6)
        start = np.array([rng.uniform(-0.1, 1.1) * mask.shape[1], rng.uniform(-0.1, 1.1) * mask.shape[0]])
        steps = np.linspace(-0.5, 0.5, 4 if stubble else 16)
        turned = angle + bend * steps  # an arc: the direction changes evenly
        path = start + np.cumsum(np.stack([np.cos(turned), np.sin(turned)], 1) * length / len(steps), 0)
        thick = max(1, round(side / 224 * rng.uniform(0.5, 1.8)))
        _line(mask, path, thick, int(rng.uniform(140, 255)))
    tone = rng.uniform(150, 225) if rng.random() < 0.2 else rng.uniform(15, 90)
    return _blend(pixels, _reduced(mask, pixels), (tone, 0.7 * tone, 0.52 * tone), rng.uniform(0.6, 0.95))


def ink(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Marks of a surgical pen, violet or blue: dots or strokes towards the edge, or a part of a ring."""
    mask, side = _canvas(pixels)
    middle = np.array(mask.shape[1::-1]) / 2
    thick = max(1, round(side * rng.uniform(0.008, 0.03)))
    kind = rng.integers(3)
    if kind == 0:
        for angle in rng.uniform(0, 2 * np.pi, rng.integers(1, 5)):
            at = middle + side * rng.uniform(0.35, 0.6) * np.array([np.cos(angle), np.sin(angle)])
            _line(mask, at + side * 0.015 * rng.normal(size=(4, 2)), 2 * thick, 255)
    elif kind == 1:
        for angle in rng.uniform(0, 2 * np.pi, rng.integers(1, 4)):
            at = middle + side * rng.uniform(0.38, 0.6) * np.array([np.cos(angle), np.sin(angle)])
            turn = angle + np.pi / 2 + rng.normal(0, 0.5)
            end = at + side * rng.uniform(0.1, 0.4) * np.array([np.cos(turn), np.sin(turn)])
            _line(mask, np.linspace(at, end, 8) + side * 0.008 * rng.normal(size=(8, 2)), thick, 255)
    else:
        angles = rng.uniform(0, 2 * np.pi) + np.linspace(0, rng.uniform(1.5, 6.2), 40)
        radius = side * (rng.uniform(0.36, 0.5) + 0.01 * rng.normal(size=40))
        _line(mask, middle + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1), thick, 255)
    alpha = _reduced(mask, pixels)
    grain = cv2.resize(rng.random((24, 24), np.float32), alpha.shape[::-1], interpolation=cv2.INTER_LINEAR)
    colour = (rng.uniform(55, 120), rng.uniform(40, 90), rng.uniform(120, 180))
    return _blend(pixels, alpha * (0.4 + 0.6 * grain), colour, rng.uniform(0.5, 0.95))


def ruler(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A scale near an edge, black or white: ticks, every fifth longer, often inclined, with a base line and number."""
    mask, side = _canvas(pixels)
    height, width = mask.shape
    gap = side * rng.uniform(0.015, 0.05)
    long, short = side * rng.uniform(0.025, 0.06), side * rng.uniform(0.01, 0.025)
    angle = rng.choice([0.0, rng.normal(0, 0.3)]) + np.pi / 2 * rng.integers(4)
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    middle = np.array([width / 2, height / 2]) + across * side * rng.uniform(0.36, 0.49)
    half = int(rng.integers(5, max(6, int(0.6 * side / gap))))
    first = middle + along * side * rng.normal(0, 0.1)
    thick = max(1, round(side / 224 * rng.uniform(0.4, 1.1)))
    inward = -across if rng.random() < 0.7 else across
    for i in range(-half, half + 1):
        at = first + along * gap * i
        _line(mask, np.stack([at, at + inward * (long if i % 5 == 0 else short)]), thick, 255)
    if rng.random() < 0.7:
        _line(mask, np.stack([first - along * gap * half, first + along * gap * half]), thick, 255)
    if rng.random() < 0.5:
        at = first + along * gap * half
        text, size = str(rng.choice(["10", "5", "10 mm", "1 cm", "mm"])), side / FINE / 224 * rng.uniform(0.5, 0.9)
        cv2.putText(mask, text, (int(at[0]), int(at[1])), cv2.FONT_HERSHEY_SIMPLEX, size, 255, thick, cv2.LINE_AA)
    tone = rng.uniform(200, 255) if rng.random() < 0.3 else rng.uniform(0, 60)
    return _blend(pixels, _reduced(mask, pixels), (tone, tone, tone), rng.uniform(0.5, 1.0))


def bubbles(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bubbles in the gel or oil: bright rims with a weak bright inside, and white reflections."""
    mask, side = _canvas(pixels)
    for _ in range(rng.integers(1, 12)):
        at = (rng.uniform(0, 1, 2) * mask.shape[1::-1]).astype(int).tolist()
        radius = int(side * (rng.uniform(0.03, 0.12) if rng.random() < 0.2 else rng.uniform(0.006, 0.03)))
        inside = np.zeros_like(mask)
        cv2.circle(inside, at, radius, int(rng.uniform(10, 60)), -1, cv2.LINE_AA)
        start, extent = rng.uniform(0, 360), rng.uniform(120, 360)
        rim = max(1, round(0.12 * radius))
        cv2.ellipse(inside, at, (radius, radius), 0, start, start + extent, int(rng.uniform(90, 200)), rim, cv2.LINE_AA)
        cv2.max(mask, inside, mask)
    for _ in range(rng.integers(0, 15)):
        at = (rng.uniform(0, 1, 2) * mask.shape[1::-1]).astype(int).tolist()
        cv2.circle(
            mask, at, max(1, round(side * rng.uniform(0.001, 0.006))), int(rng.uniform(120, 255)), -1, cv2.LINE_AA
        )
    soft = cv2.GaussianBlur(_reduced(mask, pixels), (3, 3), 0)
    return _blend(pixels, soft, (255, 250, 250), rng.uniform(0.5, 0.95))


def sticker(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A coloured round patch at an edge, as on many benign lesions of ISIC 2017, or the edge of a cloth."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    angle, radius = rng.uniform(0, 2 * np.pi), side * rng.uniform(0.15, 0.4)
    if rng.random() < 0.25:
        radius = 3.0 * side
    visible = side * rng.uniform(0.04, 0.2)
    distance = radius + side / 2 - visible
    x, y = width / 2 + distance * np.cos(angle), height / 2 + distance * np.sin(angle)
    rows, columns = _grid(height, width)
    edge = np.clip(radius - np.hypot(columns - x, rows - y) + 0.5, 0, 1).astype(np.float32)
    hue = np.array([[[rng.integers(0, 180), rng.integers(120, 255), rng.integers(120, 245)]]], np.uint8)
    colour = cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0].astype(float)
    return _blend(pixels, edge, (colour[0], colour[1], colour[2]), rng.uniform(0.85, 1.0))


def glare(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One or two bright reflections of the lamp at the edges."""
    height, width = pixels.shape[:2]
    rows, columns = _grid(height, width)
    angle, alpha = rng.uniform(0, 2 * np.pi), np.zeros((height, width), np.float32)
    for turn in (0, np.pi)[: rng.integers(1, 3)]:
        x = width / 2 * (1 + rng.uniform(0.8, 1.1) * np.cos(angle + turn))
        y = height / 2 * (1 + rng.uniform(0.8, 1.1) * np.sin(angle + turn))
        spread = min(height, width) * rng.uniform(0.05, 0.15)
        alpha += np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * spread**2), dtype=np.float32)
    return _blend(pixels, np.minimum(alpha, 1), (255, 255, 255), rng.uniform(0.4, 0.9))


def vignette(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light that falls off from a point near the middle."""
    height, width = pixels.shape[:2]
    radius = _radius(height, width, *rng.normal(0, 0.08, 2))
    factor = 1 - rng.uniform(0.15, 0.6) * np.minimum(radius / 0.75, 1.3) ** rng.uniform(1.5, 4)
    return _scaled(pixels, np.maximum(factor, 0.1))


def dark_corners(
    pixels: np.ndarray, rng: np.random.Generator, radius: tuple[float, float] = (0.56, 0.68), white: float = 0.05
) -> np.ndarray:
    """The edge of a round field of view, soft or sharp. Beyond it the picture is dark, seldom white.

    Args:
        pixels: the picture.
        rng: the random generator.
        radius: of the field, drawn from this range: from 0.5 to 0.71 it cuts corners, below 0.5 the field is round.
        white: probability of a white surround.
    """
    height, width = pixels.shape[:2]
    at = _radius(height, width, *rng.normal(0, 0.02, 2))
    soft = rng.uniform(0.005, 0.08)
    inside = np.clip((rng.uniform(*radius) - at) / soft + 0.5, 0, 1)
    inside = inside * inside * (3 - 2 * inside)
    tone = rng.uniform(225, 255) if rng.random() < white else rng.uniform(0, 35)
    return _blend(pixels, 1 - inside, (tone, tone, tone), 1.0)


def round_field(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A round field of view that touches the sides or is smaller than the picture."""
    return dark_corners(pixels, rng, radius=(0.44, 0.53))


def border(
    pixels: np.ndarray,
    rng: np.random.Generator,
    width: tuple[float, float] = (0.005, 0.06),
    colour: Literal["black", "white"] | None = None,
) -> np.ndarray:
    """A black or white frame, on all four sides or on some."""
    height, across = pixels.shape[:2]
    side = min(height, across)
    out = pixels.copy()
    tone = _frame_tone(rng, colour)
    sides = np.ones(4, bool) if rng.random() < 0.5 else rng.random(4) < 0.5
    sides[rng.integers(4)] = True
    low, high = np.log(width)
    widths = np.exp(rng.uniform(low, high, 1 if rng.random() < 0.5 else 4)) * side  # equal in one picture of two
    top, bottom, left, right = np.maximum(1, widths.round()).astype(int) * sides
    out[:top], out[height - bottom :], out[:, :left], out[:, across - right :] = tone, tone, tone, tone
    return out


def letterbox(
    pixels: np.ndarray, rng: np.random.Generator, colour: Literal["black", "white"] | None = None
) -> np.ndarray:
    """Bands above and below, or at the left and the right, as around a picture of other proportions."""
    out, tone = pixels.copy(), _frame_tone(rng, colour)
    upright = rng.random() < 0.7
    extent = pixels.shape[0 if upright else 1]
    band = round(extent * rng.uniform(0.03, 0.14))
    for part in (slice(0, band), slice(extent - band, extent)):
        out[part if upright else slice(None), slice(None) if upright else part] = tone
    return out


def _frame_tone(rng: np.random.Generator, colour: str | None) -> int:
    dark = rng.random() < 0.7 if colour is None else colour == "black"
    return int(rng.integers(0, 16) if dark else rng.integers(240, 256))


def _canvas(pixels: np.ndarray) -> tuple[np.ndarray, float]:
    """An empty mask `[FINE H, FINE W]` for `_line`, and its shorter side."""
    mask = np.zeros((FINE * pixels.shape[0], FINE * pixels.shape[1]), np.uint8)
    return mask, float(min(mask.shape))


def _line(mask: np.ndarray, path: np.ndarray, thick: int, value: int) -> None:
    """Draws a path `[N, 2]` (x, y) into a mask."""
    points = np.round(path * 16).astype(np.int32)
    cv2.polylines(mask, [points[:, None]], False, value, thick, cv2.LINE_AA, shift=4)


def _reduced(mask: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """The mask in the size of the picture, float32 0 to 1."""
    small = cv2.resize(mask, pixels.shape[1::-1], interpolation=cv2.INTER_AREA)
    return small.astype(np.float32) / 255


def _blend(pixels: np.ndarray, alpha: np.ndarray, colour: Colour, opacity: float) -> np.ndarray:
    """Covers the picture with a colour: alpha `[H, W]` of 0 to 1, times the opacity."""
    weight = (alpha * np.float32(opacity)).astype(np.float32, copy=False)
    paint = np.empty_like(pixels)
    paint[:] = np.round(colour)
    return cv2.blendLinear(paint, pixels, weight, 1 - weight)


def _scaled(pixels: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Multiplies the picture by a factor `[H, W]` of 0 to 1."""
    weight = factor.astype(np.float32)
    return cv2.blendLinear(pixels, np.zeros_like(pixels), weight, 1 - weight)


@lru_cache(maxsize=8)
def _grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Row `[H, 1]` and column `[1, W]` of the middle of each pixel."""
    return (
        np.arange(height, dtype=np.float32)[:, None] + np.float32(0.5),
        np.arange(width, dtype=np.float32)[None] + np.float32(0.5),
    )


def _radius(height: int, width: int, right: float, down: float) -> np.ndarray:
    """Distance of each pixel from a point near the middle `[H, W]`, in shorter sides; right and down move the point."""
    rows, columns = _grid(height, width)
    side = min(height, width)
    x, y = width / 2 + right * side, height / 2 + down * side
    return np.sqrt(((columns - np.float32(x)) / side) ** 2 + ((rows - np.float32(y)) / side) ** 2)

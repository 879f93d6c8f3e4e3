"""Draws the images of the embedded sample: dermoscopy-like pictures of seven kinds of skin lesions.

They are drawings, not photographs of patients. Each class shows the dermoscopic structures that textbooks describe for
it, with enough overlap between the classes that a classifier makes mistakes.

In this module a mask is float32 [height, width] in 0..1. A colour image is float32 [3, height, width] RGB in 0..1, with
channels first because blending is then several times faster. Lengths are in lesion radii unless stated otherwise.
"""

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.random import Generator, default_rng

from dermrw.diagnoses import DX

HEIGHT, WIDTH = 120, 160  # 4:3, as HAM10000's 450 x 600
OVERSAMPLING = 1.5  # images are drawn larger by this factor, then reduced, for smooth hairs and fine mesh
CANVAS, REACH = 192, 1.8  # a lesion's canvas: CANVAS x CANVAS pixels, from its centre to REACH radii
RADIUS = CANVAS / 2 / REACH  # pixels
X = np.tile((np.arange(CANVAS, dtype=np.float32) + 0.5) / RADIUS - REACH, (CANVAS, 1))
Y = np.ascontiguousarray(X.T)
RHO, THETA = np.hypot(X, Y), np.arctan2(Y, X)
SUBPIXEL = 4  # cv2 draws at coordinates in sixteenths of a pixel

Colour = tuple[float, float, float]
Mask = np.ndarray  # float32 [height, width]
Layer = tuple[np.ndarray, np.ndarray]  # a lesion's colour [3, CANVAS, CANVAS] and opacity [CANVAS, CANVAS]
BLACK, DARK, BROWN, TAN = (0.12, 0.08, 0.08), (0.28, 0.17, 0.14), (0.46, 0.29, 0.22), (0.68, 0.47, 0.36)
BLUE_GREY, WHITE, CREAM = (0.38, 0.40, 0.46), (0.93, 0.86, 0.84), (0.95, 0.90, 0.78)
PINK, RED, BLOOD, PURPLE = (0.86, 0.58, 0.56), (0.76, 0.32, 0.32), (0.56, 0.10, 0.13), (0.34, 0.14, 0.28)


def _step(x: np.ndarray, softness: float) -> Mask:
    """Returns a smooth step: 0 for `x` well below zero, 1 well above, with a transition of width `softness`."""
    return 1 / (1 + np.exp(np.clip(x * (-1 / softness), -30, 30)))


def _mix(base: np.ndarray, colour: Sequence[float] | np.ndarray, mask: np.ndarray | float) -> np.ndarray:
    """Returns the image `base` with `colour` (one colour or an image) blended over it by `mask`."""
    over = np.asarray(colour, np.float32)
    over = over[:, None, None] if over.ndim == 1 else over
    return base + np.asarray(mask, np.float32) * (over - base)


def _between(rng: Generator, first: Colour, second: Colour) -> Colour:
    """Returns a random colour near the line from `first` to `second`."""
    t = rng.random()
    r, g, b = (float(p + t * (q - p)) * rng.normal(1, 0.02) for p, q in zip(first, second, strict=True))
    return r, g, b


def _noise(rng: Generator, cells: int, height: int = CANVAS, width: int = CANVAS) -> Mask:
    """Returns smooth noise with about `cells` clouds along each side, mean 0 and standard deviation about 1."""
    clouds = rng.standard_normal((cells, cells), np.float32)
    for weight in (0.5, 0.3):
        finer = cv2.resize(clouds, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
        clouds = finer + weight * rng.standard_normal(finer.shape, np.float32)
    return cv2.resize(clouds, (width, height), interpolation=cv2.INTER_CUBIC)


def _mesh(rng: Generator, cell: float, jitter: float, height: int = CANVAS, width: int = CANVAS) -> Mask:
    """Returns honeycomb lines about `cell` pixels apart, for the pigment network of a lesion or the furrows of skin."""
    rows, columns = np.mgrid[0 : height + cell : cell * 0.87, 0 : width + cell : cell]
    columns[1::2] += cell / 2
    rows, columns = np.stack([rows, columns]) + rng.normal(0, jitter * cell, (2, *rows.shape))
    canvas = np.full((height, width), 255, np.uint8)
    canvas[np.clip(rows, 0, height - 1).astype(int), np.clip(columns, 0, width - 1).astype(int)] = 0
    nearest = cv2.distanceTransformWithLabels(canvas, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)[1]
    edges = cv2.morphologyEx(nearest.astype(np.float32), cv2.MORPH_GRADIENT, np.ones((2, 2))) > 0
    return np.minimum(cv2.GaussianBlur(edges.astype(np.float32), (0, 0), max(0.7, cell / 10)) * 1.3, 1)


def _soften(drawn: np.ndarray, sigma: float) -> Mask:
    """Returns a mask from a uint8 drawing of cv2, blurred by `sigma` pixels."""
    return cv2.GaussianBlur(drawn, (0, 0), sigma).astype(np.float32) / 255


def _dots(rng: Generator, count: int, smallest: float, largest: float, spread: float = 0.85) -> Mask:
    """Returns `count` round dots with radii in [smallest, largest), scattered within `spread` of the centre."""
    drawn = np.zeros((CANVAS, CANVAS), np.uint8)
    distance, angle = spread * np.sqrt(rng.random(count)), rng.uniform(0, 2 * np.pi, count)
    centres = (np.stack([np.cos(angle), np.sin(angle)], 1) * distance[:, None] + REACH) * RADIUS
    for centre, r in zip(centres, rng.uniform(smallest, largest, count) * RADIUS, strict=True):
        at = (centre * 2**SUBPIXEL).astype(int).tolist()
        cv2.circle(drawn, at, int(r * 2**SUBPIXEL), 255, -1, cv2.LINE_AA, SUBPIXEL)
    return _soften(drawn, 0.5 + 0.15 * largest * RADIUS)


def _vessels(rng: Generator, trees: int) -> Mask:
    """Returns the arborizing vessels of bcc, which enter at the border, branch and become thinner."""
    drawn = np.zeros((CANVAS, CANVAS), np.uint8)
    tips = []
    for angle in rng.uniform(0, 2 * np.pi, trees):
        x, y = (REACH + math.cos(angle)) * RADIUS, (REACH + math.sin(angle)) * RADIUS
        tips.append((x, y, angle + math.pi + rng.normal(0, 0.6), rng.choice([1, 2, 2, 3])))
    while tips:
        x, y, heading, width = tips.pop()
        for _ in range(int(rng.integers(8, 16))):
            ahead = heading + rng.normal(0, 0.4)
            end = x + 0.07 * RADIUS * math.cos(ahead), y + 0.07 * RADIUS * math.sin(ahead)
            (x0, y0), (x1, y1) = ((int(a * 2**SUBPIXEL), int(b * 2**SUBPIXEL)) for a, b in ((x, y), end))
            cv2.line(drawn, (x0, y0), (x1, y1), 100 + 50 * int(width), int(width), cv2.LINE_AA, SUBPIXEL)
            (x, y), heading = end, heading + 0.5 * (ahead - heading)
            if width > 1 and rng.random() < 0.25:
                tips.append((x, y, heading + rng.choice([-1, 1]) * rng.uniform(0.5, 1.0), width - 1))
    return _soften(drawn, 0.6)


def _depth(rng: Generator, irregular: float, longest: float = 1.4) -> Mask:
    """Returns the depth of each pixel inside the lesion's border: 0 on the border, negative outside."""
    stretch = rng.uniform(1, longest) ** 0.5
    k = np.arange(2, 9)
    waves = irregular * rng.normal(size=7) / k**0.7
    angle = np.linspace(-np.pi, np.pi, 721)
    outline = (waves[:, None] * np.cos(k[:, None] * angle + rng.uniform(0, 2 * np.pi, (7, 1)))).sum(0)
    bulge = outline.astype(np.float32)[((THETA + np.pi) * (360 / np.pi)).astype(np.int32)]
    ragged = 0.25 * irregular * _noise(rng, 14)
    return 1 - np.hypot(X * stretch, Y / stretch) - bulge * np.minimum(RHO, 1) + ragged


def _field(rng: Generator, colour: Colour, mottle: float = 0.06) -> np.ndarray:
    """Returns a mottled canvas [3, CANVAS, CANVAS] of one colour."""
    return np.array(colour, np.float32)[:, None, None] * (1 + mottle * _noise(rng, 7))


def _melanocytic(rng: Generator, atypia: float) -> Layer:
    """Draws a nevus (atypia near 0: round, one brown, regular) or a melanoma (near 1: irregular, many colours)."""
    depth = _depth(rng, 0.03 + 0.20 * atypia, 1.4 + 0.4 * atypia)
    rgb = _field(rng, _between(rng, TAN, BROWN if rng.random() > atypia else DARK), 0.05 + 0.08 * atypia)
    rgb = _mix(rgb, DARK, rng.uniform(0, 0.55) * _step(depth - 0.55 + 0.1 * _noise(rng, 5), 0.15))
    if rng.random() < 0.65:
        regular = 1 - atypia * _step(_noise(rng, 4), 0.3)
        structure = regular * _mesh(rng, rng.uniform(0.11, 0.16) * RADIUS, 0.2)
    else:
        structure = _dots(rng, int(rng.integers(60, 180)), 0.02, 0.05, 1.0)
    rgb = _mix(rgb, DARK, rng.uniform(0.4, 0.8) * structure)
    turn = rng.uniform(0, 2 * np.pi)
    side = X * math.cos(turn) + Y * math.sin(turn)  # the colours of a melanoma are concentrated on one side
    for colour, most in ((DARK, 0.9), (BLACK, 0.85), (BLUE_GREY, 0.75), (RED, 0.55), (WHITE, 0.5)):
        strength = min(max(atypia**1.5 * rng.uniform(0.2, 2.4) - 0.3, 0), most)
        patch = _step(_noise(rng, 4) + rng.choice([-0.9, 0.9]).item() * side - 0.75, 0.22)
        rgb = _mix(rgb, colour, strength * patch)
    rays = _step(np.cos(int(rng.integers(18, 30)) * THETA + 2 * _noise(rng, 5)) - 0.3, 0.2)
    rgb = _mix(rgb, BLACK, 0.6 * atypia * rays * np.exp(-((depth / 0.2) ** 2)) * _step(side, 0.3))
    return rgb, _step(depth, 0.08 - 0.045 * atypia) * rng.uniform(0.8, 0.97)


def _bcc(rng: Generator) -> Layer:
    """Draws a bcc: pearly pink, with arborizing vessels, blue-grey ovoid nests and sometimes an ulcer."""
    depth = _depth(rng, 0.10)
    rgb = _field(rng, _between(rng, PINK, (0.90, 0.70, 0.66)))
    rgb = _mix(rgb, WHITE, rng.uniform(0.2, 0.6) * _step(_noise(rng, 4) - 0.3, 0.3))
    rgb = _mix(rgb, BLUE_GREY, rng.uniform(0.4, 0.85) * _dots(rng, int(rng.integers(0, 10)), 0.06, 0.22))
    if rng.random() < 0.3:
        rgb = _mix(rgb, BLOOD, 0.8 * _dots(rng, 3, 0.1, 0.2, 0.4) * _step(_noise(rng, 12) + 0.6, 0.3))
    rgb = _mix(rgb, BLOOD, rng.uniform(0.3, 0.8) * _vessels(rng, int(rng.integers(3, 7))))
    return rgb, _step(depth, 0.09) * rng.uniform(0.65, 0.92)


def _akiec(rng: Generator) -> Layer:
    """Draws an akiec: red, scaly, indistinct border, pale follicles in red (strawberry pattern), dotted vessels."""
    depth = _depth(rng, 0.12)
    rgb = _field(rng, _between(rng, PINK, RED), 0.08)
    rgb = _mix(rgb, CREAM, rng.uniform(0.1, 0.6) * _dots(rng, 90, 0.02, 0.06, 1.1))
    rgb = _mix(rgb, BLOOD, 0.7 * _dots(rng, int(rng.integers(20, 130)), 0.015, 0.03, 1.0))
    scales = _step(_noise(rng, 6) + 0.5 * _noise(rng, 25) - rng.uniform(0.5, 1.5), 0.15)
    rgb = _mix(rgb, (0.96, 0.92, 0.85), rng.uniform(0.5, 0.9) * scales)
    rgb = _mix(rgb, TAN, rng.beta(1, 3) * _step(_noise(rng, 3), 0.3))
    return rgb, _step(depth, 0.16) * rng.uniform(0.6, 0.9)


def _bkl(rng: Generator) -> Layer:
    """Draws a bkl: waxy, sharp border, furrows, white milia-like cysts, dark comedo-like openings."""
    depth = _depth(rng, rng.uniform(0.05, 0.16), 1.7)
    rgb = _field(rng, _between(rng, (0.78, 0.59, 0.45), BROWN), 0.09)
    rgb = _mix(rgb, (0.55, 0.45, 0.43), rng.beta(1, 2) * _step(_noise(rng, 3), 0.3))
    furrows = np.exp(-((_noise(rng, int(rng.integers(6, 11))) / 0.16) ** 2))
    rgb = _mix(rgb, DARK, rng.uniform(0, 0.6) * furrows)
    rgb = _mix(rgb, CREAM, rng.uniform(0.3, 0.9) * _dots(rng, int(rng.integers(2, 22)), 0.03, 0.07))
    rgb = _mix(rgb, BLACK, rng.uniform(0.4, 0.9) * _dots(rng, int(rng.integers(0, 20)), 0.03, 0.07))
    rim = np.exp(-(((depth - 0.06) / 0.06) ** 2))
    return _mix(rgb, DARK, 0.3 * rim), _step(depth, rng.uniform(0.02, 0.06)) * rng.uniform(0.8, 0.97)


def _df(rng: Generator) -> Layer:
    """Draws a df: a white scar-like centre inside a fine, fading ring of brown network."""
    depth = _depth(rng, 0.06, 1.25)
    rgb = _field(rng, _between(rng, TAN, (0.62, 0.42, 0.35)))
    rgb = _mix(rgb, BROWN, rng.uniform(0.4, 0.9) * _mesh(rng, rng.uniform(0.10, 0.14) * RADIUS, 0.2))
    scar = _step(depth - rng.uniform(0.4, 0.7) + 0.1 * _noise(rng, 9), 0.08)
    rgb = _mix(rgb, (0.93, 0.82, 0.79), rng.uniform(0.4, 0.95) * scar)
    return rgb, _step(depth, 0.13) * rng.uniform(0.7, 0.95)


def _vasc(rng: Generator) -> Layer:
    """Draws a vasc: dense round red, purple or blue lacunae in a field with a sharp border."""
    depth = _depth(rng, 0.08, 1.3)
    rgb = _field(rng, _between(rng, RED, (0.70, 0.42, 0.43)))
    hue = rng.random()  # from a red angioma to a dark angiokeratoma
    for _ in range(5):
        colour = _between(rng, BLOOD, (0.70, 0.16, 0.18) if rng.random() > hue else PURPLE)
        lacunae = _dots(rng, int(rng.integers(2, 10)), 0.09, 0.27, 0.8)
        rgb = _mix(rgb, colour, rng.uniform(0.4, 0.95) * lacunae)
    return rgb, _step(depth, 0.05) * rng.uniform(0.75, 0.97)


# Because the two beta distributions overlap, some nevi look like melanomas and some melanomas like nevi.
DRAW: dict[str, Callable[[Generator], Layer]] = {
    "mel": lambda rng: _melanocytic(rng, rng.beta(4.0, 2.2)),
    "nv": lambda rng: _melanocytic(rng, 0.6 * rng.beta(1.3, 2.6)),
    "bcc": _bcc, "akiec": _akiec, "bkl": _bkl, "df": _df, "vasc": _vasc,
}  # fmt: skip


def _hairs(view: Generator, photo: np.ndarray) -> np.ndarray:
    """Returns `photo` with zero to nine curved hairs, each with a faint shadow."""
    height, width = photo.shape[1:]
    drawn = np.zeros((height, width), np.uint8)
    lean, t = view.uniform(0, np.pi), np.linspace(0, 1, 24)[:, None]
    for _ in range(int(view.choice([0, 0, 0, 0, 1, 2, 3, 5, 9]))):
        start, angle = view.uniform(0, 1, 2) * (width, height), lean + view.normal(0, 0.35)
        along = np.array([np.cos(angle), np.sin(angle)]) * view.uniform(0.4, 1.3) * height
        bend = np.array([-along[1], along[0]]) * view.normal(0, 0.5)
        curve = (start + (t - 0.5) * along + t * (1 - t) * bend) * 2**SUBPIXEL
        shade, thickness = int(view.integers(150, 256)), 2 if view.random() < 0.25 else 1
        cv2.polylines(drawn, [curve.astype(np.int32)], False, shade, thickness, cv2.LINE_AA, SUBPIXEL)
    photo = photo * (1 - 0.3 * _soften(drawn, 2.5))
    return _mix(photo, _between(view, BLACK, BROWN), 0.9 / 255 * drawn)


def _artefacts(view: Generator, photo: np.ndarray) -> np.ndarray:
    """Returns `photo`, in some cases with bubbles in the immersion gel or a ruler's ticks along the lower edge."""
    height, width = photo.shape[1:]
    drawn = np.zeros((height, width), np.uint8)
    if view.random() < 0.15:
        for x, y, r in view.random((int(view.integers(2, 10)), 3)):
            at, radius = (int(x * width), int(y * height)), int((0.01 + 0.035 * r) * height)
            cv2.circle(drawn, at, radius, 60, -1, cv2.LINE_AA)
            cv2.circle(drawn, at, radius, 150, 1, cv2.LINE_AA)
            cv2.circle(drawn, (at[0] - radius // 3, at[1] - radius // 3), 1, 255, -1, cv2.LINE_AA)
        return _mix(photo, WHITE, 0.6 * _soften(drawn, 0.7))
    if view.random() < 0.08:
        pitch = view.uniform(0.045, 0.08) * height
        for i in range(int(width / pitch) + 1):
            x, length = int(i * pitch), int(height * (0.1 if i % 5 == 0 else 0.055))
            cv2.line(drawn, (x, height), (x, height - length), 255, 1, cv2.LINE_AA)
        return _mix(photo, BLACK, 0.9 * _soften(drawn, 0.5))
    return photo


def _light(view: Generator, photo: np.ndarray) -> np.ndarray:
    """Returns `photo` with this photograph's lighting: exposure, white balance, gradient and darker corners."""
    x = np.linspace(-1, 1, photo.shape[2], dtype=np.float32)
    y = np.linspace(-1, 1, photo.shape[1], dtype=np.float32)[:, None]
    light = 1 + view.normal(0, 0.04) * x + view.normal(0, 0.04) * y - view.uniform(0.03, 0.11) * (x**2 + y**2)
    if view.random() < 0.2:  # the round edge of the dermatoscope is visible in the corners
        light = light * (0.08 + 0.92 * _step(view.uniform(1.15, 1.3) - np.hypot(x, 0.75 * y), 0.03))
    gain = view.normal(1, 0.05) * view.normal(1, 0.02, 3).astype(np.float32)
    return photo * light * gain.astype(np.float32)[:, None, None]


def draw_lesion(dx: str, lesion: Generator, view: Generator, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Draws one photograph, uint8 [height, width, 3] RGB, of a lesion of class `dx`.

    The generator `lesion` determines the lesion (outline, colours, structures, the patient's skin). The generator
    `view` determines the photograph (rotation, shift, size, light, hairs, noise). Generators in equal states give equal
    images. Both are advanced.

    Raises:
        KeyError: `dx` is unknown.
    """
    h, w = round(height * OVERSAMPLING), round(width * OVERSAMPLING)
    skin, radius = _between(lesion, (0.89, 0.72, 0.68), (0.79, 0.57, 0.53)), lesion.uniform(0.28, 0.42)
    rgb, opacity = DRAW[dx](lesion)
    opacity = opacity * _step(REACH - 0.2 - RHO, 0.04)  # so that the edge of the canvas never cuts off a lesion
    scale = radius * view.uniform(0.85, 1.15) * h / RADIUS
    turning = cv2.getRotationMatrix2D((CANVAS / 2, CANVAS / 2), view.uniform(0, 360), scale)
    shift = np.array([w, h]) * view.normal(0.5, 0.045, 2) - CANVAS / 2
    placing = np.column_stack([turning[:, :2], turning[:, 2] + shift])
    layer = cv2.warpAffine(np.dstack([*rgb, opacity]).astype(np.float32), placing, (w, h))

    flush = 0.3 * _step(_noise(view, 4, h, w), 0.7)
    photo = _mix(np.array(skin, np.float32)[:, None, None], PINK, flush)
    photo = _mix(photo, layer[..., :3].transpose(2, 0, 1), layer[..., 3])
    # The furrows and the grain of the skin continue through the lesion.
    photo = photo * (1 - 0.05 * _mesh(view, 0.05 * h, 0.3, h, w) + 0.018 * _noise(view, 30, h, w))
    photo = _light(view, _artefacts(view, _hairs(view, photo)))
    shrunk = cv2.resize(np.dstack([*photo]), (width, height), interpolation=cv2.INTER_AREA)
    grain = 0.008 * view.standard_normal(shrunk.shape, np.float32)
    return (np.clip(shrunk + grain, 0, 1) * 255).round().astype(np.uint8)


def contact_sheet(rows: Sequence[str] = DX, columns: int = 8, seed: int = 0, gap: int = 4) -> np.ndarray:
    """Returns a grid of drawn lesions, uint8 [height, width, 3] RGB: a class per row, `gap` white pixels between."""
    down, across = HEIGHT + gap, WIDTH + gap
    sheet = np.full((len(rows) * down - gap, columns * across - gap, 3), 255, np.uint8)
    for i, dx in enumerate(rows):
        for j in range(columns):
            lesion, view = (default_rng([seed, DX.index(dx), j, which]) for which in (0, 1))
            cell = sheet[i * down :, j * across :][:HEIGHT, :WIDTH]
            cell[:] = draw_lesion(dx, lesion, view)
    return sheet

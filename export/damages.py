"""Damages of images for the stress test, each to several degrees.

Frames and artefacts are those that other dermatoscopes show: `dermrw.datasets.artefacts` draws them.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from dermrw.datasets.artefacts import Draw, bubbles, hairs, ink, ruler


def _jpeg(image: Image.Image, quality: float) -> Image.Image:
    """Returns the image after JPEG compression; unchanged at quality 100."""
    if quality == 100:
        return image
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(quality))
    return Image.open(buffer).convert("RGB")


def _pixels(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def _noise(image: Image.Image, deviation: float, channels: int = 3) -> Image.Image:
    """Returns the image with noise, independent for each colour or, with one channel, equal in all colours."""
    pixels = np.asarray(image, dtype=np.float64)
    return _pixels(pixels + np.random.default_rng(0).normal(0, deviation, (*pixels.shape[:2], channels)))


def _warmer(image: Image.Image, factor: float) -> Image.Image:
    """Returns the image with another white balance: red times the factor, blue divided by it."""
    return _pixels(np.asarray(image, dtype=np.float64) * (factor, 1, 1 / factor))


def _sharper(image: Image.Image, percent: float) -> Image.Image:
    return image.filter(ImageFilter.UnsharpMask(2, round(percent), 0))


def _smaller(image: Image.Image, scale: float) -> Image.Image:
    """Returns the image at a fraction of its size, surrounded by its mirror image."""
    w, h = image.size
    part = np.asarray(image.resize((max(8, round(w * scale)), max(8, round(h * scale))), Image.Resampling.BILINEAR))
    top, left = (h - part.shape[0]) // 2, (w - part.shape[1]) // 2
    sides = ((top, h - part.shape[0] - top), (left, w - part.shape[1] - left), (0, 0))
    return Image.fromarray(np.pad(part, sides, mode="symmetric"))


def _turned(image: Image.Image, degrees: float) -> Image.Image:
    """Returns the image rotated about its centre, with mirrored corners."""
    w, h = image.size
    wide = Image.fromarray(np.pad(np.asarray(image), ((h, h), (w, w), (0, 0)), mode="symmetric"))
    return wide.rotate(degrees, Image.Resampling.BILINEAR).crop((w, h, 2 * w, 2 * h))


def _paler(image: Image.Image, share: float) -> Image.Image:
    return ImageEnhance.Color(image).enhance(share)


def _blurred(image: Image.Image, share: float) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(share / 100 * min(image.size)))


def _bordered(image: Image.Image, share: float) -> Image.Image:
    """Returns the image with a black border on all sides, its width in per cent of the shorter side."""
    pixels = np.asarray(image).copy()
    width = round(share / 100 * min(image.size))
    inner = np.zeros(pixels.shape[:2], bool)
    inner[width : pixels.shape[0] - width, width : pixels.shape[1] - width] = True
    pixels[~inner] = 0
    return Image.fromarray(pixels)


def _letterboxed(image: Image.Image, share: float) -> Image.Image:
    """Returns the image with black bands above and below, each of this percentage of the height."""
    pixels = np.asarray(image).copy()
    band = round(share / 100 * pixels.shape[0])
    pixels[:band] = pixels[pixels.shape[0] - band :] = 0
    return Image.fromarray(pixels)


def _round_field(image: Image.Image, share: float) -> Image.Image:
    """Returns the image in a round field of view of this share of the picture's diagonal; 1 shows all of it."""
    pixels = np.asarray(image)
    rows, columns = np.ogrid[: pixels.shape[0], : pixels.shape[1]]
    away = np.hypot(rows + 0.5 - pixels.shape[0] / 2, columns + 0.5 - pixels.shape[1] / 2)
    return Image.fromarray(
        np.where((away <= share * np.hypot(*image.size) / 2)[:, :, None], pixels, 0).astype(np.uint8)
    )


def _with(draw: Draw) -> Callable[[Image.Image, float], Image.Image]:
    """Returns a function that draws an artefact as often as the degree says."""

    def damage(image: Image.Image, times: float) -> Image.Image:
        pixels, rng = np.asarray(image), np.random.default_rng(0)
        for _ in range(int(times)):
            pixels = draw(pixels, rng)
        return Image.fromarray(pixels)

    return damage


def _one_hair(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return hairs(pixels, rng, 1)


def _coarser(image: Image.Image, share: float) -> Image.Image:
    """Returns the image reduced to this share of its size and enlarged again, as a picture of low resolution."""
    small = image.resize([max(8, round(side * share)) for side in image.size], Image.Resampling.BILINEAR)
    return small.resize(image.size, Image.Resampling.BILINEAR)


# name, degrees (the first is no damage), function of an image and a degree
DAMAGES: list[tuple[str, tuple[float, ...], Callable[[Image.Image, float], Image.Image]]] = [
    ("blur (σ in % of the shorter side)", (0, 0.3, 0.6, 1.2, 2.5, 5), _blurred),
    ("sharpening (per cent, radius 2)", (0, 50, 100, 150, 200, 300), _sharper),
    ("noise of each colour (σ, grey levels)", (0, 2, 3, 4, 8, 32), _noise),
    ("noise of brightness (σ, grey levels)", (0, 2, 4, 6, 8, 32), lambda i, d: _noise(i, d, 1)),
    ("JPEG quality", (100, 75, 50, 30, 20, 10), _jpeg),
    ("colour (share left)", (1, 0.6, 0.4, 0.3, 0.2, 0.1), _paler),
    ("warmth (red times, blue divided by)", (1, 1.05, 1.1, 1.15, 1.2, 1.3), _warmer),
    ("coldness (blue times, red divided by)", (1, 1.05, 1.1, 1.15, 1.2, 1.3), lambda i, d: _warmer(i, 1 / d)),
    ("darkness (share of the light left)", (1, 0.8, 0.65, 0.5, 0.35, 0.2), lambda i, d: i.point(lambda v: v * d)),
    ("light (times as much)", (1, 1.1, 1.2, 1.4, 1.7, 2), lambda i, d: i.point(lambda v: min(255, v * d))),
    ("rotation (degrees)", (0, 15, 30, 45, 90, 135), _turned),
    ("scale (share of the lesion's size)", (1, 0.8, 0.6, 0.45, 0.3, 0.2), _smaller),
    ("resolution (share of the pixels' number per side)", (1, 0.8, 0.6, 0.45, 0.3, 0.2), _coarser),
    ("black border (% of the shorter side)", (0, 1, 2, 4, 6, 10), _bordered),
    ("letterbox (% of the height, twice)", (0, 3, 6, 9, 12, 16), _letterboxed),
    ("round field (share of the diagonal)", (1, 0.9, 0.8, 0.7, 0.6, 0.5), _round_field),
    ("hairs (number)", (0, 2, 5, 10, 20, 40), _with(_one_hair)),
    ("rulers (number)", (0, 1, 2, 3, 4, 6), _with(ruler)),
    ("gel bubbles (groups)", (0, 1, 2, 3, 4, 6), _with(bubbles)),
    ("pen marks (groups)", (0, 1, 2, 3, 4, 6), _with(ink)),
]

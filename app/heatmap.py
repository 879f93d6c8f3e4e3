"""The heat map: a class activation map laid over the image, and its colour scale."""

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE = 448  # pixels, of the images on the page
# dark blue, purple, red, yellow: lightness rises along the scale, so it can be read without colour vision
COLOURS = np.array([[0.05, 0.03, 0.30], [0.55, 0.05, 0.45], [0.93, 0.33, 0.25], [0.99, 0.90, 0.45]])
OPACITY = 0.65  # where the evidence is strongest
SCALE_STEPS = 9


def relative_evidence(activation_map: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float64]:
    """Returns the evidence for a class at each position, relative to its maximum: `[h, w]` -> `[side, side]` in 0…1.

    Evidence against the class counts as 0. Without any evidence for the class, every position is 0.
    """
    positive = np.maximum(activation_map, 0)
    maximum = positive.max()
    if maximum <= 0:
        return np.zeros((side, side))
    image = Image.fromarray((positive / maximum).astype(np.float32))
    smooth = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float64)
    return smooth.clip(0, 1)


def _blend(base: npt.NDArray[np.float64], evidence: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Lays the colour of each `evidence` `[...]` over `base` `[..., 3]`, both in 0…1; returns `[..., 3]` in 0…255."""
    position = evidence * (len(COLOURS) - 1)
    colour = np.stack([np.interp(position, np.arange(len(COLOURS)), COLOURS[:, c]) for c in range(3)], axis=-1)
    opacity = (OPACITY * evidence)[..., None]
    mixed = base * (1 - opacity) + colour * opacity
    return (mixed.clip(0, 1) * 255).round().astype(np.uint8)


def overlay(pixels: npt.NDArray[np.uint8], activation_map: npt.NDArray[np.float32]) -> Image.Image:
    """Returns the model's input `[S, S, 3]` with the map `[h, w]` over it in colour, `SIDE` pixels wide."""
    resized = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return Image.fromarray(_blend(np.asarray(resized, dtype=np.float64) / 255, relative_evidence(activation_map, SIDE)))


def colour_scale(pixels: npt.NDArray[np.uint8]) -> str:
    """Returns the overlay's colours from no to maximal evidence, over the mean colour of `pixels`, as a CSS gradient.

    The overlay is transparent, so its colours depend on the image below.
    """
    mean = pixels.reshape(-1, 3).mean(0) / 255
    colours = _blend(np.tile(mean, (SCALE_STEPS, 1)), np.linspace(0, 1, SCALE_STEPS))
    return f"linear-gradient(to right, {', '.join('#' + bytes(colour).hex() for colour in colours)})"


def data_uri(image: Image.Image) -> str:
    """Returns the image as a data URI: nothing is written to the disk, and no EXIF of the upload is left."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"

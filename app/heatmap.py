"""The class activation map as a picture over the picture."""

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE = 448  # pixels, of the pictures on the page
# dark blue over red to yellow: light and dark differ along it, for whoever can't tell its colours apart
STOPS = np.array([[0.05, 0.03, 0.30], [0.55, 0.05, 0.45], [0.93, 0.33, 0.25], [0.99, 0.90, 0.45]])


def heat(activation_map: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float64]:
    """What speaks for a class, by position `[h, w]` -> `[side, side]` in 0…1; 1 is the position that says most.

    What speaks against it is 0, and so is all where nothing speaks for it.
    """
    positive = np.maximum(activation_map, 0)
    most = positive.max()
    if most <= 0:
        return np.zeros((side, side))
    image = Image.fromarray((positive / most).astype(np.float32))
    smooth = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float64)
    return smooth.clip(0, 1)


def overlay(pixels: npt.NDArray[np.uint8], activation_map: npt.NDArray[np.float32]) -> Image.Image:
    """The picture `[S, S, 3]` that the network was shown, with the map `[h, w]` laid over it in colour."""
    shown = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    strength = heat(activation_map, SIDE)
    place = strength * (len(STOPS) - 1)
    colour = np.stack([np.interp(place, np.arange(len(STOPS)), STOPS[:, c]) for c in range(3)], axis=-1)
    opacity = (0.65 * strength)[..., None]
    mixed = np.asarray(shown, dtype=np.float64) / 255 * (1 - opacity) + colour * opacity
    return Image.fromarray((mixed.clip(0, 1) * 255).round().astype(np.uint8))


def data_uri(image: Image.Image) -> str:
    """The picture for the inside of the page: none is written to the disk, and nothing of the upload's EXIF is left."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"

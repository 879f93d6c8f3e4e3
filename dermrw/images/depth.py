"""Pictures of 16 bits a channel in 8 bits. No torch."""

import io

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

FULL = 65535
# largest values of 8, 10, 12 and 14 bits, which cameras and converters store in 16-bit words without scaling them
NARROW = {255: 8, 1023: 10, 4095: 12, 16383: 14}


def eight_bits(values: npt.NDArray[np.uint16], top: int = FULL) -> tuple[npt.NDArray[np.uint8], str | None]:
    """The values scaled to 0..255, and a note for the user if they use fewer bits than they state.

    Args:
        values: the colour channels, without transparency.
        top: the value of white that the file states.
    """
    note, largest = None, int(values.max(initial=0))
    if top == FULL and 0 < largest <= max(NARROW):
        top = min(limit for limit in NARROW if largest <= limit)
        note = f"its 16-bit values use {NARROW[top]} bits alone and were scaled to the full range"
    # by a table: arithmetic would take eight bytes a value, gigabytes for the largest picture
    table = np.minimum(np.arange(FULL + 1, dtype=np.int64) * 255 // max(top, 1), 255).astype(np.uint8)
    return table[values], note


def grey_in_eight_bits(image: Image.Image) -> tuple[Image.Image, str | None]:
    """16-bit grey in mode L or LA, and a note: Pillow would clip it at 255, which would turn the picture white."""
    values = np.asarray(image)
    if values.dtype != np.uint16:
        values = values.clip(0, 65535).astype(np.uint16)
    eight, note = eight_bits(values)
    grey = Image.fromarray(eight)
    grey.info = {**image.info}
    transparent = grey.info.pop("transparency", None)
    if isinstance(transparent, int):  # a value of 16 bits
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey, note


def narrow_png(image: Image.Image, content: bytes) -> Image.Image:
    """A PNG of 16 bits a channel whose values use fewer bits, scaled to 8 bits; the picture itself if they do not.

    Pillow keeps the upper eight bits of colours, which turns 12-bit values in 16-bit words almost black.
    """
    if image.mode not in ("RGB", "RGBA"):
        return image
    upper = np.asarray(image)
    if upper[..., :3].max(initial=0) > max(NARROW) >> 8:
        return image
    with Image.open(io.BytesIO(content), formats=("PNG",)) as again:
        # read as if the lower byte came first, so that Pillow keeps the lower eight bits
        again.tile = [tile._replace(args=f"{image.mode};16L") for tile in again.tile]
        lower = np.asarray(again)
    values = upper[..., :3].astype(np.uint16) * 256 + lower[..., :3]
    eight, note = eight_bits(values)
    scaled = Image.fromarray(np.concatenate([eight, upper[..., 3:]], 2))
    scaled.info = {**image.info, "notes": [note] if note else []}
    scaled.info.pop("transparency", None)  # a colour of 16 bits
    scaled.getexif()[ExifTags.Base.Orientation] = image.getexif().get(ExifTags.Base.Orientation, 1)
    scaled.format = image.format
    return scaled

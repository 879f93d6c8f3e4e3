"""Parts of a picture: the one that the network saw, and the one that a user cut by hand."""

import base64
import io
from typing import NamedTuple

from PIL import Image

from dermrw.errors import UserError
from dermrw.images.field_of_view import Box
from dermrw.images.preprocess import LEAST_SIDE, MOST_ELONGATED, MOST_SQUEEZED, Crop

PREVIEW = 1024  # pixels of the longer side of a picture that the browser can't decode
THUMBNAIL = 72
QUARTERS = (None, Image.Transpose.ROTATE_270, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_90)


class Edit(NamedTuple):
    """What the user changed: quarter turns clockwise, then a crop in pixels of the turned picture."""

    turn: int = 0
    crop: tuple[int, int, int, int] | None = None


UNCHANGED = Edit()


def seen_part(box: Box, crop: Crop) -> Box:
    """Returns the part of a picture that the network sees, of the part `box` that is used."""
    short = min(box.width, box.height)
    longest = short if crop == "square" else MOST_SQUEEZED * short
    wide, tall = min(box.width, longest), min(box.height, longest)
    left, top = box.left + (box.width - wide) // 2, box.top + (box.height - tall) // 2
    return Box(left, top, left + wide, top + tall)


def turned(image: Image.Image, edit: Edit) -> Image.Image:
    """Returns the upright picture with the quarter turns of `edit`; `info` is kept."""
    method = QUARTERS[edit.turn]
    if method is None:
        return image
    result = image.transpose(method)
    result.info = dict(image.info)
    return result


def chosen_box(image: Image.Image, edit: Edit) -> Box | None:
    """Returns the part of the turned picture that the user cut; None without a crop.

    Raises:
        UserError: the part is not within the picture, or too small or too elongated to classify.
    """
    if edit.crop is None:
        return None
    box, (width, height) = Box(*edit.crop), image.size
    if not (0 <= box.left < box.right <= width and 0 <= box.top < box.bottom <= height):
        raise UserError("the crop lies outside the picture: crop it again")
    short, long = sorted((box.width, box.height))
    if short < LEAST_SIDE or long > MOST_ELONGATED * short:
        raise UserError("the crop is too small or too narrow: choose a larger part")
    return box


def jpeg(image: Image.Image, side: int, quality: int) -> bytes:
    """Returns a reduced copy of an RGB picture as JPEG, without metadata."""
    copy = image.copy()
    copy.thumbnail((side, side))
    copy.info = {}
    buffer = io.BytesIO()
    copy.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def data_uri(content: bytes) -> str:
    """Returns a JPEG file as a data URI: nothing is written to the disk."""
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}" if content else ""

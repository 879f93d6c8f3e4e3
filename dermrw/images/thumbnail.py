"""Thumbnails of images as data URLs, for HTML pages that consist of one file."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from dermrw.errors import UserError
from dermrw.images.preprocess import read_image

THUMBNAIL = 160  # pixels on the long side


def thumbnail(source: Any) -> tuple[str | None, bool]:
    """A data URL of the image, upright, and whether it is so small that a page should enlarge it without smoothing.

    Args:
        source: a path or pixels uint8 `[H, W, 3]`.

    Returns:
        None and False if the file can't be read.
    """
    try:
        image = Image.fromarray(source) if isinstance(source, np.ndarray) else read_image(source)
    except UserError:
        return None, False  # a page without one picture is better than none
    tiny = max(image.size) <= THUMBNAIL // 2
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=95 if tiny else 82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(), tiny

"""The evaluation pixels: the one way from a picture to the network's input. No torch in here.

A picture is turned upright by its EXIF orientation, converted to 8-bit RGB, resized with an antialiased
bilinear filter (Pillow's) so that its shorter side is `size`, and cut to the `size` × `size` square in its middle.
Resizing without antialiasing differs from this by up to 163 grey levels, so nothing else may resize.
"""

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dermrw.errors import UserError

# ImageNet's statistics, with which every backbone of torchvision was trained (RGB, in units of 1/255)
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def to_rgb(image: Image.Image) -> Image.Image:
    """An upright 8-bit RGB picture: EXIF applied, transparency laid on white, 16 bits scaled to 8."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow clips 16-bit grey at 255 when converting, which would turn the picture white
        values = np.asarray(image, dtype=np.int64).clip(0, 65535)
        return Image.fromarray((values // 257).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def read_image(source: str | Path | BinaryIO) -> Image.Image:
    """The picture in a file, by `to_rgb`.

    Raises:
        UserError: the file is missing, is no picture, is cut short, or is too large to be one honestly.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source) as image:
                return to_rgb(image)
    except FileNotFoundError:
        raise UserError(f"there is no image {source}") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"the image {source} can't be used: {error}") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"the image {source} is damaged or unreadable: {error}") from None


def resize(image: Image.Image, size: int) -> Image.Image:
    """The picture with its shorter side at `size` pixels and its proportions kept."""
    width, height = image.size
    scale = size / min(width, height)
    target = (max(size, round(width * scale)), max(size, round(height * scale)))
    return image if target == image.size else image.resize(target, Image.Resampling.BILINEAR)


def center_crop(pixels: np.ndarray, size: int) -> np.ndarray:
    """The middle `[size, size, 3]` of pixels `[H, W, 3]` whose sides are at least `size`."""
    height, width = pixels.shape[:2]
    top, left = (height - size) // 2, (width - size) // 2
    return pixels[top : top + size, left : left + size]


def resized_pixels(source: str | Path | BinaryIO, size: int) -> np.ndarray:
    """Uncropped pixels, uint8 `[H, W, 3]` with min(H, W) = size: what augmentation starts from."""
    return np.asarray(resize(read_image(source), size))


def evaluation_pixels(source: str | Path | BinaryIO, size: int) -> np.ndarray:
    """The pixels that a network is evaluated on, uint8 `[size, size, 3]`."""
    return np.ascontiguousarray(center_crop(resized_pixels(source, size), size))

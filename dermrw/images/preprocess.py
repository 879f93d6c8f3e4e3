"""The evaluation pixels: the one way from a picture to the network's input. No torch in here.

A picture is turned upright by its EXIF orientation, converted to 8-bit sRGB and cut to its field of view (if `Framing`
says so). Then it is resized with an antialiased bilinear or bicubic filter (Pillow's): so that its shorter side is
`size`, and cut to the `size` × `size` square in its middle, or as a whole to `size` × `size`.
Resizing without antialiasing differs from this by up to 163 grey levels, so nothing else may resize.
"""

import io
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from dermrw.errors import UserError
from dermrw.files import open_regular
from dermrw.images.bombs import of_tiff, reason
from dermrw.images.colour import (
    DAMAGED,
    HDR_CURVES,
    bmp_profile,
    jpeg_states_profile,
    png_cicp,
    png_profile,
    to_srgb,
)
from dermrw.images.depth import grey_in_eight_bits, narrow_png
from dermrw.images.field_of_view import Box, find_field_of_view
from dermrw.images.formats import HEAD, format_of, jpeg_fault
from dermrw.images.iso_media import nclx, turned
from dermrw.images.tiff import choose_page, fault, read_page, unknown

# ImageNet's statistics, with which every backbone of torchvision was trained (RGB, in units of 1/255)
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# Pillow's other formats are rare here, and some call other programs; pi_heif adds HEIF
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "AVIF")
MOST_PIXELS = 50_000_000  # more than dermatoscopes have; what says so with a few bytes is a decompression bomb
MOST_BYTES = 500_000_000  # as many as the largest picture has with 16 bits a channel, transparency and smaller copies
SAVE_AS = "save it as JPEG or PNG"
LEAST_SIDE = 16  # pixels; on less no lesion can be seen
MOST_EXIF_TEXT = 200_000  # characters of EXIF that ImageMagick writes into a PNG's texts as hexadecimal digits
MOST_ELONGATED = 10  # longer side over shorter
MOST_SQUEEZED = 2  # longer side over shorter that `crop=whole` squeezes to a square; more is cut at the ends

FieldOfView = Literal["none", "find"]
Crop = Literal["square", "whole"]
Interpolation = Literal["bilinear", "bicubic"]
ColourConstancy = Literal["none", "shades_of_grey"]  # of `dermrw.network_input`
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

# the limit above is checked by ourselves: a warning turned into an error is not safe among threads
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", module=r"PIL\b")  # of damaged files, with numbers from them
for _library in ("PIL", "tifffile"):  # both log of damaged files, too
    logging.getLogger(_library).setLevel(logging.CRITICAL + 1)


# what undoes each of EXIF's orientations
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def _upright(image: Image.Image) -> Image.Image:
    """The picture turned by its EXIF orientation, as browsers do; where the EXIF can't be read, as it is."""
    image.load()  # first, so that damaged pixels are told from damaged EXIF
    exif = image.info.get("exif") or b""  # HEIC without EXIF has None
    while exif.startswith(b"Exif\0\0"):  # Pillow takes them all away, too
        exif = exif[6:]
    if of_tiff(exif, MOST_PIXELS) or len(image.info.get("Raw profile type exif", "")) > MOST_EXIF_TEXT:
        return image
    for key in ("xmp", "XML:com.adobe.xmp"):  # where Pillow would look for an orientation, too; browsers do not
        image.info.pop(key, None)
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # of many types: struct.error, SyntaxError, ...
        return image
    turn = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image) -> Image.Image:
    """An upright 8-bit sRGB picture: EXIF applied, colours converted, transparency laid on white, 16 bits scaled to 8.

    Returns:
        The picture in mode RGB. `info` is empty, or holds `notes`, a list of sentences for the user.
    """
    notes: list[str] = list(image.info.get("notes", []))
    file_format, cicp = image.format, image.info.get("cicp")
    image = _upright(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        image, note = grey_in_eight_bits(image)
        notes += [note] if note else []
    image.format = file_format  # lost by turning; says where the colour space may be stated
    image, note = to_srgb(image, cicp)
    notes += [note] if note else []
    image = _on_white(image)
    image.info = {"notes": notes} if notes else {}
    return image


def _on_white(image: Image.Image) -> Image.Image:
    """The picture in mode RGB, transparency laid on white."""
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


@contextmanager
def _open(source: Any) -> Iterator[Image.Image]:
    """An undecoded picture from a file, which is closed in the end; or a picture or array as it is."""
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
            raise UserError(f"an array must be uint8 [H, W, 3], not {source.dtype} {list(source.shape)}")
        yield Image.fromarray(source)
    elif isinstance(source, Image.Image):
        info = dict(source.info)
        try:
            yield source
        finally:  # the caller's image stays as it was
            source.info = info
    elif isinstance(source, str | Path):
        with open_regular(source) as file, _open(file) as image:
            yield image
    elif hasattr(source, "read"):
        with _open_file(source, getattr(source, "name", None) or "given") as image:
            yield image
    else:
        raise UserError(
            f"a picture is a path, a file opened in binary mode, a PIL image or an array uint8 [H, W, 3], not "
            f"{type(source).__name__}"
        )


@contextmanager
def _open_file(file: BinaryIO, name: object) -> Iterator[Image.Image]:
    """An undecoded picture from an open file, by its content and not by its name.

    Raises:
        UserError: it is a decompression bomb, an animation, a TIFF of several pages, or a format that is not read.
    """
    if file.seek(0, os.SEEK_END) > MOST_BYTES:  # before any of it is read into memory
        raise UserError(f"the image {name} has more than {MOST_BYTES // 10**6} MB, too many for a photo: shrink it")
    file.seek(0)  # as Pillow does: a file that was read before is at its end
    head = file.read(HEAD)
    file.seek(0)
    if not head:
        raise UserError(f"the image {name} is an empty file: copy it again")
    kind = format_of(head) or ""
    if kind.startswith("foreign "):
        raise UserError(f"the image {name} is a {kind.removeprefix('foreign ')} file, which is not read: {SAVE_AS}")
    if kind == "DICOM":
        from dermrw.images.dicom import dicom_image  # pydicom takes its time to be imported

        yield dicom_image(file, name, MOST_PIXELS)
        return
    content = file.read() if kind in ("JPEG", "TIFF", "BMP", "PNG", "HEIC", "AVIF") else b""
    file.seek(0)
    if kind in ("JPEG", "TIFF", "BMP") and (wrong := reason(content, MOST_PIXELS)):
        raise UserError(f"the image {name} {wrong}: it isn't opened")
    if unread := (fault(content) if kind == "TIFF" else jpeg_fault(content) if kind == "JPEG" else None):
        raise UserError(f"the image {name} {unread}")
    profile = None
    if kind == "PNG":
        content, profile = png_profile(content)
        file = file if profile is None else io.BytesIO(content)
    formats: tuple[str, ...] = FORMATS
    if kind == "HEIC":
        import pi_heif  # needed by few pictures

        pi_heif.register_heif_opener(thumbnails=False)
        formats = ("HEIF",)
    try:
        opened = Image.open(file, formats=formats)
    except UnidentifiedImageError:
        if kind == "TIFF":
            raise UserError(f"the image {name} {unknown(content)}") from None
        if kind:
            raise ValueError(f"it begins like {kind}, but its header cannot be read") from None
        raise
    with opened:
        image: Image.Image = opened
        check_size(image, name)
        if kind == "TIFF":
            choose_page(image, name)
            check_size(image, name)
            if (read := read_page(image, content, name)) is not None:
                page, note = read
                page.info = {**image.info, "notes": [note] if note else []}
                page.getexif()[ExifTags.Base.Orientation] = image.getexif().get(ExifTags.Base.Orientation, 1)
                yield page
                return
        elif kind in ("PNG", "WebP", "AVIF") and (pictures := getattr(image, "n_frames", 1)) > 1:
            raise UserError(f"the image {name} is an animation of {pictures} pictures: save the one that is meant")
        if kind == "PNG" and content[24:25] == b"\x10":
            image = narrow_png(image, content)
        cicp = png_cicp(content) if kind == "PNG" else nclx(content) if kind in ("HEIC", "AVIF") else None
        if cicp is not None:
            if cicp[1] in HDR_CURVES and (kind == "PNG" or "icc_profile" not in image.info):
                raise UserError(
                    f"the image {name} is an HDR picture ({HDR_CURVES[cicp[1]]}), which is not read: save it in "
                    "standard dynamic range, as JPEG or PNG"
                )
            image.info["cicp"] = cicp
        if kind == "BMP":
            profile = bmp_profile(content)
        elif kind == "JPEG" and not image.info.get("icc_profile") and jpeg_states_profile(content):
            profile = b""
        if profile:
            image.info["icc_profile"] = profile
        elif profile is not None:
            image.info["notes"] = [*image.info.get("notes", []), DAMAGED]
        if kind == "HEIC" and (pictures := getattr(image, "n_frames", 1)) > 1:
            image.info["notes"] = [f"it holds {pictures} pictures, of which the primary one was read"]
        if kind == "HEIC" and image.info.get("original_orientation") not in (None, 1) and not turned(content):
            notes = ["its EXIF orientation was ignored, as the HEIF standard asks"]
            image.info["notes"] = image.info.get("notes", []) + notes
        yield image


def check_size(image: Image.Image, name: object) -> None:
    """Refuse a picture whose size or shape no photograph of a lesion has, before it is decoded.

    Raises:
        UserError: it is too large, too small, or too elongated.
    """
    width, height = image.size
    described = f"the image {name} has {width} × {height} pixels"
    if width * height > MOST_PIXELS:
        raise UserError(f"{described}, more than {MOST_PIXELS:,}: shrink it")
    if min(width, height) < LEAST_SIDE:
        raise UserError(f"{described}, too few to classify: take a larger copy of it")
    if max(width, height) > MOST_ELONGATED * min(width, height):
        raise UserError(f"{described}, too long and narrow for a photograph: is it one?")


def read_image(source: str | Path | BinaryIO | Image.Image | np.ndarray) -> Image.Image:
    """The picture in a file (or a Pillow image, or an array uint8 `[H, W, 3]`), by `to_rgb`.

    Raises:
        UserError: it is missing, is no picture, is cut short, or has a size or shape that no photograph has.
    """
    name = source if isinstance(source, str | Path) else getattr(source, "name", None) or "given"
    try:
        with _open(source) as image:
            check_size(image, name)
            if image.mode == "F":
                raise UserError(f"the image {name} holds floating-point numbers: save it with 8 or 16 bits a channel")
            return to_rgb(image)
    except FileNotFoundError:
        raise UserError(f"there is no image {name}") from None
    except IsADirectoryError:
        raise UserError(f"{name} is a folder, not an image" if str(name) else "an image has an empty name") from None
    except UnidentifiedImageError:
        raise UserError(
            f"{name} is not an image in a format that is known (JPEG, PNG, TIFF, WebP, BMP, HEIC, AVIF, DICOM)"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(f"the image {name} has more than {MOST_PIXELS:,} pixels: shrink it") from None
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise errors of many types on damaged files, struct.error among them
        cause = " ".join(str(error).split())[:200]
        if "truncated" in cause:  # Pillow's words count the bytes that a decoder left over
            cause = "the file ends too early, so copy it again"
        raise UserError(f"the image {name} is damaged or unreadable: {cause}") from None


class FramingSettings(Protocol):
    """A section of settings with the keys of `Framing`: `config.Data`, or the metadata of a model file."""

    @property
    def field_of_view(self) -> FieldOfView:
        """As of `Framing`."""

    @property
    def crop(self) -> Crop:
        """As of `Framing`."""

    @property
    def interpolation(self) -> Interpolation | Literal["auto"]:
        """As of `Framing`; `auto` in a config whose run has not started, for bilinear."""


@dataclass(frozen=True)
class Framing:
    """Which part of a picture a network sees, and how it is resized.

    The defaults are those of dermrw before there was a choice.

    Attributes:
        field_of_view: `find` cuts borders and dark corners first (`find_field_of_view`); `none` does not.
        crop: `square` is the middle square. `whole` squeezes the whole picture to a square, so that a lesion near its
            end is seen; of a picture with a longer side of more than `MOST_SQUEEZED` times the shorter, its middle with
            these proportions, since a panorama squeezed to a square would show no shapes.
        interpolation: the filter of the resize.
    """

    field_of_view: FieldOfView = "none"
    crop: Crop = "square"
    interpolation: Interpolation = "bilinear"

    @classmethod
    def of(cls, settings: FramingSettings) -> "Framing":
        """Returns the framing in a config's section `data`, or in a model file's metadata."""
        interpolation = "bilinear" if settings.interpolation == "auto" else settings.interpolation
        return cls(settings.field_of_view, settings.crop, interpolation)

    @property
    def key(self) -> tuple[str, ...]:
        """The values that differ from the defaults, for digests: empty for the pixels of earlier versions."""
        if self == Framing():
            return ()
        return self.field_of_view, self.crop, *([] if self.interpolation == "bilinear" else [self.interpolation])


PLAIN = Framing()  # the middle square of the uncut picture, as perceptual hashes use it


def field_of_view(image: Image.Image, framing: Framing) -> Box:
    """Returns the part of an upright picture that is used, by `framing.field_of_view`."""
    return find_field_of_view(image) if framing.field_of_view == "find" else Box(0, 0, *image.size)


def cut(image: Image.Image, box: Box) -> Image.Image:
    """Returns a part of a picture; the picture itself if that is the whole."""
    return image if box == (0, 0, *image.size) else image.crop(box)


def resize(image: Image.Image, size: int, interpolation: Interpolation = "bilinear") -> Image.Image:
    """The picture with its shorter side at `size` pixels and its proportions kept."""
    width, height = image.size
    scale = size / min(width, height)
    target = (max(size, round(width * scale)), max(size, round(height * scale)))
    return image if target == image.size else image.resize(target, FILTERS[interpolation])


def center_crop(pixels: np.ndarray, size: int) -> np.ndarray:
    """The middle `[size, size, 3]` of pixels `[H, W, 3]` whose sides are at least `size`."""
    height, width = pixels.shape[:2]
    if min(height, width) < size:
        raise ValueError(f"pixels of {width} × {height} have no middle of {size} × {size}")
    top, left = (height - size) // 2, (width - size) // 2
    return pixels[top : top + size, left : left + size]


def squeeze(image: Image.Image, size: int, interpolation: Interpolation = "bilinear") -> Image.Image:
    """The whole picture at `size` × `size` pixels; of a longer one than `MOST_SQUEEZED`, its middle of that length."""
    width, height = image.size
    longest = MOST_SQUEEZED * min(width, height)
    wide, tall = min(width, longest), min(height, longest)
    left, top = (width - wide) // 2, (height - tall) // 2
    part = cut(image, Box(left, top, left + wide, top + tall))
    return part if part.size == (size, size) else part.resize((size, size), FILTERS[interpolation])


def content(source: Any, framing: Framing = PLAIN) -> Image.Image:
    """The picture of what `read_image` takes, cut to its field of view by `framing`."""
    image = read_image(source)
    return cut(image, field_of_view(image, framing))


def resized_pixels(source: Any, size: int, framing: Framing = PLAIN) -> np.ndarray:
    """Uncropped pixels of the content, uint8 `[H, W, 3]`, min(H, W) = size: augmentation starts here."""
    return np.asarray(resize(content(source, framing), size, framing.interpolation))


def network_pixels(image: Image.Image, size: int, framing: Framing) -> np.ndarray:
    """The pixels uint8 `[size, size, 3]` that a network is evaluated on, of a picture cut to its content."""
    if framing.crop == "whole":
        return np.array(squeeze(image, size, framing.interpolation))
    return np.ascontiguousarray(center_crop(np.asarray(resize(image, size, framing.interpolation)), size))


def evaluation_pixels(source: Any, size: int, framing: Framing = PLAIN) -> np.ndarray:
    """The pixels that a network is evaluated on, uint8 `[size, size, 3]`, of what `read_image` takes."""
    return network_pixels(content(source, framing), size, framing)

"""TIFF files that Pillow reads wrongly or not at all: several pages, raw files, over 8 bits a channel. No torch."""

import io
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from dermrw.errors import UserError
from dermrw.images.bombs import Directories
from dermrw.images.depth import FULL, NARROW, eight_bits

REDUCED, MASK = 1, 4  # bits of NewSubfileType (TIFF 6.0, section 8)
NEW_SUBFILE_TYPE, BITS_PER_SAMPLE, COMPRESSION, PHOTOMETRIC = 254, 258, 259, 262
PLANAR, MAX_SAMPLE_VALUE, COLOUR_MAP, EXTRA_SAMPLES, SAMPLE_FORMAT = 284, 281, 320, 338, 339
DNG_VERSION, IMAGE_WIDTH, IMAGE_LENGTH = 50706, 256, 257
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6
RAW_PHOTOMETRICS = {32803, 34892}  # a colour filter array and linear raw values (DNG 1.7, chapter 4)
SEPARATE_PLANES, UNCOMPRESSED = 2, 1
PREMULTIPLIED, TRANSPARENCY = 1, 2  # ExtraSamples (TIFF 6.0, section 18)
UNSIGNED, FLOATING_POINT = 1, 3
MOST_PAGES = 100  # that are looked at
SAVE_AS = "save it as PNG or JPEG"


def fault(content: bytes) -> str | None:
    """The reason why a TIFF is not read at all, for `the image NAME …`; None if there is none."""
    tags = Directories(content, content[2:3] == b"+")
    photometric = set(tags.values(PHOTOMETRIC))
    if any(tag.number == DNG_VERSION for tag in tags.first) or photometric & RAW_PHOTOMETRICS:
        return f"is a camera's raw file, which is not read: {SAVE_AS}"
    bits = tags.values(BITS_PER_SAMPLE) or [1]
    formats = set(tags.values(SAMPLE_FORMAT)) or {UNSIGNED}
    if formats != {UNSIGNED} or max(bits) > 16:
        numbers = "floating-point" if formats == {FLOATING_POINT} else "signed or 32-bit"
        return f"holds {numbers} numbers: save it with 8 or 16 bits a channel"
    if photometric == {YCBCR} and tags.values(COMPRESSION) in ([], [UNCOMPRESSED]):
        return f"is a TIFF of uncompressed YCbCr, which is not read: {SAVE_AS}"
    return None


def unknown(content: bytes) -> str:
    """The reason why Pillow does not know this TIFF, for `the image NAME …`."""
    tags = Directories(content, content[2:3] == b"+")
    numbers = {
        "BitsPerSample": tags.values(BITS_PER_SAMPLE),
        "Compression": tags.values(COMPRESSION),
        "PhotometricInterpretation": tags.values(PHOTOMETRIC),
    }
    if not numbers["PhotometricInterpretation"]:
        return "is damaged or unreadable: it begins like TIFF, but its header cannot be read"
    stated = ", ".join(f"{name} {' '.join(map(str, found[:5]))}" for name, found in numbers.items() if found)
    return f"is a TIFF of a kind that is not read ({stated}): {SAVE_AS}"


def choose_page(image: Image.Image, name: object) -> None:
    """Go to the one page that shows the picture; smaller copies of it and masks do not count.

    Raises:
        UserError: several pages could be meant, or none.
    """
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    pages = min(getattr(image, "n_frames", 1), MOST_PAGES)
    shown = []
    for page in range(pages):
        image.seek(page)
        if not _number(image, NEW_SUBFILE_TYPE, 0) & (REDUCED | MASK):
            shown.append(page)
    if not shown:
        raise UserError(
            f"the image {name} is a TIFF that holds only a reduced copy of its picture or a mask, as a camera's raw "
            f"file does: {SAVE_AS}"
        )
    if len(shown) > 1:
        raise UserError(f"the image {name} is a TIFF of {len(shown)} pages: save the page that shows the lesion")
    image.seek(shown[0])


def _number(image: TiffImagePlugin.TiffImageFile, tag: int, otherwise: int) -> int:
    value = image.tag_v2.get(tag, otherwise)
    return value if isinstance(value, int) else otherwise


def read_page(image: Image.Image, content: bytes, name: object) -> tuple[Image.Image, str | None] | None:
    """The present page in 8 bits, and a note for the user; None if Pillow reads it right.

    Pillow drops the lower eight bits of a colour, which turns 12-bit values in 16-bit words almost black. It misreads
    separate planes of 16 bits, does not invert 16-bit grey whose white is zero, and takes a palette of 8-bit values
    for black.

    Raises:
        UserError: the page is compressed in a way that is not read here.
    """
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    tags = image.tag_v2
    bits, photometric = set(tags.get(BITS_PER_SAMPLE, (1,))), tags.get(PHOTOMETRIC)
    if photometric == PALETTE and max(tags.get(COLOUR_MAP, (FULL,))) <= 255:
        return _palette(image), None
    if image.mode.startswith("I;16") and photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO):
        values, top = np.asarray(image).astype(np.uint16), 2 ** max(bits) - 1
        eight, note = eight_bits(top - values if photometric == WHITE_IS_ZERO else values, _stated(tags, top))
        return Image.fromarray(eight), note
    if bits != {16}:
        return None
    read = _by_tifffile(image, content) if photometric == RGB else None
    if read is None:
        if tags.get(PLANAR) == SEPARATE_PLANES:
            raise UserError(
                f"the image {name} is a compressed 16-bit TIFF in separate planes, which is not read: save it as PNG"
            )
        # Pillow's eight bits are the upper ones
        brightest = max(int(channel[1]) for channel in image.convert("RGB").getextrema())  # type: ignore[index]
        if photometric == RGB and brightest <= max(NARROW) >> 8:
            raise UserError(
                f"the image {name} is a 16-bit TIFF whose values use 14 bits or fewer: save it with 8 bits a channel, "
                "or uncompressed"
            )
        return None
    eight, note = eight_bits(read[..., :3], _stated(tags, FULL))
    extra = (*tags.get(EXTRA_SAMPLES, ()), 0)[0]
    if read.shape[2] == 3 or extra not in (PREMULTIPLIED, TRANSPARENCY):
        return Image.fromarray(np.ascontiguousarray(eight)), note
    alpha = (read[..., 3:4] // 257).astype(np.uint8)
    mode = "RGBA" if extra == TRANSPARENCY else "RGBa"
    whole = Image.frombuffer(mode, image.size, np.concatenate([eight, alpha], 2).tobytes(), "raw", mode, 0, 1)
    return whole.convert("RGBA"), note


def _stated(tags: Any, otherwise: int) -> int:
    """The value of white that a page states."""
    stated = tags.get(MAX_SAMPLE_VALUE)
    return int(max(stated) if isinstance(stated, tuple) else stated) if stated else otherwise


def _by_tifffile(image: TiffImagePlugin.TiffImageFile, content: bytes) -> Any:
    """The 16-bit values `[H, W, samples]` of the present page; None if tifffile lacks the codec."""
    import tifffile  # needed by few pictures

    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            page: Any = file.pages[image.tell()]
            values = page.asarray()
    except Exception:  # of many types, and without its codecs for some compressions
        return None
    if values.ndim == 3 and page.planarconfig == SEPARATE_PLANES:
        values = np.moveaxis(values, 0, -1)
    right = (
        values.dtype == np.uint16
        and values.ndim == 3
        and values.shape[:2] == (image.tag_v2[IMAGE_LENGTH], image.tag_v2[IMAGE_WIDTH])
    )
    return values if right and values.shape[2] >= 3 else None


def _palette(image: TiffImagePlugin.TiffImageFile) -> Image.Image:
    """A page whose colour map has 8-bit values instead of 16-bit ones (TIFF 6.0, section 5)."""
    colours = np.asarray(image.tag_v2[COLOUR_MAP], dtype=np.uint8).reshape(3, -1).T
    return Image.fromarray(colours[np.minimum(np.asarray(image), len(colours) - 1)])

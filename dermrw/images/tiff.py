"""What Pillow reads wrongly or not at all in a TIFF: several pages, and 16 bits a channel. No torch."""

import io
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from dermrw.errors import UserError

REDUCED, MASK = 1, 4  # bits of NewSubfileType (TIFF 6.0, section 8)
NEW_SUBFILE_TYPE, BITS_PER_SAMPLE, PHOTOMETRIC, PLANAR, MAX_SAMPLE_VALUE = 254, 258, 262, 284, 281
RGB, SEPARATE_PLANES = 2, 2
MOST_PAGES = 100  # that are looked at
TWELVE_BITS = 4095


def choose_page(image: Image.Image, name: object) -> None:
    """Go to the one page that shows the picture; smaller copies of it and masks do not count.

    Raises:
        UserError: several pages could be meant.
    """
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    pages = min(getattr(image, "n_frames", 1), MOST_PAGES)
    if pages == 1:
        return
    shown = []
    for page in range(pages):
        image.seek(page)
        if not int(image.tag_v2.get(NEW_SUBFILE_TYPE, 0)) & (REDUCED | MASK):
            shown.append(page)
    if len(shown) > 1:
        raise UserError(f"the image {name} is a TIFF of {len(shown)} pages: save the page that shows the lesion")
    image.seek(shown[0] if shown else 0)


def sixteen_bits(image: Image.Image, content: bytes, name: object) -> tuple[Image.Image, str | None] | None:
    """The present page of an RGB TIFF with 16 bits a channel, in 8 bits, and a note; None if it is no such page.

    Pillow drops the lower eight bits, which turns 12-bit values in 16-bit words almost black, and misreads separate
    planes.

    Raises:
        UserError: the page is compressed in a way that is not read here.
    """
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    tags = image.tag_v2
    bits = tuple(tags.get(BITS_PER_SAMPLE, (1,)))
    if set(bits) != {16} or len(bits) not in (3, 4) or tags.get(PHOTOMETRIC) != RGB:
        return None
    import tifffile  # needed by few pictures

    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            values: Any = file.pages[image.tell()].asarray()
    except Exception:  # of many types, and without its codecs for some compressions
        if tags.get(PLANAR) == SEPARATE_PLANES:
            raise UserError(
                f"the image {name} is a compressed 16-bit TIFF in separate planes, which is not read: save it as PNG"
            ) from None
        return None
    if tags.get(PLANAR) == SEPARATE_PLANES:
        values = np.moveaxis(values, 0, -1)
    if values.dtype != np.uint16 or values.ndim != 3:
        return None
    stated = tags.get(MAX_SAMPLE_VALUE)
    top = int(max(stated)) if stated else 65535
    note = None
    largest = int(values[..., :3].max())
    if top == 65535 and 255 < largest <= TWELVE_BITS:
        top, note = TWELVE_BITS, "its 16-bit values use 12 bits alone and were scaled to the full range"
    table = np.minimum(np.arange(65536, dtype=np.int64) * 255 // max(top, 1), 255).astype(np.uint8)
    if values.shape[2] == 4:
        alpha = (values[..., 3:] // 257).astype(np.uint8)
        return Image.fromarray(np.concatenate([table[values[..., :3]], alpha], 2), "RGBA"), note
    return Image.fromarray(table[values]), note

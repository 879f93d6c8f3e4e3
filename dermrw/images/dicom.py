"""The picture in a DICOM file, and nothing else of it: no name, date or private tag is read. No torch in here."""

import io
import logging
import warnings
from typing import BinaryIO

import numpy as np
import pydicom
from PIL import Image
from pydicom.encaps import generate_frames
from pydicom.pixels import apply_color_lut, pixel_array
from pydicom.uid import (
    JPEG2000,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    RLELossless,
)

from dermrw.errors import UserError
from dermrw.images.bombs import reason

# both warn and log of values that break the standard, and quote them: nothing of a patient's is to be printed
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
warnings.filterwarnings("ignore", module=r"pydicom\b")

# whatever unpacks the whole file at once, and says beforehand nothing of how large it gets
DEFLATED = b"1.2.840.10008.1.2.1.99"
ITEM, MOST_ITEMS = b"\xfe\xff\x00\xe0", 10_000  # of sequences and frames, each of which takes its time to be read
UNCOMPRESSED = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
BY_PILLOW = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEG2000Lossless, JPEG2000)
# all that a picture is read from (PS3.3, C.7.6.3); what isn't named here never leaves the file
TAGS = [
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData", "ICCProfile", "OpticalPathSequence",
    *(f"{c}PaletteColorLookupTable{what}" for c in ("Red", "Green", "Blue") for what in ("Descriptor", "Data")),
]  # fmt: skip


def dicom_image(file: BinaryIO, name: object, most_pixels: int) -> Image.Image:
    """The picture, as Pillow's `RGB`.

    Args:
        file: open at its beginning.
        name: what to call it in an error.
        most_pixels: the largest width × height that is decoded.

    Raises:
        UserError: it holds no picture, several, a grey one or one too large, or can't be decoded here.
    """
    content = file.read()
    if content.count(ITEM) > MOST_ITEMS:
        raise UserError(f"the image {name} is a DICOM file of more than {MOST_ITEMS:,} items: it isn't opened")
    if DEFLATED in content:
        raise UserError(f"the image {name} is a deflated DICOM file, which isn't read: save it as JPEG or uncompressed")
    try:
        return _decoded(content, name, most_pixels)
    except UserError:
        raise
    except Exception:  # pydicom's decoders raise errors of many types, which quote the file
        raise UserError(f"the image {name} is a DICOM file that is damaged or breaks the standard") from None


def _decoded(content: bytes, name: object, most_pixels: int) -> Image.Image:
    data = pydicom.dcmread(io.BytesIO(content), specific_tags=TAGS, force=content[128:132] != b"DICM")
    if "PixelData" not in data:
        raise UserError(f"the image {name} is a DICOM file without a picture")
    frames, samples, kind = int(data.get("NumberOfFrames") or 1), data.SamplesPerPixel, data.PhotometricInterpretation
    if frames != 1:
        raise UserError(f"the image {name} is a DICOM file of {frames} pictures: save the one that shows the lesion")
    if kind != "PALETTE COLOR" and samples != 3:
        raise UserError(f"the image {name} is a grey DICOM file, and dermoscopy is in colour")
    width, height, syntax = int(data.Columns), int(data.Rows), data.file_meta.TransferSyntaxUID
    if width * height > most_pixels:
        raise UserError(f"the image {name} has {width} × {height} pixels, more than {most_pixels:,}: shrink it")
    allocated = int(data.BitsAllocated)
    # run lengths unpack to a multiple, whatever the picture's size says
    if allocated > 16 or len(data.PixelData) > width * height * int(samples) * allocated // 4 + 100_000:
        raise ValueError(f"{allocated} bits, {len(data.PixelData)} bytes")
    if syntax in BY_PILLOW:
        (frame,) = generate_frames(data.PixelData, number_of_frames=1)
        with Image.open(io.BytesIO(frame), formats=("JPEG", "JPEG2000")) as inside:
            # else the picture in it could be larger than it says, or gone over thousands of times: a bomb
            if inside.size != (width, height) or reason(frame, most_pixels):
                raise ValueError(f"{inside.size}")
            if syntax in (JPEGBaseline8Bit, JPEGExtended12Bit):
                # Whether a JPEG holds RGB or YCbCr is written in its markers and component names, which libjpeg reads.
                # PhotometricInterpretation is often wrong about it.
                return _with_profile(inside.convert("RGB"), data)
    elif syntax not in (*UNCOMPRESSED, RLELossless):
        raise UserError(f"the image {name} is a DICOM file in {syntax.name}, which isn't read here: save it as JPEG")
    if syntax in UNCOMPRESSED and kind == "YBR_FULL_422" and len(data.PixelData) >= 3 * width * height:
        raise UserError(
            f"the image {name} is a DICOM file that states YBR_FULL_422 but holds three bytes a pixel, so its colours "
            "are ambiguous: export it again as RGB"
        )
    values, bits = pixel_array(data, index=0), int(data.BitsStored)
    if kind == "PALETTE COLOR":
        values = apply_color_lut(values, data)
        bits = 8 * values.dtype.itemsize
        if bits == 16 and _eight_bit_palette(data):
            values, bits = values.astype(np.uint8), 8
    if bits == 8 and values.dtype == np.uint8:
        return _with_profile(Image.fromarray(values), data)
    if values.dtype.kind != "u" or bits > 16:
        raise ValueError(f"{values.dtype} of {bits} bits")
    # by a table: arithmetic would take eight bytes a value, gigabytes for the largest picture
    table = np.minimum(np.arange(2 ** (8 * values.dtype.itemsize), dtype=np.int64) * 255 // (2**bits - 1), 255)
    return _with_profile(Image.fromarray(table.astype(np.uint8)[values]), data)


def _eight_bit_palette(data: pydicom.Dataset) -> bool:
    """Whether a palette in 16-bit words holds 8-bit values, by its descriptor or by all of its values."""
    values = [np.frombuffer(data[f"{c}PaletteColorLookupTableData"].value, "u1") for c in ("Red", "Green", "Blue")]
    described = all(int(data[f"{c}PaletteColorLookupTableDescriptor"].value[2]) == 8 for c in ("Red", "Green", "Blue"))
    # the high bytes are all zero at the odd places in one byte order, or at the even ones in the other
    return described or not any(v[1::2].any() for v in values) or not any(v[::2].any() for v in values)


def _with_profile(image: Image.Image, data: pydicom.Dataset) -> Image.Image:
    """The picture with its ICC profile, of the optical path or of the image itself (PS3.3, C.11.15 and C.8.12.5)."""
    paths = data.get("OpticalPathSequence") or []
    profile = data.get("ICCProfile") or (paths[0].get("ICCProfile") if len(paths) else None)
    if profile:
        image.info["icc_profile"] = bytes(profile)
    return image

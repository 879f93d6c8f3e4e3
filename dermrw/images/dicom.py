"""The picture in a DICOM file and its modality, nothing more: no name, date or private tag is read. No torch."""

import io
import logging
import re
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
from dermrw.images.depth import eight_bits

# both warn and log of values that break the standard, and quote them: nothing of a patient's is to be printed
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
warnings.filterwarnings("ignore", module=r"pydicom\b")

# whatever unpacks the whole file at once, and says beforehand nothing of how large it gets
DEFLATED = b"1.2.840.10008.1.2.1.99"
ITEM, MOST_ITEMS = b"\xfe\xff\x00\xe0", 10_000  # of sequences and frames, each of which takes its time to be read
UNCOMPRESSED = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
BY_PILLOW = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEG2000Lossless, JPEG2000)
PALETTE = "PALETTE COLOR"
# modalities (PS3.3, C.7.3.1.1.1) of photographs, and those that converters of photographs state
PHOTOGRAPHS = ("", "DMS", "XC", "OT", "ES", "GM", "SM", "OP")
# all that a picture is read from (PS3.3, C.7.6.3); what isn't named here never leaves the file
TAGS = [
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData", "ICCProfile", "OpticalPathSequence",
    "Modality",
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
    if kind != PALETTE and samples == 1:
        raise UserError(f"the image {name} is a grey DICOM file, and dermoscopy is in colour")
    if kind in ("HSV", "ARGB", "CMYK") or str(kind).startswith("YBR_PARTIAL"):
        raise UserError(f"the image {name} is a DICOM file in {kind}, which is not read: export it as RGB")
    if (kind == PALETTE) != (samples == 1) or samples not in (1, 3):
        raise ValueError(f"{samples} samples of {kind}")
    width, height, syntax = int(data.Columns), int(data.Rows), data.file_meta.TransferSyntaxUID
    if width * height > most_pixels:
        raise UserError(f"the image {name} has {width} × {height} pixels, more than {most_pixels:,}: shrink it")
    allocated = int(data.BitsAllocated)
    # run lengths unpack to a multiple, whatever the picture's size says
    if allocated > 16 or len(data.PixelData) > width * height * int(samples) * allocated // 4 + 100_000:
        raise ValueError(f"{allocated} bits, {len(data.PixelData)} bytes")
    bits = int(data.BitsStored)
    if int(data.get("HighBit") or bits - 1) != bits - 1:
        raise UserError(
            f"the image {name} is a DICOM file whose values do not end at their lowest bit (HighBit {data.HighBit}, "
            f"BitsStored {bits}): export it again with 8 bits"
        )
    if syntax in BY_PILLOW:
        (frame,) = generate_frames(data.PixelData, number_of_frames=1)
        with Image.open(io.BytesIO(frame), formats=("JPEG", "JPEG2000")) as inside:
            # else the picture in it could be larger than it says, or gone over thousands of times: a bomb
            if inside.size != (width, height) or reason(frame, most_pixels):
                raise ValueError(f"{inside.size}")
            if syntax in (JPEGBaseline8Bit, JPEGExtended12Bit):
                # Whether a JPEG holds RGB or YCbCr is written in its markers and component names, which libjpeg reads.
                # PhotometricInterpretation is often wrong about it.
                rgb = inside.convert("RGB")
                rgb.info = {key: value for key, value in inside.info.items() if key == "icc_profile"}
                return _finished(rgb, data)  # without EXIF: Rows and Columns are those of the stored picture
        if str(kind).startswith("YBR_FULL") and _stores_rgb(frame):
            data.PhotometricInterpretation = "RGB"  # else pydicom would convert the colours a second time
    elif syntax not in (*UNCOMPRESSED, RLELossless):
        raise UserError(f"the image {name} is a DICOM file in {syntax.name}, which isn't read here: save it as JPEG")
    if syntax in UNCOMPRESSED and kind == "YBR_FULL_422" and len(data.PixelData) >= 3 * width * height:
        raise UserError(
            f"the image {name} is a DICOM file that states YBR_FULL_422 but holds three bytes a pixel, so its colours "
            "are ambiguous: export it again as RGB"
        )
    values = pixel_array(data, index=0)
    if kind == PALETTE:
        described = {int(data[f"{c}PaletteColorLookupTableDescriptor"].value[2]) for c in ("Red", "Green", "Blue")}
        values = apply_color_lut(values, data)
        bits = 8 if described == {8} else 8 * values.dtype.itemsize
    if bits == 8 and values.dtype == np.uint8:
        return _finished(Image.fromarray(values), data)
    if values.dtype.kind != "u" or bits > 16:
        raise ValueError(f"{values.dtype} of {bits} bits")
    eight, note = eight_bits(values, 2**bits - 1)
    return _finished(Image.fromarray(eight), data, [note] if note else [])


def _stores_rgb(frame: bytes) -> bool:
    """Whether a JPEG 2000 frame states RGB, by its component transformation or its JP2 header (T.800, G and I).

    Converters from JPEG often keep its PhotometricInterpretation, YBR_FULL_422, which is then wrong.
    """
    stream = max(frame.find(b"\xff\x4f\xff\x51"), 0)
    if b"colr\1\0\0\0\0\0\x10" in frame[:stream]:  # sRGB
        return True
    style = frame.find(b"\xff\x52", stream)  # COD, in the main header
    return 0 <= style < len(frame) - 8 and frame[style + 8] == 1


def _finished(image: Image.Image, data: pydicom.Dataset, notes: list[str] | None = None) -> Image.Image:
    """The picture with its notes for the user, and with its ICC profile.

    The profile is that of the optical path or of the image itself (PS3.3, C.11.15 and C.8.12.5).
    """
    paths = data.get("OpticalPathSequence") or []
    profile = data.get("ICCProfile") or (paths[0].get("ICCProfile") if len(paths) else None)
    if profile:
        image.info["icc_profile"] = bytes(profile)
    notes = list(notes or [])
    modality = str(data.get("Modality") or "")
    if modality not in PHOTOGRAPHS:
        stated = modality if re.fullmatch("[A-Z]{2,8}", modality) else "unknown"
        notes.append(f"its modality is {stated}, not dermoscopy")
    if notes:
        image.info["notes"] = notes
    return image

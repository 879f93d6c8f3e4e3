"""Convert a decoded picture to sRGB. No torch.

A file may state its colour space in several ways. They are tried in this order, and the first one found is used:

1. an embedded ICC profile (JPEG, PNG, TIFF, WebP, BMP, HEIC, AVIF; in DICOM, the optical path's profile);
2. code points of ITU-T H.273: a PNG's cICP chunk (PNG, third edition, 11.3.2.6), which comes before its profile, or a
   HEIC's or AVIF's `nclx` property;
3. a PNG's gAMA and cHRM chunks, unless it has an sRGB chunk;
4. EXIF's interoperability index "R03", which stands for Adobe RGB (DCF 2.0, 4.9.3).

Without any of them the picture is taken as sRGB, as browsers do (CSS Color 4, section 9).
"""

import io
import struct
import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageCms

from dermrw.images.formats import jpeg_segments

Floats = npt.NDArray[np.float64]
Chromaticities = tuple[float, float, float, float, float, float, float, float]  # x and y of white, red, green, blue

D65 = (0.3127, 0.3290)
SRGB: Chromaticities = (*D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
ADOBE_RGB: Chromaticities = (*D65, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
ADOBE_GAMMA = 2.19921875  # Adobe RGB (1998) Color Image Encoding, 4.3.1.2
# H.273, table 2: the colour primaries whose pictures a camera, a phone or a converter may write
PRIMARIES: dict[int, Chromaticities] = {
    1: SRGB,
    2: SRGB,  # unspecified
    5: (*D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),  # BT.601, 625 lines
    6: (*D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),  # BT.601, 525 lines
    9: (*D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),  # BT.2020
    12: (*D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),  # Display P3
}
# H.273, table 3: sRGB (13), unspecified (2), and video curves that decoders display as sRGB
CURVES = (1, 2, 6, 13, 14, 15)
GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}
HDR_CURVES = {16: "PQ", 18: "HLG"}  # no one conversion to sRGB exists

DAMAGED = "its colour profile is damaged or does not fit and was ignored"
LARGEST_PROFILE = 4_000_000  # bytes; printers' profiles have about a million
# A profile whose black and white, or whose most and least saturated colours, are closer than this is damaged.
LEAST_RANGE = 64
# A profile that moves no colour of a 17 x 17 x 17 grid by more than this many of 255 levels is sRGB under another name.
SAME = 2


class Converted(NamedTuple):
    """A picture in sRGB, and a note on its colours for the user (None if there is nothing to say)."""

    image: Image.Image
    note: str | None


class _Transform(NamedTuple):
    """How to convert pictures of one mode by one profile."""

    apply: ImageCms.ImageCmsTransform | None  # None: the profile is sRGB
    mode: str  # of the pictures that it takes


@lru_cache(maxsize=1)
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> _Transform:
    """The transform from this ICC profile to sRGB.

    Raises:
        ImageCms.PyCMSError, OSError, ValueError: the profile is damaged, or is not for pictures of this mode.
    """
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space.strip()
    wanted = {"RGB": "RGB", "CMYK": "CMYK", "L": "GRAY", "LAB": "Lab"}[mode]
    if space != wanted:
        raise ValueError(f"the profile is for {space}, the picture is {wanted}")
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
    apply = ImageCms.buildTransform(source, _srgb(), mode, "RGB", intent, flags)
    if mode in ("L", "CMYK"):
        black, white = ((0,), (255,)) if mode == "L" else ((255,) * 4, (0,) * 4)
        dark, light = (_moved(Image.new(mode, (1, 1), colour), apply).mean() for colour in (black, white))
        if light - dark < LEAST_RANGE:
            raise ValueError("the profile makes white as dark as black")
    if mode == "RGB":
        steps = np.linspace(0, 255, 17).round().astype(np.uint8)
        grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(17, -1, 3)
        moved = _moved(Image.fromarray(grid), apply)
        if np.abs(moved - grid).max() <= SAME:
            return _Transform(None, mode)
        if moved[-1, -1].mean() - moved[0, 0].mean() < LEAST_RANGE or np.ptp(moved, axis=2).max() < LEAST_RANGE:
            raise ValueError("the profile makes all colours alike")
    return _Transform(apply, mode)


def _moved(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> npt.NDArray[np.int64]:
    """The converted levels of a small picture."""
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None
    return np.asarray(converted, dtype=np.int64)


def by_profile(image: Image.Image, profile: bytes) -> Converted:
    """Convert a picture by its ICC profile.

    Args:
        image: decoded, in mode RGB, RGBA, CMYK, L, LA, LAB or P.
        profile: the bytes of the ICC profile.

    Returns:
        The picture in RGB (or RGBA, if it had transparency). If the profile is damaged or does not fit, the picture is
        returned as it was, with a note.
    """
    alpha = None
    if image.mode in ("P", "PA") or "transparency" in image.info:
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.mode in ("RGBA", "LA"):
        alpha = image.getchannel("A")
        pixels = image.convert("RGB" if image.mode == "RGBA" else "L")
    else:
        pixels = image
    if pixels.mode not in ("RGB", "CMYK", "L", "LAB"):
        return Converted(image, None)
    try:
        if len(profile) > LARGEST_PROFILE:
            raise ValueError("the profile is too large")
        transform = _transform(profile, pixels.mode)
        if transform.apply is None:
            return Converted(image, None)
        converted = ImageCms.applyTransform(pixels, transform.apply)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, KeyError, SyntaxError, MemoryError):
        return Converted(image, DAMAGED)
    if converted is None:
        return Converted(image, "its colour profile could not be applied and was ignored")
    if alpha is not None:
        converted.putalpha(alpha)
    return Converted(converted, None)


def _to_xyz(c: Chromaticities) -> Floats:
    """The matrix from linear RGB of these primaries to XYZ, with the white point at Y = 1 (SMPTE RP 177)."""
    x, y = np.array(c[0::2]), np.array(c[1::2])
    xyz = np.stack([x / y, np.ones(4), (1 - x - y) / y])  # [3, white red green blue]
    scale = np.linalg.solve(xyz[:, 1:], xyz[:, 0])
    return np.asarray(xyz[:, 1:] * scale)


# Bradford's cone response (Lam 1985), in which a white point is adapted to another, as in ICC profiles
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def _adapt(white: tuple[float, float]) -> Floats:
    """The matrix that adapts XYZ from a white point with this x and y to D65."""
    old, new = (_BRADFORD @ np.array([x / y, 1.0, (1 - x - y) / y]) for x, y in (white, D65))
    return np.asarray(np.linalg.inv(_BRADFORD) @ np.diag(new / old) @ _BRADFORD)


def by_primaries(image: Image.Image, primaries: Chromaticities, gamma: float | None) -> Image.Image:
    """Convert an RGB or RGBA picture of these primaries to sRGB.

    Args:
        image: mode RGB or RGBA.
        primaries: x and y of the white point, red, green and blue (CIE 1931).
        gamma: the exponent from stored values to light; None for sRGB's curve.
    """
    stored = np.arange(256) / 255
    srgb_light = np.where(stored <= 0.04045, stored / 12.92, ((stored + 0.055) / 1.055) ** 2.4)
    light = (srgb_light if gamma is None else stored**gamma).astype(np.float32)
    matrix = np.linalg.inv(_to_xyz(SRGB)) @ _adapt((primaries[0], primaries[1])) @ _to_xyz(primaries)
    # sRGB's inverse curve from a table with 16 bits: exact to less than half a level
    table = np.arange(65536) / 65535
    back = np.where(table <= 0.0031308, 12.92 * table, 1.055 * np.maximum(table, 1e-12) ** (1 / 2.4) - 0.055)
    back = (255 * back).round().astype(np.uint8)
    values = np.asarray(image)
    result = values.copy()
    m = matrix.T.astype(np.float32)
    for rows in range(0, len(values), 256):  # in strips, since float32 takes four times the memory
        linear = light[values[rows : rows + 256, :, :3]] @ m
        result[rows : rows + 256, :, :3] = back[(linear.clip(0, 1) * 65535).round().astype(np.uint16)]
    return Image.fromarray(result, image.mode)


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Type, beginning and end of each chunk of a PNG before its pixels; length and checksum are included."""
    at = 8
    while at + 12 <= len(content):
        (length,), kind = struct.unpack_from(">I", content, at), content[at + 4 : at + 8]
        if kind in (b"IDAT", b"IEND"):
            return
        yield kind, at, at + 12 + length
        at += 12 + length


def png_cicp(content: bytes) -> tuple[int, int] | None:
    """Colour primaries and transfer characteristics of a PNG's cICP chunk, which comes before its pixels."""
    for kind, start, end in _png_chunks(content):
        if kind == b"cICP" and end - start == 16:
            return content[start + 8], content[start + 9]
    return None


def png_profile(content: bytes) -> tuple[bytes, bytes | None]:
    """A PNG without its iCCP chunks, and its ICC profile: None without a chunk, empty if the chunk is damaged.

    Pillow refuses the picture if the chunk has a wrong checksum or a profile of over a megabyte, and it drops one that
    cannot be decompressed without a word.
    """
    chunks = [(start, end) for kind, start, end in _png_chunks(content) if kind == b"iCCP"]
    if not chunks:
        return content, None
    start, end = chunks[0]
    profile = _decompressed(content[start + 4 : end])
    kept, at = [], 0
    for start, end in chunks:
        kept.append(content[at:start])
        at = end
    return b"".join([*kept, content[at:]]), profile


def _decompressed(chunk: bytes) -> bytes:
    """The profile in an iCCP chunk (type, name, NUL, method 0, zlib stream, checksum); empty if it is damaged."""
    _, _, rest = chunk[4:-4].partition(b"\0")
    if zlib.crc32(chunk[:-4]) != int.from_bytes(chunk[-4:], "big") or rest[:1] != b"\0":
        return b""
    stream = zlib.decompressobj()
    try:
        profile = stream.decompress(rest[1:], LARGEST_PROFILE + 1)
    except zlib.error:
        return b""
    return profile if stream.eof and len(profile) <= LARGEST_PROFILE else b""


def jpeg_states_profile(content: bytes) -> bool:
    """Whether a JPEG has a segment of an ICC profile. Pillow drops an incomplete one without a word."""
    for marker, at in jpeg_segments(content):
        if marker == 0xDA:
            return False
        if marker == 0xE2 and content[at + 2 : at + 14] == b"ICC_PROFILE\0":
            return True
    return False


def bmp_profile(content: bytes) -> bytes | None:
    """The ICC profile embedded in a BMP with a header of version 5 (BITMAPV5HEADER), which Pillow does not read."""
    if content[14:18] != bytes([124, 0, 0, 0]) or content[70:74] != b"DEBM":  # PROFILE_EMBEDDED, "MBED"
        return None
    start, size = struct.unpack_from("<II", content, 126)
    return content[14 + start : 14 + start + size] or None


def to_srgb(image: Image.Image, cicp: tuple[int, int] | None = None) -> Converted:
    """Convert a decoded picture to sRGB by what its file states of its colours.

    Args:
        image: decoded, with the `info` that Pillow read from the file.
        cicp: colour primaries and transfer characteristics by H.273, of a PNG, HEIC or AVIF that states them.
    """
    profile = image.info.get("icc_profile")
    if profile and (cicp is None or image.format != "PNG"):
        return by_profile(image, profile)
    primaries, gamma = _stated(image, cicp)
    if cicp is not None and (cicp[0] not in PRIMARIES or cicp[1] not in (*CURVES, *GAMMAS)):
        return Converted(image, "it states a colour space that is not known here, and was read as sRGB")
    if primaries is None:
        return Converted(image, None)
    if image.mode not in ("RGB", "RGBA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    return Converted(by_primaries(image, primaries, gamma), None)


def _stated(image: Image.Image, cicp: tuple[int, int] | None) -> tuple[Chromaticities | None, float | None]:
    """Primaries and gamma that a file states without a profile; None for both if it is sRGB."""
    if cicp is not None:
        primaries, gamma = PRIMARIES.get(cicp[0]), GAMMAS.get(cicp[1])
        return (None, None) if primaries == SRGB and gamma is None else (primaries, gamma)
    info = image.info
    if image.format == "PNG" and "srgb" not in info and ("gamma" in info or "chromaticity" in info):
        gamma = float(info.get("gamma") or 1 / 2.2)
        primaries = tuple(info.get("chromaticity") or SRGB)
        plausible = 0.2 <= gamma <= 1.1 and len(primaries) == 8 and min(primaries[1::2]) > 0.001
        like_srgb = abs(gamma - 1 / 2.2) < 0.01 and plausible and np.allclose(primaries, SRGB, atol=0.005)
        if plausible and not like_srgb:
            # the decoder's curve: 1/2.2 stands for sRGB's own, as in libpng's manual
            return primaries, None if abs(gamma - 1 / 2.2) < 0.01 else 1 / gamma
    if image.format in ("JPEG", "MPO") and _interoperability(image) == "R03":
        return ADOBE_RGB, ADOBE_GAMMA
    return None, None


def _interoperability(image: Image.Image) -> str | None:
    """EXIF's interoperability index, such as R98 (sRGB) or R03 (Adobe RGB)."""
    try:
        value = image.getexif().get_ifd(ExifTags.IFD.Interop).get(1)
    except Exception:  # damaged EXIF: of many types
        return None
    return value.strip("\0 ") if isinstance(value, str) else None

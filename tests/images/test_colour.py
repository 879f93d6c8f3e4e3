"""Colours: the same picture in other colour spaces gives the same sRGB pixels."""

import io
import re
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from tools.encodings import P3, PROPHOTO, icc, stored_as

from dermrw.datasets.sample_drawing import draw_lesion
from dermrw.errors import UserError
from dermrw.images.colour import (
    ADOBE_GAMMA,
    ADOBE_RGB,
    PRIMARIES,
    Chromaticities,
    _to_xyz,
    by_primaries,
    png_cicp,
)
from dermrw.images.iso_media import nclx, turned
from dermrw.images.preprocess import read_image


def lesion() -> np.ndarray:
    return draw_lesion("mel", np.random.default_rng(3), np.random.default_rng(4), 90, 120)


def saved(image: Image.Image, kind: str, **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def difference(image: Image.Image, pixels: np.ndarray) -> float:
    return float(np.abs(np.asarray(image, dtype=int) - pixels).mean())


@pytest.mark.parametrize(("primaries", "gamma"), [(P3, 2.19921875), (ADOBE_RGB, ADOBE_GAMMA), (PROPHOTO, 1.80078125)])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG", "AVIF"])
def test_the_same_colours_by_an_embedded_profile(kind: str, primaries: Chromaticities, gamma: float) -> None:
    pixels = lesion()
    options: dict[str, dict[str, Any]] = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100}}
    options["JPEG"] = {"quality": 100, "subsampling": 0}
    other = stored_as(pixels, primaries, gamma)
    file = saved(other, kind, icc_profile=icc(primaries, gamma), **options.get(kind, {}))
    image = read_image(file)
    assert difference(image, pixels) < (2.0 if kind in ("JPEG", "AVIF") else 1.0)
    assert difference(other, pixels) > 1.5  # the profile made a difference
    assert not image.info


def test_a_bmp_of_version_5_with_a_profile() -> None:
    pixels, profile = lesion(), icc(P3, 2.19921875)
    other = stored_as(pixels, P3, 2.19921875)
    plain = saved(other, "BMP").getvalue()
    pixel_data = plain[54:]
    head = struct.pack("<I", 124) + plain[18:54] + bytes(16) + b"DEBM" + bytes(48)
    head += struct.pack("<IIII", 4, 124 + len(pixel_data), len(profile), 0)
    file = b"BM" + struct.pack("<IHHI", 138 + len(pixel_data) + len(profile), 0, 0, 138) + head + pixel_data + profile
    assert difference(read_image(io.BytesIO(file)), pixels) < 1 < difference(other, pixels)
    assert difference(read_image(io.BytesIO(file[:-200])), np.asarray(other, dtype=int)) == 0  # ignored, with a note


def test_a_profile_of_srgb_changes_no_pixel() -> None:
    pixels = lesion()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert difference(read_image(saved(Image.fromarray(pixels), "PNG", icc_profile=profile)), pixels) == 0


@pytest.mark.parametrize("profile", [b"nonsense", icc(P3, 2.2)[:200], b"\0" * 5_000_000])
def test_a_broken_profile_is_ignored_with_a_note(profile: bytes) -> None:
    pixels = lesion()
    image = read_image(saved(Image.fromarray(pixels), "TIFF", icc_profile=profile))
    assert difference(image, pixels) == 0
    assert image.info["notes"] == ["its colour profile is damaged or does not fit and was ignored"]


def test_a_profile_of_another_mode_is_ignored_with_a_note() -> None:
    grey = Image.fromarray(lesion()).convert("L")
    assert "does not fit" in read_image(saved(grey, "PNG", icc_profile=icc(P3, 2.2))).info["notes"][0]


def test_transparency_is_kept_beside_a_profile() -> None:
    pixels = lesion()
    other = stored_as(pixels, P3, 2.19921875).convert("RGBA")
    other.putalpha(Image.new("L", other.size, 255))
    other.paste((0, 0, 0, 0), (0, 0, 10, 10))
    image = read_image(saved(other, "PNG", icc_profile=icc(P3, 2.19921875)))
    assert image.getpixel((4, 4)) == (255, 255, 255)
    assert np.abs(np.asarray(image, dtype=int) - pixels)[20:, 20:].mean() < 1


def test_adobe_rgb_by_exif_alone() -> None:
    pixels = lesion()
    exif = Image.Exif()
    exif[0x8769] = {0xA005: {1: "R03"}}
    other = stored_as(pixels, ADOBE_RGB, ADOBE_GAMMA)
    image = read_image(saved(other, "JPEG", quality=100, subsampling=0, exif=exif))
    assert difference(image, pixels) < 2 < difference(other, pixels)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunks(image: Image.Image, *chunks: bytes) -> io.BytesIO:
    content = saved(image, "PNG").getvalue()
    return io.BytesIO(content[:33] + b"".join(chunks) + content[33:])  # after the signature and IHDR


def test_a_png_that_states_its_primaries_in_chunks() -> None:
    pixels = lesion()
    chrm = chunk(b"cHRM", struct.pack(">8I", *(round(v * 100_000) for v in ADOBE_RGB)))
    gama = chunk(b"gAMA", struct.pack(">I", round(100_000 / ADOBE_GAMMA)))
    other = stored_as(pixels, ADOBE_RGB, ADOBE_GAMMA)
    # a gamma of 1/2.2 stands for sRGB's curve, which differs a little from it
    assert difference(read_image(with_chunks(other, gama, chrm)), pixels) < 2.5
    srgb = chunk(b"sRGB", b"\0")
    assert difference(read_image(with_chunks(Image.fromarray(pixels), srgb, gama, chrm)), pixels) == 0


def in_display_p3(pixels: np.ndarray) -> Image.Image:
    """The picture stored in Display P3 with the curve of sRGB."""
    v = pixels / 255
    light = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    light = (light @ (np.linalg.inv(_to_xyz(P3)) @ _to_xyz(PRIMARIES[1])).T).clip(0, 1)
    curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return Image.fromarray((255 * curve).round().astype(np.uint8))


def test_a_png_with_cicp() -> None:
    pixels = lesion()
    other = in_display_p3(pixels)
    file = with_chunks(other, chunk(b"cICP", bytes([12, 13, 0, 1])))
    assert png_cicp(file.getvalue()) == (12, 13)
    assert difference(read_image(file), pixels) < 1
    unknown = read_image(with_chunks(other, chunk(b"cICP", bytes([10, 13, 0, 1]))))  # CIE XYZ
    assert "not known here" in unknown.info["notes"][0]
    for curve_number, name in ((16, "PQ"), (18, "HLG")):
        with pytest.raises(UserError, match=rf"is an HDR picture \({name}\), which is not read"):
            read_image(with_chunks(other, chunk(b"cICP", bytes([9, curve_number, 0, 1]))))


def test_an_avif_that_states_its_primaries() -> None:
    pixels = lesion()
    other = in_display_p3(pixels)
    content = saved(other, "AVIF", quality=100, subsampling="4:4:4").getvalue()
    assert nclx(content) == (1, 13)

    def stating(primaries: int, transfer: int) -> io.BytesIO:
        at = content.index(b"colrnclx") + 8
        return io.BytesIO(content[:at] + struct.pack(">HH", primaries, transfer) + content[at + 4 :])

    assert difference(read_image(stating(12, 13)), pixels) < 2 < difference(read_image(stating(1, 13)), pixels)
    assert difference(read_image(stating(2, 2)), np.asarray(other, dtype=int)) < 2  # unspecified: sRGB
    with pytest.raises(UserError, match=r"is an HDR picture \(PQ\)"):
        read_image(stating(9, 16))
    # a property that the primary picture does not have
    other_item = content.replace(
        b"pitm" + bytes(4) + content[content.index(b"pitm") + 8 :][:2], b"pitm" + bytes(4) + b"\0\7"
    )
    assert nclx(other_item) is None


def test_boxes_that_end_early() -> None:
    content = saved(Image.fromarray(lesion()), "AVIF").getvalue()
    for length in range(0, 400, 7):
        assert nclx(content[:length]) in (None, (1, 13))
        assert not turned(content[:length])


def test_white_stays_white_and_grey_grey() -> None:
    ramp = np.repeat(np.arange(0, 256, 5, dtype=np.uint8)[None, :, None], 3, 2)
    for primaries in (P3, ADOBE_RGB, PROPHOTO):
        actual = np.asarray(by_primaries(Image.fromarray(ramp), primaries, None), dtype=int)
        assert np.abs(actual - ramp).max() <= 1


def with_chunk(profile: bytes, change: Any) -> io.BytesIO:
    """A PNG whose iCCP chunk is `change` of its body, with a right checksum."""
    content = saved(Image.fromarray(lesion()), "PNG").getvalue()
    body = b"iCCP" + change(b"P3\0\0" + zlib.compress(profile))
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return io.BytesIO(content[:33] + chunk + content[33:])


@pytest.mark.parametrize(
    "change",
    [
        lambda body: b"",
        lambda body: b"no end of the name",
        lambda body: b"P3\0\1" + body[4:],
        lambda body: body[:20] + b"xx" + body[22:],
        lambda body: body[: len(body) // 2],
        lambda body: b"P3\0\0" + zlib.compress(bytes(5_000_000)),
    ],
)
def test_a_png_with_a_damaged_profile_is_read_with_a_note(change: Any) -> None:
    image = read_image(with_chunk(icc(P3, 2.2), change))
    assert difference(image, lesion()) == 0
    assert image.info["notes"] == ["its colour profile is damaged or does not fit and was ignored"]


def test_a_png_whose_profile_has_a_wrong_checksum_is_read_with_a_note() -> None:
    content = bytearray(with_chunk(icc(P3, 2.2), lambda body: body).getvalue())
    content[content.index(b"iCCP") + 20] ^= 1
    image = read_image(io.BytesIO(bytes(content)))
    assert difference(image, lesion()) == 0 and len(image.info["notes"]) == 1


def test_a_png_with_a_profile_of_over_a_megabyte() -> None:
    profile = icc(P3, 2.2)
    profile = struct.pack(">I", 1_500_000) + profile[4:].ljust(1_500_000 - 4, b"\0")
    image = read_image(saved(stored_as(lesion(), P3, 2.2), "PNG", icc_profile=profile))
    assert difference(image, lesion()) < 1 and not image.info


def test_a_jpeg_with_a_part_of_a_profile_is_read_with_a_note() -> None:
    content = saved(Image.fromarray(lesion()), "JPEG", quality=100, subsampling=0).getvalue()
    segment = b"ICC_PROFILE\0\1\2" + icc(P3, 2.2)[:200]
    segment = b"\xff\xe2" + struct.pack(">H", len(segment) + 2) + segment
    image = read_image(io.BytesIO(content[:20] + segment + content[20:]))
    assert image.info["notes"] == ["its colour profile is damaged or does not fit and was ignored"]


def test_a_profile_that_makes_all_colours_alike_is_ignored_with_a_note() -> None:
    profile = icc(P3, 2.2)
    black = profile[:132] + re.sub(rb"XYZ \0{4}.{12}", b"XYZ " + bytes(16), profile[132:], flags=re.DOTALL)
    for kind in ("PNG", "TIFF"):
        image = read_image(saved(Image.fromarray(lesion()), kind, icc_profile=black))
        assert difference(image, lesion()) == 0 and len(image.info["notes"]) == 1

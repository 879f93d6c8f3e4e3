"""The estimated skin tone, on drawn pictures of skin whose angle is known."""

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from dermrw.images.skin_tone import GROUPS, individual_typology_angle, skin_tones, to_lab, tone_group

# sRGB, and CIELAB by skimage.color.rgb2lab (scikit-image 0.26)
LAB = {
    (255, 255, 255): (100.0, -0.0025, 0.0047),
    (255, 0, 0): (53.2406, 80.0923, 67.2028),
    (0, 255, 0): (87.7351, -86.1830, 83.1797),
    (0, 0, 255): (32.2957, 79.1856, -107.8573),
    (224, 172, 150): (74.5447, 16.0184, 18.6667),
    (120, 80, 60): (37.9454, 14.2767, 18.5747),
    (60, 40, 30): (18.2419, 7.8633, 10.3177),
    (10, 12, 8): (3.1164, -1.1245, 1.3621),
    (0, 0, 0): (0.0, 0.0, 0.0),
}
# one colour of skin for each group; the lightest is pink, with little yellow
SKIN = {
    "very light": (232, 190, 180), "light": (224, 172, 150), "intermediate": (200, 150, 120), "tan": (170, 120, 95),
    "brown": (130, 88, 66), "dark": (75, 48, 36),
}  # fmt: skip
Colour = tuple[int, int, int]


def test_lab_is_scikit_images() -> None:
    lab = to_lab(np.array(list(LAB), np.uint8))
    np.testing.assert_allclose(lab, list(LAB.values()), atol=2e-4)


def test_lab_is_opencvs() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    expected = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    assert np.abs(to_lab(pixels) - expected).max() < 0.5  # OpenCV's tables are coarser


def known_angle(colour: Colour) -> float:
    """Returns the angle of a colour, by OpenCV."""
    lab = cv2.cvtColor(np.array([[colour]], np.float32) / 255, cv2.COLOR_RGB2LAB)[0, 0]
    return math.degrees(math.atan2(lab[0] - 50, lab[2]))


def picture(skin: Colour, lesion: float = 0.5, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """Returns skin with a lesion in its middle, whose colour is the skin's times `lesion`, and with noise."""
    width, height = size
    image = Image.new("RGB", size, skin)
    dark = tuple(round(lesion * value) for value in skin)
    ImageDraw.Draw(image).ellipse((0.3 * width, 0.25 * height, 0.7 * width, 0.75 * height), fill=dark)
    noise = np.random.default_rng(0).normal(0, 4, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def angle(image: Image.Image) -> float:
    found = individual_typology_angle(np.asarray(image))
    assert found is not None
    return found


@pytest.mark.parametrize("group", SKIN)
def test_each_group(group: str) -> None:
    skin = SKIN[group]
    for image in (
        picture(skin),
        picture(skin, lesion=0.8),
        picture(skin, size=(600, 450)),
        picture(skin, size=(90, 90)),
    ):
        assert angle(image) == pytest.approx(known_angle(skin), abs=2.5)
        assert tone_group(angle(image)) == group


@pytest.mark.parametrize("group", ["light", "tan", "dark"])
def test_hair_corners_ruler_glare_and_marks_do_not_count(group: str) -> None:
    skin = SKIN[group]
    image = picture(skin)
    draw = ImageDraw.Draw(image)
    for x in range(0, 320, 20):  # hair
        draw.line((x, 0, 320 - x // 2, 240), fill=(15, 10, 8), width=2)
    for corner in ((-60, -60), (260, -60), (-60, 180), (260, 180)):
        draw.ellipse((*corner, corner[0] + 120, corner[1] + 120), fill=(0, 0, 0))
    draw.rectangle((80, 222, 240, 239), fill=(255, 255, 255))  # a ruler
    for x in range(84, 240, 8):
        draw.line((x, 222, x, 232), fill=(0, 0, 0), width=1)
    draw.ellipse((60, 20, 75, 30), fill=(255, 255, 255))  # glare
    draw.ellipse((240, 100, 255, 115), fill=(90, 60, 160))  # ink
    assert angle(image) == pytest.approx(known_angle(skin), abs=6)


def test_a_lesion_as_large_as_the_picture_leaves_the_skin_at_its_edge() -> None:
    skin = SKIN["light"]
    image = picture(skin)
    ImageDraw.Draw(image).ellipse((20, 10, 300, 230), fill=(90, 60, 50))
    assert angle(image) == pytest.approx(known_angle(skin), abs=3)


def test_compression_and_size_do_not_matter(tmp_path: Path) -> None:
    image = picture(SKIN["intermediate"])
    image.save(tmp_path / "image.jpg", quality=60)
    assert angle(Image.open(tmp_path / "image.jpg")) == pytest.approx(angle(image), abs=1)
    assert angle(image.resize((160, 120))) == pytest.approx(angle(image), abs=1)


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (128, 128, 128), (60, 60, 90)])
def test_no_skin_no_angle(colour: Colour) -> None:
    """Black, white and grey are no skin; dark blue has no angle."""
    assert individual_typology_angle(np.full((50, 60, 3), colour, np.uint8)) is None


def test_tiny_pictures() -> None:
    for shape in ((1, 1, 3), (1, 40, 3), (3, 2, 3)):
        found = individual_typology_angle(np.full(shape, SKIN["light"], np.uint8))
        assert found is None or found == pytest.approx(known_angle(SKIN["light"]), abs=1)


def test_limits_belong_to_the_darker_group() -> None:
    assert [name for name, _ in GROUPS] == ["very light", "light", "intermediate", "tan", "brown", "dark"]
    at_limits = [tone_group(value) for value in (55, 41, 28, 10, -30)]
    assert at_limits == ["light", "intermediate", "tan", "brown", "dark"]
    assert [tone_group(value) for value in (180, 55.1, 41.1, 28.1, 10.1, -29.9, -180)] == [
        "very light", "very light", "light", "intermediate", "tan", "brown", "dark"
    ]  # fmt: skip


def test_groups_of_files_without_their_black_border(tmp_path: Path) -> None:
    """The field of view is found first, in files as in arrays."""
    skin = picture(SKIN["tan"])
    framed = Image.new("RGB", (400, 400))
    framed.paste(skin, (40, 80))
    framed.save(tmp_path / "framed.png")
    missing = tmp_path / "missing.png"
    assert skin_tones([tmp_path / "framed.png", np.asarray(skin), missing]) == ["tan", "tan", "not estimated"]

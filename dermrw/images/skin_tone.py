"""Estimates the skin tone around a lesion: the individual typology angle (ITA). No torch in here.

ITA = atan2(L* − 50, b*) · 180 / π in CIELAB under D65 (Chardon, Cretois and Hourseau, International Journal of Cosmetic
Science 13:191-208, 1991). The lighter the skin, the larger the angle. Kinyanjui et al. (MICCAI 2020) measured data
sets with it. The estimate comes from an uncalibrated picture: light and camera change it, often by more than the
width of a group. So it describes sets of pictures, and no single patient.

The lesion and hair are the dark side of Otsu's threshold on the lightness (IEEE Transactions on Systems, Man, and
Cybernetics 9:62-66, 1979), if the two sides differ enough. Pixels without colour are left out as well: rulers, glare,
text, black corners. The skin's colour is the median of the other pixels near the border of the picture.

The estimate is too dark for underexposed pictures, for pictures with a red or brown cast, under dense hair, and if the
lesion fills the picture. A violet cast, as in many pictures of HAM10000, moves it above 90 degrees.
"""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from dermrw.errors import UserError
from dermrw.images.preprocess import Framing, content

SIDE = 64  # pixels of the longer side of the copy
BLACKEST = 8.0  # L* of black corners, hair and markings, at most …
LEAST_CHROMA = 4.0  # … and C*ab of skin, at least: less is grey
GLARE = 97.0  # L* of glare and white paper, at least
LEAST_CONTRAST = 8.0  # L* between the means of skin and lesion; with less the picture has no visible lesion
RING = 0.6  # distance from the middle at which the ring starts, in half sides of the picture …
CORNERS = 1.1  # … and the one at which it ends, as corners are often shaded
LEAST_RING, LEAST_SKIN = 0.05, 0.05  # share of the copy's pixels that must be skin, in the ring or anywhere

# linear sRGB to XYZ (IEC 61966-2-1), divided by the white point D65 of the 2° observer; one column for each of X, Y, Z
_TO_XYZ = (
    np.array([[0.412453, 0.212671, 0.019334], [0.357580, 0.715160, 0.119193], [0.180423, 0.072169, 0.950227]])
    / (0.95047, 1.0, 1.08883)
).astype(np.float32)
_LEVELS = np.arange(256) / 255
_LINEAR = np.where(_LEVELS <= 0.04045, _LEVELS / 12.92, ((_LEVELS + 0.055) / 1.055) ** 2.4).astype(np.float32)

# names of the groups, each with the angle above which it starts, in degrees
GROUPS = (
    ("very light", 55.0), ("light", 41.0), ("intermediate", 28.0), ("tan", 10.0), ("brown", -30.0), ("dark", -math.inf),
)  # fmt: skip
NOT_ESTIMATED = "not estimated"
TONE_COLUMN = "estimated_skin_tone"  # of tables, and the key of the subgroups in report.json
AT_ONCE = 1024  # pictures that wait for a thread
ORDER = (*(name for name, _ in GROUPS), NOT_ESTIMATED)


def skin_tones(sources: Sequence[Any]) -> list[str]:
    """Returns the group of each picture, or `NOT_ESTIMATED`. Sources are as `preprocess.read_image` takes them."""

    def group(source: Any) -> str:
        try:
            angle = individual_typology_angle(np.asarray(content(source, Framing(field_of_view="find"))))
        except UserError:  # the file has gone since it was predicted
            return NOT_ESTIMATED
        return NOT_ESTIMATED if angle is None else tone_group(angle)

    found: list[str] = []
    bar = tqdm(desc="Estimating skin tones", total=len(sources), unit="image", leave=False, disable=None)
    with bar, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(sources), AT_ONCE):
            found += pool.map(group, sources[start : start + AT_ONCE])
            bar.update(len(found) - start)
    return found


def individual_typology_angle(pixels: npt.NDArray[np.uint8]) -> float | None:
    """Returns the angle of the skin around the lesion, in degrees; None if too little skin is seen.

    None also if the skin is dark and without yellow (L* < 50, b* ≤ 0): the angle is not defined there, and no skin has
    this colour in neutral light.

    Args:
        pixels: uint8 sRGB `[H, W, 3]` of a picture cut to its field of view, without any other change.
    """
    lab = to_lab(_small(pixels))
    light, b = lab[..., 0], lab[..., 2]
    chroma = np.hypot(lab[..., 1], b)
    skin = (light > BLACKEST) & (light < GLARE) & (chroma >= LEAST_CHROMA)
    if skin.mean() < LEAST_SKIN:
        return None
    smooth = _blurred(light)
    threshold = _otsu(smooth[skin])
    if threshold is not None:
        skin &= (smooth > threshold) & (light > threshold)  # the second leaves out thin hair
    radius = _radius(*light.shape)
    ring = skin & (radius >= RING) & (radius <= CORNERS)
    if ring.mean() >= LEAST_RING:
        skin = ring
    elif skin.mean() < LEAST_SKIN:
        return None
    above, yellow = float(np.median(light[skin])) - 50, float(np.median(b[skin]))
    if above < 0 and yellow <= 0:
        return None
    return math.degrees(math.atan2(above, yellow))


def tone_group(angle: float) -> str:
    """Returns the name of the group in which an angle lies, in degrees. Limits belong to the darker group."""
    return next(name for name, above in GROUPS if angle > above)


def to_lab(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Returns CIELAB `[..., 3]` under D65, 2° observer, of sRGB pixels `[..., 3]` (IEC 61966-2-1, CIE 15)."""
    x = _LINEAR[pixels] @ _TO_XYZ
    f = np.where(x > 0.008856, np.cbrt(x), np.float32(7.787) * x + np.float32(16 / 116))
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def _small(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Returns a copy with a longer side of at most `SIDE` pixels, each the mean of pixels that it replaces."""
    step = max(1, max(pixels.shape[:2]) // 320)  # some pixels are enough in a large picture
    image = Image.fromarray(np.ascontiguousarray(pixels[::step, ::step]))
    scale = min(1.0, SIDE / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return np.asarray(image if size == image.size else image.resize(size, Image.Resampling.BOX, reducing_gap=1.0))


def _blurred(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns the mean of each value and its eight neighbours, for values `[h, w]`."""
    padded = np.pad(values, 1, mode="edge")
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return np.asarray((rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 9)


def _otsu(lightness: npt.NDArray[Any]) -> float | None:
    """Returns Otsu's threshold of lightnesses `[n]`; None if the means of its sides are closer than LEAST_CONTRAST."""
    counts = np.bincount(lightness.astype(np.intp), minlength=101)
    below = np.cumsum(counts)[:-1]
    total = np.cumsum(counts * (np.arange(len(counts)) + 0.5))
    above = counts.sum() - below
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = (total[-1] - total[:-1]) / above - total[:-1] / below
    gap[(below == 0) | (above == 0)] = 0
    at = int(np.argmax(below * above * gap**2))
    return at + 1.0 if gap[at] >= LEAST_CONTRAST else None


def _radius(height: int, width: int) -> npt.NDArray[np.float64]:
    """Returns the distance of each pixel `[h, w]` from the middle, in half heights and half widths."""
    y = (np.arange(height) + 0.5) / height * 2 - 1
    x = (np.arange(width) + 0.5) / width * 2 - 1
    return np.hypot(y[:, None], x[None])

"""Refusal of images that the model should not classify. Needs NumPy only.

The model file computes eight or nine measures of each image (`checks`, in the order of `ALL_CHECKS`). Its metadata
holds a limit of each. An image beyond a limit is refused, with the reason.

A limit is the laxest of several, because refusing a good picture is an error as well. It refuses nearly no validation
image, and nearly none of any group of images that the model should judge: other dermatoscopes, each skin tone, pictures
with hair or rulers. The limit of a quality measure (`QUALITY`) is also no stricter than the value at which answers
become measurably worse (`dermrw.evaluation.quality_limits`).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dermrw.decisions import ROUNDING

QUALITY = ("brightness", "overexposed", "contrast", "sharpness", "colour", "grain", "colour_grain")
CHECKS = (*QUALITY, "strangeness")
PHOTOGRAPH = "photograph"  # the ninth, of models that were fitted with `data.refuse`
ALL_CHECKS = (*CHECKS, PHOTOGRAPH)
REASONS = (*QUALITY, PHOTOGRAPH, "strangeness")  # the order in which they are tested: the plainest reason first
# which end is refused, the reason, and the share of the validation lesions that
# may lie beyond the limit
RULES: dict[str, tuple[str, str, float]] = {
    "brightness": ("low", "it is too dark", 0.001),
    "overexposed": ("high", "it is mostly white: overexposed, or a document or screenshot", 0.001),
    "contrast": ("low", "it shows next to nothing: it is nearly of one colour", 0.001),
    "sharpness": ("low", "it is blurred", 0.001),
    "colour": ("low", "it is grey, or toned in one colour", 0.001),
    "grain": ("high", "it is too grainy", 0.002),
    "colour_grain": ("high", "it is too grainy", 0.001),
    "strangeness": ("high", "it isn't like the dermoscopic images that the model knows", 0.006),
    PHOTOGRAPH: ("high", "it looks like an ordinary photograph, not like dermoscopy", 0.003),
}
NOT_DERMOSCOPIC = {  # reasons of models that were not trained on dermoscopic images
    "strangeness": "it isn't like the images that the model knows",
    PHOTOGRAPH: "it looks like the pictures that the model is to refuse",
}
# factors that relax a limit for cameras and file formats other than the data's
RELAXED = {
    "colour": 0.7,  # a grey or toned image has almost no colour; other cameras' images are only a little paler
    "colour_grain": 4.0,  # JPEG smooths colours, lossless files keep their noise; harmful noise is stronger
}
MARGIN = 0.1  # how far beyond the validation images' extreme a limit may lie, as a share of the interquartile range
# share of the images of a group that may lie beyond a limit; together about 3 %. Other dermatoscopes set the limit of
# the photograph detector: in cross-validation of 115 clinical photographs (EfficientNet-Lite0 with colour constancy,
# trained with data.extra, seed 0), 1.5, 2 and 2.5 % find 85, 88 and 90 %
GROUP_SHARES = dict.fromkeys(QUALITY, 0.003) | {"strangeness": 0.005, PHOTOGRAPH: 0.02}
LEAST_GROUP = 100  # images that a group needs to bound a limit; with few, one bad picture would set it


class Group(NamedTuple):
    """Images that the model should judge: a camera, a skin tone, or pictures with drawn artefacts."""

    name: str
    checks: npt.NDArray[np.floating]  # [N, 8] or [N, 9]


def fit_limits(
    checks: npt.ArrayLike,
    lesions: npt.ArrayLike,
    groups: Sequence[Group] = (),
    harmful: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """The limit of each measure: the laxest of those that the arguments give.

    Args:
        checks: of the validation images, `[N, 8]` or `[N, 9]`.
        lesions: of each image `[N]`; each lesion counts once.
        groups: further images of which a limit may refuse at most `GROUP_SHARES`. Groups of fewer than `LEAST_GROUP`
            images are not used.
        harmful: the value of a measure from which answers are measurably worse.

    Raises:
        ValueError: a measure is not finite, or there is no image.
    """
    values, lesion_of = np.asarray(checks, dtype=np.float64), np.asarray(lesions)
    if values.ndim != 2 or values.shape[1] not in (len(CHECKS), len(ALL_CHECKS)) or not len(values):
        raise ValueError(f"checks [N, {len(CHECKS)}] or [N, {len(ALL_CHECKS)}]: {values.shape}")
    if lesion_of.shape != values.shape[:1]:
        raise ValueError(f"lesions [N] of {len(values)} images: {lesion_of.shape}")
    bounding = [group for group in groups if len(group.checks) >= LEAST_GROUP]
    if not all(np.isfinite(part).all() for part in (values, *(group.checks for group in bounding))):
        raise ValueError("checks hold a number that is not finite")
    limits = {}
    for column, name in enumerate(ALL_CHECKS[: values.shape[1]]):
        end, _, share = RULES[name]
        sign = 1.0 if end == "low" else -1.0
        found = [_quantile(sign * values[:, column], lesion_of, share) * RELAXED.get(name, 1.0)]
        for group in bounding:
            found.append(float(np.sort(sign * group.checks[:, column])[int(GROUP_SHARES[name] * len(group.checks))]))
        if harmful is not None and name in harmful:
            found.append(sign * harmful[name])
        limit = min(found)
        limits[name] = float(sign * (limit - ROUNDING * abs(limit)))
    return limits


def _quantile(values: npt.NDArray[np.floating], lesions: npt.ArrayLike, share: float) -> float:
    """The value `[]` with at most this share of the lesions below it, each lesion counting once."""
    _, lesion, images = np.unique(lesions, return_inverse=True, return_counts=True)
    order = np.argsort(values)
    beyond = np.cumsum((1 / images[lesion])[order])  # lesions at or below
    # the tail beyond the last few images is unknown: allow a margin there
    first = np.searchsorted(beyond, share * len(images))
    limit = float(values[order[first]])
    if first == 0:
        low, high = np.quantile(values, [0.25, 0.75])
        limit -= MARGIN * float(high - low)
    return limit


def refusal(
    checks: Sequence[float] | npt.NDArray[np.floating], limits: Mapping[str, float], dermoscopic: bool = True
) -> str | None:
    """The reason to refuse an image with these measures `[8]` or `[9]`, such as `it is blurred`; None: not refused.

    Args:
        checks: the measures, in the order of `ALL_CHECKS`.
        limits: of each measure.
        dermoscopic: whether the model was trained on dermoscopic images, for the wording of the reason.
    """
    measured = dict(zip(ALL_CHECKS[: len(limits)], checks, strict=True))
    for name in REASONS:
        if name in measured:
            end, reason, _ = RULES[name]
            if measured[name] < limits[name] if end == "low" else measured[name] > limits[name]:
                return reason if dermoscopic else NOT_DERMOSCOPIC.get(name, reason)
    return None


def too_small(width: int, height: int, smallest: int) -> str | None:
    """The reason to refuse an image of this size in pixels, without its border; None: not refused."""
    if min(width, height) >= smallest:
        return None
    return f"it is too small: {width} × {height} pixels, and the shorter side must have {smallest}"

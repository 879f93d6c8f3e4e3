"""Refusal of images that the model should not classify. Needs NumPy only.

The model file computes eight measures of each image (`checks`, in the order of `CHECKS`). Its metadata holds limits
that nearly all validation images satisfy. An image beyond a limit is refused, with the reason.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from dermrw.decisions import ROUNDING

CHECKS = ("brightness", "overexposed", "contrast", "sharpness", "colour", "grain", "colour_grain", "strangeness")
# in the order in which they are tested: which end is refused, the reason, and the share of the validation lesions that
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
}
# factors that relax a limit for cameras and file formats other than the data's
RELAXED = {
    "colour": 0.7,  # a grey or toned image has almost no colour; other cameras' images are only a little paler
    "colour_grain": 4.0,  # JPEG smooths colours, lossless files keep their noise; harmful noise is stronger
}
MARGIN = 0.1  # how far beyond the validation images' extreme a limit may lie, as a share of the interquartile range


def fit_limits(checks: npt.ArrayLike, lesions: npt.ArrayLike) -> dict[str, float]:
    """Limits of each measure from validation `checks` `[N, 8]` and `lesions` `[N]`, each lesion counting once.

    Raises:
        ValueError: a measure is not finite, or there is no image.
    """
    values, lesion_of = np.asarray(checks, dtype=np.float64), np.asarray(lesions)
    if values.ndim != 2 or values.shape[1] != len(CHECKS) or lesion_of.shape != values.shape[:1] or not len(values):
        raise ValueError(f"checks [N, {len(CHECKS)}] and lesions [N]: {values.shape}, {lesion_of.shape}")
    if not np.isfinite(values).all():
        raise ValueError("checks hold a number that is not finite")
    _, lesion, images = np.unique(lesion_of, return_inverse=True, return_counts=True)
    weight = 1 / images[lesion]
    limits = {}
    for column, name in enumerate(CHECKS):
        end, _, share = RULES[name]
        value = values[:, column] if end == "low" else -values[:, column]
        order = np.argsort(value)
        beyond = np.cumsum(weight[order])  # lesions at or below
        # the tail beyond the last few images is unknown: allow a margin there
        first = np.searchsorted(beyond, share * len(images))
        limit = value[order[first]]
        if first == 0:
            low, high = np.quantile(value, [0.25, 0.75])
            limit -= MARGIN * (high - low)
        limit *= RELAXED.get(name, 1.0)
        limit -= ROUNDING * abs(limit)
        limits[name] = float(limit if end == "low" else -limit)
    return limits


def refusal(
    checks: Sequence[float] | npt.NDArray[np.floating], limits: Mapping[str, float], dermoscopic: bool = True
) -> str | None:
    """The reason to refuse an image with these measures `[8]`, such as `it is blurred`; None: not refused.

    Args:
        checks: the measures, in the order of `CHECKS`.
        limits: of each measure.
        dermoscopic: whether the model was trained on dermoscopic images, for the wording of the reason.
    """
    for name, value in zip(CHECKS, checks, strict=True):
        end, reason, _ = RULES[name]
        if value < limits[name] if end == "low" else value > limits[name]:
            return reason if dermoscopic else reason.replace("dermoscopic ", "")
    return None


def too_small(width: int, height: int, smallest: int) -> str | None:
    """The reason to refuse an image of this size in pixels, without its border; None: not refused."""
    if min(width, height) >= smallest:
        return None
    return f"it is too small: {width} × {height} pixels, and the shorter side must have {smallest}"

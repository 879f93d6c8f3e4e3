"""Values of the quality measures from which answers become measurably worse.

Validation images are degraded in the way that each measure detects: darkened, blurred, and so on, in several steps.
Isotonic regression then estimates the accuracy lost as a function of the measure. A picture may be refused for its
quality only where the estimated loss is at least `LEAST_LOSS`. Without this rule, limits at quantiles of the training
data's own cameras refuse other cameras' good pictures.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from sklearn.isotonic import IsotonicRegression

from dermrw.decisions.refusal import QUALITY, RULES
from dermrw.evaluation.image_checks import LUMINANCE

LEAST_LOSS = 0.1  # answers that were right and become wrong, as a share; each class with the same weight
PER_CLASS, IN_ALL = 30, 300  # validation images of each class and in all, at most, with at least one of each class

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Measure = Callable[[Pixels], tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]


class Degradation(NamedTuple):
    """A kind of degradation and its degrees, from weak to strong."""

    measure: str  # the quality measure that detects it
    degrees: tuple[float, ...]
    apply: Callable[[Floats, float], Floats]  # picture [S, S, 3] in grey levels, degree


def _noise(picture: Floats, deviation: float, channels: int) -> Floats:
    noise = np.random.default_rng(0).normal(0, deviation, (*picture.shape[:2], channels))
    return picture + noise.astype(np.float32)


def _grey(picture: Floats) -> Floats:
    return (picture @ np.array(LUMINANCE, dtype=np.float32))[..., None]


def _blurred(picture: Floats, share: float) -> Floats:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), share * len(picture)), dtype=np.float32)


DEGRADATIONS = (
    Degradation("brightness", (0.6, 0.35, 0.2, 0.1), lambda x, factor: x * factor),
    Degradation("overexposed", (1.3, 1.6, 2.0, 3.0), lambda x, factor: x * factor),
    Degradation("contrast", (0.5, 0.25, 0.12, 0.05), lambda x, share: x.mean((0, 1)) + (x - x.mean((0, 1))) * share),
    Degradation("sharpness", (0.006, 0.012, 0.025, 0.05), _blurred),
    Degradation("colour", (0.5, 0.25, 0.1, 0.0), lambda x, share: _grey(x) + (x - _grey(x)) * share),
    Degradation("grain", (4, 8, 16, 32), lambda x, deviation: _noise(x, deviation, 1)),
    Degradation("colour_grain", (4, 8, 16, 32), lambda x, deviation: _noise(x, deviation, 3)),
)


def choose_images(labels: npt.NDArray[np.integer], lesions: npt.NDArray[np.generic]) -> npt.NDArray[np.intp]:
    """Returns rows of the same number of images of each class, one of each lesion, in a fixed random choice."""
    first = np.unique(lesions, return_index=True)[1]
    drawn = np.random.default_rng(0).permutation(first)
    classes = np.unique(labels)
    most = min(PER_CLASS, max(1, IN_ALL // len(classes)))
    return np.sort(np.concatenate([drawn[labels[drawn] == c][:most] for c in classes]))


def degraded(pixels: Pixels) -> Iterator[tuple[str, Pixels]]:
    """Yields each degradation's measure and the pictures `[N, S, S, 3]` with one of its degrees."""
    for kind in DEGRADATIONS:
        for degree in kind.degrees:
            changed = [kind.apply(picture.astype(np.float32), degree) for picture in pixels]
            yield kind.measure, np.stack(changed).round().clip(0, 255).astype(np.uint8)


def harmful_values(pixels: Pixels, labels: npt.NDArray[np.integer], measure: Measure) -> dict[str, float]:
    """Returns, for each quality measure, the value from which at least `LEAST_LOSS` of the accuracy is lost.

    If no degree of the degradation costs that much, it is the most extreme value that was measured.

    Args:
        pixels: of the validation images, uint8 `[N, S, S, 3]`.
        labels: their classes `[N]`.
        measure: returns the probabilities `[N, C]` and the quality measures `[N, 7]` of pictures.
    """
    probabilities, values = measure(pixels)
    right = probabilities.argmax(1) == labels
    counts = np.bincount(labels)
    weights = 1 / counts[labels]
    points: dict[str, list[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]] = {
        name: [(values[:, column], np.zeros(len(labels)))] for column, name in enumerate(QUALITY)
    }
    for name, pictures in degraded(pixels):
        probabilities, values = measure(pictures)
        lost = right.astype(np.float64) - (probabilities.argmax(1) == labels)
        points[name].append((values[:, QUALITY.index(name)], lost))
    return {
        name: harmful_value(
            np.concatenate([value for value, _ in found]),
            np.concatenate([lost for _, lost in found]),
            np.tile(weights, len(found)),
            RULES[name][0],
        )
        for name, found in points.items()
    }


def harmful_value(
    values: npt.NDArray[np.float64], lost: npt.NDArray[np.float64], weights: npt.NDArray[np.float64], end: str
) -> float:
    """Returns the value of a measure from which the estimated loss is at least `LEAST_LOSS`.

    Args:
        values: of the measure `[M]`.
        lost: 1 where a right answer became wrong, −1 where a wrong one became right, else 0 `[M]`.
        weights: of each picture `[M]`.
        end: `low` if low values are bad, otherwise `high`.
    """
    sign = -1.0 if end == "low" else 1.0
    order = np.argsort(sign * values)
    badness = (sign * values)[order]
    loss = IsotonicRegression().fit(badness, lost[order], weights[order]).predict(badness)
    beyond = np.flatnonzero(loss >= LEAST_LOSS)
    return float(sign * badness[beyond[0] if len(beyond) else -1])

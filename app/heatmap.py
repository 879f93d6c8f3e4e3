"""The heat map's numbers and colours. The page draws it over the original picture (`heat.js`)."""

import base64

import numpy as np
import numpy.typing as npt

# dark blue, purple, red, yellow: lightness rises along the scale, so it can be read without colour vision
COLOURS = np.array([[0.05, 0.03, 0.30], [0.55, 0.05, 0.45], [0.93, 0.33, 0.25], [0.99, 0.90, 0.45]])


def relative_evidence(activation_map: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Returns the evidence for each class at each position, `[C, h, w]` in 0…255: 255 is the maximum of the class.

    Evidence against a class counts as 0. Without any evidence for the class, every position is 0.
    """
    positive = np.maximum(activation_map, 0).astype(np.float64)
    maximum = positive.max(axis=(-2, -1), keepdims=True)
    return (255 * positive / np.where(maximum > 0, maximum, 1)).round().astype(np.uint8)


def encoded(activation_map: npt.NDArray[np.float32]) -> dict[str, object]:
    """Returns the maps of all classes for the page: base64 of the bytes of `relative_evidence`, and their shape."""
    values = relative_evidence(activation_map)
    return {"shape": list(values.shape), "bytes": base64.b64encode(values.tobytes()).decode()}


def ramp() -> list[list[int]]:
    """Returns the colours of the scale, from no to maximal evidence, as RGB in 0…255."""
    colours: list[list[int]] = (COLOURS * 255).round().astype(int).tolist()
    return colours

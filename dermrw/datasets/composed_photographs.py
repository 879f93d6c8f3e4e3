"""Composes pictures that resemble clinical photographs: small lesions on a large area of skin, from dermoscopic images.

They are further examples for the detector of clinical photographs (`dermrw.evaluation.photograph_detector`). Real
photographs are needed as well: a detector that is fitted on composed pictures alone finds only a fifth of them.
"""

import cv2
import numpy as np

SIDE = (300, 500)  # pixels of the composed picture


def compose(lesion: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns skin with one to three small copies of a lesion; in one picture of two, with a background at one side.

    Args:
        lesion: dermoscopic image, uint8 `[H, W, 3]`.
        rng: the random generator.

    Returns:
        uint8 `[S, S, 3]` with S in `SIDE`.
    """
    source = lesion.astype(np.float32)
    edges = np.concatenate([source[:8].reshape(-1, 3), source[-8:].reshape(-1, 3)])
    skin = np.median(edges, 0)
    side = int(rng.integers(*SIDE))
    tint = skin * rng.uniform(0.8, 1.1) + rng.normal(0, 8, 3)
    light, texture, grain = (_noise(side, cells, rng) for cells in (4, 40, side))
    relief = rng.uniform(8, 30) * light + rng.uniform(2, 8) * texture + rng.uniform(1, 4) * grain
    picture = tint + relief[..., None] * np.array([1, 0.9, 0.8])
    for _ in range(rng.integers(1, 4)):
        small = int(side * rng.uniform(0.12, 0.45))
        part = cv2.resize(source, (small, small), interpolation=cv2.INTER_AREA) - skin + tint
        top, left = rng.integers(0, side - small, 2)
        area = picture[top : top + small, left : left + small]
        rows, columns = np.mgrid[:small, :small] + 0.5
        away = np.hypot(rows - small / 2, columns - small / 2) / (small / 2)
        inside = np.clip((0.95 - away) / 0.4, 0, 1)[..., None]
        area += (part - area) * inside
    if rng.random() < 0.5:
        angle = rng.uniform(0, 2 * np.pi)
        rows, columns = np.mgrid[:side, :side] - side / 2
        across = columns * np.cos(angle) + rows * np.sin(angle) + 0.04 * side * light
        beyond = np.clip((across - side * rng.uniform(0.2, 0.45)) / 4 + 0.5, 0, 1)[..., None]
        background = rng.uniform(0, 255, 3) + 10 * texture[..., None]
        picture += (background - picture) * beyond
    return picture.round().clip(0, 255).astype(np.uint8)


def _noise(side: int, cells: int, rng: np.random.Generator) -> np.ndarray:
    """Returns smooth noise `[S, S]` of about this many cells along a side, with a deviation of about 1."""
    values = rng.normal(0, 1, (cells, cells)).astype(np.float32)
    return values if cells == side else cv2.resize(values, (side, side), interpolation=cv2.INTER_CUBIC)

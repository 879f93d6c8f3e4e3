"""Simulated embeddings of three classes, and wrong labels."""

import dataclasses

import numpy as np

from dermrw.objectives.held_out import Labels, prepare_labels


@dataclasses.dataclass
class Simulated:
    """Images of three classes, whose embeddings are normal distributions, two images per group."""

    embeddings: np.ndarray
    true: np.ndarray
    groups: np.ndarray
    right: tuple[np.ndarray, np.ndarray]


def simulate(n: int = 900, seed: int = 0) -> Simulated:
    rng = np.random.default_rng(seed)
    true = np.repeat(rng.choice(3, n // 2, p=(0.6, 0.3, 0.1)), 2)
    centres = rng.normal(size=(3, 12)) * 1.2
    right_y = np.repeat(np.arange(3), 3)
    return Simulated(
        centres[true] + rng.normal(size=(n, 12)), true, np.repeat(np.arange(n // 2), 2),
        (centres[right_y] + rng.normal(size=(9, 12)), right_y),
    )  # fmt: skip


def with_noise(data: Simulated, rate: float, kind: str = "uniform", seed: int = 1) -> np.ndarray:
    """Labels of which a group's are wrong together."""
    rng = np.random.default_rng(seed)
    chosen = np.repeat(rng.random(len(data.true) // 2) < rate, 2)
    step = np.repeat(rng.integers(1, 3, len(data.true) // 2), 2) if kind == "uniform" else 1
    return np.where(chosen, (data.true + step) % 3, data.true)


def prepared(data: Simulated, given: np.ndarray) -> Labels:
    return prepare_labels(data.embeddings, given, data.groups, data.right, 3)

"""Detector of pictures that show the subject but are not of the model's kind, such as clinical photographs of skin.

The out-of-distribution score (`ood_score`) is fitted without such pictures. It finds most everyday pictures, but a
close-up of skin by a phone resembles dermoscopy in its textures and colours. With examples of both kinds, logistic
regression on the network's own features tells them apart. The examples are the pictures of `data.refuse` and the
training images.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

# scikit-learn's C, the inverse strength of the L2 penalty. In cross-validation of 115 clinical photographs (network of
# ham.yaml, 5 random changes of each), C = 0.03, 0.3, 1, 3 and 10 finds 84, 87, 89, 88 and 82 %
PENALTY = 1.0
HELD_OUT = 3  # one picture of this many is held out, to measure the detector
PREFIX = "detector_"


class PhotographDetector(nn.Module):
    """Log odds `[N]` that an image is a picture to refuse, from descriptions `[N, K]` of the maps of blocks `names`."""

    mean: Tensor  # [K]
    weight: Tensor  # [K]
    bias: Tensor  # []

    def __init__(self, names: tuple[str, ...], arrays: Mapping[str, npt.ArrayLike]) -> None:
        super().__init__()
        self.names = names
        for key in ("mean", "weight", "bias"):
            self.register_buffer(key, torch.from_numpy(np.array(arrays[key], dtype=np.float32)))

    def forward(self, descriptions: Tensor) -> Tensor:
        """Returns the log odds `[N]` for descriptions `[N, K]`, with both kinds equally frequent."""
        return (descriptions - self.mean) @ self.weight + self.bias

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Returns the names of the blocks and the fitted arrays, for `Checks.save`."""
        fitted = {f"{PREFIX}{key}": value.cpu().numpy() for key, value in self.state_dict().items()}
        return {f"{PREFIX}names": np.array(self.names), **fitted}

    @classmethod
    def of(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Self | None:
        """Restores the detector from the result of `arrays`; None if there is none.

        Raises:
            KeyError: an array is absent.
        """
        if f"{PREFIX}names" not in arrays:
            return None
        fitted = {key: arrays[f"{PREFIX}{key}"] for key in ("mean", "weight", "bias")}
        return cls(tuple(arrays[f"{PREFIX}names"].tolist()), fitted)

    @classmethod
    def fit(cls, names: tuple[str, ...], judged: npt.NDArray[Any], refused: npt.NDArray[Any]) -> Self:
        """Fits the detector on descriptions of images to judge `[N, K]` and of pictures to refuse `[M, K]`."""
        x = np.concatenate([judged, refused]).astype(np.float64)
        y = np.arange(len(x)) >= len(judged)
        mean, deviation = x.mean(0), x.std(0)
        scale = np.maximum(deviation, 1e-3 * np.sqrt(np.square(deviation).mean())) + 1e-6
        fitted = LogisticRegression(C=PENALTY, class_weight="balanced", max_iter=2000).fit((x - mean) / scale, y)
        return cls(names, {"mean": mean, "weight": fitted.coef_[0] / scale, "bias": fitted.intercept_[0]})


def is_held_out(name: str) -> bool:
    """Whether a picture of this name is kept for measuring: about one of `HELD_OUT`, the same ones in every run."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) % HELD_OUT == 0

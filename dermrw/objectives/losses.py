"""Losses of one example: cross-entropy and published losses for imbalanced classes.

A loss takes logits `[B, C]`, labels `[B]` and the progress of training (0 to 1), and returns losses `[B]`. The
constants are those that each paper recommends. Class counts come from the labels of the training set alone.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dermrw.models import COSINE_SCALE

LossName = Literal["cross_entropy", "inverse_frequency", "class_balanced", "focal", "ldam_drw", "balanced_softmax"]
Loss = Callable[[Tensor, Tensor, float], Tensor]

FOCAL_GAMMA = 2.0  # Lin et al. 2017, section 5.1
CLASS_BALANCED_BETA = 0.999  # Cui et al. 2019, the middle of the three values in their table 3
LDAM_MARGIN, DRW_FROM = 0.5, 0.8  # Cao et al. 2019 and their code: the largest margin, 160 of 200 epochs


def inverse_frequency_weights(counts: np.ndarray) -> np.ndarray:
    """Returns N / (C n_c) `[C]`. All classes then have the same total weight; the mean over the training set is 1."""
    return counts.sum() / (len(counts) * counts)


def class_balanced_weights(counts: np.ndarray, beta: float = CLASS_BALANCED_BETA) -> np.ndarray:
    """Returns the inverse effective number of samples, (1 − β) / (1 − β^n_c) `[C]`, with sum C (Cui et al. 2019)."""
    weights = (1 - beta) / (1 - beta**counts)
    return weights * len(counts) / weights.sum()


def ldam_margins(counts: np.ndarray) -> np.ndarray:
    """Returns margins ∝ n_c^(−1/4) `[C]` whose largest is LDAM_MARGIN (Cao et al. 2019, eq. 13)."""
    margins = counts ** (-0.25)
    return margins * LDAM_MARGIN / margins.max()


def build_loss(name: LossName, counts: np.ndarray) -> Loss:
    """Returns the loss of this name for a training set with `counts` images of each class `[C]`.

    cross_entropy: −log softmax(f)_y.
    inverse_frequency: cross-entropy times N / (C n_y).
    class_balanced: cross-entropy times the weight of `class_balanced_weights`.
    focal: cross-entropy times (1 − p_y)^γ (Lin et al. 2017, without α).
    balanced_softmax: cross-entropy of f + log π, where π is the share of each class in the training set. f itself is
        thereby fitted to equal class shares (Ren et al. 2020, eq. 4; logit adjustment with τ = 1 in Menon et al. 2021).
    ldam_drw: cross-entropy of f with s Δ_y subtracted from the label's logit, where f = s cos (`model.head=cosine`).
        After the share DRW_FROM of training, it is multiplied by the class-balanced weight (deferred re-weighting, Cao
        et al. 2019). The weights have mean 1 over the training set. The authors' code divides by the sum of the weights
        of each batch, which is the same on average.
    """
    if name == "focal":
        return _focal
    if name == "inverse_frequency":
        return _weighted(inverse_frequency_weights(counts))
    if name == "class_balanced":
        return _weighted(class_balanced_weights(counts))
    if name == "balanced_softmax":
        return _balanced_softmax(counts)
    if name == "ldam_drw":
        return _ldam_drw(counts)
    return lambda logits, y, progress: F.cross_entropy(logits, y, reduction="none")


def _like(constants: np.ndarray, logits: Tensor) -> Tensor:
    """Returns the constants on the logits' device, in their precision or at least fp32: bf16 has an error of 1 %."""
    return torch.as_tensor(constants, device=logits.device, dtype=torch.promote_types(logits.dtype, torch.float32))


def _focal(logits: Tensor, y: Tensor, progress: float) -> Tensor:
    losses = F.cross_entropy(logits, y, reduction="none")
    return (1 - torch.exp(-losses)) ** FOCAL_GAMMA * losses


def _weighted(weights: np.ndarray) -> Loss:
    def loss(logits: Tensor, y: Tensor, progress: float) -> Tensor:
        return _like(weights, logits)[y] * F.cross_entropy(logits, y, reduction="none")

    return loss


def _balanced_softmax(counts: np.ndarray) -> Loss:
    log_shares = np.log(counts / counts.sum())

    def loss(logits: Tensor, y: Tensor, progress: float) -> Tensor:
        return F.cross_entropy(logits + _like(log_shares, logits), y, reduction="none")

    return loss


def _ldam_drw(counts: np.ndarray) -> Loss:
    shift = np.diag(COSINE_SCALE * ldam_margins(counts))  # [C, C]
    weights = class_balanced_weights(counts, 0.9999)  # β in the authors' code
    # mean 1 over the training set, so that the scale of the loss does not change when the weights are switched on
    weights *= counts.sum() / (weights @ counts)

    def loss(logits: Tensor, y: Tensor, progress: float) -> Tensor:
        losses = F.cross_entropy(logits - _like(shift, logits)[y], y, reduction="none")
        return losses if progress < DRW_FROM else _like(weights, logits)[y] * losses

    return loss

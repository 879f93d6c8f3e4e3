"""What one example costs: cross-entropy and the field's losses for imbalanced classes, each a function on a page.

A loss takes logits `[B, C]`, labels `[B]` and how far the training is (0 to 1), and gives losses `[B]`. Constants are
the ones that its paper recommends. Everything is known from the labels of the training set alone.
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
CLASS_BALANCED_BETA = 0.999  # Cui et al. 2019, the middle one of the three of their table 3
LDAM_MARGIN, DRW_FROM = 0.5, 0.8  # Cao et al. 2019 and their code: the largest margin, 160 of 200 epochs


def inverse_frequency_weights(counts: np.ndarray) -> np.ndarray:
    """N / (C n_c) `[C]`: every class then has the same total, and the mean over the training set is 1."""
    return counts.sum() / (len(counts) * counts)


def class_balanced_weights(counts: np.ndarray, beta: float = CLASS_BALANCED_BETA) -> np.ndarray:
    """The inverse of the effective number of samples, (1 − β) / (1 − β^n_c) `[C]`, summing to C (Cui et al. 2019)."""
    weights = (1 - beta) / (1 - beta**counts)
    return weights * len(counts) / weights.sum()


def ldam_margins(counts: np.ndarray) -> np.ndarray:
    """Margins ∝ n_c^(−1/4) `[C]`, the largest LDAM_MARGIN (Cao et al. 2019, eq. 13)."""
    margins = counts ** (-0.25)
    return margins * LDAM_MARGIN / margins.max()


def build_loss(name: LossName, counts: np.ndarray) -> Loss:
    """The loss of this name for a training set with `counts` images of each class `[C]`.

    cross_entropy: −log softmax(f)_y.
    inverse_frequency: N / (C n_y) times it.
    class_balanced: the weight of `class_balanced_weights` times it.
    focal: (1 − p_y)^γ times it (Lin et al. 2017, without α).
    balanced_softmax: that of f + log π, π the classes' shares in training; so f itself is fitted to equal shares (Ren
        et al. 2020, eq. 4; Menon et al. 2021 call it logit adjustment, τ = 1).
    ldam_drw: that of f − s Δ_y on the label's own logit, f = s cos (`model.head=cosine`); from DRW_FROM of the training
        on, times the class-balanced weight (Cao et al. 2019, deferred re-weighting), of mean 1 over the training set:
        their code divides by the sum of a batch's weights, which on average is the same.
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
    """On the logits' device and of their precision, or fp32 where that is lower: bf16 holds log π to 1 % only."""
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
    weights = class_balanced_weights(counts, 0.9999)  # the β of their code
    # their loss is divided by the batch's weights: so the switch leaves its scale as it was
    weights *= counts.sum() / (weights @ counts)

    def loss(logits: Tensor, y: Tensor, progress: float) -> Tensor:
        losses = F.cross_entropy(logits - _like(shift, logits)[y], y, reduction="none")
        return losses if progress < DRW_FROM else _like(weights, logits)[y] * losses

    return loss

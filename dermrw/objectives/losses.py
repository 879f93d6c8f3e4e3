"""Losses of one example: cross-entropy, published losses for imbalanced classes, and labels that are sets of classes.

A loss takes logits `[B, C]`, labels `[B]` and the progress of training (0 to 1), and returns losses `[B]`. The
constants are those that each paper recommends. Class counts come from the labels of the training set alone.

Of some images only a set S of classes is known, such as the benign ones: a partial or ambiguous label. Their label is
an index after those of the classes, and their loss is the negative logarithm of the summed probability of the set,

    ℓ = −log Σ_{c∈S} p_c = log Σ_c exp(z_c) − log Σ_{c∈S} exp(z_c),    p = softmax(z),

which is the likelihood of "the class is one of S" (Jin and Ghahramani, Learning with multiple labels, NIPS 2002; Cour,
Sapp and Taskar, Learning from partial labels, JMLR 12:1501, 2011, discuss other losses). Its gradient is that of
cross-entropy with the soft label q_c = p_c / Σ_{k∈S} p_k for c in S, the network's own belief within the set. With one
class in S it is cross-entropy. z = f, or f + log π in balanced softmax: the logarithm of the shares is added before
the sum, as for any other likelihood under the class shares of the training set.

π are then the shares that make the labels most likely: an image with a set counts for each class of the set in
proportion to the images that have this class alone. Left out, the images of the set would be more frequent than π
states, and f would favour their classes.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dermrw.models import COSINE_SCALE

Sets = tuple[tuple[int, ...], ...]  # the classes of each label that is a set; the sets are disjoint
LossName = Literal["cross_entropy", "inverse_frequency", "class_balanced", "focal", "ldam_drw", "balanced_softmax"]
Loss = Callable[[Tensor, Tensor, float], Tensor]
LEAST_SHARE = 0.1  # lower bound of a weighted share, as a fraction of the share of the class in the labels

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


def expected_counts(counts: np.ndarray, set_counts: np.ndarray, sets: Sets) -> np.ndarray:
    """Returns the number of images of each class `[C]`, with the images of a set divided among its classes.

    Their shares are the maximum likelihood estimate of the class shares from labels and sets without the images: the
    fixed point of n_c ← n_c + N_S n_c / Σ_{k∈S} n_k.

    Args:
        counts: number of images of one class, by class `[C]`.
        set_counts: number of images of each set.
        sets: the classes of each set.
    """
    expected = counts.astype(np.float64)
    for members, n in zip(sets, set_counts, strict=True):
        rows = list(members)
        expected[rows] += n * counts[rows] / counts[rows].sum()
    return expected


def weighted_shares(labels: Tensor, weights: Tensor, counts: np.ndarray, sets: Sets) -> Tensor:
    """Returns π `[C]`: the share of each class in the total weight, at least LEAST_SHARE of its share in the labels.

    The weight of images whose label is a set is divided among its classes in proportion to the weight of the images of
    each class.

    Args:
        labels: of the training images `[N]`.
        weights: of the training images `[N]`.
        counts: expected number of images of each class `[C]`.
        sets: the classes of each label that is a set.
    """
    by_label = torch.zeros(len(counts) + len(sets)).index_add_(0, labels, weights)
    total = by_label[: len(counts)].clone()
    for members, weight in zip(sets, by_label[len(counts) :], strict=True):
        rows = list(members)
        total[rows] += weight * total[rows] / total[rows].sum().clamp(min=1e-12)
    shares = torch.maximum(total / total.sum(), LEAST_SHARE * torch.from_numpy(counts / counts.sum()).float())
    return shares / shares.sum()


def label_losses(logits: Tensor, y: Tensor, sets: Sets = ()) -> Tensor:
    """Returns −log of the summed probability of each label's classes: logits `[B, C]`, labels `[B]` -> `[B]`.

    Labels below C are classes, for which this is cross-entropy. Label C + k is the set `sets[k]`.
    """
    if not sets:
        return F.cross_entropy(logits, y, reduction="none")
    outside = torch.ones(logits.shape[1] + len(sets), logits.shape[1], dtype=torch.bool)
    outside[: logits.shape[1]].fill_diagonal_(False)
    for row, members in enumerate(sets, logits.shape[1]):
        outside[row, list(members)] = False
    log_p = F.log_softmax(logits, 1)
    return -log_p.masked_fill(outside.to(y.device)[y], -torch.inf).logsumexp(1)


def build_loss(name: LossName, counts: np.ndarray, sets: Sets = (), weights_from: float = 0.0) -> Loss:
    """Returns the loss of this name for a training set with `counts` images of each class `[C]`.

    Labels that are sets of classes are supported by cross_entropy, balanced_softmax and focal, in which p_y is the
    summed probability. `counts` are then the `expected_counts`.

    cross_entropy: −log softmax(f)_y.
    inverse_frequency: cross-entropy times N / (C n_y).
    class_balanced: cross-entropy times the weight of `class_balanced_weights`.
        Both are cross-entropy before the share `weights_from` of training (deferred re-weighting, Cao et al. 2019).
    focal: cross-entropy times (1 − p_y)^γ (Lin et al. 2017, without α).
    balanced_softmax: cross-entropy of f + log π, where π is the share of each class in the training set. f itself is
        thereby fitted to equal class shares (Ren et al. 2020, eq. 4; logit adjustment with τ = 1 in Menon et al. 2021).
    ldam_drw: cross-entropy of f with s Δ_y subtracted from the label's logit, where f = s cos (`model.head=cosine`).
        After the share DRW_FROM of training, it is multiplied by the class-balanced weight (deferred re-weighting, Cao
        et al. 2019). The weights have mean 1 over the training set. The authors' code divides by the sum of the weights
        of each batch, which is the same on average.
    """
    if name == "focal":
        return _focal(sets)
    if name == "inverse_frequency":
        return _weighted(inverse_frequency_weights(counts), weights_from)
    if name == "class_balanced":
        return _weighted(class_balanced_weights(counts), weights_from)
    if name == "balanced_softmax":
        return _balanced_softmax(counts, sets)
    if name == "ldam_drw":
        return _ldam_drw(counts)
    return lambda logits, y, progress: label_losses(logits, y, sets)


def _like(constants: np.ndarray, logits: Tensor) -> Tensor:
    """Returns the constants on the logits' device, in their precision or at least fp32: bf16 has an error of 1 %."""
    return torch.as_tensor(constants, device=logits.device, dtype=torch.promote_types(logits.dtype, torch.float32))


def _focal(sets: Sets) -> Loss:
    def loss(logits: Tensor, y: Tensor, progress: float) -> Tensor:
        losses = label_losses(logits, y, sets)
        return (1 - torch.exp(-losses)) ** FOCAL_GAMMA * losses

    return loss


def _weighted(weights: np.ndarray, weights_from: float) -> Loss:
    def loss(logits: Tensor, y: Tensor, progress: float) -> Tensor:
        losses = F.cross_entropy(logits, y, reduction="none")
        return losses if progress < weights_from else _like(weights, logits)[y] * losses

    return loss


def _balanced_softmax(counts: np.ndarray, sets: Sets) -> Loss:
    log_shares = np.log(counts / counts.sum())

    def loss(logits: Tensor, y: Tensor, progress: float) -> Tensor:
        return label_losses(logits + _like(log_shares, logits), y, sets)

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

"""Weights from predictions that have not seen the labels: base class and cross-validated head.

A network that was trained on a wrong label believes it. The predictions therefore come from softmax regression on the
embeddings of the network before training (of ImageNet, as a rule), by cross-validation: the images are divided into
folds by lesion, and those of a fold are predicted by a head that was fitted to the others and to the meta images.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.decomposition import PCA
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from dermrw.config import Config
from dermrw.objectives.interface import Batch
from dermrw.objectives.weighted import WeightedShares
from dermrw.reweight.meta_step import normalize

Floats = NDArray[np.float64]
FOLDS = 5
COMPONENTS = 256  # principal components of the embeddings that the head sees
PENALTIES = (0.01, 0.03, 0.1)  # of the head's weights; one is chosen by the held-out likelihood
BIAS_PENALTY = 1e-4  # a class that is absent from a fold has no finite bias without it
ITERATIONS = 60


class Labels(NamedTuple):
    """Images with given labels, and images with labels that are known to be right."""

    x: Floats  # [N, D], a column of ones last
    y: NDArray[np.int64]  # [N]
    groups: NDArray[np.int64]  # [N]: images of one group are in the same fold
    right_x: Floats  # [M, D]
    right_y: NDArray[np.int64]  # [M]
    classes: int


def log_likelihood(log_p: Floats, rate: float, classes: int) -> Floats:
    """Returns log L(p; ε) of labels with log-probabilities log p, for ε < (C − 1) / C."""
    other = rate / (classes - 1)
    return np.logaddexp(log_p + math.log(1 - rate - other), math.log(other) if other else -math.inf)


def head_objective(theta: Floats, labels: Labels, rate: float, penalty: float) -> tuple[float, Floats]:
    """Returns the objective of the head and its gradient at θ, `[D · C]`.

    It is −1/N (Σ log L(pᵢ; ε) + Σ log p of the right labels) + λ/2 |θ|², where p = softmax(x θ). The gradient of an
    image's −log L with respect to its logits is v (p − e_y) with v = (1 − ε − ε/(C−1)) p_y / L(p_y; ε).
    """
    shape = labels.x.shape[1], labels.classes
    theta = theta.reshape(shape)
    penalties = np.full((shape[0], 1), penalty)
    penalties[-1] = BIAS_PENALTY
    value, gradient = float((penalties * theta**2).sum() / 2), penalties * theta
    n = len(labels.y)
    for x, y, noise in ((labels.x, labels.y, rate), (labels.right_x, labels.right_y, 0.0)):
        log_p = log_softmax(x @ theta, 1)
        rows = np.arange(len(y))
        given = log_p[rows, y]
        found = log_likelihood(given, noise, labels.classes)
        residuals = np.exp(log_p)
        residuals[rows, y] -= 1
        residuals *= np.exp(given + math.log(1 - noise - noise / (labels.classes - 1)) - found)[:, None]
        value -= float(found.sum()) / n
        gradient = gradient + x.T @ residuals / n
    return value, gradient.ravel()


def fit_head(labels: Labels, rate: float, penalty: float, start: Floats) -> Floats:
    """Returns θ `[D · C]` at a minimum of `head_objective`, from `start`."""
    found = minimize(
        head_objective, start, (labels, rate, penalty), "L-BFGS-B", jac=True, options={"maxiter": ITERATIONS}
    )
    return np.asarray(found.x)


class CrossValidation:
    """Held-out predictions of the given labels, for any ε and penalty."""

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        folds = min(FOLDS, len(np.unique(labels.groups)))
        split = GroupKFold(folds, shuffle=True, random_state=0).split(labels.x, groups=labels.groups)
        self.folds = [(labels._replace(x=labels.x[fit], y=labels.y[fit]), held_out) for fit, held_out in split]
        self.starts: dict[float, list[Floats]] = {}  # by penalty: the heads at ε = 0, where the objective is convex
        self.known: dict[tuple[float, float], Floats] = {}  # by ε and penalty: log p

    def log_probabilities(self, rate: float, penalty: float) -> Floats:
        """Returns log-probabilities `[N, C]`, of a head that was fitted to the other folds."""
        if penalty not in self.starts:
            zero = np.zeros(self.labels.x.shape[1] * self.labels.classes)
            self.starts[penalty] = [fit_head(fitted, 0.0, penalty, zero) for fitted, _ in self.folds]
        found = np.empty((len(self.labels.y), self.labels.classes))
        for (fitted, held_out), start in zip(self.folds, self.starts[penalty], strict=True):
            theta = fit_head(fitted, rate, penalty, start) if rate else start
            found[held_out] = log_softmax(self.labels.x[held_out] @ theta.reshape(-1, self.labels.classes), 1)
        return found

    def log_p(self, rate: float, penalty: float) -> Floats:
        """Returns log p of each given label `[N]`."""
        if (rate, penalty) not in self.known:
            all_classes = self.log_probabilities(rate, penalty)
            self.known[rate, penalty] = all_classes[np.arange(len(self.labels.y)), self.labels.y]
        return self.known[rate, penalty]

    def best_penalty(self) -> float:
        """Returns the penalty with the highest likelihood of the held-out labels without noise."""
        return max(PENALTIES, key=lambda penalty: float(self.log_p(0.0, penalty).mean()))

    def log_likelihood(self, rate: float, penalty: float) -> Floats:
        """Returns log L(pᵢ; ε) of each held-out label `[N]`."""
        return log_likelihood(self.log_p(rate, penalty), rate, self.labels.classes)


def prepare_labels(
    embeddings: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    right: tuple[np.ndarray, np.ndarray],
    classes: int,
) -> Labels:
    """Returns the images as the head sees them: standardised, projected on principal components, with a bias.

    Args:
        embeddings: of the images with given labels `[N, D]`.
        labels: given labels `[N]`.
        groups: the group of each image, such as its lesion `[N]`.
        right: embeddings `[M, D]` and labels `[M]` of the images whose labels are known to be right.
        classes: number of classes.
    """
    scaler = StandardScaler().fit(embeddings)
    components = min(COMPONENTS, *embeddings.shape)
    projection = PCA(components, svd_solver="randomized", random_state=0).fit(scaler.transform(embeddings))

    def projected(rows: np.ndarray) -> Floats:
        return np.asarray(projection.transform(scaler.transform(rows)), np.float64)

    x = projected(embeddings)
    scale = x.std() or 1.0
    return Labels(
        np.column_stack([x / scale, np.ones(len(x))]),
        labels.astype(np.int64),
        np.unique(groups, return_inverse=True)[1],
        np.column_stack([projected(right[0]) / scale, np.ones(len(right[0]))]),
        right[1].astype(np.int64),
        classes,
    )


class LabelWeights(NamedTuple):
    """Weights of the training images, and what they were computed from."""

    values: Floats  # [N], between 0 and 1
    noise_rate: float  # estimated share of wrong labels
    sentence: str  # the result, to print


class HeldOutWeights(WeightedShares):
    """Base class for weights that are computed once before training, from held-out predictions of the labels.

    Images whose label is a set of classes (`losses`) have the weight 1. In balanced softmax, π is the share of each
    class in the total weight. A step costs what a step of the loss costs.
    """

    def __init__(self, config: Config, labels: np.ndarray, classes: int, steps: int) -> None:
        super().__init__(config, labels, classes, steps)
        self.values: Tensor | None = None  # weight of each training image [N]
        self.noise_rate = math.nan  # estimated share of wrong labels

    def estimate_labels(self, data: Labels) -> LabelWeights:
        """Returns the weights of these images, which are of at least two groups."""
        raise NotImplementedError

    def estimate(
        self, embeddings: np.ndarray, groups: np.ndarray, right: tuple[np.ndarray, np.ndarray]
    ) -> LabelWeights:
        """Returns the weights of all training images.

        Args:
            embeddings: of the training images `[N, D]`.
            groups: the group of each training image, such as its lesion `[N]`.
            right: embeddings `[M, D]` and labels `[M]` of the meta images.
        """
        single = (self.labels < self.classes).numpy()
        values = np.ones(len(single))
        if len(np.unique(groups[single])) < 2:
            reason = "All training images are of one group, so no label can be predicted without having seen it"
            return LabelWeights(values, 0.0, f"{reason}: all images have the same weight")
        data = prepare_labels(embeddings[single], self.labels.numpy()[single], groups[single], right, self.classes)
        with threadpool_limits(1):  # several threads would wait for each other longer than they compute
            found = self.estimate_labels(data)
        values[single] = found.values
        return found._replace(values=values)

    def set_weights(self, found: LabelWeights) -> None:
        """Sets the result of `estimate`."""
        self.values, self.noise_rate = torch.from_numpy(found.values).float(), found.noise_rate
        self.set_shares(self.values)

    def example_weights(self) -> np.ndarray | None:
        """Returns the weight of each training image in units of their mean `[N]`."""
        return None if self.values is None else (self.values / self.values.mean()).numpy()

    def weigh(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns losses and weights."""
        losses = self.losses(model(batch.x), batch.y)
        values = torch.ones(self.examples) if self.values is None else self.values  # None: only in timed steps
        return losses, normalize(values[batch.row].to(losses.detach()), batch.group)

    def compute_loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss and the values to log, including the estimated rate."""
        loss, log = super().compute_loss(model, batch)
        return loss, {**log, "noise_rate": torch.tensor(self.noise_rate)}

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of `Weighted`, and the weights."""
        own = {"values": self.values, "noise_rate": self.noise_rate, "shares": self.shares}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        super().load_state_dict(state)
        self.values, self.noise_rate, self.shares = state["values"], state["noise_rate"], state["shares"]

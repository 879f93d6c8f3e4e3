"""Example weights from the probability that each label is right, given predictions that have not seen the label.

Suppose that a label is wrong with probability ε and is then any of the other C − 1 classes, all equally likely. With p
the probability of the given label in a model of the *true* class, the likelihood of that label is

    L(p; ε) = (1 − ε) p + ε (1 − p) / (C − 1),

and the probability that it is right is w = (1 − ε) p / L(p; ε), the weight of the image (forward correction, Patrini et
al. 2017, written as a weight). Two things decide whether this helps:

- **p must not have seen the label.** A network that was trained on a wrong label believes it. p therefore comes from
  softmax regression on the embeddings of the network before training (of ImageNet, as a rule), by cross-validation: the
  images are divided into folds by lesion, and those of a fold are predicted by a head that was fitted to the others.
- **ε must be known.** It is the rate with the highest likelihood of the held-out labels, Σ log L(pᵢ; ε), where the head
  of each ε is itself fitted by that likelihood. With thousands of labels this is a precise estimate; the meta images
  are too few for one. ε = 0 unless another rate is better by two standard errors: all weights are then 1, and
  training is that of the loss alone.

The meta images are further examples of the head, with ε = 0. In balanced softmax, π is the share of each class in the
total weight. The weights do not change during training, whose steps cost what those of the loss cost.

Confident learning (Northcutt et al. 2021) also uses held-out predictions. It removes images instead of weighting them,
and its noise rates come from counts of confident predictions.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
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
PENALTIES = (0.01, 0.03, 0.1)  # of the head's weights; chosen together with ε
BIAS_PENALTY = 1e-4  # a class that is absent from a fold has no finite bias without it
ITERATIONS = 60
SEARCHED = 20_000  # images that choose ε and the penalty; all images are then weighted


class Labels(NamedTuple):
    """Images with given labels, and images with labels that are known to be right."""

    x: Floats  # [N, D], a column of ones last
    y: NDArray[np.int64]  # [N]
    groups: NDArray[np.int64]  # [N]: images of one group are in the same fold
    right_x: Floats  # [M, D]
    right_y: NDArray[np.int64]  # [M]
    classes: int


class Noise(NamedTuple):
    """The estimated label noise."""

    rate: float  # ε
    penalty: float
    gain: float  # mean log-likelihood of a held-out label, minus that of the best penalty at ε = 0
    error: float  # standard error of the gain, over groups


def log_likelihood(log_p: Floats, rate: float, classes: int) -> Floats:
    """Returns log L(p; ε) of labels with log-probabilities log p, for ε < (C − 1) / C."""
    other = rate / (classes - 1)
    return np.logaddexp(log_p + math.log(1 - rate - other), math.log(other) if other else -math.inf)


def right_probability(log_p: Floats, rate: float, classes: int) -> Floats:
    """Returns the probability (1 − ε) p / L(p; ε) that each label is right; 1 at ε = 0."""
    return np.exp(math.log(1 - rate) + log_p - log_likelihood(log_p, rate, classes)) if rate else np.ones_like(log_p)


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

    def log_p(self, rate: float, penalty: float) -> Floats:
        """Returns log p of each given label `[N]`, of a head that was fitted to the other folds."""
        if (rate, penalty) in self.known:
            return self.known[rate, penalty]
        if penalty not in self.starts:
            zero = np.zeros(self.labels.x.shape[1] * self.labels.classes)
            self.starts[penalty] = [fit_head(fitted, 0.0, penalty, zero) for fitted, _ in self.folds]
        found = np.empty(len(self.labels.y))
        for (fitted, held_out), start in zip(self.folds, self.starts[penalty], strict=True):
            theta = fit_head(fitted, rate, penalty, start) if rate else start
            logits = self.labels.x[held_out] @ theta.reshape(-1, self.labels.classes)
            found[held_out] = log_softmax(logits, 1)[np.arange(len(held_out)), self.labels.y[held_out]]
        self.known[rate, penalty] = found
        return found

    def log_likelihood(self, rate: float, penalty: float) -> Floats:
        """Returns log L(pᵢ; ε) of each held-out label `[N]`."""
        return log_likelihood(self.log_p(rate, penalty), rate, self.labels.classes)


def estimate_noise(held_out: CrossValidation) -> Noise:
    """Returns the rate and the penalty with the highest held-out likelihood.

    The rate is 0 if its gain over the best penalty at ε = 0 is less than two standard errors.
    """

    def loss(rate: float, penalty: float) -> float:
        return -float(held_out.log_likelihood(rate, penalty).mean())

    best: list[tuple[float, float, float]] = []
    most = 0.95 * (1 - 1 / held_out.labels.classes)
    for penalty in PENALTIES:
        found = minimize_scalar(
            partial(loss, penalty=penalty), bounds=(0, most), method="bounded", options={"xatol": 0.01}
        )
        best.append((float(found.fun), float(found.x), penalty))
    none, without = min((loss(0.0, penalty), penalty) for penalty in PENALTIES)
    least, rate, penalty = min(best)
    if least >= none:
        return Noise(0.0, without, 0.0, 0.0)
    gains = held_out.log_likelihood(rate, penalty) - held_out.log_likelihood(0.0, without)
    of_group = np.bincount(np.unique(held_out.labels.groups, return_inverse=True)[1], weights=gains)
    error = float(of_group.std(ddof=1) * math.sqrt(len(of_group)) / len(gains))
    gain = none - least
    return Noise(rate, penalty, gain, error) if gain > 2 * error else Noise(0.0, without, gain, error)


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


def label_posterior(data: Labels) -> tuple[Floats, Noise]:
    """Returns the probability that each given label is right `[N]`, and the estimated noise."""
    with threadpool_limits(1):  # several threads would wait for each other longer than they compute
        return _label_posterior(data)


def _label_posterior(data: Labels) -> tuple[Floats, Noise]:
    if data.groups.max() == 0:  # of a single group, nothing can be held out
        return np.ones(len(data.y)), Noise(0.0, PENALTIES[0], 0.0, 0.0)
    chosen = data
    if len(data.y) > SEARCHED:
        of_groups = np.random.default_rng(0).permutation(data.groups.max() + 1)[data.groups]
        rows = np.sort(np.argsort(of_groups, kind="stable")[:SEARCHED])  # whole groups, but for the last one
        chosen = data._replace(x=data.x[rows], y=data.y[rows], groups=data.groups[rows])
    held_out = CrossValidation(chosen)
    noise = estimate_noise(held_out)
    if noise.rate == 0:
        return np.ones(len(data.y)), noise
    if chosen is not data:
        held_out = CrossValidation(data)
    return right_probability(held_out.log_p(noise.rate, noise.penalty), noise.rate, data.classes), noise


class LabelPosterior(WeightedShares):
    """Weights wᵢ = P(label i is right) / Σ P(label j is right), computed once before training.

    Images whose label is a set of classes (`losses`) have the probability 1.
    """

    def __init__(self, config: Config, labels: np.ndarray, classes: int, steps: int) -> None:
        super().__init__(config, labels, classes, steps)
        self.values: Tensor | None = None  # probability that each label is right [N]
        self.noise_rate = math.nan

    def estimate(
        self, embeddings: np.ndarray, groups: np.ndarray, right: tuple[np.ndarray, np.ndarray]
    ) -> tuple[Floats, Noise]:
        """Returns the probability that each label is right `[N]`, and the estimated noise.

        Args:
            embeddings: of the training images `[N, D]`.
            groups: the group of each training image, such as its lesion `[N]`.
            right: embeddings `[M, D]` and labels `[M]` of the meta images.
        """
        single = (self.labels < self.classes).numpy()
        values = np.ones(len(single))
        data = prepare_labels(embeddings[single], self.labels.numpy()[single], groups[single], right, self.classes)
        values[single], noise = label_posterior(data)
        return values, noise

    def set_weights(self, values: np.ndarray, noise: Noise) -> str:
        """Sets the result of `estimate`, and returns it as a sentence."""
        self.values, self.noise_rate = torch.from_numpy(values).float(), noise.rate
        self.set_shares(self.values)
        if noise.rate == 0:
            return "No uniform label noise was found in the held-out labels: all images have the same weight"
        return (
            f"Estimated label noise: {100 * noise.rate:.0f} % of the labels (uniform). Each image is weighted by the "
            f"probability that its label is right, {100 * values.mean():.0f} % on average"
        )

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

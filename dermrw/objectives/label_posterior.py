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
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar

from dermrw.objectives.held_out import (
    PENALTIES,
    CrossValidation,
    Floats,
    HeldOutWeights,
    Labels,
    LabelWeights,
    log_likelihood,
)

SEARCHED = 20_000  # images that choose ε and the penalty; all images are then weighted


class Noise(NamedTuple):
    """The estimated label noise."""

    rate: float  # ε
    penalty: float
    gain: float  # mean log-likelihood of a held-out label, minus that of the best penalty at ε = 0
    error: float  # standard error of the gain, over groups


def right_probability(log_p: Floats, rate: float, classes: int) -> Floats:
    """Returns the probability (1 − ε) p / L(p; ε) that each label is right; 1 at ε = 0."""
    return np.exp(math.log(1 - rate) + log_p - log_likelihood(log_p, rate, classes)) if rate else np.ones_like(log_p)


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
    without = held_out.best_penalty()
    none = loss(0.0, without)
    least, rate, penalty = min(best)
    if least >= none:
        return Noise(0.0, without, 0.0, 0.0)
    gains = held_out.log_likelihood(rate, penalty) - held_out.log_likelihood(0.0, without)
    of_group = np.bincount(np.unique(held_out.labels.groups, return_inverse=True)[1], weights=gains)
    error = float(of_group.std(ddof=1) * math.sqrt(len(of_group)) / len(gains))
    gain = none - least
    return Noise(rate, penalty, gain, error) if gain > 2 * error else Noise(0.0, without, gain, error)


def label_posterior(data: Labels) -> tuple[Floats, Noise]:
    """Returns the probability that each given label is right `[N]`, and the estimated noise."""
    chosen = data
    if len(data.y) > SEARCHED:
        of_groups = np.random.default_rng(0).permutation(data.groups.max() + 1)[data.groups]
        rows = np.sort(np.argsort(of_groups, kind="stable")[:SEARCHED])  # whole groups, but for the last one
        if len(np.unique(data.groups[rows])) > 1:
            chosen = data._replace(x=data.x[rows], y=data.y[rows], groups=data.groups[rows])
    held_out = CrossValidation(chosen)
    noise = estimate_noise(held_out)
    if noise.rate == 0:
        return np.ones(len(data.y)), noise
    if chosen is not data:
        held_out = CrossValidation(data)
    return right_probability(held_out.log_p(noise.rate, noise.penalty), noise.rate, data.classes), noise


class LabelPosterior(HeldOutWeights):
    """Weights wᵢ = P(label i is right) / Σ P(label j is right)."""

    def estimate_labels(self, data: Labels) -> LabelWeights:
        """Returns the probability that each label is right."""
        values, noise = label_posterior(data)
        sentence = "No uniform label noise was found in the held-out labels: all images have the same weight"
        if noise.rate:
            sentence = (
                f"Estimated label noise: {100 * noise.rate:.0f} % of the labels (uniform). Each image is weighted by "
                f"the probability that its label is right, {100 * values.mean():.0f} % on average"
            )
        return LabelWeights(values, noise.rate, sentence)

"""Weights of a model of wrong labels, whose one parameter the meta set learns.

Say that a label is given to an image of another class with probability ε, to one of its own with 1 − η; call
κ = ε / (1 − η). With p the network's probability of the given label, the likelihood of that label is
(1 − η) (p + κ (1 − p)). Minus its logarithm has the gradient of cross-entropy times

    v = (1 − κ) p / (p + κ (1 − p)) ∝ V(ℓ; κ) = 1 / (1 + κ (e^ℓ − 1)),    ℓ = −log p

(forward correction, Patrini et al. 2017, written as a weight). So it is a reweighting by a function of the loss, as in
Meta-Weight-Net, with one parameter in the place of three hundred: κ = 0 weighs all alike, and 21 images can learn it.
Plain reweighting asks them for a number an image; of that they know nearly nothing.

κ follows the meta gradient, as ε does in Ren et al. (2018): with uᵢ = ⟨∇θ L_meta, ∇θ ℓᵢ⟩,

    ∂L_meta(θ̂(κ)) / ∂κ = −α/B Σ uᵢ ∂V(ℓᵢ; κ)/∂κ    at a step of length zero.

Two things differ from there, so that the loss balances the classes and the weights sort the labels:
- L_meta is the mean margin −f_y + mean f. Cross-entropy's gradient vanishes on what is fitted and grows on what is not:
  it asks for the hardest images, wrong labels first.
- What the virtual step does to all images alike (the batch's mean of the logits' change) is taken out of uᵢ: it moves
  the classes' shares, and these follow the weights instead. In balanced softmax, π is the weights' share of each class.

κ is one number, so it needs no meta gradient in every step: with `objective.refresh_every=n` it takes every nth, and
steps √n times as long, so that what is noise in it wanders as far in as many steps.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dermrw.config import Config
from dermrw.objectives.interface import Batch
from dermrw.objectives.weighted import Weighted
from dermrw.reweight.meta_step import meta_gradient, normalize, outputs_along, sum_over

START, LEAST, RATE = 1e-4, 1e-6, 0.05  # of κ, of its lower end (the upper is 1), of Adam on log κ
LEAST_SHARE = 0.1  # of a class's share of the labels, that π keeps whatever its images weigh


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """How far the label's logit lies below the mean of all: `[B, C]`, `[B]` -> `[B]`."""
    return logits.mean(1) - logits.gather(1, y[:, None])[:, 0]


def noise_weights(losses: Tensor, odds: Tensor | float) -> Tensor:
    """V(ℓ; κ) `[B]` of losses `[B]`: 1 where ℓ is 0, falling to 0; all 1 where κ = `odds` is 0."""
    p = torch.exp(-losses)
    return p / (p + odds * (1 - p)).clamp(min=1e-12)


class NoiseWeights(Weighted):
    """wᵢ = V(ℓᵢ; κ) / Σ V(ℓⱼ; κ) from the second epoch on; κ is `objective.odds`, or learned from the meta set."""

    def __init__(self, config: Config, labels: np.ndarray, classes: int, steps: int) -> None:
        super().__init__(config, labels, classes, steps)
        self.labels = torch.from_numpy(labels.copy())
        self.adjusts = self.config.loss == "balanced_softmax"
        self.shares = torch.from_numpy(self.counts / self.counts.sum()).float()  # π, [C]
        self.given = self.shares.clone()
        self.values = torch.ones(self.examples)  # V of each image when it was last seen
        self.warm_up = steps // config.train.epochs
        self.log_odds = nn.Parameter(torch.tensor(math.log(START if self.config.odds is None else self.config.odds)))
        self.adam = torch.optim.Adam([self.log_odds], RATE * math.sqrt(self.config.refresh_every))

    def losses(self, logits: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy, or balanced softmax with the present shares."""
        shift = self.shares.log().to(logits.device) if self.adjusts else 0.0
        return nn.functional.cross_entropy(logits + shift, y, reduction="none")

    def weigh(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Uniform in the first epoch; then a step of κ where it is learned, and V."""
        if self.step < self.warm_up:
            losses = self.losses(model(batch.x), batch.y)
            return losses, torch.full_like(losses.detach(), 1 / batch.total)
        if self.config.odds is None and self.step % self.config.refresh_every == 0:
            direction = meta_gradient(model, batch.meta_x, batch.meta_y, margin, batch.group)
            logits, change = outputs_along(model, batch.x, direction)  # both [B, C]
            self._learn(logits, change, batch)
        else:
            logits = model(batch.x)
        losses = self.losses(logits, batch.y)
        values = noise_weights(losses.detach(), self.odds)
        self._follow(values, batch)
        return losses, normalize(values, batch.group)

    @property
    def odds(self) -> float:
        """κ."""
        return math.exp(self.log_odds.item())

    def _learn(self, logits: Tensor, change: Tensor, batch: Batch) -> None:
        """A step of κ against the meta loss."""
        logits = logits.detach().requires_grad_()
        losses = self.losses(logits, batch.y)
        (slopes,) = torch.autograd.grad(losses.sum(), logits)  # ∂ℓ/∂f [B, C]
        common = change.sum(0)
        sum_over([common], batch.group)
        scores = (slopes * (change - common / batch.total)).sum(1)  # u [B]
        size = scores.abs().sum()
        sum_over([size], batch.group)
        scores = scores / (size / batch.total).clamp(min=1e-12)  # of size 1, so that Adam's ε is small beside it
        values = noise_weights(losses.detach().float().cpu(), self.log_odds.exp())
        self.adam.zero_grad()
        (-(scores.to(values) * values).sum() / batch.total).backward()
        assert self.log_odds.grad is not None
        sum_over([self.log_odds.grad], batch.group)
        self.adam.step()
        with torch.no_grad():
            self.log_odds.clamp_(math.log(LEAST), 0.0)

    def _follow(self, values: Tensor, batch: Batch) -> None:
        """π: each class's share of what all images weighed when they were last seen."""
        new, seen = self._by_row(values, batch)
        self.values = torch.where(seen > 0, new, self.values)
        total = torch.zeros(self.classes).index_add_(0, self.labels, self.values)
        shares = torch.maximum(total / total.sum(), LEAST_SHARE * self.given)
        self.shares = shares / shares.sum()

    def compute_loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """κ and π are logged too."""
        loss, log = super().compute_loss(model, batch)
        return loss, {**log, "odds": torch.tensor(self.odds), "shares": self.shares}

    def state_dict(self) -> dict[str, Any]:
        """κ, its optimiser, and what every image last weighed."""
        own = {"log_odds": self.log_odds.data, "adam": self.adam.state_dict()}
        return {**super().state_dict(), **own, "values": self.values, "shares": self.shares}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        super().load_state_dict(state)
        self.log_odds.data.copy_(state["log_odds"])
        self.adam.load_state_dict(state["adam"])
        self.values, self.shares = state["values"], state["shares"]

"""Example weights from a model of label noise with one parameter, learned from the meta set.

Suppose that a label is given to an image of another class with probability ε and to an image of its own class with
probability 1 − η, and let κ = ε / (1 − η). With p the network's probability of the given label, the likelihood of that
label is (1 − η) (p + κ (1 − p)). The gradient of its negative logarithm is the gradient of cross-entropy times

    v = (1 − κ) p / (p + κ (1 − p)) ∝ V(ℓ; κ) = 1 / (1 + κ (e^ℓ − 1)),    ℓ = −log p

(forward correction, Patrini et al. 2017, written as a weight). This is reweighting by a function of the loss, as in
Meta-Weight-Net, with one parameter instead of three hundred. κ = 0 gives all examples the same weight. 21 meta images
are enough to learn κ. Plain reweighting estimates one number per image from them, for which they hold almost no
information.

κ is updated along the meta gradient, as ε is in Ren et al. (2018). With uᵢ = ⟨∇θ L_meta, ∇θ ℓᵢ⟩,

    ∂L_meta(θ̂(κ)) / ∂κ = −α/B Σ uᵢ ∂V(ℓᵢ; κ)/∂κ    at a step of length zero.

Two things differ from Ren et al. They make the loss balance the classes and the weights separate right from wrong
labels:
- L_meta is the mean margin −f_y + mean f. The gradient of cross-entropy vanishes on images that are fitted and is
  largest on those that are not. It would raise the weights of the hardest images, above all of wrong labels.
- The part of the virtual step that is common to all images (the mean over the batch of the change of the logits) is
  removed from uᵢ. It shifts the class shares, which follow the weights instead: in balanced softmax, π is the share of
  each class in the total weight.

Of an image whose label is a set of classes (`losses`), p is the summed probability of the set. The label is wrong if
the true class is not in the set, and the odds of that are the same κ. In π, the weight of such images is divided among
the classes of their set in proportion to the weight of the images of each class.

κ is one number and does not need a meta gradient in every step. With `objective.refresh_every=n` it is updated every
nth step, with a learning rate √n times as large, so that the random walk of κ due to gradient noise has the same
spread after the same number of training steps.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dermrw.config import Config
from dermrw.objectives.interface import Batch
from dermrw.objectives.weighted import WeightedShares
from dermrw.reweight.meta_step import meta_gradient, normalize, outputs_along, sum_over

START, LEAST, RATE = 1e-4, 1e-6, 0.05  # initial κ, lower bound of κ (the upper is 1), learning rate of Adam on log κ


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Returns the mean of all logits minus the label's logit: `[B, C]`, `[B]` -> `[B]`."""
    return logits.mean(1) - logits.gather(1, y[:, None])[:, 0]


def noise_weights(losses: Tensor, odds: Tensor | float) -> Tensor:
    """Returns V(ℓ; κ) `[B]` for losses `[B]` and κ = `odds`.

    V is 1 at ℓ = 0 and decreases to 0 as ℓ grows. With κ = 0, V is 1 everywhere.
    """
    p = torch.exp(-losses)
    return p / (p + odds * (1 - p)).clamp(min=1e-12)


class NoiseWeights(WeightedShares):
    """Weights wᵢ = V(ℓᵢ; κ) / Σ V(ℓⱼ; κ), from the second epoch on.

    κ is `objective.odds` if that is set, and otherwise learned from the meta set.
    """

    def __init__(self, config: Config, labels: np.ndarray, classes: int, steps: int) -> None:
        super().__init__(config, labels, classes, steps)
        self.values = torch.ones(self.examples)  # V of each image when it was last drawn
        self.warm_up = steps // config.train.epochs
        self.log_odds = nn.Parameter(torch.tensor(math.log(START if self.config.odds is None else self.config.odds)))
        self.adam = torch.optim.Adam([self.log_odds], RATE * math.sqrt(self.config.refresh_every))

    def weigh(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns losses and weights. The weights are uniform in the first epoch; later steps may also update κ."""
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
        """The current κ."""
        return math.exp(self.log_odds.item())

    def _learn(self, logits: Tensor, change: Tensor, batch: Batch) -> None:
        """Updates κ by one step that reduces the meta loss."""
        logits = logits.detach().requires_grad_()
        losses = self.losses(logits, batch.y)
        (slopes,) = torch.autograd.grad(losses.sum(), logits)  # ∂ℓ/∂f [B, C]
        common = change.sum(0)
        sum_over([common], batch.group)
        scores = (slopes * (change - common / batch.total)).sum(1)  # u [B]
        size = scores.abs().sum()
        sum_over([size], batch.group)
        scores = scores / (size / batch.total).clamp(min=1e-12)  # mean magnitude 1, much larger than Adam's ε
        values = noise_weights(losses.detach().float().cpu(), self.log_odds.exp())
        self.adam.zero_grad()
        (-(scores.to(values) * values).sum() / batch.total).backward()
        assert self.log_odds.grad is not None
        sum_over([self.log_odds.grad], batch.group)
        self.adam.step()
        with torch.no_grad():
            self.log_odds.clamp_(math.log(LEAST), 0.0)

    def _follow(self, values: Tensor, batch: Batch) -> None:
        """Updates π to the share of each class in the total weight, with each image's weight when it was last drawn."""
        new, seen = self._by_row(values, batch)
        self.values = torch.where(seen > 0, new, self.values)
        self.set_shares(self.values)

    def compute_loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss and the values to log, including κ and π."""
        loss, log = super().compute_loss(model, batch)
        return loss, {**log, "odds": torch.tensor(self.odds), "shares": self.shares}

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of `Weighted`, κ, the state of its optimiser, π, and the last V of every image."""
        own = {"log_odds": self.log_odds.data, "adam": self.adam.state_dict()}
        return {**super().state_dict(), **own, "values": self.values, "shares": self.shares}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        super().load_state_dict(state)
        self.log_odds.data.copy_(state["log_odds"])
        self.adam.load_state_dict(state["adam"])
        self.values, self.shares = state["values"], state["shares"]

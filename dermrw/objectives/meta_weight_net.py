"""Meta-Weight-Net (Shu et al., NeurIPS 2019, arXiv 1902.07379): the weight as a learned function of the loss."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dermrw.config import Config
from dermrw.objectives.interface import Batch
from dermrw.objectives.weighted import Weighted
from dermrw.reweight.meta_step import losses_along, meta_gradient, normalize, sum_over

HIDDEN, RATE, DECAY = 100, 1e-3, 1e-4  # of their code


class MetaWeightNet(Weighted):
    """Vᵢ = V(ℓᵢ; φ) in 0..1 by a network of one hidden layer, and with α the training's peak rate, each step:

        θ̂(φ) = θ − α/B ∇θ Σ Vᵢ ℓᵢ(θ)    (eq. 5)
        φ ← φ − Adam of ∇φ L_meta(θ̂(φ))    (eq. 6), where ∇φ L_meta = −α/B Σ ⟨∇L_meta(θ̂), ∇ℓᵢ(θ)⟩ ∇φ Vᵢ    (eq. 9)
        wᵢ = Vᵢ / Σ Vⱼ with the new φ.

    Two things are not as in the paper. The training loss is normalised, Σ wᵢ ℓᵢ, where eq. 3 has 1/B Σ Vᵢ ℓᵢ (φ's own
    step has it as there): AdamW takes little notice of a loss's scale, and SGD's rate then means what it means for any
    other objective. And α is constant, where their code's follows the schedule.

    The inner products are one forward pass with tangents, as in reweighting; the virtual step costs one pass more.
    """

    def __init__(self, config: Config, labels: np.ndarray, classes: int, steps: int) -> None:
        super().__init__(config, labels, classes, steps)
        self.rate = config.train.lr
        with torch.random.fork_rng(devices=[]):  # so that the training's own stream is as of any other objective
            torch.manual_seed(config.train.seed)
            self.net = nn.Sequential(nn.Linear(1, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1), nn.Sigmoid())
        self.adam = torch.optim.Adam(self.net.parameters(), RATE, weight_decay=DECAY)

    def weigh(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """One step of φ, then the weights that it gives."""

        def weighted(logits: Tensor, y: Tensor) -> Tensor:
            losses = self.losses(logits, y)
            return self.of(losses) * losses

        gradient = meta_gradient(model, batch.x, batch.y, weighted, batch.group)  # of the mean: 1/B Σ Vᵢ ℓᵢ
        parameters = {name: p for name, p in model.named_parameters() if name in gradient}
        before = {name: p.detach().clone() for name, p in parameters.items()}
        with torch.no_grad():
            for name, p in parameters.items():
                p.sub_(self.rate * gradient[name])
        direction = meta_gradient(model, batch.meta_x, batch.meta_y, group=batch.group)  # at θ̂
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(before[name])
        losses, slopes = losses_along(model, batch.x, batch.y, direction, self.losses)

        values = self.net(self._input(losses))[:, 0]  # [B], with φ's graph
        self.adam.zero_grad()
        (-self.rate * (slopes.to(values) * values).sum() / batch.total).backward()
        sum_over([p.grad for p in self.net.parameters() if p.grad is not None], batch.group)
        self.adam.step()

        return losses, normalize(self.of(losses), batch.group)

    def of(self, losses: Tensor) -> Tensor:
        """V of these losses `[B]`, detached."""
        with torch.no_grad():
            return self.net(self._input(losses))[:, 0].to(losses)

    def _input(self, losses: Tensor) -> Tensor:
        return losses.detach().to(next(self.net.parameters()))[:, None]  # [B, 1], on the CPU

    def state_dict(self) -> dict[str, Any]:
        """φ and its optimiser too."""
        return {**super().state_dict(), "net": self.net.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        super().load_state_dict(state)
        self.net.load_state_dict(state["net"])
        self.adam.load_state_dict(state["adam"])

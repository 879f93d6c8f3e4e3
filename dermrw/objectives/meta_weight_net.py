"""Meta-Weight-Net (Shu et al., NeurIPS 2019, arXiv 1902.07379): example weights as a learned function of the loss."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dermrw.config import Config
from dermrw.objectives.interface import Batch
from dermrw.objectives.weighted import Weighted
from dermrw.reweight.meta_step import losses_along, meta_gradient, normalize, sum_over

HIDDEN, RATE, DECAY = 100, 1e-3, 1e-4  # values in the authors' code


class MetaWeightNet(Weighted):
    """Weights from Vᵢ = V(ℓᵢ; φ) in 0..1, a network with one hidden layer. α is the peak learning rate. Each step is:

        θ̂(φ) = θ − α/B ∇θ Σ Vᵢ ℓᵢ(θ)    (eq. 5)
        φ ← φ − Adam of ∇φ L_meta(θ̂(φ))    (eq. 6), where ∇φ L_meta = −α/B Σ ⟨∇L_meta(θ̂), ∇ℓᵢ(θ)⟩ ∇φ Vᵢ    (eq. 9)
        wᵢ = Vᵢ / Σ Vⱼ with the new φ.

    There are two differences from the paper. The training loss is normalised, Σ wᵢ ℓᵢ, whereas eq. 3 has 1/B Σ Vᵢ ℓᵢ;
    the step of φ uses eq. 3 unchanged. AdamW is nearly invariant to the scale of the loss, and with SGD the learning
    rate keeps the same meaning as for the other objectives. Also, α is constant, whereas it follows the schedule in the
    authors' code.

    The inner products take one forward pass with tangents, as in reweighting. The virtual step takes one further
    forward and backward pass.
    """

    def __init__(self, config: Config, labels: np.ndarray, classes: int, steps: int) -> None:
        super().__init__(config, labels, classes, steps)
        self.rate = config.train.lr
        with torch.random.fork_rng(devices=[]):  # keeps the random stream of training the same as for other objectives
            torch.manual_seed(config.train.seed)
            self.net = nn.Sequential(nn.Linear(1, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1), nn.Sigmoid())
        self.adam = torch.optim.Adam(self.net.parameters(), RATE, weight_decay=DECAY)

    def weigh(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Updates φ by one step and returns the losses and the weights for the new φ."""

        def weighted(logits: Tensor, y: Tensor) -> Tensor:
            losses = self.losses(logits, y)
            return self.of(losses) * losses

        gradient = meta_gradient(model, batch.x, batch.y, weighted, batch.group)  # of the mean: 1/B Σ Vᵢ ℓᵢ
        parameters = {name: p for name, p in model.named_parameters() if name in gradient}
        before = {name: p.detach().clone() for name, p in parameters.items()}
        with torch.no_grad():
            for name, p in parameters.items():
                p.sub_(self.rate * gradient[name])
        torch.clear_autocast_cache()  # otherwise bf16 computes on with its copies of the parameters before the change
        direction = meta_gradient(model, batch.meta_x, batch.meta_y, group=batch.group)  # at θ̂
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(before[name])
        torch.clear_autocast_cache()
        losses, slopes = losses_along(model, batch.x, batch.y, direction, self.losses)

        values = self.net(self._input(losses))[:, 0]  # [B], with φ's graph
        self.adam.zero_grad()
        (-self.rate * (slopes.to(values) * values).sum() / batch.total).backward()
        sum_over([p.grad for p in self.net.parameters() if p.grad is not None], batch.group)
        self.adam.step()
        torch.clear_autocast_cache()
        return losses, normalize(self.of(losses), batch.group)

    def of(self, losses: Tensor) -> Tensor:
        """Returns V for these losses `[B]`, detached."""
        with torch.no_grad():
            return self.net(self._input(losses))[:, 0].to(losses)

    def _input(self, losses: Tensor) -> Tensor:
        return losses.detach().to(next(self.net.parameters()))[:, None]  # [B, 1], on the CPU

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of `Weighted`, φ and the state of its optimiser."""
        return {**super().state_dict(), "net": self.net.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        super().load_state_dict(state)
        self.net.load_state_dict(state["net"])
        self.adam.load_state_dict(state["adam"])

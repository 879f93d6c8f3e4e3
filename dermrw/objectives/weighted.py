"""Objectives that weigh each example: reweighting (Ren et al. 2018), random weights, Meta-Weight-Net.

All minimise Σ wᵢ ℓᵢ with weights that sum to 1 over the batch, and keep count of what each image weighed.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dermrw.config import Config
from dermrw.models import last_stage
from dermrw.objectives.interface import Batch, Objective
from dermrw.reweight.approximations import differences_along
from dermrw.reweight.meta_step import losses_along, meta_gradient, normalize, sum_over


class Weighted(Objective):
    """Σ wᵢ ℓᵢ; what the weights come from is the subclass's."""

    def __init__(self, config: Config, labels: np.ndarray, classes: int, steps: int) -> None:
        super().__init__(config, labels, classes, steps)
        # by row of the training set, in units of the batch's mean weight: the last one, the sum, and of how many
        self.last = torch.full((self.examples,), torch.nan)
        self.sum, self.seen = torch.zeros(self.examples), torch.zeros(self.examples)
        self.class_shares = torch.full((classes,), torch.nan)  # of the step before

    def weigh(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Losses `[B]` with their graph, and weights `[B]` that sum to 1 over all processes, detached."""
        raise NotImplementedError

    def compute_loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Σ wᵢ ℓᵢ, and what the weights are like."""
        losses, weights = self.weigh(model, batch)
        log = {**self._describe(weights, batch), **self._remember(weights, batch)}
        return (weights * losses).sum(), log

    def example_weights(self) -> np.ndarray:
        """The mean weight of each training image so far `[N]`."""
        return (self.sum / self.seen).numpy()  # 0/0 is NaN

    def _describe(self, weights: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Each class's share of the weight, how many are zero, 1/Σw², and how far the shares moved since last step."""
        by_class = torch.zeros(self.classes, device=weights.device, dtype=weights.dtype)
        by_class.index_add_(0, batch.y, weights)  # [C]
        zero, squares = (weights == 0).to(weights.dtype).sum() / batch.total, weights.square().sum()
        sum_over([by_class, zero, squares], batch.group)
        shares = by_class.float().cpu()
        moved = (shares - self.class_shares).abs().sum() / 2
        self.class_shares = shares
        return {
            "class_weight": by_class,
            "zero_share": zero,
            "effective_batch": torch.where(squares > 0, 1 / squares.clamp(min=1e-12), squares),
            "all_zero": (squares == 0).to(weights.dtype),
            **({} if moved.isnan() else {"class_swing": moved}),
        }

    def _remember(self, weights: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Keeps the weights by image; gives how far those moved that had one, in units of the mean weight."""
        new, seen = self._by_row(weights * batch.total, batch)
        moved = (new - self.last).abs()[seen > 0]
        moved = moved[~moved.isnan()]
        self.last = torch.where(seen > 0, new, self.last)
        self.sum, self.seen = self.sum + new, self.seen + seen
        return {"example_swing": moved.mean()} if len(moved) else {}

    def _by_row(self, values: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Values of all processes' examples `[B]` by row of the training set `[N]`, and 1 where there is one."""
        new, seen = torch.zeros(self.examples), torch.zeros(self.examples)
        new[batch.row] = values.float().cpu()
        seen[batch.row] = 1
        sum_over([new, seen], batch.group)
        return new, seen

    def state_dict(self) -> dict[str, Any]:
        """The weights so far."""
        own = {"last": self.last, "sum": self.sum, "seen": self.seen, "class_shares": self.class_shares}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        super().load_state_dict(state)
        self.last, self.sum, self.seen = state["last"], state["sum"], state["seen"]
        self.class_shares = state["class_shares"]


class RandomWeights(Weighted):
    """Ren et al.'s own control: weights max(z, 0) / Σ max(z, 0) of standard normal z, as many zeros, no meaning."""

    def weigh(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Random weights."""
        losses = self.losses(model(batch.x), batch.y)
        return losses, normalize(torch.randn(len(losses)).to(losses), batch.group)


class Reweight(Weighted):
    """Ren et al. 2018: the batch's losses weighted by how far each example's gradient agrees with the meta set's."""

    def __init__(self, config: Config, labels: np.ndarray, classes: int, steps: int) -> None:
        super().__init__(config, labels, classes, steps)
        self._last_stage: frozenset[str] | None = None

    def weigh(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Exact weights, or what `objective.weights` asks for, or between refreshes those of each one's last visit."""
        if self._weigh_now(batch):
            losses, scores = self._scores(model, batch)
            return losses, normalize(scores, batch.group)
        losses = self.losses(model(batch.x), batch.y)
        return losses, normalize(self.last[batch.row].to(losses), batch.group)

    def _weigh_now(self, batch: Batch) -> bool:
        """Every `refresh_every` steps, and wherever an example was never weighed yet."""
        if self.step % self.config.refresh_every == 0:
            return True
        unknown = self.last[batch.row].isnan().any().float()
        sum_over([unknown], batch.group)
        return bool(unknown)

    def _scores(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        if self.config.weights == "last_stage":
            self._last_stage = self._last_stage or last_stage(model)
        # the meta set is balanced: its own loss is cross-entropy, whatever adjusts the training loss
        direction = meta_gradient(model, batch.meta_x, batch.meta_y, group=batch.group, names=self._last_stage)
        along = differences_along if self.config.weights == "finite_difference" else losses_along
        return along(model, batch.x, batch.y, direction, self.losses)

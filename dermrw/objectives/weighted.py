"""Objectives with example weights: the base class, reweighting (Ren et al. 2018) and random weights.

All minimise Σ wᵢ ℓᵢ with weights that sum to 1 over the batch, and record the weights of each image.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dermrw.config import Config
from dermrw.models import last_stage
from dermrw.objectives.interface import Batch, Objective
from dermrw.objectives.losses import label_losses, weighted_shares
from dermrw.reweight.approximations import differences_along
from dermrw.reweight.meta_step import losses_along, meta_gradient, normalize, sum_over


class Weighted(Objective):
    """Base class for objectives that minimise Σ wᵢ ℓᵢ. Subclasses compute the weights in `weigh`."""

    def __init__(self, config: Config, labels: np.ndarray, classes: int, steps: int) -> None:
        super().__init__(config, labels, classes, steps)
        # by row of the training set, in units of the mean weight of the batch: last weight, sum, number of weights
        self.last = torch.full((self.examples,), torch.nan)
        self.sum, self.seen = torch.zeros(self.examples), torch.zeros(self.examples)
        self.class_shares = torch.full((classes,), torch.nan)  # in the previous step

    weighed = True  # whether the weights of this step are new; kept ones, normalised in another batch, are not stored

    def weigh(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns losses `[B]` with their graph, and detached weights `[B]` that sum to 1 over all processes."""
        raise NotImplementedError

    def compute_loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns Σ wᵢ ℓᵢ, and statistics of the weights to log. In the warm-up, it is the mean loss."""
        if self.step < self.config.warm_up * self.steps:
            return super().compute_loss(model, batch)
        losses, weights = self.weigh(model, batch)
        log = {**self._describe(weights, batch), **self._remember(weights, batch)}
        return (weights * losses).sum(), log

    def example_weights(self) -> np.ndarray | None:
        """Returns the mean weight of each training image so far `[N]`, NaN for images never weighted.

        None if the warm-up is not over.
        """
        return (self.sum / self.seen).numpy() if self.seen.any() else None  # 0/0 is NaN

    def _describe(self, weights: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Returns statistics of the weights to log.

        These are the share of each class in the weight, the share of zero weights, the effective batch size 1/Σw²,
        whether all weights are zero, and the change of the class shares since the last step (total variation distance).
        Images whose label is a set of classes count for no class.
        """
        by_label = torch.zeros(self.classes + len(self.sets), device=weights.device, dtype=weights.dtype)
        by_class = by_label.index_add_(0, batch.y, weights)[: self.classes].clone()
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
        """Records the weight of each image and returns the mean absolute change of the weights, to log.

        The mean is over images that had a weight before, in units of the mean weight.
        """
        new, seen = self._by_row(weights * batch.total, batch)
        moved = (new - self.last).abs()[seen > 0]
        moved = moved[~moved.isnan()]
        if self.weighed:
            self.last = torch.where(seen > 0, new, self.last)
        self.sum, self.seen = self.sum + new, self.seen + seen
        return {"example_swing": moved.mean()} if len(moved) else {}

    def _by_row(self, values: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the values `[B]` of all processes by row of the training set `[N]`, and a mask: 1 at these rows.

        With `objective.sampler=balanced` several processes may have drawn the same image: its mean value is returned.
        """
        new, seen = torch.zeros(self.examples), torch.zeros(self.examples)
        new[batch.row] = values.float().cpu()
        seen[batch.row] = 1
        sum_over([new, seen], batch.group)
        return new / seen.clamp(min=1), (seen > 0).to(seen.dtype)

    def state_dict(self) -> dict[str, Any]:
        """Returns the step and the weights recorded so far."""
        own = {"last": self.last, "sum": self.sum, "seen": self.seen, "class_shares": self.class_shares}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        super().load_state_dict(state)
        self.last, self.sum, self.seen = state["last"], state["sum"], state["seen"]
        self.class_shares = state["class_shares"]


class WeightedShares(Weighted):
    """Base class for weights that balanced softmax follows: π is the share of each class in the total weight."""

    def __init__(self, config: Config, labels: np.ndarray, classes: int, steps: int) -> None:
        super().__init__(config, labels, classes, steps)
        self.labels = torch.from_numpy(labels.copy())
        self.adjusts = self.config.loss == "balanced_softmax"
        self.shares = torch.from_numpy(self.counts / self.counts.sum()).float()  # π, [C]

    def losses(self, logits: Tensor, y: Tensor) -> Tensor:
        """Returns cross-entropy, or balanced softmax with the current shares π, for each example."""
        shift = self.shares.log().to(logits.device) if self.adjusts else 0.0
        return label_losses(logits + shift, y, self.sets)

    def set_shares(self, weights: Tensor) -> None:
        """Sets π from the weight of each training image `[N]`."""
        self.shares = weighted_shares(self.labels, weights, self.counts, self.sets)


class RandomWeights(Weighted):
    """Random weights max(z, 0) / Σ max(z, 0) with standard normal z: the control of Ren et al. (2018)."""

    def weigh(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns losses and random weights."""
        losses = self.losses(model(batch.x), batch.y)
        return losses, normalize(torch.randn(len(losses)).to(losses), batch.group)


class Reweight(Weighted):
    """Reweighting (Ren et al. 2018): each weight is the clipped inner product of an example's and the meta gradient."""

    def __init__(self, config: Config, labels: np.ndarray, classes: int, steps: int) -> None:
        super().__init__(config, labels, classes, steps)
        self._last_stage: frozenset[str] | None = None

    def weigh(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns losses and weights. Between refreshes, each example keeps the weight of its last visit.

        `objective.weights` selects the exact weights or an approximation.
        """
        self.weighed = self._weigh_now(batch)
        if self.weighed:
            losses, scores = self._scores(model, batch)
            return losses, normalize(scores, batch.group)
        losses = self.losses(model(batch.x), batch.y)
        return losses, normalize(self.last[batch.row].to(losses), batch.group)

    def _weigh_now(self, batch: Batch) -> bool:
        """Returns True every `refresh_every` steps, and if any example of the batch has no weight yet."""
        if self.step % self.config.refresh_every == 0:
            return True
        unknown = self.last[batch.row].isnan().any().float()
        sum_over([unknown], batch.group)
        return bool(unknown)

    def _scores(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        if self.config.weights == "last_stage":
            self._last_stage = self._last_stage or last_stage(model)
        # the meta set is balanced, so its loss is plain cross-entropy for every training loss
        direction = meta_gradient(model, batch.meta_x, batch.meta_y, group=batch.group, names=self._last_stage)
        along = differences_along if self.config.weights == "finite_difference" else losses_along
        return along(model, batch.x, batch.y, direction, self.losses)

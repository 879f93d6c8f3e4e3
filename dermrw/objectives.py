"""What is minimised: plain cross-entropy, weighted sampling, reweighting. One interface, one file.

The loop calls `objective(model, batch)` and gets a loss to call backward on and a dict of tensors to log; it does not
know which objective it has. An objective also names the sampler that it wants.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dermrw.cheaper import finite_difference_scores, last_stage_scores
from dermrw.config import Objective as ObjectiveConfig
from dermrw.models import last_stage
from dermrw.reweight import cross_entropy, losses_along, meta_gradient, normalize, sum_over


class Batch(NamedTuple):
    """One step's data, or a process's part of it, and the whole meta set."""

    x: Tensor  # [B, 3, H, W]
    y: Tensor  # [B]
    row: Tensor  # of the training set [B], on the CPU
    meta_x: Tensor  # [M, 3, H, W]
    meta_y: Tensor  # [M]
    total: int  # examples of this step in all processes
    group: dist.ProcessGroup | None = None  # the processes that share the step; their losses add up


class Objective:
    """Empirical risk minimisation: the mean cross-entropy of the whole batch."""

    sampler = "shuffled"  # every example once an epoch

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (a scalar with its graph), which adds up over the processes, and what to log."""
        return cross_entropy(model(batch.x), batch.y).sum() / batch.total, {}

    def state_dict(self) -> dict[str, Any]:
        """What must survive a resume."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""


class WeightedSampling(Objective):
    """ERM on batches in which every class is as likely: example i is drawn with probability ∝ 1/n of its class."""

    sampler = "balanced"


class Reweight(Objective):
    """Ren et al. 2018: the batch's losses weighted by how far each example's gradient agrees with the meta set's."""

    def __init__(self, classes: int, examples: int, weights: str = "exact", refresh_every: int = 1) -> None:
        """`examples` of `classes` classes make up the training set; `weights` says how they are weighed, and when."""
        self.classes, self.weights, self.refresh_every, self.step = classes, weights, refresh_every, 0
        # by row of the training set: the weight it had when it was last weighed, in units of its batch's mean weight
        self.remembered = torch.full((examples,), torch.nan) if refresh_every > 1 else None
        self._last_stage: frozenset[str] | None = None

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Σ wᵢ ℓᵢ, and the weight each class receives, the share of zeros and the effective batch size 1/Σw²."""
        if self._weigh_now(batch):
            losses, scores = self._scores(model, batch)
            weights = normalize(scores, batch.group)
            self._remember(batch, weights)
        else:
            losses = cross_entropy(model(batch.x), batch.y)
            weights = normalize(self.known(batch.row).to(losses), batch.group)
        self.step += 1
        return (weights * losses).sum(), self._log(weights, batch)

    def known(self, rows: Tensor) -> Tensor:
        """The weights that are remembered of these rows, NaN where there are none."""
        return torch.full(rows.shape, torch.nan) if self.remembered is None else self.remembered[rows]

    def _weigh_now(self, batch: Batch) -> bool:
        """Every `refresh_every` steps, and wherever an example was never weighed yet."""
        if self.step % self.refresh_every == 0:
            return True
        unknown = self.known(batch.row).isnan().any().float()
        sum_over([unknown], batch.group)
        return bool(unknown)

    def _scores(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        data = (model, batch.x, batch.y, batch.meta_x, batch.meta_y)
        if self.weights == "finite_difference":
            return finite_difference_scores(*data, group=batch.group)
        if self.weights == "last_stage":
            self._last_stage = self._last_stage or last_stage(model)
            return last_stage_scores(*data, self._last_stage, group=batch.group)
        return losses_along(*data[:3], meta_gradient(model, batch.meta_x, batch.meta_y, group=batch.group))

    def _remember(self, batch: Batch, weights: Tensor) -> None:
        if self.remembered is None:
            return
        new, seen = torch.zeros_like(self.remembered), torch.zeros_like(self.remembered)
        new[batch.row] = weights.float().cpu() * batch.total
        seen[batch.row] = 1
        sum_over([new, seen], batch.group)
        self.remembered = torch.where(seen > 0, new, self.remembered)

    def _log(self, weights: Tensor, batch: Batch) -> dict[str, Tensor]:
        by_class = torch.zeros(self.classes, device=weights.device, dtype=weights.dtype)
        by_class.index_add_(0, batch.y, weights)  # [C]
        zero, squares = (weights == 0).to(weights.dtype).sum() / batch.total, weights.square().sum()
        sum_over([by_class, zero, squares], batch.group)
        return {
            "class_weight": by_class,
            "zero_share": zero,
            "effective_batch": torch.where(squares > 0, 1 / squares.clamp(min=1e-12), squares),
            "all_zero": (squares == 0).to(weights.dtype),
        }

    def state_dict(self) -> dict[str, Any]:
        """The weights that are remembered, where any are."""
        return {} if self.remembered is None else {"step": self.step, "remembered": self.remembered}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        if self.remembered is not None:
            self.step, self.remembered = state["step"], state["remembered"]


def build_objective(config: ObjectiveConfig, classes: int, examples: int) -> Objective:
    """The objective that `objective=NAME` asks for, of a training set of `examples` in `classes` classes."""
    if config.name == "reweight":
        return Reweight(classes, examples, config.weights, config.refresh_every)
    return {"erm": Objective, "weighted_sampling": WeightedSampling}[config.name]()

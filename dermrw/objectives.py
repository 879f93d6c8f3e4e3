"""What is minimised: plain cross-entropy, weighted sampling, reweighting. One interface, one file.

The loop calls `objective(model, batch)` and gets a loss to call backward on and a dict of tensors to log; it does not
know which objective it has. An objective also names the sampler that it wants.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dermrw.config import Objective as ObjectiveConfig
from dermrw.reweight import cross_entropy, reweighted_losses


class Batch(NamedTuple):
    """One step's data: inputs `[B, 3, H, W]`, labels `[B]`, rows of the training set `[B]`, and the meta set."""

    x: Tensor
    y: Tensor
    row: Tensor
    meta_x: Tensor  # [M, 3, H, W]
    meta_y: Tensor  # [M]


class Objective:
    """Empirical risk minimisation: the mean cross-entropy of the batch."""

    sampler = "shuffled"  # every example once an epoch

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (a scalar with its graph) and what to log."""
        return cross_entropy(model(batch.x), batch.y).mean(), {}

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

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Σ wᵢ ℓᵢ, and the weight each class receives, the share of zeros and the effective batch size 1/Σw²."""
        losses, weights = reweighted_losses(model, batch.x, batch.y, batch.meta_x, batch.meta_y)
        squares = weights.square().sum()
        log = {
            "class_weight": torch.zeros(self.classes, device=weights.device, dtype=weights.dtype).index_add_(
                0, batch.y, weights
            ),  # [C]
            "zero_share": (weights == 0).to(weights.dtype).mean(),
            "effective_batch": torch.where(squares > 0, 1 / squares.clamp(min=1e-12), squares),
            "all_zero": (squares == 0).to(weights.dtype),
        }
        return (weights * losses).sum(), log


OBJECTIVES = {"erm": Objective, "weighted_sampling": WeightedSampling, "reweight": Reweight}


def build_objective(config: ObjectiveConfig, classes: int) -> Objective:
    """The objective that `objective=NAME` asks for."""
    return OBJECTIVES[config.name](classes)

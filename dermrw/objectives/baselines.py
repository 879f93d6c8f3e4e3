"""Baselines that weigh no example: mixup, and fine-tuning on the meta images."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dermrw.objectives.interface import Batch, Objective
from dermrw.reweight.meta_step import cross_entropy

MIXUP_ALPHA = 0.2  # Zhang et al. 2018: 0.1 to 0.4 on ImageNet
FINE_TUNE_FROM = 0.8


class Mixup(Objective):
    """Zhang et al. 2018: λ x + (1 − λ) x', and the losses of both labels in the same parts; λ ~ Beta(α, α), one a step.

    The partners are a permutation of the batch (of the process's own part of it).
    """

    def compute_loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """λ ℓ(f(x̃), y) + (1 − λ) ℓ(f(x̃), y')."""
        alpha = torch.tensor(MIXUP_ALPHA)
        share = torch.distributions.Beta(alpha, alpha).sample().item()
        partner = torch.randperm(len(batch.y)).to(batch.y.device)
        logits = model(share * batch.x + (1 - share) * batch.x[partner])
        losses = share * self.losses(logits, batch.y) + (1 - share) * self.losses(logits, batch.y[partner])
        return losses.sum() / batch.total, {}


class FineTuneMeta(Objective):
    """ERM, and for the last fifth of the steps the meta set alone: what the same clean images give without weights.

    All of it in every such step, and not augmented: as the meta step sees it. The batch that is drawn is left unused.
    """

    def compute_loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss of the batch, or of the meta set."""
        if self.step < FINE_TUNE_FROM * self.steps:
            return super().compute_loss(model, batch)
        world = 1 if batch.group is None else dist.get_world_size(batch.group)  # each has the whole meta set
        return cross_entropy(model(batch.meta_x), batch.meta_y).mean() / world, {}

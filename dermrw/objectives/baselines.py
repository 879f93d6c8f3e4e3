"""Baselines without example weights: mixup, and fine-tuning on the meta images."""

import torch
from torch import Tensor, nn

from dermrw.objectives.interface import Batch, Objective
from dermrw.reweight.meta_step import cross_entropy, sum_over

MIXUP_ALPHA = 0.2  # Zhang et al. 2018: 0.1 to 0.4 on ImageNet
FINE_TUNE_FROM = 0.8


class Mixup(Objective):
    """Mixup (Zhang et al. 2018): inputs x̃ = λ x + (1 − λ) x', and the same mixture of the losses of both labels.

    Each step draws one λ ~ Beta(α, α). The partners x' are a permutation of the batch, or of this process's part of it.
    """

    def compute_loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the mean of λ ℓ(f(x̃), y) + (1 − λ) ℓ(f(x̃), y') over the batch."""
        alpha = torch.tensor(MIXUP_ALPHA)
        share = torch.distributions.Beta(alpha, alpha).sample().item()
        partner = torch.randperm(len(batch.y)).to(batch.y.device)
        logits = model(share * batch.x + (1 - share) * batch.x[partner])
        losses = share * self.losses(logits, batch.y) + (1 - share) * self.losses(logits, batch.y[partner])
        return losses.sum() / batch.total, {}


class FineTuneMeta(Objective):
    """ERM, then training on the meta set alone for the last fifth of the steps.

    This baseline uses the same clean images as reweighting, but without weights. Each of the last steps uses the whole
    meta set, not augmented, as the meta step does. The training batch of these steps is not used.
    """

    def compute_loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the mean loss of the batch, or of the meta set in the last fifth of the steps."""
        if self.step < FINE_TUNE_FROM * self.steps:
            return super().compute_loss(model, batch)
        total = torch.tensor(float(len(batch.meta_y)))
        sum_over([total], batch.group)
        return cross_entropy(model(batch.meta_x), batch.meta_y).sum() / total.item(), {}

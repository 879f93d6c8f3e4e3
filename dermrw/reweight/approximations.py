"""Approximate scores that are cheaper than the exact ones. docs/cost.md reports their distance from the exact scores.

Each function replaces the part of `reweight.reweighted_losses` before the normalisation. It returns losses `[B]`, with
the graph of the one training forward pass, and detached scores `[B]`. `reweight.normalize` converts the scores to
weights. This file needs only torch.
"""

from collections.abc import Collection

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call

from dermrw.reweight.meta_step import PerExampleLoss, by_tensor, cross_entropy, losses_along, meta_gradient

# step of the finite difference, relative to the norm of the parameters. In fp32, weights were closest to the exact ones
# for steps from 3e-7 to 3e-6 (trained MobileNetV2 and ResNet-18). Larger steps have a larger truncation error, and with
# smaller steps rounding errors dominate.
STEP = 1e-6


def finite_difference_scores(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    meta_x: Tensor,
    meta_y: Tensor,
    loss: PerExampleLoss = cross_entropy,
    group: dist.ProcessGroup | None = None,
    step: float = STEP,
) -> tuple[Tensor, Tensor]:
    """Returns losses `[B]` and scores `[B]` by `differences_along` with the meta gradient as the direction."""
    return differences_along(model, x, y, meta_gradient(model, meta_x, meta_y, loss, group), loss, step)


def differences_along(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    direction: dict[str, Tensor],
    loss: PerExampleLoss = cross_entropy,
    step: float = STEP,
) -> tuple[Tensor, Tensor]:
    """Returns losses ℓᵢ(θ) `[B]` and the finite differences (ℓᵢ(θ + h g) − ℓᵢ(θ)) / h `[B]`.

    g is the direction, and h ‖g‖ = `step` ‖θ‖. The cost is one more forward pass, without a graph. Both passes use the
    same buffers and the same random state, so their dropout masks agree; the extra pass works on copies of the buffers.
    In a precision below fp32, rounding errors exceed the difference.
    """
    parameters = dict(model.named_parameters())
    of_theta = torch.stack([parameters[name].detach().norm() for name in direction]).norm()
    of_g = torch.stack([d.norm() for d in direction.values()]).norm()
    h = step * of_theta / of_g.clamp(min=torch.finfo(of_g.dtype).tiny)
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        moved: dict[Tensor, Tensor] = {parameters[name]: parameters[name] + h * d for name, d in direction.items()}
        moved.update({b: b.clone() for b in model.buffers()})
        ahead = loss(functional_call(model, by_tensor(model, moved), (x,), tie_weights=False), y)
    losses = loss(model(x), y)
    return losses, (ahead - losses.detach()) / h


def last_stage_scores(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    meta_x: Tensor,
    meta_y: Tensor,
    names: Collection[str],
    loss: PerExampleLoss = cross_entropy,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns losses `[B]` and the exact scores `[B]` for θ restricted to `names`, such as those of the last stage."""
    return losses_along(model, x, y, meta_gradient(model, meta_x, meta_y, loss, group, names), loss)

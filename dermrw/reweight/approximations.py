"""Cheaper than exact: scores whose distance from the exact ones is known. docs/cost.md gives it.

Each function stands in for what `reweight.reweighted_losses` does before it normalises: (losses `[B]` with the graph of
the one training forward pass, scores `[B]`, detached). `reweight.normalize` makes weights of them. Needs torch alone.
"""

from collections.abc import Collection

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call

from dermrw.reweight.meta_step import PerExampleLoss, by_tensor, cross_entropy, losses_along, meta_gradient

# of the finite difference, as a share of the parameters' norm: weights in fp32 were nearest the exact ones from 3e-7
# to 3e-6 (trained MobileNetV2 and ResNet-18); larger steps leave the tangent, smaller ones drown in rounding
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
    """`differences_along` the meta gradient."""
    return differences_along(model, x, y, meta_gradient(model, meta_x, meta_y, loss, group), loss, step)


def differences_along(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    direction: dict[str, Tensor],
    loss: PerExampleLoss = cross_entropy,
    step: float = STEP,
) -> tuple[Tensor, Tensor]:
    """(ℓᵢ(θ + h g) − ℓᵢ(θ)) / h, where h ‖g‖ = `step` ‖θ‖ and g the direction: one more forward pass, without graph.

    The second pass sees copies of the buffers and the random stream of the first, so dropout masks agree. In a
    precision below fp32 the difference drowns in rounding.
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
    """The exact scores of another problem: θ is the parameters in `names` alone, say those of the last stage."""
    return losses_along(model, x, y, meta_gradient(model, meta_x, meta_y, loss, group, names), loss)

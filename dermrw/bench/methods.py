"""One training step by each of the compared methods. `run` leaves the gradients in `.grad` and returns the weights.

The optimiser step is left out, because it is the same for all methods. `exact` is `dermrw.reweight`. The double
backward methods implement Algorithm 1 of Ren et al. (2018) directly. The peers are the libraries that public
implementations of the algorithm use.
"""

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from dermrw.models import last_stage
from dermrw.reweight.approximations import finite_difference_scores, last_stage_scores
from dermrw.reweight.meta_step import (
    cross_entropy,
    losses_along,
    meta_gradient,
    normalize,
    outputs_along,
    recorded_losses_along,
)

RATE = 1e-3  # learning rate of the virtual step; the weights do not depend on it


class Case(NamedTuple):
    """A network and the data of one step."""

    model: nn.Module
    x: Tensor
    y: Tensor
    meta_x: Tensor
    meta_y: Tensor


Step = Callable[[Case], tuple[Tensor, Tensor | None]]  # returns the loss with its graph, and the weights if any


def plain(case: Case) -> tuple[Tensor, None]:
    """Plain training: the mean cross-entropy, without weights."""
    return cross_entropy(case.model(case.x), case.y).mean(), None


def exact(case: Case) -> tuple[Tensor, Tensor]:
    """Exact weights by `dermrw.reweight.meta_step`: one recorded forward pass whose tangents are not recorded."""
    return _weighted(*losses_along(*case[:3], meta_gradient(case.model, case.meta_x, case.meta_y)))


def tangents(case: Case) -> tuple[Tensor, Tensor]:
    """Exact weights by the forward pass with tangents, which `exact` uses for networks with batch statistics."""
    logits, change = outputs_along(case.model, case.x, meta_gradient(case.model, case.meta_x, case.meta_y))
    slopes = logits.detach().softmax(1) - F.one_hot(case.y, logits.shape[1])  # ∂ℓᵢ/∂fᵢ
    return _weighted(cross_entropy(logits, case.y), (slopes * change).sum(1))


def recorded(case: Case) -> tuple[Tensor, Tensor]:
    """Exact weights by PyTorch's forward-mode differentiation of the recorded forward pass."""
    direction = meta_gradient(case.model, case.meta_x, case.meta_y)
    return _weighted(*recorded_losses_along(*case[:3], direction, cross_entropy))


def two_passes(case: Case) -> tuple[Tensor, Tensor]:
    """Exact weights by forward-mode differentiation without recording, followed by a plain forward pass.

    Before `exact`, this was the method that needed the least memory.
    """
    direction = meta_gradient(case.model, case.meta_x, case.meta_y)
    with torch.no_grad():
        buffers = [b.clone() for b in case.model.buffers()]
        _, scores = recorded_losses_along(*case[:3], direction, cross_entropy)
        for buffer, before in zip(case.model.buffers(), buffers, strict=True):
            buffer.copy_(before)
    return _weighted(cross_entropy(case.model(case.x), case.y), scores)


def finite_difference(case: Case) -> tuple[Tensor, Tensor]:
    """Approximate weights, as with `objective.weights=finite_difference`."""
    return _weighted(*finite_difference_scores(*case))


def last_block(case: Case) -> tuple[Tensor, Tensor]:
    """Approximate weights, as with `objective.weights=last_stage`."""
    return _weighted(*last_stage_scores(*case, last_stage(case.model)))


def _weighted(losses: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    weights = normalize(scores.detach())
    return (weights * losses).sum(), weights


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _double(case: Case) -> tuple[Tensor, Tensor]:
    """Returns the training losses and, by double backward through a virtual step, the scores."""
    epsilon = torch.zeros(len(case.x), device=case.x.device, requires_grad=True)
    parameters = _parameters(case.model)
    with sdpa_kernel(SDPBackend.MATH):
        losses = cross_entropy(case.model(case.x), case.y)
        gradients = torch.autograd.grad((epsilon * losses).sum(), list(parameters.values()), create_graph=True)
        ahead = {name: p - RATE * g for (name, p), g in zip(parameters.items(), gradients, strict=True)}
        ahead.update({name: b.clone() for name, b in case.model.named_buffers()})
        meta_loss = F.cross_entropy(functional_call(case.model, ahead, (case.meta_x,)), case.meta_y)
        # keep the graph of the training forward pass: `double_backward_shared` runs backward through it again
        scores = -torch.autograd.grad(meta_loss, epsilon, retain_graph=True)[0]
    return losses, scores


def double_backward(case: Case) -> tuple[Tensor, Tensor]:
    """Algorithm 1 line by line, as in public implementations: the weighted loss takes another forward pass."""
    scores = _double(case)[1]
    return _weighted(cross_entropy(case.model(case.x), case.y), scores)


def double_backward_shared(case: Case) -> tuple[Tensor, Tensor]:
    """Optimised double backward: the weighted loss uses the existing forward pass."""
    losses, scores = _double(case)
    return _weighted(losses, scores)


def with_higher(case: Case) -> tuple[Tensor, Tensor]:
    """Double backward through `higher` (Grefenstette et al., arXiv 1910.01727)."""
    import higher

    optimizer = torch.optim.SGD(case.model.parameters(), RATE)
    epsilon = torch.zeros(len(case.x), device=case.x.device, requires_grad=True)
    with higher.innerloop_ctx(case.model, optimizer) as (virtual, virtual_optimizer):
        virtual_optimizer.step((epsilon * cross_entropy(virtual(case.x), case.y)).sum())
        scores = -torch.autograd.grad(F.cross_entropy(virtual(case.meta_x), case.meta_y), epsilon)[0]
    return _weighted(cross_entropy(case.model(case.x), case.y), scores)


def with_torchopt(case: Case) -> tuple[Tensor, Tensor]:
    """Double backward through TorchOpt's differentiable SGD (Ren et al., JMLR 2023)."""
    import torchopt

    state = torchopt.extract_state_dict(case.model, by="reference")
    epsilon = torch.zeros(len(case.x), device=case.x.device, requires_grad=True)
    virtual = torchopt.MetaSGD(case.model, lr=RATE)
    virtual.step((epsilon * cross_entropy(case.model(case.x), case.y)).sum())
    scores = -torch.autograd.grad(F.cross_entropy(case.model(case.meta_x), case.meta_y), epsilon)[0]
    torchopt.recover_state_dict(case.model, state)
    return _weighted(cross_entropy(case.model(case.x), case.y), scores)


METHODS: dict[str, Step] = {
    "plain": plain,
    "exact": exact,
    "finite difference": finite_difference,
    "last stage": last_block,
    "recorded tangents": recorded,
    "two passes": two_passes,
    "double backward": double_backward,
    "double backward, shared": double_backward_shared,
}
# where no batch statistics couple the examples; elsewhere, tangents are what `exact` uses
FROZEN_METHODS: dict[str, Step] = {"plain": plain, "exact": exact, "tangents": tangents}
PEERS: dict[str, tuple[str, Step]] = {"higher": ("higher", with_higher), "TorchOpt": ("torchopt", with_torchopt)}
EXACT = {"exact", "tangents", "recorded tangents", "two passes", "double backward", "double backward, shared", *PEERS}


def available_methods() -> dict[str, Step]:
    """Returns every method that can run on this machine. The peers need `pip install dermrw[bench]`."""
    peers = {name: step for name, (module, step) in PEERS.items() if importlib.util.find_spec(module)}
    return {**METHODS, **peers}


def run(step: Step, case: Case, autocast: Any) -> Tensor | None:
    """Runs one step, forward and backward, and returns the weights, or None for plain training."""
    with autocast:
        loss, weights = step(case)
    loss.backward()
    return weights

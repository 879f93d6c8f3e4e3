"""The meta step of learning to reweight examples (Ren et al., ICML 2018, arXiv 1803.09050), exact and cheap.

Algorithm 1 looks one virtual SGD step ahead. With a training batch of B examples and their losses ℓᵢ(θ)

    θ̂(ε) = θ − α ∇θ Σᵢ εᵢ ℓᵢ(θ),    uᵢ = −∂ L_meta(θ̂(ε)) / ∂εᵢ at ε = 0,    wᵢ = max(uᵢ, 0) / Σⱼ max(uⱼ, 0).

At ε = 0 the virtual step has length zero, θ̂ = θ, and the chain rule leaves an inner product of two first
derivatives at θ:

    uᵢ = α ⟨∇θ L_meta(θ), ∇θ ℓᵢ(θ)⟩,

the directional derivative of every training loss along the meta gradient g. α cancels in wᵢ. So nothing second-order is
needed: one backward pass over the small meta batch gives g, and one forward pass over the training batch gives the
losses and, with the tangent of every activation carried beside it (`tangents`), all B derivatives at once. The
same forward pass holds the graph of Σ wᵢ ℓᵢ. Where batch norm in train mode couples the examples, ∂/∂εᵢ is of the ℓᵢ
computed from the whole batch, here as in the paper.

With F the cost of a forward pass, plain training costs 3F and this 5F plus the meta batch's 3F·M/B.

Where an operator of the model has no rule there, the same derivatives come, as exactly, from PyTorch's forward-mode
differentiation of the whole pass, which records the tangents too and needs about three times the memory; and where that
has no rule either, from two reverse passes: Jᵀv is linear in v, and its derivative along g is J g. Each is said once.

This file and `tangents.py` need torch alone and work on any `nn.Module` of torch operations.
"""

import sys
import warnings
import weakref
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from dermrw.reweight.dual import Dual, OnlyInReverse, one_pass, only_in_reverse, primal_of, tangent_of
from dermrw.reweight.tangents import RULES

PerExampleLoss = Callable[[Tensor, Tensor], Tensor]

# the way that a model's derivatives take, an index into _WAYS; only those that met an obstacle are here
_WAY: "weakref.WeakKeyDictionary[nn.Module, int]" = weakref.WeakKeyDictionary()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each example: logits `[B, C]`, labels `[B]` -> losses `[B]`."""
    return F.cross_entropy(logits, labels, reduction="none")


def sum_over(tensors: Sequence[Tensor], group: dist.ProcessGroup | None) -> None:
    """Replaces each tensor by its sum over the group's processes, in one exchange; None: this process alone."""
    if group is None or not tensors:
        return
    flat = torch.cat([t.reshape(-1) for t in tensors])
    dist.all_reduce(flat, group=group)
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def normalize(scores: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Scores u `[B]` -> weights w `[B]` (eqs. 13 and 14): clipped at zero, summing to 1, or all zero if no u > 0.

    With a group, they sum to 1 over all its processes.
    """
    clipped = scores.clamp(min=0)
    total = clipped.sum()
    sum_over([total], group)
    return torch.where(total > 0, clipped / total.where(total > 0, torch.ones_like(total)), clipped)


def by_tensor(model: nn.Module, replacement: dict[Tensor, Tensor]) -> dict[str, Tensor]:
    """What `functional_call` takes to replace these parameters and buffers wherever modules share them.

    Its own `tie_weights` swaps a module that is registered under two names twice, and then can't put it back.
    """
    found = {}
    for prefix, module in model.named_modules():  # each module once
        for own in (module.named_parameters, module.named_buffers):
            tensors = own(prefix, recurse=False, remove_duplicate=False)
            found.update({name: replacement[t] for name, t in tensors if t in replacement})
    return found


def _eagerly() -> AbstractContextManager:
    """Runs what `torch.compile` may have compiled as it was written: tangents can't pass through the compiled."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


class _Buffers:
    """The values of a model's buffers, to be put back."""

    def __init__(self, model: nn.Module) -> None:
        found = [(m, name, b) for m in model.modules() for name, b in m._buffers.items() if b is not None]
        self.found = [(m, name, b, b.clone()) for m, name, b in found]

    def put_back(self) -> None:
        for module, name, buffer, before in self.found:
            module._buffers[name] = buffer
            buffer.data.copy_(before)  # by .data: a graph that has saved it would take its own value for a change


def meta_gradient(
    model: nn.Module,
    meta_x: Tensor,
    meta_y: Tensor,
    loss: PerExampleLoss = cross_entropy,
    group: dist.ProcessGroup | None = None,
    names: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """Gradient of the mean meta loss at θ, by the name of each trainable parameter; the model stays untouched.

    The pass runs in the model's own mode (train or eval). What it changes in the buffers is put back, as is the random
    stream, so running statistics, `.grad` and the random numbers of whatever follows are as if it had not run (what
    `forward` counts in Python alone, it counts twice). A
    dropout mask of the meta pass is therefore drawn from the same state as that of the next training pass.

    Args:
        model: any module; parameters with `requires_grad` are θ.
        meta_x: meta inputs `[M, ...]`.
        meta_y: meta labels `[M]`.
        loss: per-example loss, (model output `[M, ...]`, labels `[M]`) -> `[M]`.
        group: processes that share one step; the mean is over the meta examples of all of them.
        names: the parameters that θ consists of, where it isn't all that are trainable.
    """
    parameters = {
        name: p for name, p in model.named_parameters() if p.requires_grad and (names is None or name in names)
    }
    if not parameters:
        raise ValueError("no parameter of the model requires a gradient, so no example can be weighed")
    buffers = _Buffers(model)
    devices = {p.device for p in parameters.values() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=[d.index for d in devices]), torch.enable_grad(), _eagerly():
        output = model(meta_x)
        count = torch.tensor(float(len(meta_y)), device=meta_y.device)
        sum_over([count], group)
        value = loss(output, meta_y).sum() / count
        # a parameter that the loss does not reach (an unused head, say) has derivative zero
        gradients = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    buffers.put_back()
    direction = {
        name: torch.zeros_like(p) if g is None else g.detach()
        for (name, p), g in zip(parameters.items(), gradients, strict=True)
    }
    sum_over(list(direction.values()), group)
    return direction


def losses_along(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    direction: dict[str, Tensor],
    loss: PerExampleLoss = cross_entropy,
) -> tuple[Tensor, Tensor]:
    """One training forward pass: losses ℓᵢ(θ) `[B]` with their graph, and ⟨direction, ∇θ ℓᵢ(θ)⟩ `[B]`, detached.

    It is the plain forward pass in every other respect: running statistics and the random stream advance as usual.
    `direction` maps names of parameters to tensors of their shapes.
    """

    def checked(output: Tensor, labels: Tensor) -> Tensor:
        losses = loss(output, labels)
        if losses.shape != labels.shape[:1]:
            raise ValueError(
                f"the loss must give one value per example, {list(labels.shape[:1])}, but gave {list(losses.shape)}"
            )
        return losses

    return _along(model, x, y, direction, checked)


def outputs_along(model: nn.Module, x: Tensor, direction: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """One training forward pass: the outputs `[B, ...]` with their graph, and their derivatives along `direction`.

    What `losses_along` does, before any loss: ⟨direction, ∇θ ℓᵢ⟩ is the product of ∂ℓᵢ/∂fᵢ and the derivative of fᵢ.
    """
    return _along(model, x, x, direction, lambda output, _: output)


def _along(
    model: nn.Module, x: Tensor, y: Tensor, direction: dict[str, Tensor], loss: PerExampleLoss
) -> tuple[Tensor, Tensor]:
    """`losses_along` by the first of the ways that the model allows."""
    # what a pass changes before it meets an operator without a rule is put back
    buffers = _Buffers(model)
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    stream, streams = torch.get_rng_state(), {d: torch.cuda.get_rng_state(d) for d in devices}
    while True:
        way = _WAY.get(model, 0)
        try:
            with _eagerly():
                losses, slopes = _WAYS[way](model, x, y, direction, loss)
            return losses, slopes.detach()
        except RuntimeError as error:
            # TorchScript wraps what it meets in an error of its own
            scripted = "TorchScript" in str(error)
            if not (scripted or isinstance(error, NotImplementedError)) or way + 1 == len(_WAYS):
                raise
            _WAY[model] = len(_WAYS) - 1 if scripted or isinstance(error, OnlyInReverse) else way + 1
            told = ("", "a forward pass whose tangents are recorded too", "two reverse passes")[_WAY[model]]
            warnings.warn(f"the weights come from {told}: {str(error).splitlines()[0]}", stacklevel=4)
        buffers.put_back()
        torch.set_rng_state(stream)
        for device, state in streams.items():
            torch.cuda.set_rng_state(state, device)


def _by_rules(
    model: nn.Module, x: Tensor, y: Tensor, direction: dict[str, Tensor], loss: PerExampleLoss
) -> tuple[Tensor, Tensor]:
    """`losses_along` by one recorded forward pass with tangents beside it."""
    parameters = dict(model.named_parameters())
    with one_pass(RULES):
        duals: dict[Tensor, Tensor] = {parameters[name]: Dual(parameters[name], d) for name, d in direction.items()}
        losses = loss(functional_call(model, by_tensor(model, duals), (x,), tie_weights=False), y)
    slopes = tangent_of(losses)
    return primal_of(losses), torch.zeros_like(primal_of(losses)) if slopes is None else slopes


class _Watch(TorchFunctionMode):
    """Raises where PyTorch's forward mode would take the derivative of what a backward pass takes for a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.recording = torch.is_grad_enabled()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        unrecorded = self.recording and not torch.is_grad_enabled()
        if (unrecorded or only_in_reverse(func, args, kwargs)) and any(
            isinstance(a, Tensor) and forward_ad.unpack_dual(a).tangent is not None for a in tree_leaves((args, kwargs))
        ):
            raise OnlyInReverse(f"{getattr(func, '__name__', func)} was called without recording, or as a hook")
        return func(*args, **kwargs)


def recorded_losses_along(
    model: nn.Module, x: Tensor, y: Tensor, direction: dict[str, Tensor], loss: PerExampleLoss
) -> tuple[Tensor, Tensor]:
    """`losses_along` by forward-mode differentiation."""
    parameters = dict(model.named_parameters())
    # of the kernels for attention only the plain one has a forward-mode rule
    with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH), _Watch():
        duals: dict[Tensor, Tensor] = {
            parameters[name]: forward_ad.make_dual(parameters[name], d) for name, d in direction.items()
        }
        output = functional_call(model, by_tensor(model, duals), (x,), tie_weights=False)
        dual_losses = loss(output, y)
        losses, tangents = forward_ad.unpack_dual(dual_losses)
        # a tangent of None means that no trainable parameter reaches the losses
        slopes = torch.zeros_like(losses) if tangents is None else tangents
        return losses, slopes


def _by_reverse(
    model: nn.Module, x: Tensor, y: Tensor, direction: dict[str, Tensor], loss: PerExampleLoss
) -> tuple[Tensor, Tensor]:
    """`losses_along` by two reverse passes."""
    with sdpa_kernel(SDPBackend.MATH):  # the only attention that can be differentiated twice
        losses = loss(model(x), y)
    parameters = dict(model.named_parameters())
    v = torch.zeros_like(losses, requires_grad=True)
    inputs = [parameters[name] for name in direction]
    products = torch.autograd.grad(losses, inputs, v, create_graph=True, allow_unused=True)  # Jᵀv, by parameter
    inner = [(p * d).sum() for p, d in zip(products, direction.values(), strict=True) if p is not None]
    return losses, torch.autograd.grad(sum(inner, v.sum() * 0), v)[0]


_WAYS = (_by_rules, recorded_losses_along, _by_reverse)


def reweighted_losses(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    meta_x: Tensor,
    meta_y: Tensor,
    loss: PerExampleLoss = cross_entropy,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Losses and weights of a training batch, by Ren et al.'s Algorithm 1; backward on `(weights * losses).sum()`.

    Args:
        model: any module of torch operations, in the mode in which it is to be trained.
        x: training inputs `[B, ...]`.
        y: training labels `[B]`.
        meta_x: meta inputs `[M, ...]`; the paper's g, the clean, balanced examples.
        meta_y: meta labels `[M]`.
        loss: per-example loss, (model output, labels) -> one value per example; cross-entropy by default.
        group: processes that share one step, each with its part of the batch (and of the meta batch, or all of it): the
            weights are those of the union. *Sum* the gradients over them afterwards. Batch norm in train mode sees, as
            in any training, the part of its own process.

    Returns:
        losses `[B]`, with the graph of the one training forward pass, and weights `[B]`, detached, non-negative,
        summing to 1 (over the group), or all zero where no example's gradient agrees with the meta gradient (skip or
        count such a step).
    """
    losses, slopes = losses_along(model, x, y, meta_gradient(model, meta_x, meta_y, loss, group), loss)
    return losses, normalize(slopes, group)

"""The meta step of learning to reweight examples (Ren et al., ICML 2018, arXiv 1803.09050), computed exactly.

Algorithm 1 takes one virtual SGD step. With a training batch of B examples and their losses ℓᵢ(θ)

    θ̂(ε) = θ − α ∇θ Σᵢ εᵢ ℓᵢ(θ),    uᵢ = −∂ L_meta(θ̂(ε)) / ∂εᵢ at ε = 0,    wᵢ = max(uᵢ, 0) / Σⱼ max(uⱼ, 0).

At ε = 0 the virtual step has length zero, θ̂ = θ, and by the chain rule uᵢ is an inner product of two first derivatives
at θ:

    uᵢ = α ⟨∇θ L_meta(θ), ∇θ ℓᵢ(θ)⟩,

the directional derivative of every training loss along the meta gradient g. α cancels in wᵢ. No second-order derivative
is needed. One forward and backward pass over the small meta batch gives g. One forward pass over the training batch
gives the losses and, because it also computes the tangent of every activation (`tangents`), all B derivatives. The same
forward pass records the graph of Σ wᵢ ℓᵢ. Batch norm in train mode couples the examples. As in the paper, ℓᵢ is then
the loss computed from the whole batch.

With F the cost of a forward pass, plain training costs 3F. This step costs 5F, plus 3F·M/B for the meta batch. Where no
batch statistics couple the examples, `separable` computes the same weights for 4F or less, and is used instead.

If an operator of the model has no rule in `tangents`, PyTorch's forward-mode differentiation of the whole pass computes
the same derivatives, also exactly. It records the tangents too and needs about three times the memory. If that has no
rule either, two reverse passes are used: Jᵀv is linear in v, and its derivative along g is J g. A warning reports each
such change once.

This package needs only torch and works on any `nn.Module` of torch operations.
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
from dermrw.reweight.separable import separable_losses_along, uses_batch_statistics
from dermrw.reweight.tangents import RULES

PerExampleLoss = Callable[[Tensor, Tensor], Tensor]

# of each model, the method for its derivatives, an index into _METHODS; other models use the first
_METHOD_OF: "weakref.WeakKeyDictionary[nn.Module, int]" = weakref.WeakKeyDictionary()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the cross-entropy of each example: logits `[B, C]`, labels `[B]` -> losses `[B]`."""
    return F.cross_entropy(logits, labels, reduction="none")


def sum_over(tensors: Sequence[Tensor], group: dist.ProcessGroup | None) -> None:
    """Replaces each tensor with its sum over the processes of the group, in one all-reduce. None: a single process."""
    if group is None or not tensors:
        return
    flat = torch.cat([t.reshape(-1) for t in tensors])
    dist.all_reduce(flat, group=group)
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def normalize(scores: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Converts scores u `[B]` to weights w `[B]` (eqs. 13 and 14 of Ren et al. 2018).

    Scores are clipped at zero and scaled to sum 1, over all processes of the group if there is one. If no score is
    positive, all weights are zero.
    """
    clipped = scores.clamp(min=0)
    total = clipped.sum()
    sum_over([total], group)
    return torch.where(total > 0, clipped / total.where(total > 0, torch.ones_like(total)), clipped)


def by_tensor(model: nn.Module, replacement: dict[Tensor, Tensor]) -> dict[str, Tensor]:
    """Returns the argument of `functional_call` that replaces these parameters and buffers wherever modules share them.

    The `tie_weights` option of `functional_call` is not used. It replaces the tensors of a module that is registered
    under two names twice, and then cannot restore them.
    """
    found = {}
    for prefix, module in model.named_modules():  # yields each module once
        for own in (module.named_parameters, module.named_buffers):
            tensors = own(prefix, recurse=False, remove_duplicate=False)
            found.update({name: replacement[t] for name, t in tensors if t in replacement})
    return found


def _eagerly() -> AbstractContextManager:
    """Context manager that runs compiled modules eagerly: tangents cannot pass through the code of `torch.compile`."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


class _Buffers:
    """A copy of a model's buffers, to restore them later."""

    def __init__(self, model: nn.Module) -> None:
        found = [(m, name, b) for m in model.modules() for name, b in m._buffers.items() if b is not None]
        self.found = [(m, name, b, b.clone()) for m, name, b in found]

    def put_back(self) -> None:
        for module, name, buffer, before in self.found:
            module._buffers[name] = buffer
            # by .data, which keeps the version of the buffer: otherwise a graph that has saved it would raise an error
            buffer.data.copy_(before)


def meta_gradient(
    model: nn.Module,
    meta_x: Tensor,
    meta_y: Tensor,
    loss: PerExampleLoss = cross_entropy,
    group: dist.ProcessGroup | None = None,
    names: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """Returns the gradient of the mean meta loss at θ, by name of each trainable parameter, without changing the model.

    The pass runs in the current mode of the model (train or eval). Afterwards the buffers and the random state are
    restored, so that running statistics, `.grad` and later random numbers are the same as without this pass. Python
    attributes that `forward` changes are not restored. A dropout mask of the meta pass is drawn from the same random
    state as that of the next training pass.

    Args:
        model: any module; parameters with `requires_grad` are θ.
        meta_x: meta inputs `[M, ...]`.
        meta_y: meta labels `[M]`.
        loss: per-example loss, (model output `[M, ...]`, labels `[M]`) -> `[M]`.
        group: processes that share one step. The mean is over the meta examples of all of them.
        names: the parameters that θ consists of. None: all trainable parameters.

    Raises:
        ValueError: θ is empty.
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
        # a parameter that the loss does not depend on, such as an unused head, has derivative zero
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
    """Runs one training forward pass; returns losses ℓᵢ(θ) `[B]` and the derivatives ⟨direction, ∇θ ℓᵢ(θ)⟩ `[B]`.

    The losses have their graph, the derivatives are detached. In every other respect this is the plain forward pass:
    running statistics and the random state advance as usual. `direction` maps names of parameters to tensors of the
    same shapes.
    """

    def checked(output: Tensor, labels: Tensor) -> Tensor:
        losses = loss(output, labels)
        if losses.shape != labels.shape[:1]:
            raise ValueError(
                f"the loss must give one value per example, {list(labels.shape[:1])}, but gave {list(losses.shape)}"
            )
        return losses

    # in mixed precision, weighing after the backward pass would round differently from plain training
    usual = uses_batch_statistics(model) or torch.is_autocast_enabled(x.device.type)
    return _along(model, x, y, direction, checked, 1 if usual else 0)


def outputs_along(model: nn.Module, x: Tensor, direction: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Runs one training forward pass; returns the outputs `[B, ...]` and their derivatives along `direction`.

    The outputs have their graph, the derivatives are detached. This is `losses_along` without a loss: the derivative
    ⟨direction, ∇θ ℓᵢ⟩ is the inner product of ∂ℓᵢ/∂fᵢ and the derivative of fᵢ.
    """
    return _along(model, x, x, direction, lambda output, _: output, 1)


def _along(
    model: nn.Module, x: Tensor, y: Tensor, direction: dict[str, Tensor], loss: PerExampleLoss, first: int
) -> tuple[Tensor, Tensor]:
    """Computes `losses_along` by the first method in `_METHODS`, from place `first` on, that supports the model."""
    # for restoring the model's buffers and the random state after a pass that met an operator without a rule
    buffers = _Buffers(model)
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    stream, streams = torch.get_rng_state(), {d: torch.cuda.get_rng_state(d) for d in devices}
    while True:
        method = max(first, _METHOD_OF.get(model, 0))
        try:
            with _eagerly():
                losses, slopes = _METHODS[method](model, x, y, direction, loss)
            return losses, slopes.detach()
        except RuntimeError as error:
            # TorchScript wraps every exception in an error type of its own
            scripted = "TorchScript" in str(error)
            if not (scripted or isinstance(error, NotImplementedError)) or method + 1 == len(_METHODS):
                raise
            _METHOD_OF[model] = len(_METHODS) - 1 if scripted or isinstance(error, OnlyInReverse) else method + 1
            description = (
                "", "a forward pass with tangents, which costs a quarter more",
                "a forward pass whose tangents are recorded too", "two reverse passes",
            )[_METHOD_OF[model]]  # fmt: skip
            warnings.warn(f"the weights come from {description}: {str(error).splitlines()[0]}", stacklevel=4)
        buffers.put_back()
        torch.set_rng_state(stream)
        for device, state in streams.items():
            torch.cuda.set_rng_state(state, device)


def _by_rules(
    model: nn.Module, x: Tensor, y: Tensor, direction: dict[str, Tensor], loss: PerExampleLoss
) -> tuple[Tensor, Tensor]:
    """Computes `losses_along` by one recorded forward pass whose tangents are not recorded."""
    parameters = dict(model.named_parameters())
    with one_pass(RULES):
        duals: dict[Tensor, Tensor] = {parameters[name]: Dual(parameters[name], d) for name, d in direction.items()}
        losses = loss(functional_call(model, by_tensor(model, duals), (x,), tie_weights=False), y)
    slopes = tangent_of(losses)
    return primal_of(losses), torch.zeros_like(primal_of(losses)) if slopes is None else slopes


class _Watch(TorchFunctionMode):
    """Raises an error if PyTorch's forward mode would differentiate a value that is constant in a backward pass."""

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
    """Computes `losses_along` by PyTorch's forward-mode differentiation."""
    parameters = dict(model.named_parameters())
    # among the attention kernels, only MATH has a forward-mode rule
    with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH), _Watch():
        duals: dict[Tensor, Tensor] = {
            parameters[name]: forward_ad.make_dual(parameters[name], d) for name, d in direction.items()
        }
        output = functional_call(model, by_tensor(model, duals), (x,), tie_weights=False)
        dual_losses = loss(output, y)
        losses, tangents = forward_ad.unpack_dual(dual_losses)
        # a tangent of None means that the losses do not depend on any trainable parameter
        slopes = torch.zeros_like(losses) if tangents is None else tangents
        return losses, slopes


def _by_reverse(
    model: nn.Module, x: Tensor, y: Tensor, direction: dict[str, Tensor], loss: PerExampleLoss
) -> tuple[Tensor, Tensor]:
    """Computes `losses_along` by two reverse passes."""
    with sdpa_kernel(SDPBackend.MATH):  # the only attention kernel that can be differentiated twice
        losses = loss(model(x), y)
    parameters = dict(model.named_parameters())
    v = torch.zeros_like(losses, requires_grad=True)
    inputs = [parameters[name] for name in direction]
    products = torch.autograd.grad(losses, inputs, v, create_graph=True, allow_unused=True)  # Jᵀv, by parameter
    inner = [(p * d).sum() for p, d in zip(products, direction.values(), strict=True) if p is not None]
    return losses, torch.autograd.grad(sum(inner, v.sum() * 0), v)[0]


_METHODS = (separable_losses_along, _by_rules, recorded_losses_along, _by_reverse)


def reweighted_losses(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    meta_x: Tensor,
    meta_y: Tensor,
    loss: PerExampleLoss = cross_entropy,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns losses and weights of a training batch by Algorithm 1 of Ren et al. (2018).

    Call backward on `(weights * losses).sum()`.

    Args:
        model: any module of torch operations, in the mode in which it is to be trained.
        x: training inputs `[B, ...]`.
        y: training labels `[B]`.
        meta_x: meta inputs `[M, ...]`: the clean, balanced examples, denoted g in the paper.
        meta_y: meta labels `[M]`.
        loss: per-example loss, (model output, labels) -> one value per example; cross-entropy by default.
        group: processes that share one step. Each has its part of the batch, and its part or all of the meta batch. The
            weights are those of the whole batch. *Sum* the gradients over the processes afterwards. As usual in
            distributed training, batch norm in train mode uses only the part of its own process.

    Returns:
        losses `[B]`, with the graph of the one training forward pass, and weights `[B]`. The weights are detached,
        non-negative and sum to 1 over the group. They are all zero if no example's gradient has a positive inner
        product with the meta gradient. Callers can skip or count such a step.
    """
    losses, slopes = losses_along(model, x, y, meta_gradient(model, meta_x, meta_y, loss, group), loss)
    return losses, normalize(slopes, group)

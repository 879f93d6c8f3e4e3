"""Forward-mode differentiation of a recorded forward pass, in which the tangents are computed but not recorded.

When PyTorch's own forward-mode differentiation (`torch.autograd.forward_ad`) runs on a pass that is recorded for
backward, it records the operators of the tangents too. No backward pass here needs them. In this file each operator of
the network runs once, recorded as usual, and a rule computes its tangent without a graph. There are six kinds of rules:

- linear in its tensors (reshape, cat, average pooling): the same operator on the tangents;
- a sum: the sum of the tangents;
- bilinear (convolution, linear layer, product): f(ẋ, w) + f(x, ẇ);
- element by element (activations, dropout): the Jacobian is diagonal and therefore symmetric, so Jẋ = Jᵀẋ, which is one
  step of the backward pass through the node that has just been recorded, with the same dropout mask;
- batch norm: its Jacobian in x, γr(I − 11ᵀ/n − x̂x̂ᵀ/n), is symmetric too; x̂γ̇ + β̇ is a batch norm of x;
- other functions that depend only on their arguments: PyTorch's forward mode on detached copies of the arguments.

An operator without a rule raises `UnknownOperator`, and so does a change of a tensor through another tensor that shares
its memory. The caller then uses another exact method. This file needs only torch.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import get_gradient_edge, increment_version, saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map

from dermrw.reweight.dual import Dual, Rules, UnknownOperator, primal_of, tangent_of


def _result(primal: Any, tangent: Any) -> Any:
    """Pairs the result of an operator, one tensor or several, with its tangents."""
    if isinstance(primal, Tensor):
        if primal.is_complex():
            raise UnknownOperator("complex numbers have no rule")
        return Dual(primal, tangent) if tangent is not None and primal.is_floating_point() else primal
    if not isinstance(primal, tuple | list):
        return primal
    return type(primal)(_result(p, t) for p, t in zip(primal, tangent, strict=True))


def _changeable(x: Any) -> None:
    """Raises `UnknownOperator` unless an operator may change `x` in place."""
    if not isinstance(x, Dual) or x.primal._is_view():
        raise UnknownOperator("a view, or a tensor without a tangent, is changed in place")


def _changed(x: Dual, tangent: Tensor | None) -> Dual:
    """Returns `x` with its new tangent after an operator has changed it in place."""
    x.tangent = None if tangent is None else tangent.to(x.primal.dtype)
    x.version = x.primal._version
    return x


def _linear(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Rule f(ẋ) for functions that are jointly linear in their floating-point tensors. A missing tangent is zero."""
    primal = func(*tree_map(primal_of, args), **tree_map(primal_of, kwargs))
    if all(tangent_of(a) is None for a in tree_leaves((args, kwargs))):
        return primal

    def tangent(a: Any) -> Any:
        if not isinstance(a, Tensor) or not a.is_floating_point():
            return a
        t = tangent_of(a)
        return torch.zeros_like(primal_of(a)) if t is None else t

    with torch.no_grad():
        return _result(primal, func(*tree_map(tangent, args), **tree_map(tangent, kwargs)))


def _sum(sign: int, swapped: bool = False, in_place: bool = False) -> Callable[..., Any]:
    """Returns the rule of a + αb, a − αb or, if swapped, b − a, with broadcasting."""

    def rule(func: Any, a: Any, b: Any, *, alpha: float = 1) -> Any:
        if in_place:
            _changeable(a)
        first, second, factor = tangent_of(a), tangent_of(b), sign * alpha
        if swapped:
            first, second = second, first
        primal = func(primal_of(a), primal_of(b), **({} if alpha == 1 else {"alpha": alpha}))
        with torch.no_grad():
            if second is None:
                tangent = None if first is None else first.expand(primal.shape)
            elif first is None:
                tangent = (factor * second).expand(primal.shape)
            else:
                tangent = torch.add(first, second, alpha=factor)
        return _changed(a, tangent) if in_place else _result(primal, tangent)

    return rule


def _product(in_place: bool = False) -> Callable[..., Any]:
    """Returns the rule of a·b, elementwise or of matrices: ȧb + aḃ."""

    def rule(func: Any, a: Any, b: Any) -> Any:
        if in_place:
            _changeable(a)
        first, second, plain = primal_of(a), primal_of(b), torch.mul if in_place else func
        with torch.no_grad():
            parts = [plain(t, second) for t in [tangent_of(a)] if t is not None]
            parts += [plain(first, t) for t in [tangent_of(b)] if t is not None]
            tangent = None if not parts else parts[0] if len(parts) == 1 else parts[0].add_(parts[1])
        primal = func(first, second)
        return _changed(a, tangent) if in_place else _result(primal, tangent)

    return rule


def _quotient(func: Any, a: Any, b: Any) -> Any:
    """Rule of a / b, with a fast path for constant b."""
    if tangent_of(b) is not None:
        return _generic(func, a, b)
    with torch.no_grad():
        tangent = func(a.tangent, primal_of(b))
    return _result(func(primal_of(a), primal_of(b)), tangent)


def _layer(func: Any, input: Any, weight: Any, bias: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Rule of a convolution or linear layer: f(x, ẇ) + ḃ + f(ẋ, w)."""
    x, w = primal_of(input), primal_of(weight)
    primal = func(x, w, primal_of(bias), *args, **kwargs)
    of_x, of_w, of_b = tangent_of(input), tangent_of(weight), tangent_of(bias)
    tangent = None
    with torch.no_grad():
        if of_w is not None or of_b is not None:
            tangent = func(x, torch.zeros_like(w) if of_w is None else of_w, of_b, *args, **kwargs)
        if of_x is not None:
            through = func(of_x, w, None, *args, **kwargs)
            tangent = through if tangent is None else tangent.add_(through)
    return _result(primal, tangent)


_within: list[bool] = []  # not empty while `_through_node` runs


def _hooked() -> bool:
    """Returns whether hooks handle the tensors that nodes save, as under activation checkpointing."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def _elsewhere(func: Callable[[Tensor], Tensor], x: Tensor, tangent: Tensor) -> Tensor:
    """Returns Jᵀẋ computed on a copy, for use if `_hooked()`, because the node would start the recomputation."""
    with torch.enable_grad(), saved_tensors_hooks(lambda t: t, lambda t: t):
        copy = x.detach().requires_grad_()
        output = func(copy)
        return torch.autograd.grad(output, copy, tangent.to(output.dtype))[0]


def _through_node(output: Tensor, edge: Any, tangent: Tensor) -> Tensor:
    """Returns Jᵀẋ by the backward step of the node that computed `output`, without changing the node."""
    _within.append(True)
    try:
        return torch.autograd.grad(output, edge, tangent.to(output.dtype), retain_graph=True)[0]
    finally:
        _within.pop()


def _register_hook(func: Any, x: Any, hook: Callable[[Tensor], Any]) -> Any:
    """Registers one of torch's own hooks on the gradient of `x`; the steps of `_through_node` do not call it."""
    return func(x.primal, lambda gradient: None if _within else hook(gradient))


def _elementwise(func: Any, input: Any, *args: Any, **kwargs: Any) -> Any:
    """Rule of f(x) element by element, in place or not."""
    x, tangent = input.primal, input.tangent
    if kwargs.get("inplace") and x._is_view():
        # after an in-place change of a view, its node is a different one. A new tensor is computed instead, and the
        # version of the old one is raised, so that a later use of it or of its base raises an error
        kwargs = {**kwargs, "inplace": False}
        increment_version(x)
    if _hooked():
        stream = torch.get_rng_state()
        apart = {**kwargs, "inplace": False} if kwargs.get("inplace") else kwargs
        tangent_out = _elsewhere(lambda copy: func(copy, *args, **apart), x, tangent)
        if not torch.equal(stream, torch.get_rng_state()) or func.__name__.endswith("_") or x.is_cuda:
            raise UnknownOperator(f"{func.__name__} in a checkpointed part has no rule")
        y = func(x, *args, **kwargs)
        if y is x:
            _changeable(input)
        return _changed(input, tangent_out) if y is x else _result(y, tangent_out)
    edge, before = get_gradient_edge(x), x._version
    y = func(x, *args, **kwargs)
    if y is x:
        if x._version == before:  # dropout in eval mode
            return _changed(input, tangent)
        _changeable(input)
        return _changed(input, _through_node(y, edge, tangent))
    return _result(y, _through_node(y, edge, tangent))


def _batch_norm(
    func: Any, input: Any, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Any:  # fmt: skip
    x, gamma, beta = primal_of(input), primal_of(weight), primal_of(bias)
    y = func(x, running_mean, running_var, gamma, beta, training, momentum, eps)
    of_x, of_gamma, of_beta = tangent_of(input), tangent_of(weight), tangent_of(bias)
    stats = (None, None) if training else (running_mean, running_var)  # the running statistics must not be updated here
    tangent = None
    if of_x is not None and _hooked():
        tangent = _elsewhere(lambda copy: func(copy, *stats, gamma, None, training, 0.0, eps), x, of_x)
    elif of_x is not None:
        tangent = _through_node(y, get_gradient_edge(x), of_x)
    if of_gamma is not None or of_beta is not None:
        with torch.no_grad():
            scale = torch.zeros_like(gamma) if of_gamma is None else of_gamma
            shift = torch.zeros_like(beta) if of_beta is None else of_beta
            affine = func(x, *stats, scale, shift, training, 0.0, eps)
            tangent = affine if tangent is None else tangent.add_(affine)
    return _result(y, tangent)


def _layer_norm(func: Any, input: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    """Rule of y = γx̂ + β, where the Jacobian of x̂ in x is symmetric."""
    x, gamma = primal_of(input), primal_of(weight)
    y = func(x, shape, gamma, primal_of(bias), eps)
    of_x, of_gamma, of_beta = tangent_of(input), tangent_of(weight), tangent_of(bias)
    constant = x.detach().requires_grad_(of_x is not None)
    normal = func(constant, shape, None, None, eps)  # x̂
    tangent = torch.zeros_like(y)
    with torch.no_grad():
        if of_x is not None:
            through = torch.autograd.grad(normal, constant, of_x.to(normal.dtype))[0]
            tangent = tangent + through if gamma is None else torch.addcmul(tangent, through, gamma.to(through.dtype))
        if of_gamma is not None:
            tangent = torch.addcmul(tangent, normal.to(of_gamma.dtype), of_gamma)
        if of_beta is not None:
            tangent = tangent + of_beta
    return _result(y, tangent.to(y.dtype))


def _generic(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Rule for any function that depends only on its arguments, by PyTorch's forward mode on detached copies."""
    if kwargs.get("inplace") or kwargs.get("out") is not None:
        raise UnknownOperator(f"{func.__name__} in place has no rule")
    device = next(a.device for a in tree_leaves((args, kwargs)) if isinstance(a, Dual))
    streams = torch.cuda if device.type == "cuda" else torch
    before = streams.get_rng_state()
    primal = func(*tree_map(primal_of, args), **tree_map(primal_of, kwargs))
    if not torch.equal(before, streams.get_rng_state()):
        raise UnknownOperator(f"{func.__name__} draws random numbers")
    with torch.no_grad(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):

        def dual(a: Any) -> Any:
            if not isinstance(a, Tensor):
                return a
            t = tangent_of(a)
            if not isinstance(a, Dual):
                return a.detach().clone()  # it may be a buffer, which the first call has updated already
            return a.primal.detach() if t is None else forward_ad.make_dual(primal_of(a).detach(), t)

        again = func(*tree_map(dual, args), **tree_map(dual, kwargs))
        tangent = tree_map(lambda o: forward_ad.unpack_dual(o).tangent if isinstance(o, Tensor) else None, again)
    return _result(primal, tangent)


def _constant(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Rule for results with derivative zero: comparisons, indices, new tensors and detached tensors."""
    return func(*tree_map(primal_of, args), **tree_map(primal_of, kwargs))


def _functions(names: str) -> list[Any]:
    """Returns the functions of these names in `torch`, `torch.nn.functional` and among the methods of `Tensor`."""
    return [getattr(place, name) for name in names.split() for place in (torch, F, Tensor) if hasattr(place, name)]


_TABLE: tuple[tuple[Callable[..., Any], str], ...] = (
    (_constant, """detach eq ne lt le gt ge __eq__ __ne__ __lt__ __le__ __gt__ __ge__ argmax argmin argsort isnan
        isfinite zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_empty
        new_full"""),
    (_linear, """reshape view flatten unflatten permute transpose t squeeze unsqueeze swapaxes movedim expand expand_as
        contiguous clone to float double half bfloat16 type type_as neg __neg__ sum mean cat concat stack hstack chunk
        split unbind narrow select index_select gather __getitem__ roll flip avg_pool1d avg_pool2d adaptive_avg_pool1d
        adaptive_avg_pool2d interpolate pixel_shuffle channel_shuffle repeat tile repeat_interleave diagonal tril triu
        view_as reshape_as"""),
    (_sum(1), "add __add__ __radd__"),
    (_sum(-1), "sub __sub__"),
    (_sum(-1, swapped=True), "rsub __rsub__"),
    (_sum(1, in_place=True), "add_ __iadd__"),
    (_sum(-1, in_place=True), "sub_ __isub__"),
    (_product(), "mul __mul__ __rmul__ matmul __matmul__ bmm mm"),
    (_product(in_place=True), "mul_ __imul__"),
    (_quotient, "div __truediv__ true_divide"),
    (_layer, "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear"),
    (_elementwise, """relu relu_ relu6 hardtanh silu hardswish hardsigmoid mish gelu sigmoid sigmoid_ tanh tanh_ elu
        selu celu leaky_relu softplus softsign logsigmoid exp log log1p expm1 sqrt rsqrt abs sin cos square reciprocal
        dropout dropout1d dropout2d dropout3d"""),
    (_batch_norm, "batch_norm"),
    (_layer_norm, "layer_norm"),
    (_generic, """max_pool1d max_pool2d max_pool3d adaptive_max_pool2d softmax log_softmax logsumexp cross_entropy
        nll_loss binary_cross_entropy_with_logits mse_loss l1_loss smooth_l1_loss kl_div group_norm instance_norm
        rms_norm local_response_norm normalize scaled_dot_product_attention multi_head_attention_forward einsum pow
        __pow__ clamp clamp_min clamp_max maximum minimum amax amin max min var std norm where prelu addmm baddbmm
        cumsum prod cosine_similarity pad masked_fill"""),
)  # fmt: skip


def _rules() -> Rules:
    """Returns the rules of `_TABLE`. If two lines list the same function, the first line applies."""
    by_function: dict[Any, Callable[..., Any]] = {}
    for rule, names in _TABLE:
        for function in _functions(names):
            by_function.setdefault(function, rule)
    by_function[Tensor.register_hook] = _register_hook
    queries = "size dim numel nelement ndimension stride is_contiguous is_floating_point is_complex __len__"
    return Rules(by_function, set(_functions(queries)))


RULES = _rules()

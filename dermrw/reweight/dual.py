"""`Dual`: a tensor with a tangent, for a recorded forward pass that also computes tangents.

This file only dispatches each call of a torch function to its rule. `one_pass` takes the table of rules, which is in
`tangents.py`. This file needs only torch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_any, tree_map


class Rules(NamedTuple):
    """Rules to apply torch functions to `Dual`s."""

    by_function: dict[Any, Callable[..., Any]]  # rule(func, *args, **kwargs) returns the result of func as a `Dual`
    queries: set[Any]  # functions that return a property of a tensor, such as its shape, not of its values


class UnknownOperator(NotImplementedError):
    """An operator of the network has no rule."""


class OnlyInReverse(UnknownOperator):
    """An operation that forward-mode differentiation would treat differently from a backward pass.

    These are operations under `no_grad` (a constant, or the inside of an `autograd.Function`), gradients taken without
    `create_graph`, and hooks that may change a gradient.
    """


_passes = 0  # number of passes so far
_open = 0  # number of the current pass; 0 if there is none
_rules = Rules({}, set())  # rules of the current pass


@contextmanager
def one_pass(rules: Rules) -> Iterator[None]:
    """Context manager in which `Dual`s have tangents, computed by `rules`.

    If a model keeps a `Dual` after the end, it is used as its primal alone.
    """
    global _passes, _open, _rules
    before = _open, _rules
    _passes += 1
    _open, _rules = _passes, rules
    try:
        yield
    finally:
        _open, _rules = before


class Dual(Tensor):
    """A tensor of the recorded pass (`primal`) and its derivative along a direction (`tangent`, or None for zero).

    Python code that calls torch functions can use it in place of `primal`. It has no memory of its own. A computation
    that `__torch_function__` does not see, and that would lose the tangent, therefore raises an error.
    """

    primal: Tensor
    tangent: Tensor | None
    version: int  # version of `primal` when `tangent` was computed; differs after a change through another tensor
    made_in: int  # number of the pass that created it

    @staticmethod
    def __new__(cls, primal: Tensor, tangent: Tensor | None) -> "Dual":  # noqa: D102
        self = Tensor._make_wrapper_subclass(
            cls, primal.shape, primal.stride(), primal.storage_offset(), dtype=primal.dtype, device=primal.device
        )
        self.primal, self.tangent, self.version, self.made_in = primal, tangent, primal._version, _open
        return self

    def __init__(self, primal: Tensor, tangent: Tensor | None) -> None:
        pass

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Dual({self.primal!r}, {self.tangent!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise UnknownOperator(f"{func} was called from outside Python")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(_if_of_this_pass, (args, kwargs or {}))
        if not tree_any(lambda a: isinstance(a, Dual), (args, kwargs)):
            return func(*args, **kwargs)
        if func in _rules.queries or getattr(func, "__name__", "") == "__get__":
            value = func(*tree_map(primal_of, args), **tree_map(primal_of, kwargs))
            if isinstance(value, Tensor) and value.is_floating_point():
                raise UnknownOperator(f"the attribute {getattr(func.__self__, '__name__', func)} has no rule")
            return value
        name = getattr(func, "__name__", str(func))
        if not torch.is_grad_enabled() or only_in_reverse(func, args, kwargs):
            raise OnlyInReverse(f"{name} was called without recording, or as a hook")
        if tree_any(lambda a: isinstance(a, Dual) and a.version != a.primal._version, (args, kwargs)):
            raise UnknownOperator(f"{name} was given a tensor that another name has changed")
        if func not in _rules.by_function:
            raise UnknownOperator(f"{name} has no rule")
        try:
            return _rules.by_function[func](func, *args, **kwargs)
        except (TypeError, AttributeError) as error:
            # either the rule does not support this call, or the call is wrong; the next method will then raise
            raise UnknownOperator(f"{name}: {error}") from None


def only_in_reverse(func: Any, args: Any, kwargs: Any) -> bool:
    """Returns whether a call treats a gradient as a constant, or registers a hook that may change a gradient.

    torch's own hooks, such as those of its FLOP counter, do not change gradients.
    """
    if func is torch.autograd.grad:
        return not kwargs.get("create_graph")
    hook = kwargs.get("hook", args[-1] if args else None)
    return func is Tensor.register_hook and not getattr(hook, "__module__", "").startswith("torch.")


def _if_of_this_pass(value: Any) -> Any:
    return value.primal if isinstance(value, Dual) and value.made_in != _open else value


def primal_of(value: Any) -> Any:
    """Returns the recorded tensor of a `Dual`, and any other value unchanged."""
    return value.primal if isinstance(value, Dual) else value


def tangent_of(value: Any) -> Any:
    """Returns the tangent of a `Dual` (None if it is zero), and None for any other value."""
    return value.tangent if isinstance(value, Dual) else None

"""A tensor with a tangent: what a recorded forward pass runs on when its tangents are carried beside it.

`dermrw.tangents` holds the rules; this file only hands each call on torch to its rule. It needs torch alone.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_any, tree_map

# by function of torch: rule(func, *args, **kwargs) does what func does, on `Dual`s
RULES: dict[Any, Callable[..., Any]] = {}
# functions that tell something of a tensor, and return no tensor that depends on it
TELL: set[Any] = set()


class UnknownOperator(NotImplementedError):
    """An operator of the network has no rule here."""


class UnrecordedPass(UnknownOperator):
    """Under `no_grad`: a constant of the backward pass, or the inside of an `autograd.Function`."""


class Dual(Tensor):
    """A tensor of the recorded pass (`primal`) and its derivative along a direction (`tangent`, or None for zero).

    It stands for `primal` in whatever Python code calls torch on it. It has no memory of its own, so that nothing can
    compute on it and miss the tangent: what isn't seen by `__torch_function__` raises.
    """

    primal: Tensor
    tangent: Tensor | None
    version: int  # of `primal` when `tangent` was worked out; another one means that another name has changed it

    @staticmethod
    def __new__(cls, primal: Tensor, tangent: Tensor | None) -> "Dual":  # noqa: D102
        self = Tensor._make_wrapper_subclass(
            cls, primal.shape, primal.stride(), primal.storage_offset(), dtype=primal.dtype, device=primal.device
        )
        self.primal, self.tangent, self.version = primal, tangent, primal._version
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
        kwargs = kwargs or {}
        if func in TELL or getattr(func, "__name__", "") == "__get__":
            value = func(*tree_map(primal_of, args), **tree_map(primal_of, kwargs))
            if isinstance(value, Tensor) and value.is_floating_point():
                raise UnknownOperator(f"the attribute {func} has no rule")
            return value
        name = getattr(func, "__name__", str(func))
        if not torch.is_grad_enabled():
            raise UnrecordedPass(f"{name} was called without recording")
        if tree_any(lambda a: isinstance(a, Dual) and a.version != a.primal._version, (args, kwargs)):
            raise UnknownOperator(f"{name} was given a tensor that another name has changed")
        if func not in RULES:
            raise UnknownOperator(f"{name} has no rule")
        try:
            return RULES[func](func, *args, **kwargs)
        except (
            TypeError,
            AttributeError,
        ) as error:  # called in a way that the rule doesn't know, or wrongly, as the next way will tell
            raise UnknownOperator(f"{name}: {error}") from None


def primal_of(value: Any) -> Any:
    """The recorded tensor of a `Dual`; any other value as it is."""
    return value.primal if isinstance(value, Dual) else value


def tangent_of(value: Any) -> Any:
    """The tangent of a `Dual`, None where it is zero; None for any other value."""
    return value.tangent if isinstance(value, Dual) else None

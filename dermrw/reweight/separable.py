"""The derivatives of the meta step for networks that treat the examples of a batch independently.

Without batch statistics (batch norm in eval mode, layer or group norm), the loss ℓᵢ of an example depends on its own
activations alone. Then one backward pass of Σ ℓᵢ gives δ, the gradients of every layer's output, in which the rows of
example i belong to ℓᵢ. For a layer z = A(a; θ) that is linear in its parameters θ, with input a,

    ⟨g, ∇θ ℓᵢ⟩ = ⟨A(aᵢ; g), δᵢ⟩,    ∇θ Σ wᵢ ℓᵢ = Σ wᵢ ∂⟨A(aᵢ; θ), δᵢ⟩/∂θ.

The first is one more application of the layer, with the meta gradient g in place of its parameters. The second is the
layer's own gradient for δᵢ scaled by wᵢ. With F the cost of a forward pass, the forward pass, the backward pass for δ,
the application to g and the gradient cost F each: 4F, where `tangents` needs 5F and plain training 3F. The gradient is
computed from the examples whose weight is not zero. Where most weights are zero, the step costs little more than 3F.
All inputs and δ of convolutions and linear layers are held at the same time.

The idea is that of In-Run Data Shapley (Wang et al., arXiv 2406.11011), here for one inner product per example and with
the weighted gradient from the same backward pass.

A layer is recorded where a torch function receives a trainable parameter. A function without a rule, a parameter that
two functions share, and a network in which examples turn out to influence each other raise `NotSeparable`.
"""

import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from dermrw.reweight.dual import UnknownOperator, only_in_reverse

Gradients = list[tuple[Tensor, Tensor]]  # parameter, gradient

# networks whose examples were seen not to influence each other
# for each model the number of checks in a mode (the training flags of its modules); MOST_CHECKS: no more are needed
_CHECKED: "weakref.WeakKeyDictionary[nn.Module, dict[tuple[bool, ...], int]]" = weakref.WeakKeyDictionary()
MOST_CHECKS = 5  # of a model whose gradients keep being zero somewhere


class NotSeparable(UnknownOperator):
    """The examples of the batch influence each other, or a layer has no rule here."""


def uses_batch_statistics(model: nn.Module) -> bool:
    """Returns whether a batch norm of the model computes its statistics from the batch."""
    return any(
        isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)
        for module in model.modules()
    )


class _Layer:
    """A call of a torch function with trainable parameters, and what its two formulas need."""

    def __init__(self, parameters: Mapping[str, Tensor | None], examples: int) -> None:
        self.parameters = parameters  # by the name of the argument; None where there is none or it is not trainable
        self.examples = examples

    def receive(self, delta: Tensor, direction: Mapping[Tensor, Tensor]) -> Tensor:
        """Takes δ, which has the shape of the output, and returns the slopes along the direction `[B]`."""
        raise NotImplementedError

    def gradients(self, weights: Tensor) -> Gradients:
        """Returns the gradients of Σ wᵢ ℓᵢ for weights `[B]`."""
        raise NotImplementedError

    def along(self, direction: Mapping[Tensor, Tensor]) -> dict[str, Tensor | None]:
        """Returns the direction by the name of the argument."""
        return {name: None if p is None else direction.get(p) for name, p in self.parameters.items()}

    def per_example(self, values: Tensor) -> Tensor:
        """Returns the sums of values `[B k, …]` over everything but the example `[B]`."""
        rows = values.sum(tuple(range(1, values.ndim)))  # a reshape would copy maps in channels-last layout
        return rows.view(self.examples, -1).sum(1)


class _Product(_Layer):
    """A convolution or a linear layer: holds its input and δ until the weights are known."""

    def __init__(
        self, parameters: Mapping[str, Tensor | None], examples: int, x: Tensor, weight: Tensor, options: dict[str, Any]
    ) -> None:
        super().__init__(parameters, examples)
        self.x, self.weight, self.options = x, weight, options
        self.version = x._version
        self.delta: Tensor | None = None

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, None, **self.options) if self.options else F.linear(x, weight)

    def receive(self, delta: Tensor, direction: Mapping[Tensor, Tensor]) -> Tensor:
        _unchanged(self.x, self.version)
        self.x = self.x.to(delta.dtype)
        self.delta = delta
        g = self.along(direction)
        slopes = torch.zeros(self.examples, dtype=delta.dtype, device=delta.device)
        if g["weight"] is not None:
            slopes = self.per_example(self.apply(self.x, g["weight"].to(delta.dtype)).mul_(delta))
        if g["bias"] is not None:
            slopes = slopes + self.per_channel(delta) @ g["bias"].to(delta.dtype)
        return slopes

    def per_channel(self, delta: Tensor) -> Tensor:
        """Returns the sums of δ by example and output channel `[B, O]`."""
        if self.options:
            return delta.sum((2, 3)).view(self.examples, -1, delta.shape[1]).sum(1)
        return delta.reshape(self.examples, -1, delta.shape[-1]).sum(1)

    def gradients(self, weights: Tensor) -> Gradients:
        assert self.delta is not None
        found: Gradients = []
        weight, bias = self.parameters["weight"], self.parameters["bias"]
        rows = weights.to(self.delta).repeat_interleave(len(self.delta) // self.examples)
        weighted = rows.nonzero().flatten()  # most weights of reweighting are zero, and their rows add nothing
        delta = _rows(self.delta, weighted) * rows[weighted].view(-1, *[1] * (self.delta.ndim - 1))
        if weight is not None and not len(weighted):
            found.append((weight, torch.zeros_like(weight)))
        elif weight is not None and self.options:
            o = self.options
            found.append((weight, torch.ops.aten.convolution_backward(
                delta, _rows(self.x, weighted), self.weight.to(delta.dtype), None, o["stride"], o["padding"],
                o["dilation"], False, [0, 0], o["groups"], [False, True, False],
            )[1]))  # fmt: skip
        elif weight is not None:
            found.append((weight, delta.flatten(0, -2).T @ _rows(self.x, weighted).flatten(0, -2)))
        if bias is not None:
            found.append((bias, delta.sum((0, 2, 3)) if self.options else delta.flatten(0, -2).sum(0)))
        return found


class _Affine(_Layer):
    """A scale and a shift after a normalisation: z = γ x̂ + β. It keeps the sums of x̂ δ and of δ by example."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor | None],
        examples: int,
        x: Tensor,
        normal: Callable[[Tensor], Tensor],
        last_axes: int,
    ) -> None:
        super().__init__(parameters, examples)
        self.x: Tensor | None = x
        self.version = x._version
        self.normal = normal  # x -> x̂, computed again when δ is known
        self.last_axes = last_axes  # number of axes of the parameters, at the end (layer norm); 0: axis 1
        self.sums: dict[str, Tensor] = {}  # [B, parameters]

    def receive(self, delta: Tensor, direction: Mapping[Tensor, Tensor]) -> Tensor:
        assert self.x is not None
        _unchanged(self.x, self.version)
        if self.parameters["weight"] is not None:
            self.sums["weight"] = self._summed(self.normal(self.x).to(delta.dtype) * delta)
        if self.parameters["bias"] is not None:
            self.sums["bias"] = self._summed(delta)
        self.x = None
        parts = [self.sums[n] @ g.flatten().to(delta.dtype) for n, g in self.along(direction).items() if g is not None]
        return sum(parts, torch.zeros(self.examples, dtype=delta.dtype, device=delta.device))

    def _summed(self, values: Tensor) -> Tensor:
        if self.last_axes:
            return values.reshape(self.examples, -1, *values.shape[-self.last_axes :]).sum(1).flatten(1)
        return values.reshape(*values.shape[:2], -1).sum(2).view(self.examples, -1, values.shape[1]).sum(1)

    def gradients(self, weights: Tensor) -> Gradients:
        found: Gradients = []
        for name, sums in self.sums.items():
            parameter = self.parameters[name]
            assert parameter is not None
            found.append((parameter, (weights.to(sums) @ sums).view_as(parameter)))
        return found


class _Elementwise(_Layer):
    """A parameter that is multiplied with activations, as layer scale is, or added to them, or expanded as a token."""

    def __init__(self, parameter: Tensor, shape: torch.Size, examples: int, x: Tensor | None) -> None:
        super().__init__({"weight": parameter}, examples)
        self.shape = shape  # in which the parameter was used
        self.x = x  # the other factor; None: the parameter is added
        self.version = 0 if x is None else x._version
        self.sums: Tensor | None = None  # [B, parameters]

    def receive(self, delta: Tensor, direction: Mapping[Tensor, Tensor]) -> Tensor:
        if self.x is not None:
            _unchanged(self.x, self.version)
            delta = self.x.to(delta.dtype) * delta
        parameter = self.parameters["weight"]
        assert parameter is not None
        shape = [1] * (delta.ndim - len(self.shape)) + list(self.shape)
        if shape[0] != 1:
            raise NotSeparable("a parameter has a value for each example")
        summed = [axis for axis in range(1, delta.ndim) if shape[axis] == 1]
        values = delta.sum(summed) if summed else delta
        self.x = None
        self.sums = values.reshape(self.examples, -1, parameter.numel()).sum(1)
        g = direction.get(parameter)
        return self.sums.new_zeros(self.examples) if g is None else self.sums @ g.flatten().to(self.sums.dtype)

    def gradients(self, weights: Tensor) -> Gradients:
        parameter = self.parameters["weight"]
        assert parameter is not None and self.sums is not None
        return [(parameter, (weights.to(self.sums) @ self.sums).view_as(parameter))]


def _channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def _rows(x: Tensor, rows: Tensor) -> Tensor:
    """Returns the rows of x along its first axis, in the memory layout of x."""
    if x.ndim == 4 and _channels_last(x):
        return x.permute(0, 2, 3, 1)[rows].permute(0, 3, 1, 2)
    return x[rows]


def _unchanged(x: Tensor, version: int) -> None:
    """Raises `NotSeparable` if a layer's input was changed in place after the layer had read it."""
    if x._version != version:
        raise NotSeparable("the input of a layer was changed in place")


def _pair(value: Any) -> list[int]:
    """Returns a stride, padding or dilation for both axes.

    Raises:
        NotSeparable: it is a word, such as `same`.
    """
    if isinstance(value, str):
        raise NotSeparable(f"conv2d with padding={value!r} has no rule")
    return [value] * 2 if isinstance(value, int) else list(value)


class _Recorder(TorchFunctionMode):
    """Replaces the trainable parameters by constants in every call that receives them, and records these calls."""

    def __init__(self, trainable: list[Tensor], examples: int) -> None:
        super().__init__()
        self.trainable = {id(p): p for p in trainable}
        self.examples = examples
        self.layers: list[_Layer] = []
        self.received: dict[int, Tensor] = {}  # δ by the place in `layers`
        self.used: set[int] = set()
        self.reshaped: dict[int, tuple[Tensor, Tensor]] = {}  # a parameter in another shape, and the parameter
        anchor = trainable[0]
        self.anchor = torch.zeros((), dtype=anchor.dtype, device=anchor.device, requires_grad=True)
        self.closed = False
        self.anchor.register_hook(self._refuse)

    def _refuse(self, _: Tensor) -> None:
        if self.closed:  # its gradient would not reach the parameters
            raise RuntimeError(
                "an activation of this forward pass is used in another loss: compute that loss from the outputs, or "
                "store the activation as an attribute of a module"
            )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm and self._argument(args, kwargs, 5, "training", False):
            raise NotSeparable("batch_norm computes statistics of the batch")
        if only_in_reverse(func, args, kwargs):
            raise NotSeparable(f"{getattr(func, '__name__', func)} may change a gradient")
        leaves = tree_leaves((args, kwargs))
        given = [leaf for leaf in leaves if id(leaf) in self.trainable or id(leaf) in self.reshaped]
        if not given or getattr(func, "__name__", "") == "__get__":
            return func(*args, **kwargs)
        if not torch.is_grad_enabled():
            raise NotSeparable(f"{getattr(func, '__name__', func)} was called without recording")
        if func in _RESHAPE and len(given) == 1 and id(given[0]) in self.trainable:
            shaped = func(*[a.detach() if a is given[0] else a for a in args], **kwargs)
            self.reshaped[id(shaped)] = shaped, given[0]
            return shaped
        if func not in _ELEMENTWISE and (func not in _CALLS or any(id(p) in self.reshaped for p in given)):
            raise NotSeparable(f"{getattr(func, '__name__', func)} has no rule")
        for p in given:
            own = id(self._parameter(p))
            if own in self.used:
                raise NotSeparable("two layers share a parameter")
            self.used.add(own)
        output, layer = (
            self._elementwise(func, args, kwargs) if func in _ELEMENTWISE else self._call(func, args, kwargs)
        )
        if not output.requires_grad:  # the first layer: δ needs a graph from here on
            output = output + self.anchor.to(output)
        if output.ndim < (4 if func is F.conv2d else 2) or len(output) % self.examples:
            raise NotSeparable("the first axis of a layer's output is not that of the examples")
        # at once: an activation that works in place then leaves the hook with the gradient of this output
        output.register_hook(partial(self.received.__setitem__, len(self.layers)))
        self.layers.append(layer)
        return output

    def backward(self, value: Tensor, retain_graph: bool = False) -> None:
        """Computes δ of every layer for a sum of losses.

        Raises:
            NotSeparable: the value depends on a parameter that no recorded call received.
        """
        inputs = [self.anchor, *self.trainable.values()]
        _, *unseen = torch.autograd.grad(value, inputs, retain_graph=retain_graph, allow_unused=True)
        if any(gradient is not None for gradient in unseen):
            raise NotSeparable("a parameter is used outside of torch's functions")

    def _call(self, func: Any, args: Any, kwargs: Any) -> tuple[Tensor, _Layer]:
        """Returns the output of a layer whose parameters are constants in the graph, and its record."""
        call = dict(zip(_CALLS[func], args, strict=False)) | kwargs
        parameters = {name: call.get(name) for name in ("weight", "bias")}
        if any(id(value) in self.trainable for name, value in call.items() if name not in parameters):
            raise NotSeparable(f"{func.__name__} receives a parameter as its input")
        constants = {name: None if p is None else p.detach() for name, p in parameters.items()}
        trained = {name: p if id(p) in self.trainable else None for name, p in parameters.items()}
        return func(**{**call, **constants}), self._layer(func, call, constants, trained)

    def _parameter(self, given: Tensor) -> Tensor:
        """Returns the parameter, also of one in another shape."""
        return self.reshaped[id(given)][1] if id(given) in self.reshaped else given

    def _elementwise(self, func: Any, args: Any, kwargs: Any) -> tuple[Tensor, _Layer]:
        known = self.trainable.keys() | self.reshaped.keys()
        places = [place for place, value in enumerate(args) if id(value) in known]
        if len(places) != 1:
            raise NotSeparable(f"{func.__name__} receives several parameters")
        parameter = args[places[0]]
        constant = [parameter.detach() if place == places[0] else value for place, value in enumerate(args)]
        output = func(*constant, **kwargs)
        if output.ndim < max(2, parameter.ndim):
            raise NotSeparable(f"{func.__name__} of a parameter has no axis for the examples")
        other = args[1 - places[0]] if func in _MULTIPLY else None
        if func in _ADD and kwargs.get("alpha", 1) != 1:
            raise NotSeparable("add with a factor has no rule")
        if func in _MULTIPLY and not isinstance(other, Tensor):
            raise NotSeparable("a parameter times a number has no rule")
        factor = None if other is None else other.detach()
        return output, _Elementwise(self._parameter(parameter), parameter.shape, self.examples, factor)

    @staticmethod
    def _argument(args: Any, kwargs: Any, place: int, name: str, default: Any) -> Any:
        return args[place] if len(args) > place else kwargs.get(name, default)

    def _layer(self, func: Any, call: dict[str, Any], constants: dict[str, Any], trained: dict[str, Any]) -> _Layer:
        x = call["input"].detach()
        if func is F.conv2d:
            numbers = {"stride": 1, "padding": 0, "dilation": 1}
            options = {name: _pair(call.get(name, usual)) for name, usual in numbers.items()}
            weight = constants["weight"]
            return _Product(trained, self.examples, x, weight, {**options, "groups": call.get("groups", 1)})
        if func is F.linear:
            return _Product(trained, self.examples, x, constants["weight"], {})
        normal = lambda x: func(**{**call, "input": x, "weight": None, "bias": None})  # noqa: E731
        return _Affine(trained, self.examples, x, normal, len(call.get("normalized_shape", ())))


# the arguments of each torch function of layers, in their order
_CALLS: dict[Any, tuple[str, ...]] = {
    F.conv2d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    F.linear: ("input", "weight", "bias"),
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    F.layer_norm: ("input", "normalized_shape", "weight", "bias", "eps"),
    F.group_norm: ("input", "num_groups", "weight", "bias", "eps"),
}
_MULTIPLY = {torch.mul, torch.multiply, Tensor.mul, Tensor.__mul__, Tensor.__rmul__}
_ADD = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__}
_RESHAPE = {torch.reshape, Tensor.reshape, Tensor.view, Tensor.unsqueeze, torch.unsqueeze}
_ELEMENTWISE = _MULTIPLY | _ADD | {Tensor.expand}


class _Losses(torch.autograd.Function):
    """The losses `[B]`; their backward pass computes the gradients of the recorded layers."""

    @staticmethod
    def forward(ctx: Any, losses: Tensor, layers: list[_Layer], *parameters: Tensor) -> Tensor:
        ctx.layers, ctx.parameters = layers, parameters
        return losses.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *weights: Tensor) -> tuple[Tensor | None, ...]:
        found = {}
        for layer in ctx.layers:
            for parameter, gradient in layer.gradients(weights[0]):
                found[parameter] = gradient.to(parameter.dtype)
        return None, None, *(found.get(p) for p in ctx.parameters)


def separable_losses_along(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    direction: dict[str, Tensor],
    loss: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Computes `meta_step.losses_along` for a model whose examples do not influence each other.

    The graph of the losses leads to the trainable parameters alone, and can't be differentiated twice.

    Raises:
        NotSeparable: a layer has no rule, or the examples influence each other. The latter is checked once for each
            model and mode, by several backward passes in its first step; in the next step again if gradients were zero
            or the batch was a single example, which shows nothing.
    """
    named: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if x.requires_grad or not named:
        raise NotSeparable("the inputs require a gradient, or no parameter does")
    recorder = _Recorder(list(named.values()), len(x))
    with recorder:
        output = model(x)
    if _keeps_activations(model):
        raise NotSeparable("a module keeps an activation, whose graph would not lead to the parameters")
    losses = loss(output, y)
    along = {named[name]: d for name, d in direction.items()}
    if losses.requires_grad:
        checks, mode = _CHECKED.setdefault(model, {}), tuple(module.training for module in model.modules())
        if checks.get(mode, 0) < MOST_CHECKS:
            conclusive = _check(losses, recorder)
            checks[mode] = MOST_CHECKS if conclusive else checks.get(mode, 0) + 1
        recorder.backward(losses.sum())
    recorder.closed = True
    # the hook of the anchor refers to the recorder: it would keep what the layers hold until Python collects cycles
    layers, recorder.layers = recorder.layers, []
    slopes = losses.new_zeros(len(losses))
    used = []  # the layers that the losses depend on
    with torch.no_grad():
        for place, layer in enumerate(layers):
            if place in recorder.received:
                slopes += layer.receive(recorder.received.pop(place), along).to(slopes)
                used.append(layer)
    return _Losses.apply(losses.detach(), used, *named.values()), slopes


def _keeps_activations(model: nn.Module) -> bool:
    """Returns whether an attribute of a module holds a tensor with a graph, as for an auxiliary loss."""
    own = {"_parameters", "_buffers", "_modules"}
    values = [value for m in model.modules() for name, value in vars(m).items() if name not in own]
    return any(isinstance(leaf, Tensor) and leaf.grad_fn is not None for leaf in tree_leaves(values))


def _check(losses: Tensor, recorder: _Recorder) -> bool:
    """Raises `NotSeparable` if a loss has a gradient in the rows of another example.

    Returns whether the check is conclusive: there are several examples, and no layer's gradients are all zero, as they
    are behind a head that starts at zero.

    For each binary digit of an example's number, the losses of one half of the batch must have no gradient in the rows
    of the other half. Any two examples are in different halves for some digit.
    """
    number = torch.arange(len(losses), device=losses.device)
    nonzero: dict[int, bool] = {}  # by layer
    for digit in range((len(losses) - 1).bit_length()):
        one = (number >> digit) % 2 == 1
        for half in (one, ~one):
            recorder.backward(losses[half].sum(), retain_graph=True)
            for place, delta in recorder.received.items():
                nonzero[place] = nonzero.get(place, False) or bool(delta.any())
                if delta.reshape(recorder.examples, -1)[~half].any():
                    raise NotSeparable("an example influences the loss of another one")
            recorder.received.clear()
    return all(nonzero.values()) and len(losses) > 1

"""The cheaper meta step without batch statistics, against one backward pass for each example, in float64."""

import copy
import gc
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision.models as tv
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.convnext import CNBlockConfig

from dermrw.reweight import meta_step, separable
from dermrw.reweight.meta_step import losses_along, meta_gradient, reweighted_losses
from dermrw.reweight.separable import NotSeparable, separable_losses_along, uses_batch_statistics

CLASSES = 5


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def convolutions() -> nn.Module:
    """Strides, groups, dilation, padding, a bias, activations that work in place, and no affine parameters."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, groups=8, padding=1, bias=False), nn.GroupNorm(4, 8), nn.ReLU6(inplace=True),
        nn.Conv2d(8, 12, 3, dilation=2, groups=4), nn.BatchNorm2d(12, affine=False), nn.Hardswish(inplace=True),
        nn.Dropout(0.2), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.LayerNorm(48), nn.Linear(48, CLASSES),
    )  # fmt: skip


def transformer() -> nn.Module:
    """Class token, positions and layer scale."""
    return timm.models.vision_transformer.VisionTransformer(
        32, 8, embed_dim=24, depth=2, num_heads=2, num_classes=CLASSES, init_values=0.1
    )


NETS: dict[str, Callable[[], nn.Module]] = {
    "convolutions": convolutions,
    "convnext": lambda: tv.ConvNeXt([CNBlockConfig(24, 48, 1), CNBlockConfig(48, None, 1)], num_classes=CLASSES),
    "resnet": lambda: tv.ResNet(tv.resnet.BasicBlock, [1, 1, 1, 1], num_classes=CLASSES),
    "transformer": transformer,
    "timm's convnext": lambda: timm.models.convnext.ConvNeXt(
        depths=(1, 1, 1, 1), dims=(8, 12, 16, 24), num_classes=CLASSES, ls_init_value=0.1
    ),
    "efficientnet_lite": lambda: timm.create_model("tf_efficientnet_lite0", num_classes=CLASSES),
}


def build(name: str) -> tuple[nn.Module, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Returns a model in eval mode, whose dropout layers are in train mode, and two batches."""
    torch.manual_seed(0)
    model = NETS[name]().double()
    x, meta_x = torch.randn(6, 3, 32, 32).double(), torch.randn(4, 3, 32, 32).double()
    with torch.no_grad():
        model.train()(x)  # running statistics that differ from their start
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    return model, (x, torch.arange(6) % CLASSES, meta_x, torch.arange(4))


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "efficientnet_lite")) for n in NETS])
def test_slopes_and_gradients_are_those_of_single_examples(name: str) -> None:
    model, (x, y, meta_x, meta_y) = build(name)
    plain = copy.deepcopy(model)
    direction = meta_gradient(model, meta_x, meta_y)
    torch.manual_seed(3)
    losses, slopes = separable_losses_along(model, x, y, direction, cross_entropy)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    expected = cross_entropy(plain(x), y)
    assert torch.equal(after, torch.get_rng_state())
    assert torch.equal(losses, expected)
    assert not slopes.requires_grad

    parameters = dict(plain.named_parameters())
    weights = torch.tensor([0.3, 0, 0.1, -0.2, 0.5, 1e-3]).double()
    (weights * losses).sum().backward()
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for i in range(len(x)):
        own = torch.autograd.grad(expected[i], list(parameters.values()), retain_graph=True)
        inner = sum((g * direction[name]).sum() for name, g in zip(parameters, own, strict=True))
        torch.testing.assert_close(slopes[i], inner, rtol=1e-11, atol=1e-13)
        for key, g in zip(parameters, own, strict=True):
            total[key] += weights[i] * g
    for key, p in model.named_parameters():
        assert p.grad is not None and p.grad.shape == p.shape
        torch.testing.assert_close(p.grad, total[key], rtol=1e-10, atol=1e-13, msg=key)


def test_it_is_used_where_examples_are_independent_and_only_there(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y, meta_x, meta_y) = build("convolutions")
    used = []

    def spied(*arguments: object) -> tuple[Tensor, Tensor]:
        used.append(1)
        return separable_losses_along(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(meta_step, "_METHODS", (spied, *meta_step._METHODS[1:]))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the weights come from")
        reweighted_losses(model, x, y, meta_x, meta_y)
        assert used == [1] and not uses_batch_statistics(model)
        reweighted_losses(model.train(), x, y, meta_x, meta_y)
        assert used == [1] and uses_batch_statistics(model)
        reweighted_losses(model.eval(), x, y, meta_x, meta_y)  # and again: the mode counts, not the model
        assert used == [1, 1]


@pytest.mark.parametrize("with_bias", [True, False])
def test_a_direction_and_a_gradient_of_some_parameters(with_bias: bool) -> None:
    """Frozen layers have no gradient; parameters without a direction have no part in the slopes."""
    model, (x, y, meta_x, meta_y) = build("convolutions")
    for name in ("0", "3"):
        model.get_submodule(name).requires_grad_(False)
    names = ["6.weight", "13.weight", *(["13.bias", "12.bias"] if with_bias else [])]
    direction = meta_gradient(model, meta_x, meta_y, names=names)
    torch.manual_seed(1)
    losses, slopes = separable_losses_along(model, x, y, direction, cross_entropy)
    losses.sum().backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    torch.manual_seed(1)
    model.zero_grad()
    expected = cross_entropy(model(x), y)
    parameters = dict(model.named_parameters())
    for i in range(len(x)):
        own = torch.autograd.grad(expected[i], [parameters[n] for n in names], retain_graph=True)
        inner = sum((g * direction[n]).sum() for n, g in zip(names, own, strict=True))
        torch.testing.assert_close(slopes[i], inner, rtol=1e-11, atol=1e-13)
    expected.sum().backward()
    for name, p in model.named_parameters():
        assert (found[name] is None) == (p.grad is None) == (not p.requires_grad), name
        if p.grad is not None:
            torch.testing.assert_close(found[name], p.grad, rtol=1e-10, atol=1e-13, msg=name)


class Net(nn.Module):
    """Two linear layers and a function between them."""

    def __init__(self, between: Callable[["Net", Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, CLASSES)
        self.between = between
        self.extra = nn.Parameter(torch.randn(4, 4))
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self, self.first(x)))


def changed_in_place(net: Net, x: Tensor) -> Tensor:
    net.last(x)
    return x.mul_(2)


def kept(net: Net, x: Tensor) -> Tensor:
    net.kept = [x]
    return x


UNSUITED: dict[str, tuple[Callable[[Net, Tensor], Tensor], str]] = {
    "coupled": (lambda _, x: x - x.mean(0), "an example influences the loss of another one"),
    "coupled late": (lambda _, x: x + x.flip(0).roll(1, 0), "an example influences the loss of another one"),
    "another axis": (lambda n, x: n.first(x.T[:, :4].contiguous()).mean() + x, r"first axis|influences|share"),
    "no rule": (lambda n, x: torch.addmm(x, x, n.extra), "addmm has no rule"),
    "an attribute": (lambda n, x: x @ n.extra.T, r"used outside of torch's functions|has no rule"),
    "shared": (lambda n, x: n.first(x), "two layers share a parameter"),
    "kept": (kept, "a module keeps an activation"),
    "changed in place": (changed_in_place, r"changed in place|share a parameter"),
}


@pytest.mark.parametrize("name", UNSUITED)
def test_other_networks_take_the_usual_step_with_one_warning(name: str) -> None:
    between, reason = UNSUITED[name]
    model = Net(between).double()
    x, meta_x = torch.randn(6, 4).double(), torch.randn(4, 4).double()
    y, meta_y = torch.arange(6) % CLASSES, torch.arange(4)
    direction = meta_gradient(model, meta_x, meta_y)
    with pytest.raises(NotSeparable, match=reason):
        separable_losses_along(model, x, y, direction, cross_entropy)
    with pytest.warns(UserWarning, match=r"the weights come from a forward pass with tangents"):
        _, slopes = losses_along(model, x, y, direction)
    expected = cross_entropy(model(x), y)
    parameters = dict(model.named_parameters())
    for i in range(len(x)):
        own = torch.autograd.grad(expected[i], list(parameters.values()), retain_graph=True, allow_unused=True)
        inner = sum((g * direction[n]).sum() for n, g in zip(parameters, own, strict=True) if g is not None)
        torch.testing.assert_close(slopes[i], inner, rtol=1e-11, atol=1e-13)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the weights come from")
        losses_along(model, x, y, direction)


def test_a_loss_of_an_activation_that_a_hook_took_away_is_an_error() -> None:
    """Its gradient would not reach the parameters; an error is better than none."""
    model, (x, y, meta_x, meta_y) = build("convolutions")
    taken = []
    model.get_submodule("6").register_forward_hook(lambda _, __, output: taken.append(output))
    direction = meta_gradient(model, meta_x, meta_y)
    taken.clear()
    separable_losses_along(model, x, y, direction, cross_entropy)
    with pytest.raises(RuntimeError, match=r"used in another loss|a second time"):
        taken[0].sum().backward()


def test_the_graph_serves_several_backward_passes_and_no_second_derivative() -> None:
    model, (x, y, meta_x, meta_y) = build("convolutions")
    losses, _ = separable_losses_along(model, x, y, meta_gradient(model, meta_x, meta_y), cross_entropy)
    parameters = list(model.parameters())
    first = torch.autograd.grad(losses.sum(), parameters, retain_graph=True)
    again = torch.autograd.grad(losses.sum(), parameters)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    losses, _ = separable_losses_along(model, x, y, meta_gradient(model, meta_x, meta_y), cross_entropy)
    (once,) = torch.autograd.grad(losses.sum(), parameters[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        once.sum().backward()


def test_mixed_precision_takes_the_usual_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gradients equal plain training's in that precision; scaling δ afterwards would round differently."""
    model, (x, y, meta_x, meta_y) = build("convolutions")
    model = model.float()

    def unexpected(*_: object) -> tuple[Tensor, Tensor]:
        raise AssertionError

    monkeypatch.setattr(meta_step, "_METHODS", (unexpected, *meta_step._METHODS[1:]))
    with torch.autocast("cpu", torch.bfloat16):
        reweighted_losses(model, x.float(), y, meta_x.float(), meta_y)
    with pytest.raises(AssertionError):
        reweighted_losses(model, x.float(), y, meta_x.float(), meta_y)


def test_weights_of_zero_give_gradients_of_zero() -> None:
    model, (x, y, meta_x, meta_y) = build("convolutions")
    losses, _ = separable_losses_along(model, x, y, meta_gradient(model, meta_x, meta_y), cross_entropy)
    (0 * losses).sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.shape == p.shape and not p.grad.any(), name


def test_a_step_leaves_nothing_in_memory_for_the_collector_of_cycles(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs rarely, and what the layers hold is the largest part of the memory of a step."""
    model, (x, y, meta_x, meta_y) = build("convolutions")
    held = []

    class Kept(separable._Product):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            held.append(weakref.ref(self))

    monkeypatch.setattr(separable, "_Product", Kept)
    direction = meta_gradient(model, meta_x, meta_y)
    gc.collect()
    gc.disable()
    try:
        losses, _ = separable_losses_along(model, x, y, direction, cross_entropy)
        assert any(layer() is not None for layer in held)
        losses.sum().backward()
        del losses
        assert all(layer() is None for layer in held)
    finally:
        gc.enable()


def test_floating_point_operations_are_at_most_four_thirds_of_plain_training() -> None:
    """A weight of zero saves its example's gradient. The first step, which is not counted, checks for independence."""
    model, (x, y, meta_x, meta_y) = build("resnet")
    x, y = x.repeat(4, 1, 1, 1), y.repeat(4)

    def counted(step: Callable[[], Tensor]) -> int:
        model.zero_grad()
        with FlopCounterMode(display=False) as counter:
            step().backward()
        return counter.get_total_flops()

    def reweighted() -> Tensor:
        losses, weights = reweighted_losses(model, x, y, meta_x, meta_y)
        return (weights * losses).sum()

    plain = counted(lambda: cross_entropy(model(x), y).sum())
    share = (reweighted_losses(model, x, y, meta_x, meta_y)[1] > 0).double().mean().item()
    assert 0 < share < 1
    first = 32 * 16 * 16 * 3 * 64 * 49 / 32 * 2 * len(x)  # plain training has no gradient of the first layer's input
    forward = (plain + first) / 3
    expected = 3 * forward + share * forward - first + plain * len(meta_x) / len(x)
    assert counted(reweighted) == pytest.approx(expected, rel=0.005)
    assert expected / plain < 4 / 3 + len(meta_x) / len(x) + 0.02


class Coupled(nn.Module):
    """A hand-written coupling of the examples, which no layer's rule can see."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0) if self.training else x


@pytest.mark.parametrize("first", ["a head of zeros", "eval mode", "a single example"])
def test_a_first_step_that_shows_nothing_is_no_proof(first: str) -> None:
    """The influence of the examples on each other is found in the next step, which falls back to the exact way."""
    torch.manual_seed(0)
    head = nn.Linear(8, CLASSES)
    model = nn.Sequential(nn.Linear(6, 8), Coupled(), nn.Tanh(), head).double()
    x, y = torch.randn(6, 6).double(), torch.arange(6) % CLASSES
    meta_x, meta_y = torch.randn(5, 6).double(), torch.arange(5)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)

    def step(examples: slice) -> Tensor:
        losses, weights = reweighted_losses(model, x[examples], y[examples], meta_x, meta_y)
        optimizer.zero_grad()
        (losses * weights).sum().backward()
        optimizer.step()
        return weights

    if first == "a head of zeros":
        nn.init.zeros_(head.weight)
    if first == "eval mode":
        model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step(slice(1 if first == "a single example" else None))
        model.train()
        other = copy.deepcopy(model)
        found = step(slice(None))
    direction = meta_gradient(other, meta_x, meta_y)
    epsilon = torch.zeros(6, dtype=torch.double, requires_grad=True)
    gradient = torch.autograd.grad(
        (epsilon * cross_entropy(other(x), y)).sum(), list(other.parameters()), create_graph=True
    )
    along: Any = sum(
        (g * direction[name]).sum() for g, (name, _) in zip(gradient, other.named_parameters(), strict=True)
    )
    expected = torch.autograd.grad(along, epsilon)[0].clamp(min=0)
    assert torch.allclose(found, expected / expected.sum(), atol=1e-10)

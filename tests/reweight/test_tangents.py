"""The rules beside a recorded pass: no more is recorded than in a plain one, and what has no rule is as exact."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as tv
from test_meta_step import CLASSES, double_backward
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import ConvNeXt
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.resnet import BasicBlock

from dermrw.reweight.meta_step import reweighted_losses


def batches(*shape: int, b: int = 6, m: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x, meta_x = (torch.randn(n, *shape, generator=g).double() for n in (b, m))
    return x, torch.arange(b) % CLASSES, meta_x, torch.arange(m) % CLASSES


def check(model: nn.Module, data: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    """Weights, gradients, buffers and the random stream against double backward and a plain pass."""
    plain = copy.deepcopy(model)
    torch.manual_seed(3)
    with sdpa_kernel(SDPBackend.MATH):
        expected = double_backward(model, *data, alpha=0.3)
    torch.manual_seed(3)
    losses, weights = reweighted_losses(model, *data)
    after = torch.get_rng_state()
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-11)
    (weights * losses).sum().backward()
    torch.manual_seed(3)
    (weights * F.cross_entropy(plain(data[0]), data[1], reduction="none")).sum().backward()
    assert torch.equal(after, torch.get_rng_state())
    for p, q in zip([*model.buffers()], [*plain.buffers()], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "activation",
    ["ReLU", "ReLU6", "SiLU", "Hardswish", "GELU", "Mish", "ELU", "LeakyReLU", "Tanh", "Sigmoid", "Softplus"],
)
@pytest.mark.parametrize("inplace", [False, True])
def test_activations_and_layers(activation: str, inplace: bool) -> None:
    """In place or not, also on the view that `flatten` is; every kind of norm, pooling and sum."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            kind = getattr(nn, activation)
            self.act = kind(inplace=True) if inplace and "inplace" in kind.__init__.__code__.co_varnames else kind()
            self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.group, self.layer = nn.GroupNorm(2, 8), nn.LayerNorm([8, 6, 6])
            self.pool, self.drop, self.head = nn.MaxPool2d(2), nn.Dropout(0.3, inplace=inplace), nn.Linear(8, CLASSES)
            self.scale = nn.Parameter(torch.full((8, 1, 1), 0.7))

        def forward(self, x: Tensor) -> Tensor:
            x = self.act(self.norm(self.conv(x)))
            y = self.group(x) * self.scale
            y += x
            y = self.layer(self.pool(y)) / 2 - 0.1
            y = torch.cat([y[:, :4], 1 - y[:, 4:]], 1)
            return self.head(self.act(self.drop(F.adaptive_avg_pool2d(y, 1).flatten(1)) + 0.1))

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the weights come from")  # each of these has its rule
        for train in (True, False):
            check(Net().double().train(train), batches(3, 12, 12))


class InPlaceBehindABack(nn.Module):
    """The base of a view is used after the view was changed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 6), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        F.relu(x.view(-1, 6), inplace=True)
        return self.head(x)


class Assigns(InPlaceBehindABack):
    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        out = torch.zeros_like(x)
        out[:, 1:] = x[:, :-1]
        return self.head(out)


class StopsByNoGrad(InPlaceBehindABack):
    """What is computed under no_grad is a constant of the paper's gradient."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        with torch.no_grad():
            scale = x.abs().mean() + 1
        return self.head(x * scale)


class Detaches(InPlaceBehindABack):
    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(x * x.detach().sigmoid())


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


class CallsAFunction(InPlaceBehindABack):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(Doubled.apply(self.first(x)).tanh())


class Attends(nn.Module):
    """Attention with dropout draws random numbers inside."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.3, batch_first=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Transforms(InPlaceBehindABack):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.fft.fft(self.first(x)).abs())


class Keywords(InPlaceBehindABack):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.add(input=self.first(x), other=self.first(x)).tanh())


class SortsThenStops(InPlaceBehindABack):
    """The first way meets an operator without a rule, the second a constant that it would differentiate."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).sort(1)[0]
        with torch.no_grad():
            scale = x.std(1, keepdim=True)
        return self.head(x) / scale


class InnerGradient(InPlaceBehindABack):
    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        (slope,) = torch.autograd.grad((self.head(x) ** 3).sum(), x, retain_graph=True)
        return self.head(x * slope)


class HookChangesTheGradient(InPlaceBehindABack):
    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if x.requires_grad:
            x.register_hook(lambda g: g * torch.arange(1.0, 7.0))
        return self.head(x)


class ReassignsABuffer(InPlaceBehindABack):
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.count = self.count + 1
        return self.head(self.first(x).sort(1)[0])


class KeepsStatistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, CLASSES)
        self.norm = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


class Checkpoints(nn.Module):
    """A region that is computed again when its saved tensors are asked for."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Sigmoid()) for _ in range(3)]
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.blocks, x, use_reentrant=False))


@pytest.mark.parametrize(
    "make, shape",
    [
        (SortsThenStops, (4,)),
        (InnerGradient, (4,)),
        (HookChangesTheGradient, (4,)),
        (ReassignsABuffer, (4,)),
        (KeepsStatistics, (3, 8, 8)),
        (Checkpoints, (4,)),
        (InPlaceBehindABack, (4,)),
        (Assigns, (4,)),
        (StopsByNoGrad, (4,)),
        (Detaches, (4,)),
        (CallsAFunction, (4,)),
        (Attends, (3, 4)),
        (Transforms, (4,)),
        (Keywords, (4,)),
    ],
)
@pytest.mark.filterwarnings("ignore:the weights come from")
def test_what_has_no_rule_is_as_exact(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = make().double()
    check(model, batches(*shape))
    model.zero_grad()
    check(model, batches(*shape))  # and again, by the way that is known now


def nodes(output: Tensor) -> int:
    """Nodes of the graph behind a tensor."""
    seen, left = set(), [output.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += [n for n, _ in node.next_functions]
    return len(seen)


def test_no_more_is_recorded_than_in_a_plain_pass() -> None:
    model = tv.mobilenet_v2(num_classes=CLASSES).double()
    x, y, meta_x, meta_y = batches(3, 32, 32)
    losses, _ = reweighted_losses(model, x, y, meta_x, meta_y)
    assert nodes(losses) == nodes(F.cross_entropy(model(x), y, reduction="none"))


@pytest.mark.slow
@pytest.mark.parametrize("name, most", [("resnet18", 1.83), ("efficientnet_b0", 1.83)])
def test_flops(name: str, most: float) -> None:
    """3F for plain training, 5F and the meta batch's 3F·M/B for the weights: 1.67 + 5/32 at most."""
    model = tv.get_model(name, num_classes=CLASSES)
    x, y, meta_x, meta_y = (t.float() if t.is_floating_point() else t for t in batches(3, 32, 32, b=32, m=5))
    with FlopCounterMode(display=False) as plain:
        F.cross_entropy(model(x), y).backward()
    with FlopCounterMode(display=False) as counted:
        losses, weights = reweighted_losses(model, x, y, meta_x, meta_y)
        (weights * losses).sum().backward()
    assert counted.get_total_flops() / plain.get_total_flops() <= most


def small_resnet() -> nn.Module:
    """ResNet's stem and two of its blocks."""
    halving = nn.Sequential(nn.Conv2d(16, 32, 1, 2, bias=False), nn.BatchNorm2d(32))
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True), BasicBlock(16, 16),
        BasicBlock(16, 32, 2, halving), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet", "mobilenet_v2", "convnext", "vit"])
def test_bfloat16(name: str) -> None:
    """Under autocast: the gradients of plain training in that precision; weights as near fp32's as double backward's.

    (How near that is depends on the network: an untrained one, on noise, magnifies the rounding.)
    """
    torch.manual_seed(0)
    # small ones: CPUs without instructions for bfloat16 are slow
    make: dict[str, Callable[[], nn.Module]] = {
        "resnet": small_resnet,
        "mobilenet_v2": lambda: tv.mobilenet_v2(width_mult=0.35, num_classes=CLASSES),
        "convnext": lambda: ConvNeXt([CNBlockConfig(24, 48, 1), CNBlockConfig(48, None, 1)], num_classes=CLASSES),
        "vit": lambda: tv.VisionTransformer(32, 16, 2, 2, 32, 64, num_classes=CLASSES),
    }
    model = make[name]()
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.normal_(std=0.1)
    x, y, meta_x, meta_y = (t.float() if t.is_floating_point() else t for t in batches(3, 32, 32, b=8, m=7))
    plain, exact = copy.deepcopy(model), copy.deepcopy(model)
    with warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16):
        warnings.filterwarnings("error", "the weights come from")
        torch.manual_seed(3)
        losses, weights = reweighted_losses(model, x, y, meta_x, meta_y)
        loss = (weights * losses).sum()
        torch.manual_seed(3)
        expected = (weights * F.cross_entropy(plain(x), y, reduction="none")).sum()
    loss.backward()
    expected.backward()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=0)
    torch.manual_seed(3)
    _, in_fp32 = reweighted_losses(exact, x, y, meta_x, meta_y)
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        by_double_backward = double_backward(plain, x, y, meta_x, meta_y, alpha=1.0)
    assert weights.isfinite().all()
    off, usual = (float((w - in_fp32).abs().sum()) for w in (weights, by_double_backward))
    assert off <= 1.3 * usual + 0.02


def test_a_compiled_model_is_run_uncompiled() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, CLASSES)).double()
    part: Any = torch.compile(model[:3], backend="eager")
    compiled = nn.Sequential(part, model[3])
    _, expected = reweighted_losses(copy.deepcopy(model), *batches(4))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the weights come from")
        whole: Any = torch.compile(compiled, backend="eager")
        losses, weights = reweighted_losses(whole, *batches(4))
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-12)
    (weights * losses).sum().backward()
    assert model[0].weight.grad is not None


@pytest.mark.filterwarnings("ignore:the weights come from")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_scripted_part_takes_another_way() -> None:
    torch.manual_seed(0)
    part = nn.Sequential(nn.Linear(4, 6), nn.Tanh()).double()
    model, data = nn.Sequential(part, nn.Linear(6, CLASSES).double()), batches(4)
    _, expected = reweighted_losses(copy.deepcopy(model), *data)
    _, weights = reweighted_losses(nn.Sequential(torch.jit.script(part), model[1]), *data)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-12)


def test_an_activation_that_a_model_keeps_is_a_plain_tensor_afterwards() -> None:
    class Keeps(InPlaceBehindABack):
        def forward(self, x: Tensor) -> Tensor:
            self.kept = self.first(x).tanh()
            return self.head(self.kept)

    torch.manual_seed(0)
    model, (x, y, meta_x, meta_y) = Keeps().double(), batches(4)
    plain = copy.deepcopy(model)
    losses, weights = reweighted_losses(model, x, y, meta_x, meta_y)
    ((weights * losses).sum() + 0.1 * model.kept.pow(2).mean()).backward()
    expected = (weights * F.cross_entropy(plain(x), y, reduction="none")).sum() + 0.1 * plain.kept.pow(2).mean()
    expected.backward()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        assert not model.kept.mean().requires_grad and model.kept.cpu().shape == (6, 6)


def test_in_place_products_of_mixed_precision() -> None:
    class Mixed(InPlaceBehindABack):
        scale: nn.Parameter

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x.bfloat16())
            x *= torch.linspace(0.5, 1, 6) * self.scale
            return self.head(x)

    torch.manual_seed(0)
    model = Mixed().bfloat16()
    model.scale = nn.Parameter(torch.ones(()))
    x, y, meta_x, meta_y = batches(4)
    _, weights = reweighted_losses(model, x.float(), y, meta_x.float(), meta_y)
    assert weights.isfinite().all() and weights.any()


def test_the_usual_operators_need_no_other_way() -> None:
    """A network of common layers raises no warning that the rules were left for another way."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(CLASSES))
    data = batches(3, 8, 8)
    model.double()(data[0])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the weights come from")
        reweighted_losses(model, *data)

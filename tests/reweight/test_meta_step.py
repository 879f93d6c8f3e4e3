"""The meta step against Algorithm 1 of Ren et al. written out with double backward, in float64."""

import copy
import math
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as tv
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision.models.convnext import CNBlockConfig

from dermrw.reweight.meta_step import meta_gradient, normalize, reweighted_losses

CLASSES = 7


def double_backward(model: nn.Module, x: Tensor, y: Tensor, meta_x: Tensor, meta_y: Tensor, alpha: float) -> Tensor:
    """Algorithm 1, lines 4 to 11, literally: a virtual SGD step with weights ε, differentiated at ε = 0."""
    model = copy.deepcopy(model)
    state = torch.get_rng_state()
    epsilon = torch.zeros(len(x), dtype=x.dtype, requires_grad=True)
    losses = F.cross_entropy(model(x), y, reduction="none")
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad((epsilon * losses).sum(), list(parameters.values()), create_graph=True)
    virtual = {name: p - alpha * g for (name, p), g in zip(parameters.items(), gradients, strict=True)}
    torch.set_rng_state(state)  # both passes draw their dropout masks from the same state, as documented
    meta_loss = F.cross_entropy(functional_call(model, virtual, (meta_x,)), meta_y)
    u = -torch.autograd.grad(meta_loss, epsilon)[0]
    torch.set_rng_state(state)
    w = u.clamp(min=0)
    return w / w.sum() if w.sum() > 0 else w


def dropout_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.LazyLinear(16), nn.Tanh(),
        nn.Dropout(0.5), nn.Linear(16, CLASSES),
    )  # fmt: skip


def small_convnext() -> nn.Module:
    """Two stages of torchvision's ConvNeXt."""
    return tv.ConvNeXt([CNBlockConfig(96, 192, 1), CNBlockConfig(192, None, 1)], num_classes=CLASSES)


NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (lambda: tv.resnet18(num_classes=CLASSES), 40),
    "efficientnet_b0": (lambda: tv.efficientnet_b0(num_classes=CLASSES), 40),
    "convnext": (small_convnext, 32),
    "shufflenet_v2_x0_5": (lambda: tv.shufflenet_v2_x0_5(num_classes=CLASSES), 40),
    "vit": (lambda: tv.VisionTransformer(32, 16, 2, 2, 32, 64, dropout=0.1, num_classes=CLASSES), 32),
    "dropout": (dropout_net, 12),
}
LARGE = ("resnet18", "efficientnet_b0")


def batches(size: int, b: int = 7, m: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x, meta_x = (torch.randn(n, 3, size, size, generator=g).double() for n in (b, m))
    return x, torch.arange(b) % CLASSES, meta_x, torch.arange(m) % CLASSES


def build(name: str, train: bool) -> tuple[nn.Module, tuple[Tensor, Tensor, Tensor, Tensor]]:
    torch.manual_seed(0)
    make, size = NETS[name]
    model, data = make().double(), batches(size)
    with torch.no_grad():
        model.train()(data[0])  # lazy layers, and running statistics that differ from their start
        for p in model.parameters():
            if not p.any():  # a head that starts at zero would hide everything behind it
                p.normal_(std=0.1)
    return model.train(train), data


@pytest.mark.slow
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in LARGE else []) for n in NETS])
def test_weights_are_algorithm_1s(name: str, train: bool) -> None:
    model, data = build(name, train)
    torch.manual_seed(3)
    with sdpa_kernel(SDPBackend.MATH):  # the only attention that can be differentiated twice
        expected = double_backward(model, *data, alpha=0.3)
    torch.manual_seed(3)
    losses, weights = reweighted_losses(model, *data)
    assert (expected > 0).any() and (expected == 0).any()  # the case has both, so clipping is tested
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-10)
    torch.manual_seed(3)
    torch.testing.assert_close(losses, F.cross_entropy(model(data[0]), data[1], reduction="none"), rtol=0, atol=1e-10)
    assert not weights.requires_grad


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "name", [pytest.param("efficientnet_b0", marks=pytest.mark.slow), "shufflenet_v2_x0_5", "dropout"]
)
def test_all_else_is_as_in_a_plain_pass(name: str, train: bool) -> None:
    model, (x, y, meta_x, meta_y) = build(name, train)
    plain = copy.deepcopy(model)
    torch.manual_seed(3)
    losses, weights = reweighted_losses(model, x, y, meta_x, meta_y)
    after = torch.get_rng_state()
    assert all(p.grad is None for p in model.parameters())
    (weights * losses).sum().backward()

    torch.manual_seed(3)
    expected = F.cross_entropy(plain(x), y, reduction="none")
    assert torch.equal(after, torch.get_rng_state())
    (weights * expected).sum().backward()
    for (key, buffer), other in zip(model.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(buffer, other, rtol=1e-12, atol=1e-12, msg=key)
    for (key, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12, msg=key)


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_operators_without_a_forward_rule(train: bool) -> None:
    """weight_norm has none: the weights are as exact, all else as plain, and it is said once."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.2), nn.Flatten(),
        nn.utils.parametrizations.weight_norm(nn.Linear(400, CLASSES)),
    ).double().train(train)  # fmt: skip
    x, y, meta_x, meta_y = batches(12)
    plain = copy.deepcopy(model)
    torch.manual_seed(3)
    expected = double_backward(model, x, y, meta_x, meta_y, alpha=0.3)
    torch.manual_seed(3)
    with pytest.warns(UserWarning, match="two reverse passes"):
        losses, weights = reweighted_losses(model, x, y, meta_x, meta_y)
    after = torch.get_rng_state()
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-12)
    (weights * losses).sum().backward()
    torch.manual_seed(3)
    (weights * F.cross_entropy(plain(x), y, reduction="none")).sum().backward()
    assert torch.equal(after, torch.get_rng_state())
    for p, q in zip([*model.buffers()], [*plain.buffers()], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reweighted_losses(model, x, y, meta_x, meta_y)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_module_that_is_used_several_times(times: int) -> None:
    """A block under several names, and a parameter that two modules share."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh())
    model = nn.Sequential(*[block] * times, nn.Linear(4, 4), nn.Linear(4, CLASSES)).double()
    model[-2].weight = block[0].weight
    x, y, meta_x, meta_y = torch.randn(6, 4).double(), torch.arange(6) % 3, torch.randn(4, 4).double(), torch.arange(4)
    expected = double_backward(model, x, y, meta_x, meta_y % 3, alpha=0.3)
    plain = copy.deepcopy(model)
    before = dict(model.named_parameters())
    _, weights = reweighted_losses(model, x, y, meta_x, meta_y % 3)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-12)
    plain(x)
    for (key, buffer), other in zip(model.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(buffer, other, rtol=1e-12, atol=1e-12, msg=key)
    assert all(p is before[key] for key, p in model.named_parameters())


def test_frozen_and_unused_parameters_take_no_part() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head, self.unused = nn.Linear(4, 6), nn.Linear(6, CLASSES), nn.Linear(6, 2)
            self.body.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x).tanh())

    torch.manual_seed(0)
    model = TwoHeads().double()
    x, meta_x = torch.randn(9, 4).double(), torch.randn(5, 4).double()
    y, meta_y = torch.arange(9) % CLASSES, torch.arange(5)
    gradient = meta_gradient(model, meta_x, meta_y)
    assert set(gradient) == {"head.weight", "head.bias", "unused.weight", "unused.bias"}
    assert not gradient["unused.weight"].any()
    _, weights = reweighted_losses(model, x, y, meta_x, meta_y)
    model.unused = None  # type: ignore[assignment]
    torch.testing.assert_close(weights, double_backward(model, x, y, meta_x, meta_y, 0.1), rtol=0, atol=1e-12)


def test_another_loss() -> None:
    model = nn.Linear(3, 1).double()
    x, y = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).double(), torch.tensor([1.0, 1.0]).double()
    with torch.no_grad():
        model.weight.zero_(), model.bias.zero_()
    # squared error at prediction 0: ∇ℓᵢ = −2 yᵢ (xᵢ, 1), so uᵢ ∝ ⟨(x_meta, 1), (xᵢ, 1)⟩ = 2 and 1
    losses, weights = reweighted_losses(model, x, y, x[:1], y[:1], lambda out, t: (out.squeeze(1) - t) ** 2)
    assert losses.tolist() == [1, 1]
    torch.testing.assert_close(weights, torch.tensor([2 / 3, 1 / 3]).double())


def test_no_agreement_gives_all_zeros_and_finite_gradients() -> None:
    model = nn.Linear(3, 2).double()
    x = torch.ones(4, 3).double()
    losses, weights = reweighted_losses(model, x, torch.zeros(4).long(), x, torch.ones(4).long())
    assert weights.tolist() == [0, 0, 0, 0]
    (weights * losses).sum().backward()
    assert model.weight.grad is not None and model.weight.grad.isfinite().all()


def test_normalize_sums_to_one_even_for_tiny_scores() -> None:
    assert normalize(torch.tensor([1e-30, -1.0, 3e-30])).tolist() == pytest.approx([0.25, 0, 0.75])
    assert normalize(torch.tensor([-1.0, -2.0])).tolist() == [0, 0]


def test_mistakes_are_named() -> None:
    model = nn.Linear(3, 2)
    x, y = torch.ones(4, 3), torch.zeros(4).long()
    with pytest.raises(ValueError, match="one value per example"):
        reweighted_losses(model, x, y, x, y, lambda out, t: F.cross_entropy(out, t))
    with pytest.raises(ValueError, match="requires a gradient"):
        reweighted_losses(model.requires_grad_(False), x, y, x, y)


@pytest.mark.slow
def test_the_readmes_example_in_an_empty_file(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    example = next(part for part in re.findall(r"```python\n(.*?)```", readme, re.S) if "reweighted_losses" in part)
    (tmp_path / "example.py").write_text(example + "\nprint(loss.item())\n", encoding="utf-8")
    found = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, timeout=1200,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert found.returncode == 0 and math.isfinite(float(found.stdout)), found.stderr
    assert "the weights come from" not in found.stderr


@pytest.mark.slow
def test_reweight_imports_torch_alone() -> None:
    code = (
        "import sys, torch; before = {m.partition('.')[0] for m in sys.modules}; "
        "import dermrw.reweight.meta_step, dermrw.reweight.approximations;"
        "print(*sorted({m.partition('.')[0] for m in sys.modules} - before - set(sys.stdlib_module_names)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert found.stdout.split() == ["dermrw"], found.stdout + found.stderr


@pytest.mark.slow
def test_gradients_accumulate_over_micro_batches() -> None:
    torch.manual_seed(0)
    model = tv.mobilenet_v2(num_classes=CLASSES, dropout=0).double()
    x, y, meta_x, meta_y = batches(32, b=8)
    apart = []
    for half in (slice(0, 4), slice(4, 8)):
        one = copy.deepcopy(model)
        losses, weights = reweighted_losses(one, x[half], y[half], meta_x, meta_y)
        (weights * losses).sum().div(2).backward()
        apart.append([p.grad for p in one.parameters()])
        losses, weights = reweighted_losses(model, x[half], y[half], meta_x, meta_y)
        (weights * losses).sum().div(2).backward()
    for p, a, b in zip(model.parameters(), *apart, strict=True):
        assert a is not None and b is not None
        torch.testing.assert_close(p.grad, a + b, rtol=1e-9, atol=1e-13)

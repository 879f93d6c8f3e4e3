"""The cheaper ways: what each computes, against its own definition and against the exact weights."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as tv
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dermrw.models import last_stage
from dermrw.reweight.approximations import finite_difference_scores, last_stage_scores
from dermrw.reweight.meta_step import losses_along, meta_gradient, normalize

CLASSES = 7
Case = tuple[nn.Module, tuple[Tensor, Tensor, Tensor, Tensor]]


@pytest.fixture
def case() -> Case:
    torch.manual_seed(0)
    model = tv.mobilenet_v2(num_classes=CLASSES, width_mult=0.35).double()
    x, meta_x = torch.randn(8, 3, 32, 32).double(), torch.randn(7, 3, 32, 32).double()
    return model, (x, torch.arange(8) % CLASSES, meta_x, torch.arange(7))


def exact(case: Case) -> Tensor:
    model, (x, y, meta_x, meta_y) = copy.deepcopy(case)
    torch.manual_seed(3)
    return losses_along(model, x, y, meta_gradient(model, meta_x, meta_y))[1]


def test_the_finite_difference_nears_the_derivative_and_leaves_all_else_as_plain(case: Case) -> None:
    model, data = copy.deepcopy(case)
    plain = copy.deepcopy(model)
    torch.manual_seed(3)
    losses, scores = finite_difference_scores(model, *data, step=1e-9)
    after = torch.get_rng_state()
    torch.testing.assert_close(normalize(scores), normalize(exact(case)), rtol=0, atol=1e-4)
    losses.mean().backward()
    torch.manual_seed(3)
    F.cross_entropy(plain(data[0]), data[1]).backward()
    assert torch.equal(after, torch.get_rng_state())
    for p, q in zip(model.buffers(), plain.buffers(), strict=True):
        assert torch.equal(p, q)
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12)


def test_the_last_stage_is_the_exact_problem_of_fewer_parameters(case: Case) -> None:
    model, data = copy.deepcopy(case)
    names = last_stage(model)
    assert {name.rsplit(".", 2)[0] for name in names} == {"features.18", "classifier"}
    torch.manual_seed(3)
    _, scores = last_stage_scores(model, *data, names)
    frozen = copy.deepcopy(case)
    for name, p in frozen[0].named_parameters():
        p.requires_grad_(name in names)
    torch.testing.assert_close(scores, exact(frozen), rtol=1e-9, atol=1e-12)


def test_last_stage_of_a_resnet() -> None:
    names = last_stage(tv.resnet18())
    assert {"layer4.1.conv2.weight", "layer4.1.bn2.bias", "fc.weight", "fc.bias"} <= names
    assert all(name.startswith(("layer4.1.", "fc.")) for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("way, most", [("finite difference", 1.51), ("last stage", 1.25)])
def test_flops(way: str, most: float) -> None:
    """3F for plain training, less what the first layer is spared; one more F, or a little of it; the meta batch's."""
    model = tv.resnet18(num_classes=CLASSES)
    x, meta_x = torch.randn(32, 3, 32, 32), torch.randn(5, 3, 32, 32)
    y, meta_y = torch.arange(32) % CLASSES, torch.arange(5)
    with FlopCounterMode(display=False) as plain:
        F.cross_entropy(model(x), y).backward()
    with FlopCounterMode(display=False) as counted:
        if way == "last stage":
            losses, scores = last_stage_scores(model, x, y, meta_x, meta_y, last_stage(model))
        else:
            losses, scores = finite_difference_scores(model, x, y, meta_x, meta_y)
        (normalize(scores) * losses).sum().backward()
    assert counted.get_total_flops() / plain.get_total_flops() <= most

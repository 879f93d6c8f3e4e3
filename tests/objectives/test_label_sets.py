"""Objectives with images of which only a set of classes is known (`data.extra_benign=sum`)."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from dermrw.config import Config, load_config
from dermrw.diagnoses import BENIGN_CLASSES, DX
from dermrw.errors import UserError
from dermrw.objectives import Batch, Objective, build_objective
from dermrw.objectives.noise_weights import NoiseWeights, margin, noise_weights
from dermrw.objectives.weighted import Reweight
from dermrw.reweight.meta_step import meta_gradient, outputs_along

BENIGN = 7  # the label
LABELS = np.repeat(np.arange(8), [30, 120, 20, 10, 40, 5, 5, 50])


def config(*overrides: str) -> Config:
    return load_config(None, ["data.extra=x.csv", "data.extra_benign=sum", *overrides])


def objective(*overrides: str) -> Objective:
    return build_objective(config(*overrides), LABELS, 7, 400)


def case(seed: int = 0) -> tuple[nn.Module, Batch]:
    """A network with batch norm, a batch with labels that are the set, and a meta set, in float64."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 7)).double()
    rows = torch.from_numpy(np.random.default_rng(seed).permutation(len(LABELS))[:48])
    y = torch.from_numpy(LABELS)[rows]
    assert 3 < (y == BENIGN).sum() < 24
    x, meta_x = torch.randn(48, 6, dtype=torch.float64), torch.randn(14, 6, dtype=torch.float64)
    return model, Batch(x, y, rows, meta_x, torch.arange(14) % 7, 48)


def by_hand(logits: Tensor, y: Tensor) -> Tensor:
    """−log of the summed probability, one image at a time."""
    p = torch.softmax(logits, 1)
    members = [list(BENIGN_CLASSES) if label == BENIGN else [label] for label in y.tolist()]
    return torch.stack([-torch.log(p[i, rows].sum()) for i, rows in enumerate(members)])


def log_shares() -> Tensor:
    """log π: the 50 benign images are divided in proportion to the 170 images of benign classes."""
    counts = np.array([30, 120, 20, 10, 40, 5, 5], dtype=float)
    counts[list(BENIGN_CLASSES)] *= 1 + 50 / 170
    return torch.from_numpy(np.log(counts / 280))


def test_benign_classes() -> None:
    assert [DX[c] for c in BENIGN_CLASSES] == ["nv", "bkl", "df", "vasc"]


def test_plain_training_with_balanced_softmax() -> None:
    model, batch = case()
    loss, log = objective("objective=erm", "objective.loss=balanced_softmax")(model, batch)
    z = (model(batch.x) + log_shares()).detach().numpy()
    expected = [
        logsumexp(row) - logsumexp(row[list(BENIGN_CLASSES)] if y == BENIGN else row[[y]])
        for row, y in zip(z, batch.y.tolist(), strict=True)
    ]
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-12) and log == {}


@pytest.mark.parametrize("loss", ["cross_entropy", "balanced_softmax"])
def test_reweighting_is_that_of_double_backward(loss: str) -> None:
    """Algorithm 1 of Ren et al. written out in float64."""
    model, batch = case()
    shift = log_shares() if loss == "balanced_softmax" else 0.0
    plain = copy.deepcopy(model)
    epsilon = torch.zeros(48, dtype=torch.float64, requires_grad=True)
    losses = by_hand(plain(batch.x) + shift, batch.y)
    parameters = dict(plain.named_parameters())
    gradients = torch.autograd.grad((epsilon * losses).sum(), list(parameters.values()), create_graph=True)
    virtual = {name: p - 0.1 * g for (name, p), g in zip(parameters.items(), gradients, strict=True)}
    meta = cross_entropy(functional_call(plain, virtual, (batch.meta_x,)), batch.meta_y)
    u = (-torch.autograd.grad(meta, epsilon, retain_graph=True)[0]).clamp(min=0)
    tested = objective("objective=reweight", f"objective.loss={loss}")
    assert isinstance(tested, Reweight)
    found, weights = tested.weigh(model, batch)
    torch.testing.assert_close(found, losses, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(weights, u / u.sum(), rtol=1e-9, atol=1e-12)
    assert (weights[batch.y == BENIGN] > 0).any()
    # the per-image gradients, one backward pass each
    direction = meta_gradient(case()[0], batch.meta_x, batch.meta_y)
    inner = []
    for single in losses:
        of_one = torch.autograd.grad(single, list(parameters.values()), retain_graph=True)
        inner.append(sum((g * direction[name]).sum() for name, g in zip(parameters, of_one, strict=True)))
    positive = torch.stack([torch.as_tensor(value) for value in inner]).clamp(min=0)
    torch.testing.assert_close(weights, positive / positive.sum(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weights", ["exact", "finite_difference", "last_stage"])
def test_no_operator_of_the_loss_needs_a_slower_way(weights: str) -> None:
    model, batch = case()
    tested = objective("objective=reweight", "objective.loss=balanced_softmax", f"objective.weights={weights}")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the weights come from")  # and not torch's own, at the first import of a part
        loss, log = tested(model, batch)
    loss.backward()
    assert loss.isfinite() and len(log["class_weight"]) == 7
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_weight_of_a_set_is_the_likelihood_of_a_noisy_set() -> None:
    """∂/∂f of −log((1 − η) p + ε (1 − p)), p the probability of the set, is (1 − κ) V times ∂/∂f of −log p."""
    model, batch = case()
    logits, eta, eps = model(batch.x).detach().requires_grad_(), 0.3, 0.05
    p = torch.exp(-by_hand(logits, batch.y))
    (expected,) = torch.autograd.grad(-torch.log((1 - eta) * p + eps * (1 - p)).sum(), logits)
    odds = eps / (1 - eta)
    tested = objective("objective=noise_weights")
    losses = tested.losses(logits, batch.y)
    (found,) = torch.autograd.grad(((1 - odds) * noise_weights(losses.detach(), odds) * losses).sum(), logits)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_noise_weights_and_their_shares() -> None:
    model, batch = case()
    tested = objective("objective=noise_weights", "objective.loss=balanced_softmax", "objective.odds=0.2")
    assert isinstance(tested, NoiseWeights)
    torch.testing.assert_close(tested.shares.double(), log_shares().exp(), rtol=1e-6, atol=0)
    tested.step = 400 // 30
    losses = by_hand(model(batch.x) + tested.shares.log(), batch.y)
    loss, _ = tested(copy.deepcopy(model), batch)
    v = noise_weights(losses.detach(), 0.2)
    assert loss.item() == pytest.approx((v * losses).sum().item() / v.sum().item(), rel=1e-6)
    values = np.ones(len(LABELS))
    values[batch.row] = v
    total = np.array([values[label == LABELS].sum() for label in range(8)])
    benign = list(BENIGN_CLASSES)
    total[benign] *= 1 + total[7] / total[benign].sum()
    np.testing.assert_allclose(tested.shares, total[:7] / total[:7].sum(), rtol=1e-5)
    again = objective("objective=noise_weights", "objective.loss=balanced_softmax", "objective.odds=0.2")
    again.load_state_dict(copy.deepcopy(tested.state_dict()))
    assert torch.equal(tested(copy.deepcopy(model), batch)[0], again(copy.deepcopy(model), batch)[0])


def test_the_step_of_kappa_with_sets_is_that_of_double_backward() -> None:
    """Through the virtual step written out, without the common part of the logits' change, as documented."""
    torch.manual_seed(3)
    model = nn.Linear(6, 7).double()
    batch = case()[1]
    tested = objective("objective=noise_weights")
    assert isinstance(tested, NoiseWeights)
    tested.step = 400 // 30
    log_odds = torch.tensor(math.log(tested.odds), dtype=torch.float64, requires_grad=True)
    logits = model(batch.x)
    _, change = outputs_along(model, batch.x, meta_gradient(model, batch.meta_x, batch.meta_y, margin))
    losses = by_hand(logits, batch.y)
    values = noise_weights(losses.detach(), log_odds.exp())
    weight, bias = torch.autograd.grad((values * losses).mean(), [model.weight, model.bias], create_graph=True)
    virtual = batch.meta_x @ (model.weight - weight).T + (model.bias - bias)
    plain = torch.autograd.grad(margin(virtual, batch.meta_y).mean(), log_odds, retain_graph=True)[0]
    (slopes,) = torch.autograd.grad(losses.sum(), logits, retain_graph=True)
    (of_common,) = torch.autograd.grad(((slopes * change.mean(0)).sum(1) * values).mean(), log_odds)
    scores = (slopes * (change - change.mean(0))).sum(1)
    tested(model, batch)
    assert tested.log_odds.grad is not None
    assert tested.log_odds.grad.item() == pytest.approx(((plain + of_common) / scores.abs().mean()).item(), rel=1e-5)


@pytest.mark.parametrize("name", ["mixup", "fine_tune_meta", "random_weights", "meta_weight_net"])
def test_the_other_objectives_take_sets(name: str) -> None:
    model, batch = case()
    tested = objective(f"objective={name}", "objective.loss=balanced_softmax")
    for _ in range(2):
        loss, _ = tested(model, batch)
        loss.backward()
        assert loss.isfinite()


def test_settings_that_need_one_class_for_each_image_say_so() -> None:
    with pytest.raises(UserError, match=r"requires objective\.loss=cross_entropy, balanced_softmax or focal"):
        config("objective.loss=class_balanced")
    with pytest.raises(UserError, match=r"requires objective\.sampler=shuffled"):
        config("objective.sampler=balanced")
    with pytest.raises(UserError, match=r"requires data\.extra: name a table"):
        load_config(None, ["data.extra_benign=sum"])

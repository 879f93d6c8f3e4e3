import copy
import functools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from dermrw.config import load_config
from dermrw.errors import UserError
from dermrw.objectives import Batch, build_objective
from dermrw.objectives.noise_weights import START, NoiseWeights, margin, noise_weights
from dermrw.reweight.meta_step import losses_along, meta_gradient, outputs_along


def test_the_weight_is_what_the_likelihood_of_a_noisy_label_does_to_cross_entropys_gradient() -> None:
    """∂/∂f of −log((1 − η) p + ε (1 − p)) is (1 − κ) V(ℓ; κ) times ∂/∂f of −log p, κ = ε / (1 − η)."""
    torch.manual_seed(0)
    logits = torch.randn(50, 7, dtype=torch.float64, requires_grad=True)
    y, eta, eps = torch.arange(50) % 7, 0.3, 0.05
    p = torch.softmax(logits, 1).gather(1, y[:, None])[:, 0]
    (of_likelihood,) = torch.autograd.grad(-torch.log((1 - eta) * p + eps * (1 - p)).sum(), logits)
    losses = cross_entropy(logits, y, reduction="none")
    odds = eps / (1 - eta)
    weights = (1 - odds) * noise_weights(losses.detach(), odds)
    (of_weighted,) = torch.autograd.grad((weights * losses).sum(), logits)
    torch.testing.assert_close(of_weighted, of_likelihood, rtol=1e-10, atol=1e-12)
    assert (noise_weights(losses.detach(), 0.0) == 1).all()


def test_outputs_along_gives_the_slopes_of_any_loss() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()
    x, y = torch.randn(20, 5, dtype=torch.float64), torch.arange(20) % 3
    direction = meta_gradient(model, x[:6], y[:6])
    expected, slopes = losses_along(copy.deepcopy(model), x, y, direction)
    logits, change = outputs_along(model, x, direction)
    losses = cross_entropy(logits, y, reduction="none")
    torch.testing.assert_close(losses, expected)
    (of_logits,) = torch.autograd.grad(losses.sum(), logits)
    torch.testing.assert_close((of_logits * change).sum(1), slopes)


def case(noise: float, seed: int = 0) -> tuple[nn.Linear, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A linear model, 3 well separated and unbalanced classes with wrong labels, and 3 clean meta examples of each."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2.5 * torch.eye(3, 6)
    true = torch.repeat_interleave(torch.arange(3), torch.tensor([700, 200, 100]))
    x = centres[true] + torch.randn(1000, 6, generator=generator)
    wrong = torch.rand(1000, generator=generator) < noise
    given = torch.where(wrong, (true + torch.randint(1, 3, (1000,), generator=generator)) % 3, true)
    meta_y = torch.arange(9) % 3
    meta_x = centres[meta_y] + torch.randn(9, 6, generator=generator)
    torch.manual_seed(seed)
    return nn.Linear(6, 3), x, given, meta_x, meta_y


@functools.cache
def fit(noise: float, seed: int = 0, *overrides: str) -> tuple[NoiseWeights, nn.Module, torch.Tensor, torch.Tensor]:
    model, x, y, meta_x, meta_y = case(noise, seed)
    config = load_config(
        None, ["objective=noise_weights", "objective.loss=balanced_softmax", "train.epochs=20", *overrides]
    )
    objective = build_objective(config, y.numpy(), 3, 20 * 20)
    assert isinstance(objective, NoiseWeights)
    optimizer, rng = torch.optim.Adam(model.parameters(), 0.02), np.random.default_rng(seed)
    for _ in range(20):
        for rows in rng.permutation(1000).reshape(20, 50):
            batch = Batch(x[rows], y[rows], torch.from_numpy(rows), meta_x, meta_y, 50)
            optimizer.zero_grad()
            objective(model, batch)[0].backward()
            optimizer.step()
    return objective, model, x, y


@pytest.mark.slow
def test_the_odds_grow_with_the_noise_and_the_shares_become_the_true_ones() -> None:
    clean = np.mean([fit(0.0, seed)[0].odds for seed in range(2)])
    runs = [fit(0.4, seed) for seed in range(2)]
    noisy = np.mean([run[0].odds for run in runs])
    assert noisy > 0.05 and noisy > 10 * clean  # ε / (1 − η) = 0.2 / 0.6
    shares = np.mean([run[0].shares.numpy() for run in runs], 0)
    given = np.mean([run[0].counts / run[0].counts.sum() for run in runs], 0)
    true = np.array([0.7, 0.2, 0.1])
    assert np.abs(shares - true).sum() < np.abs(given - true).sum() / 2


@pytest.mark.slow
def test_between_refreshes_the_odds_stay_and_in_the_end_they_are_as_large() -> None:
    model, x, y, meta_x, meta_y = case(0.4)
    config = load_config(None, ["objective=noise_weights", "train.epochs=20", "objective.refresh_every=4"])
    objective = build_objective(config, y.numpy(), 3, 400)
    odds = []
    for step in range(36):
        rows = torch.arange(50) + 50 * (step % 20)
        odds.append(objective(model, Batch(x[rows], y[rows], rows, meta_x, meta_y, 50))[1]["odds"].item())
    assert len(set(odds[:20])) == 1  # the first epoch
    assert [len(set(odds[i : i + 4])) for i in range(20, 36, 4)] == [1] * 4 and len(set(odds[20:])) == 4
    often = np.mean([fit(0.4, seed)[0].odds for seed in range(2)])
    seldom = np.mean([fit(0.4, seed, "objective.refresh_every=4")[0].odds for seed in range(2)])
    assert often / 2 < seldom < 2 * often


def test_odds_that_are_given_stay() -> None:
    objective, *_ = fit(0.4, 0, "objective.odds=0.25")
    assert objective.odds == pytest.approx(0.25)


def test_the_first_epoch_weighs_all_alike() -> None:
    model, x, y, meta_x, meta_y = case(0.4)
    config = load_config(None, ["objective=noise_weights", "train.epochs=20"])
    objective = build_objective(config, y.numpy(), 3, 400)
    batch = Batch(x[:50], y[:50], torch.arange(50), meta_x, meta_y, 50)
    for _ in range(20):
        loss, log = objective(model, batch)
        assert loss.item() == pytest.approx(cross_entropy(model(batch.x), batch.y).item(), rel=1e-5)
        assert log["odds"].item() == pytest.approx(START)
    _, log = objective(model, batch)
    assert log["odds"].item() != pytest.approx(START, rel=1e-3)


def test_the_step_of_kappa_is_that_of_double_backward() -> None:
    """Through the virtual step written out, with the common part of the logits' change taken out as documented."""
    model, x, y, meta_x, meta_y = case(0.4)
    model, x, meta_x = model.double(), x[:50].double(), meta_x.double()
    rows = torch.randperm(1000, generator=torch.Generator().manual_seed(1))[:50]
    x, y_all = case(0.4)[1][rows].double(), y
    config = load_config(None, ["objective=noise_weights", "train.epochs=20"])
    objective = build_objective(config, y_all.numpy(), 3, 400)
    assert isinstance(objective, NoiseWeights)
    objective.step = 20
    log_odds = torch.tensor(math.log(START), dtype=torch.float64, requires_grad=True)
    logits = model(x)
    # what all images' logits do alike is not the weights' to answer for: its derivative is left out
    direction = meta_gradient(model, meta_x, meta_y, margin)
    _, change = outputs_along(model, x, direction)
    losses = cross_entropy(logits, y_all[rows], reduction="none")
    values = noise_weights(losses.detach(), log_odds.exp())
    weight, bias = torch.autograd.grad((values * losses).mean(), [model.weight, model.bias], create_graph=True)
    virtual = meta_x @ (model.weight - weight).T + (model.bias - bias)
    plain = torch.autograd.grad(margin(virtual, meta_y).mean(), log_odds, retain_graph=True)[0]
    (slopes,) = torch.autograd.grad(losses.sum(), logits, retain_graph=True)
    common = (slopes * change.mean(0)).sum(1)
    (of_common,) = torch.autograd.grad((common * values).mean(), log_odds)
    objective(model, Batch(x, y_all[rows], rows, meta_x, meta_y, 50))
    scores = (slopes * (change - change.mean(0))).sum(1)
    expected = (plain + of_common) / scores.abs().mean()
    assert objective.log_odds.grad is not None
    assert objective.log_odds.grad.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_resume_goes_on_alike() -> None:
    objective, model, x, y = fit(0.4)
    _, _, _, meta_x, meta_y = case(0.4)
    config = load_config(None, ["objective=noise_weights", "objective.loss=balanced_softmax", "train.epochs=20"])
    other = build_objective(config, y.numpy(), 3, 400)
    other.load_state_dict(copy.deepcopy(objective.state_dict()))
    batch = Batch(x[:50], y[:50], torch.arange(50), meta_x, meta_y, 50)
    for _ in range(3):
        assert torch.equal(objective(model, batch)[0], other(model, batch)[0])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["objective=erm", "objective.odds=0.1"], "objective.odds is an option of noise_weights"),
        (
            ["objective=noise_weights", "objective.loss=focal"],
            "requires objective.loss=cross_entropy",
        ),
    ],
)
def test_what_does_not_go_together(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_config(None, overrides)

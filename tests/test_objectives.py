import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from dermrw.config import Objective as Config
from dermrw.objectives import Batch, build_objective
from dermrw.reweight import reweighted_losses


@pytest.fixture
def case() -> tuple[nn.Module, Batch]:
    torch.manual_seed(0)
    x, meta_x = torch.randn(20, 5), torch.randn(6, 5)
    y = torch.arange(20) % 3
    return nn.Linear(5, 3), Batch(x, y, torch.arange(20), meta_x, torch.arange(6) % 3, 20)


@pytest.mark.parametrize(("name", "sampler"), [("erm", "shuffled"), ("weighted_sampling", "balanced")])
def test_plain_cross_entropy(case: tuple[nn.Module, Batch], name: str, sampler: str) -> None:
    model, batch = case
    objective = build_objective(Config(name=name), 3, 20)  # type: ignore[arg-type]
    loss, log = objective(model, batch)
    assert loss.item() == pytest.approx(cross_entropy(model(batch.x), batch.y).item())
    assert (objective.sampler, log) == (sampler, {})


def test_reweighting_and_what_it_logs(case: tuple[nn.Module, Batch]) -> None:
    model, batch = case
    losses, weights = reweighted_losses(model, batch.x, batch.y, batch.meta_x, batch.meta_y)
    loss, log = build_objective(Config(name="reweight"), 3, 20)(model, batch)
    assert loss.item() == pytest.approx((losses * weights).sum().item())
    for c in range(3):
        assert log["class_weight"][c].item() == pytest.approx(weights[batch.y == c].sum().item())
    assert log["zero_share"].item() == pytest.approx((weights == 0).float().mean().item())
    assert log["effective_batch"].item() == pytest.approx(1 / (weights**2).sum().item())
    assert log["all_zero"].item() == 0


def test_a_step_without_agreement_is_counted() -> None:
    model, ones = nn.Linear(3, 2), torch.ones(4, 3)
    batch = Batch(ones, torch.zeros(4).long(), torch.arange(4), ones, torch.ones(4).long(), 4)
    loss, log = build_objective(Config(name="reweight"), 2, 4)(model, batch)
    assert (loss.item(), log["all_zero"].item(), log["effective_batch"].item()) == (0, 1, 0)


def test_refresh_every_keeps_the_weights_between_refreshes(case: tuple[nn.Module, Batch]) -> None:
    model, batch = case
    objective = build_objective(Config(name="reweight", refresh_every=3), 3, 20)
    exact = build_objective(Config(name="reweight"), 3, 20)
    first = objective(model, batch)[0]
    assert first.item() == pytest.approx(exact(model, batch)[0].item())
    with torch.no_grad():
        model.weight.add_(torch.randn_like(model.weight))  # another network would weigh anew
    stale = objective(model, batch)
    assert stale[0].item() != pytest.approx(exact(model, batch)[0].item(), rel=1e-3)
    losses = cross_entropy(model(batch.x), batch.y, reduction="none")
    _, weights = reweighted_losses(copy.deepcopy(case[0]), batch.x, batch.y, batch.meta_x, batch.meta_y)
    assert not torch.allclose(weights @ losses, stale[0], rtol=1e-3)

    # a resume remembers, too
    other = build_objective(Config(name="reweight", refresh_every=3), 3, 20)
    other.load_state_dict(objective.state_dict())
    assert torch.equal(other(model, batch)[0], objective(model, batch)[0])  # the third step
    assert objective(model, batch)[0].item() == pytest.approx(exact(model, batch)[0].item())  # the fourth is exact


def test_an_example_that_was_never_weighed_is_weighed_at_once(case: tuple[nn.Module, Batch]) -> None:
    model, batch = case
    objective = build_objective(Config(name="reweight", refresh_every=100), 3, 40)
    objective(model, batch)
    new = batch._replace(row=batch.row + 20)
    exact = build_objective(Config(name="reweight"), 3, 40)
    assert objective(model, new)[0].item() == pytest.approx(exact(model, new)[0].item())


@pytest.mark.parametrize("weights", ["finite_difference", "last_stage"])
def test_cheaper_weights(case: tuple[nn.Module, Batch], weights: str) -> None:
    """Of a linear model the last stage is the model, and the difference quotient nears the derivative."""
    model, batch = case
    model = nn.Sequential(model).double()
    batch = batch._replace(x=batch.x.double(), meta_x=batch.meta_x.double())
    loss, _ = build_objective(Config(name="reweight", weights=weights), 3, 20)(model, batch)  # type: ignore[arg-type]
    exact, _ = build_objective(Config(name="reweight"), 3, 20)(model, batch)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)

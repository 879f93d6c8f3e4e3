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
    return nn.Linear(5, 3), Batch(x, y, torch.arange(20), meta_x, torch.arange(6) % 3)


@pytest.mark.parametrize(("name", "sampler"), [("erm", "shuffled"), ("weighted_sampling", "balanced")])
def test_plain_cross_entropy(case: tuple[nn.Module, Batch], name: str, sampler: str) -> None:
    model, batch = case
    objective = build_objective(Config(name=name), 3)  # type: ignore[arg-type]
    loss, log = objective(model, batch)
    assert loss.item() == pytest.approx(cross_entropy(model(batch.x), batch.y).item())
    assert (objective.sampler, log) == (sampler, {})


def test_reweighting_and_what_it_logs(case: tuple[nn.Module, Batch]) -> None:
    model, batch = case
    losses, weights = reweighted_losses(model, batch.x, batch.y, batch.meta_x, batch.meta_y)
    loss, log = build_objective(Config(name="reweight"), 3)(model, batch)
    assert loss.item() == pytest.approx((losses * weights).sum().item())
    for c in range(3):
        assert log["class_weight"][c].item() == pytest.approx(weights[batch.y == c].sum().item())
    assert log["zero_share"].item() == pytest.approx((weights == 0).float().mean().item())
    assert log["effective_batch"].item() == pytest.approx(1 / (weights**2).sum().item())
    assert log["all_zero"].item() == 0


def test_a_step_without_agreement_is_counted() -> None:
    model, ones = nn.Linear(3, 2), torch.ones(4, 3)
    batch = Batch(ones, torch.zeros(4).long(), torch.arange(4), ones, torch.ones(4).long())
    loss, log = build_objective(Config(name="reweight"), 2)(model, batch)
    assert (loss.item(), log["all_zero"].item(), log["effective_batch"].item()) == (0, 1, 0)

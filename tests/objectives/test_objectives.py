import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from dermrw.config import load_config
from dermrw.errors import UserError
from dermrw.objectives import Batch, Objective, build_objective
from dermrw.objectives.meta_weight_net import MetaWeightNet
from dermrw.objectives.weighted import Weighted
from dermrw.reweight.meta_step import reweighted_losses


def objective_of(*overrides: str, examples: int = 20, classes: int = 3, steps: int = 100) -> Objective:
    """The objective that these overrides ask for, of a training set with as many images of every class."""
    return build_objective(load_config(None, overrides), np.arange(examples) % classes, classes, steps)


@pytest.fixture
def case() -> tuple[nn.Linear, Batch]:
    torch.manual_seed(0)
    x, meta_x = torch.randn(20, 5), torch.randn(6, 5)
    y = torch.arange(20) % 3
    return nn.Linear(5, 3), Batch(x, y, torch.arange(20), meta_x, torch.arange(6) % 3, 20)


@pytest.mark.parametrize("sampler", ["shuffled", "balanced"])
def test_plain_cross_entropy(case: tuple[nn.Linear, Batch], sampler: str) -> None:
    model, batch = case
    objective = objective_of("objective=erm", f"objective.sampler={sampler}")
    loss, log = objective(model, batch)
    assert loss.item() == pytest.approx(cross_entropy(model(batch.x), batch.y).item())
    assert (objective.sampler, log) == (sampler, {})


def test_reweighting_and_what_it_logs(case: tuple[nn.Linear, Batch]) -> None:
    model, batch = case
    losses, weights = reweighted_losses(model, batch.x, batch.y, batch.meta_x, batch.meta_y)
    loss, log = objective_of("objective=reweight")(model, batch)
    assert loss.item() == pytest.approx((losses * weights).sum().item())
    for c in range(3):
        assert log["class_weight"][c].item() == pytest.approx(weights[batch.y == c].sum().item())
    assert log["zero_share"].item() == pytest.approx((weights == 0).float().mean().item())
    assert log["effective_batch"].item() == pytest.approx(1 / (weights**2).sum().item())
    assert log["all_zero"].item() == 0


def test_a_step_without_agreement_is_counted() -> None:
    model, ones = nn.Linear(3, 2), torch.ones(4, 3)
    batch = Batch(ones, torch.zeros(4).long(), torch.arange(4), ones, torch.ones(4).long(), 4)
    loss, log = objective_of("objective=reweight", examples=4, classes=2)(model, batch)
    assert (loss.item(), log["all_zero"].item(), log["effective_batch"].item()) == (0, 1, 0)


def test_an_image_that_two_processes_draw_has_one_weight(
    case: tuple[nn.Linear, Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `objective.sampler=balanced`, an image may be in the parts of several processes."""
    objective = objective_of("objective=reweight")
    assert isinstance(objective, Weighted)
    values, batch = torch.rand(20), case[1]
    rows = torch.arange(5)
    batch = batch._replace(row=rows)
    other = torch.zeros(20)
    other[3:8] = torch.arange(5.0)  # what the other process drew: rows 3 to 7

    def sum_over(tensors: list[torch.Tensor], _group: object) -> None:
        tensors[0] += other
        tensors[1][3:8] += 1

    monkeypatch.setattr("dermrw.objectives.weighted.sum_over", sum_over)
    found, seen = objective._by_row(values[:5], batch)
    assert seen.tolist() == [1.0] * 8 + [0.0] * 12
    assert found[:3] == pytest.approx(values[:3]) and found[5:8].tolist() == [2.0, 3.0, 4.0]
    assert found[3:5] == pytest.approx((values[3:5] + torch.tensor([0.0, 1.0])) / 2)


def test_refresh_every_keeps_the_weights_between_refreshes(case: tuple[nn.Linear, Batch]) -> None:
    model, batch = case
    objective = objective_of("objective.refresh_every=3")
    exact = objective_of("objective=reweight")
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
    other = objective_of("objective.refresh_every=3")
    other.load_state_dict(objective.state_dict())
    assert torch.equal(other(model, batch)[0], objective(model, batch)[0])  # the third step
    assert objective(model, batch)[0].item() == pytest.approx(exact(model, batch)[0].item())  # the fourth is exact


def test_an_example_that_was_never_weighed_is_weighed_at_once(case: tuple[nn.Linear, Batch]) -> None:
    model, batch = case
    objective = objective_of("objective.refresh_every=100", examples=40)
    objective(model, batch)
    new = batch._replace(row=batch.row + 20)
    exact = objective_of("objective=reweight", examples=40)
    assert objective(model, new)[0].item() == pytest.approx(exact(model, new)[0].item())


@pytest.mark.parametrize("weights", ["finite_difference", "last_stage"])
def test_cheaper_weights(case: tuple[nn.Linear, Batch], weights: str) -> None:
    """Of a linear model the last stage is the model, and the difference quotient nears the derivative."""
    linear, batch = case
    model = nn.Sequential(linear).double()
    batch = batch._replace(x=batch.x.double(), meta_x=batch.meta_x.double())
    loss, _ = objective_of(f"objective.weights={weights}")(model, batch)
    exact, _ = objective_of("objective=reweight")(model, batch)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)


def test_reweighting_on_top_of_another_loss(case: tuple[nn.Linear, Batch]) -> None:
    """The slopes are of the training loss, the direction of the meta set's plain cross-entropy: by double backward."""
    model, batch = case
    model = model.double()
    batch = batch._replace(x=batch.x.double(), meta_x=batch.meta_x.double())
    objective = build_objective(
        load_config(None, ["objective.loss=balanced_softmax"]), np.repeat([0, 1, 2], [12, 6, 2]), 3, 100
    )
    eps = torch.zeros(20, dtype=torch.float64, requires_grad=True)
    log_shares = torch.log(torch.tensor([12, 6, 2], dtype=torch.float64) / 20)
    losses = cross_entropy(model(batch.x) + log_shares, batch.y, reduction="none")
    weight, bias = torch.autograd.grad((eps * losses).sum(), [model.weight, model.bias], create_graph=True)
    virtual = batch.meta_x @ (model.weight - weight).T + (model.bias - bias)
    u = -torch.autograd.grad(cross_entropy(virtual, batch.meta_y), eps)[0]
    w = u.clamp(min=0) / u.clamp(min=0).sum()
    assert objective(model, batch)[0].item() == pytest.approx((w * losses).sum().item(), rel=1e-10)


def test_mixup_is_the_losses_of_both_labels_on_mixed_images(case: tuple[nn.Linear, Batch]) -> None:
    model, batch = case
    torch.manual_seed(3)
    loss, _ = objective_of("objective=mixup")(model, batch)
    torch.manual_seed(3)
    share = torch.distributions.Beta(torch.tensor(0.2), torch.tensor(0.2)).sample()
    partner = torch.randperm(20)
    soft = share * nn.functional.one_hot(batch.y, 3) + (1 - share) * nn.functional.one_hot(batch.y[partner], 3)
    mixed = share * batch.x + (1 - share) * batch.x[partner]
    assert loss.item() == pytest.approx(cross_entropy(model(mixed), soft).item(), rel=1e-5)


def test_fine_tuning_takes_the_meta_set_alone_in_the_last_fifth(case: tuple[nn.Linear, Batch]) -> None:
    model, batch = case
    objective = objective_of("objective=fine_tune_meta", steps=10)
    losses = [objective(model, batch)[0].item() for _ in range(10)]
    assert losses[:8] == pytest.approx([cross_entropy(model(batch.x), batch.y).item()] * 8)
    assert losses[8:] == pytest.approx([cross_entropy(model(batch.meta_x), batch.meta_y).item()] * 2)


def test_random_weights_look_like_weights_and_mean_nothing(case: tuple[nn.Linear, Batch]) -> None:
    model, batch = case
    objective = objective_of("objective=random_weights")
    torch.manual_seed(0)
    zero = [objective(model, batch)[1]["zero_share"].item() for _ in range(100)]
    assert np.mean(zero) == pytest.approx(0.5, abs=0.05)  # half of standard normal draws are negative
    mean = objective.example_weights()
    assert mean is not None
    assert np.sum(mean) == pytest.approx(20, rel=1e-5) and np.std(mean) < 0.2  # 1.2 / √100 each


def test_each_images_mean_weight_is_kept(case: tuple[nn.Linear, Batch]) -> None:
    model, batch = case
    objective = objective_of("objective=reweight", examples=30)
    expected = np.zeros(30)
    for _ in range(3):
        _, weights = reweighted_losses(model, batch.x, batch.y, batch.meta_x, batch.meta_y)
        expected[:20] += weights.numpy() * 20 / 3
        objective(model, batch)
        with torch.no_grad():
            model.weight.add_(0.1)
    found = objective.example_weights()
    assert found is not None
    np.testing.assert_allclose(found[:20], expected[:20], rtol=1e-4)
    assert np.isnan(found[20:]).all()
    again = objective_of("objective=reweight", examples=30)
    again.load_state_dict(objective.state_dict())
    np.testing.assert_array_equal(again.example_weights(), found)


@pytest.mark.parametrize("name", ["reweight", "random_weights", "meta_weight_net"])
def test_the_warm_up_is_plain_training(case: tuple[nn.Linear, Batch], name: str) -> None:
    model, batch = case
    objective = objective_of(f"objective={name}", "objective.warm_up=0.5", steps=4)
    for step in range(4):
        loss, log = objective(model, batch)
        is_mean = loss.item() == pytest.approx(cross_entropy(model(batch.x), batch.y).item())
        assert (is_mean, "class_weight" in log) == (step < 2, step >= 2)
        assert (objective.example_weights() is None) == (step < 2)


@pytest.mark.parametrize("loss", ["inverse_frequency", "class_balanced"])
def test_the_warm_up_of_class_weights(case: tuple[nn.Linear, Batch], loss: str) -> None:
    model, batch = case
    labels = np.repeat([0, 1, 2], [10, 6, 4])
    batch = batch._replace(y=torch.from_numpy(labels))
    settings = ["objective=erm", f"objective.loss={loss}"]
    deferred, usual, plain = (
        build_objective(load_config(None, more), labels, 3, 4)
        for more in ([*settings, "objective.warm_up=0.5"], settings, ["objective=erm"])
    )
    for step in range(4):
        found, weighted, mean = (objective(model, batch)[0].item() for objective in (deferred, usual, plain))
        assert weighted != pytest.approx(mean)
        assert found == pytest.approx(mean if step < 2 else weighted)


@pytest.mark.parametrize("name", ["erm", "noise_weights", "mixup"])
def test_the_warm_up_is_refused_where_it_has_no_meaning(name: str) -> None:
    with pytest.raises(UserError, match=rf"objective\.warm_up is an option of reweight.*, not of {name}"):
        load_config(None, [f"objective={name}", "objective.warm_up=0.5"])


def test_how_far_weights_swing_is_logged(case: tuple[nn.Linear, Batch]) -> None:
    model, batch = case
    objective = objective_of("objective=reweight")
    first = objective(model, batch)[1]
    assert "class_swing" not in first and "example_swing" not in first
    still = objective(model, batch)[1]
    assert still["class_swing"].item() == pytest.approx(0, abs=1e-6)
    assert still["example_swing"].item() == pytest.approx(0, abs=1e-5)
    with torch.no_grad():
        model.weight.neg_()
    moved = objective(model, batch)[1]
    shares = (moved["class_weight"] - still["class_weight"]).abs().sum() / 2
    assert moved["class_swing"].item() == pytest.approx(shares.item(), rel=1e-4) and shares > 0.01


def test_meta_weight_net_takes_the_step_that_double_backward_takes(case: tuple[nn.Linear, Batch]) -> None:
    """The gradient of φ, through the virtual step, by autograd alone; then the weights that the new φ gives."""
    model, batch = case
    model = model.double()
    batch = batch._replace(x=batch.x.double(), meta_x=batch.meta_x.double())
    objective = objective_of("objective=meta_weight_net", "train.lr=0.5")
    assert isinstance(objective, MetaWeightNet)
    objective.net.double()
    net = copy.deepcopy(objective.net)

    losses = cross_entropy(model(batch.x), batch.y, reduction="none")
    values = net(losses.detach()[:, None])[:, 0]
    gradients = torch.autograd.grad((values * losses).mean(), [model.weight, model.bias], create_graph=True)
    virtual = batch.meta_x @ (model.weight - 0.5 * gradients[0]).T + (model.bias - 0.5 * gradients[1])
    cross_entropy(virtual, batch.meta_y).backward(inputs=list(net.parameters()))

    loss, _ = objective(model, batch)
    for mine, other in zip(objective.net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-9, atol=1e-12)
    values = objective.net(losses.detach()[:, None])[:, 0].detach()
    assert loss.item() == pytest.approx((values / values.sum() * losses).sum().item(), rel=1e-9)
    assert all(p.grad is None for p in model.parameters())


def test_meta_weight_nets_virtual_step_counts_in_bf16(case: tuple[nn.Linear, Batch]) -> None:
    """Autocast keeps copies of the parameters, which must not outlive the virtual step."""
    found = []
    for cached in (True, False):
        model, batch = copy.deepcopy(case[0]), case[1]
        objective = objective_of("objective=meta_weight_net", "train.lr=1")
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cached):
            assert isinstance(objective, MetaWeightNet)
            weights = objective.weigh(model, batch)[1]
        found.append([weights, *(p.detach() for p in objective.net.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_kept_weights_do_not_drift(case: tuple[nn.Linear, Batch]) -> None:
    """Between refreshes the weights are normalised in other batches, which says nothing about the images."""
    model, batch = case
    objective = objective_of("objective=reweight", "objective.refresh_every=2")
    assert isinstance(objective, Weighted)
    objective(model, batch)
    before = objective.last.clone()
    part = batch._replace(x=batch.x[:4], y=batch.y[:4], row=batch.row[:4], total=4)
    objective(model, part)
    assert torch.equal(objective.last, before) and objective.seen[:4].tolist() == [2.0] * 4

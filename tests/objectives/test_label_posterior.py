"""The label posterior: formulas against Bayes' rule, autograd and scikit-learn, estimates on simulated labels."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from tools.simulated_labels import prepared, simulate, with_noise
from torch import nn

from dermrw.config import load_config
from dermrw.errors import UserError
from dermrw.objectives import Batch, build_objective
from dermrw.objectives.held_out import (
    BIAS_PENALTY,
    CrossValidation,
    HeldOutWeights,
    Labels,
    LabelWeights,
    fit_head,
    head_objective,
    log_likelihood,
)
from dermrw.objectives.label_posterior import LabelPosterior, estimate_noise, label_posterior, right_probability
from dermrw.objectives.losses import LEAST_SHARE


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.6])
def test_likelihood_and_posterior_are_bayes_rule(rate: float) -> None:
    log_p = log_softmax(np.random.default_rng(0).normal(size=(50, 3)) * 5, 1)
    given = np.random.default_rng(1).integers(0, 3, 50)
    matrix = np.full((3, 3), rate / 2) + (1 - 1.5 * rate) * np.eye(3)  # P(given | true)
    joint = np.exp(log_p) * matrix[:, given].T  # P(true, given) [50, 3]
    rows = np.arange(50)
    found = log_likelihood(log_p[rows, given], rate, 3)
    np.testing.assert_allclose(found, np.log(joint.sum(1)), rtol=1e-12)
    posterior = right_probability(log_p[rows, given], rate, 3)
    np.testing.assert_allclose(posterior, (joint / joint.sum(1, keepdims=True))[rows, given], rtol=1e-10)


def test_probabilities_that_vanish() -> None:
    for rate in (0.0, 0.3):
        with np.errstate(all="raise", under="ignore"):
            assert np.isfinite(log_likelihood(np.array([-1e4, -1e-20, 0.0]), rate, 7)).all()
            assert ((right := right_probability(np.array([-1e4, 0.0]), rate, 7)) >= 0).all() and right[1] == 1
    assert right_probability(np.array([-1e4]), 0.3, 7)[0] == 0


@pytest.mark.parametrize("rate", [0.0, 0.25])
def test_the_gradient_of_the_head_is_autograds(rate: float) -> None:
    data = simulate(60)
    labels = prepared(data, with_noise(data, 0.3))
    theta = np.random.default_rng(2).normal(size=labels.x.shape[1] * 3)
    value, gradient = head_objective(theta, labels, rate, 0.05)
    variable = torch.tensor(theta, requires_grad=True)
    weights = variable.reshape(-1, 3)
    matrix = torch.full((3, 3), rate / 2) + (1 - 1.5 * rate) * torch.eye(3)
    p = torch.softmax(torch.tensor(labels.x) @ weights, 1) @ matrix.double()
    right = torch.log_softmax(torch.tensor(labels.right_x) @ weights, 1)
    loss = (
        -p[torch.arange(60), torch.tensor(labels.y)].log().sum() - right[range(9), torch.tensor(labels.right_y)].sum()
    )
    loss = loss / 60 + 0.05 / 2 * weights[:-1].square().sum() + BIAS_PENALTY / 2 * weights[-1].square().sum()
    loss.backward()
    assert variable.grad is not None and value == pytest.approx(loss.item(), rel=1e-7)
    np.testing.assert_allclose(gradient, variable.grad.numpy(), rtol=1e-6, atol=1e-8)


def test_without_noise_the_head_is_scikit_learns() -> None:
    data = simulate(300)
    labels = prepared(data, data.true)
    x, y = np.vstack([labels.x, labels.right_x]), np.concatenate([labels.y, labels.right_y])
    theirs = LogisticRegression(C=1 / (0.05 * 300), tol=1e-8, max_iter=1000).fit(x[:, :-1], y)
    theta = fit_head(labels, 0.0, 0.05, np.zeros(x.shape[1] * 3)).reshape(-1, 3)
    found = np.exp(log_softmax(x @ theta, 1))
    np.testing.assert_allclose(found, theirs.predict_proba(x[:, :-1]), atol=2e-3)  # its bias has no penalty


def test_no_image_is_predicted_by_a_head_that_saw_its_group() -> None:
    """The probabilities that a label may take add up to one: they do not depend on the label."""
    data = simulate(120)
    labels = prepared(data, data.true)
    total = np.zeros(2)
    for label in range(3):
        changed = labels.y.copy()
        changed[:2] = label  # both images of a group
        total += np.exp(CrossValidation(labels._replace(y=changed)).log_p(0.0, 0.03)[:2])
    np.testing.assert_allclose(total, 1, rtol=1e-9)


@pytest.mark.parametrize("rate", [0.2, 0.4])
def test_the_rate_of_uniform_noise_and_the_wrong_labels_are_found(rate: float) -> None:
    data = simulate()
    given = with_noise(data, rate)
    posterior, noise = label_posterior(prepared(data, given))
    wrong = given != data.true
    assert abs(noise.rate - wrong.mean()) < 0.06 and noise.gain > 2 * noise.error > 0
    assert roc_auc_score(wrong, -posterior) > 0.95
    assert posterior.mean() == pytest.approx(1 - wrong.mean(), abs=0.06)


@pytest.mark.parametrize(("rate", "kind"), [(0.0, "uniform"), (0.3, "next class")])
def test_without_uniform_noise_all_weights_are_one(rate: float, kind: str) -> None:
    data = simulate()
    posterior, noise = label_posterior(prepared(data, with_noise(data, rate, kind)))
    assert noise.rate == 0 and (posterior == 1).all()


def test_a_gain_that_chance_explains_is_no_noise() -> None:
    """Four of two hundred labels are wrong: the likelihood rises, but by less than two standard errors."""
    data = simulate(200)
    given = data.true.copy()
    given[:4] = (given[:4] + 1) % 3
    noise = estimate_noise(CrossValidation(prepared(data, given)))
    assert noise.rate == 0 and 0 < noise.gain < 2 * noise.error


@pytest.mark.parametrize("name", ["label_posterior", "confident_learning"])
def test_one_group_is_not_weighted(name: str) -> None:
    data = simulate(60)
    data.groups[:] = 5
    tested = build_objective(load_config(None, [f"objective={name}"]), with_noise(data, 0.4), 3, 10)
    assert isinstance(tested, HeldOutWeights)
    found = tested.estimate(data.embeddings, data.groups, data.right)
    assert found.noise_rate == 0 and (found.values == 1).all()
    assert found.sentence.startswith("All training images are of one group, so no label can be predicted")


def test_many_images_choose_the_rate_by_a_part_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    data = simulate()
    given = with_noise(data, 0.4)
    seen: list[int] = []
    whole = CrossValidation.__init__

    def counted(self: CrossValidation, labels: Labels) -> None:
        seen.append(len(labels.y))
        whole(self, labels)

    monkeypatch.setattr(CrossValidation, "__init__", counted)
    monkeypatch.setattr("dermrw.objectives.label_posterior.SEARCHED", 600)
    posterior, noise = label_posterior(prepared(data, given))
    assert seen == [600, 900] and noise.rate > 0.3
    assert roc_auc_score(given != data.true, -posterior) > 0.95


def objective_of(labels: np.ndarray, *overrides: str) -> LabelPosterior:
    config = load_config(None, ["objective=label_posterior", *overrides])
    found = build_objective(config, labels, 3, 10)
    assert isinstance(found, LabelPosterior)
    return found


def batch_of(rows: list[int], labels: np.ndarray) -> Batch:
    x = torch.randn(len(rows), 5, generator=torch.Generator().manual_seed(0))
    return Batch(x, torch.from_numpy(labels[rows]), torch.tensor(rows), x, torch.from_numpy(labels[rows]), len(rows))


def test_the_loss_is_the_weighted_mean_under_the_weighted_shares() -> None:
    labels, values = np.array([0, 0, 0, 1, 1, 2]), np.array([1.0, 0.8, 0.2, 0.5, 0.0, 0.9])
    tested = objective_of(labels, "objective.loss=balanced_softmax")
    tested.set_weights(LabelWeights(values, 0.4, ""))
    torch.manual_seed(0)
    model, batch = nn.Linear(5, 3), batch_of([0, 2, 3, 4, 5], labels)
    loss, log = tested(model, batch)
    shares = torch.tensor([2.0, 0.5, 0.9]) / 3.4
    weights = torch.tensor([1.0, 0.2, 0.5, 0.0, 0.9]) / 2.6
    losses = nn.functional.cross_entropy(model(batch.x) + shares.log(), batch.y, reduction="none")
    assert loss.item() == pytest.approx((weights * losses).sum().item(), rel=1e-6)
    assert log["noise_rate"].item() == pytest.approx(0.4)
    assert log["effective_batch"].item() == pytest.approx(1 / weights.square().sum().item())
    found = tested.example_weights()
    assert found is not None
    np.testing.assert_allclose(found, values / values.mean(), rtol=1e-6)
    again = objective_of(labels, "objective.loss=balanced_softmax")
    again.load_state_dict(tested.state_dict())
    assert again(model, batch)[0].item() == tested(model, batch)[0].item() and again.noise_rate == 0.4


def test_without_noise_it_is_the_loss_alone() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    tested = objective_of(labels, "objective.loss=balanced_softmax")
    tested.set_weights(LabelWeights(np.ones(6), 0.0, ""))
    plain = build_objective(load_config(None, ["objective=erm", "objective.loss=balanced_softmax"]), labels, 3, 10)
    torch.manual_seed(0)
    model, batch = nn.Linear(5, 3), batch_of([0, 1, 3, 5], labels)
    assert tested(model, batch)[0].item() == pytest.approx(plain(model, batch)[0].item(), rel=1e-6)


def test_a_class_whose_labels_all_look_wrong_keeps_a_share() -> None:
    tested = objective_of(np.array([0, 0, 1, 2]), "objective.loss=balanced_softmax")
    tested.set_weights(LabelWeights(np.array([1.0, 1.0, 1.0, 0.0]), 0.3, ""))
    assert tested.shares[2].item() == pytest.approx(LEAST_SHARE / 4 / (1 + LEAST_SHARE / 4), rel=1e-5)


def test_images_whose_label_is_a_set_keep_their_weight() -> None:
    data = simulate(300)
    given = with_noise(data, 0.4)
    given[::10] = 3  # the set of the benign classes
    tested = objective_of(np.minimum(given, 2))
    tested.labels = torch.from_numpy(given)
    found = tested.estimate(data.embeddings, data.groups, data.right)
    assert found.noise_rate > 0.3 and (found.values[::10] == 1).all() and found.values[given < 3].mean() < 0.8
    assert found.sentence.startswith(f"Estimated label noise: {100 * found.noise_rate:.0f} % of the labels (uniform)")
    found = objective_of(data.true).estimate(data.embeddings, data.groups, data.right)
    assert "No uniform label noise was found" in found.sentence and (found.values == 1).all()


def test_losses_without_the_posterior_are_refused() -> None:
    with pytest.raises(UserError, match=r"label_posterior requires objective.loss=cross_entropy or balanced_softmax"):
        load_config(None, ["objective=label_posterior", "objective.loss=focal"])
    with pytest.raises(UserError, match="refresh_every is an option of"):
        load_config(None, ["objective=label_posterior", "objective.refresh_every=2"])

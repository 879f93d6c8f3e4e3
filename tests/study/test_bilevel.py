"""Exact bilevel weights of a convex head, against finite differences, autograd and scikit-learn, in float64."""

import json
from collections.abc import Callable, Collection
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from dermrw.diagnoses import DX
from dermrw.errors import UserError
from dermrw.study.bilevel import NOISE, PAIRS, REPEATS, RESULT, agreement, differences, solve
from dermrw.study.convex_head import Examples, conjugate_gradients, exact_scores, fit, losses, one_step_scores
from dermrw.study.repeats import clipped, draw_problem, read_repeats

PENALTY = 1e-2
ROOT = Path(__file__).parents[2]


def drawn(n: int, features: int = 5, classes: int = 3, seed: int = 0) -> Examples:
    """Returns examples whose labels depend on the features, with some wrong."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, features))
    y = (x[:, :classes] + 0.7 * rng.normal(size=(n, classes))).argmax(1)
    return Examples(torch.from_numpy(x), torch.from_numpy(y))


@pytest.fixture
def weights() -> torch.Tensor:
    """Returns weights of 40 examples, three of them zero, that sum to 1."""
    found = torch.from_numpy(np.random.default_rng(3).random(40))
    found[:3] = 0
    return found / found.sum()


def start(train: Examples) -> torch.Tensor:
    return torch.zeros(train.x.shape[1], 3, dtype=torch.float64)


def test_the_head_is_that_of_scikit_learn(weights: torch.Tensor) -> None:
    train = drawn(40)
    oracle = LogisticRegression(C=1 / PENALTY, fit_intercept=False, tol=1e-10, max_iter=10_000)
    oracle.fit(train.x.numpy(), train.y.numpy(), sample_weight=weights.numpy())
    found = fit(train, weights, PENALTY, start(train))
    np.testing.assert_allclose(found.T.numpy(), oracle.coef_, atol=1e-5)


def test_the_head_does_not_depend_on_the_start(weights: torch.Tensor) -> None:
    train = drawn(40)
    far = fit(train, weights, PENALTY, 30 * torch.ones(5, 3, dtype=torch.float64).cumsum(1))
    torch.testing.assert_close(far, fit(train, weights, PENALTY, start(train)), atol=1e-6, rtol=0)


def test_exact_scores_are_the_derivative_of_the_meta_loss_of_the_trained_head(weights: torch.Tensor) -> None:
    train, meta = drawn(40), drawn(9, seed=1)
    theta = fit(train, weights, PENALTY, start(train))
    scores = exact_scores(theta, train, weights, PENALTY, meta)
    for example in (0, 4, 17, 39):
        moved = torch.zeros_like(weights)
        moved[example] = 1e-4
        after, before = (
            losses(fit(train, weights + sign * moved, PENALTY, theta), meta).mean().item() for sign in (1, -1)
        )
        assert scores[example].item() == pytest.approx(-(after - before) / 2e-4, rel=1e-3, abs=1e-6)


def test_one_step_scores_are_the_derivative_through_one_step_of_gradient_descent(weights: torch.Tensor) -> None:
    train, meta = drawn(40), drawn(9, seed=1)
    theta = fit(train, weights, 1.0, start(train)).requires_grad_()
    epsilon = torch.zeros(40, dtype=torch.float64, requires_grad=True)
    (step,) = torch.autograd.grad((epsilon * losses(theta, train)).sum(), theta, create_graph=True)
    (slope,) = torch.autograd.grad(losses(theta - step, meta).mean(), epsilon)
    torch.testing.assert_close(one_step_scores(theta.detach(), train, meta), -slope)


def test_a_large_penalty_makes_the_exact_scores_those_of_one_step(weights: torch.Tensor) -> None:
    train, meta, penalty = drawn(40), drawn(9, seed=1), 1e4
    theta = fit(train, weights, penalty, start(train))
    exact = penalty * exact_scores(theta, train, weights, penalty, meta)
    torch.testing.assert_close(exact, one_step_scores(theta, train, meta), rtol=1e-3, atol=0)


def test_a_system_that_does_not_converge_is_an_error() -> None:
    with pytest.raises(UserError, match="use a larger penalty"):
        conjugate_gradients(lambda x: torch.roll(x, 1), torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64), 1e-12)


def test_agreement_of_equal_and_of_opposite_scores() -> None:
    one, labels = torch.tensor([1.0, -2.0, 3.0, -4.0]), torch.tensor([0, 0, 1, 1])
    same = agreement(one, 2 * one, labels)
    assert same == pytest.approx({"spearman": 1, "spearman_within_class": 1, "same_sign": 1, "weight_distance": 0})
    opposite = agreement(one, -one, labels)
    assert opposite == pytest.approx(
        {"spearman": -1, "spearman_within_class": -1, "same_sign": 0, "weight_distance": 1}
    )
    torch.testing.assert_close(clipped(one), torch.tensor([0.25, 0, 0.75, 0]))


def clusters(lesions: int = 30) -> tuple[np.ndarray, pd.DataFrame]:
    """Returns features with one cluster for each class, and their table: two images of each of its lesions."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(7), 2 * lesions)
    features = np.eye(12)[y] * 4 + rng.normal(size=(len(y), 12))
    ids = [f"{row:04}" for row in range(len(y))]
    table = pd.DataFrame(
        {"image_id": [f"I{i}" for i in ids], "lesion_id": [f"L{row // 2:04}" for row in range(len(y))]}
    )
    return features.astype(np.float32), table.assign(dx=[DX[c] for c in y])


def test_a_problem_shares_no_lesion_between_its_parts_and_holds_the_stated_noise() -> None:
    features, table = clusters()
    problem = draw_problem(features, table, "uniform", 0.4, repeat=1)
    assert len(problem.meta.y) == 21 and torch.bincount(problem.meta.y).tolist() == [3] * 7
    assert problem.wrong.mean() == pytest.approx(0.4, abs=0.03)
    again = draw_problem(features, table, "uniform", 0.4, repeat=1)
    assert torch.equal(problem.train.x, again.train.x) and torch.equal(problem.train.y, again.train.y)
    other = draw_problem(features, table, "uniform", 0.4, repeat=2)
    assert not torch.equal(problem.train.y[:100], other.train.y[:100])


def test_exact_rounds_lower_the_meta_loss_and_weights_find_wrong_labels_of_clusters() -> None:
    found = solve(draw_problem(*clusters(), "uniform", 0.4, repeat=0), 1e-2, rounds=(1, 5))
    heads = found["heads"]
    meta_losses = [heads["uniform"], heads["exact_repeated"]["1"], heads["exact_repeated"]["5"]]
    assert meta_losses[0]["meta_loss"] > meta_losses[1]["meta_loss"] > meta_losses[2]["meta_loss"]
    for name in ("one_step_clipped", "exact_clipped"):
        assert heads[name]["auroc_within_class"] > 0.8 and heads[name]["wrong_weight"] < 0.25  # of 0.4
    ceiling = heads["class_balanced_right_labels_only"]
    assert ceiling["wrong_weight"] == 0 and ceiling["balanced_accuracy"] > 0.9


ROWS = {
    "all equal": ("uniform",),
    "one step, clipped as in Ren et al.": ("one_step_clipped",),
    "exact, clipped": ("exact_clipped",),
    "one step, repeated 10 times": ("one_step_repeated", "10"),
    "exact, repeated 10 times": ("exact_repeated", "10"),
    "equal for every class": ("class_balanced",),
    "… and zero for wrong labels": ("class_balanced_right_labels_only",),
}


def committed() -> dict[str, list[dict[str, Any]]]:
    """The repeats of the committed result, by noise."""
    repeats = json.loads((ROOT / "docs" / "study" / "embeddings" / "bilevel.json").read_text())["repeats"]
    return {noise: [repeats[f"{noise}-{n}"] for n in range(REPEATS)] for noise in NOISE}


def test_the_committed_result_has_the_noise_that_it_names() -> None:
    for noise, repeats in committed().items():
        for row in repeats:
            assert row["wrong"] / row["images"] == pytest.approx(NOISE[noise][1], abs=0.02)


def test_the_table_of_the_results_page_follows_from_the_committed_result() -> None:
    page = (ROOT / "docs" / "results_in_detail.md").read_text()
    for title, keys in ROWS.items():
        cells = []
        for repeats in committed().values():
            heads = [reduce(dict.__getitem__, keys, row["heads"]) for row in repeats]
            accuracy = 100 * np.array([head["balanced_accuracy"] for head in heads])
            loss = np.mean([head["meta_loss"] for head in heads])
            cells.append(f"{accuracy.mean():.1f} ± {accuracy.std(ddof=1):.1f} ({loss:.2f})")
        assert f"| {title} | {' | '.join(cells)} |" in page.replace("**", "")


def test_the_differences_of_the_results_page_follow_from_the_committed_result() -> None:
    page = (ROOT / "docs" / "results_in_detail.md").read_text()
    lines = differences(read_repeats(ROOT / RESULT)).splitlines()[2:]
    assert len(lines) == len(PAIRS) and all(line in page for line in lines)


def test_the_agreement_on_the_results_page_follows_from_the_committed_result() -> None:
    def means(value: Callable[[dict[str, Any]], float], noises: Collection[str]) -> str:
        found = [np.mean([value(row) for row in repeats]) for noise, repeats in committed().items() if noise in noises]
        return f"{min(found):.2f} {max(found):.2f}"

    assert means(lambda row: row["agreement"]["at_optimum"]["spearman"], NOISE) == "0.43 0.48"
    assert means(lambda row: row["agreement"]["at_optimum"]["same_sign"], NOISE) == "0.66 0.67"
    noisy = ("uniform40", "conditional40")
    assert means(lambda row: row["heads"]["exact_clipped"]["auroc_within_class"], noisy) == "0.55 0.58"
    assert means(lambda row: row["heads"]["one_step_clipped"]["auroc_within_class"], noisy) == "0.58 0.61"

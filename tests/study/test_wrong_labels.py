"""Methods against wrong labels on fixed features: balanced softmax by autograd, the statistics by SciPy."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import ttest_1samp
from test_bilevel import clusters

from dermrw.study.repeats import Problem, draw_problem
from dermrw.study.statistics import corrected_resampled
from dermrw.study.wrong_labels import (
    META_CONDITIONS,
    META_NOISE,
    NOISE,
    REFERENCE,
    REPEATS,
    Heads,
    compare,
    gains,
    read_repeats,
    solve,
    solve_meta,
    table,
)

ROOT = Path(__file__).parents[2]


def problem(noise: float, lesions: int = 30) -> Problem:
    features, images = clusters(lesions)
    return draw_problem(features, images, "uniform", noise, repeat=0)


def test_the_heads_are_optima_of_their_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """By autograd; of GCE, from the formula of the loss."""
    monkeypatch.setattr("dermrw.study.wrong_labels.ROUNDS", 100)
    heads = Heads(problem(0.4), 1e-2)
    train, n = heads.train, len(heads.train.y)
    weights = torch.from_numpy(np.random.default_rng(0).random(n))
    weights /= weights.sum()
    shares = torch.stack([weights[train.y == c].sum() for c in range(7)])
    torch.testing.assert_close(heads.log_shares(weights), shares.log(), rtol=1e-5, atol=1e-5)
    trained: dict[str, torch.Tensor] = {}
    heads.add = lambda name, theta, weights, **more: trained.update({name: theta})  # type: ignore[method-assign]
    heads.add_balanced_softmax("balanced", weights)
    heads.add_in_turn("gce", lambda p: p**0.7, follow=False)
    for name, theta in trained.items():
        theta = theta.clone().requires_grad_()
        log_shares = heads.log_shares(weights if name == "balanced" else heads.equal)
        p = torch.softmax(train.x @ theta + log_shares, 1)[torch.arange(n), train.y]
        loss = -(weights * p.log()).sum() if name == "balanced" else ((1 - p**0.7) / 0.7).mean()
        (loss + 1e-2 / 2 * theta.square().sum()).backward()
        assert theta.grad is not None and theta.grad.abs().max() < 1e-7


def test_the_methods_find_the_wrong_labels_of_clusters() -> None:
    pytest.importorskip("cleanlab")
    found = solve(problem(0.4, 150), 0.4, repeat=0)
    heads = found["heads"]
    assert found["estimated_rate"] == pytest.approx(0.4, abs=0.1)
    assert heads["right_labels_only"]["wrong_weight"] == 0
    for name in ("label_posterior", "confident_learning", "forward_correction"):
        assert heads[name]["wrong_weight"] < 0.25 and heads[name]["auroc_within_class"] > 0.8  # of 0.4
        assert heads[name]["balanced_accuracy"] > 0.9
    assert heads["gce"]["wrong_weight"] < heads[REFERENCE]["wrong_weight"] == pytest.approx(0.4, abs=0.03)
    assert heads["random"]["auroc"] == pytest.approx(0.5, abs=0.1)
    part = solve_meta(problem(0.4, 150))["heads"]
    assert set(part) == {REFERENCE, "balanced_softmax_meta", "one_step", "label_posterior"}
    assert all(part[name] == heads[name] for name in part)
    clean = solve(problem(0.0), 0.0, repeat=0)["heads"]
    for name in ("right_labels_only", "label_posterior", "forward_correction"):
        for key, value in clean[REFERENCE].items():
            assert clean[name][key] == pytest.approx(value)


def test_the_interval_of_resampled_splits() -> None:
    values = np.random.default_rng(1).normal(0.3, 1, 12)
    plain, oracle = corrected_resampled(values, 0.0), ttest_1samp(values, 0)
    low, high = oracle.confidence_interval(0.95)
    assert (plain.low, plain.high, plain.p) == pytest.approx((low, high, oracle.pvalue))
    wider = corrected_resampled(values, 0.5)
    assert wider.high - wider.low == pytest.approx((high - low) * np.sqrt((1 / 12 + 0.5) * 12))
    assert wider.p > plain.p and wider.difference == plain.difference == pytest.approx(values.mean())
    assert np.isnan(corrected_resampled([0.1], 0.2).low) and corrected_resampled([0.0, 0.0], 0.2).p == 1


def test_the_committed_result_has_the_noise_that_it_names() -> None:
    by_condition = read_repeats(ROOT / "docs/study/embeddings/wrong_labels.json")
    assert list(by_condition) == list(NOISE)
    for name, repeats in by_condition.items():
        assert len(repeats) == REPEATS
        for row in repeats:
            assert row["wrong"] / row["images"] == pytest.approx(NOISE[name][1], abs=0.02)
            weight = row["heads"][REFERENCE].get("wrong_weight", 0)
            assert weight == pytest.approx(row["wrong"] / row["images"], abs=1e-5)
    assert set(compare(by_condition["clean"])) | {REFERENCE} == set(by_condition["clean"][0]["heads"])


def test_the_table_of_the_results_page_follows_from_the_committed_result() -> None:
    page = (ROOT / "docs/results_in_detail.md").read_text().replace("**", "")
    for line in table(read_repeats(ROOT / "docs/study/embeddings/wrong_labels.json")).splitlines()[2:]:
        assert line in page
    sizes = read_repeats(ROOT / "docs/study/embeddings/meta_set_size.json")
    assert list(sizes) == list(META_CONDITIONS) and {len(repeats) for repeats in sizes.values()} == {REPEATS}
    for noise in META_NOISE:
        of_noise = {name: repeats for name, repeats in sizes.items() if name.startswith(noise)}
        for line in table(of_noise).splitlines()[2:]:
            assert line in page
        assert len({row["wrong"] for name in of_noise for row in of_noise[name][:1]}) == 1  # the same labels
    words = page.replace("−", "-")
    text = gains(sizes, 3, 20).splitlines()[1]
    for method, written in (("balanced_softmax_meta", "2.1"), ("label_posterior", "+1.9"), ("one_step", "+1.3")):
        found = re.search(rf"{method} \+(\d.\d) \(([-+]\d.\d) to \+(\d.\d)\)", text)
        assert found is not None and written.removeprefix("+") == found[1]
        assert (
            f"({found[2].removeprefix('+')} to {found[3]})" in words or f"{written}, {found[2]} to {found[3]})" in words
        )

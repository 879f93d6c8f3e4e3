"""The section 'Reweighting alone' of the results page, recomputed from the committed result files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dermrw.study.plan import read_plan
from dermrw.study.report import mean_sd
from dermrw.study.sections import compare, load_results
from dermrw.study.statistics import Paired, holm

ROOT = Path(__file__).parents[2]
REWEIGHT = "ham_reweight_second_half"
TITLES = {
    "ham_cross_entropy": "nothing: cross-entropy",
    REWEIGHT: "reweighting (Ren et al.), from the seventh epoch on",
    "ham_inverse_frequency_second_half": "inverse class frequency, from the seventh epoch on",
    "ham_weighted_sampling": "weighted sampling, from the first epoch on",
}


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict[str, Any]]]:
    monkeypatch.chdir(ROOT)
    return load_results(read_plan(), "alone")


@pytest.fixture(scope="module")
def page() -> str:
    return (ROOT / "docs/results_in_detail.md").read_text()


def test_the_table(results: dict[str, list[dict[str, Any]]], page: str) -> None:
    assert set(results) == set(TITLES) and {len(rows) for rows in results.values()} == {3}
    for row, title in TITLES.items():
        validation = np.array([r["sets"]["validation"]["balanced_accuracy_as_trained"] for r in results[row]])
        seeds = ", ".join(f"{100 * v:.1f}" for v in validation)
        cells = [f"{mean_sd(validation)} ({seeds})"]
        cells += [
            mean_sd(np.array([r[k] for r in results[row]]))
            for k in ("balanced_accuracy_as_trained", "balanced_accuracy")
        ]
        assert f"| {title} | {' | '.join(cells)} |" in page


def test_the_differences_on_validation(results: dict[str, list[dict[str, Any]]], page: str) -> None:
    names = [name for name in TITLES if name != REWEIGHT]
    found: list[Paired] = []
    for name in names:
        pair = compare(results[REWEIGHT], results[name], "alone", part="validation")
        assert pair is not None
        found.append(pair)
    texts = [f"{100 * p.difference:+.1f} ({100 * p.low:.1f} to {100 * p.high:.1f}" for p in found]
    p = [f"{value:.{3 if value < 0.1 else 2}f}" for value in holm([pair.p for pair in found])]
    said = page.replace("−", "-").replace("\n", " ")
    assert f"cross-entropy {texts[0]}; p = {p[0]} after Holm's correction)" in said
    assert f"inverse class frequency {texts[1]}; p = {p[1]})" in said
    assert f"weighted sampling {texts[2]}; p = {p[2]})" in said


def test_no_difference_on_the_test_split_excludes_zero(results: dict[str, list[dict[str, Any]]]) -> None:
    for name in TITLES:
        for which in ("as_trained", "fitted"):
            pair = compare(results[REWEIGHT], results[name], "alone", which=which)
            assert pair is not None and pair.low <= 0 <= pair.high


def test_the_weights_weigh(results: dict[str, list[dict[str, Any]]]) -> None:
    """In the reweighted epochs of all seeds, as the page says."""
    epochs = [epoch for run in results[REWEIGHT] for epoch in run["weights_over_time"][-6:]]
    nevi = list(results[REWEIGHT][0]["recalls"]).index("nv")
    ranges = [[100 * epoch["class_weight"][nevi] for epoch in epochs], [100 * epoch["zero_share"] for epoch in epochs]]
    ranges += [[run["weights_over_time"][k]["effective_batch"] for run in results[REWEIGHT]] for k in (-6, -1)]
    assert [(round(min(r)), round(max(r))) for r in ranges] == [(19, 39), (47, 72), (30, 33), (15, 19)]

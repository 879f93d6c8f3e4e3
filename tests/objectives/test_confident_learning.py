"""Confident learning against the paper's rule, written as loops, and on simulated label noise."""

import importlib.util

import numpy as np
import pytest
from sklearn.metrics import precision_score, recall_score
from tools.simulated_labels import prepared, simulate, with_noise

from dermrw.config import load_config
from dermrw.errors import UserError
from dermrw.objectives import build_objective
from dermrw.objectives.confident_learning import ConfidentLearning, require_cleanlab, suspect_labels
from dermrw.objectives.held_out import PENALTIES, CrossValidation


def suspect_by_loops(p: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Section 3 of the paper: confident joint, calibration to the counts of the labels, pruning by noise rate."""
    classes = range(p.shape[1])
    threshold = [p[given == j, j].mean() for j in classes]
    joint = np.zeros((len(classes), len(classes)))
    for row, label in zip(p, given, strict=True):
        above = [j for j in classes if row[j] >= threshold[j]]
        if above:
            joint[label, max(above, key=lambda j: row[j])] += 1
    joint *= (np.bincount(given) / joint.sum(1))[:, None]
    suspect = np.zeros(len(given), bool)
    for i in classes:
        rows = np.flatnonzero(given == i)
        for j in classes:
            if i != j:
                margin = p[rows, j] - p[rows, i]
                suspect[rows[np.argsort(-margin, kind="stable")[: round(joint[i, j])]]] = True
    return suspect & (p.argmax(1) != given)  # as cleanlab does: a label that the prediction confirms is kept


@pytest.mark.parametrize("rate", [0.2, 0.4])
def test_the_rule_is_the_papers(rate: float) -> None:
    data = simulate()
    labels = prepared(data, with_noise(data, rate))
    held_out = CrossValidation(labels)
    penalty = max(PENALTIES, key=lambda penalty: held_out.log_p(0.0, penalty).mean())
    p = np.exp(held_out.log_probabilities(0.0, penalty))
    np.testing.assert_allclose(p.sum(1), 1)
    np.testing.assert_allclose(np.log(p[np.arange(900), labels.y]), held_out.log_p(0.0, penalty))
    found, expected = suspect_labels(labels), suspect_by_loops(p, labels.y)
    assert (found != expected).mean() < 0.005  # counts are rounded in another way
    wrong = labels.y != data.true
    assert precision_score(wrong, found) > 0.9 and recall_score(wrong, found) > 0.8


def test_right_labels_are_kept() -> None:
    data = simulate()
    assert suspect_labels(prepared(data, data.true)).mean() < 0.05


def test_a_class_without_images_is_left_out() -> None:
    data = simulate()
    found = suspect_labels(prepared(data, np.minimum(with_noise(data, 0.3), 1)))
    assert 0.05 < found.mean() < 0.5
    assert not suspect_labels(prepared(data, np.zeros(900, np.int64))).any()


def test_suspect_images_do_not_train() -> None:
    data = simulate()
    given = with_noise(data, 0.4)
    tested = build_objective(load_config(None, ["objective=confident_learning"]), given, 3, 10)
    assert isinstance(tested, ConfidentLearning)
    found = tested.estimate(data.embeddings, data.groups, data.right)
    tested.set_weights(found)
    assert set(np.unique(found.values)) == {0.0, 1.0} and found.noise_rate == (found.values == 0).mean() > 0.3
    assert found.sentence.startswith(f"Confident learning finds {100 * found.noise_rate:.1f} % of the labels suspect")
    np.testing.assert_allclose(
        tested.shares.numpy(), np.bincount(given, weights=found.values) / found.values.sum(), rtol=1e-5
    )
    weights = tested.example_weights()
    assert weights is not None and weights.mean() == pytest.approx(1)


def test_without_cleanlab_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    require_cleanlab()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="requires the Python package cleanlab: run "):
        require_cleanlab()

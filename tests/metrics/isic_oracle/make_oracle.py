"""Freeze the official ISIC scorer's answers for small cases; tests/metrics/test_metrics.py compares ours to them.

Run once, in an environment of its own (the scorer needs an old pandas):
    python -m venv oracle && oracle/bin/pip install isic-challenge-scoring==5.6.0 'pandas<3'
    oracle/bin/python tests/metrics/isic_oracle/make_oracle.py
It writes, beside itself, NAME_truth.csv and NAME_prediction.csv for every case, and answers.json.
"""

import io
import json
import pathlib
import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from isic_challenge_scoring import metrics
from isic_challenge_scoring.classification import ClassificationMetric, ClassificationScore
from isic_challenge_scoring.load_csv import parse_csv, parse_truth_csv, sort_rows, validate_rows

COLUMNS = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
HERE = pathlib.Path(__file__).parent
PRIOR = np.array([1113, 6705, 514, 327, 1099, 115, 142]) / 10015


def case(
    seed: int,
    n: int = 120,
    decimals: int = 4,
    classes: Sequence[int] = range(7),
    first: str = "ISIC_0034524",
    weights: bool = False,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A truth and a prediction table; few `decimals` make ties, in the largest value and along the ROC."""
    rng = np.random.default_rng(seed)
    present = np.array(classes)
    labels = np.concatenate([present, rng.choice(present, n - len(present), p=PRIOR[present] / PRIOR[present].sum())])
    rng.shuffle(labels)
    logits = rng.normal(size=(n, 7)) + 1.5 * np.eye(7)[labels]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    names = [f"ISIC_{int(first[5:]) + i:07d}" for i in range(n)]
    truth = pd.DataFrame(np.eye(7)[labels], names, COLUMNS)
    if weights:
        truth["score_weight"] = rng.choice([0.0, 0.5, 1.0, 3.0], n)
        truth["validation_weight"] = 1.0
    return truth, pd.DataFrame(np.round(p, decimals), names, COLUMNS)


def main() -> None:
    cases = {
        "plain": case(0),
        "ties": case(1, decimals=1),
        "zero_weight": case(2, first="ISIC_0035000"),  # holds ISIC_0035068
        "weights": case(3, weights=True),
        "absent": case(4, classes=[0, 1, 4]),
    }
    # The zero-weight image as the only one of its class: that class must drop out of the mean.
    truth, prediction = case(5, n=80, classes=[0, 1, 2, 3, 4, 5], first="ISIC_0035000")
    truth.loc["ISIC_0035068"] = [0, 0, 0, 0, 0, 0, 1]
    cases["zero_weight_only"] = (truth, prediction)

    answers = {}
    for name, (truth, prediction) in cases.items():
        texts = []
        for kind, table in (("truth", truth), ("prediction", prediction)):
            text = table.to_csv(index_label="image", lineterminator="\n")
            (HERE / f"{name}_{kind}.csv").write_text(text)
            texts.append(text)
        table, weights = parse_truth_csv(io.StringIO(texts[0]))
        guess = parse_csv(io.StringIO(texts[1]), table.columns)
        validate_rows(table, guess)
        sort_rows(table), sort_rows(guess)
        answer = {
            "balanced_accuracy": metrics.balanced_multiclass_accuracy(table, guess, weights.score_weight),
            "undecided": int((metrics._to_labels(guess) == "undecided").sum()),
        }
        kept = weights.score_weight > 0
        ranked = [c for c in COLUMNS if table.loc[kept, c].nunique() == 2]
        for key, function in (("auc", metrics.auc), ("ap", metrics.average_precision)):
            answer[key] = {c: float(function(table[c], guess[c], weights.score_weight)) for c in ranked}
        if len(ranked) == 7:  # the scorer's whole path, which fails where a class is absent
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                whole = ClassificationScore.from_stream(
                    io.StringIO(texts[0]), io.StringIO(texts[1]), ClassificationMetric.BALANCED_ACCURACY
                )
            assert whole.overall == answer["balanced_accuracy"]
            assert whole.per_category.auc.tolist() == list(answer["auc"].values())
        answers[name] = answer
    (HERE / "answers.json").write_text(json.dumps(answers, indent=1) + "\n")


if __name__ == "__main__":
    main()

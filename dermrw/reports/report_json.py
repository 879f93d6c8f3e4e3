"""What report.json holds: every figure of a set's predictions, computed from the file as written."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dermrw.datasets.dataset import ImageSet
from dermrw.decisions.prevalence import LESION_RULES, at_prevalence, combine
from dermrw.diagnoses import DX, Classes
from dermrw.metrics import calibration_error as reliability
from dermrw.metrics import classification as metrics

BINS = 15
REPLICATES = 2000
AGE_BANDS = [(0, 30, "0–29"), (30, 45, "30–44"), (45, 60, "45–59"), (60, 75, "60–74"), (75, 200, "75 and over")]


class Scored(NamedTuple):
    """A set with its predictions, in the set's order."""

    title: str
    images: ImageSet
    classes: Classes
    probabilities: np.ndarray  # [N, C], for equal prevalence, as read back from the file


def build_report(
    scored: Scored, as_trained: np.ndarray, prevalence: np.ndarray, about: dict[str, Any]
) -> dict[str, Any]:
    """Everything that report.json holds, balanced accuracy first. Numbers that are undefined are null.

    Args:
        scored: the set and its probabilities for equal prevalence.
        as_trained: the network's own softmax `[N, C]`.
        prevalence: the classes' shares in the training set `[C]`.
        about: what is said of the run.
    """
    p, y, table = scored.probabilities, scored.images.labels, scored.images.table
    lesions = table["lesion_id"].to_numpy()
    weights = metrics.score_weights(table["image_id"].to_numpy())
    interval = metrics.bootstrap_interval(p, y, lesions, weights, replicates=REPLICATES)
    raw = metrics.bootstrap_interval(as_trained, y, lesions, weights, replicates=REPLICATES)
    recalls = metrics.recalls(p, y, weights)
    measures = {
        "auc": metrics.per_class(metrics.auc, p, y, weights),
        "average_precision": metrics.per_class(metrics.average_precision, p, y, weights),
        "sensitivity_at_95_specificity": metrics.per_class(
            metrics.sensitivity_at_specificity, p, y, weights, specificity=0.95
        ),
    }
    classes = {
        code: {
            "images": int(((y == c) & (weights > 0)).sum()),
            "lesions": int(interval.lesions[c]),
            "recall": recalls[c],
            "recall_interval_95": list(interval.recalls[c]),
            **{name: values[c] for name, values in measures.items()},
        }
        for c, code in enumerate(scored.classes.codes)
    }
    report = {
        "balanced_accuracy": metrics.balanced_accuracy(p, y, weights),
        "interval_95": list(interval.balanced_accuracy),
        "interval": f"percentile bootstrap over lesions within classes, {REPLICATES} replicates, seed 0",
        "scored_on": scored.title,
        "images": int((weights > 0).sum()),
        "lesions": int(pd.Series(lesions[weights > 0]).nunique()),
        "as_trained": {
            "what": "the network's own softmax, without temperature and offsets",
            "balanced_accuracy": metrics.balanced_accuracy(as_trained, y, weights),
            "interval_95": list(raw.balanced_accuracy),
        },
        "accuracy": float(np.average(metrics.decide(p) == y, weights=weights)),
        "mean_auc": float(np.mean([v for v in measures["auc"] if np.isfinite(v)] or [np.nan])),
        "classes": classes,
        "confusion": {
            "rows": "true class; columns: decision, last: undecided (a tie)",
            "counts": metrics.confusion(p, y, weights).astype(int).tolist(),
        },
        "calibration_error": _calibration_error(p, y, weights, prevalence),
    }
    if scored.classes.codes == DX:
        report["malignant"] = _malignant(p, y, weights)
        report["groups"] = _groups(scored, weights)
    return _plain({**report, **about})


def _calibration_error(p: np.ndarray, y: np.ndarray, weights: np.ndarray, prevalence: np.ndarray) -> dict[str, Any]:
    balanced = metrics.equal_prevalence_weights(y, weights)
    found: dict[str, Any] = {"binning": f"{BINS} bins of equal weight"}
    for name, q, w in (
        ("equal_prevalence", p, balanced),
        ("training_prevalence", at_prevalence(p, prevalence), metrics.prevalence_weights(y, prevalence, weights)),
    ):
        found[name] = {
            "top_label_ece": reliability.expected_calibration_error(q, y, w, bins=BINS),
            "classwise_ece": reliability.expected_calibration_error(q, y, w, bins=BINS, classwise=True),
            "brier": reliability.brier(q, y, w),
            "nll": reliability.nll(q, y, w),
        }
    return found


def _malignant(p: np.ndarray, y: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    positive, score = metrics.malignant(p, y)
    return {
        "what": "melanoma, basal cell carcinoma, actinic keratosis / intraepithelial carcinoma against the rest",
        "auc": metrics.auc(positive, score, weights),
        "average_precision": metrics.average_precision(positive, score, weights),
        "sensitivity_at_90_specificity": metrics.sensitivity_at_specificity(positive, score, weights, specificity=0.9),
        "specificity_at_95_sensitivity": metrics.specificity_at_sensitivity(positive, score, weights, sensitivity=0.95),
    }


def _groups(scored: Scored, weights: np.ndarray) -> dict[str, list[dict[str, Any]]]:
    """Balanced accuracy by sex, age, site and way of confirmation, with counts; over the classes present in each."""
    table = scored.images.table
    columns = {
        "sex": table["sex"].tolist(),
        "age": [age_band(value) for value in table["age"]],
        "site": table["localization"].tolist(),
        "confirmation": table["dx_type"].tolist(),
    }
    lesions = table["lesion_id"].to_numpy()
    return {
        name: [
            {
                "name": g.name,
                "images": g.images,
                "lesions": g.lesions,
                "classes": [code for code, there in zip(scored.classes.codes, g.present, strict=True) if there],
                "balanced_accuracy": g.balanced_accuracy,
                "recalls": dict(zip(scored.classes.codes, g.recalls.tolist(), strict=True)),
            }
            for g in metrics.by_group(scored.probabilities, scored.images.labels, lesions, values, weights)
        ]
        for name, values in columns.items()
    }


def compare_lesion_rules(p: np.ndarray, y: np.ndarray, lesions: np.ndarray) -> dict[str, Any]:
    """How images of one lesion are best combined: each rule on the validation lesions that have several images.

    A lesion counts once, every class weighs the same; the rule with the least NLL (nats) is chosen, the simplest
    where no lesion has several images.

    Args:
        p: probabilities for equal prevalence `[N, C]`, y: labels `[N]`, lesions: `[N]`.
    """
    _, first, lesion, views = np.unique(lesions, return_index=True, return_inverse=True, return_counts=True)
    several = first[views > 1]  # one image of each lesion that has several
    found: dict[str, Any] = {"rule": LESION_RULES[0], "lesions_with_several_images": len(several), "compared": {}}
    if not len(several):
        return found
    weights = metrics.equal_prevalence_weights(y[several])
    image_weights = np.zeros(len(y))
    image_weights[views[lesion] > 1] = metrics.equal_prevalence_weights(y[views[lesion] > 1])
    each = {"each image alone": (p, np.flatnonzero(image_weights), image_weights[image_weights > 0])}
    for rule in LESION_RULES:
        each[rule] = (combine(p, lesions, rule), several, weights)
    for name, (q, rows, w) in each.items():
        found["compared"][name] = {
            "nll": reliability.nll(q[rows], y[rows], w),
            "balanced_accuracy": metrics.balanced_accuracy(q[rows], y[rows]),
        }
    found["rule"] = min(LESION_RULES, key=lambda rule: found["compared"][rule]["nll"])
    return found


def age_band(value: Any) -> str | None:
    """The band of an age in years, None where it isn't known."""
    try:
        age = float(value)
    except (TypeError, ValueError):
        return None
    return next((name for low, high, name in AGE_BANDS if low <= age < high), None)


def _plain(value: Any) -> Any:
    """Python's own types for JSON; what is not finite becomes None."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value

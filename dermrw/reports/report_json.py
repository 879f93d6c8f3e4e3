"""The figures of report.json, computed from the probabilities and labels of a set of images."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pydantic import BaseModel

from dermrw.decisions.lesion_rule import LESION_RULE, LESION_RULES, combine
from dermrw.decisions.prevalence import at_prevalence
from dermrw.diagnoses import DX, Classes
from dermrw.metrics import calibration_error as reliability
from dermrw.metrics import classification as metrics
from dermrw.metrics.intervals import area_intervals, replicates_for, score_intervals
from dermrw.reports.report_schema import Decided, Report, SetFigures

BINS = 15
REPLICATES = 2000
# of one class against the rest, or malignant against the rest
RANKING: dict[str, Callable[..., float]] = {
    "auc": metrics.auc,
    "average_precision": metrics.average_precision,
    **{
        f"sensitivity_at_{level}_specificity": partial(metrics.sensitivity_at_specificity, specificity=level / 100)
        for level in (95, 90, 80)
    },
    **{
        f"specificity_at_{level}_sensitivity": partial(metrics.specificity_at_sensitivity, sensitivity=level / 100)
        for level in (95, 90)
    },
    "partial_auc": metrics.partial_auc,
}
AGE_BANDS = [(0, 30, "0–29"), (30, 45, "30–44"), (45, 60, "45–59"), (60, 75, "60–74"), (75, 200, "75 and over")]


class ScoredSet(NamedTuple):
    """A set of N images with labels and predictions."""

    title: str  # for people, such as "the run's own test split"
    table: pd.DataFrame  # N rows with image_id, lesion_id and, for HAM10000's classes, sex, age, localization, dx_type
    labels: np.ndarray  # int [N]
    sources: list[Any]  # for thumbnails: paths, or pixels uint8 [H, W, 3]
    classes: Classes
    probabilities: np.ndarray  # [N, C], for equal prevalence, as read back from predictions.csv


def build_report(
    scored: ScoredSet, as_trained: np.ndarray, prevalence: np.ndarray, decided: Decided, about: dict[str, Any]
) -> Report:
    """The whole report of a set.

    Args:
        scored: the set and its probabilities for equal prevalence.
        as_trained: the network's own softmax `[N, C]`.
        prevalence: the classes' shares in the training set `[C]`.
        decided: refusal, prediction sets and triage on the set.
        about: the fields of `Report` on the run and its calibration.
    """
    figures = set_figures(scored, as_trained, prevalence).model_dump(exclude_unset=True)
    return Report.model_validate_json(_json({**figures, "decided": decided, **about}))


def set_figures(scored: ScoredSet, as_trained: np.ndarray, prevalence: np.ndarray) -> SetFigures:
    """All figures that need probabilities and labels alone. Arguments as of `build_report`."""
    p, y, table = scored.probabilities, scored.labels, scored.table
    lesions = table["lesion_id"].to_numpy()
    weights = metrics.score_weights(table["image_id"].to_numpy())
    interval = score_intervals(p, y, lesions, weights, replicates=REPLICATES)
    raw = score_intervals(as_trained, y, lesions, weights, replicates=REPLICATES)
    recalls = metrics.recalls(p, y, weights)
    measures = {name: metrics.per_class(measure, p, y, weights) for name, measure in RANKING.items()}
    measures |= {"precision": metrics.precisions(p, y, weights), "f1": metrics.f1_scores(p, y, weights)}
    replicates = replicates_for(len(y), REPLICATES)
    each_class = y[:, None] == np.arange(p.shape[1])
    auc_intervals = area_intervals(each_class, p, lesions, weights, replicates=replicates)
    classes = {
        code: {
            "images": int(((y == c) & (weights > 0)).sum()),
            "lesions": int(interval.lesions[c]),
            "recall": recalls[c],
            "recall_interval_95": list(interval.recalls[c]),
            "auc_interval_95": list(auc_intervals[c]),
            **{name: values[c] for name, values in measures.items()},
        }
        for c, code in enumerate(scored.classes.codes)
    }
    figures = {
        "balanced_accuracy": metrics.balanced_accuracy(p, y, weights),
        "interval_95": list(interval.balanced_accuracy),
        "interval": f"percentile bootstrap over lesions within classes, {REPLICATES} replicates, seed 0",
        "auc_interval": f"percentile bootstrap over lesions, {replicates} replicates, seed 0",
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
        figures["malignant"] = _malignant(p, y, lesions, weights)
        figures["groups"] = _groups(scored, weights)
    return SetFigures.model_validate_json(_json(figures))


def both_prevalences(
    p: np.ndarray, y: np.ndarray, weights: np.ndarray, prevalence: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Probabilities `[N, C]` and image weights `[N]` for equal prevalence and for the training set's.

    Args:
        p: probabilities for equal prevalence `[N, C]`.
        y: labels `[N]`.
        weights: image weights `[N]`.
        prevalence: the classes' shares in the training set `[C]`.
    """
    return {
        "equal_prevalence": (p, metrics.equal_prevalence_weights(y, weights)),
        "training_prevalence": (at_prevalence(p, prevalence), metrics.prevalence_weights(y, prevalence, weights)),
    }


def _calibration_error(p: np.ndarray, y: np.ndarray, weights: np.ndarray, prevalence: np.ndarray) -> dict[str, Any]:
    errors: dict[str, Any] = {"binning": f"{BINS} bins of equal weight"}
    for name, (q, w) in both_prevalences(p, y, weights, prevalence).items():
        errors[name] = {
            "top_label_ece": reliability.expected_calibration_error(q, y, w, bins=BINS),
            "classwise_ece": reliability.expected_calibration_error(q, y, w, bins=BINS, classwise=True),
            "brier": reliability.brier(q, y, w),
            "nll": reliability.nll(q, y, w),
        }
    return errors


def _malignant(p: np.ndarray, y: np.ndarray, lesions: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    positive, score = metrics.malignant(p, y)
    curve = (positive[:, None], score[:, None], lesions, weights)
    replicates = replicates_for(len(y), REPLICATES)
    return {
        "what": "melanoma, basal cell carcinoma, actinic keratosis / intraepithelial carcinoma against the rest",
        **{name: measure(positive, score, weights) for name, measure in RANKING.items()},
        "auc_interval_95": list(area_intervals(*curve, replicates=replicates)[0]),
        "partial_auc_interval_95": list(area_intervals(*curve, sensitivity=0.8, replicates=replicates)[0]),
    }


def _groups(scored: ScoredSet, weights: np.ndarray) -> dict[str, list[dict[str, Any]]]:
    """Balanced accuracy and counts by sex, age, site and confirmation, over the classes present in each group."""
    p, y, table, codes = scored.probabilities, scored.labels, scored.table, scored.classes.codes
    columns = {
        "sex": table["sex"].tolist(),
        "age": [age_band(value) for value in table["age"]],
        "site": table["localization"].tolist(),
        "confirmation": table["dx_type"].tolist(),
    }
    lesions = table["lesion_id"].to_numpy()

    def row(g: metrics.Group) -> dict[str, Any]:
        inside = g.rows
        interval = score_intervals(p[inside], y[inside], lesions[inside], weights[inside], replicates=REPLICATES)
        return {
            "name": g.name,
            "images": g.images,
            "lesions": g.lesions,
            "classes": [code for code, present in zip(codes, g.present, strict=True) if present],
            "balanced_accuracy": g.balanced_accuracy,
            "interval_95": list(interval.balanced_accuracy),
            "recalls": dict(zip(codes, g.recalls.tolist(), strict=True)),
        }

    return {
        name: [row(g) for g in metrics.by_group(p, y, lesions, values, weights)] for name, values in columns.items()
    }


def compare_lesion_rules(
    p: np.ndarray, y: np.ndarray, lesions: np.ndarray, malignant: Sequence[bool], threshold: float | None
) -> dict[str, Any]:
    """Compares the rules that combine the images of one lesion, on the validation lesions with several images.

    Each lesion counts once. NLL (nats) and balanced accuracy give every class the same weight; sensitivity and
    specificity are those of triage. `rule` is the rule that dermrw uses, whatever the figures.

    Args:
        p: probabilities for equal prevalence `[N, C]`.
        y: labels `[N]`.
        lesions: the lesion of each image `[N]`.
        malignant: which classes are malignant `[C]`.
        threshold: of triage; None without one.
    """
    _, first, lesion, views = np.unique(lesions, return_index=True, return_inverse=True, return_counts=True)
    several = first[views > 1]  # one image of each lesion that has several
    result: dict[str, Any] = {"rule": LESION_RULE, "lesions_with_several_images": len(several), "compared": {}}
    if not len(several):
        return result
    images = np.flatnonzero(views[lesion] > 1)
    candidates = {"each image alone": (p[images], y[images])}
    for rule in LESION_RULES:
        candidates[rule] = (combine(p, lesions, rule, malignant)[several], y[several])
    for name, (q, truth) in candidates.items():
        positive, score = metrics.malignant(q, truth, malignant)
        referred = score >= (np.inf if threshold is None else threshold)
        sensitivity = float(referred[positive].mean()) if positive.any() else None
        specificity = float((~referred)[~positive].mean()) if not positive.all() else None
        result["compared"][name] = {
            "nll": reliability.nll(q, truth, metrics.equal_prevalence_weights(truth)),
            "balanced_accuracy": metrics.balanced_accuracy(q, truth),
            "sensitivity": None if threshold is None else sensitivity,
            "specificity": None if threshold is None else specificity,
        }
    return result


def age_band(value: Any) -> str | None:
    """The age band of an age in years; None if the age is unknown."""
    try:
        age = float(value)
    except (TypeError, ValueError):
        return None
    return next((name for low, high, name in AGE_BANDS if low <= age < high), None)


def _json(values: dict[str, Any]) -> str:
    return json.dumps(_plain(values), allow_nan=False)


def _plain(value: Any) -> Any:
    """Values of Python's own types for JSON; numbers that are not finite become None."""
    if isinstance(value, BaseModel):
        return _plain(value.model_dump())
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value

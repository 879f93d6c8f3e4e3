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
from dermrw.images.skin_tone import ORDER, TONE_COLUMN
from dermrw.metrics import calibration_error as reliability
from dermrw.metrics import classification as metrics
from dermrw.metrics.class_bootstrap import FEW
from dermrw.metrics.intervals import area_intervals, replicates_for, score_intervals
from dermrw.reports.report_schema import Decided, Report, SetFigures

BINS = 15
REPLICATES = 2000
FEW_REPLICATES = 200  # for the intervals of calibration errors
PARTIAL = 0.8  # sensitivity above which the partial AUC counts
LEAST = 1e-12  # probability below which Bayes' rule could divide by 0
SUBGROUP_COLUMNS = {
    "sex": "sex", "age": "age", "site": "localization", "confirmation": "dx_type", TONE_COLUMN: TONE_COLUMN
}  # fmt: skip
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
    table: pd.DataFrame  # N rows with image_id, lesion_id and, if known, sex, age, localization, dx_type
    labels: np.ndarray  # int [N]
    sources: list[Any]  # for thumbnails: paths, or pixels uint8 [H, W, 3]
    classes: Classes
    probabilities: np.ndarray  # [N, C], for equal prevalence, as read back from predictions.csv
    unit: str = "lesions"  # of the split and of resampling
    triage_shares: Sequence[float] | None = None  # [C], at which triage sums the malignant classes; None: equal

    def malignant(self) -> tuple[np.ndarray, np.ndarray]:
        """Whether each image is malignant `[N]`, and the score of triage `[N]`."""
        at = at_prevalence(self.probabilities, self.triage_shares)
        return metrics.malignant(at, self.labels, self.classes.malignant)


class OwnTable(NamedTuple):
    """Of a user's own table: the unit of resampling, further columns of subgroups, and the kind of truth."""

    unit: str  # such as patients
    subgroups: tuple[str, ...] = ()
    # whether the truth is malignant or benign; then the label of a malignant image is any malignant class, and that of
    # a benign image any other class
    binary: bool = False


def build_report(
    scored: ScoredSet,
    as_trained: np.ndarray,
    prevalence: np.ndarray,
    decided: Decided,
    about: dict[str, Any],
    own: OwnTable | None = None,
) -> Report:
    """The whole report of a set.

    Args:
        scored: the set and its probabilities for equal prevalence.
        as_trained: the network's own softmax `[N, C]`.
        prevalence: the classes' shares in the training set `[C]`.
        decided: refusal, prediction sets and triage on the set.
        about: the fields of `Report` on the run and its calibration.
        own: of a user's own table. Then calibration has intervals, and is also measured at the table's prevalence.
    """
    figures = set_figures(scored, as_trained, prevalence, own).model_dump(exclude_unset=True)
    return Report.model_validate_json(_json({**figures, "decided": decided, **about}))


def set_figures(
    scored: ScoredSet, as_trained: np.ndarray, prevalence: np.ndarray, own: OwnTable | None = None
) -> SetFigures:
    """All figures that need probabilities and labels alone. Arguments as of `build_report`."""
    p, y, table = scored.probabilities, scored.labels, scored.table
    if own and own.binary:
        return _binary_set_figures(scored, own)
    lesions = table["lesion_id"].to_numpy()
    weights = metrics.score_weights(table["image_id"].to_numpy())
    unit = own.unit if own else scored.unit
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
    figures: dict[str, Any] = {
        "balanced_accuracy": metrics.balanced_accuracy(p, y, weights),
        "interval_95": list(interval.balanced_accuracy),
        "interval": f"percentile bootstrap over {unit} within classes, {REPLICATES} replicates, seed 0; classes of "
        f"fewer than {FEW} {unit}: Jeffreys' posterior",
        "auc_interval": f"percentile bootstrap over {unit}, {replicates} replicates, seed 0",
        "scored_on": scored.title,
        "images": int((weights > 0).sum()),
        "lesions": int(pd.Series(lesions[weights > 0]).nunique()),
        "as_trained": {
            "what": "the network's own softmax, without temperature and offsets",
            "balanced_accuracy": metrics.balanced_accuracy(as_trained, y, weights),
            "interval_95": list(raw.balanced_accuracy),
        },
        "accuracy": float(np.average(metrics.decide(p) == y, weights=weights)) if weights.any() else np.nan,
        "mean_auc": float(np.mean([v for v in measures["auc"] if np.isfinite(v)] or [np.nan])),
        "classes": classes,
        "confusion": {
            "rows": "true class; columns: decision, last: undecided (a tie)",
            "counts": metrics.confusion(p, y, weights).astype(int).tolist(),
        },
        "calibration_error": _calibration_error(p, y, weights, prevalence),
    }
    if scored.classes.malignant is not None:
        figures["malignant"] = _malignant(scored, weights)
    if scored.classes.codes == DX or own or subgroup_columns(table):
        figures["groups"] = _groups(scored, weights, own)
    if own:
        _add_calibration_intervals(figures["calibration_error"], scored, weights, prevalence)
    return SetFigures.model_validate_json(_json(figures))


def _binary_set_figures(scored: ScoredSet, own: OwnTable) -> SetFigures:
    """The figures of a set whose truth is malignant or benign: none of single classes."""
    weights = metrics.score_weights(scored.table["image_id"].to_numpy())
    groups = scored.table["lesion_id"].to_numpy()
    unknown = {"balanced_accuracy": None, "interval_95": [None, None]}
    undefined = "not defined for malignant and benign labels"
    no_errors = dict.fromkeys(("top_label_ece", "classwise_ece", "brier", "nll"))
    replicates = replicates_for(len(weights), REPLICATES)
    malignant = _malignant(scored, weights)
    figures: dict[str, Any] = {
        **unknown,
        "interval": f"percentile bootstrap over {own.unit}, {replicates} replicates, seed 0",
        "scored_on": scored.title,
        "images": int((weights > 0).sum()),
        "lesions": int(pd.Series(groups[weights > 0]).nunique()),
        "as_trained": {"what": undefined, **unknown},
        "accuracy": None,
        "mean_auc": None,
        "classes": {},
        "confusion": {"rows": undefined, "counts": []},
        "calibration_error": {"binning": undefined, "equal_prevalence": no_errors, "training_prevalence": no_errors},
        "malignant": {**malignant, "what": "malignant against benign, as the table labels them"},
        "groups": _groups(scored, weights, own),
    }
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
        errors[name] = reliability.errors(q, y, w, bins=BINS)
    return errors


def _add_calibration_intervals(
    errors: dict[str, Any], scored: ScoredSet, weights: np.ndarray, prevalence: np.ndarray
) -> None:
    """Adds the intervals of the calibration figures to `errors`, and calibration at the set's own prevalence."""
    p, y, groups = scored.probabilities, scored.labels, scored.table["lesion_id"].to_numpy()
    values = {name: q for name, (q, _) in both_prevalences(p, y, weights, prevalence).items()}
    values["table_prevalence"], _ = at_own_prevalence(p, y, weights)
    errors["table_prevalence"] = reliability.errors(values["table_prevalence"], y, weights, bins=BINS)
    shares = {"equal_prevalence": np.ones(p.shape[1]), "training_prevalence": prevalence}
    class_totals = {name: partial(metrics.class_totals, share) for name, share in shares.items()}
    found = reliability.calibration_intervals(
        values, y, groups, weights, {**class_totals, "table_prevalence": np.copy}, replicates=FEW_REPLICATES, bins=BINS
    )
    for name, intervals in found.items():
        errors[name]["intervals_95"] = intervals


def at_own_prevalence(p: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities `[N, C]` at the prevalence of the set itself, and the image weights `[N]`, which stay the same."""
    shares = metrics.confusion(p, y, weights).sum(axis=1)
    if not shares.any():  # of images that do not count
        return p, weights
    return at_prevalence(np.maximum(p, LEAST), shares / max(shares.sum(), LEAST)), weights


def _malignant(scored: ScoredSet, weights: np.ndarray) -> dict[str, Any]:
    classes, lesions = scored.classes, scored.table["lesion_id"].to_numpy()
    positive, score = scored.malignant()
    curves = (np.stack([positive] * 2, axis=1), np.stack([score] * 2, axis=1), lesions, weights)
    names = ", ".join(name for name, bad in zip(classes.names, classes.malignant or (), strict=False) if bad)
    replicates = replicates_for(len(score), REPLICATES)
    whole, partial_area = area_intervals(*curves, sensitivity=(0.0, PARTIAL), replicates=replicates)
    return {
        "what": f"{names} against the rest",
        **{name: measure(positive, score, weights) for name, measure in RANKING.items()},
        "auc_interval_95": list(whole),
        "partial_auc_interval_95": list(partial_area),
        "summed_at": None if scored.triage_shares is None else "the training data's prevalence",
    }


def subgroup_columns(table: pd.DataFrame, more: Sequence[str] = ()) -> dict[str, list[Any]]:
    """The values `[N]` of `SUBGROUP_COLUMNS` that the table has, ages as bands, and of further columns."""
    columns = {
        name: [age_band(value) for value in table[column]] if name == "age" else table[column].tolist()
        for name, column in SUBGROUP_COLUMNS.items()
        if column in table.columns
    }
    return columns | {name: table[name].tolist() for name in more}


def _groups(scored: ScoredSet, weights: np.ndarray, own: OwnTable | None = None) -> dict[str, list[dict[str, Any]]]:
    """Balanced accuracy (for binary truth AUC) and counts of each subgroup, over the classes present in it."""
    p, y, table, codes = scored.probabilities, scored.labels, scored.table, scored.classes.codes
    columns = subgroup_columns(table, own.subgroups if own else ())
    lesions = table["lesion_id"].to_numpy()
    positive, score = scored.malignant() if own and own.binary else (np.empty(0), np.empty(0))

    def row(g: metrics.Group) -> dict[str, Any]:
        inside = g.rows
        if own and own.binary:
            return _binary_group(g, positive[inside], score[inside], lesions[inside], weights[inside])
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

    found = {name: metrics.by_group(p, y, lesions, values, weights) for name, values in columns.items()}
    if TONE_COLUMN in found:
        found[TONE_COLUMN].sort(key=lambda g: ORDER.index(g.name))
    return {name: [row(g) for g in groups] for name, groups in found.items()}


def _binary_group(
    g: metrics.Group, positive: np.ndarray, score: np.ndarray, lesions: np.ndarray, weights: np.ndarray
) -> dict[str, Any]:
    sides = {"malignant": positive, "benign": ~positive}
    replicates = replicates_for(len(score), REPLICATES)
    interval = area_intervals(positive[:, None], score[:, None], lesions, weights, replicates=replicates)[0]
    return {
        "name": g.name,
        "images": g.images,
        "lesions": g.lesions,
        "classes": [side for side, members in sides.items() if (weights[members] > 0).any()],
        "balanced_accuracy": None,
        "recalls": {},
        "auc": metrics.auc(positive, score, weights),
        "auc_interval_95": list(interval),
    }


def compare_lesion_rules(
    p: np.ndarray,
    y: np.ndarray,
    lesions: np.ndarray,
    malignant: Sequence[bool] | None,
    threshold: float | None,
    prevalence: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Compares the rules that combine the images of one lesion, on the validation lesions with several images.

    Each lesion counts once. NLL (nats) and balanced accuracy give every class the same weight; sensitivity and
    specificity are those of triage. `rule` is the rule that dermrw uses, whatever the figures.

    Args:
        p: probabilities for equal prevalence `[N, C]`.
        y: labels `[N]`.
        lesions: the lesion of each image `[N]`.
        malignant: which classes are malignant `[C]`; None: not stated.
        threshold: of triage; None without one.
        prevalence: of triage `[C]`; None: equal.
    """
    _, first, lesion, views = np.unique(lesions, return_index=True, return_inverse=True, return_counts=True)
    several = first[views > 1]  # one image of each lesion that has several
    result: dict[str, Any] = {"rule": LESION_RULE, "lesions_with_several_images": len(several), "compared": {}}
    if not len(several):
        return result
    images = np.flatnonzero(views[lesion] > 1)
    candidates = {"each image alone": (p[images], y[images])}
    for rule in LESION_RULES:
        candidates[rule] = (combine(p, lesions, rule, malignant, prevalence)[several], y[several])
    for name, (q, truth) in candidates.items():
        positive, score = metrics.malignant(at_prevalence(q, prevalence), truth, malignant or [False] * q.shape[1])
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

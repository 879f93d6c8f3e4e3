"""Refusal, prediction sets and triage: fitted on validation, then measured on a set.

`DecisionRules` holds everything that a model file needs to decide in the same way.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dermrw.decisions.conformal import fit_thresholds, prediction_sets
from dermrw.decisions.lesion_rule import combine
from dermrw.decisions.prevalence import at_prevalence
from dermrw.decisions.refusal import fit_limits
from dermrw.decisions.refusal import refusal as reason_to_refuse
from dermrw.decisions.triage import (
    LEAST_SENSITIVITY,
    OperatingPoint,
    Share,
    choose,
    sensitivity_and_specificity,
    share_of,
    too_few_positive,
)
from dermrw.diagnoses import DX, Classes
from dermrw.images.skin_tone import ORDER
from dermrw.metrics.classification import malignant
from dermrw.reports.report_schema import (
    ByLesion,
    Decided,
    DecidedGroup,
    DecisionRules,
    FittedDecisions,
    FittedRefusal,
    FittedSets,
    FittedTriage,
    Judged,
    MeasuredTriage,
    Refused,
    Sets,
    ShareWithInterval,
    TriagePoint,
)

Floats = npt.NDArray[np.float64]
Refusal = tuple[dict[str, float], FittedRefusal]  # limits, and their basis


class Predicted(NamedTuple):
    """A set of N images with the model's outputs."""

    probabilities: Floats  # [N, C], for equal prevalence
    checks: Floats  # [N, 8] or [N, 9]
    labels: npt.NDArray[np.int64]
    lesions: npt.NDArray[Any]


def fit_decisions(
    valid: Predicted,
    classes: Classes,
    table_unit: str | None = None,
    refusal: Refusal | None = None,
    prevalence: Sequence[float] | None = None,
) -> DecisionRules:
    """Thresholds and limits from the validation images.

    There is no triage if malignant classes are not stated, or if all or no validation images are malignant. With the
    user's own images there is none either if they have too few malignant groups for the sensitivity that triage is to
    have.

    Args:
        valid: the validation images.
        classes: their classes.
        table_unit: of the groups of the user's own images, in the plural; None: HAM10000 or CIFAR-10.
        refusal: the limits from `refusal_fit.fit_refusal`; None: quantiles of the validation images' checks.
        prevalence: each class's share of the training images `[C]`, for triage. None, or a share of 0: equal shares.
    """
    codes = classes.codes
    sets = fit_thresholds(valid.probabilities, valid.labels, valid.lesions)
    point, no_triage, shares = None, None, None
    if classes.malignant is None:
        no_triage = "the data does not state which classes are malignant"
    elif not any(classes.malignant) or all(classes.malignant):
        no_triage = f"{'every' if all(classes.malignant) else 'no'} class is malignant"
    else:
        shares = prevalence if prevalence is not None and min(prevalence) > 0 else None
        positive, score = malignant(at_prevalence(valid.probabilities, shares), valid.labels, classes.malignant)
        if table_unit is not None:
            no_triage = too_few_positive(valid.lesions[positive], table_unit)
        if positive.all():
            no_triage = "all validation images are malignant"
        if positive.any() and not positive.all() and no_triage is None:
            point = choose(score, positive, valid.lesions)
    likely = {code: (float(low), float(high)) for code, (low, high) in zip(codes, sets.likely, strict=True)}
    lesions = dict(zip(codes, sets.lesions.tolist(), strict=True))
    return DecisionRules(
        thresholds=dict(zip(codes, sets.values.tolist(), strict=True)),
        triage_threshold=None if point is None else point.threshold,
        triage_prevalence=None if shares is None else dict(zip(codes, shares, strict=True)),
        **({} if table_unit is None or no_triage is None else {"no_triage": no_triage}),
        limits=fit_limits(valid.checks, valid.lesions) if refusal is None else refusal[0],
        fitted=FittedDecisions(
            sets=FittedSets(coverage=sets.coverage, validation_lesions=lesions, likely_coverage=likely),
            triage=None if point is None else FittedTriage(least=LEAST_SENSITIVITY, validation=_point(point)),
            refusal=None if refusal is None else refusal[1],
        ),
    )


def measure_decisions(
    rules: DecisionRules,
    predicted: Predicted,
    weights: Floats,
    classes: Classes,
    reasons: Sequence[str | None] | None = None,
    skin_tones: Sequence[str] | None = None,
) -> Decided:
    """Refusal, prediction sets and triage on a set; images of weight 0 are left out.

    Coverage and triage are measured on all images. Refused images are included, so the figures do not depend on
    refusal. `by_lesion` covers the lesions with several images, combined to one answer each, with the thresholds for
    single images. `reasons` are the images' refusals `[N]`, if they are known already: then the checks are not used.
    `skin_tones` are the images' groups of skin tone `[N]`, from `skin_tone.skin_tones`; None: they do not show skin.
    """
    kept = weights > 0
    p, y, lesions = predicted.probabilities[kept], predicted.labels[kept], predicted.lesions[kept]
    if not len(y):
        return Decided(refused=None, sets=None, triage=None, by_lesion=None)
    codes = tuple(rules.thresholds)
    if reasons is None:
        reasons = [reason_to_refuse(row, rules.limits, codes == DX) for row in predicted.checks]
    reasons = [reason for reason, keep in zip(reasons, kept, strict=True) if keep]
    refused = np.array([reason is not None for reason in reasons])
    sets = prediction_sets(p, list(rules.thresholds.values()))
    covered = sets[np.arange(len(y)), y]
    by_class = {
        code: _share(share_of(covered[y == c], lesions[y == c])) if (y == c).any() else None
        for c, code in enumerate(codes)
    }
    judged = _judge(rules, p, y, lesions, classes.malignant)
    tones = None if skin_tones is None else np.array(skin_tones, dtype=object)[kept]
    return Decided(
        refused=Refused(
            **_share(share_of(refused, lesions)).model_dump(),
            reasons={r: reasons.count(r) for r in sorted({r for r in reasons if r})},
            by_class={code: float(refused[y == c].mean()) for c, code in enumerate(codes) if (y == c).any()},
        ),
        sets=Sets(
            coverage=judged.coverage,
            mean_over_classes=float(np.mean([row.share for row in by_class.values() if row])),
            by_class=by_class,
            mean_size=float(sets.sum(1).mean()),
            sizes=np.bincount(sets.sum(1), minlength=len(codes) + 1)[1:].tolist(),
        ),
        triage=judged.triage,
        by_lesion=_by_lesion(rules, p, y, lesions, classes.malignant),
        by_skin_tone=None if tones is None else _by_tone(rules, p, y, lesions, classes.malignant, refused, tones),
    )


def _by_tone(
    rules: DecisionRules,
    p: Floats,
    y: npt.NDArray[np.int64],
    lesions: npt.NDArray[Any],
    bad: Sequence[bool] | None,
    refused: npt.NDArray[np.bool_],
    tones: npt.NDArray[Any],
) -> list[DecidedGroup]:
    """Refusal and triage of each group of skin tone that has images, from the lightest to the darkest."""

    def triage(inside: npt.NDArray[np.bool_]) -> dict[str, ShareWithInterval | None]:
        measured = _triage(rules, p[inside], y[inside], lesions[inside], bad)
        return {
            "sensitivity": measured.sensitivity if measured else None,
            "specificity": measured.specificity if measured else None,
        }

    return [
        DecidedGroup(
            name=name,
            images=int(inside.sum()),
            lesions=len(np.unique(lesions[inside])),
            refused=_share(share_of(refused[inside], lesions[inside])),
            **triage(inside),
        )
        for name in ORDER
        if (inside := tones == name).any()
    ]


def _by_lesion(
    rules: DecisionRules, p: Floats, y: npt.NDArray[np.int64], lesions: npt.NDArray[Any], bad: Sequence[bool] | None
) -> ByLesion | None:
    """Figures of the lesions with several images; None if there is none."""
    _, first, lesion, images = np.unique(lesions, return_index=True, return_inverse=True, return_counts=True)
    one_of_each, several = first[images > 1], images[lesion] > 1
    if not len(one_of_each):
        return None
    combined = combine(p, lesion, malignant=bad, prevalence=rules.triage_shares)
    return ByLesion(
        together=_judge(rules, combined[one_of_each], y[one_of_each], lesions[one_of_each], bad),
        one_by_one=_judge(rules, p[several], y[several], lesions[several], bad),
    )


def _judge(
    rules: DecisionRules, p: Floats, y: npt.NDArray[np.int64], lesions: npt.NDArray[Any], bad: Sequence[bool] | None
) -> Judged:
    """Coverage of the sets, and triage."""
    covered = prediction_sets(p, list(rules.thresholds.values()))[np.arange(len(y)), y]
    return Judged(coverage=_share(share_of(covered, lesions)), triage=_triage(rules, p, y, lesions, bad))


def _triage(
    rules: DecisionRules, p: Floats, y: npt.NDArray[np.int64], lesions: npt.NDArray[Any], bad: Sequence[bool] | None
) -> MeasuredTriage | None:
    """Sensitivity, if an image is malignant, and specificity, if one is not; None without triage."""
    if rules.triage_threshold is None:
        return None
    positive, score = malignant(at_prevalence(p, rules.triage_shares), y, bad)
    sensitivity, specificity = sensitivity_and_specificity(score >= rules.triage_threshold, positive, lesions)
    return MeasuredTriage(
        threshold=rules.triage_threshold,
        sensitivity=_share(sensitivity) if sensitivity else None,
        specificity=_share(specificity) if specificity else None,
    )


def _share(share: Share) -> ShareWithInterval:
    interval = (share.low, share.high)
    return ShareWithInterval(share=share.value, interval_95=interval, images=share.images, lesions=share.lesions)


def _point(point: OperatingPoint) -> TriagePoint:
    return TriagePoint(
        threshold=point.threshold, sensitivity=_share(point.sensitivity), specificity=_share(point.specificity)
    )

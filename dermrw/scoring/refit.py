"""`dermrw score --refit`: prevalence, triage and prediction sets of a model file, fitted on the user's images.

The network, its calibration and its refusal limits stay the same, so its probabilities do too. Figures of the new
thresholds are out of fold: the images are divided into `FOLDS` by group, and each fold is measured with the thresholds
that were fitted on the others. The thresholds in the new file are fitted on all images.
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dermrw.decisions.conformal import fit_thresholds, prediction_sets
from dermrw.decisions.prevalence import at_prevalence
from dermrw.decisions.triage import (
    LEAST_POSITIVE,
    LEAST_SENSITIVITY,
    Share,
    choose,
    sensitivity_and_specificity,
    share_of,
)
from dermrw.errors import UserError
from dermrw.files import require_writable, write_atomic
from dermrw.formatting import percent, threshold
from dermrw.inference.classifier import Classifier
from dermrw.inference.known_images import KEY, Hashes, is_distinctive
from dermrw.inference.model_file import CONTROL_CHARACTERS, OUTPUTS, ModelInfo, Proportion, Refit, Score, Triage
from dermrw.inference.model_props import read_props, with_props
from dermrw.reports.report_schema import Report

FOLDS = 5
SEED = 0
LEAST_NEGATIVE = 12  # groups; for the specificity of triage

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Labelled(NamedTuple):
    """The N images to fit on. None of them was used to train, select or calibrate the model."""

    labels: Ints  # [N]: the class; with binary truth 1 for malignant and 0 for benign
    groups: npt.NDArray[np.str_]  # [N]
    binary: bool


class Plan(NamedTuple):
    """What can be refitted on the images."""

    folds: Ints  # [N]: the fold of each image
    triage: bool
    classes: list[int]  # whose prediction-set threshold is refitted
    prevalence: bool
    kept: list[str]  # sentences on what is kept, and why


class Fitted(NamedTuple):
    """New thresholds, and their figures out of fold."""

    prevalence: dict[str, float]
    thresholds: tuple[float, ...]  # [C]
    triage_threshold: float | None
    sensitivity: Share | None  # out of fold, as the next four; None if triage is kept
    specificity: Share | None
    covered: Share | None  # None with binary truth
    by_class: dict[str, Share]
    mean_size: float | None  # of the prediction sets
    fold_thresholds: tuple[float, float] | None  # lowest and highest triage threshold of the folds
    before: "Before"


class Before(NamedTuple):
    """The same figures with the thresholds of the model file, which were not fitted on these images."""

    sensitivity: Share | None
    specificity: Share | None
    covered: Share | None
    by_class: dict[str, Share]
    mean_size: float | None


def require_targets(target: Path) -> None:
    """Checks that the new model file and the card next to it can be written.

    Raises:
        UserError: one of the two exists or cannot be written, or the new file is not named .onnx.
    """
    if target.suffix != ".onnx":
        raise UserError(f"--refit {target}: name a new file that ends in .onnx")
    for path in (target, target.with_suffix(".md")):
        if path.exists():
            raise UserError(f"--refit would replace {path}: name a new file, or move this one")
        require_writable(path)


def assign_folds(labels: Ints, groups: npt.NDArray[np.str_]) -> Ints:
    """Returns the fold of each image `[N]`: groups stay together, and the groups of each class are spread evenly.

    A group of several classes counts as one of its rarest class. The order of the images does not matter.
    """
    names, group = np.unique(groups, return_inverse=True)
    classes, label = np.unique(labels, return_inverse=True)
    has = np.zeros((len(names), len(classes)), dtype=bool)
    has[group, label] = True
    size = has.sum(axis=0)
    rarest = np.where(has, size[None, :], len(names) + 1).argmin(axis=1)
    order = np.random.default_rng(SEED).permutation(len(names))
    order = order[np.argsort(size[rarest[order]] * len(classes) + rarest[order], kind="stable")]
    fold = np.empty(len(names), dtype=np.int64)
    fold[order] = np.arange(len(names)) % FOLDS
    return fold[group]


def plan(images: Labelled, info: ModelInfo) -> Plan:
    """Returns what can be refitted on the images.

    Raises:
        UserError: no threshold can be refitted.
    """
    folds = assign_folds(images.labels, images.groups)
    kept: list[str] = []

    def fewest(chosen: npt.NDArray[np.bool_]) -> tuple[int, int]:
        """Returns the number of groups of the chosen images, in all and in the smallest training part."""
        parts = [len(np.unique(images.groups[chosen & (folds != fold)])) for fold in range(FOLDS)]
        return len(np.unique(images.groups[chosen])), min(parts)

    def too_few(name: str, chosen: npt.NDArray[np.bool_], least: int) -> str | None:
        groups, smallest = fewest(chosen)
        if smallest >= least:
            return None
        needed = max(groups + 1, math.ceil(least * FOLDS / (FOLDS - 1)))
        return f"{name} have {groups:,} group{'' if groups == 1 else 's'}, and {needed:,} are needed"

    triage = False
    positive = _positive(images, info)
    if positive is None:
        kept.append("Triage is kept, because the model states no malignant classes.")
    else:
        reason = too_few("malignant images", positive, LEAST_POSITIVE)
        reason = reason or too_few("benign images", ~positive, LEAST_NEGATIVE)
        triage = reason is None
        if reason:
            state = "The triage threshold is kept" if info.triage else "There is still no triage"
            kept.append(f"{state}, because {reason}.")
    chosen: list[int] = []
    prevalence = False
    if images.binary:
        kept.append("Prediction sets and prevalence are kept, because the labels are malignant and benign.")
    else:
        least = math.ceil(info.coverage / (1 - info.coverage) - 1e-9)
        for c, code in enumerate(info.codes):
            reason = too_few(f"images of {code}", images.labels == c, least)
            if reason is None:
                chosen.append(c)
            else:
                kept.append(f"The prediction-set threshold of {code} is kept, because {reason}.")
        absent = [code for c, code in enumerate(info.codes) if not (images.labels == c).any()]
        prevalence = not absent
        if absent:
            kept.append(f"The prevalence is kept, because no image shows {', '.join(absent)}.")
    if not triage and not chosen:
        if prevalence:
            kept.append("The prevalence alone is not refitted: give it with --prevalence.")
        raise UserError("nothing can be refitted on these images: " + " ".join(kept))
    kept.append(
        "The refusal limits are kept: they describe the images that the network was trained on, and images of poor "
        "quality in the table would loosen them."
    )
    return Plan(folds, triage, chosen, prevalence, kept)


def fit(probabilities: Floats, images: Labelled, info: ModelInfo, planned: Plan) -> Fitted:
    """Fits thresholds on all images, and measures them out of fold.

    Args:
        probabilities: at equal prevalence `[N, C]`.
        images: labels and groups `[N]`.
        info: the metadata of the model file.
        planned: the result of `plan`.
    """
    y, groups, folds = images.labels, images.groups, planned.folds
    everything = np.ones(len(y), dtype=bool)

    def thresholds(rows: npt.NDArray[np.bool_]) -> Floats:
        values = np.array(info.thresholds)
        if planned.classes:
            fitted = fit_thresholds(probabilities[rows], y[rows], groups[rows], info.coverage).values
            values[planned.classes] = fitted[planned.classes]
        return values

    positive = _positive(images, info)
    score = np.zeros(len(y))
    if positive is not None and info.malignant is not None:
        score = at_prevalence(probabilities, info.triage_shares)[:, np.array(info.malignant)].sum(axis=1)
    refer, sets = np.zeros(len(y), dtype=bool), np.zeros(probabilities.shape, dtype=bool)
    points: list[float] = []
    for fold in range(FOLDS):
        here = folds == fold
        if planned.triage and positive is not None:
            points.append(choose(score[~here], positive[~here], groups[~here]).threshold)
            refer[here] = score[here] >= points[-1]
        if not images.binary:
            sets[here] = prediction_sets(probabilities[here], thresholds(~here))
    point, sensitivity, specificity = None, None, None
    if planned.triage and positive is not None:
        point = choose(score, positive, groups).threshold
        sensitivity, specificity = sensitivity_and_specificity(refer, positive, groups)
    covered, by_class, mean_size = _coverage(sets, images, info.codes)
    old_sets = prediction_sets(probabilities, info.thresholds)
    old_covered, old_by_class, old_size = _coverage(old_sets, images, info.codes)
    old_sensitivity, old_specificity = None, None
    if info.triage and positive is not None:
        old_sensitivity, old_specificity = sensitivity_and_specificity(score >= info.triage.threshold, positive, groups)
    shares = np.bincount(y, minlength=len(info.codes)) / len(y)
    return Fitted(
        prevalence=dict(zip(info.codes, shares.tolist(), strict=True)) if planned.prevalence else info.prevalence,
        thresholds=tuple(thresholds(everything).tolist()),
        triage_threshold=point,
        sensitivity=sensitivity,
        specificity=specificity,
        covered=covered,
        by_class=by_class,
        mean_size=mean_size,
        fold_thresholds=(min(points), max(points)) if points else None,
        before=Before(old_sensitivity, old_specificity, old_covered, old_by_class, old_size),
    )


def _positive(images: Labelled, info: ModelInfo) -> npt.NDArray[np.bool_] | None:
    """Whether each image `[N]` is malignant; None if the model does not state malignant classes."""
    if info.malignant is None or not any(info.malignant):
        return None
    return images.labels == 1 if images.binary else np.array(info.malignant)[images.labels]


def _coverage(
    sets: npt.NDArray[np.bool_], images: Labelled, codes: Sequence[str]
) -> tuple[Share | None, dict[str, Share], float | None]:
    """Returns the coverage of prediction sets `[N, C]`, the coverage of each class, and the mean size."""
    if images.binary:
        return None, {}, None
    y, groups = images.labels, images.groups
    inside = sets[np.arange(len(y)), y]
    by_class = {code: share_of(inside[y == c], groups[y == c]) for c, code in enumerate(codes) if (y == c).any()}
    return share_of(inside, groups), by_class, float(sets.sum(axis=1).mean())


def write_refitted(
    target: Path,
    classifier: Classifier,
    images: Labelled,
    planned: Plan,
    fitted: Fitted,
    report: Report,
    ids: Sequence[str],
    hashes: Hashes,
) -> ModelInfo:
    """Writes the new model file and its card, and returns the new metadata.

    Args:
        target: the new file; the card is next to it.
        classifier: the model.
        images: that the thresholds are fitted on `[N]`.
        planned: the result of `plan`.
        fitted: the result of `fit`.
        report: of the model file on these images.
        ids: of the images `[N]`; the new file lists those that are distinctive, so that `score` leaves them out.
        hashes: of the images `[N, 2]`.

    Raises:
        UserError: the model file has changed, or a file cannot be written.
    """
    content = classifier.path.read_bytes()
    info, known = classifier.info, classifier.known_images()
    new = refitted_info(info, classifier.digest, images, planned, fitted, report)
    props = read_props(content) | new.to_props()
    if known is not None:
        props[KEY] = known.added(filter(is_distinctive, ids), hashes).to_prop()
    candidate = target.with_name(f".{target.name}.unchecked")
    write_atomic(candidate, with_props(content, props))
    try:
        written = Classifier(candidate, "cpu")
        _require_same(Classifier(classifier.path, "cpu"), classifier.digest, written, new)
        text = _card(target, info, new, images, planned, fitted, report, written.digest, known is not None)
        write_atomic(target.with_suffix(".md"), text.encode())
        candidate.replace(target)
    finally:
        candidate.unlink(missing_ok=True)
    return new


def _require_same(before: Classifier, digest: str, after: Classifier, info: ModelInfo) -> None:
    """Checks that the new file has the metadata and the same network.

    Raises:
        UserError: the model file has changed since it was loaded.
    """
    noise = np.random.default_rng(SEED).integers(0, 256, (2, info.size, info.size, 3), dtype=np.uint8)
    pairs = zip(before.run(noise, *OUTPUTS), after.run(noise, *OUTPUTS), strict=True)
    if before.digest != digest or after.info != info or not all((one == other).all() for one, other in pairs):
        raise UserError(f"{before.path} has changed since it was loaded: run the command again")


def refitted_info(
    info: ModelInfo, digest: str, images: Labelled, planned: Plan, fitted: Fitted, report: Report
) -> ModelInfo:
    """Returns the metadata of the new file.

    If the images are of all classes, they replace the images of the card: `score`, `refused`, `covered` and the
    figures of triage are then all measured on them. Otherwise figures of replaced thresholds are deleted.
    """
    external, decided = report.external, report.decided
    assert external is not None
    title = CONTROL_CHARACTERS.sub(" ", report.scored_on)[:200]
    low, high = report.interval_95
    complete = planned.prevalence and report.balanced_accuracy is not None and low is not None and high is not None
    update: dict[str, object] = {}
    if planned.prevalence:
        update["prevalence"] = fitted.prevalence
    if planned.classes:
        update |= {"thresholds": fitted.thresholds, "covered": _proportion(fitted.covered) if complete else None}
    if planned.triage:
        update["triage"] = Triage(
            threshold=fitted.triage_threshold or 0.0,
            sensitivity=_proportion(fitted.sensitivity) if complete else None,
            specificity=_proportion(fitted.specificity) if complete else None,
            prevalence=info.triage_prevalence,
        )
        if info.no_triage is not None:
            update["no_triage"] = None
    if complete:
        update["covered"] = _proportion(fitted.covered)
        update["score"] = Score(
            balanced_accuracy=report.balanced_accuracy or 0.0,
            interval_95=(low or 0.0, high or 0.0),
            scored_on=f"{title}, thresholds out of fold",
            images=report.images,
        )
        if decided.refused:
            part = decided.refused
            update["refused"] = Proportion(share=part.share, interval_95=part.interval_95, images=part.images)
        if info.triage and not planned.triage:
            old = {
                "sensitivity": _proportion(fitted.before.sensitivity),
                "specificity": _proportion(fitted.before.specificity),
            }
            update["triage"] = info.triage.model_copy(update=old)
    refit = Refit(
        created=time.strftime("%Y-%m-%d", time.gmtime()),
        source=title,
        images=len(images.labels),
        groups=len(np.unique(images.groups)),
        unit=external.unit,
        model_sha256=digest,
        fields=tuple(sorted(update)),
        classes=tuple(info.codes[c] for c in planned.classes),
        folds=FOLDS,
        seed=SEED,
        sensitivity=_proportion(fitted.sensitivity),
        specificity=_proportion(fitted.specificity),
        covered=_proportion(fitted.covered) if planned.classes else None,
    )
    return ModelInfo.model_validate(info.model_dump() | {"refit": refit.model_dump()} | _dumped(update))


def _dumped(update: dict[str, object]) -> dict[str, object]:
    return {key: value.model_dump() if hasattr(value, "model_dump") else value for key, value in update.items()}


def _proportion(share: Share | None) -> Proportion | None:
    return share and Proportion(share=share.value, interval_95=(share.low, share.high), images=share.images)


def refit_lines(planned: Plan, fitted: Fitted) -> list[str]:
    """Returns the out-of-fold figures and the fields that are kept, as sentences to print."""
    before = fitted.before
    lines = []
    for name, now, then, changed in (
        ("Triage sensitivity", fitted.sensitivity, before.sensitivity, planned.triage),
        ("Triage specificity", fitted.specificity, before.specificity, planned.triage),
        ("Coverage of the prediction sets", fitted.covered, before.covered, bool(planned.classes)),
    ):
        if changed and now:
            lines.append(f"{name}, out of fold: {share_text(now)}; with the model's own thresholds: {share_text(then)}")
    return [*lines, *planned.kept]


def share_text(share: Share | None) -> str:
    """Returns a share with its interval, such as `93.1 % (90.2 % to 95.4 %)`."""
    return "–" if share is None else f"{percent(share.value)} ({percent(share.low)} to {percent(share.high)})"


def _card(
    target: Path,
    info: ModelInfo,
    new: ModelInfo,
    images: Labelled,
    planned: Plan,
    fitted: Fitted,
    report: Report,
    digest: str,
    listed: bool,
) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=percent, share=share_text, threshold=threshold)
    counts = np.bincount(images.labels, minlength=len(info.codes)).tolist()
    groups = [len(np.unique(images.groups[images.labels == c])) for c in range(len(info.codes))]
    return environment.get_template("refit_card.md.jinja").render(
        file=target.name,
        info=info,
        new=new,
        refit=new.refit,
        counts=counts,
        groups=groups,
        binary=images.binary,
        planned=planned,
        fitted=fitted,
        report=report,
        digest=digest,
        listed=listed,
        least_sensitivity=LEAST_SENSITIVITY,
    )

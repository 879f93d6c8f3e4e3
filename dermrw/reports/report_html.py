"""report.html: one self-contained page on a model's predictions for a set of images.

Everything is inline, so that the file can be mailed and archived. The numbers are those of report.json; the figures
are drawn from the same predictions.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, StrictUndefined

from dermrw.diagnoses import DX
from dermrw.files import write_atomic
from dermrw.formatting import NO_BREAK, duration, number, percent, threshold
from dermrw.images.skin_tone import TONE_COLUMN
from dermrw.images.thumbnail import thumbnail
from dermrw.metrics import classification as metrics
from dermrw.reports import figures
from dermrw.reports.figures import ClassStyle
from dermrw.reports.report_json import BINS, ScoredSet, at_own_prevalence, both_prevalences
from dermrw.reports.report_schema import Report
from dermrw.reports.report_text import FAIR_SKIN, SKIN_TONE, left_out_sentences, report_unit

TEMPLATE = Path(__file__).with_name("report.html.jinja")
MISTAKES, MISSED = 12, 6
OBJECTIVES = {
    "erm": "empirical risk minimisation: mean cross-entropy over shuffled batches (erm)",
    "erm, balanced sampling": "mean cross-entropy, every class drawn equally often (erm, balanced sampling)",
    "reweight": "learning to reweight examples (reweight)",
    "noise_weights, balanced_softmax": "balanced softmax, weighted by a label-noise model fitted to the meta set "
    "(noise_weights, balanced_softmax)",
    "erm, balanced_softmax": "balanced softmax (erm, balanced_softmax)",
}
WEIGHING = {
    "reweight": "Each training example is weighted by how well its gradient agrees with that of the small meta set "
    "(Ren et al. 2018).",
    "random_weights": "Each training example is weighted at random, as a control for learning to reweight.",
    "meta_weight_net": "Each training example is weighted by a function of its loss: a small network trained on a "
    "meta set (Shu et al. 2019).",
    "noise_weights": "Each training example is weighted by the probability that its label is correct, under a "
    "label-noise model whose one parameter is fitted to the small meta set.",
    "label_posterior": "Each training example is weighted by the probability that its label is correct, from "
    "predictions that did not see the label, under an estimated rate of label noise.",
    "confident_learning": "Training examples whose label contradicts predictions that did not see it have the weight 0 "
    "(Northcutt et al. 2021).",
}
GROUPS = {
    "sex": "Sex", "age": "Age in years", "site": "Site", "confirmation": "Diagnosis confirmed by",
    TONE_COLUMN: "Skin tone (estimated)",
}  # fmt: skip
GROUP_NAMES = {
    "histo": "histopathology",
    "follow_up": "follow-up",
    "consensus": "expert consensus",
    "confocal": "confocal microscopy",
    "missing": "not given",
}


class Mistake(NamedTuple):
    """One wrong decision."""

    image_id: str
    truth: ClassStyle
    decision: ClassStyle
    probability: float
    truth_probability: float
    picture: str | None  # a data URL
    pixelated: bool


class TrainingHistory(NamedTuple):
    """How the model was trained, for the page's section on training."""

    log: Sequence[dict[str, Any]] = ()  # rows of metrics.jsonl
    settings: Sequence[tuple[str, str]] = ()  # of the optimiser, batches and seeds: label and text


def write_html(path: Path, report: Report, scored: ScoredSet, training: TrainingHistory, official: bool) -> None:
    """Writes the page, atomically.

    Args:
        path: the .html file; report.json is expected next to it, under the same name.
        report: from `build_report`.
        scored: the images and probabilities that it was built from.
        training: the training log and settings.
        official: whether the set is an official set of ISIC 2018, and not the run's own test split.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        percent=partial(percent, space=NO_BREAK), number=number, threshold=threshold,
        duration=partial(duration, space=NO_BREAK), width=lambda v: f"{100 * v:.2f}%",
    )  # fmt: skip
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    values = {**context(report, scored, training, official), "json_file": path.with_suffix(".json").name}
    write_atomic(path, template.render(values).lstrip().encode())


def context(report: Report, scored: ScoredSet, training: TrainingHistory, official: bool) -> dict[str, Any]:
    """The variables of the template. Arguments as of `write_html`."""
    styles = figures.class_styles(scored.classes)
    p, y = scored.probabilities, scored.labels
    weights = metrics.score_weights(scored.table["image_id"].to_numpy())
    prevalence = np.array([report.training_prevalence[style.code] for style in styles])
    prevalence = prevalence / prevalence.sum()  # a report may hold rounded shares; `at_prevalence` needs a sum of 1
    external = report.external
    binary = external is not None and external.binary
    rows = [] if binary else [{"style": style, **report.classes[style.code].model_dump()} for style in styles]
    nothing: dict[str, Any] = {"style": styles[0], "images": 0}
    commonest: dict[str, Any] = max(rows, key=lambda row: row["images"], default=nothing)
    dermatology = scored.classes.codes == DX
    unit = report_unit(report)
    counts = report.confusion.counts
    panels = both_prevalences(p, y, weights, prevalence)
    if external:
        panels["table_prevalence"] = at_own_prevalence(p, y, weights)
    return {
        "report": report,
        "SPACE": NO_BREAK,
        "dermatology": dermatology,
        "unit": unit,
        "grouped": unit != "images",
        "external": external,
        "binary": binary,
        "left_out": left_out_sentences(external) if external else [],
        "notes": report.notes or [],
        "malignant_classes": "malignant and pre-malignant" if dermatology else "malignant",
        "tag": "(pre)malignant" if dermatology else "malignant",
        "chance": 1 / len(styles),
        "commonest": {
            "code": commonest["style"].code,
            "share": commonest["images"] / report.images if report.images else None,
        },
        "longest": max(len(style.code) for style in styles),
        "mistakes_of": scored.title if official or external else "this test split",
        "styles": styles,
        "rows": rows,
        "present": sum(row["images"] > 0 for row in rows),
        "flat": any(r["recall"] is not None and r["recall_interval_95"][0] == r["recall_interval_95"][1] for r in rows),
        "confusion": [] if binary else confusion_rows(counts, styles),
        "undecided": any(row[-1] for row in counts),
        "roc": None if binary else figures.roc(p, y, weights, styles),
        "precision_recall": None if binary else figures.precision_recall(p, y, weights, styles),
        "summed_at": f" at {report.malignant.summed_at}".replace("'", "’")
        if report.malignant and report.malignant.summed_at
        else "",
        "malignant_roc": report.malignant and figures.malignant_roc(*scored.malignant(), weights, report.malignant),
        "reliability": [
            (name, figures.reliability_diagram(name, q, y, w, styles, BINS))
            for name, (q, w) in ({} if binary else panels).items()
        ],
        "training": training_figures(training.log, report.epoch or 0, styles, prevalence),
        "mistakes": [] if binary else mistakes(scored, weights, styles, MISTAKES),
        "missed": [] if binary else mistakes(scored, weights, styles, MISSED, missed=True),
        "groups": report.groups or {},
        "group_titles": GROUPS,
        "group_names": GROUP_NAMES,
        "skin_tone": SKIN_TONE,
        "fair_skin": FAIR_SKIN if dermatology and not report.warning and not report.data else "",
        "objective": OBJECTIVES.get(report.objective, report.objective),
        "weighing": WEIGHING.get(report.objective.partition(",")[0], ""),
        "settings": training.settings,
        "ham10000": scored.classes.codes == DX and not report.warning and not external and not report.data,
        "official": official,
    }


def confusion_rows(counts: Sequence[Sequence[int]], styles: Sequence[ClassStyle]) -> list[dict[str, Any]]:
    """For each true class its counts and their shares of the row; None as the share in a row without images."""
    return [
        {"style": style, "total": sum(row), "cells": [(n, n / sum(row) if sum(row) else None) for n in row]}
        for style, row in zip(styles, counts, strict=True)
    ]


def mistakes(
    scored: ScoredSet, weights: np.ndarray, styles: Sequence[ClassStyle], most: int, missed: bool = False
) -> list[Mistake]:
    """At most `most` wrong decisions of the highest probability, one per lesion; `missed`: only malignant as benign."""
    p, y, table = scored.probabilities, scored.labels, scored.table
    decided = metrics.decide(p)
    wrong = (decided != y) & (decided >= 0) & (weights > 0)
    if missed:
        malignant = np.array([style.malignant for style in styles])
        wrong &= malignant[y] & ~malignant[decided]
    rows = np.flatnonzero(wrong)
    rows = rows[np.argsort(-p[rows, decided[rows]], kind="stable")]
    chosen: list[Mistake] = []
    lesions: set[Any] = set()
    for row in rows:
        lesion = table["lesion_id"].iloc[row]
        if len(chosen) == most or lesion in lesions:
            continue  # several images of one lesion would show the same mistake
        lesions.add(lesion)
        picture, pixelated = thumbnail(scored.sources[row])
        truth, decision = y[row], decided[row]
        chosen.append(
            Mistake(
                str(table["image_id"].iloc[row]),
                styles[truth],
                styles[decision],
                float(p[row, decision]),
                float(p[row, truth]),
                picture,
                pixelated,
            )
        )
    return chosen


def training_figures(
    log: Sequence[dict[str, Any]], best_epoch: int, styles: Sequence[ClassStyle], prevalence: np.ndarray
) -> dict[str, Any] | None:
    """Loss, validation score and, where examples were weighted, the weights over training.

    Args:
        log: rows of metrics.jsonl.
        best_epoch: the epoch that was kept.
        styles: of the classes.
        prevalence: the classes' shares in the training set `[C]`.

    Returns:
        None for a log without finished epochs, or with other rows than training writes.
    """
    try:
        return _training_figures(log, best_epoch, styles, prevalence)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError):
        print("metrics.jsonl holds rows that training does not write: the report has no training curves")
        return None


def _training_figures(
    log: Sequence[dict[str, Any]], best_epoch: int, styles: Sequence[ClassStyle], prevalence: np.ndarray
) -> dict[str, Any] | None:
    steps = [row for row in log if "loss" in row]
    validations = [row for row in log if "validation" in row]
    if not steps or not validations:
        return None
    per_epoch = validations[0]["step"] / validations[0]["epoch"]
    x = np.array([row["step"] for row in steps]) / per_epoch
    epochs = max(x[-1], validations[-1]["epoch"])
    at = np.array([row["epoch"] for row in validations], dtype=float)
    score = np.array([row["validation"]["balanced_accuracy"] for row in validations], dtype=float)
    loss = np.array([row["loss"] for row in steps])
    drawn: dict[str, Any] = {
        "loss": figures.over_training("loss", "Training loss over epochs", x, loss, epochs),
        "validation": figures.over_training(
            "validation",
            f"Balanced validation accuracy over epochs; epoch {best_epoch} was kept",
            *(at, score, epochs),
            percent=True,
            best=best_epoch,
        ),
        "validation_loss": None,
        "weights": None,
    }
    if all("balanced_loss" in row["validation"] for row in validations):  # not in the log of an older run
        values = np.array([row["validation"]["balanced_loss"] for row in validations], dtype=float)
        title = "Class-balanced validation loss over epochs"
        drawn["validation_loss"] = figures.over_training("validation-loss", title, at, values, epochs, best=best_epoch)
    weighed = [row for row in steps if "class_weight" in row]
    if weighed:
        x = np.array([row["step"] for row in weighed]) / per_epoch
        share = np.array([row["class_weight"] for row in weighed], dtype=float)  # [rows, C]
        top = 1.05 * max(float(np.nanmax(share)), float(prevalence.max()))
        drawn["weights"] = [
            (style, prevalence[c], figures.class_weight(style, c, x, share[:, c], float(prevalence[c]), epochs, top))
            for c, style in enumerate(styles)
        ]
        zero = np.array([row["zero_share"] for row in weighed], dtype=float)
        effective = np.array([row["effective_batch"] for row in weighed], dtype=float)
        drawn["zero"] = figures.over_training(
            "zero", "Share of a batch's examples with weight zero", x, zero, epochs, percent=True
        )
        drawn["effective"] = figures.over_training("effective", "Effective batch size", x, effective, epochs)
    return drawn

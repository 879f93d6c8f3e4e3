"""report.html: what a run is worth, on one page that needs nothing but itself.

Everything is inline, so that the file can be mailed, archived and read offline in years. Numbers are report.json's;
the figures are drawn from the same predictions.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image

from dermrw.decisions.prevalence import at_prevalence
from dermrw.diagnoses import DX
from dermrw.errors import UserError
from dermrw.files import write_atomic
from dermrw.images.preprocess import read_image
from dermrw.metrics import classification as metrics
from dermrw.reports import figures
from dermrw.reports.figures import Look
from dermrw.reports.report_json import BINS, Scored
from dermrw.training.run_folder import open_run, read_log

TEMPLATE = Path(__file__).with_name("report.html.jinja")
MISTAKES, MISSED = 12, 6
THUMBNAIL = 160  # pixels on the long side
SPACE = "\u202f"  # narrow, and does not break: 25.6 % stays together
OBJECTIVES = {
    "erm": "plain training: the mean cross-entropy of shuffled batches (erm)",
    "erm, balanced sampling": "plain training, every class drawn equally often (erm, balanced sampling)",
    "reweight": "learning to reweight examples (reweight)",
    "noise_weights, balanced_softmax": "balanced softmax, weighted by a model of wrong labels that the meta set "
    "teaches (noise_weights, balanced_softmax)",
    "erm, balanced_softmax": "balanced softmax (erm, balanced_softmax)",
}
TAUGHT = ("reweight", "meta_weight_net", "noise_weights", "fine_tune_meta")  # by the meta set
WEIGHING = {
    "reweight": "Each training example is weighted by how far its gradient agrees with that of a small trusted set "
    "(Ren et al. 2018).",
    "random_weights": "Each training example is weighted at random: the control of learning to reweight.",
    "meta_weight_net": "Each training example is weighted by a function of its loss, a small network that a trusted "
    "set teaches (Shu et al. 2019).",
    "noise_weights": "Each training example is weighted by how likely its label is to be right, in a model of wrong "
    "labels whose one parameter a small trusted set teaches.",
}
GROUPS = {"sex": "Sex", "age": "Age in years", "site": "Site", "confirmation": "Diagnosis confirmed by"}
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
    truth: Look
    decision: Look
    probability: float
    truth_probability: float
    picture: str | None  # a data URL
    pixelated: bool


def write_html(run: Path, suffix: str, report: dict[str, Any], scored: Scored) -> None:
    """Writes the run's report{suffix}.html, whole or not at all.

    Args:
        run: the run's folder; its log and config, where they are there, add how it was trained.
        suffix: tells the report on an official set from the one on the run's own test split.
        report: what `build_report` gave.
        scored: the images and probabilities it was built from.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(percent=percent, number=number, duration=duration, width=lambda v: f"{100 * v:.2f}%")
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    write_atomic(run / f"report{suffix}.html", template.render(context(run, suffix, report, scored)).lstrip().encode())


def percent(value: float | None, digits: int = 1) -> str:
    """A share for people; – where it is not defined."""
    return "–" if value is None else f"{100 * value:.{digits}f}{SPACE}%"


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many decimals; – where it is not defined."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def duration(seconds: float) -> str:
    """Seconds in words."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.{1 if unit == 'h' else 0}f}{SPACE}{unit}"
    return f"{seconds:.0f}{SPACE}s"


def context(run: Path, suffix: str, report: dict[str, Any], scored: Scored) -> dict[str, Any]:
    """All that the template shows."""
    looks = figures.looks(scored.classes.codes)
    p, y = scored.probabilities, scored.images.labels
    weights = metrics.score_weights(scored.images.table["image_id"].to_numpy())
    prevalence = np.array([report["training_prevalence"][look.code] for look in looks])
    prevalence = prevalence / prevalence.sum()  # report.json rounds, and at_prevalence asks for a sum of exactly 1
    at_training = metrics.prevalence_weights(y, prevalence, weights)
    malignant = report.get("malignant")
    rows = [{"look": look, **report["classes"][look.code]} for look in looks]
    commonest = max(rows, key=lambda row: row["images"])
    dermatology = any(look.name for look in looks)
    own = suffix == ""
    return {
        "report": report,
        "suffix": suffix,
        "SPACE": SPACE,
        "dermatology": dermatology,
        "unit": "lesions" if dermatology else "images",
        "chance": 1 / len(looks),
        "commonest": {
            "code": commonest["look"].code,
            "share": commonest["images"] / report["images"] if report["images"] else None,
        },
        "longest": max(len(look.code) for look in looks),
        "mistakes_of": "this test split" if own else scored.title,
        "looks": looks,
        "rows": rows,
        "present": sum(row["images"] > 0 for row in rows),
        "flat": any(r["recall"] is not None and r["recall_interval_95"][0] == r["recall_interval_95"][1] for r in rows),
        "confusion": confusion_rows(report["confusion"]["counts"], looks),
        "undecided": any(row[-1] for row in report["confusion"]["counts"]),
        "roc": figures.roc(p, y, weights, looks),
        "malignant_roc": figures.malignant_roc(p, y, weights, malignant) if malignant else None,
        "reliability": [
            ("equal_prevalence", figures.reliability_diagram("equal", p, y, _balanced(y, weights), looks, BINS)),
            (
                "training_prevalence",
                figures.reliability_diagram("training", at_prevalence(p, prevalence), y, at_training, looks, BINS),
            ),
        ],
        "training": training_figures(run, report, looks, prevalence),
        "mistakes": mistakes(scored, weights, looks, MISTAKES),
        "missed": mistakes(scored, weights, looks, MISSED, missed=True),
        "groups": report.get("groups", {}),
        "group_titles": GROUPS,
        "group_names": GROUP_NAMES,
        "objective": OBJECTIVES.get(report["objective"], report["objective"]),
        "weighing": WEIGHING.get(report["objective"].partition(",")[0], ""),
        "settings": settings(run),
        "ham10000": scored.classes.codes == DX and not report["warning"],
        "official": not own,
    }


def _balanced(labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return metrics.equal_prevalence_weights(labels, weights) if weights.any() else weights


def confusion_rows(counts: Sequence[Sequence[int]], looks: Sequence[Look]) -> list[dict[str, Any]]:
    """Each true class with its counts and their shares of the row (None for a class without images)."""
    return [
        {"look": look, "total": sum(row), "cells": [(n, n / sum(row) if sum(row) else None) for n in row]}
        for look, row in zip(looks, counts, strict=True)
    ]


def mistakes(
    scored: Scored, weights: np.ndarray, looks: Sequence[Look], most: int, missed: bool = False
) -> list[Mistake]:
    """The most confident wrong decisions, one image per lesion; `missed`: only malignant ones decided benign."""
    p, y, table = scored.probabilities, scored.images.labels, scored.images.table
    decided = metrics.decide(p)
    wrong = (decided != y) & (decided >= 0) & (weights > 0)
    if missed:
        malignant = np.array([look.malignant for look in looks])
        wrong &= malignant[y] & ~malignant[decided]
    rows = np.flatnonzero(wrong)
    rows = rows[np.argsort(-p[rows, decided[rows]], kind="stable")]
    found: list[Mistake] = []
    seen: set[Any] = set()
    for row in rows:
        lesion = table["lesion_id"].iloc[row]
        if len(found) == most or lesion in seen:
            continue  # several images of one lesion would tell the same story
        seen.add(lesion)
        picture, pixelated = thumbnail(scored.images.sources[row])
        truth, decision = y[row], decided[row]
        found.append(
            Mistake(
                str(table["image_id"].iloc[row]),
                looks[truth],
                looks[decision],
                float(p[row, decision]),
                float(p[row, truth]),
                picture,
                pixelated,
            )
        )
    return found


def thumbnail(source: Any) -> tuple[str | None, bool]:
    """A data URL of the upright picture, and whether it is so small that its pixels are to be shown as they are."""
    try:
        image = Image.fromarray(source) if isinstance(source, np.ndarray) else read_image(source)
    except UserError:
        return None, False  # a report without one picture is better than none
    tiny = max(image.size) <= THUMBNAIL // 2
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=95 if tiny else 82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(), tiny


def training_figures(
    run: Path, report: dict[str, Any], looks: Sequence[Look], prevalence: np.ndarray
) -> dict[str, Any] | None:
    """Loss, validation and, for reweighting, the weights over training; None for a run whose log is gone or odd."""
    try:
        return _training_figures(read_log(run), report, looks, prevalence)
    except (OSError, UserError):
        return None
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError):
        print(f"{run / 'metrics.jsonl'} is not as training wrote it: the report goes without training's curves")
        return None


def _training_figures(
    log: list[dict[str, Any]], report: dict[str, Any], looks: Sequence[Look], prevalence: np.ndarray
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
            f"Balanced validation accuracy over epochs; epoch {report['epoch']} was kept",
            *(at, score, epochs),
            percent=True,
            best=report["epoch"],
        ),
        "weights": None,
    }
    weighed = [row for row in steps if "class_weight" in row]
    if weighed:
        x = np.array([row["step"] for row in weighed]) / per_epoch
        share = np.array([row["class_weight"] for row in weighed], dtype=float)  # [rows, C]
        top = 1.05 * max(float(np.nanmax(share)), float(prevalence.max()))
        drawn["weights"] = [
            (look, prevalence[c], figures.class_weight(look, c, x, share[:, c], float(prevalence[c]), epochs, top))
            for c, look in enumerate(looks)
        ]
        zero = np.array([row["zero_share"] for row in weighed], dtype=float)
        effective = np.array([row["effective_batch"] for row in weighed], dtype=float)
        drawn["zero"] = figures.over_training(
            "zero", "Share of a batch's examples with weight zero", x, zero, epochs, percent=True
        )
        drawn["effective"] = figures.over_training("effective", "Effective batch size", x, effective, epochs)
    return drawn


def settings(run: Path) -> list[tuple[str, str]]:
    """What the run's config says beyond the report: the optimiser, the seeds. Paths stay out of a file that travels."""
    try:
        config = open_run(run)
    except UserError:
        return []
    train, data = config.train, config.data
    drawn = data.meta == "rule" or data.name == "cifar10"
    trusted = f"{data.meta_per_class} images a class, drawn" if drawn else Path(data.meta).name
    return [
        ("Optimiser", f"{train.optimizer}, rate {train.lr:g} ({train.schedule}), weight decay {train.weight_decay:g}"),
        ("Batch", f"{train.batch_size} images, augmentation: {data.augment}"),
        *([("Trusted (meta) set", trusted)] if config.objective.name in TAUGHT else []),
        ("Seeds", f"training {train.seed}, split {data.split_seed}"),
    ]

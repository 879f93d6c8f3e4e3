"""From a run to its scores: predictions.csv in ISIC's format, report.json, report.html.

Everything is computed from predictions.csv as written, so that whoever scores that file gets the same figures.
Temperature and offsets come from validation; the test split chooses nothing.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from dermrw import metrics
from dermrw.calibration import EqualPrevalence, at_prevalence
from dermrw.calibration import fit as fit_calibration
from dermrw.checkpoint import load_checkpoint, write_atomic
from dermrw.config import Config, load_config
from dermrw.data import Classes, ImageSet, Pixels, Splits, image_set, load_splits, resolve_root
from dermrw.diagnoses import DIAGNOSES, DX
from dermrw.errors import UserError
from dermrw.machine import Choice, choose_device, environment, keep_freed_memory
from dermrw.models import build_model
from dermrw.runs import open_run, read_split
from dermrw.tables import find_official
from dermrw.train import predict_logits

BINS = 15
REPLICATES = 2000
BATCH = 64
AGE_BANDS = [(0, 30, "0–29"), (30, 45, "30–44"), (45, 60, "45–59"), (60, 75, "60–74"), (75, 200, "75 and over")]
SAMPLE_WARNING = (
    "Embedded sample: pictures drawn by dermrw itself. These figures say that the software works and nothing about "
    "skin. For the real data: `make data`, or HAM10000_DIR=FOLDER."
)


class Scored(NamedTuple):
    """A set with its predictions, in the set's order."""

    title: str
    images: ImageSet
    classes: Classes
    probabilities: np.ndarray  # [N, C], for equal prevalence, as read back from the file


def evaluate(run: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Scores a run's best epoch on its own test split, and on ISIC's official sets where they are on disk.

    Args:
        run: the run's folder; predictions.csv, report.json and report.html are written into it.
        overrides: `data.root=FOLDER` where the data has moved, `train.device=…` to choose another device.

    Returns:
        the report on the run's own test split.
    """
    keep_freed_memory()
    config = _with_overrides(open_run(run), run, overrides)
    root = resolve_root(config.data)
    splits = load_splits(config.data, root, read_split(run))
    state = load_checkpoint(run / "best.pt")
    if state["classes"] != list(splits.classes.codes):
        raise UserError(f"{run / 'best.pt'} knows the classes {', '.join(state['classes'])}: not this run's")
    choice = Choice(choose_device("auto" if not _chosen(overrides) else config.train.device), "fp32", False)
    model, _ = build_model(config.model.model_copy(update={"weights": "none"}), len(splits.classes.codes))
    model.load_state_dict(state["model"])
    model = choice.place(model)
    print(f"Evaluating {run}, epoch {state['best_epoch']} of {config.train.epochs}, on {choice}", flush=True)

    def logits_of(images: ImageSet, name: str) -> np.ndarray:
        return predict_logits(model, Pixels(images, config.data, progress=name), choice, BATCH)

    valid = splits.validation
    fitted = fit_calibration(logits_of(valid, "validation"), valid.labels, valid.table["lesion_id"].to_numpy(), seed=0)
    calibration = {
        **fitted.calibration.to_dict(),
        "fitted_on": f"{len(valid)} validation images, every class weighing the same",
        "strength": fitted.strength,
        "cross_validation": [row._asdict() for row in fitted.table],
    }
    prevalence = np.bincount(splits.train.labels, minlength=len(splits.classes.codes)) / len(splits.train)
    about = {
        "run": run.name,
        "warning": SAMPLE_WARNING if config.data.name == "sample" else None,
        "objective": config.objective.name,
        "backbone": config.model.backbone,
        "weights": state["origin"],
        "size": config.data.size,
        "epoch": state["best_epoch"],
        "epochs": config.train.epochs,
        "training_seconds": round(state["seconds"]),
        "training_images": len(splits.train),
        "training_prevalence": dict(zip(splits.classes.codes, prevalence.tolist(), strict=True)),
        "calibration": calibration,
        "evaluated": time.strftime("%Y-%m-%d"),
        "environment": environment(),
    }
    own = _score_set(
        run, "", "the run's own test split", splits.test, splits, logits_of, fitted.calibration, prevalence, about
    )
    for part in ("validation", "test") if config.data.name == "ham10000" else ():
        table = find_official(root, part.capitalize())
        if table is not None:
            official = image_set(table.drop(columns="path"), splits.classes, table["path"].tolist())
            title = f"ISIC 2018's official {part} set"
            _score_set(
                run, f"_isic2018_{part}", title, official, splits, logits_of, fitted.calibration, prevalence, about
            )
    if about["warning"]:
        print(about["warning"])
    return own


def _chosen(overrides: Sequence[str]) -> bool:
    return any(item.startswith("train.device=") for item in overrides)


def _with_overrides(config: Config, run: Path, overrides: Sequence[str]) -> Config:
    """The run's config with the two keys that an evaluation may change."""
    for item in overrides:
        if item.partition("=")[0] not in ("data.root", "train.device"):
            raise UserError(f"eval takes data.root=FOLDER and train.device=NAME, not {item}: a run keeps its settings")
    return load_config(run / "config.yaml", overrides) if overrides else config


def _score_set(
    run: Path,
    suffix: str,
    title: str,
    images: ImageSet,
    splits: Splits,
    logits_of: Any,
    calibration: EqualPrevalence,
    prevalence: np.ndarray,
    about: dict[str, Any],
) -> dict[str, Any]:
    """Predicts a set and writes its three files and the truth beside them; returns the report."""
    from dermrw.report import write_html

    logits = logits_of(images, title)
    path = run / f"predictions{suffix}.csv"
    write_predictions(path, images.table["image_id"], splits.classes, calibration(logits))
    truth = np.eye(len(splits.classes.codes))[images.labels]
    write_predictions(run / f"ground_truth{suffix}.csv", images.table["image_id"], splits.classes, truth)
    scored = Scored(title, images, splits.classes, read_predictions(path, images.table["image_id"], splits.classes))
    # the logits' own softmax: what the network was trained to say, before anything was fitted on validation
    as_trained = torch.softmax(torch.from_numpy(logits).double(), 1).numpy()
    report = build_report(scored, as_trained, prevalence, about)
    write_atomic(run / f"report{suffix}.json", json.dumps(report, indent=1, allow_nan=False).encode())
    write_html(run, suffix, report, scored)
    print_report(report)
    print(f"{path}, {run / f'report{suffix}.json'}, {run / f'report{suffix}.html'}", flush=True)
    return report


def write_predictions(path: Path, image_ids: pd.Series, classes: Classes, probabilities: np.ndarray) -> None:
    """ISIC's format: `image` and a column a class, floats in [0, 1]; all digits, since rounding makes ties."""
    table = pd.DataFrame(np.clip(probabilities, 0.0, 1.0), columns=list(classes.columns))
    table.insert(0, "image", image_ids.to_numpy())
    write_atomic(path, table.to_csv(index=False, lineterminator="\n").encode())


def read_predictions(path: Path, image_ids: pd.Series, classes: Classes) -> np.ndarray:
    """Probabilities `[N, C]` of the images, from a file in ISIC's format."""
    table = pd.read_csv(path, float_precision="round_trip").set_index("image")
    return table.loc[image_ids.tolist(), list(classes.columns)].to_numpy(np.float64)


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
    balanced = metrics.class_balanced_weights(y, weights)
    found: dict[str, Any] = {"binning": f"{BINS} bins of equal weight"}
    for name, q, w in (
        ("equal_prevalence", p, balanced),
        ("training_prevalence", at_prevalence(p, prevalence), weights),
    ):
        found[name] = {
            "top_label_ece": metrics.expected_calibration_error(q, y, w, bins=BINS),
            "classwise_ece": metrics.expected_calibration_error(q, y, w, bins=BINS, classwise=True),
            "brier": metrics.brier(q, y, w),
            "nll": metrics.nll(q, y, w),
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


def print_report(report: dict[str, Any]) -> None:
    """The figures as a table that a person can read."""
    names = {d.dx: d.name for d in DIAGNOSES}

    def percent(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.1f} %"

    table = Table(title=f"{report['run']} on {report['scored_on']}", caption_justify="left")
    for heading in ("class", "images", "lesions", "recall", "95 % interval", "AUC", "average precision"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for code, row in report["classes"].items():
        low, high = row["recall_interval_95"]
        label = f"{code}  {names[code]}" if code in names else code
        numbers = [f"{row[key]:.3f}" if row[key] is not None else "–" for key in ("auc", "average_precision")]
        cells = [str(row["images"]), str(row["lesions"]), percent(row["recall"]), f"{percent(low)} to {percent(high)}"]
        table.add_row(label, *cells, *numbers)
    low, high = report["interval_95"]
    console = Console(width=None if Console().is_terminal else 110)
    console.print(table)
    console.print(
        f"[bold]Balanced accuracy {percent(report['balanced_accuracy'])}[/] (95 % interval {percent(low)} to "
        f"{percent(high)}; as trained, before calibration, {percent(report['as_trained']['balanced_accuracy'])})"
    )

"""`dermrw eval`: from a run to predictions.csv in ISIC's format, report.json and report.html.

All figures are computed from predictions.csv as written, so that scoring that file gives the same figures.
Temperature, offsets and thresholds are fitted on validation; nothing is chosen on the test split.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from dermrw.config import Config, load_config
from dermrw.datasets.dataset import ImageSet, Splits, class_shares, image_set, resolve_root
from dermrw.datasets.extra import count_reasons, training_sources
from dermrw.datasets.official import OfficialSet, find_official
from dermrw.datasets.readable import read_all, unlike
from dermrw.diagnoses import DX, Classes, shows_skin
from dermrw.errors import UserError
from dermrw.evaluation.calibration import EqualPrevalence
from dermrw.evaluation.calibration import fit as fit_calibration
from dermrw.evaluation.decision_rules import Predicted, fit_decisions, measure_decisions
from dermrw.evaluation.predict import Predictor, Predicts, load_best, softmax
from dermrw.evaluation.refusal_fit import fit_refusal, pictures_to_refuse
from dermrw.files import require_writable, write_atomic
from dermrw.images.skin_tone import TONE_COLUMN, skin_tones
from dermrw.metrics.classification import balanced_accuracy, score_weights
from dermrw.metrics.intervals import score_intervals
from dermrw.reports.predictions_csv import read_predictions, write_lesions, write_predictions
from dermrw.reports.report_html import TrainingHistory, write_html
from dermrw.reports.report_json import ScoredSet, build_report, compare_lesion_rules
from dermrw.reports.report_schema import DecisionRules, Report, TrainingSource
from dermrw.reports.report_text import print_report
from dermrw.training.checkpoint import load_checkpoint
from dermrw.training.device import Placement, choose_device, environment
from dermrw.training.image_overlap import known_by, require_same_pictures
from dermrw.training.image_record import ImageRecord, hashes_of
from dermrw.training.run_data import run_splits
from dermrw.training.run_folder import LEFT_OUT, open_run, read_log, unit_of

# keys that eval accepts, with the kind of their value
MOVABLE = {
    "data.root": "FOLDER",
    "data.images": "FOLDER",
    "data.extra": "TABLE",
    "data.extra_images": "FOLDER",
    "data.refuse": "FOLDER",
    "data.views": "NUMBER",
    "train.device": "NAME",
}
# objectives that use the meta set
USES_META_SET = (
    "reweight",
    "meta_weight_net",
    "noise_weights",
    "label_posterior",
    "confident_learning",
    "fine_tune_meta",
)
SAMPLE_WARNING = (
    "Embedded sample: pictures drawn by dermrw, not photographs of skin. These figures only show that the software "
    "works. For the real data: `make data`, or HAM10000_DIR=FOLDER."
)


class Validated(NamedTuple):
    """Outputs for the validation split."""

    logits: np.ndarray  # [N, C]
    checks: np.ndarray  # [N, 8] or [N, 9]


class Fitted(NamedTuple):
    """Everything that is fitted on validation, and the facts of the run that a report holds."""

    calibration: EqualPrevalence
    decisions: DecisionRules
    prevalence: np.ndarray  # [C], of the training set
    about: dict[str, Any]  # fields of `Report`


def evaluate(run: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Scores a run's best epoch on its own test split, and on ISIC's official sets where they are on disk.

    Args:
        run: the run's folder; predictions.csv, report.json and report.html are written into it.
        overrides: `data.root=FOLDER` where the data has moved, and others of `MOVABLE`.

    Returns:
        the report on the run's own test split, as report.json holds it.
    """
    config = with_overrides(open_run(run), run, overrides, "eval")
    for name in ("predictions.csv", "report.json", "report.html"):
        require_writable(run / name)
    root = resolve_root(config.data)
    splits = run_splits(run, config, announce=True)
    require_same_pictures(ImageRecord.of_run(run), splits.validation, config)
    device = device_of(config, overrides)
    placement = Placement(device, "fp32", config.train.channels_last is True)  # the faster layout, as training found
    model, state = load_best(run, config, splits.classes)
    model = placement.place(model)
    print(f"Evaluating {run}, epoch {state['best_epoch']} of {config.train.epochs}, on {placement}", flush=True)

    refuse = pictures_to_refuse(config.data.refuse)
    skin = splits.classes.codes == DX
    predictor = Predictor.of(model, splits.train, config, placement, refuse.fitted, skin)
    fitted = fit(run, config, splits, predictor, state, refuse.held_out)
    training = TrainingHistory(_log(run), settings(config))
    return score_test_sets(run, config, root, splits, predictor, fitted, training).to_dict()


def score_test_sets(
    folder: Path,
    config: Config,
    root: Path,
    splits: Splits,
    predictor: Predicts,
    fitted: Fitted,
    training: TrainingHistory,
) -> Report:
    """Scores the run's own test split and ISIC's official sets where they are on disk; writes the reports.

    Returns:
        the report on the own test split.
    """
    own = _score(folder, "", "the run's own test split", splits.test, splits.classes, predictor, fitted, training)
    for part in ("validation", "test") if config.data.name == "ham10000" else ():
        official = find_official(root, part.capitalize())
        if official is not None and not _trained_on(folder, official, config):
            images, incomplete = _readable_images(official, splits.classes, root)
            if len(images):  # labels without images are not scored
                about = fitted.about | ({"incomplete": incomplete} if incomplete else {})
                suffix, judged = f"_isic2018_{part}", fitted._replace(about=about)
                _score(folder, suffix, official.title, images, splits.classes, predictor, judged, training)
    if own.warning:
        print(own.warning)
    return own


def _trained_on(folder: Path, official: OfficialSet, config: Config) -> bool:
    """Whether images of an official set trained or selected a model or the weights that it started from; prints so."""
    records, table = ImageRecord.of_runs(folder), official.table
    images = ImageSet(table, np.zeros(len(table), np.int64), table["path"].tolist())
    # the weights may be of a table that holds a copy under another name; a run's own extra images hold none
    hashes = hashes_of([images], config) if any(record.weights for record in records) else {}
    known = np.array([known_by(record.used, images, config, hashes) for record in records])
    seen = table["image_id"][(known != "").any(axis=0)].tolist()
    if seen:
        print(
            f"{official.title} is not scored: {len(seen):,} of its {len(official.table):,} images, such as {seen[0]}, "
            "trained or selected this model, or the weights that it started from"
        )
    return bool(seen)


def _readable_images(official: OfficialSet, classes: Classes, root: Path) -> tuple[ImageSet, str | None]:
    """Returns the images of an official set that can be scored, and a sentence on the others, which it prints."""
    decoded = read_all(official.table)
    unreadable = [image for image, _ in decoded.unreadable]
    incomplete = official.incomplete(unreadable)
    for warning in [f"{official.title}: {incomplete}"] * (incomplete is not None) + unlike(decoded.pictures, root):
        print(warning, flush=True)
    table = official.table[~official.table["image_id"].isin(unreadable)]
    return image_set(table.drop(columns="path"), classes, table["path"].tolist()), incomplete


def fit(
    run: Path,
    config: Config,
    splits: Splits,
    predictor: Predictor,
    state: dict[str, Any],
    held_out: Sequence[Path] = (),
) -> Fitted:
    """Fits calibration, thresholds and the lesion rule on validation.

    Writes predictions_validation_as_trained.csv, for choosing between configs without the test split, and
    familiarity.npz, the fitted image checks that `export` needs.

    Args:
        run: the run's folder.
        config: of the run.
        splits: its images.
        predictor: its network and image checks.
        state: best.pt.
        held_out: pictures to refuse that the detector was not fitted on.
    """
    logits, checks = predictor.predict(splits.validation, "the validation split")
    checks_file = predictor.checks.save()
    write_atomic(run / "familiarity.npz", checks_file)
    last = load_checkpoint(run / "last.pt") if (run / "last.pt").is_file() else state  # best.pt has a shorter time
    about = {
        "run": run.name,
        "objective": config.objective.title,
        "backbone": config.model.backbone,
        "weights": state["origin"],
        "epoch": state["best_epoch"],
        "epochs": config.train.epochs,
        "training_seconds": round(last["seconds"]),
        "training_images": len(splits.train),
        **({"training_sources": _sources(run, config, splits)} if config.data.extra else {}),
        "checkpoint_sha256": state["sha256"],
        "checks_sha256": hashlib.sha256(checks_file).hexdigest(),
    }
    prevalence = class_shares(splits.train.table, splits.classes)
    validated = Validated(logits, checks)
    return fit_rules(run, config, unit_of(run, config), splits, predictor, validated, prevalence, about, held_out)


def fit_rules(
    folder: Path,
    config: Config,
    unit: str,
    splits: Splits,
    predictor: Predicts,
    validated: Validated,
    prevalence: np.ndarray,
    about: dict[str, Any],
    held_out: Sequence[Path] = (),
) -> Fitted:
    """Fits calibration, thresholds and the lesion rule on predictions of the validation split.

    Writes predictions_validation_as_trained.csv into `folder`.

    Args:
        folder: of the run, or of an average of runs.
        config: of the run, or of the first of several.
        unit: of the split, such as lesions.
        splits: the image sets.
        predictor: the model.
        validated: its outputs for the validation split.
        prevalence: of the training images `[C]`.
        about: fields of `Report` about the model.
        held_out: pictures to refuse that the detector was not fitted on.
    """
    valid, classes = splits.validation, splits.classes
    logits, checks = validated
    lesions = valid.table["lesion_id"].to_numpy()
    # the network's own probabilities: calibrated ones would look too good on the images that they were fitted on
    as_trained = softmax(logits)
    write_predictions(folder / "predictions_validation_as_trained.csv", valid.table["image_id"], classes, as_trained)
    fitted = fit_calibration(logits, valid.labels, lesions, seed=0)
    probabilities = fitted.calibration(logits)
    table_unit = unit if config.data.name == "table" else None
    refusal = fit_refusal(predictor, fitted.calibration, config, splits, checks, unit, held_out)
    predicted = Predicted(probabilities, checks, valid.labels, lesions)
    decisions = fit_decisions(predicted, classes, table_unit, refusal, prevalence.tolist())
    lesion_rule = compare_lesion_rules(
        probabilities, valid.labels, lesions, classes.malignant, decisions.triage_threshold, decisions.triage_shares
    )
    if unit != "lesions":  # images of one patient or group do not show one lesion
        lesion_rule = compare_lesion_rules(probabilities, valid.labels, np.arange(len(valid)), None, None)
    about = about | {
        "warning": SAMPLE_WARNING if config.data.name == "sample" else None,
        "size": config.data.size,
        "views": config.data.views,
        "training_prevalence": dict(zip(classes.codes, prevalence.tolist(), strict=True)),
        "calibration": {
            **fitted.calibration.to_dict(),
            "fitted_on": f"{len(valid)} validation images, each class with the same total weight",
            "strength": fitted.strength,
            "cross_validation": [row._asdict() for row in fitted.table],
        },
        "decisions": decisions,
        "lesion_rule": lesion_rule,
        "validation": {
            "images": len(valid),
            "balanced_accuracy_as_trained": balanced_accuracy(as_trained, valid.labels),
            "interval_95": score_intervals(as_trained, valid.labels, lesions).balanced_accuracy,
        },
        "evaluated": time.strftime("%Y-%m-%d"),
        "environment": environment(),
    }
    if config.data.name in ("table", "cifar10"):
        notes = [*(splits.facts.notes if splits.facts else []), *about.get("notes", [])]
        about |= {"data": config.data.name, "unit": unit, "notes": notes}
    return Fitted(fitted.calibration, decisions, prevalence, about)


def _sources(run: Path, config: Config, splits: Splits) -> list[TrainingSource]:
    """The sources of the training images of a run with data.extra, and the images that were left out."""
    codes = splits.classes.codes
    table = run / LEFT_OUT
    left_out = count_reasons(pd.read_csv(table, dtype=str, keep_default_na=False)) if table.is_file() else {}
    own, extra = training_sources(splits.train.table, Path(str(config.data.extra)).name, codes)
    return [
        TrainingSource(
            source=part.name,
            images=sum(part.classes.values()) + part.benign,
            classes=part.classes,
            benign=part.benign,
            left_out=left,
        )
        for part, left in ((own, {}), (extra, left_out))
    ]


def _score(
    run: Path,
    suffix: str,
    title: str,
    images: ImageSet,
    classes: Classes,
    predictor: Predicts,
    fitted: Fitted,
    training: TrainingHistory,
) -> Report:
    """Predicts a set, writes predictions, ground truth and reports under names with `suffix`, prints the figures."""
    ids = images.table["image_id"]
    logits, checks = predictor.predict(images, title)
    path = run / f"predictions{suffix}.csv"
    write_predictions(path, ids, classes, fitted.calibration(logits))
    write_predictions(run / f"ground_truth{suffix}.csv", ids, classes, np.eye(len(classes.codes))[images.labels])
    as_trained = softmax(logits)
    write_predictions(run / f"predictions{suffix}_as_trained.csv", ids, classes, as_trained)
    if suffix:  # split.csv holds the lesions of the run's own images; `dermrw compare` needs them
        write_lesions(run / f"lesions{suffix}.csv", images.table)

    probabilities = read_predictions(path, ids, classes)
    unit = fitted.about.get("unit", "lesions")
    table = images.table
    tones: list[str] | None = None  # only of images that show skin
    if shows_skin(classes, unit):
        tones = skin_tones(images.sources)
        table = table.assign(**{TONE_COLUMN: tones})
    shares = fitted.decisions.triage_shares
    scored = ScoredSet(title, table, images.labels, images.sources, classes, probabilities, unit, shares)
    predicted = Predicted(probabilities, checks, images.labels, images.table["lesion_id"].to_numpy())
    weights = score_weights(ids.to_numpy())
    decided = measure_decisions(fitted.decisions, predicted, weights, scored.classes, skin_tones=tones)
    if unit != "lesions":
        decided = decided.model_copy(update={"by_lesion": None})
    report = build_report(scored, as_trained, fitted.prevalence, decided, fitted.about)
    json_path, html_path = run / f"report{suffix}.json", run / f"report{suffix}.html"
    write_html(html_path, report, scored, training, official=suffix != "")  # first: if it fails, the old report stays
    write_atomic(json_path, json.dumps(report.to_dict(), indent=1, allow_nan=False).encode())
    print_report(report, classes)
    print(f"{path}, {json_path}, {html_path}", flush=True)
    return report


def settings(config: Config) -> list[tuple[str, str]]:
    """Optimiser, batches and seeds for report.html; without paths, since the file may be passed on."""
    train, data = config.train, config.data
    drawn = data.meta_list == "rule" or data.name == "cifar10"
    how = "chosen by a rule" if data.name == "table" else "drawn at random"
    meta = f"{data.meta_per_class} images of each class, {how}" if drawn else Path(data.meta).name
    rate = f"learning rate {train.lr:g} ({train.schedule})"
    return [
        ("Optimiser", f"{train.optimizer}, {rate}, weight decay {train.weight_decay:g}"),
        ("Batch", f"{train.batch_size} images, augmentation: {data.augment}"),
        *([("Evaluation", f"mean of {data.views} views of each image")] if data.views > 1 else []),
        *([("Meta set", meta)] if config.objective.name in USES_META_SET else []),
        ("Seeds", f"training {train.seed}, split {data.split_seed}"),
    ]


def _log(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; none if it can't be read, since a report without training curves is still one."""
    try:
        return read_log(run)
    except (OSError, UserError):
        return []


def device_of(config: Config, overrides: Sequence[str]) -> torch.device:
    """The device that the overrides ask for; otherwise the best here, wherever the run was trained."""
    asked = any(item.startswith("train.device=") for item in overrides)
    return choose_device(config.train.device if asked else "auto")


def with_overrides(config: Config, run: Path, overrides: Sequence[str], program: str) -> Config:
    """The run's config, with the keys that evaluation and export accept.

    Raises:
        UserError: another key, or an invalid value.
    """
    for item in overrides:
        if item.partition("=")[0] not in MOVABLE:
            *others, last = (f"{key}={value}" for key, value in MOVABLE.items())
            raise UserError(f"{program} can't change {item} of a run: override only {', '.join(others)} and {last}")
    return load_config(run / "config.yaml", overrides) if overrides else config

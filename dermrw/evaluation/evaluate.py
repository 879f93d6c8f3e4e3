"""From a run to its scores: predictions.csv in ISIC's format, report.json, report.html.

Everything is computed from predictions.csv as written, so that whoever scores that file gets the same figures.
Temperature and offsets come from validation; the test split chooses nothing.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from dermrw.config import Config, load_config
from dermrw.datasets.dataset import ImageDataset, ImageSet, image_set, load_splits, resolve_root, true_labels
from dermrw.datasets.ham10000 import find_official
from dermrw.diagnoses import DIAGNOSES, Classes
from dermrw.errors import UserError
from dermrw.evaluation.calibration import EqualPrevalence
from dermrw.evaluation.calibration import fit as fit_calibration
from dermrw.evaluation.decision_rules import Decisions, Predicted
from dermrw.evaluation.image_checks import Checks, fit_familiarity, logits_and_checks
from dermrw.files import predictions_csv, require_writable, write_atomic
from dermrw.metrics.classification import balanced_accuracy, bootstrap_interval, score_weights
from dermrw.models import build_model
from dermrw.reports.report_html import write_html
from dermrw.reports.report_json import Scored, build_report, compare_lesion_rules
from dermrw.training.checkpoint import load_checkpoint
from dermrw.training.device import Placement, choose_device, environment, keep_freed_memory
from dermrw.training.run_folder import open_run, read_split

BATCH = 64
SAMPLE_WARNING = (
    "Embedded sample: pictures drawn by dermrw itself. These figures say that the software works and nothing about "
    "skin. For the real data: `make data`, or HAM10000_DIR=FOLDER."
)


def evaluate(run: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Scores a run's best epoch on its own test split, and on ISIC's official sets where they are on disk.

    Args:
        run: the run's folder; predictions.csv, report.json and report.html are written into it.
        overrides: `data.root=FOLDER` where the data has moved, `train.device=…` to choose another device.

    Returns:
        the report on the run's own test split.
    """
    keep_freed_memory()
    config = with_overrides(open_run(run), run, overrides, "eval")
    for name in ("predictions.csv", "report.json", "report.html"):
        require_writable(run / name)
    root = resolve_root(config.data)
    splits = load_splits(config.data, root, read_split(run))
    device = choose_device("auto" if not _chosen(overrides) else config.train.device)
    choice = Placement(device, "fp32", config.train.channels_last is True)  # the layout that training found the faster
    model, state = load_best(run, config, splits.classes)
    last = load_checkpoint(run / "last.pt") if (run / "last.pt").is_file() else state  # best.pt's time ends with it
    model = choice.place(model)
    print(f"Evaluating {run}, epoch {state['best_epoch']} of {config.train.epochs}, on {choice}", flush=True)

    familiarity = fit_familiarity(model, splits.train, config.data, choice, BATCH)
    checks = Checks(familiarity).to(choice.device)

    def look(images: ImageSet, name: str) -> tuple[np.ndarray, np.ndarray]:
        pixels = ImageDataset(images, config.data, progress=name)
        return logits_and_checks(model, checks, pixels, choice, BATCH, config.data.views == 8)

    valid = splits.validation
    (logits, measures), lesions = look(valid, "the validation split"), valid.table["lesion_id"].to_numpy()
    # for choosing between recipes: what was fitted on these images would flatter itself on them
    path = run / "predictions_validation_as_trained.csv"
    as_trained = softmax(logits)
    write_predictions(path, valid.table["image_id"], splits.classes, as_trained)
    fitted = fit_calibration(logits, valid.labels, lesions, seed=0)
    calibration = {
        **fitted.calibration.to_dict(),
        "fitted_on": f"{len(valid)} validation images, every class weighing the same",
        "strength": fitted.strength,
        "cross_validation": [row._asdict() for row in fitted.table],
    }
    decisions = Decisions.fit(Predicted(fitted.calibration(logits), measures, valid.labels, lesions), splits.classes)
    counts = np.bincount(true_labels(splits.train.table, splits.classes), minlength=len(splits.classes.codes))
    prevalence = counts / len(splits.train)
    about = {
        "run": run.name,
        "warning": SAMPLE_WARNING if config.data.name == "sample" else None,
        "objective": config.objective.title,
        "backbone": config.model.backbone,
        "weights": state["origin"],
        "size": config.data.size,
        "epoch": state["best_epoch"],
        "epochs": config.train.epochs,
        "training_seconds": round(last["seconds"]),
        "training_images": len(splits.train),
        "training_prevalence": dict(zip(splits.classes.codes, prevalence.tolist(), strict=True)),
        "calibration": calibration,
        "decisions": decisions.to_dict(),
        "lesion_rule": compare_lesion_rules(fitted.calibration(logits), valid.labels, lesions),
        "validation": {
            "images": len(valid),
            "balanced_accuracy_as_trained": balanced_accuracy(as_trained, valid.labels),
            "interval_95": list(bootstrap_interval(as_trained, valid.labels, lesions).balanced_accuracy),
        },
        "checkpoint_sha256": hashlib.sha256((run / "best.pt").read_bytes()).hexdigest(),
        "evaluated": time.strftime("%Y-%m-%d"),
        "environment": environment(),
    }
    write_atomic(run / "familiarity.npz", familiarity.save())
    judge = _Judge(run, splits.classes, look, fitted.calibration, decisions, prevalence, about)
    own = judge.score("", "the run's own test split", splits.test)
    for part in ("validation", "test") if config.data.name == "ham10000" else ():
        table = find_official(root, part.capitalize())
        if table is not None:
            official = image_set(table.drop(columns="path"), splits.classes, table["path"].tolist())
            judge.score(f"_isic2018_{part}", f"ISIC 2018's official {part} set", official)
    if about["warning"]:
        print(about["warning"])
    return own


def softmax(logits: np.ndarray) -> np.ndarray:
    """Logits `[N, C]` -> what the network was trained to say, before anything was fitted, float64."""
    return torch.softmax(torch.from_numpy(logits).double(), 1).numpy()


def load_best(run: Path, config: Config, classes: Classes) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a run's best epoch, on the CPU, and the checkpoint that it came from.

    Raises:
        UserError: best.pt is absent, damaged, or another run's.
    """
    path = run / "best.pt"
    state = load_checkpoint(path)
    if state["classes"] != list(classes.codes):
        raise UserError(f"{path} knows the classes {state['classes']}: it is not this run's")
    model, _ = build_model(config.model.model_copy(update={"weights": "none"}), len(classes.codes))
    try:
        model.load_state_dict(state["model"])
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} doesn't hold the weights of {config.model.backbone}: {reason}") from None
    if not all(tensor.isfinite().all() for tensor in model.state_dict().values()):
        raise UserError(f"{path} holds weights that are not finite: the training diverged, start one with a lower rate")
    return model, state


def _chosen(overrides: Sequence[str]) -> bool:
    return any(item.startswith("train.device=") for item in overrides)


def with_overrides(config: Config, run: Path, overrides: Sequence[str], program: str) -> Config:
    """The run's config with the two keys that an evaluation, or an export, may change.

    Raises:
        UserError: another key, or a value that it can't have.
    """
    for item in overrides:
        if item.partition("=")[0] not in ("data.root", "train.device"):
            raise UserError(
                f"{program} takes data.root=FOLDER and train.device=NAME, not {item}: a run keeps its settings"
            )
    return load_config(run / "config.yaml", overrides) if overrides else config


class _Judge(NamedTuple):
    """What a set is scored with, all of it fitted on validation."""

    run: Path
    classes: Classes
    look: Callable[[ImageSet, str], tuple[np.ndarray, np.ndarray]]  # logits [N, C] and checks [N, 8]
    calibration: EqualPrevalence
    decisions: Decisions
    prevalence: np.ndarray  # [C]
    about: dict[str, Any]

    def score(self, suffix: str, title: str, images: ImageSet) -> dict[str, Any]:
        """Predicts a set and writes its three files and the truth beside them; returns the report."""
        run, ids = self.run, images.table["image_id"]
        logits, measures = self.look(images, title)
        path = run / f"predictions{suffix}.csv"
        write_predictions(path, ids, self.classes, self.calibration(logits))
        truth = np.eye(len(self.classes.codes))[images.labels]
        write_predictions(run / f"ground_truth{suffix}.csv", ids, self.classes, truth)
        scored = Scored(title, images, self.classes, read_predictions(path, ids, self.classes))
        # the logits' own softmax: what the network was trained to say, before anything was fitted on validation
        as_trained = softmax(logits)
        write_predictions(run / f"predictions{suffix}_as_trained.csv", ids, self.classes, as_trained)
        seen = Predicted(scored.probabilities, measures, images.labels, images.table["lesion_id"].to_numpy())
        rule = self.about["lesion_rule"]["rule"]
        decided = self.decisions.measured(seen, score_weights(ids.to_numpy()), rule)
        report = build_report(scored, as_trained, self.prevalence, {"decided": decided, **self.about})
        write_html(run, suffix, report, scored)  # first: what is wrong with the run's log leaves the report as it was
        write_atomic(run / f"report{suffix}.json", json.dumps(report, indent=1, allow_nan=False).encode())
        print_report(report)
        print(f"{path}, {run / f'report{suffix}.json'}, {run / f'report{suffix}.html'}", flush=True)
        return report


def write_predictions(path: Path, image_ids: pd.Series, classes: Classes, probabilities: np.ndarray) -> None:
    """Writes probabilities `[N, C]`, clipped to [0, 1], in ISIC's format."""
    write_atomic(path, predictions_csv(image_ids, classes.columns, np.clip(probabilities, 0.0, 1.0).tolist()))


def read_predictions(path: Path, image_ids: pd.Series, classes: Classes) -> np.ndarray:
    """Probabilities `[N, C]` of the images, from a file in ISIC's format."""
    # as text first: pandas' own fast parser may miss a number by its last digit
    table = pd.read_csv(path, dtype=str).set_index("image")
    return table.loc[image_ids.tolist(), list(classes.columns)].to_numpy(str).astype(np.float64)


def print_report(report: dict[str, Any]) -> None:
    """The figures as a table that a person can read."""
    names = {d.dx: d.name for d in DIAGNOSES}

    def percent(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.1f} %"

    table = Table(title=f"{report['run']} on {report['scored_on']}", caption_justify="left")
    lesions = ["lesions"] if "groups" in report else []  # of CIFAR-10 each image is its own
    for heading in ("class", "images", *lesions, "recall", "95 % interval", "AUC", "average precision"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for code, row in report["classes"].items():
        low, high = row["recall_interval_95"]
        label = f"{code}  {names[code]}" if code in names else code
        numbers = [f"{row[key]:.3f}" if row[key] is not None else "–" for key in ("auc", "average_precision")]
        cells = [str(row[key]) for key in ("images", *lesions)]
        cells += [percent(row["recall"]), f"{percent(low)} to {percent(high)}"]
        table.add_row(label, *cells, *numbers)
    low, high = report["interval_95"]
    console = Console(width=None if Console().is_terminal else 110)
    console.print(table)
    console.print(
        f"[bold]Balanced accuracy {percent(report['balanced_accuracy'])}[/] (95 % interval {percent(low)} to "
        f"{percent(high)}; as trained, before calibration, {percent(report['as_trained']['balanced_accuracy'])})"
    )
    valid = report["validation"]
    low, high = valid["interval_95"]
    console.print(
        f"On the {valid['images']:,} validation images, which chose the epoch: "
        f"{percent(valid['balanced_accuracy_as_trained'])} ({percent(low)} to {percent(high)}), as trained"
    )

"""Runs of the study on frozen embeddings: the head's figures, without a pass of the network over the images.

All runs of a budget share the embeddings, which are computed once. Prediction sets, triage and refusals are not fitted:
the study does not use them, and refusals need the network's pass over every image.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from filelock import FileLock

from dermrw.config import Config
from dermrw.datasets.dataset import Splits, class_shares
from dermrw.errors import UserError
from dermrw.evaluation.calibration import fit as fit_calibration
from dermrw.evaluation.predict import load_best, softmax
from dermrw.files import write_atomic
from dermrw.models import Head
from dermrw.reports.predictions_csv import read_predictions, write_predictions
from dermrw.reports.report_json import ScoredSet, set_figures
from dermrw.training.checkpoint import load_checkpoint
from dermrw.training.device import Placement, choose_device, environment
from dermrw.training.distributed import Job
from dermrw.training.embeddings import embeddings_key, first_views
from dermrw.training.run_data import run_splits
from dermrw.training.run_folder import open_run

TEST = "test_embeddings"  # folder next to the run folders


@contextmanager
def shared_embeddings(folder: Path, config: Config) -> Iterator[None]:
    """Holds a lock of the folder of the runs, so that parallel runs do not compute the same embeddings twice."""
    if not config.trains_on_embeddings:
        yield
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / ".embeddings.lock"):
        yield


def evaluate_head(folder: Path) -> None:
    """Writes the predictions of a run on validation and test, and the part of report.json that the study reads.

    The figures are those of `dermrw.evaluation.evaluate` on the same run, to the rounding of the forward pass.

    Raises:
        UserError: the run's embeddings are absent, or its files cannot be read.
    """
    config = open_run(folder)
    splits = run_splits(folder, config)
    model, state = load_best(folder, config, splits.classes)
    model.eval()
    head = Head(model).eval()
    placement = _placement(config)
    validation, labels = splits.validation, splits.validation.labels
    stored = _of_run(folder, model, splits, config, placement)
    start = len(stored) - len(validation) - len(splits.meta)
    with shared_embeddings(folder, config):
        test = _of_test(folder.parent / TEST, model, splits, config, placement)
    logits, test_logits = _logits(head, stored[start : start + len(validation)]), _logits(head, test)
    fitted = fit_calibration(logits, labels, validation.table["lesion_id"].to_numpy(), seed=0)
    for name, images, as_trained in (
        ("predictions_validation_as_trained", validation, softmax(logits)),
        ("predictions_as_trained", splits.test, softmax(test_logits)),
        ("predictions", splits.test, fitted.calibration(test_logits)),
    ):
        write_predictions(folder / f"{name}.csv", images.table["image_id"], splits.classes, as_trained)
    ids = splits.test.table["image_id"]
    probabilities = read_predictions(folder / "predictions.csv", ids, splits.classes)
    scored = ScoredSet("test", splits.test.table, splits.test.labels, [], splits.classes, probabilities)
    prevalence = class_shares(splits.train.table, splits.classes)
    report = {
        **set_figures(scored, softmax(test_logits), prevalence).model_dump(mode="json", exclude_unset=True),
        "weights": state["origin"],
        "environment": environment(),
        "training_seconds": round(load_checkpoint(folder / "last.pt")["seconds"]),
        "epoch": state["best_epoch"],
    }
    write_atomic(folder / "report.json", json.dumps(report, indent=1, allow_nan=False).encode())


def stored_embeddings(run: Path) -> tuple[np.ndarray, pd.DataFrame]:
    """Returns the features `[N, D]` of all images of an evaluated run of the embeddings budget, and their rows.

    The rows have the columns `image_id`, `lesion_id` and `dx`, with true labels. Training images are not augmented.

    Raises:
        UserError: the run or its embeddings are absent.
    """
    config = open_run(run)
    splits = run_splits(run, config)
    model, _ = load_best(run, config, splits.classes)
    model.eval()
    placement = _placement(config)
    own = _of_run(run, model, splits, config, placement)
    test = _of_test(run.parent / TEST, model, splits, config, placement)
    parts = [splits.train, splits.validation, splits.meta, splits.test]
    table = pd.concat([part.table[["image_id", "lesion_id", "dx"]] for part in parts], ignore_index=True)
    tail = len(splits.validation) + len(splits.meta)
    return np.concatenate([own[: len(splits.train)], own[len(own) - tail :], test]), table


def _placement(config: Config) -> Placement:
    return Placement(choose_device(config.train.device), "fp32", config.train.channels_last is True)


def _of_run(folder: Path, model: torch.nn.Module, splits: Splits, config: Config, placement: Placement) -> np.ndarray:
    """The embeddings that the run trained on: views of the training images, then validation and meta images.

    Raises:
        UserError: they are absent, or those of another version or of other images.
    """
    file = folder / f"embeddings-{embeddings_key(model, splits, config, placement)}.npy"
    if not file.exists():
        raise UserError(f"{folder} has no embeddings of these images by this version: delete it and repeat the run")
    return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))


def _of_test(folder: Path, model: torch.nn.Module, splits: Splits, config: Config, placement: Placement) -> np.ndarray:
    """The embeddings of the test images `[N, D]`, computed by the first run that needs them."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = splits._replace(train=splits.test, meta=splits.meta.part(lambda rows: rows[:0]))
    return first_views(folder, placement.place(model), parts, config, placement, Job())


@torch.no_grad()
def _logits(head: Head, found: np.ndarray) -> np.ndarray:
    device = head.linear.weight.device
    return head(torch.from_numpy(np.array(found)).to(device)).float().cpu().numpy()

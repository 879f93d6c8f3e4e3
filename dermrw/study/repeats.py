"""Repeats of a comparison on fixed features: another split, draw of wrong labels and meta set in each.

The features are standardised and projected on their first principal components, fitted to the training images.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import recall_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from dermrw.datasets.label_noise import with_wrong_labels
from dermrw.datasets.split import split_lesions
from dermrw.diagnoses import DX
from dermrw.errors import UserError
from dermrw.files import write_atomic
from dermrw.study.convex_head import Examples, losses
from dermrw.study.result import rounded
from dermrw.training.example_weights import auroc_within_class

PER_CLASS = 3  # meta images, unless stated
COMPONENTS = 128
TEST_TO_TRAIN = 0.15 / 0.7  # images of the test split for one training image


class Problem(NamedTuple):
    """One repeat: the examples, which training labels are wrong `[N]`, and the lesion of each training image `[N]`."""

    train: Examples
    meta: Examples
    test: Examples
    wrong: np.ndarray
    lesions: np.ndarray


def draw_problem(
    features: np.ndarray,
    table: pd.DataFrame,
    kind: str,
    rate: float,
    repeat: int,
    per_class: int = PER_CLASS,
    reserved: int = 0,
) -> Problem:
    """Returns the problem of a repeat.

    Args:
        features: `[N, D]` of the rows of `table`.
        table: columns `image_id`, `lesion_id` and `dx`.
        kind: of the label noise.
        rate: of the label noise.
        repeat: the seed.
        per_class: number of meta images of each class, each of another lesion.
        reserved: number of lesions of each class that are kept for the meta set, if more than `per_class`. With the
            same number, meta sets of all sizes share the split and the wrong labels; the larger contain the smaller.
    """
    one_per_lesion = table.sort_values("image_id").drop_duplicates("lesion_id")
    rng = np.random.default_rng([repeat, 7])
    orders = [rows.iloc[rng.permutation(len(rows))] for rows in (one_per_lesion[one_per_lesion["dx"] == c] for c in DX)]
    meta = pd.concat([rows[:per_class].sort_index() for rows in orders])
    kept = pd.concat([rows[:reserved] for rows in orders])
    split = split_lesions(table, meta, 0.15, 0.15, repeat, reserved=kept)
    row_of = {image: row for row, image in enumerate(table["image_id"])}
    part = {name: rows.reset_index(drop=True) for name, rows in split.groupby("split")}
    rows = {name: features[[row_of[image] for image in found["image_id"]]] for name, found in part.items()}
    true = {name: found["dx"].map(DX.index).to_numpy(np.int64) for name, found in part.items()}
    given = with_wrong_labels(part["train"], DX, kind, rate, repeat)
    project = make_pipeline(
        StandardScaler(), PCA(min(COMPONENTS, *rows["train"].shape), random_state=0), StandardScaler(with_std=False)
    ).fit(rows["train"])
    scale = project.transform(rows["train"]).std()

    def examples(name: str, labels: np.ndarray) -> Examples:
        x = project.transform(rows[name]) / scale
        return Examples(torch.from_numpy(np.column_stack([x, np.ones(len(x))])), torch.from_numpy(labels.copy()))

    return Problem(
        examples("train", given),
        examples("meta", true["meta"]),
        examples("test", true["test"]),
        given != true["train"],
        part["train"]["lesion_id"].to_numpy(),
    )


def clipped(scores: Tensor) -> Tensor:
    """Returns max(sᵢ, 0) / Σ max(sⱼ, 0) `[N]`, the weights of Ren et al. (2018)."""
    positive = scores.clamp(min=0)
    return positive / positive.sum()


def class_balanced(labels: Tensor, kept: Tensor) -> Tensor:
    """Returns weights `[N]` that sum to 1, are equal over the classes, and are zero where `kept` is."""
    counts = torch.bincount(labels, weights=kept.double())
    weights = kept.double() / counts.clamp(min=1)[labels]
    return weights / weights.sum()


def figures_of(theta: Tensor, weights: Tensor, problem: Problem) -> dict[str, Any]:
    """Returns what a head θ `[D, C]` reaches, and how its weights `[N]` treat wrong labels."""
    decided = (problem.test.x @ theta).argmax(1).numpy()
    found = {
        "balanced_accuracy": float(recall_score(problem.test.y.numpy(), decided, average="macro")),
        "meta_loss": float(losses(theta, problem.meta).mean()),
        "meta_accuracy": float(((problem.meta.x @ theta).argmax(1) == problem.meta.y).double().mean()),
        "effective_images": float(1 / weights.square().sum()),
    }
    if problem.wrong.any():
        w, y = weights.numpy(), problem.train.y.numpy()
        found["wrong_weight"] = float(w[problem.wrong].sum())
        found["auroc"] = float(roc_auc_score(problem.wrong, -w))
        found["auroc_within_class"] = auroc_within_class(problem.wrong, -w, y)
    return found


def settings_of(features: np.ndarray) -> dict[str, Any]:
    """Returns the settings of all repeats: a result with others is not continued.

    Mean and standard deviation of the features `[N, D]` tell them from those of another network or normalisation, and
    are the same on every machine to the digits kept.
    """
    mean, deviation = (float(f"{value:.2g}") for value in (features.mean(), features.std()))
    return {
        "components": COMPONENTS, "meta_per_class": PER_CLASS, "features": len(features), "mean": mean,
        "standard_deviation": deviation,
    }  # fmt: skip


def complete(
    path: Path,
    settings: dict[str, Any],
    conditions: Sequence[str],
    repeats: int,
    one: Callable[[str, int], dict[str, Any]],
) -> None:
    """Writes the repeats that a result file lacks, after each of them.

    Args:
        path: the result, a JSON file with one line for each condition and repeat.
        settings: of the repeats.
        conditions: names of the label noises.
        repeats: number of repeats of each.
        one: (condition, repeat) -> the result of a repeat.

    Raises:
        UserError: the file was made with other settings, or can't be read.
    """
    done = read_result(path) if path.exists() else {"settings": settings, "repeats": {}}
    if done["settings"] != settings:
        raise UserError(f"{path} was made with other settings: delete it, or name another file with --output")
    for repeat in range(repeats):
        for name in conditions:
            key = f"{name}-{repeat}"
            if key not in done["repeats"]:
                done["repeats"][key] = rounded(one(name, repeat))
                write_atomic(path, _lines(done))
                print(key, flush=True)


def read_result(path: Path) -> dict[str, Any]:
    """Returns the content of a result file.

    Raises:
        UserError: it is absent or not such a file.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if {"settings", "repeats"} <= found.keys():
            return found
    except FileNotFoundError:
        raise UserError(f"there is no result {path}: name a run of the embeddings budget to compute it") from None
    except (OSError, ValueError, AttributeError):
        pass
    raise UserError(f"{path} is not a result of this study: delete it, or name another file with --output")


def read_repeats(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Returns the repeats of a result file, by condition.

    Raises:
        UserError: it is absent or not such a file.
    """
    repeats = read_result(path)["repeats"]
    names = dict.fromkeys(key.rpartition("-")[0] for key in repeats)
    return {name: [row for key, row in repeats.items() if key.rpartition("-")[0] == name] for name in names}


def _lines(done: dict[str, Any]) -> bytes:
    """Returns JSON with one line for each repeat."""
    rows = ",\n".join(
        f"  {json.dumps(key)}: {json.dumps(row, allow_nan=False)}" for key, row in done["repeats"].items()
    )
    return f'{{\n "settings": {json.dumps(done["settings"])},\n "repeats": {{\n{rows}\n }}\n}}\n'.encode()

"""The result file of a finished run: a small JSON file, so that the report needs only the repository."""

import hashlib
import io
import json
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

import dermrw
from dermrw.config import settings_of
from dermrw.diagnoses import Classes
from dermrw.errors import UserError
from dermrw.files import write_atomic
from dermrw.metrics.classification import balanced_accuracy, decide
from dermrw.reports.predictions_csv import read_predictions
from dermrw.study.plan import RESULTS, Run
from dermrw.study.statistics import balanced_accuracies
from dermrw.training.example_weights import by_weight, wrong_in_lowest
from dermrw.training.run_data import run_splits
from dermrw.training.run_folder import open_run, read_log

FIRST = 100  # number of images of lowest weight that a curator would review


def results_folder(budget: str) -> Path:
    """Returns the folder of a budget's results, relative to the root of a checkout."""
    return RESULTS / budget


def result_path(run: Run) -> Path:
    """Returns the path of a run's result file."""
    return results_folder(run.budget) / f"{run.name}.json"


def read_result(run: Run) -> dict[str, Any]:
    """Returns the content of a run's result file.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is damaged or was edited: its figures differ from those computed from its decisions.
    """
    path = result_path(run)
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
        _check(result, run)
    except FileNotFoundError as error:
        if error.filename == str(path):
            raise
        raise UserError(
            f"{path} can't be checked, because the file of its labels, {error.filename}, is missing: {RESTORE}"
        ) from None
    except RecursionError:
        raise UserError(f"{path} is not a result: {RESTORE}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}): {RESTORE}") from None
    return result


RESTORE = "restore it from version control, or delete the result and repeat the run"


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def _check(result: dict[str, Any], run: Run) -> None:
    """Raises ValueError or KeyError if a result belongs to another run or is inconsistent."""
    if (result["row"], result["seed"], result["budget"]) != (run.row, run.seed, run.budget):
        raise ValueError(f"it belongs to {result['row']}-{result['seed']}")
    for key in ("config_digest", "weights", "sampler", "samples", "training_lesions", "weights_over_time",
                "wrong_labels", "training_seconds", "calibration_error"):  # fmt: skip
        result[key]
    codes = list(result["recalls"])
    for name, which, stated in [
        ("validation", "as_trained", result["sets"]["validation"]["balanced_accuracy_as_trained"]),
        ("test", "as_trained", result["balanced_accuracy_as_trained"]),
        ("test", "fitted", result["balanced_accuracy"]),
    ]:
        part = result["sets"][name]
        labels = read_truth(results_folder(run.budget) / part["truth"], tuple(codes)).labels
        decided = decisions(part[which])
        if not len(decided) == len(labels) == part["images"]:
            raise ValueError(f"{len(decided)} decisions on {len(labels)} images of {name}")
        (computed,) = balanced_accuracies(decided[None], labels)
        if not abs(computed - stated) < 1e-5:
            raise ValueError(f"its decisions on {name} have a balanced accuracy of {computed:.4f}, not {stated}")


class Truth(NamedTuple):
    """The true labels and the lesions of the images that a result's decisions refer to."""

    labels: np.ndarray  # [N]
    lesions: np.ndarray  # [N]


@cache
def read_truth(path: Path, codes: tuple[str, ...]) -> Truth:
    """Reads a truth file and checks its content against its name."""
    text = path.read_bytes()
    if path.name != _truth_name(text):
        raise ValueError(f"the content of {path.name} has changed")
    table = pd.read_csv(io.BytesIO(text), dtype=str)
    return Truth(np.array([codes.index(code) for code in table["dx"]]), table["lesion_id"].to_numpy())


def _truth_name(text: bytes) -> str:
    return f"truth_{hashlib.sha256(text).hexdigest()[:12]}.csv"


def current_result(run: Run) -> dict[str, Any] | None:
    """Returns the run's result, or None if there is none for the current config of the study.

    Raises:
        UserError: the result is damaged.
    """
    try:
        result = read_result(run)
    except FileNotFoundError:
        return None
    return result if result["config_digest"] == run.digest() else None


def finished(run: Run) -> bool:
    """Whether the run has a `current_result`."""
    return current_result(run) is not None


def collect(run: Run, folder: Path) -> dict[str, Any]:
    """Writes a run's result file from its evaluated run folder and returns the content."""
    result = summarise(run, folder)
    lines = [f"{json.dumps(key)}: {json.dumps(rounded(value), allow_nan=False)}" for key, value in result.items()]
    write_atomic(result_path(run), ("{\n" + ",\n".join(lines) + "\n}\n").encode())
    return result


def summarise(run: Run, folder: Path) -> dict[str, Any]:
    """Returns the result of an evaluated run folder. Writes the truth file of its decisions if it does not exist."""
    config = open_run(folder)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    splits = run_splits(folder, config)
    log = read_log(folder)
    results_folder(run.budget).mkdir(parents=True, exist_ok=True)
    sets = {}
    for name, images in (("validation", splits.validation), ("test", splits.test)):
        ids = images.table["image_id"]
        path = folder / f"predictions{'_validation' if name == 'validation' else ''}_as_trained.csv"
        as_trained = read_predictions(path, ids, splits.classes)
        sets[name] = {
            "images": len(ids),
            "truth": write_truth(run, ids, images.table["lesion_id"], images.labels, splits.classes),
            "as_trained": _digits(decide(as_trained)),
            "balanced_accuracy_as_trained": balanced_accuracy(as_trained, images.labels),
        }
    fitted = read_predictions(folder / "predictions.csv", splits.test.table["image_id"], splits.classes)
    sets["test"]["fitted"] = _digits(decide(fitted))
    return {
        "row": run.row,
        "seed": run.seed,
        "budget": run.budget,
        "config": f"configs/study/study.yaml: {run.method}",
        "settings": run.overrides(),
        "config_digest": run.digest(),
        "differences_from_default": settings_of(config),
        "dermrw": dermrw.__version__,
        "weights": report["weights"],
        "environment": report["environment"],
        "training_seconds": report["training_seconds"],
        "epoch": report["epoch"],
        "balanced_accuracy": report["balanced_accuracy"],
        "balanced_accuracy_as_trained": report["as_trained"]["balanced_accuracy"],
        "recalls": {code: row["recall"] for code, row in report["classes"].items()},
        "calibration_error": {
            name: report["calibration_error"][name]["top_label_ece"]
            for name in ("equal_prevalence", "training_prevalence")
        },
        "sampler": config.objective.sampler,
        "samples": [row["samples"] for row in log if "samples" in row],
        "training_lesions": hashlib.sha256(
            "\n".join(sorted(set(splits.train.table["lesion_id"]))).encode()
        ).hexdigest()[:16],
        "weights_over_time": over_time(log),
        "wrong_labels": found_by_weight(folder / "weights.csv"),
        "sets": sets,
    }


def same_origin(weights: str) -> str:
    """Returns the digest or release in a description by `build_model`, which is equal for the same weights."""
    digest = re.search(r"sha256 (\w+)", weights)
    return digest[1] if digest else weights.partition(" of torchvision")[0]


def same_again(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Returns a comparison of a repeated run with its result: balanced accuracies and the number of equal decisions."""
    before, now = (result["sets"]["test"] for result in (old, new))
    key = "balanced_accuracy_as_trained"
    scores = f"balanced accuracy as trained {100 * now[key]:.2f} % now, {100 * before[key]:.2f} % in the result"
    if before["truth"] != now["truth"]:
        return f"{scores}, but the test splits differ, so the data differ"
    pairs = list(zip(before["as_trained"], now["as_trained"], strict=True))
    same = sum(old_decision == new_decision for old_decision, new_decision in pairs)
    return f"{scores}; the decisions are equal on {same:,} of {len(pairs):,} test images"


def _digits(decisions: np.ndarray) -> str:
    """Returns decisions as text with one character per image, `-` for a tie."""
    return "".join("-" if d < 0 else str(d) for d in decisions)


def decisions(digits: str) -> np.ndarray:
    """Returns the decisions `[N]` from the text of `_digits`, -1 for a tie."""
    return np.array([-1 if d == "-" else int(d) for d in digits])


def write_truth(run: Run, ids: pd.Series, lesions: pd.Series, labels: np.ndarray, classes: Classes) -> str:
    """Writes the truth file, which all runs on the same images share, unless it exists; returns its name."""
    table = pd.DataFrame({"image_id": ids, "lesion_id": lesions, "dx": [classes.codes[c] for c in labels]})
    text = table.to_csv(index=False, lineterminator="\n").encode()
    path = results_folder(run.budget) / _truth_name(text)
    if not path.is_file():
        write_atomic(path, text)
    return path.name


def over_time(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns for each epoch the weight of each class, the share of zero weights, 1/Σw² and the weights' swing."""
    rows = [row for row in log if "class_weight" in row]
    epochs = []
    for epoch in sorted({row["epoch"] for row in rows}):
        steps = [row for row in rows if row["epoch"] == epoch]
        keys = ("class_weight", "zero_share", "effective_batch", "all_zero", "class_swing", "example_swing")
        values_of = {key: [row[key] for row in steps if key in row] for key in keys}
        epochs.append({key: np.mean(values, axis=0).tolist() for key, values in values_of.items() if values})
    return epochs


def found_by_weight(path: Path) -> dict[str, Any] | None:
    """Returns how well a low mean weight detects wrong labels: AUROC, and precision among the lowest weights.

    `auroc_within_class` is that of the weight over the mean of its class, over all images together. It differs from
    `example_weights.auroc_within_class`, the mean over the classes.
    """
    if not path.is_file():
        return None
    table = pd.read_csv(path, dtype={"image_id": str, "lesion_id": str}).dropna(subset="weight")
    wrong = (table["dx"] != table["label"]).to_numpy()
    if not 0 < wrong.sum() < len(wrong):
        return None
    ordered = by_weight(table)
    return {
        "share": float(wrong.mean()),
        "auroc": float(roc_auc_score(wrong, -table["weight"])),
        "auroc_within_class": float(roc_auc_score(ordered["dx"] != ordered["label"], -ordered["relative"])),
        f"precision_of_first_{FIRST}": wrong_in_lowest(ordered, FIRST),
    }


def rounded(value: Any) -> Any:
    """Returns the value with floats rounded to six digits, to keep noise out of the repository."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value

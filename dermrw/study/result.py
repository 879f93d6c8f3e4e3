"""What a finished run leaves behind: a small JSON file, so that the report can be made from the repository alone."""

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
from dermrw.datasets.dataset import load_splits, resolve_root
from dermrw.diagnoses import Classes
from dermrw.errors import UserError
from dermrw.files import write_atomic
from dermrw.metrics.classification import balanced_accuracy, decide
from dermrw.reports.predictions_csv import read_predictions
from dermrw.study.plan import RESULTS, Run
from dermrw.study.statistics import balanced_accuracies
from dermrw.training.example_weights import by_weight, wrong_in_lowest
from dermrw.training.run_folder import open_run, read_log, read_split

FIRST = 100  # images of the lowest weight, of which a curator would look at all


def results_folder(budget: str) -> Path:
    """Where a budget's results lie, from the root of a checkout."""
    return RESULTS / budget


def result_path(run: Run) -> Path:
    """The result file of a run."""
    return results_folder(run.budget) / f"{run.name}.json"


def read_result(run: Run) -> dict[str, Any]:
    """What is in a run's result file.

    Raises:
        FileNotFoundError: there is none.
        UserError: it is damaged, or was changed by hand: its own decisions give other figures than it states.
    """
    path = result_path(run)
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
        _check(found, run)
    except FileNotFoundError as error:
        if error.filename == str(path):
            raise
        raise UserError(f"{path}: {error.filename}, which says what it decided on, is not there; {RESTORE}") from None
    except RecursionError:
        raise UserError(f"{path} is no result: {RESTORE}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}): {RESTORE}") from None
    return found


RESTORE = "take it back from version control, or delete it and run it again"


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no figure")


def _check(result: dict[str, Any], run: Run) -> None:
    """Raises ValueError or KeyError where a result is not the run's, or contradicts itself."""
    if (result["row"], result["seed"], result["budget"]) != (run.row, run.seed, run.budget):
        raise ValueError(f"it is of {result['row']}-{result['seed']}")
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
        (right,) = balanced_accuracies(decided[None], labels)
        if not abs(right - stated) < 1e-5:
            raise ValueError(f"its decisions on {name} are {right:.4f} right, not {stated}")


class Truth(NamedTuple):
    """What a result's decisions are of."""

    labels: np.ndarray  # [N]
    lesions: np.ndarray  # [N]


@cache
def read_truth(path: Path, codes: tuple[str, ...]) -> Truth:
    """A truth file, whose name says what is in it."""
    text = path.read_bytes()
    if path.name != _truth_name(text):
        raise ValueError(f"{path.name} is not what it was")
    table = pd.read_csv(io.BytesIO(text), dtype=str)
    return Truth(np.array([codes.index(code) for code in table["dx"]]), table["lesion_id"].to_numpy())


def _truth_name(text: bytes) -> str:
    return f"truth_{hashlib.sha256(text).hexdigest()[:12]}.csv"


def current_result(run: Run) -> dict[str, Any] | None:
    """The run's result, where it has one of the config that the study asks for now.

    Raises:
        UserError: it has one that is damaged.
    """
    try:
        result = read_result(run)
    except FileNotFoundError:
        return None
    return result if result["config_digest"] == run.digest() else None


def finished(run: Run) -> bool:
    """Whether there is a `current_result`."""
    return current_result(run) is not None


def collect(run: Run, folder: Path) -> dict[str, Any]:
    """Writes a run's result file from its evaluated run folder; returns what is in it."""
    result = summarise(run, folder)
    lines = [f"{json.dumps(key)}: {json.dumps(_rounded(value), allow_nan=False)}" for key, value in result.items()]
    write_atomic(result_path(run), ("{\n" + ",\n".join(lines) + "\n}\n").encode())
    return result


def summarise(run: Run, folder: Path) -> dict[str, Any]:
    """What is kept of an evaluated run folder; the file that says what its decisions are of is written if need be."""
    config = open_run(folder)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    splits = load_splits(config.data, resolve_root(config.data), read_split(folder))
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
    """What two phrases of `build_model` have in common where they are of the same weights: digest, or release."""
    digest = re.search(r"sha256 (\w+)", weights)
    return digest[1] if digest else weights.partition(" of torchvision")[0]


def same_again(old: dict[str, Any], new: dict[str, Any]) -> str:
    """How a run that was repeated compares with its result: both balanced accuracies, and the decisions that agree."""
    before, now = (result["sets"]["test"] for result in (old, new))
    key = "balanced_accuracy_as_trained"
    said = f"balanced accuracy as trained {100 * now[key]:.2f} % now, {100 * before[key]:.2f} % in the result"
    if before["truth"] != now["truth"]:
        return f"{said}, but the test splits differ: this is other data"
    pairs = list(zip(before["as_trained"], now["as_trained"], strict=True))
    same = sum(one == other for one, other in pairs)
    return f"{said}; {same:,} of {len(pairs):,} test images are decided alike"


def _digits(decisions: np.ndarray) -> str:
    """Decisions as one character an image, `-` where there was none (a tie)."""
    return "".join("-" if d < 0 else str(d) for d in decisions)


def decisions(digits: str) -> np.ndarray:
    """What `_digits` wrote `[N]`: -1 where there was none."""
    return np.array([-1 if d == "-" else int(d) for d in digits])


def write_truth(run: Run, ids: pd.Series, lesions: pd.Series, labels: np.ndarray, classes: Classes) -> str:
    """The file that says what the characters of a result stand for, once for all runs on the same images; its name."""
    table = pd.DataFrame({"image_id": ids, "lesion_id": lesions, "dx": [classes.codes[c] for c in labels]})
    text = table.to_csv(index=False, lineterminator="\n").encode()
    path = results_folder(run.budget) / _truth_name(text)
    if not path.is_file():
        write_atomic(path, text)
    return path.name


def over_time(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each epoch: what each class received, the share of zeros, 1/Σw², and how far the weights swung."""
    rows = [row for row in log if "class_weight" in row]
    found = []
    for epoch in sorted({row["epoch"] for row in rows}):
        mine = [row for row in rows if row["epoch"] == epoch]
        keys = ("class_weight", "zero_share", "effective_batch", "all_zero", "class_swing", "example_swing")
        means = {key: [row[key] for row in mine if key in row] for key in keys}
        found.append({key: np.mean(values, axis=0).tolist() for key, values in means.items() if values})
    return found


def found_by_weight(path: Path) -> dict[str, Any] | None:
    """How well a low mean weight finds the wrong labels: AUROC, and the share of wrong ones among the lowest."""
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


def _rounded(value: Any) -> Any:
    """Floats to six digits: more would only be noise in the repository."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value

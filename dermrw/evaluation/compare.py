"""`dermrw compare`: differences between runs, in their configs and in balanced accuracy on the same images. No torch.

Everything is read from the run folders, so neither the images nor the checkpoints are needed.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from dermrw.config import NOT_PART_OF_A_RESULT, Config, differences, with_views
from dermrw.csv_table import is_missing
from dermrw.errors import UserError
from dermrw.formatting import counted, percent
from dermrw.labelled.folder import read_frame
from dermrw.metrics.classification import balanced_accuracy, score_weights
from dermrw.metrics.paired import Difference, paired_difference
from dermrw.training.run_folder import averaged_runs, open_run, read_split, unit_of

# (title, the file of predictions in a run folder)
SETS = (
    ("validation, as trained", "predictions_validation_as_trained.csv"),
    ("test split", "predictions.csv"),
    ("official validation set", "predictions_isic2018_validation.csv"),
    ("official test set", "predictions_isic2018_test.csv"),
)
NOT_COMPARED = NOT_PART_OF_A_RESULT - {"model.weights"}  # config keys


class Predictions(NamedTuple):
    """The contents of a file of predictions, and the true classes where they are known."""

    path: Path
    classes: tuple[str, ...]  # the columns
    probabilities: pd.DataFrame  # by image; one column per class
    labels: pd.Series | None  # by image; a class
    lesions: pd.Series | None  # by image


class Comparison(NamedTuple):
    """One run next to the first one, on the images of a set that both predicted."""

    title: str  # of the set
    run: str
    images: int  # that both predicted
    only_here: int  # images that only this run predicted
    only_there: int  # images that only the first run predicted
    lesions: int | None  # None if they are not known: then each image counts as its own
    score: float  # balanced accuracy
    first_score: float  # that of the first run
    paired: Difference
    alone: int  # images without a lesion in the list: each counts as its own


def compare(paths: Sequence[Path], truth: Path | None = None, lesions: Path | None = None) -> list[Comparison]:
    """Compares each run or file of predictions with the first one, on each set that both predicted.

    Args:
        paths: folders of runs or of averages of runs, or CSV files in the format of predictions.csv.
        truth: a CSV in the same format with 1 for the true class of each image; default: the files of the run.
        lesions: a CSV with the columns image and lesion_id; default: the files of the run.

    Raises:
        UserError: there are fewer than two paths, a file can't be read, a run is not evaluated, the classes differ, or
            two runs have no image in common.
    """
    if len(paths) < 2:
        raise UserError("name at least two runs or files of predictions to compare")
    known_labels = None if truth is None else _true_classes(truth)
    known_lesions = None if lesions is None else _read_lesions(lesions)
    sets = _sets_of(paths)
    rows = []
    for other in paths[1:]:
        pairs = [(title, first[paths[0]], first[other]) for title, first in sets if {paths[0], other} <= set(first)]
        if not pairs:
            raise UserError(f"{paths[0]} and {other} have no evaluated set in common: run `dermrw eval` on both")
        compared = [
            _compare(title, str(other), *(_read(file, known_labels, known_lesions) for file in files))
            for title, *files in pairs
        ]
        rows += [row for row in compared if row is not None]
        if not any(compared):
            raise UserError(
                f"{paths[0]} and {other} have no evaluated image in common, because their splits differ: compare runs "
                "with the same data.split_seed"
            )
    return rows


def config_differences(paths: Sequence[Path]) -> dict[str, list[str]]:
    """Returns the config keys in which each run differs from the first, as `train.epochs: 5, was 30`, by run.

    An average of runs has no config of its own: it is named with its runs.
    """
    runs = [path for path in paths if path.is_dir()]
    averages = {run: averaged for run in runs if (averaged := averaged_runs(run)) is not None}
    configs = {run: _as_evaluated(run) for run in runs if run not in averages}

    def lines(run: Path) -> list[str]:
        stated = [
            f"{path} is the average of {', '.join(part.name for part in averages[path])}"
            for path in (runs[0], run)
            if path in averages
        ]
        if stated:
            return stated
        found = differences(configs[run], configs[runs[0]])
        return [line for line in found if line.partition(":")[0] not in NOT_COMPARED]

    return {str(run): lines(run) for run in runs[1:]}


def _as_evaluated(run: Path) -> Config:
    """Returns the run's config with the number of views of its last evaluation."""
    config = open_run(run)
    try:
        views = json.loads((run / "report.json").read_text(encoding="utf-8")).get("views")
    except (OSError, ValueError, AttributeError):  # its predictions are compared without it
        views = None
    return config if views is None else with_views(config, views)


def _unit(run: Path) -> str:
    """Returns the unit of the split of a run, or of an average of runs."""
    if averaged_runs(run) is None:
        return unit_of(run, open_run(run))
    try:
        return str(json.loads((run / "report.json").read_text(encoding="utf-8")).get("unit") or "lesions")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{run / 'report.json'} can't be read ({error}): export the average again") from None


def print_comparison(paths: Sequence[Path], truth: Path | None = None, lesions: Path | None = None) -> None:
    """Prints the differences of the configs, and a table of balanced accuracies."""
    rows = compare(paths, truth, lesions)
    first = str(paths[0])
    for run, lines in config_differences(paths).items():
        averages = any(averaged_runs(Path(path)) is not None for path in (run, first))
        print(f"{run} and {first}:" if averages else f"Config of {run}, compared with that of {first}:")
        print("".join(f"  {line}\n" for line in lines or ["no difference that affects a result"]))
    print(f"Balanced accuracy, and its difference from that of {first}:\n")
    unit = next((_unit(path) for path in paths if path.is_dir()), "lesions")
    heading = (
        "set",
        "run",
        "images",
        "groups" if unit == "images" else unit,
        "score",
        "first",
        "difference",
        "95 % interval",
    )
    cells = [
        (
            row.title, row.run, f"{row.images:,}", "unknown" if row.lesions is None else f"{row.lesions:,}",
            percent(row.score), percent(row.first_score), _points(row.paired.difference),
            f"{_points(row.paired.low)} to {_points(row.paired.high)}",
        )
        for row in rows
    ]  # fmt: skip
    widths = [max(len(line[i]) for line in [heading, *cells]) for i in range(len(heading))]
    for line in [heading, *cells]:
        padded = [cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True)]
        padded += [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
        print("  ".join(padded))
    print(f"\nDifferences are in percentage points. Intervals: paired bootstrap over {unit}; they do not cover")
    print("the variation between training runs with different seeds.")
    for row in rows:
        if row.only_here or row.only_there:
            print(
                f"{row.title}: {row.run} and {first} are compared on the {row.images:,} images that both predicted; "
                f"{row.only_here:,} are only in {row.run}, {row.only_there:,} only in {first}."
            )
        if row.lesions is None:
            print(f"{row.title}: the {unit} of {row.run} are not known, so each image counts as its own {unit[:-1]}.")
        elif row.alone:
            print(
                f"{row.title}: {counted(row.alone, 'image has', 'images have')} no {unit[:-1]} in the list, so each "
                f"counts as its own."
            )


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def _sets_of(paths: Sequence[Path]) -> list[tuple[str, dict[Path, Path]]]:
    """Returns the title of each set, and its file of each path that has one."""
    files = [path for path in paths if not path.is_dir()]
    for path in files:
        if not path.is_file():
            raise UserError(f"there is no run or file {path}: name a folder such as runs/NAME, or a predictions.csv")
    runs = [path for path in paths if path.is_dir()]
    for run in runs:
        fix = "export the average again"
        if averaged_runs(run) is None:
            open_run(run)
            fix = f"run `dermrw eval {run}` first"
        if not any((run / name).is_file() for _, name in SETS):
            raise UserError(f"{run} has not been evaluated: {fix}")
        _warn_if_trained_since(run)
    if not files:
        return [
            (title, {run: run / name for run in runs if (run / name).is_file() and _is_current(run, title, name)})
            for title, name in SETS
        ]
    # a run next to a file: the run's file of the same name
    name = next((file.name for file in files if any((run / file.name).is_file() for run in runs)), "predictions.csv")
    in_runs = {run: run / name for run in runs if (run / name).is_file()}
    title = next((title for title, known in SETS if known == name), "predictions")
    return [(title if runs else "predictions", in_runs | {file: file for file in files})]


def _evaluation(report: Path) -> tuple[object, object] | None:
    """Returns what a report was made with: SHA-256 of the checkpoint, and number of views; None without a report."""
    try:
        content = json.loads(report.read_bytes())
        return content["checkpoint_sha256"], content.get("views")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_current(run: Path, title: str, name: str) -> bool:
    """Whether the predictions on an official set are of the run's last evaluation. If not, a sentence says so."""
    report = run / f"report{name.removeprefix('predictions').removesuffix('.csv')}.json"
    found, own = _evaluation(report), _evaluation(run / "report.json")
    if found is None or own is None or found == own:
        return True
    print(f"{title}: left out for {run}, because {name} is of another checkpoint or number of views than report.json")
    return False


def _warn_if_trained_since(run: Path) -> None:
    """Says so if the run was trained further after its evaluation."""
    own = _evaluation(run / "report.json")
    try:
        checkpoint = hashlib.sha256((run / "best.pt").read_bytes()).hexdigest()
    except OSError:
        return
    if own is not None and own[0] != checkpoint:
        print(f"{run} was trained further after its evaluation: its figures are of the earlier checkpoint")


def _compare(title: str, run: str, first: Predictions, other: Predictions) -> Comparison | None:
    """Returns the comparison, or None if the files have no image in common."""
    if set(first.classes) != set(other.classes):
        raise UserError(
            f"{first.path} has the classes {', '.join(first.classes)} and {other.path} has "
            f"{', '.join(other.classes)}: only models of the same classes can be compared"
        )
    shared = first.probabilities.index.intersection(other.probabilities.index, sort=False)
    if shared.empty:
        return None
    labels = _agreed_labels(first, other, shared)
    known = other.lesions if first.lesions is None else first.lesions
    lesions = None if known is None else known.reindex(shared)
    alone = 0
    if lesions is not None:
        alone = int(lesions.isna().sum())
        lesions = lesions.where(lesions.notna(), shared.to_series())
    y = pd.Index(first.classes).get_indexer(pd.Index(labels))
    weights = score_weights(shared.to_numpy())
    pa, pb = (p.probabilities.loc[shared, list(first.classes)].to_numpy() for p in (other, first))
    group = (shared if lesions is None else lesions).to_numpy(str)
    return Comparison(
        title, run, len(shared), len(other.probabilities) - len(shared), len(first.probabilities) - len(shared),
        None if lesions is None else len(set(group)), balanced_accuracy(pa, y, weights),
        balanced_accuracy(pb, y, weights), paired_difference(pa, pb, y, group, weights), alone,
    )  # fmt: skip


def _agreed_labels(first: Predictions, other: Predictions, shared: pd.Index) -> npt.NDArray[np.str_]:
    """Returns the class of each shared image."""
    known = [p.labels.reindex(shared) for p in (first, other) if p.labels is not None]
    if not known:
        raise UserError(
            f"the true classes of {first.path} are not known: name a file with --truth, use a run's predictions.csv, "
            "or export the average of runs again"
        )
    labels = known[0] if len(known) == 1 else known[0].fillna(known[1])
    if labels.isna().any():
        raise UserError(f"the true class of {labels.index[labels.isna()][0]} is not known: add it to the ground truth")
    different = shared[(known[-1].notna() & (known[-1] != labels)).to_numpy()]
    if len(different):
        raise UserError(
            f"{first.path} and {other.path} come with different true classes of {different[0]}: they belong to "
            "different data"
        )
    strange = sorted(set(labels) - set(first.classes))
    if strange:
        raise UserError(f"the ground truth has the class {strange[0]}, which {first.path} has no column for")
    return labels.to_numpy(str)


def _read(path: Path, labels: pd.Series | None, lesions: pd.Series | None) -> Predictions:
    """Reads a file of predictions. Labels and lesions that are None come from the files next to it."""
    table = _read_numbers(path)
    classes = tuple(table.columns)
    if ((table < 0) | (table > 1)).to_numpy().any():
        raise UserError(f"{path} has numbers outside 0 to 1: name a file of probabilities")
    suffix = path.stem.removeprefix("predictions").removesuffix("_as_trained")
    truth, groups = (path.with_name(f"{name}{suffix}.csv") for name in ("ground_truth", "lesions"))
    split = None
    if path.stem.startswith("predictions") and (path.parent / "split.csv").is_file():
        split = read_split(path.parent).set_index("image_id")
    if labels is None and path.stem.startswith("predictions") and truth.is_file():
        labels = _true_classes(truth)
    elif labels is None and split is not None and "isic" not in suffix:
        column_of = {name.casefold(): name for name in classes}
        labels = split["dx"].map(lambda code: column_of.get(code.casefold(), code))
    if lesions is None and groups.is_file():
        lesions = _read_lesions(groups)
    elif lesions is None and split is not None and "isic" not in suffix:
        lesions = split["lesion_id"]
    return Predictions(path, classes, table, labels, lesions)


def _true_classes(path: Path) -> pd.Series:
    """Returns the class of each image in a ground truth in ISIC's format."""
    table = _read_numbers(path)
    wrong = table.index[(table.isin([0.0, 1.0]).all(axis=1) & (table.sum(axis=1) == 1)).to_numpy() == 0]
    if len(wrong):
        raise UserError(f"{path} must have a single 1 in the row of each image, but {wrong[0]} does not")
    return table.idxmax(axis=1)


def _read_numbers(path: Path) -> pd.DataFrame:
    """Returns the numbers of a CSV with the column `image`, by image."""
    frame = read_frame(path)
    if "image" not in frame.columns or len(frame.columns) < 3:
        raise UserError(f"{path} must have the column image and a column for each class")
    frame = frame.set_index("image")
    if frame.index.has_duplicates:
        raise UserError(f"{path} lists {frame.index[frame.index.duplicated()][0]} twice: remove one row")
    try:
        numbers = pd.DataFrame(frame.to_numpy(str).astype(np.float64), index=frame.index, columns=frame.columns)
    except ValueError as error:
        raise UserError(f"{path} has a cell that is not a number ({error})") from None
    if not np.isfinite(numbers.to_numpy()).all():
        raise UserError(f"{path} has a number that is not finite")
    return numbers


def _read_lesions(path: Path) -> pd.Series:
    """Returns the lesion of each image in a CSV with the columns image and lesion_id."""
    frame = read_frame(path)
    if not {"image", "lesion_id"} <= set(frame.columns):
        raise UserError(f"{path} must have the columns image and lesion_id")
    named = frame[np.array([not is_missing(lesion) for lesion in frame["lesion_id"]], dtype=bool)]
    twice = named.groupby("image", sort=False)["lesion_id"].nunique() > 1
    if twice.any():
        raise UserError(f"{path}: image {twice.index[twice][0]} has two lesions")
    return named.drop_duplicates("image").set_index("image")["lesion_id"]

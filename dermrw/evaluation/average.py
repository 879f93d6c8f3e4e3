"""Evaluation of the average of several runs as one model.

The logits of the runs, each the mean over its views, are averaged. Temperature, offsets and thresholds are then fitted
to the averaged logits, since the average needs another temperature than its members (Rahaman and Thiery, Uncertainty
Quantification and Deep Ensembles, NeurIPS 2021). The mean of logits is a logarithmic opinion pool (Heskes, NeurIPS
1997). It is the pool that commutes with a change of the prevalence (Genest, McConway and Schervish, Ann. Stat.
14:487-501, 1986), so `at_prevalence` of the average is the average of the runs at that prevalence. The mean of
probabilities (Lakshminarayanan et al., NeurIPS 2017) has no such property.
"""

import hashlib
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dermrw.config import Config, without_folders
from dermrw.datasets.dataset import ImageSet, Splits, class_shares, resolve_root
from dermrw.decisions.refusal import ALL_CHECKS
from dermrw.errors import UserError
from dermrw.evaluation.evaluate import Validated, fit_rules, score_test_sets
from dermrw.evaluation.predict import Predictor
from dermrw.evaluation.refusal_fit import pictures_to_refuse
from dermrw.reports.predictions_csv import write_lesions, write_predictions
from dermrw.reports.report_html import TrainingHistory
from dermrw.reports.report_schema import AveragedRun, DefinedReport
from dermrw.training.image_overlap import hashes_array, known_by
from dermrw.training.image_record import ImageRecord, hashes_of
from dermrw.training.run_folder import unit_of


class Member(NamedTuple):
    """A run of an average."""

    run: Path
    config: Config
    splits: Splits
    predictor: Predictor
    report: DefinedReport


class Average(NamedTuple):
    """Several runs as one model."""

    members: Sequence[Member]

    def predict(self, images: ImageSet, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the mean logits `[N, C]` and checks `[N, 8]` of a set; `name` is for the progress message."""
        return _mean([member.predictor.predict(images, name) for member in self.members])

    def plain_view(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the mean logits and checks of pixels uint8 `[N, S, S, 3]`, of the upright view alone."""
        return _mean([member.predictor.plain_view(pixels) for member in self.members])

    def predict_held_out(self, images: ImageSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns mean logits, mean checks and the number of runs `[N]`, each image by the runs not trained on it.

        A run that was trained on another image of the same lesion does not count either, nor one whose first weights
        were (`model.weights`).
        """
        logits: Any = 0.0
        checks: Any = 0.0
        count = np.zeros(len(images), np.int64)
        for member in self.members:
            seen = pd.concat([member.splits.train.table, member.splits.meta.table])
            table = images.table
            known = table["lesion_id"].isin(seen["lesion_id"]) | table["image_id"].isin(seen["image_id"])
            held_out = ~known.to_numpy()
            if member.config.model.weights_file is not None:
                fitted, own = ImageRecord.of_run(member.run).fitted, (member.splits.train, member.splits.meta)
                hashes = hashes_of([images, *own], member.config)
                known_how = known_by(fitted, images, member.config, hashes, hashes_array(own, hashes))
                held_out &= np.array(known_how) == ""
            found = member.predictor.predict(images.part(itemgetter(held_out)), "the validation split")
            sums = [np.zeros((len(images), array.shape[1])) for array in found]
            for total, array in zip(sums, found, strict=True):
                total[held_out] = array
            logits, checks = logits + sums[0], checks + sums[1]
            count[held_out] += 1
        if not count.all():
            raise UserError(
                f"{(count == 0).sum():,} of the {len(images):,} validation images were used to train every run of the "
                "average, or the weights that it started from: average runs with the same first weights and split"
            )
        return (logits / count[:, None]).astype(np.float32), (checks / count[:, None]).astype(np.float32), count


def _mean(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean logits and the mean checks of several models."""
    logits = np.stack([part[0] for part in parts]).mean(0, dtype=np.float64)
    checks = np.stack([part[1] for part in parts]).mean(0, dtype=np.float64)
    return logits.astype(np.float32), checks.astype(np.float32)


def union(sets: Sequence[ImageSet]) -> ImageSet:
    """Returns the images of several sets, each once, in the order of their first appearance."""
    table = pd.concat([images.table for images in sets], ignore_index=True)
    rows = np.flatnonzero(~table["image_id"].duplicated())
    sources = [source for images in sets for source in images.sources]
    labels = np.concatenate([images.labels for images in sets])
    return ImageSet(table.iloc[rows].reset_index(drop=True), labels[rows], [sources[row] for row in rows])


def joint_splits(members: Sequence[Member]) -> Splits:
    """Returns the image sets of an average: the common test split, all validation images, and all training images.

    A validation image of one run may be a training image of another one, as with cross-validation folds.
    """
    splits = [member.splits for member in members]
    return splits[0]._replace(
        train=union([part.train for part in splits]),
        meta=union([part.meta for part in splits]),
        validation=union([part.validation for part in splits]),
    )


def require_alike(members: Sequence[Member]) -> None:
    """Checks that the runs can be averaged, and that no run was trained or calibrated on test images of another one.

    Raises:
        UserError: they differ in classes, data, pixels or test split; or two hold the same checkpoint.
    """
    first = members[0]
    for i, member in enumerate(members):
        for other in members[:i]:
            if other.report.checkpoint_sha256 == member.report.checkpoint_sha256:
                raise UserError(f"{other.run} and {member.run} hold the same checkpoint: name each run once")
        ours, theirs = (
            {
                "classes": ", ".join(m.splits.classes.codes),
                "names or malignancy of the classes": m.splits.classes,
                "data.name": m.config.data.name,
                "data.size": m.config.data.size,
                "data.field_of_view": m.config.data.field_of_view,
                "data.crop": m.config.data.crop,
                "data.interpolation": m.config.data.interpolation,
                "model.colour_constancy": m.config.model.colour_constancy,
                "data.views": m.config.data.views,
                "data.extra": without_folders(m.config).data.extra,
                "data.extra_benign": m.config.data.extra_benign,
                "checks for refusal (data.refuse)": ", ".join(m.report.decisions.limits),
                "unit of the split": unit_of(m.run, m.config),
                "warning": m.report.warning,
            }
            for m in (first, member)
        )
        for key, value in ours.items():
            if value != theirs[key]:
                values = f": {value} and {theirs[key]}" if len(f"{value}{theirs[key]}") < 100 else ""
                raise UserError(
                    f"{first.run} and {member.run} can't be averaged, because they differ in {key}{values}: "
                    "name runs that agree in it"
                )
        if set(first.splits.test.table["image_id"]) != set(member.splits.test.table["image_id"]):
            raise UserError(
                f"{first.run} and {member.run} can't be averaged, because their test splits differ, so one was trained "
                "on test images of the other: name runs with the same test split (data.split_seed, data.test)"
            )


def evaluate_average(members: Sequence[Member], folder: Path) -> dict[str, Any]:
    """Writes the reports and predictions of the average of several runs into `folder`; returns report.json's content.

    Labels and lesions, which a run's split.csv holds, are written next to the predictions: `dermrw compare` needs them.
    Calibration and thresholds are fitted on the validation images of all runs. Each is predicted by the runs that were
    not trained on its lesion: by all, if the runs share one split; by one, if they are folds of a cross-validation.
    """
    config, splits, average = members[0].config, joint_splits(members), Average(members)
    logits, checks, count = average.predict_held_out(splits.validation)
    reports = [member.report for member in members]

    def joined(texts: Sequence[str]) -> str:
        return "; ".join(dict.fromkeys(texts))

    about: dict[str, Any] = {
        "run": folder.resolve().name,
        "objective": joined([report.objective for report in reports])[:200],
        "backbone": joined([report.backbone for report in reports])[:200],
        "weights": joined([report.weights for report in reports])[:500],
        "epoch": max(report.epoch for report in reports),
        "epochs": max(report.epochs for report in reports),
        "training_seconds": sum(report.training_seconds for report in reports),
        "training_images": len(splits.train),
        "runs": [
            AveragedRun(
                run=member.run.resolve().name,
                seed=member.config.train.seed,
                **member.report.model_dump(include=AveragedRun.model_fields.keys() - {"run", "seed"}),
            )
            for member in members
        ],
        "checkpoint_sha256": hashlib.sha256("".join(r.checkpoint_sha256 for r in reports).encode()).hexdigest(),
    }
    sources = [report.training_sources for report in reports]
    if sources[0] and all(source == sources[0] for source in sources):
        about["training_sources"] = sources[0]
    if count.min() < len(members):
        runs = f"{count.min()}" if count.min() == count.max() else f"{count.min()} to {count.max()}"
        about["notes"] = [
            "Calibration and thresholds were fitted to out-of-fold predictions: each validation image was predicted by "
            f"the {runs} of {len(members)} runs that were not trained on its lesion."
        ]
    prevalence = np.mean([class_shares(m.splits.train.table, splits.classes) for m in members], 0)
    unit = unit_of(members[0].run, config)
    held_out = pictures_to_refuse(config.data.refuse).held_out if checks.shape[1] == len(ALL_CHECKS) else ()
    fitted = fit_rules(folder, config, unit, splits, average, Validated(logits, checks), prevalence, about, held_out)
    for images, suffix in ((splits.validation, "_validation"), (splits.test, "")):
        truth = np.eye(len(splits.classes.codes))[images.labels]
        write_predictions(folder / f"ground_truth{suffix}.csv", images.table["image_id"], splits.classes, truth)
        write_lesions(folder / f"lesions{suffix}.csv", images.table)
    root = resolve_root(config.data)
    return score_test_sets(folder, config, root, splits, average, fitted, TrainingHistory()).to_dict()

"""`dermrw score`: predictions.csv, report.json and report.html of a model file on the user's labelled images."""

import json
import platform
import time
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime
import pandas as pd

from dermrw.errors import UserError
from dermrw.evaluation.decision_rules import Predicted, measure_decisions
from dermrw.files import csv_text, require_writable, write_atomic
from dermrw.formatting import counted, percent
from dermrw.images.skin_tone import TONE_COLUMN, skin_tones
from dermrw.inference.classifier import QUANTIZED, Classifier
from dermrw.inference.image_rows import DECISION_COLUMNS, ImageRow, decision_cells
from dermrw.inference.known_images import Hashes, ImageHash, KnownImages, have_two_labels
from dermrw.inference.model_file import ModelInfo, Proportion
from dermrw.inference.partial_rows import RowFile
from dermrw.inference.predict_files import classify_missing, open_rows
from dermrw.inference.verdict import Verdict
from dermrw.inference.workers import choose_workers
from dermrw.labelled.labelled_images import LabelledImages, read_labelled_images
from dermrw.metrics.classification import score_weights
from dermrw.reports.predictions_csv import write_predictions
from dermrw.reports.report_json import OwnTable, ScoredSet, build_report
from dermrw.reports.report_schema import (
    CardFigure,
    Decided,
    DecisionRules,
    External,
    FittedDecisions,
    FittedSets,
    LeftOut,
    Report,
    ShareWithInterval,
)
from dermrw.reports.report_text import left_out_sentences, print_report
from dermrw.scoring.labels import BENIGN_LABEL, MALIGNANT_LABEL, Truth, class_names, find_truth, read_map
from dermrw.scoring.refit import Labelled, fit, plan, refit_lines, require_targets, write_refitted

PARTIAL = "predictions.csv.partial"  # rows of an unfinished score
FILES = ("predictions.csv", "predictions_decisions.csv", "left_out.csv", "report.json", "report.html")


class Answers(NamedTuple):
    """The model's answers to the N images that could be read, without an object per image."""

    image_ids: list[str]
    probabilities: npt.NDArray[np.float64]  # [N, C], at equal prevalence
    verdicts: list[Verdict]  # equal ones are one object
    hashes: Hashes  # [N, 2]; empty without hashes
    errors: dict[str, str]  # on the other images, by id

    @classmethod
    def of(cls, rows: Iterable[ImageRow], count: int, classes: int) -> "Answers":
        """Returns the answers in `count` rows of a model with this many classes."""
        ids: list[str] = []
        probabilities = np.zeros((count, classes))
        hashes: list[ImageHash] = []
        verdicts: list[Verdict] = []
        errors: dict[str, str] = {}
        known: dict[Verdict, Verdict] = {}
        for row in rows:
            if row.error:
                errors[row.image_id] = row.error
                continue
            probabilities[len(ids)] = row.probabilities
            ids.append(row.image_id)
            verdicts.append(known.setdefault(row.verdict, row.verdict))
            if row.hashes:
                hashes.append(row.hashes)
        return cls(ids, probabilities[: len(ids)], verdicts, np.array(hashes, np.uint64).reshape(-1, 2), errors)


class Overlap(NamedTuple):
    """Which of N images are left out because of the images that the model was fitted on."""

    known: npt.NDArray[np.bool_]  # they are listed in the model file
    same_group: npt.NDArray[np.bool_]  # they are not, but an image of their group is


def score(
    model: Path,
    data: Path,
    *,
    images: Path | None = None,
    label_map: str | Sequence[str] = (),
    binary: bool = False,
    by: Sequence[str] = (),
    out: Path | None = None,
    device: str = "auto",
    workers: int | None = None,
    refit: Path | None = None,
) -> Report:
    """Scores a model file on a table or folder of labelled images and writes the files `FILES`.

    With many images, rows are first written to `PARTIAL` as they are computed, and the same call continues an
    interrupted one.

    Args:
        model: the .onnx file.
        data: a CSV with `image` and `label`, HAM10000's or ISIC's own table, or a folder with a folder per class.
        images: the folder of the images, if they are not where the table is.
        label_map: the value of `--map`, or several; see `labels.read_map`.
        binary: whether the truth is malignant or benign.
        by: columns to show subgroups of.
        out: the folder to write into; None: score/NAME, after the table or folder.
        device: `auto`, `cpu` or `cuda`.
        workers: processes for many images; None: one for each CPU that this process may use.
        refit: a new model file to write, with thresholds fitted on these images; a card is written next to it.

    Raises:
        UserError: an argument is wrong; or, after all files are written, some images are missing or unreadable.
    """
    classifier = Classifier(model, device)
    info, known = classifier.info, classifier.known_images()
    labelled = read_labelled_images(data, images, by, class_names(info).keys())
    mapped = read_map([label_map] if isinstance(label_map, str) else label_map, info)
    truth = find_truth(labelled.table["label"].tolist(), info, mapped, binary, labelled.published)
    folder = out or Path("score") / (data.resolve().name if data.is_dir() else data.stem)
    _require_folder(folder, data, model)
    if refit:
        require_targets(refit)
        _require_enough(labelled.table, truth, info)
    print(
        f"Model {info.name} of {info.created}, sha256 {classifier.digest[:12]}, on the {classifier.device}", flush=True
    )
    for text in [info.warning] * bool(info.warning) + [QUANTIZED] * classifier.quantized:
        print(text, flush=True)

    table = labelled.table[[bool(target) for target in truth.targets]]
    names, paths = table["image_id"], table["path"]
    files = {name: Path(path) for name, path in zip(names, paths, strict=True) if path}
    processes = choose_workers(classifier, len(files), workers)
    with open_rows(classifier, files, folder / PARTIAL, "--out", known is not None) as rows:
        classify_missing(classifier, files, rows, processes, known is not None)
        scored = score_rows(classifier, labelled, truth, rows, folder, data.resolve().name)
        if isinstance(rows, RowFile):
            rows.finish()
    print_report(scored.report, classifier.info.classes)
    print(", ".join(str(folder / name) for name in FILES), flush=True)
    if refit:
        _refit(refit, classifier, scored)
    if scored.missing or scored.errors:
        missing, errors = scored.missing, scored.errors
        lines = [f"{counted(len(missing), 'image has', 'images have')} no file: {', '.join(missing[:20])}"] * bool(
            missing
        )
        raise UserError(
            "\n".join([f"{counted(len(missing) + len(errors), 'image is', 'images are')} not scored:", *lines, *errors])
        )
    return scored.report


class Scored(NamedTuple):
    """A report, and the images that it lacks because they could not be read."""

    report: Report
    images: ScoredSet
    hashes: Hashes  # [N, 2] of the images; empty if the model does not list its training images
    missing: list[str]  # ids
    errors: list[str]


def score_rows(
    classifier: Classifier,
    labelled: LabelledImages,
    truth: Truth,
    rows: Iterable[ImageRow],
    folder: Path | None,
    title: str,
    every: pd.DataFrame | None = None,
) -> Scored:
    """Scores rows that are already computed, and writes the files `FILES`.

    Args:
        classifier: the model.
        labelled: the table `[N]`.
        truth: of its images `[N]`.
        rows: of the images that have a file and a target; with hashes if the model lists its training images.
        folder: to write into; None: nothing is written, and skin tones are not estimated, since this reads the files.
        title: of the images, for the report.
        every: all rows of the user's table, if `labelled` has only a part of them; for the groups of training images.

    Raises:
        UserError: no image can be scored; nothing is written then.
    """
    info, known = classifier.info, classifier.known_images()
    table = labelled.table.assign(target=truth.targets)
    left = dict.fromkeys(labelled.duplicates, "a published duplicate")
    left |= dict.fromkeys(table["image_id"][table["target"] == ""], "label is left out")
    table = table[table["target"] != ""]
    missing = table["image_id"][table["path"] == ""].tolist()
    left |= dict.fromkeys(missing, "no file")
    answers = Answers.of(rows, len(table), len(info.codes))
    left |= dict.fromkeys(answers.errors, "can't be read")
    table = table.set_index("image_id", drop=False).loc[answers.image_ids].reset_index(drop=True)
    if table.empty:
        raise UserError("\n".join(["no image could be read, so nothing is written:", *answers.errors.values()]))
    overlap = find_overlap(known, table, answers.hashes, labelled.table if every is None else every)
    left |= dict.fromkeys(table["image_id"][overlap.known], "the model was trained, selected or calibrated on it")
    left |= dict.fromkeys(table["image_id"][overlap.same_group], "its group has a training image")
    kept = np.flatnonzero(~overlap.known & ~overlap.same_group)
    if not len(kept):
        raise UserError(
            f"the model was trained, selected or calibrated on all of the {len(table):,} images or their groups, so "
            "none can be scored: name images that it has not seen"
        )
    table = table.iloc[kept].reset_index(drop=True)
    if folder is not None and info.subject == "lesion":
        table[TONE_COLUMN] = skin_tones(table["path"].tolist())
    verdicts = [answers.verdicts[i] for i in kept]
    hashes = answers.hashes[kept] if len(answers.hashes) else answers.hashes
    unit = labelled.unit
    external = External(
        model_file=classifier.path.name,
        model_sha256=classifier.digest,
        unit=unit,
        binary=truth.binary,
        overlap_checked=known is not None,
        left_out=LeftOut(
            labels=truth.left_out, missing=missing, unreadable=list(answers.errors),
            training_images=int(overlap.known.sum()), same_group=int(overlap.same_group.sum()),
        ),
        card=[],
        card_scored_on=info.score.scored_on,
        notes=[*labelled.notes, *truth.notes, *_two_labels(table, hashes), *_refitted(info)],
    )  # fmt: skip

    classes = info.classes
    ids = table["image_id"]
    probabilities = np.clip(answers.probabilities[kept], 0.0, 1.0)  # as in predictions.csv
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_predictions(folder / FILES[0], ids, classes, probabilities)
        decisions = ([name, *decision_cells(v)] for name, v in zip(ids, verdicts, strict=True))
        write_atomic(folder / FILES[1], csv_text(chain([["image", *DECISION_COLUMNS]], decisions)).encode())
        write_atomic(folder / FILES[2], csv_text([["image", "reason"], *left.items()]).encode())

    labels = table["target"].map(_label_numbers(truth.binary, info)).to_numpy(np.int64)
    rules = _rules(info)
    scored = ScoredSet(
        title, table, labels, table["path"].tolist(), classes, probabilities, triage_shares=rules.triage_shares
    )
    reasons = [_reason(v.refused) for v in verdicts]
    decided = _decided(info, rules, scored, reasons, truth.binary)
    own = OwnTable(unit, labelled.subgroups, truth.binary)
    prevalence = np.array([info.prevalence[code] for code in info.codes])
    about = _about(info, external)
    report = build_report(scored, as_trained(probabilities, info), prevalence / prevalence.sum(), decided, about, own)
    card, notes = compare_with_card(report, info)
    external = external.model_copy(update={"card": card, "notes": [*external.notes, *notes]})
    incomplete = " ".join(s for s in left_out_sentences(external) if s.startswith("Not scored")).rstrip(".")
    report = report.model_copy(update={"external": external, "incomplete": incomplete or None})

    if folder is not None:
        from dermrw.reports.report_html import TrainingHistory, write_html  # with Matplotlib, which the demo lacks

        write_html(folder / FILES[4], report, scored, TrainingHistory(), official=False)
        write_atomic(folder / FILES[3], json.dumps(report.to_dict(), indent=1, allow_nan=False).encode())
    return Scored(report, scored, hashes, missing, list(answers.errors.values()))


def _labelled(groups: pd.Series, labels: npt.NDArray[np.int64], binary: bool, info: ModelInfo) -> Labelled:
    """The images to refit on; labels of malignant and benign images are 1 and 0."""
    if binary:
        labels = np.array(info.malignant)[labels].astype(np.int64)
    return Labelled(labels, groups.to_numpy(str), binary)


def _require_enough(table: pd.DataFrame, truth: Truth, info: ModelInfo) -> None:
    """Refuses, before anything is computed, images that are too few for `--refit`."""
    codes = _label_numbers(truth.binary, info)
    labels = np.array([codes.get(target, -1) for target in truth.targets])
    usable = (labels >= 0) & (table["path"] != "").to_numpy()
    plan(_labelled(table["lesion_id"][usable], labels[usable], truth.binary, info), info)


def _label_numbers(binary: bool, info: ModelInfo) -> dict[str, int]:
    if binary:  # any malignant class and any other; see `OwnTable.binary`
        malignant = info.malignant or ()
        return {MALIGNANT_LABEL: malignant.index(True), BENIGN_LABEL: malignant.index(False)}
    return {code: i for i, code in enumerate(info.codes)}


def _refit(target: Path, classifier: Classifier, scored: Scored) -> None:
    """Fits thresholds on the scored images, writes the model file and its card, and prints the figures."""
    images, report, info = scored.images, scored.report, classifier.info
    assert report.external is not None
    labelled = _labelled(images.table["lesion_id"], images.labels, report.external.binary, info)
    planned = plan(labelled, info)
    fitted = fit(images.probabilities, labelled, info, planned)
    ids = images.table["image_id"].tolist()
    new = write_refitted(target, classifier, labelled, planned, fitted, report, ids, scored.hashes)
    for line in refit_lines(planned, fitted):
        print(line)
    print(
        f"{target}, {target.with_suffix('.md')}: {', '.join(new.refit.fields if new.refit else ())} changed", flush=True
    )


def _two_labels(table: pd.DataFrame, hashes: Hashes) -> list[str]:
    """A note on images that look the same, by equal hashes, and have different labels: one of these is wrong."""
    if not len(hashes):
        return []
    several = np.flatnonzero(have_two_labels(hashes, table["target"].tolist()))
    if not len(several):
        return []
    same = table.iloc[several[(hashes[several] == hashes[several[0]]).all(axis=1)]].drop_duplicates("target")
    one, other = (f"{row.image_id} ({row.target})" for row in same.iloc[:2].itertuples())
    return [
        f"{len(several):,} images look the same as an image with another label, such as {one} and {other}: one of the "
        "labels is wrong"
    ]


def find_overlap(
    known: KnownImages | None, table: pd.DataFrame, hashes: Sequence[ImageHash] | Hashes, every: pd.DataFrame
) -> Overlap:
    """Returns which images `[N]` the model was fitted on, and which others belong to a group of one of them.

    Args:
        known: the model's list; None: it has none.
        table: the images, with image_id and lesion_id.
        hashes: of the images.
        every: all rows that the user named. Those without a label or a readable file are known by their ids alone.
    """
    if known is None:
        nothing = np.zeros(len(table), dtype=bool)
        return Overlap(nothing, nothing)
    listed = known.match(table["image_id"].tolist(), hashes)
    groups = table["lesion_id"]
    seen = {*groups[listed], *every["lesion_id"][known.match_ids(every["image_id"].tolist())]}
    return Overlap(listed, groups.isin(seen).to_numpy() & ~listed)


def as_trained(probabilities: npt.NDArray[np.float64], info: ModelInfo) -> npt.NDArray[np.float64]:
    """Returns the network's own softmax `[N, C]`: the calibration softmax(z / T + b), inverted."""
    scores = info.temperature * (np.log(np.maximum(probabilities, np.finfo(np.float32).tiny)) - np.array(info.offsets))
    values = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(values / values.sum(axis=1, keepdims=True), dtype=np.float64)


def compare_with_card(report: Report, info: ModelInfo) -> tuple[list[CardFigure], list[str]]:
    """Returns the headline figures next to those of the model's card, and notes on how comparable they are."""
    triage, sets, refused = report.decided.triage, report.decided.sets, report.decided.refused
    card = Proportion(share=info.score.balanced_accuracy, interval_95=info.score.interval_95, images=info.score.images)
    present = sum(row.images > 0 for row in report.classes.values())
    some_absent = bool(report.classes) and present < len(info.codes)
    rows: list[tuple[str, float | None, Any, Proportion | None, bool]] = []
    if report.balanced_accuracy is not None:
        rows.append(("Balanced accuracy", report.balanced_accuracy, report.interval_95, card, True))
    shares: list[tuple[str, ShareWithInterval | None, Proportion | None, bool]] = [
        ("Coverage of the prediction sets", sets.coverage if sets else None, info.covered, True),
        ("Refused in error", refused, info.refused, False),
    ]
    if triage and info.triage:
        # a refitted file may have figures out of fold alone
        rule = info.refit if info.refit is not None and info.triage.sensitivity is None else info.triage
        shares[:0] = [
            ("Triage sensitivity", triage.sensitivity, rule.sensitivity, True),
            ("Triage specificity", triage.specificity, rule.specificity, True),
        ]
    rows += [(name, part.share, part.interval_95, other, up) for name, part, other, up in shares if part]
    result = []
    for name, here, (low, high), other, higher_is_better in rows:
        if other is None or here is None:
            continue
        worse = bool(high < other.share) if higher_is_better else bool(low > other.share)
        worse = worse and not (name == "Balanced accuracy" and some_absent)  # it is of other classes
        verb = "lower" if higher_is_better else "higher"
        sentence = (
            f"Worse than on the card: {name[0].lower()}{name[1:]} is {percent(here)} here (95 % interval "
            f"{percent(low)} to {percent(high)}), {verb} than the card's {percent(other.share)}."
        )
        result.append(
            CardFigure(
                figure=name, here=here, interval_95=(low, high), card=other.share, card_interval_95=other.interval_95,
                worse=worse, sentence=sentence if worse else None,
            )
        )  # fmt: skip
    notes = []
    if some_absent:
        over = f"the mean over the {present} classes that are present" if present > 1 else "the recall of one class"
        notes.append(
            f"Balanced accuracy is {over}, and the card's is over {len(info.codes)}: the two are not directly "
            "comparable."
        )
    if triage and triage.sensitivity is None:
        notes.append("No image is malignant, so triage has no sensitivity here, and there is no AUC.")
    if triage and triage.specificity is None:
        notes.append("Every image is malignant, so triage has no specificity here, and there is no AUC.")
    return result, notes


def _decided(
    info: ModelInfo, rules: DecisionRules, scored: ScoredSet, reasons: Sequence[str | None], binary: bool
) -> Decided:
    """Refusal, prediction sets and triage on the set; no sets where the truth is malignant or benign."""
    checks = np.zeros((len(scored.labels), 8))  # not used, as the refusals are known
    predicted = Predicted(scored.probabilities, checks, scored.labels, scored.table["lesion_id"].to_numpy())
    weights = score_weights(scored.table["image_id"].to_numpy())
    tones = None if TONE_COLUMN not in scored.table else scored.table[TONE_COLUMN].tolist()
    decided = measure_decisions(rules, predicted, weights, info.classes, reasons, tones)
    if not binary or decided.refused is None:
        return decided
    names = {info.codes[row]: name for name, row in _label_numbers(binary, info).items()}
    by_class = {names[code]: share for code, share in decided.refused.by_class.items()}
    refused = decided.refused.model_copy(update={"by_class": by_class})
    return decided.model_copy(update={"refused": refused, "sets": None, "by_lesion": None})


def _rules(info: ModelInfo) -> DecisionRules:
    sets = FittedSets(coverage=info.coverage, validation_lesions={}, likely_coverage={})
    shares = info.triage_shares
    return DecisionRules(
        thresholds=dict(zip(info.codes, info.thresholds, strict=True)),
        triage_threshold=info.triage.threshold if info.triage else None,
        triage_prevalence=None if shares is None else dict(zip(info.codes, shares, strict=True)),
        **({"no_triage": info.no_triage} if info.no_triage else {}),
        limits=info.limits,
        fitted=FittedDecisions(sets=sets, triage=None),
    )


def _refitted(info: ModelInfo) -> list[str]:
    """A note on a model file that `--refit` wrote."""
    if info.refit is None:
        return []
    return [
        f"The model file was refitted on {counted(info.refit.images, 'image')} of {info.refit.source} on "
        f"{info.refit.created}: {', '.join(info.refit.fields)}."
    ]


def _reason(refused: str | None) -> str | None:
    """The reason of a refusal without the size of the image, so that refusals can be counted."""
    return refused.partition(":")[0] if refused and refused.startswith("it is too small") else refused


def _about(info: ModelInfo, external: External) -> dict[str, Any]:
    """The fields of `Report` that a model file holds."""
    return {
        "run": info.name,
        "warning": info.warning,
        "incomplete": None,
        "objective": info.objective,
        "backbone": info.backbone,
        "weights": info.origin,
        "size": info.size,
        "training_prevalence": info.prevalence,
        "calibration": {
            "temperature": info.temperature,
            "offsets": info.offsets,
            "fitted_on": "the validation images of the model's run",
            "strength": None,
            "cross_validation": [],
        },
        "decisions": _rules(info),
        "external": external,
        "checkpoint_sha256": info.digest,
        "evaluated": time.strftime("%Y-%m-%d"),
        "environment": {
            "python": platform.python_version(),
            "onnxruntime": onnxruntime.__version__,
            "numpy": np.__version__,
            "platform": platform.platform(),
        },
    }


def _require_folder(folder: Path, data: Path, model: Path) -> None:
    """Refuses, before anything is computed, a folder that cannot be written to or that holds the input."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is not a folder: name another")
    for name in FILES:
        path = folder / name
        if folder.is_dir():
            require_writable(path)
        if path.exists() and any(path.samefile(source) for source in (data, model)):
            raise UserError(f"{path} would be replaced, but it is an input: name another folder with --out")

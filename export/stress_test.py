"""`python -m export.stress_test RUN`: tests a model file on out-of-distribution and on damaged images.

Writes RUN/doubt.json and RUN/doubt.png and adds both to the model card. Nothing is fitted to these images.
"""

import argparse
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from dermrw.diagnoses import DX
from dermrw.errors import UserError, plain_endings
from dermrw.evaluation.evaluate import with_overrides
from dermrw.files import path_argument, write_atomic
from dermrw.images.preprocess import read_image
from dermrw.inference.classifier import Classifier
from dermrw.inference.verdict import Verdict
from dermrw.training.run_data import classes_of, run_splits
from dermrw.training.run_folder import averaged_runs, latest_run, open_run

from .card import model_card
from .damages import DAMAGES
from .foreign_pictures import composed, from_lesions, shipped
from .report import official_reports, read_report, report_of, score_reports

PER_CLASS = 20  # number of images per class of the test split that are damaged
COMPOSED = 40  # images of each kind
COLUMNS = 4  # of the figure
OUTCOMES = ("right alone", "right among others", "wrong among others", "wrong alone", "refused")  # keys in doubt.json
LABELS = (
    "set: true class alone",
    "set: true class and others",
    "set: several, without the true class",
    "set: one wrong class",
    "refused",
)
COLOURS = ("#1b7f4d", "#9bd3b0", "#f3c26b", "#c0392b", "#b9c0c9")


def outcome(verdict: Verdict, code: str) -> str:
    """Returns the outcome, one of `OUTCOMES`, for an image of this diagnosis."""
    if verdict.refused:
        return "refused"
    correct = "right" if code in verdict.classes else "wrong"
    return f"{correct} {'alone' if len(verdict.classes) == 1 else 'among others'}"


def damaged(classifier: Classifier, lesions: list[tuple[Image.Image, str]]) -> dict[str, list[dict[str, Any]]]:
    """Returns the fraction of each outcome, and `missed`, for each damage and degree.

    `missed` is the fraction of malignant and pre-malignant images that are neither refused nor referred; None if there
    are no such images.
    """
    info = classifier.info
    malignant = {code for code, bad in zip(info.codes, info.malignant or (), strict=False) if bad}
    by_damage: dict[str, list[dict[str, Any]]] = {}
    for name, degrees, damage in tqdm(DAMAGES, "Damaged images", leave=False):
        for degree in degrees:
            verdicts = [(classifier.explain(damage(image, degree)).verdict, code) for image, code in lesions]
            outcomes = [outcome(verdict, code) for verdict, code in verdicts]
            shares = {o: outcomes.count(o) / len(outcomes) for o in OUTCOMES}
            missed = [verdict.refer is False for verdict, code in verdicts if code in malignant]
            row = {"degree": degree, **shares, "missed": float(np.mean(missed)) if missed else None}
            by_damage.setdefault(name, []).append(row)
    return by_damage


def out_of_distribution(classifier: Classifier, lesions: list[tuple[Image.Image, str]]) -> dict[str, dict[str, Any]]:
    """Returns for each kind of out-of-distribution image the number, the number refused, and those not refused."""
    by_kind: dict[str, dict[str, Any]] = {}
    pictures = [*shipped(), *composed(COMPOSED), *from_lesions([image for image, _ in lesions])]
    for kind, name, image in tqdm(pictures, "Out-of-distribution images", leave=False):
        row = by_kind.setdefault(kind, {"pictures": 0, "refused": 0, "not_referred": 0, "reasons": {}, "accepted": []})
        row["pictures"] += 1
        verdict = classifier.explain(image).verdict
        if verdict.refused:
            row["refused"] += 1
            row["reasons"][verdict.refused] = row["reasons"].get(verdict.refused, 0) + 1
            continue
        row["not_referred"] += verdict.refer is False
        if len(row["accepted"]) < 10:
            row["accepted"].append(name)
    return by_kind


def draw(damages: dict[str, list[dict[str, Any]]], count: int) -> bytes:
    """Returns a PNG with the outcomes by degree for each damage."""
    lines = -(-len(damages) // COLUMNS)
    figure = Figure((16, 3.2 * lines), layout="constrained")
    panels = figure.subplots(lines, COLUMNS).ravel()
    for axes, (name, rows) in zip(panels, damages.items(), strict=False):
        x = np.arange(len(rows))
        axes.stackplot(x, [[100 * row[o] for row in rows] for o in OUTCOMES], labels=LABELS, colors=COLOURS)
        if rows[0]["missed"] is not None:
            missed = [100 * row["missed"] for row in rows]
            axes.plot(x, missed, color="black", marker="o", label="of the malignant images: not refused, not referred")
        axes.set_xticks(x, [f"{row['degree']:g}" for row in rows])
        axes.set(xlabel=name, ylim=(0, 100), xlim=(0, len(rows) - 1))
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False,
        title=f"Outcomes for {count} images of the test split, by kind and degree of damage (per cent)",
    )  # fmt: skip
    for axes in panels[len(damages) :]:
        axes.remove()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    return buffer.getvalue()


def challenge(run: Path, overrides: list[str]) -> dict[str, Any]:
    """Writes RUN/doubt.json and RUN/doubt.png; returns the content of RUN/doubt.json.

    Raises:
        UserError: the run has no model file, or its data is not found.
    """
    averaged = averaged_runs(run)
    source = averaged[0] if averaged else run  # the runs of an average have the same test split
    config = with_overrides(open_run(source), source, overrides, "export.stress_test")
    if config.data.name == "table" and classes_of(source, config).codes != DX:
        raise UserError(
            f"{run} has other classes than HAM10000: the stress test needs dermoscopic images of its seven diagnoses"
        )
    classifier = Classifier(run / "model.onnx")
    test = run_splits(source, config).test
    codes = classifier.info.codes
    rng, rows = np.random.default_rng(0), []
    for c in range(len(codes)):
        of_class = rng.permutation(np.flatnonzero(test.labels == c))
        rows += of_class[:PER_CLASS].tolist()
    if not rows:
        raise UserError(f"{run} has no test images: name a run with data.test above 0")
    lesions = [(read_image(test.sources[row]), codes[test.labels[row]]) for row in rows]
    foreign, damages = out_of_distribution(classifier, lesions), damaged(classifier, lesions)
    doubt = {
        "model": {"name": classifier.info.name, "sha256": classifier.digest},
        "lesions": len(lesions),
        "strangers": foreign,
        "damages": damages,
    }
    write_atomic(run / "doubt.png", draw(damages, len(lesions)))
    write_atomic(run / "doubt.json", json.dumps(doubt, indent=1).encode())
    classes = classifier.info.classes
    report = read_report(run, classes) if averaged else report_of(run, config, classes, overrides)
    official = official_reports(run, report, classes)
    scores = score_reports(run, classifier.digest)
    card = model_card(report, classifier.info, classifier.digest, config, doubt, official, scores)
    write_atomic(run / "MODEL_CARD.md", card.encode())
    return doubt


def main() -> None:
    """Runs the stress test. A user error prints one sentence and exits with status 2."""
    parser = argparse.ArgumentParser(
        "export.stress_test", description="Test a model file on out-of-distribution and damaged images."
    )
    parser.add_argument("run", nargs="?", type=path_argument, help="the run's folder (default: the latest)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as data.root=FOLDER")
    arguments = parser.parse_args()
    with plain_endings("export.stress_test"):
        run = arguments.run or latest_run()
        report = challenge(run, arguments.overrides)
        for kind, row in sorted(report["strangers"].items()):
            left = f"; not refused: {', '.join(row['accepted'])}" if row["accepted"] else ""
            print(f"{kind}: {row['refused']} of {row['pictures']} refused{left}")
        print(f"{run / 'doubt.json'}, {run / 'doubt.png'}, {run / 'MODEL_CARD.md'}")


if __name__ == "__main__":
    main()

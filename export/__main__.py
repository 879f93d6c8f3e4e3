"""`python -m export RUN`: writes the run's model.onnx and MODEL_CARD.md."""

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import dermrw
from dermrw.calibration import EqualPrevalence
from dermrw.config import Config
from dermrw.data import load_splits, resolve_root
from dermrw.diagnoses import DIAGNOSES, DX, HAM_CLASSES, Classes
from dermrw.drawing import draw_lesion
from dermrw.errors import UserError, plain_endings
from dermrw.evaluate import evaluate, load_best
from dermrw.files import write_atomic
from dermrw.model_file import ModelInfo, Score
from dermrw.pixels import read_image
from dermrw.runs import latest_run, open_run, read_split
from export.build import build, check
from export.card import model_card
from export.network import Exported

PICTURES = 12  # that the check compares
HAM_LICENCE = (
    "CC BY-NC 4.0, as its training data: HAM10000, ViDIR Group, Medical University of Vienna; Tschandl, Rosendahl, "
    "Kittler, Sci. Data 5:180161 (2018). For research, non-commercial. Not a medical device."
)
LICENCES = {
    "ham10000": HAM_LICENCE,
    "sample": "Apache-2.0, as dermrw, whose own drawings it was trained on. It knows nothing about skin.",
    "cifar10": "Trained on CIFAR-10 (Krizhevsky 2009), which has no stated licence: for research.",
}


def export(run: Path, overrides: list[str]) -> Path:
    """Writes RUN/model.onnx, after ONNX Runtime was seen to agree with torch, and RUN/MODEL_CARD.md.

    Raises:
        UserError: the run can't be read, its data can't be found where it was not evaluated yet, or the two disagree.
    """
    config = open_run(run)
    report = _report(run, overrides)
    classes = Classes(tuple(report["classes"]), _columns(config, tuple(report["classes"])))
    model, _ = load_best(run, config, classes)
    calibration = EqualPrevalence.from_dict(report["calibration"])
    network = Exported(model, calibration)
    info = _info(run, config, report, classes, calibration)
    print(f"Exporting {run}, {config.model.backbone}, epoch {report['epoch']}", flush=True)
    content = build(network, info).SerializeToString()

    path = run / "model.onnx"
    candidate = run / ".model.onnx.unchecked"
    write_atomic(candidate, content)
    try:
        pictures, what = _pictures(run, config, overrides)
        worst = check(candidate, network, pictures)
        candidate.replace(path)
    finally:
        candidate.unlink(missing_ok=True)
    write_atomic(run / "MODEL_CARD.md", model_card(report, info, hashlib.sha256(content).hexdigest()).encode())
    print(f"ONNX Runtime agrees with torch to {worst:.0e} on {len(pictures)} {what}, in batches of 1 and more.")
    print(f"{path} ({len(content) / 1e6:.1f} MB), {run / 'MODEL_CARD.md'}. Now `make demo`.")
    return path


def _report(run: Path, overrides: list[str]) -> dict[str, Any]:
    """The run's report.json; the run is evaluated first where it wasn't, or was trained further since."""
    best = run / "best.pt"
    if not best.is_file():
        raise UserError(f"{run} has no best.pt yet: train it to the end of an epoch first")
    try:
        report = json.loads((run / "report.json").read_text(encoding="utf-8"))
        if report["checkpoint_sha256"] == hashlib.sha256(best.read_bytes()).hexdigest():
            return dict(report)
        print("The run was trained further since it was evaluated:", flush=True)
    except (OSError, ValueError, KeyError, TypeError):
        print("The run has no report yet that tells temperature, offsets and score:", flush=True)
    return evaluate(run, overrides)


def _columns(config: Config, codes: tuple[str, ...]) -> tuple[str, ...]:
    return HAM_CLASSES.columns if config.data.name != "cifar10" else codes


def _info(
    run: Path, config: Config, report: dict[str, Any], classes: Classes, calibration: EqualPrevalence
) -> ModelInfo:
    names = {d.dx: d.name for d in DIAGNOSES}
    return ModelInfo(
        name=run.resolve().name,
        created=time.strftime("%Y-%m-%d", time.gmtime()),
        version=dermrw.__version__,
        digest=report["checkpoint_sha256"],
        backbone=config.model.backbone,
        objective=config.objective.name,
        origin=report["weights"],
        size=config.data.size,
        codes=classes.codes,
        columns=classes.columns,
        names=tuple(names.get(code, code) for code in classes.codes),
        temperature=calibration.temperature,
        offsets=calibration.offsets,
        prevalence=report["training_prevalence"],
        lesion_rule=report["lesion_rule"]["rule"],
        score=Score(
            balanced_accuracy=report["balanced_accuracy"],
            interval_95=tuple(report["interval_95"]),
            scored_on=report["scored_on"],
            images=report["images"],
        ),
        warning=report["warning"],
        licence=LICENCES[config.data.name],
    )


def _pictures(run: Path, config: Config, overrides: list[str]) -> tuple[list[npt.NDArray[np.uint8]], str]:
    """Pictures of the run's validation split, or drawn ones where the data isn't here any more; and which they are."""
    root = [item.partition("=")[2] for item in overrides if item.startswith("data.root=")]
    try:
        data = config.data.model_copy(update={"root": root[-1]}) if root else config.data
        sources = load_splits(data, resolve_root(data), read_split(run)).validation.sources
        chosen = [sources[i] for i in np.linspace(0, len(sources) - 1, min(PICTURES, len(sources))).astype(int)]
        return [np.asarray(read_image(source)) for source in chosen], "validation images"
    except UserError as error:
        print(f"The check takes drawn pictures, since the run's own can't be had: {error}", flush=True)
    drawn = [
        draw_lesion(DX[i % len(DX)], np.random.default_rng([i, 0]), np.random.default_rng([i, 1]), 200 + 9 * i, 270)
        for i in range(PICTURES)
    ]
    return drawn, "drawn pictures"


def main() -> None:
    """A user's mistake is one sentence and status 2."""
    parser = argparse.ArgumentParser("export", description="Write a run's model as one .onnx file.")
    parser.add_argument("run", nargs="?", help="the run's folder (default: the latest)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="data.root=FOLDER where the data has moved")
    arguments = parser.parse_args()
    overrides = list(arguments.overrides)
    if arguments.run and "=" in arguments.run:
        overrides.insert(0, arguments.run)
        arguments.run = None
    with plain_endings("export"):
        export(Path(arguments.run) if arguments.run else latest_run(), overrides)


if __name__ == "__main__":
    main()

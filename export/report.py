"""What a model file says of its run, from the run's report.json: complete, of this checkpoint, of these settings."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dermrw.config import Config
from dermrw.diagnoses import Classes
from dermrw.errors import UserError
from dermrw.evaluation.evaluate import evaluate
from dermrw.files import open_regular
from dermrw.inference.model_file import first_fault


class _Part(BaseModel):
    # strict: eval wrote it, so what would have to be converted was written by something else
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


class ClassRow(_Part):
    """One class; undefined figures are None."""

    images: int
    lesions: int
    recall: float | None
    recall_interval_95: tuple[float | None, float | None]
    auc: float | None


class Calibration(_Part):
    """Temperature and offsets."""

    temperature: float = Field(gt=0)
    offsets: tuple[float, ...]


class LesionRule(_Part):
    """How images of one lesion are combined."""

    rule: Literal["mean", "geometric"]


class Ece(_Part):
    """A calibration error."""

    top_label_ece: float | None


class CalibrationError(_Part):
    """Calibration errors at two prevalences."""

    binning: str
    equal_prevalence: Ece
    training_prevalence: Ece


class Part(_Part):
    """A share of the set's images."""

    share: float = Field(ge=0, le=1)
    interval_95: tuple[float, float]
    images: int
    lesions: int


class Refused(Part):
    """How many of the set's images are refused, in error."""

    reasons: dict[str, int]
    by_class: dict[str, float]


class Sets(_Part):
    """How the prediction sets do."""

    coverage: Part
    mean_over_classes: float
    by_class: dict[str, Part | None]
    mean_size: float


class Point(_Part):
    """How triage does."""

    sensitivity: Part
    specificity: Part


class Judged(_Part):
    """How sets and triage do."""

    coverage: Part
    triage: Point | None


class ByLesion(_Part):
    """Lesions of several images, judged together and image by image."""

    together: Judged
    one_by_one: Judged


class Decided(_Part):
    """What is said beside the ranking, as measured on the set."""

    refused: Refused | None
    sets: Sets | None
    triage: Point | None
    by_lesion: ByLesion | None


class Fitted(_Part):
    """On what the sets rest."""

    sets: dict[str, Any]
    triage: dict[str, Any] | None


class DecisionRules(_Part):
    """Thresholds and limits, from validation."""

    thresholds: dict[str, float]
    triage_threshold: float | None
    limits: dict[str, float]
    fitted: Fitted


class Report(_Part):
    """What of report.json goes into the model file and its card."""

    balanced_accuracy: float = Field(ge=0, le=1)
    interval_95: tuple[float, float]
    interval: str
    scored_on: str
    images: int = Field(ge=1)
    lesions: int = Field(ge=1)
    classes: dict[str, ClassRow]
    calibration: Calibration
    calibration_error: CalibrationError
    lesion_rule: LesionRule
    decisions: DecisionRules
    decided: Decided
    groups: dict[str, Any] | None = None
    warning: str | None
    objective: str
    backbone: str
    weights: str
    size: int
    epoch: int
    epochs: int
    training_images: int
    training_prevalence: dict[str, float]
    checkpoint_sha256: str


def report_of(run: Path, config: Config, classes: Classes, overrides: Sequence[str]) -> Report:
    """The run's report; the run is evaluated first where it wasn't, or was trained further since.

    Raises:
        UserError: there is no best epoch; or the run's config was changed since it was evaluated.
    """
    best = run / "best.pt"
    if not best.is_file():
        raise UserError(f"{run} has no best.pt yet: train it to the end of an epoch first")
    try:
        with open_regular(run / "report.json") as file:
            report = _parsed(file.read(), classes)
        fits = report.checkpoint_sha256 == hashlib.sha256(best.read_bytes()).hexdigest()
        why = "The run was trained further since it was evaluated"
    except OSError:
        fits, why = False, "The run has no report yet that tells temperature, offsets and score"
    except ValueError as error:
        fits, why = False, f"The run has no report yet that tells temperature, offsets and score ({error})"
    if not fits:
        print(f"{why}; it is evaluated now:", flush=True)
        try:
            report = _parsed(json.dumps(evaluate(run, overrides)).encode(), classes)
        except ValueError as error:
            raise UserError(f"{run} can't be exported, since its scores can't be told ({error}): train it on") from None
    settings = {
        "data.size": (config.data.size, report.size),
        "model.backbone": (config.model.backbone, report.backbone),
        "objective": (config.objective.title, report.objective),
    }
    for key, (now, then) in settings.items():
        if now != then:
            raise UserError(
                f"{run / 'config.yaml'} says {key} {now}, and report.json was measured with {then}: undo the change, "
                f"or measure anew with `make eval RUN={run}`"
            )
    return report


def official_reports(run: Path, checkpoint: str, classes: Classes) -> list[Report]:
    """Of this checkpoint on ISIC 2018's official sets, as far as `eval` wrote them."""
    found = []
    for path in sorted(run.glob("report_isic2018_*.json")):
        try:
            report = _parsed(path.read_bytes(), classes)
        except (OSError, ValueError):
            continue  # of another version: what this one can't read it doesn't quote
        if report.checkpoint_sha256 == checkpoint:
            found.append(report)
    return found


def _parsed(text: bytes, classes: Classes) -> Report:
    """The report in a JSON text; a ValueError says in a phrase what is wrong with it."""
    try:
        report = Report.model_validate_json(text)
    except ValidationError as error:
        raise ValueError(first_fault(error)) from None
    codes = classes.codes
    if tuple(report.classes) != codes or set(report.training_prevalence) != set(codes):
        raise ValueError(f"its classes are not {', '.join(codes)}")
    if tuple(report.decisions.thresholds) != codes:
        raise ValueError(f"decisions.thresholds: its classes are not {', '.join(codes)}")
    if len(report.calibration.offsets) != len(codes):
        raise ValueError(f"calibration.offsets: {len(report.calibration.offsets)} for {len(codes)} classes")
    return report

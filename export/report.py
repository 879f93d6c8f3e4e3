"""A run's report.json for the model file and card: complete, of this checkpoint and of these settings."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from dermrw.config import Config
from dermrw.decisions.refusal import PHOTOGRAPH
from dermrw.diagnoses import Classes
from dermrw.errors import UserError
from dermrw.evaluation.evaluate import evaluate
from dermrw.files import open_regular
from dermrw.inference.model_file import first_fault
from dermrw.reports.report_schema import DefinedReport, Report

AnyReport = TypeVar("AnyReport", bound=Report)


def require_reported(run: Path, report: DefinedReport, state: Mapping[str, Any]) -> None:
    """Checks that a run's report is of the checkpoint that was loaded.

    Raises:
        UserError: a training has replaced it in the meantime.
    """
    if report.checkpoint_sha256 != state["sha256"]:
        raise UserError(f"{run / 'best.pt'} was replaced during the export: repeat it when no training runs there")


def report_of(run: Path, config: Config, classes: Classes, overrides: Sequence[str]) -> DefinedReport:
    """The run's report; a run that was not evaluated since its last training is evaluated first.

    Raises:
        UserError: no epoch has ended, or the run's config was changed since it was evaluated.
    """
    best = run / "best.pt"
    if not best.is_file():
        raise UserError(f"{run} has no best.pt yet: train it to the end of an epoch first")
    try:
        with open_regular(run / "report.json") as file:
            report = parsed_report(file.read(), classes)
        fits = report.checkpoint_sha256 == hashlib.sha256(best.read_bytes()).hexdigest()
        why = "The run was trained further after its evaluation"
    except OSError:
        fits, why = False, "The run has no complete report yet"
    except ValueError as error:
        fits, why = False, f"The run has no complete report yet ({error})"
    if not fits:
        print(f"{why}. Evaluating it now:", flush=True)
        try:
            report = parsed_report(json.dumps(evaluate(run, overrides)).encode(), classes)
        except ValueError as error:
            raise UserError(
                f"{run} can't be exported, because its report is not complete ({error}): train it for more epochs"
            ) from None
    if config.data.refuse is not None and PHOTOGRAPH not in report.decisions.limits:
        raise UserError(
            f"{run} was evaluated without data.refuse, so it has no detector of such pictures: evaluate it with "
            f"`dermrw eval {run} data.refuse=FOLDER`, or leave data.refuse out"
        )
    settings = {
        "data.size": (config.data.size, report.size),
        "model.backbone": (config.model.backbone, report.backbone),
        "objective": (config.objective.title, report.objective),
    }
    for key, (in_config, in_report) in settings.items():
        if in_config != in_report:
            raise UserError(
                f"{run / 'config.yaml'} has {key} {in_config}, but report.json was made with {in_report}: undo the "
                f"change, or evaluate again with `make eval RUN={run}`"
            )
    return report


def read_report(folder: Path, classes: Classes) -> DefinedReport:
    """The report of an average of several runs, from its folder.

    Raises:
        UserError: it can't be read.
    """
    path = folder / "report.json"
    try:
        with open_regular(path) as file:
            return parsed_report(file.read(), classes)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read ({error}): export the average again") from None


def official_reports(run: Path, own: DefinedReport, classes: Classes) -> list[DefinedReport]:
    """The reports on ISIC 2018's official sets, if `eval` wrote any with the checkpoint and the views of `own`."""
    reports = []
    for path in sorted(run.glob("report_isic2018_*.json")):
        try:
            report = parsed_report(path.read_bytes(), classes)
        except (OSError, ValueError):
            continue  # written by another version
        if (report.checkpoint_sha256, report.views) == (own.checkpoint_sha256, own.views):
            reports.append(report)
    return reports


def score_reports(run: Path, digest: str) -> dict[str, Report]:
    """The reports of `dermrw score` in RUN/scores/NAME, by name, of the model file with this SHA-256.

    Reports of another file are named on the terminal and left out.

    Raises:
        UserError: a report can't be read.
    """
    reports = {}
    for path in sorted((run / "scores").glob("*/report.json")):
        try:
            report = _validated(path.read_bytes(), Report)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} can't be read ({error}): score the images again") from None
        if report.external is None or report.external.model_sha256 != digest:
            print(f"{path} is of another model file and does not enter the card: score the images again", flush=True)
        else:
            reports[path.parent.name] = report
    return reports


def _validated(text: bytes, schema: type[AnyReport]) -> AnyReport:
    """The report in a JSON text; a ValueError, with a short reason, if it does not have the schema."""
    try:
        return schema.model_validate_json(text)
    except ValidationError as error:
        raise ValueError(first_fault(error)) from None


def parsed_report(text: bytes, classes: Classes) -> DefinedReport:
    """The report in a JSON text; a ValueError, with a short reason, if it is not complete."""
    report = _validated(text, DefinedReport)
    codes = classes.codes
    if tuple(report.classes) != codes or set(report.training_prevalence) != set(codes):
        raise ValueError(f"its classes are not {', '.join(codes)}")
    if tuple(report.decisions.thresholds) != codes:
        raise ValueError(f"decisions.thresholds: its classes are not {', '.join(codes)}")
    if report.decisions.triage_prevalence is not None and set(report.decisions.triage_prevalence) != set(codes):
        raise ValueError(f"decisions.triage_prevalence: its classes are not {', '.join(codes)}")
    if len(report.calibration.offsets) != len(codes):
        raise ValueError(f"calibration.offsets: {len(report.calibration.offsets)} for {len(codes)} classes")
    return report

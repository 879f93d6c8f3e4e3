"""MODEL_CARD.md, from a run's report (Mitchell et al., Model Cards for Model Reporting, FAT* 2019)."""

from dermrw.model_file import ModelInfo
from export.report import Report

LIMITS = """\
- Research only. It is not a medical device, and no diagnosis may rest on it.
- It names one of its classes for **any** picture, a photograph of a cat included: it can't say that a picture isn't a
  dermoscopic image, or shows a disease that it was not taught.
{data}
- Its probabilities hold for the prevalence that they are asked for, as far as each disease looks the same everywhere.
"""
HAM10000 = """\
- HAM10000 comes from two centres (Vienna and Queensland) and holds almost only light skin. On other clinics' images,
  devices and skin types such models lose accuracy; by how much this one loses was not measured.
- The melanomas and carcinomas of the data were confirmed by histology, many nevi by follow-up or consensus: the labels
  are not equally sure."""
DRAWINGS = """\
- It has learned from drawings alone and has not seen one picture of skin: what it says of a dermoscopic image means
  nothing."""


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _range(ends: tuple[float | None, float | None]) -> str:
    low, high = ends
    return "–" if low is None or high is None else f"{100 * low:.1f}–{100 * high:.1f}"


def model_card(report: Report, info: ModelInfo, file_digest: str) -> str:
    """The card's text.

    Args:
        report: of the run.
        info: the model file's metadata.
        file_digest: SHA-256 of the model file.
    """
    rows = [
        f"| {code} | {name} | {row.images} | {row.lesions} | {_percent(row.recall)} "
        f"({_range(row.recall_interval_95)}) | {'–' if row.auc is None else format(row.auc, '.3f')} |"
        for (code, row), name in zip(report.classes.items(), info.names, strict=True)
    ]
    low, high = report.interval_95
    error = report.calibration_error
    lines = [
        f"# Model card: {info.name}",
        "",
        *([f"> **Not a result.** {info.warning}", ""] if info.warning else []),
        f"A classifier of dermoscopic images into {len(info.codes)} diagnoses, made by dermrw {info.version} "
        f"on {info.created}.",
        "",
        "| | |",
        "|---|---|",
        f"| file | `model.onnx`, SHA-256 `{file_digest}` |",
        f"| checkpoint | SHA-256 `{info.digest}` |",
        f"| network | {info.backbone}, {info.size} × {info.size} pixels, {info.origin} |",
        f"| objective | {info.objective} |",
        f"| training | {report.training_images:,} images, {report.epochs} epochs, the best on validation: "
        f"epoch {report.epoch} |",
        f"| in | uint8 `[N, H, W, 3]` RGB, {info.resize} |",
        f"| out | probabilities `[N, {len(info.codes)}]` for equal prevalence; a class activation map; an embedding |",
        f"| several images of a lesion | their {info.lesion_rule} mean |".replace("mean mean", "mean"),
        f"| licence | {info.licence} |",
        "",
        "## How good it is",
        "",
        f"Balanced accuracy **{_percent(report.balanced_accuracy)}** (95 % interval {_percent(low)} to "
        f"{_percent(high)}) on {report.scored_on}: {report.images:,} images of {report.lesions:,} lesions, "
        "none of which it was trained or selected on. Intervals: "
        f"{report.interval}.",
        "",
        "| class | diagnosis | images | lesions | recall (95 % interval) | AUC |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        f"Calibration error (top label, {error.binning}): "
        f"{_percent(error.equal_prevalence.top_label_ece)} at equal prevalence, "
        f"{_percent(error.training_prevalence.top_label_ece)} at the training data's.",
        "",
        "The same figures by sex, age, site and way of confirmation are in the run's `report.html`."
        if report.groups is not None
        else "",
        "",
        "## What it is not for",
        "",
        LIMITS.format(data=HAM10000 if info.warning is None else DRAWINGS),
    ]
    return "\n".join(lines).rstrip() + "\n"

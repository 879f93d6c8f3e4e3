"""The figures of a report as text, for the terminal."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dermrw.diagnoses import HAM_CLASSES, Classes
from dermrw.formatting import counted, number, percent
from dermrw.reports.report_schema import External, Report

MOST_NAMES = 5  # images named in a sentence
SKIN_TONE = (
    "Skin tone is estimated from the colour of the skin around the lesion by its individual typology angle: very light "
    "above 55°, light above 41°, intermediate above 28°, tan above 10°, brown above −30°, dark below. It is an "
    "estimate from an uncalibrated picture: light and camera change it, and an underexposed picture of light skin "
    "can count as dark."
)
# tests/tools/skin_tone.py measures it
FAIR_SKIN = (
    "HAM10000 is almost all fair skin: of its 10,015 images, 93 % are very light or light by this estimate, and 0.3 % "
    "are brown or dark."
)


def print_report(report: Report, classes: Classes = HAM_CLASSES) -> None:
    """Prints the figures as a table, and for a user's own images the comparison with the model's card."""
    names = dict(zip(classes.codes, classes.names, strict=True))
    console = Console(width=None if Console().is_terminal else 110)
    unit = report_unit(report)
    grouped = unit != "images"  # otherwise each image counts as its own
    counts = {"images": "images", "lesions": unit} if grouped else {"images": "images"}
    table = Table(title=escape(f"{report.run} on {report.scored_on}"), caption_justify="left")
    for heading in ("class", *counts.values(), "recall", "95 % interval", "AUC", "average precision"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for code, row in report.classes.items():
        table.add_row(
            escape(f"{code}  {names[code]}" if names.get(code, code) != code else code),
            *[str(getattr(row, key)) for key in counts],
            percent(row.recall),
            interval_text(row.recall_interval_95),
            number(row.auc),
            number(row.average_precision),
        )
    if report.classes:
        console.print(table)
        console.print(
            f"[bold]Balanced accuracy {percent(report.balanced_accuracy)}[/] (95 % interval "
            f"{interval_text(report.interval_95)}; before calibration {percent(report.as_trained.balanced_accuracy)})"
        )
    if report.validation:
        console.print(
            f"On the {report.validation.images:,} validation images, which chose the epoch, before calibration: "
            f"{percent(report.validation.balanced_accuracy_as_trained)} "
            f"({interval_text(report.validation.interval_95)})"
        )
    if report.external:
        _print_external(console, report, report.external)
    if report.decisions.no_triage and not any("no triage" in note for note in report.notes or ()):
        console.print(f"There is no triage: {report.decisions.no_triage}.", markup=False, highlight=False)
    for note in report.notes or ():
        console.print(note, markup=False, highlight=False)


def report_unit(report: Report) -> str:
    """Returns the unit of resampling: lesions, patients or groups; images if each image counts as its own."""
    if report.external:
        return report.external.unit
    # reports of dermrw before 27 November 2026 have no unit: those of HAM10000 have groups
    return report.unit or ("lesions" if report.groups is not None else "images")


def _print_external(console: Console, report: Report, external: External) -> None:
    if report.malignant:
        low, high = (number(end) for end in report.malignant.auc_interval_95)
        at = f", probabilities summed at {report.malignant.summed_at}" if report.malignant.summed_at else ""
        rest = "benign" if external.binary else "the rest"
        if report.malignant.auc is not None:  # else a note says why
            console.print(f"Malignant against {rest}: AUC {number(report.malignant.auc)} ({low} to {high}){at}")
    table = Table(title="Next to the model's card")
    for heading in ("figure", "here", "95 % interval", "card", "95 % interval"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    for row in external.card:
        table.add_row(
            row.figure, percent(row.here), interval_text(row.interval_95), percent(row.card),
            interval_text(row.card_interval_95),
        )  # fmt: skip
    if external.card:
        console.print(table)
    sentences = [*left_out_sentences(external), *external.notes, *(r.sentence for r in external.card if r.sentence)]
    for sentence in sentences:
        console.print(sentence, markup=False, highlight=False)


def interval_text(ends: tuple[float | None, float | None]) -> str:
    """Returns an interval of shares, such as `70.1 % to 86.6 %`; – where it is undefined."""
    return "–" if ends[0] is None else f"{percent(ends[0])} to {percent(ends[1])}"


def left_out_sentences(external: External) -> list[str]:
    """Returns sentences on the images that are not scored, on overlap with the training images, and on resampling."""
    left, sentences = external.left_out, []
    for names, problem in ((left.missing, ("has no file", "have no file")), (left.unreadable, ("can't be read",) * 2)):
        if names:
            listed = ", ".join(names[:MOST_NAMES]) + (", …" if len(names) > MOST_NAMES else "")
            sentences.append(
                f"Not scored: {counted(len(names), 'image that ' + problem[0], 'images that ' + problem[1])}: {listed}."
            )
    if left.labels:
        listed = ", ".join(f"{label} ({n:,})" for label, n in left.labels.items())
        images = counted(sum(left.labels.values()), "image whose label is", "images whose labels are")
        sentences.append(f"Not scored: {images} left out: {listed}.")
    if not external.overlap_checked:
        sentences.append(
            "Overlap with the training images was not checked, because the model file does not list them. Figures on "
            "images that the model was trained on are too good."
        )
    elif left.training_images:
        known = counted(
            left.training_images,
            "image that is, or looks like a copy of, an image",
            "images that are, or look like copies of, images",
        )
        more = f", and {left.same_group:,} more of the same {external.unit}" if left.same_group else ""
        sentences.append(f"Not scored: {known} that the model was trained, selected or calibrated on{more}.")
    else:
        sentences.append("No image matches one that the model was trained, selected or calibrated on.")
    if external.unit == "images":
        sentences.append(
            "Intervals resample single images, because the images have no groups: they are too narrow if several "
            "images show the same subject."
        )
    return sentences

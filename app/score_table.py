"""The model's score on many uploaded images and a table of their labels. Nothing is written to the disk.

The figures are those of `dermrw score`. Its packages are imported when the first table is uploaded.
"""

import unicodedata
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gradio_client.utils import strip_invalid_filename_characters

from dermrw.errors import UserError, first_of
from dermrw.formatting import number
from dermrw.images.formats import IMAGE_SUFFIXES
from dermrw.inference.image_rows import ImageRow

from .engine import Engine, Picture
from .render import SPACE, TEMPLATES, evaluation_set
from .words import MOST_LISTED, listed

if TYPE_CHECKING:
    from dermrw.labelled.labelled_images import LabelledImages
    from dermrw.reports.report_schema import Report
    from dermrw.scoring.labels import Truth

TABLE_SUFFIXES = (".csv", ".tsv", ".tab", ".txt", ".xls", ".xlsx", ".ods")  # spreadsheets get an error with the fix
MAX_TABLE_BYTES = 4_000_000
MAX_CELLS = 1_000_000  # a table of a few megabytes could otherwise expand to gigabytes
NUMBERS = ("0", "1", "0.0", "1.0", "true", "false", "yes", "no")
Interval = tuple[float | None, float | None]


class LabelTable(NamedTuple):
    """An uploaded table, in memory, with the score of the last images."""

    name: str
    content: bytes  # compressed
    error: str = ""  # if it was not received
    scored: tuple[tuple[str, ...], str] = ((), "")  # paths of the images, and the score as HTML


def is_table(path: str) -> bool:
    """Returns whether an upload is a table, by its name: every other file is taken for an image."""
    return Path(path).suffix.casefold() in TABLE_SUFFIXES


def take_table(picture: Picture) -> LabelTable:
    """Returns an uploaded table; its error if it is too large."""
    if len(picture.content) > MAX_TABLE_BYTES:
        message = f"{picture.name} is larger than {MAX_TABLE_BYTES // 10**6} MB: keep only the rows of these images"
        return LabelTable(picture.name, b"", message)
    return LabelTable(picture.name, zlib.compress(picture.content))


def score_box(engine: Engine, tables: Sequence[LabelTable], images: Sequence[ImageRow]) -> str:
    """Returns the score of the images as HTML, or the mistake in the table.

    Args:
        engine: the model.
        tables: that were uploaded: one, unless the user made a mistake.
        images: the results, with the names of the files as their ids.
    """
    try:
        if len(tables) > 1:
            raise UserError(f"there is more than one table, {first_of([t.name for t in tables])}: remove all but one")
        if tables[0].error:
            raise UserError(tables[0].error)
        return _score(engine, tables[0], images)
    except UserError as error:
        message = " ".join(str(error).split())
    except ImportError as error:
        message = f"the score needs the package {error.name}, which this demo lacks: install app/requirements.txt again"
    if not message.startswith(tuple(table.name for table in tables)):
        message = message[:1].upper() + message[1:]
    return TEMPLATES.get_template("score.html.jinja").render(error=message)


class Uploads:
    """Finds the uploaded image of each text in a table, by the names of the files."""

    def __init__(self, table: str, names: Sequence[str]) -> None:
        self._table, self._names = table, names
        self._by_name: dict[str, list[int]] = {}
        self._by_stem: dict[str, list[int]] = {}
        for i, name in enumerate(names):
            self._by_name.setdefault(_key(name), []).append(i)
            self._by_stem.setdefault(_key(_stem(name)), []).append(i)

    def find(self, texts: Sequence[str]) -> list[str]:
        """Returns the number of the upload of each text, or an empty text.

        Raises:
            UserError: two uploads fit one text, or two texts one upload.
        """
        text_of: dict[int, str] = {}
        numbers = []
        for text in texts:
            name = text.replace("\\", "/").rpartition("/")[2]
            fitting = self._by_name.get(_key(name)) or self._by_stem.get(_key(_stem(name)), [])
            if len(fitting) > 1:
                names = " and ".join(self._names[i] for i in fitting[:2])
                raise UserError(f"two uploads, {names}, fit the image {text} of {self._table}: remove or rename one")
            if fitting and text_of.setdefault(fitting[0], text) != text:
                both = f"{text_of[fitting[0]]} and {text}"
                raise UserError(
                    f"{both} in {self._table} both fit the upload {self._names[fitting[0]]}: rename the file"
                )
            numbers.append(str(fitting[0]) if fitting else "")
        if not any(numbers):
            raise UserError(
                f"none of the uploaded images is in {self._table}: its first image is {texts[0]}, and the first upload "
                f"is {self._names[0]}"
            )
        return numbers


def _key(name: str) -> str:
    """A name as Gradio stores it, since it removes some characters; upper and lower case are the same."""
    return unicodedata.normalize("NFC", strip_invalid_filename_characters(name)).casefold()


def _stem(name: str) -> str:
    path = Path(name)
    return path.stem if path.suffix.casefold() in IMAGE_SUFFIXES else name


def _score(engine: Engine, table: LabelTable, images: Sequence[ImageRow]) -> str:
    """Returns the score as HTML.

    Raises:
        UserError: the table is not one of these images, or no image can be scored.
    """
    from dermrw.labelled.labelled_images import read_uploaded_table
    from dermrw.scoring.labels import class_names
    from dermrw.scoring.score import score_rows

    info = engine.info
    if all(image.error for image in images):
        raise UserError(f"{table.name} has labels, but there is no image that can be read: add the images")
    find = Uploads(table.name, [image.image_id for image in images]).find
    names = class_names(info).keys()
    labelled = read_uploaded_table(zlib.decompress(table.content), table.name, find, names, MAX_CELLS)
    all_rows = labelled.table
    labelled = labelled._replace(table=all_rows[all_rows["path"] != ""].reset_index(drop=True))
    truth = _truth(engine, table.name, labelled)
    numbers = labelled.table["path"].astype(int).tolist()
    chosen = zip(labelled.table["image_id"], numbers, truth.targets, strict=True)
    rows = [images[i]._replace(image_id=name) for name, i, target in chosen if target]
    if all(row.error for row in rows):
        raise UserError(f"none of the images that have a label in {table.name} can be read")
    report = score_rows(engine.classifier, labelled, truth, rows, None, table.name, all_rows).report
    without_row = [image.image_id for i, image in enumerate(images) if i not in set(numbers)]
    return _render(engine, table.name, report, without_row, len(all_rows) - len(numbers))


def _truth(engine: Engine, name: str, labelled: "LabelledImages") -> "Truth":
    """The classes of the images. Labels that are no class of the model are left out and counted.

    Raises:
        UserError: no label is a class of the model.
    """
    from dermrw.published import fold
    from dermrw.scoring.labels import BENIGN_LABEL, LEFT_OUT, MALIGNANT_LABEL, class_names, find_truth

    info, labels, published = engine.info, labelled.table["label"].tolist(), labelled.published
    counts = Counter(filter(None, labels))
    if not counts:
        raise UserError(f"{name} has no label for these images: fill in the column label")
    own = class_names(info).keys()
    binary = {MALIGNANT_LABEL, BENIGN_LABEL} - own
    known = {*own, *binary, *(published.codes if published else ())}
    unknown = [label for label, _ in counts.most_common() if fold(label) not in known]
    if len(unknown) == len(counts):
        if published is None and all(fold(label) in NUMBERS for label in unknown):
            raise UserError(
                f"the labels in {name} are {listed(unknown)}: write the names of classes instead of numbers"
            )
        raise UserError(
            f"no label in {name} is a class of the model: the labels are {listed(unknown)}, and the classes are "
            f"{listed(info.codes)}"
        )
    used = {fold(label) for label in counts} - set(map(fold, unknown))
    if published is None and used - binary:  # next to classes, malignant and benign are no class of the model
        unknown += [label for label in counts if fold(label) in binary]
        used -= binary
    if used & binary and len(set(info.malignant or ())) < 2:
        raise UserError(f"{name} must have classes of the model as labels, such as {info.codes[0]}, not {labels[0]}")
    return find_truth(labels, info, {fold(label): LEFT_OUT for label in unknown}, published=published)


def _render(engine: Engine, name: str, report: "Report", without_row: Sequence[str], absent: int) -> str:
    """The score as HTML.

    Args:
        engine: the model.
        name: of the table.
        report: of the images.
        without_row: names of the uploads that the table lacks.
        absent: number of the images in the table that were not uploaded.
    """
    from dermrw.reports.report_text import left_out_sentences

    external, info, words = report.external, engine.info, engine.words
    assert external is not None
    sentences = left_out_sentences(external)
    if without_row:
        count = len(without_row)
        uploads = "1 upload has" if count == 1 else f"{count} uploads have"
        sentences.insert(0, f"Not scored: {uploads} no row in {name}: {listed(without_row)}.")
    if absent:
        were = "image {} was" if absent == 1 else "images {} were"
        sentences.append(f"{absent:,} {were.format(f'in {name}')} not uploaded.")
    sentences += [f"{note[:1].upper()}{note[1:].rstrip('.')}." for note in external.notes]
    present = [(code, row) for code, row in report.classes.items() if row.images]
    names = dict(zip(info.codes, info.names, strict=True))
    classes = [
        {
            "name": names[code], "images": row.images, "recall": _share(row.recall),
            "recall_interval": _interval(row.recall_interval_95), "auc": number(row.auc),
            "auc_interval": _interval(row.auc_interval_95, number),
        }
        for code, row in present
    ]  # fmt: skip
    return TEMPLATES.get_template("score.html.jinja").render(
        error="",
        name=name,
        images=report.images,
        groups=f"{report.lesions:,} {external.unit}" if external.unit != "images" else "",
        binary=external.binary,
        figures=_figures(report),
        worse=[row.sentence for row in external.card if row.sentence],
        compared=bool(external.card),
        triage=info.triage,
        card=evaluation_set(info),
        classes=classes[:MOST_LISTED],
        other_classes=classes[MOST_LISTED:],
        absent_classes=[] if external.binary else [names[c] for c, row in report.classes.items() if not row.images],
        sentences=sentences,
        listed=listed,
        words=words,
    )


def _figures(report: "Report") -> list[dict[str, Any]]:
    """The rows of the table: figures on these images, next to those of the model's card where it has them."""
    assert report.external is not None
    cards = {row.figure: row for row in report.external.card}
    decided = report.decided
    triage, sets = decided.triage, decided.sets
    here: list[tuple[str, float | None, Interval]] = []
    if not report.external.binary:
        here.append(("Balanced accuracy", report.balanced_accuracy, report.interval_95))
    for name, part in (
        ("Triage sensitivity", triage.sensitivity if triage else None),
        ("Triage specificity", triage.specificity if triage else None),
        ("Coverage of the prediction sets", sets.coverage if sets else None),
        ("Refused in error" if "Refused in error" in cards else "Refused", decided.refused),
    ):
        if part is not None:
            here.append((name, part.share, part.interval_95))
    rows = [
        {
            "name": name, "here": _share(value), "interval": _interval(interval),
            "card": _share(cards[name].card) if name in cards else "",
            "card_interval": _interval(cards[name].card_interval_95) if name in cards else "",
            "worse": name in cards and cards[name].worse,
        }
        for name, value, interval in here
    ]  # fmt: skip
    areas: list[tuple[str, float | None, Interval]] = []
    if report.mean_auc is not None:
        areas.append(("AUC, mean over the classes", report.mean_auc, (None, None)))
    if report.malignant:
        areas.append((f"AUC, {'malignant against benign' if report.external.binary else 'malignant against the rest'}",
                      report.malignant.auc, report.malignant.auc_interval_95))  # fmt: skip
    at = 0 if report.external.binary else 1
    rows[at:at] = [
        {
            "name": name, "here": number(value), "interval": _interval(ends, number),
            "card": "", "card_interval": "", "worse": False,
        }
        for name, value, ends in areas
    ]  # fmt: skip
    return rows


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}{SPACE}%"


def _interval(ends: Interval, form: Any = _share) -> str:
    return "" if ends[0] is None or ends[1] is None else f"{form(ends[0])} to {form(ends[1])}"

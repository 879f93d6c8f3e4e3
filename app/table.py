"""Many images of different lesions: a table that grows, and a CSV file that is never written to the server's disk."""

import base64
import importlib.util
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from PIL import Image

from dermrw.errors import UserError
from dermrw.files import csv_text
from dermrw.inference.image_rows import DECISION_COLUMNS, ImageRow, decision_cells
from dermrw.inference.lesion import Lesion, combine_explanations
from dermrw.inference.messages import adapted
from dermrw.inference.verdict import Verdict

from .decision import DECISIONS, NOT_RULED_OUT, REFER, REFUSED, decision_of
from .engine import MAX_IMAGES, Engine, Picture, plain_name
from .presets import OWN
from .region import THUMBNAIL, data_uri, jpeg
from .render import TEMPLATES, now, percent, prevalence_phrase, score_of_100, shares_in_words
from .score_table import LabelTable, is_table, score_box, take_table
from .words import MOST_IN_CELL, MOST_LISTED, listed

WAITING = '<p class="lead" role="status">Computing the score …</p>'
REDRAW_SECONDS = 1.0
CAN_HASH = importlib.util.find_spec("imagehash") is not None  # without it there is no score either
Shares = npt.NDArray[np.float64] | None  # [C] of a prevalence; None: equal
# a formula's first character at the start of the text, or after any character that may separate cells
FORMULA = re.compile(r"((?:^|[;,\t\r\n])[\s'\"]*)([=+\-@＝＋－＠])")


class Row(NamedTuple):
    """The result for one image, or the error."""

    name: str
    lesion: Lesion | None  # without its pictures
    error: str
    notes: tuple[str, ...] = ()  # on how the image was read
    image: ImageRow | None = None  # for the score, also of a refused image
    thumbnail: bytes = b""  # JPEG, of what the model saw

    def at(self, shares: Shares) -> tuple[npt.NDArray[np.float64] | None, str]:
        """Returns the probabilities `[C]` at this prevalence, or None with the reason why there are none."""
        if self.lesion is None:
            return None, self.error
        if self.lesion.verdict.refused:
            return None, self.lesion.verdict.refused
        try:
            return self.lesion.at(shares), ""
        except UserError as error:
            return None, str(error)


Upload = Row | LabelTable


def classify_many(
    engine: Engine, paths: Sequence[str], take: Callable[[str], Picture], drop: Callable[[str], None],
    touch: Callable[[str], None], prevalence: str, shares: Shares, rows: dict[str, Upload],
    superseded: Callable[[], bool] = lambda: False,
) -> Iterator[str]:  # fmt: skip
    """Yields the table of these uploads as HTML, repeatedly while it grows. Each upload is deleted when it is read.

    With a table of labels among the uploads, the score is added at the end.

    Args:
        engine: the model.
        paths: of the uploads.
        take: returns an upload's content and removes it.
        drop: removes an upload.
        touch: postpones the sweeping of an upload.
        prevalence: the selected option, for the caption.
        shares: its share of each diagnosis `[C]`; None for equal prevalence.
        rows: earlier results, and tables, by path; new ones are added.
        superseded: whether the page has called again. Then nothing more is classified, and the uploads are kept for the
            next call.
    """
    last_drawn = 0.0
    paths_of_images = [path for path in paths if not is_table(path)]
    paths_of_tables = [path for path in paths if is_table(path)]
    left_out = max(0, len(paths_of_images) - MAX_IMAGES)
    used = paths_of_images[:MAX_IMAGES]
    try:
        for path in paths_of_tables:
            if path not in rows:
                rows[path] = _label_table(path, take)
        for path in used:
            if superseded():
                return
            if path not in rows:
                rows[path] = _distinct(_row(engine, path, take), rows)
                if time.monotonic() - last_drawn > REDRAW_SECONDS:
                    done = [row for p in used if isinstance(row := rows.get(p), Row)]
                    for waiting in used[len(done) :]:
                        touch(waiting)
                    yield _table(engine, done, len(used), left_out, prevalence, shares)
                    last_drawn = time.monotonic()
        done = [row for p in used if isinstance(row := rows[p], Row)]
        known = _known_score(used, paths_of_tables, rows)
        if paths_of_tables and not known:
            yield _table(engine, done, len(used), left_out, prevalence, shares, WAITING)
            known = _new_score(engine, used, paths_of_tables, rows)
        yield _table(engine, done, len(used), left_out, prevalence, shares, known) if paths else ""
    finally:  # also if the page was closed in the meantime
        for path in paths if not superseded() else ():
            drop(path)


def _label_table(path: str, take: Callable[[str], Picture]) -> LabelTable:
    try:
        return take_table(take(path))
    except UserError as error:
        return LabelTable(plain_name(path), b"", str(error))


def _known_score(used: Sequence[str], tables: Sequence[str], rows: dict[str, Upload]) -> str:
    """The score of these images as HTML, if it was computed for another prevalence; it is the same for each."""
    first = rows[tables[0]] if len(tables) == 1 else None
    return first.scored[1] if isinstance(first, LabelTable) and first.scored[0] == tuple(used) else ""


def _new_score(engine: Engine, used: Sequence[str], tables: Sequence[str], rows: dict[str, Upload]) -> str:
    """The score of these images as HTML, which is kept with the table."""
    uploaded = [table for path in tables if isinstance(table := rows[path], LabelTable)]
    images = [row.image for path in used if isinstance(row := rows[path], Row) and row.image]
    html = score_box(engine, uploaded, images)
    if len(uploaded) == 1:
        rows[tables[0]] = uploaded[0]._replace(scored=(tuple(used), html))
    return html


def _row(engine: Engine, path: str, take: Callable[[str], Picture]) -> Row:
    name = plain_name(path)
    try:
        # now, since the picture is not kept: the score leaves out training images by their hashes
        explanation = engine.explain(take(path), CAN_HASH and engine.classifier.lists_known_images)
        lesion = combine_explanations([explanation], engine.info)._replace(pictures=())
        probabilities = tuple(explanation.probabilities.astype(np.float64).tolist())
        image = ImageRow(name, probabilities, explanation.verdict, explanation.notes, hashes=explanation.hashes)
        small = jpeg(Image.fromarray(explanation.pixels), THUMBNAIL, 75)
        return Row(name, lesion, "", explanation.notes, image, small)
    except UserError as error:
        unreadable = ImageRow(name, (), Verdict(None, (), None), error=str(error))
        return Row(name, None, str(error), (), unreadable)


def _distinct(row: Row, earlier: dict[str, Upload]) -> Row:
    """Returns the row with a number after its name if an earlier image has the same name, and a note that says so.

    Folders of several patients often hold files of one name. For the score, the image keeps its name.
    """
    same = sum(
        isinstance(other, Row) and other.image is not None and other.image.image_id == row.name
        for other in earlier.values()
    )
    if not same:
        return row
    note = f"{same + 1} of the images have this name: this is number {same + 1}, in the order in which they were added"
    return row._replace(name=f"{row.name} ({same + 1})", notes=(*row.notes, note))


def _table(
    engine: Engine, rows: list[Row], total: int, left_out: int, prevalence: str, shares: Shares, score: str = ""
) -> str:
    info = engine.info
    done = len(rows) == total
    shown = [_cells(engine, row, shares, place, done) for place, row in enumerate(rows)]
    return TEMPLATES.get_template("table.html.jinja").render(
        rows=shown, total=total, done=done, left_out=left_out, limit=MAX_IMAGES,
        prevalence=prevalence_phrase(prevalence, shares, info),
        referral=f"{100 * info.triage.threshold:.2f}" if info.triage else "",
        own_shares=shares_in_words(shares, info) if prevalence == OWN else "",
        csv=base64.b64encode(_csv(engine, rows, prevalence, shares)).decode() if done else "",
        info=info, digest=engine.classifier.digest, now=now(),
        words=engine.words, score=Markup(score),
        decisions=DECISIONS if info.triage else (REFUSED,), classes=list(zip(info.codes, info.names, strict=True)),
        referred=sum(row["decision"] is REFER for row in shown),
        not_ruled_out=sum(row["decision"] is NOT_RULED_OUT for row in shown),
        refused=sum(bool(row["fault"]) for row in shown),
    )  # fmt: skip


def _cells(engine: Engine, row: Row, shares: Shares, place: int, done: bool) -> dict[str, Any]:
    """Returns the row for the template: the name with either a fault or the result; thumbnails when all are `done`."""
    info = engine.info
    probabilities, fault = row.at(shares)
    cells: dict[str, Any] = {
        "name": row.name,
        "notes": row.notes,
        "place": place,
        "thumb": data_uri(row.thumbnail) if done else "",
    }
    if row.lesion is None or probabilities is None:
        return cells | {
            "fault": adapted(fault, info), "decision": REFUSED, "rank": DECISIONS.index(REFUSED), "share": 0, "set": [],
            "differential": "",
        }  # fmt: skip
    name_of = dict(zip(info.codes, info.names, strict=True))
    verdict, best = row.lesion.verdict, int(np.argmax(probabilities))
    decision = decision_of(verdict)
    rank = float(DECISIONS.index(decision)) if decision in DECISIONS else 0.0
    score = verdict.malignancy_score
    if score is not None:
        rank += (100 - score) / 101  # below 1: within a decision, the most suspicious image is the first
    most = MOST_LISTED if len(info.codes) <= MOST_LISTED else MOST_IN_CELL
    return cells | {
        "fault": "",
        "decision": decision,
        "rank": f"{rank:.6f}",
        "score": score_of_100(score, info),
        "share": f"{float(probabilities[best]):.4f}",
        "set": list(verdict.classes),
        "not_ruled_out": listed([name_of[code] for code in verdict.not_ruled_out], most),
        "differential": listed([name_of[code] for code in verdict.classes], most),
        "most_probable": f"{info.names[best]}, {percent(float(probabilities[best]))}",
    }


def _csv(engine: Engine, rows: list[Row], prevalence: str, shares: Shares) -> bytes:
    """Returns a CSV file with a row for each image: the columns of both files of `dermrw predict`."""
    if shares is not None and prevalence != "training":  # in the form that `dermrw predict --prevalence` accepts
        prevalence = ",".join(f"{code}={share:.6g}" for code, share in zip(engine.info.codes, shares, strict=True))
    table = [["image", *engine.info.columns, *DECISION_COLUMNS, "prevalence", "model_sha256"]]
    for row in rows:
        probabilities, fault = row.at(shares)
        if row.lesion is None or probabilities is None:
            values, decisions = [""] * len(engine.info.codes), [""] * (len(DECISION_COLUMNS) - 1)
        else:
            verdict = row.lesion.verdict
            values = [repr(p) for p in probabilities.tolist()]
            decisions = decision_cells(verdict)[1:]
        table.append(
            [
                _cell(row.name),
                *values,
                _cell(adapted(fault, engine.info)),
                *decisions,
                prevalence,
                engine.classifier.digest,
            ]
        )
    return csv_text(table, "\r\n", quote_all=True).encode("utf-8-sig")  # Excel needs the mark to read UTF-8


def _cell(text: str) -> str:
    """Returns the text with each start of a formula quoted, so that no spreadsheet evaluates a file's name."""
    return FORMULA.sub(r"\1'\2", text)

"""Many images of different lesions: a table that grows, and a CSV that never touches the server's disk."""

import base64
import csv
import io
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from app.engine import Engine, Picture, plain_name
from app.words import TEMPLATES, in_words, percent
from dermrw.errors import UserError
from dermrw.lesion import Lesion, together

MOST_IMAGES = 500
REDRAWN_SECONDS = 1.0
FORMULA = re.compile(r"((?:^|[;,\t\r\n])[\s'\"]*)([=+\-@＝＋－＠])")  # after each sign that divides cells somewhere


class Row(NamedTuple):
    """One image, or what is wrong with it."""

    name: str
    lesion: Lesion | None
    probabilities: npt.NDArray[np.float64] | None  # [C], at the chosen prevalence
    fault: str


def classify_many(
    engine: Engine, paths: Sequence[str], take: Callable[[str], Picture], drop: Callable[[str], None], prevalence: str,
    stated: npt.NDArray[np.float64] | None,
) -> Iterator[str]:  # fmt: skip
    """The page's table of these uploads, drawn again as it grows; each is off the disk once it is read.

    Args:
        engine: the model.
        paths: of the uploads.
        take: gives an upload's content and removes it.
        drop: removes one.
        prevalence: what was chosen, for the caption.
        stated: its shares `[C]`; None for equal prevalence.
    """
    rows: list[Row] = []
    drawn = 0.0
    left_out = max(0, len(paths) - MOST_IMAGES)
    try:
        for path in paths[:MOST_IMAGES]:
            rows.append(_row(engine, path, take, stated))
            if time.monotonic() - drawn > REDRAWN_SECONDS:
                yield _table(engine, rows, len(paths) - left_out, left_out, prevalence)
                drawn = time.monotonic()
        yield _table(engine, rows, len(rows), left_out, prevalence) if rows else ""
    finally:  # also where the page was closed meanwhile
        for path in paths:
            drop(path)


def _row(engine: Engine, path: str, take: Callable[[str], Picture], stated: npt.NDArray[np.float64] | None) -> Row:
    name = plain_name(path)
    try:
        lesion = together([engine.explain(take(path))], engine.info)
        return Row(name, lesion, None if lesion.verdict.refused else lesion.at(stated), "")
    except UserError as error:
        return Row(name, None, None, str(error))


def _table(engine: Engine, rows: list[Row], total: int, left_out: int, prevalence: str) -> str:
    info = engine.info
    name_of = dict(zip(info.codes, info.names, strict=True))
    shown = []
    for row in rows:
        said = row.lesion.verdict if row.lesion else None
        best = int(np.argmax(row.probabilities)) if row.probabilities is not None else 0
        shown.append(
            {
                "name": row.name,
                "fault": row.fault or (said.refused if said else ""),
                "triage": said.triage if said else "",
                "left": ", ".join(name_of[code] for code in said.not_ruled_out) if said else "",
                "members": ", ".join(name_of[code] for code in said.classes) if said else "",
                "first": f"{info.names[best]}, {percent(float(row.probabilities[best]))}"
                if row.probabilities is not None else "",
            }
        )  # fmt: skip
    done = len(rows) == total
    return TEMPLATES.get_template("table.html.jinja").render(
        rows=shown, total=total, done=done, left_out=left_out, prevalence=in_words(prevalence),
        csv=base64.b64encode(_csv(engine, rows, prevalence)).decode() if done else "",
        referred=sum(row["triage"] == "refer" for row in shown), refused=sum(bool(row["fault"]) for row in shown),
    )  # fmt: skip


def _csv(engine: Engine, rows: list[Row], prevalence: str) -> bytes:
    """A row an image: probabilities as `dermrw predict` writes them, then refusal, set and triage."""
    text = io.StringIO()
    writer: Any = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerow(
        ["image", *engine.info.columns, "refused", "set", "triage", "not_ruled_out", "prevalence", "model_sha256"]
    )
    for row in rows:
        said = row.lesion.verdict if row.lesion else None
        values = [""] * len(engine.info.codes) if row.probabilities is None else map(repr, row.probabilities.tolist())
        reason = row.fault or (said.refused if said else "") or ""
        decided = [" ".join(said.classes), said.triage, " ".join(said.not_ruled_out)] if said else ["", "", ""]
        writer.writerow([_cell(row.name), *values, _cell(reason), *decided, prevalence, engine.classifier.digest])
    return text.getvalue().encode("utf-8-sig")  # the mark tells Excel that it is UTF-8


def _cell(text: str) -> str:
    """A cell that no spreadsheet takes for a formula, whatever a file was called and whatever it divides a line by."""
    return FORMULA.sub(r"\1'\2", text)

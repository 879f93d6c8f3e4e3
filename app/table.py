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

from dermrw.errors import UserError
from dermrw.inference.lesion import Lesion, combine_explanations

from .engine import Engine, Picture, plain_name
from .render import TEMPLATES, in_words, now, percent

MOST_IMAGES = 500
REDRAWN_SECONDS = 1.0
Shares = npt.NDArray[np.float64] | None  # [C] of a prevalence; None: equal
FORMULA = re.compile(r"((?:^|[;,\t\r\n])[\s'\"]*)([=+\-@＝＋－＠])")  # after each sign that divides cells somewhere


class Row(NamedTuple):
    """One image, or what is wrong with it."""

    name: str
    lesion: Lesion | None  # without its pictures
    fault: str

    def at(self, stated: Shares) -> tuple[npt.NDArray[np.float64] | None, str]:
        """Probabilities `[C]` at this prevalence, or None and why there are none."""
        if self.lesion is None or self.lesion.verdict.refused:
            return None, self.fault or (self.lesion.verdict.refused or "" if self.lesion else "")
        try:
            return self.lesion.at(stated), ""
        except UserError as error:
            return None, str(error)


def classify_many(
    engine: Engine, paths: Sequence[str], take: Callable[[str], Picture], drop: Callable[[str], None],
    touch: Callable[[str], None], prevalence: str, stated: Shares, rows: dict[str, Row],
) -> Iterator[str]:  # fmt: skip
    """The page's table of these uploads, drawn again as it grows; each is off the disk once it is read.

    Args:
        engine: the model.
        paths: of the uploads.
        take: gives an upload's content and removes it.
        drop: removes one.
        touch: keeps one from being swept.
        prevalence: what was chosen, for the caption.
        stated: its shares `[C]`; None for equal prevalence.
        rows: what was said of some of them before, by path; what is said now is put in.
    """
    drawn = 0.0
    left_out = max(0, len(paths) - MOST_IMAGES)
    kept = paths[:MOST_IMAGES]
    try:
        for path in kept:
            if path not in rows:
                rows[path] = _row(engine, path, take)
                if time.monotonic() - drawn > REDRAWN_SECONDS:
                    done = [rows[one] for one in kept if one in rows]
                    for one in kept[len(done) :]:
                        touch(one)
                    yield _table(engine, done, len(kept), left_out, prevalence, stated)
                    drawn = time.monotonic()
        yield _table(engine, [rows[path] for path in kept], len(kept), left_out, prevalence, stated) if kept else ""
    finally:  # also where the page was closed meanwhile
        for path in paths:
            drop(path)


def _row(engine: Engine, path: str, take: Callable[[str], Picture]) -> Row:
    name = plain_name(path)
    try:
        return Row(name, combine_explanations([engine.explain(take(path))], engine.info)._replace(pictures=()), "")
    except UserError as error:
        return Row(name, None, str(error))


def _table(engine: Engine, rows: list[Row], total: int, left_out: int, prevalence: str, stated: Shares) -> str:
    info = engine.info
    name_of = dict(zip(info.codes, info.names, strict=True))
    shown = []
    for row in rows:
        probabilities, why = row.at(stated)
        said = row.lesion.verdict if row.lesion and probabilities is not None else None
        best = int(np.argmax(probabilities)) if probabilities is not None else 0
        shown.append(
            {
                "name": row.name,
                "fault": why,
                "triage": said.triage if said else "",
                "left": ", ".join(name_of[code] for code in said.not_ruled_out) if said else "",
                "members": ", ".join(name_of[code] for code in said.classes) if said else "",
                "first": f"{info.names[best]}, {percent(float(probabilities[best]))}"
                if probabilities is not None else "",
            }
        )  # fmt: skip
    done = len(rows) == total
    return TEMPLATES.get_template("table.html.jinja").render(
        rows=shown, total=total, done=done, left_out=left_out, prevalence=in_words(prevalence, stated, info),
        csv=base64.b64encode(_csv(engine, rows, prevalence, stated)).decode() if done else "",
        info=info, digest=engine.classifier.digest, now=now(),
        referred=sum(row["triage"] == "refer" for row in shown), refused=sum(bool(row["fault"]) for row in shown),
    )  # fmt: skip


def _csv(engine: Engine, rows: list[Row], prevalence: str, stated: Shares) -> bytes:
    """A row an image: probabilities as `dermrw predict` writes them, then refusal, set and triage."""
    if stated is not None and prevalence != "training":  # as `--prevalence` takes it
        prevalence = ",".join(f"{code}={share:.6g}" for code, share in zip(engine.info.codes, stated, strict=True))
    text = io.StringIO()
    writer: Any = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerow(
        ["image", *engine.info.columns, "refused", "set", "triage", "not_ruled_out", "prevalence", "model_sha256"]
    )
    for row in rows:
        probabilities, reason = row.at(stated)
        said = row.lesion.verdict if row.lesion and probabilities is not None else None
        values = [""] * len(engine.info.codes) if probabilities is None else map(repr, probabilities.tolist())
        decided = [" ".join(said.classes), said.triage, " ".join(said.not_ruled_out)] if said else ["", "", ""]
        writer.writerow([_cell(row.name), *values, _cell(reason), *decided, prevalence, engine.classifier.digest])
    return text.getvalue().encode("utf-8-sig")  # the mark tells Excel that it is UTF-8


def _cell(text: str) -> str:
    """A cell that no spreadsheet takes for a formula, whatever a file was called and whatever it divides a line by."""
    return FORMULA.sub(r"\1'\2", text)

"""What the page says: HTML from an answer, by templates that escape all that they are given."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, FileSystemLoader
from PIL import Image

from dermrw.diagnoses import ABOUT, MALIGNANT
from dermrw.errors import UserError
from dermrw.images.preprocess import read_image
from dermrw.inference.case_index import Case
from dermrw.inference.lesion import Lesion
from dermrw.inference.model_file import ModelInfo

from .engine import Engine
from .heatmap import SIDE, data_uri, overlay

TEMPLATES = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
CASE_SIDE = 200  # pixels, of a labelled case on the page
SPACE = "\N{NO-BREAK SPACE}"


def percent(value: float) -> str:
    """0.123 -> 12 %; what rounds to nothing or to all is said to be a little more or less."""
    if value < 0.005:
        return f"<{SPACE}1{SPACE}%"
    return f">{SPACE}99{SPACE}%" if value > 0.995 else f"{100 * value:.0f}{SPACE}%"


def now() -> str:
    """2026-11-22 08:25+00:00, for the head of a printed answer."""
    return datetime.now().astimezone().isoformat(" ", "minutes")


def doubt(probabilities: npt.NDArray[np.floating], names: tuple[str, ...], inside: Sequence[bool]) -> tuple[str, str]:
    """How sure the model is, in a headline and a sentence; never a diagnosis.

    Args:
        probabilities: `[C]`, as they are shown.
        names: of the diagnoses, `[C]`.
        inside: which of them the prediction set holds, `[C]`.
    """
    first, *others = np.argsort(-probabilities)
    second = next((c for c in others if inside[c]), others[0])
    p, q = float(probabilities[first]), float(probabilities[second])
    if not inside[first]:
        return "No clear answer", (
            f"{names[first]} has most, {percent(p)}, and is not among these: each diagnosis has a threshold of its "
            "own, which is the same at every prevalence."
        )
    if p < 0.5:
        return "No clear answer", f"No diagnosis has half of the probability; {names[first]} has most, {percent(p)}."
    if p < 0.8:
        return f"Some likeness to {names[first]}", f"{percent(p)}, with much doubt: {names[second]} has {percent(q)}."
    return f"Looks most like {names[first]}", f"It has {percent(p)} of the model’s probability."


def listed(names: list[str]) -> str:
    """`a`, `a or b`, `a, b or c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def example(case: Case, info: ModelInfo) -> dict[str, str]:
    """A labelled case for the page; without its picture where that is no longer on the disk."""
    try:
        image = read_image(case.path)
        image.thumbnail((CASE_SIDE, CASE_SIDE))
        picture = data_uri(image)
    except UserError:
        picture = ""
    name = dict(zip(info.codes, info.names, strict=True)).get(case.code, case.code)
    return {"id": case.image_id, "name": name, "picture": picture}


def in_words(prevalence: str, stated: npt.NDArray[np.float64] | None, info: ModelInfo) -> str:
    """How the page calls a choice of prevalence; the clinic's own with its shares `[C]`, so that it can be checked."""
    known = {"equal": "at equal prevalence", "training": "at the training data’s prevalence"}
    if prevalence in known or stated is None:
        return known[prevalence]
    shares = ", ".join(f"{name} {100 * share:.3g}{SPACE}%" for name, share in zip(info.names, stated, strict=True))
    return f"at your clinic’s prevalence ({shares})"


def answer(
    lesion: Lesion, names: Sequence[str], engine: Engine, prevalence: str, stated: npt.NDArray[np.float64] | None
) -> str:
    """The page's answer to the pictures of a lesion: the doubt before the class, and of refused ones the reason alone.

    Args:
        lesion: what the pictures say together.
        names: of the pictures' files.
        engine: the model, and the labelled cases.
        prevalence: what was chosen: `equal`, `training` or anything else for the clinic's own.
        stated: its shares `[C]`; None for equal prevalence.

    Raises:
        UserError: the stated prevalence has no share for any diagnosis in question.
    """
    said, info = lesion.verdict, engine.info
    refused = [(n, p.verdict.refused) for n, p in zip(names, lesion.pictures, strict=True) if p.verdict.refused]
    if said.refused:
        return TEMPLATES.get_template("refused.html.jinja").render(
            reason=said.refused, refused=refused, info=info, digest=engine.classifier.digest,
            now=now(),
        )  # fmt: skip
    probabilities = lesion.at(stated)
    name_of = dict(zip(info.codes, info.names, strict=True))
    headline, sentence = doubt(probabilities, info.names, [code in said.classes for code in info.codes])
    order = np.argsort(-probabilities, kind="stable")
    rows = [
        {
            "name": info.names[c],
            "inside": info.codes[c] in said.classes,
            "malignant": info.codes[c] in MALIGNANT,
            "width": f"{100 * probabilities[c]:.1f}",
            "percent": percent(float(probabilities[c])),
            "about": ABOUT[info.codes[c]],
        }
        for c in order
    ]
    pictures = [
        {
            "name": name,
            "shown": data_uri(Image.fromarray(one.pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)),
            "map": data_uri(overlay(one.pixels, one.activation_map[order[0]])),
        }
        for name, one in zip(names, lesion.pictures, strict=True)
        if not one.verdict.refused
    ]
    return TEMPLATES.get_template("answer.html.jinja").render(
        triage=said.triage,
        rule=info.triage,
        tested=info.score.scored_on.replace("the run's own test split", "test images that it never saw"),
        members=listed([name_of[code] for code in said.classes]),
        count=len(said.classes),
        left=listed([name_of[code] for code in said.not_ruled_out] or [""]),
        coverage=percent(info.coverage),
        covered=info.covered,
        share=percent,
        headline=headline,
        sentence=sentence,
        rows=rows,
        together=percent(float(sum(probabilities[info.codes.index(code)] for code in MALIGNANT))),
        prevalence=in_words(prevalence, stated, info),
        alone=[n for n, p in zip(names, lesion.pictures, strict=True) if p.verdict.refer]
        if len(lesion.accepted) > 1
        else [],
        shifted=stated is not None,
        pictures=pictures,
        refused=refused,
        cases=[example(case, info) for case in engine.cases(lesion)],
        info=info,
        digest=engine.classifier.digest,
        now=now(),
        side=SIDE,
        size=info.size,
    )


def fault(message: str, name: str = "", title: str = "This can’t be classified") -> str:
    """The page's answer to what can't be read; a message that begins with the file's name keeps it as it is."""
    begins = bool(name) and message.startswith(name)
    template = TEMPLATES.from_string(
        '<section class="answer fault" role="alert"><h2>{{ title }}</h2><p>{{ message }}</p></section>'
    )
    return template.render(title=title, message=message if begins else message[:1].upper() + message[1:])


def fixed(part: str, engine: Engine) -> str:
    """One of the page's fixed parts: `head`, `waiting`, `judging`, `texts` or `foot`."""
    about = [(name, ABOUT[code]) for code, name in zip(engine.info.codes, engine.info.names, strict=True)]
    return TEMPLATES.get_template("page.html.jinja").render(
        part=part, info=engine.info, digest=engine.classifier.digest, about=about
    )

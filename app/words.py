"""What the page says: HTML from an answer, by templates that escape all that they are given."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, FileSystemLoader
from PIL import Image

from app.heatmap import SIDE, data_uri, overlay
from dermrw.diagnoses import MALIGNANT
from dermrw.errors import UserError
from dermrw.model_file import ModelInfo
from dermrw.neighbours import Case
from dermrw.pixels import read_image
from dermrw.predict import Explanation

TEMPLATES = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
CASE_SIDE = 200  # pixels, of a labelled case on the page
SPACE = "\N{NO-BREAK SPACE}"


def percent(value: float) -> str:
    """0.123 -> 12 %; what rounds to nothing or to all is said to be a little more or less."""
    if value < 0.005:
        return f"< 1{SPACE}%"
    return f"> 99{SPACE}%" if value > 0.995 else f"{100 * value:.0f}{SPACE}%"


def doubt(probabilities: npt.NDArray[np.float32], names: tuple[str, ...]) -> tuple[str, str]:
    """How sure the model is, in a headline and a sentence; never a diagnosis."""
    first, second = np.argsort(-probabilities)[:2]
    p, q = float(probabilities[first]), float(probabilities[second])
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


def answer(seen: Explanation, info: ModelInfo, cases: Sequence[Case] = ()) -> str:
    """The page's answer to one picture: the doubt before the class, and of a refused picture the reason alone."""
    said = seen.verdict
    if said.refused:
        return TEMPLATES.get_template("refused.html.jinja").render(reason=said.refused)
    name_of = dict(zip(info.codes, info.names, strict=True))
    headline, sentence = doubt(seen.probabilities, info.names)
    order = np.argsort(-seen.probabilities)
    rows = [
        {
            "name": info.names[c],
            "inside": info.codes[c] in said.classes,
            "malignant": info.codes[c] in MALIGNANT,
            "width": f"{100 * seen.probabilities[c]:.1f}",
            "percent": percent(float(seen.probabilities[c])),
        }
        for c in order
    ]
    shown = Image.fromarray(seen.pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return TEMPLATES.get_template("answer.html.jinja").render(
        triage=said.triage,
        rule=info.triage,
        score=info.score,
        members=listed([name_of[code] for code in said.classes]),
        count=len(said.classes),
        left=listed([name_of[code] for code in said.classes if code in MALIGNANT] or [""]),
        coverage=percent(info.coverage),
        share=percent,
        headline=headline,
        sentence=sentence,
        rows=rows,
        together=percent(float(sum(seen.probabilities[info.codes.index(code)] for code in MALIGNANT))),
        shown=data_uri(shown),
        map=data_uri(overlay(seen.pixels, seen.activation_map[order[0]])),
        cases=[example(case, info) for case in cases],
        side=SIDE,
        size=info.size,
    )


def fault(message: str, name: str = "") -> str:
    """The page's answer to what can't be read; a message that begins with the file's name keeps it as it is."""
    begins = bool(name) and message.startswith(name)
    template = TEMPLATES.from_string(
        '<section class="answer fault" role="alert"><h2>This can’t be classified</h2><p>{{ message }}</p></section>'
    )
    return template.render(message=message if begins else message[:1].upper() + message[1:])


def fixed(part: str, info: ModelInfo, digest: str) -> str:
    """One of the page's fixed parts: `head`, `texts` or `foot`."""
    return TEMPLATES.get_template("page.html.jinja").render(part=part, info=info, digest=digest)

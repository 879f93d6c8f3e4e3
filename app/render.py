"""HTML of the page's results. The templates escape all values that they are given."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, FileSystemLoader
from PIL import Image, ImageDraw

from dermrw.diagnoses import ABOUT
from dermrw.errors import UserError
from dermrw.images.preprocess import read_image
from dermrw.inference.case_index import Case
from dermrw.inference.classifier import Explanation
from dermrw.inference.lesion import Lesion, adjust_prevalence
from dermrw.inference.model_file import ModelInfo, Proportion
from dermrw.inference.verdict import malignant_share

from .engine import Engine
from .heatmap import SIDE, colour_scale, data_uri, overlay
from .words import HAM10000, MOST_LISTED, Words, listed

TEMPLATES = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
CASE_SIDE = 200  # pixels, of a labelled case on the page
FRAME_COLOURS = ("#ffffff", "#d81b60", "#ffffff")  # of the lines around the part that is used, from the outside inwards
SPACE = "\N{NO-BREAK SPACE}"


def percent(value: float) -> str:
    """Formats a share: 0.123 -> `12 %`. Shares that would round to 0 or 100 % become `< 1 %` and `> 99 %`."""
    if value < 0.005:
        return f"<{SPACE}1{SPACE}%"
    return f">{SPACE}99{SPACE}%" if value > 0.995 else f"{100 * value:.0f}{SPACE}%"


def interval(proportion: Proportion) -> str:
    """Formats a share with its confidence interval: `97 % (95 % CI 91 % to 99 %)`."""
    low, high = map(percent, proportion.interval_95)
    return f"{percent(proportion.share)} (95{SPACE}% CI {low} to {high})"


def now() -> str:
    """Returns the local time, such as `2026-11-22 08:25+00:00`, for the head of a printed result."""
    return datetime.now().astimezone().isoformat(" ", "minutes")


def evaluation_set(info: ModelInfo) -> str:
    """Returns the name of the images that the model's figures were measured on."""
    return info.score.scored_on.replace("the run's own test split", "held-out test images")


def certainty(
    probabilities: npt.NDArray[np.floating], names: Sequence[str], inside: Sequence[bool], words: Words = HAM10000
) -> tuple[str, str]:
    """Returns how certain the result is, as a headline and a sentence; never a diagnosis.

    Args:
        probabilities: at the selected prevalence, `[C]`.
        names: of the classes, `[C]`.
        inside: whether each class is in the prediction set, `[C]`.
        words: of the model.
    """
    first, *others = np.argsort(-probabilities)
    second = next((c for c in others if inside[c]), others[0])
    p, q = float(probabilities[first]), float(probabilities[second])
    if not inside[first]:  # only at another prevalence: at equal prevalence the first is always in the set
        return "No clear result", (
            f"At the selected prevalence, {names[first]} is the most probable {words.category} ({percent(p)}), but it "
            f"is not in the {words.prediction_set}, which always uses equal prevalence."
        )
    if p < 0.5:
        return (
            "No clear result",
            f"No {words.category} clearly stands out. The most probable is {names[first]} ({percent(p)}).",
        )
    if p < 0.8:
        return f"Uncertain: most similar to {names[first]}", (
            f"The most probable {words.category} is {names[first]} ({percent(p)}); an alternative is {names[second]} "
            f"({percent(q)})."
        )
    return f"Most similar to {names[first]}", f"The model gives it a probability of {percent(p)}."


def case_for_page(case: Case, info: ModelInfo) -> dict[str, str]:
    """Returns a labelled case for the template; `picture` is empty if its file can no longer be read."""
    try:
        image = read_image(case.path)
        image.thumbnail((CASE_SIDE, CASE_SIDE))
        picture = data_uri(image)
    except UserError:
        picture = ""
    name = dict(zip(info.codes, info.names, strict=True)).get(case.code, case.code)
    return {"id": case.image_id, "name": name, "picture": picture}


def cut_picture(picture: Explanation) -> str:
    """Returns the whole picture with a frame around the part that is used, as a data URI; empty if nothing was cut."""
    if picture.box is None or picture.thumbnail is None:
        return ""
    height, width = picture.thumbnail.shape[:2]
    across, down = width / picture.size[0], height / picture.size[1]
    left, top, right, bottom = picture.box
    image = Image.fromarray(picture.thumbnail)
    draw = ImageDraw.Draw(image)
    for depth, colour in enumerate(FRAME_COLOURS):
        corners = [round(left * across) + depth, round(top * down) + depth]
        corners += [round(right * across) - 1 - depth, round(bottom * down) - 1 - depth]
        draw.rectangle(corners, outline=colour)
    return data_uri(image)


def prevalence_phrase(prevalence: str, shares: npt.NDArray[np.float64] | None, info: ModelInfo) -> str:
    """Returns the selected prevalence in words; the user's own with its shares `[C]`, for users to check."""
    known = {"equal": "at equal prevalence", "training": f"at {info.prevalence_images}’s prevalence"}
    if prevalence in known or shares is None:
        return known[prevalence]
    stated = [f"{name} {100 * share:.3g}{SPACE}%" for name, share in zip(info.names, shares, strict=True)]
    if info.is_ham10000:
        return f"at your clinic’s prevalence ({', '.join(stated)})"
    return f"at your own prevalence ({listed([stated[c] for c in np.argsort(-shares, kind='stable')])})"


def mapped_class(order: npt.NDArray[np.intp], info: ModelInfo, *, refer: bool) -> int:
    """Returns the class whose heat map is shown: of a referred lesion the most probable malignant one, else the first.

    Args:
        order: the classes, the most probable first `[C]`.
        info: the model's metadata.
        refer: whether triage refers the lesion.
    """
    malignant = (int(c) for c in order if info.malignant and info.malignant[c])
    return next(malignant, int(order[0])) if refer else int(order[0])


def own_result(picture: Explanation, info: ModelInfo, shares: npt.NDArray[np.float64] | None) -> dict[str, str]:
    """Returns the result of one image of several, for the template: first diagnosis, malignant share and triage.

    Args:
        picture: an image that is not refused.
        info: the model's metadata.
        shares: the prevalence `[C]`; None for equal prevalence.
    """
    try:
        p = adjust_prevalence(picture.probabilities, shares)
    except UserError:
        return {"first": "none at this prevalence", "share": "", "malignant": "", "triage": picture.verdict.triage}
    first = int(np.argmax(p))
    return {
        "first": info.names[first],
        "share": percent(float(p[first])),
        "malignant": percent(malignant_share(p, info)),
        "triage": picture.verdict.triage,
    }


def lesion_result(
    lesion: Lesion, names: Sequence[str], engine: Engine, prevalence: str, shares: npt.NDArray[np.float64] | None
) -> str:
    """Returns the page's result for the images of one lesion; only the reasons if all of them are refused.

    Args:
        lesion: the combined result of the images.
        names: of the images' files.
        engine: the model and the labelled cases.
        prevalence: the selected option: `equal`, `training` or `own` (the clinic's).
        shares: its share of each diagnosis `[C]`; None for equal prevalence.

    Raises:
        UserError: the prevalence is 0 for every diagnosis with a probability above 0.
    """
    verdict, info = lesion.verdict, engine.info
    named = list(zip(names, lesion.pictures, strict=True))
    refused = [(name, picture.verdict.refused) for name, picture in named if picture.verdict.refused]
    notes = [(name, note) for name, picture in named for note in picture.notes]
    if verdict.refused:
        return TEMPLATES.get_template("refused.html.jinja").render(
            reason=verdict.refused, refused=refused, notes=notes, info=info, digest=engine.classifier.digest, now=now(),
            words=engine.words,
        )  # fmt: skip
    accepted = [(name, picture) for name, picture in named if not picture.verdict.refused]
    probabilities = lesion.at(shares)
    order = np.argsort(-probabilities, kind="stable")
    name_of = dict(zip(info.codes, info.names, strict=True))
    headline, sentence = certainty(
        probabilities, info.names, [code in verdict.classes for code in info.codes], engine.words
    )
    rows = [
        {
            "name": info.names[c],
            "inside": info.codes[c] in verdict.classes,
            "malignant": bool(info.malignant and info.malignant[c]),
            "width": f"{100 * probabilities[c]:.1f}",
            "percent": percent(float(probabilities[c])),
            "about": ABOUT[info.codes[c]] if info.is_ham10000 else "",
        }
        for c in order
    ]
    phrase = prevalence_phrase(prevalence, shares, info)
    mapped = mapped_class(order, info, refer=verdict.refer is True)
    pictures = [
        {
            "name": name,
            **own_result(picture, info, shares),
            "shown": data_uri(Image.fromarray(picture.pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)),
            "map": data_uri(overlay(picture.pixels, picture.activation_map[mapped])),
            "cut": cut_picture(picture),
        }
        for name, picture in accepted
    ]
    return TEMPLATES.get_template("answer.html.jinja").render(
        triage=verdict.triage,
        rule=info.triage,
        not_ruled_out=listed([name_of[code] for code in verdict.not_ruled_out]),
        differential=listed([name_of[code] for code in verdict.classes]),
        coverage=percent(info.coverage),
        covered=info.covered,
        headline=headline,
        sentence=sentence,
        rows=rows[:MOST_LISTED],
        other_rows=rows[MOST_LISTED:],
        others_sum=percent(float(probabilities[order[MOST_LISTED:]].sum())),
        mapped=info.names[mapped],
        malignant_sum=percent(malignant_share(probabilities, info)),
        prevalence=phrase,
        short_prevalence=phrase.partition(" (")[0],
        pictures=pictures,
        scale=colour_scale(np.stack([picture.pixels for _, picture in accepted])),
        refused=refused,
        notes=notes,
        cases=[case_for_page(case, info) for case in engine.cases(lesion)],
        percent=percent,
        interval=interval,
        evaluation_set=evaluation_set(info),
        info=info,
        digest=engine.classifier.digest,
        now=now(),
        side=SIDE,
        size=info.size,
        words=engine.words,
    )


def error_box(message: str, name: str = "", title: str = "This image cannot be classified") -> str:
    """Returns an error message as HTML; it is capitalised, unless it begins with the file's name."""
    if not (name and message.startswith(name)):
        message = message[:1].upper() + message[1:]
    template = TEMPLATES.from_string(
        '<section class="answer fault" role="alert"><h2>{{ title }}</h2><p>{{ message }}</p></section>'
    )
    return template.render(title=title, message=message)


def fixed_part(part: str, engine: Engine) -> str:
    """Returns a part of the page that no result changes.

    Args:
        part: `head`, `score`, `waiting`, `classifying`, `texts` or `foot`.
        engine: the model.
    """
    info = engine.info
    about = [(name, ABOUT[code] if info.is_ham10000 else "") for code, name in zip(info.codes, info.names, strict=True)]
    return TEMPLATES.get_template("page.html.jinja").render(
        part=part,
        info=info,
        digest=engine.classifier.digest,
        about=about,
        evaluation_set=evaluation_set(info),
        words=engine.words,
        mixed=info.malignant is not None and len(set(info.malignant)) == 2,
    )

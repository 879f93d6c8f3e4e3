"""HTML of the page's results. The templates escape all values that they are given."""

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dermrw.diagnoses import ABOUT
from dermrw.errors import UserError
from dermrw.formatting import decimals
from dermrw.images.preprocess import read_image
from dermrw.inference.case_index import Case
from dermrw.inference.classifier import Explanation
from dermrw.inference.lesion import Lesion, adjust_prevalence
from dermrw.inference.messages import adapted
from dermrw.inference.model_file import ModelInfo, Proportion
from dermrw.inference.verdict import Verdict, malignant_share, triage_score

from .advice import advice
from .decision import DECISIONS, decision_of
from .engine import MAX_BYTES, MAX_IMAGES, MAX_PICTURES, Engine
from .examples import drawn_examples, labelled_examples
from .heatmap import encoded, ramp
from .presets import presets
from .region import data_uri, jpeg, seen_part
from .words import HAM10000, MOST_LISTED, Words, listed

TEMPLATES = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
CASE_SIDE = 200  # pixels, of a labelled case on the page
SPACE = "\N{NO-BREAK SPACE}"
NAMED = 0.1  # probability from which a malignant class is named though it is not in the prediction set


def percent(value: float) -> str:
    """Formats a share: 0.123 -> `12 %`. Shares that would round to 0 or 100 % become `< 1 %` and `> 99 %`."""
    if value < 0.005:
        return f"<{SPACE}1{SPACE}%"
    return f">{SPACE}99{SPACE}%" if value > 0.995 else f"{100 * value:.0f}{SPACE}%"


def compared(share: float, threshold: float) -> tuple[str, str]:
    """Formats a share and the threshold that it is compared with: with decimals if they would read the same."""
    least = decimals(100 * threshold)
    if percent(share) != percent(threshold):
        return percent(share), f"{100 * threshold:.{least}f}{SPACE}%"
    for digits in range(least, least + 6):
        first, second = (f"{100 * value:.{digits}f}{SPACE}%" for value in (share, threshold))
        if first != second:
            break
    return first, second


def score_of_100(score: float | None, info: ModelInfo) -> str:
    """Formats a malignancy score, 0 to 100, with one decimal, or more if it would read like the threshold."""
    if score is None or info.triage is None:
        return ""
    threshold = 100 * info.triage.threshold
    for digits in range(1, 7):
        if f"{score:.{digits}f}" != f"{threshold:.{digits}f}":
            break
    least = 10.0**-digits
    if 0 < score < least / 2:
        return f"<{SPACE}{least:.{digits}f}"
    return f">{SPACE}{100 - least:.{digits}f}" if 100 - least / 2 < score < 100 else f"{score:.{digits}f}"


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


def outside_note(
    probabilities: npt.NDArray[np.floating], names: Sequence[str], inside: Sequence[bool], words: Words = HAM10000
) -> str:
    """Returns a sentence if the most probable class is not in the prediction set; empty if it is.

    At equal prevalence it always is.

    Args:
        probabilities: at the selected prevalence, `[C]`.
        names: of the classes, `[C]`.
        inside: whether each class is in the prediction set, `[C]`.
        words: of the model.
    """
    first = int(np.argmax(probabilities))
    if inside[first]:
        return ""
    return (
        f"At this prevalence, {names[first]} is most probable ({percent(float(probabilities[first]))}), but not in the "
        f"{words.prediction_set}."
    )


def case_for_page(case: Case, info: ModelInfo) -> dict[str, str]:
    """Returns a labelled case for the template; `picture` is empty if its file can no longer be read."""
    try:
        image = read_image(case.path)
        picture = data_uri(jpeg(image, CASE_SIDE, 88))
    except UserError:
        picture = ""
    name = dict(zip(info.codes, info.names, strict=True)).get(case.code, case.code)
    return {"id": case.image_id, "name": name, "picture": picture}


def prevalence_phrase(prevalence: str, shares: npt.NDArray[np.float64] | None, info: ModelInfo) -> str:
    """Returns the selected prevalence in words; `shares` `[C]` are those of the user's own."""
    for preset in presets(info):
        if preset.key == prevalence:
            return preset.phrase
    return presets(info)[0].phrase if shares is None else "at your own prevalence"


def shares_in_words(shares: npt.NDArray[np.float64] | None, info: ModelInfo) -> str:
    """Returns the shares `[C]` of a prevalence in words, for users to check; empty for equal prevalence."""
    if shares is None:
        return ""
    stated = [f"{name} {100 * share:.3g}{SPACE}%" for name, share in zip(info.names, shares, strict=True)]
    return ", ".join(stated) if info.is_ham10000 else listed([stated[c] for c in np.argsort(-shares, kind="stable")])


def mapped_class(order: npt.NDArray[np.intp], info: ModelInfo, verdict: Verdict) -> int:
    """Returns the class whose heat map is shown, one of the prediction set if there is a suitable one in it.

    It is the most probable malignant class if malignancy is suspected or not ruled out, else the most probable class.

    Args:
        order: the classes, the most probable first `[C]`.
        info: the model's metadata.
        verdict: on the lesion.
    """
    ranked = sorted((int(c) for c in order), key=lambda c: info.codes[c] not in verdict.classes)  # the set first
    malignant = (c for c in ranked if info.malignant and info.malignant[c])
    return next(malignant, ranked[0]) if verdict.refer or verdict.not_ruled_out else ranked[0]


def picture_data(
    picture: Explanation, info: ModelInfo, shares: npt.NDArray[np.float64] | None, preview: bytes = b""
) -> dict[str, Any]:
    """Returns one image's own result for the page's script: regions, heat maps, decision and probabilities.

    Args:
        picture: the image's explanation.
        info: the model's metadata.
        shares: the prevalence `[C]`; None for equal prevalence.
        preview: a JPEG of the picture, if the browser can't show the file.
    """
    box = picture.used
    decision = decision_of(picture.verdict)
    data: dict[str, Any] = {
        "size": list(picture.size),
        "cut": list(box),
        "seen": list(seen_part(box, info.crop)),
        "preview": data_uri(preview),
        "decision": decision.key,
        "mark": decision.mark,
        "label": decision.label,
    }
    if picture.verdict.refused:
        return data | {"text": "", "map": None}
    try:
        p = adjust_prevalence(picture.probabilities, shares)
        first = int(np.argmax(p))
        text = f"{info.names[first]} {percent(float(p[first]))}"
    except UserError:
        text = "none at this prevalence"
    return data | {"text": text, "map": encoded(picture.activation_map)}


class Given(NamedTuple):
    """How the page's script asked for a result: it is returned with the result, which could arrive late."""

    call: int = 0
    places: Sequence[int] = ()  # of the pictures among those that were given; default: in their order
    previews: Sequence[bytes] = ()
    left_out: Sequence[tuple[str, str]] = ()  # reason and name of each file without a result
    code: str = ""  # for the page's script, as of `error_box`


PLAINLY = Given()


def lesion_result(
    lesion: Lesion,
    names: Sequence[str],
    engine: Engine,
    prevalence: str,
    shares: npt.NDArray[np.float64] | None,
    given: Given = PLAINLY,
) -> str:
    """Returns the page's result for the images of one lesion; only the reasons if all of them are refused.

    Args:
        lesion: the combined result of the images.
        names: of the images' files.
        engine: the model and the labelled cases.
        prevalence: the key of the selected preset, or `own`.
        shares: its share of each diagnosis `[C]`; None for equal prevalence.
        given: how the page asked.

    Raises:
        UserError: the prevalence is 0 for every diagnosis with a probability above 0.
    """
    verdict, info, words = lesion.verdict, engine.info, engine.words
    named = list(zip(names, lesion.pictures, strict=True))
    refused = [
        (name, adapted(reason, info), advice(reason, info.is_ham10000, words.thing))
        for name, picture in named
        if (reason := picture.verdict.refused)
    ]
    decision = decision_of(verdict)
    places, previews = given.places or range(len(named)), given.previews or [b""] * len(named)
    data: dict[str, Any] = {
        "call": given.call,
        "decision": decision.key,
        "mark": decision.mark,
        "label": decision.label,
        "pictures": [
            {"place": place, "name": name, **picture_data(picture, info, shares, preview)}
            for place, (name, picture), preview in zip(places, named, previews, strict=True)
        ],
    }
    shared = {
        "call": given.call,
        "refused": refused,
        "notes": [(name, note) for name, picture in named for note in picture.notes],
        "decision": decision,
        "info": info,
        "digest": engine.classifier.digest,
        "now": now(),
        "words": words,
        # some reasons begin with the file's name
        "left_out": [
            (name, reason.removeprefix(name) if not name or reason.startswith(name) else f": {reason}")
            for reason, name in given.left_out
        ],
        "code": given.code,
    }
    if verdict.refused:
        data |= {"short": refused[0][1] if len(refused) == 1 else "", "classes": []}
        return TEMPLATES.get_template("refused.html.jinja").render(data=json.dumps(data), **shared)
    accepted = [(name, picture) for name, picture in named if not picture.verdict.refused]
    probabilities = lesion.at(shares)
    order = np.argsort(-probabilities, kind="stable")
    name_of = dict(zip(info.codes, info.names, strict=True))
    inside = [code in verdict.classes for code in info.codes]
    rows = [
        {
            "name": info.names[c],
            "malignant": bool(info.malignant and info.malignant[c]),
            "share": float(probabilities[c]),
            "width": f"{100 * probabilities[c]:.1f}",
            "percent": percent(float(probabilities[c])),
            "about": ABOUT[info.codes[c]] if info.is_ham10000 else "",
            "inside": inside[c],
        }
        for c in order
    ]
    shown = [row for row in rows if row["inside"]][:MOST_LISTED]
    others = [row for row in rows if row not in shown]
    phrase = prevalence_phrase(prevalence, shares, info)
    mapped = mapped_class(order, info, verdict)
    suspected = [f"{row['name']} {row['percent']}" for row in others if row["malignant"] and row["share"] >= NAMED]
    data |= {
        "short": f"{shown[0]['name']} {shown[0]['percent']}",
        # the classes of the heat map, the selected one first
        "classes": [
            {"index": int(c), "name": info.names[c]} for c in [mapped, *(c for c in order.tolist() if c != mapped)]
        ],
    }
    referral = compared(triage_score(lesion.at(None), info), info.triage.threshold) if info.triage else ("", "")
    return TEMPLATES.get_template("answer.html.jinja").render(
        data=json.dumps(data),
        rule=info.triage,
        not_ruled_out=listed([name_of[code] for code in verdict.not_ruled_out]),
        # their names are in the list below, where each is marked
        all_malignant=len(verdict.not_ruled_out) > 1 and len(verdict.not_ruled_out) == sum(info.malignant or ()),
        differential=listed([name_of[code] for code in verdict.classes]),
        coverage=percent(info.coverage),
        covered=info.covered,
        outside=outside_note(probabilities, info.names, inside, words),
        rows=shown,
        other_rows=others,
        suspected=listed(suspected),
        prevalence_shares=shares_in_words(shares, info),
        others_sum=percent(1 - sum(float(row["width"]) for row in shown) / 100),
        malignant_sum=percent(malignant_share(probabilities, info)),
        referral=referral,
        score=[text.removesuffix(f"{SPACE}%") for text in referral],
        mostly=_most_probable_malignant(lesion.at(None), info),
        refit=info.refit,
        equal=shares is None,
        summed_at_training=info.triage_prevalence is not None,
        prevalence=phrase,
        count=len(accepted),
        cases=[case_for_page(case, info) for case in engine.cases(lesion)],
        interval=interval,
        evaluation_set=evaluation_set(info),
        **shared,
    )


def _most_probable_malignant(probabilities: npt.NDArray[np.float64], info: ModelInfo) -> str:
    """Returns the name of the malignant class with the highest share of the malignancy score, from those `[C]`."""
    if not info.malignant or info.triage_shares is None:
        return ""
    joint = np.where(info.malignant, probabilities * info.triage_shares, -1.0)
    return info.names[int(joint.argmax())]


def error_box(message: str, name: str = "", title: str = "Cannot be judged", call: int = 0, code: str = "") -> str:
    """Returns an error message as HTML; it is capitalised, unless it begins with the file's name.

    Args:
        message: a sentence.
        name: of the file.
        title: above it.
        call: number of the call that the message is the answer to.
        code: for the page's script: `gone` if the upload was deleted, so that the script sends it again.
    """
    if not (name and message.startswith(name)):
        message = message[:1].upper() + message[1:]
    template = TEMPLATES.from_string(
        '<section class="answer fault" role="alert" data-call="{{ call }}" data-code="{{ code }}">'
        '<h2 tabindex="-1">{{ title }}</h2><p>{{ message }}</p></section>'
    )
    return template.render(title=title, message=message, call=call, code=code)


def fixed_part(part: str, engine: Engine) -> str:
    """Returns a part of the page that no result changes.

    Args:
        part: `head`, `view`, `result`, `tools`, `prevalence`, `many`, `score`, `texts` or `foot`.
        engine: the model.
    """
    info = engine.info
    about = [(name, ABOUT[code] if info.is_ham10000 else "") for code, name in zip(info.codes, info.names, strict=True)]
    offered = presets(info)
    return TEMPLATES.get_template("page.html.jinja").render(
        part=part,
        info=info,
        digest=engine.classifier.digest,
        about=about,
        evaluation_set=evaluation_set(info),
        words=engine.words,
        mixed=info.malignant is not None and len(set(info.malignant)) == 2,
        presets=offered,
        shares=json.dumps(
            {p.key: [1 / len(about)] * len(about) if p.shares is None else p.shares.tolist() for p in offered}
        ),
        codes=json.dumps(info.codes),
        ramp=json.dumps(ramp()),
        decisions=DECISIONS,
        limit=MAX_PICTURES,
        most_bytes=MAX_BYTES,
        many_limit=MAX_IMAGES,
        examples=(labelled_examples(engine.index) or drawn_examples()) if info.is_ham10000 else [],
    )

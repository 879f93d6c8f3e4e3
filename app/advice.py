"""What to do about a refused image: one sentence for each reason of `dermrw.decisions.refusal`."""

from dermrw.decisions.refusal import NOT_DERMOSCOPIC, RULES

SMALLER = "Use the original file, not a reduced copy."
ADVICE = {
    "brightness": "Take it again with more light.",
    "overexposed": "Take it again with less light, and use the picture itself.",
    "contrast": "Centre the lesion and take it again.",
    "sharpness": "Focus, hold still and take it again.",
    "colour": "Use the colour picture, without a filter.",
    "grain": "Use the original file, or take it again with more light.",
    "colour_grain": "Use the original file, or take it again with more light.",
    "strangeness": "Use a dermoscopic picture of one lesion in the centre. If the marked part is wrong, crop it.",
    "photograph": "Use a dermoscopic picture, not a phone's photograph of the skin.",
}


def advice(reason: str, dermoscopic: bool, thing: str) -> str:
    """Returns what to do about an image that was refused for this reason.

    Args:
        reason: as in `Verdict.refused`.
        dermoscopic: whether the model is for dermoscopic images.
        thing: that an image shows, such as lesion.
    """
    if reason.startswith("it is too small"):
        return SMALLER
    for name, (_, known, _) in RULES.items():
        if reason in (known, NOT_DERMOSCOPIC.get(name)):
            text = ADVICE[name]
            if dermoscopic:
                return text
            return (
                "Use another picture."
                if name == "photograph"
                else text.replace("dermoscopic ", "").replace("lesion", thing)
            )
    return "Use another picture."

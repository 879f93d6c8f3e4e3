"""The words of the page: those of HAM10000's lesions, or those that fit any classes."""

from collections.abc import Sequence
from typing import NamedTuple

from dermrw.inference.model_file import ModelInfo

MOST_LISTED = 10  # classes in a sentence, and rows of a table before the rest is folded
MOST_IN_CELL = 3  # classes in a cell of the table of many images, for models of more than `MOST_LISTED` classes
NO_TRIAGE = "This model has no triage: it gives probabilities and a {}, and no recommendation."


class Words(NamedTuple):
    """The words for the images and classes of a model."""

    ham10000: bool  # whether the classes are HAM10000's
    subject: str  # of which the page takes one: `One lesion`
    thing: str  # that several images show, such as lesion or object
    things: str
    images: str  # such as dermoscopic images
    category: str  # diagnosis or class
    categories: str
    prediction_set: str  # differential or prediction set
    malignant: str  # the malignant classes, in the plural
    tag: str  # at a malignant class
    own_prevalence: str  # title of errors in it
    no_triage: str  # a sentence, if the model has no triage


HAM10000 = Words(
    ham10000=True,
    subject="lesion",
    thing="lesion",
    things="lesions",
    images="dermoscopic images",
    category="diagnosis",
    categories="diagnoses",
    prediction_set="differential",
    malignant="malignant and pre-malignant diagnoses",
    tag="(pre)malignant",
    own_prevalence="Prevalence",
    no_triage="",
)


def words_for(info: ModelInfo) -> Words:
    """Returns the words for a model."""
    no_triage = ""
    if not info.triage:
        reason = f" The reason: {info.no_triage}." if info.no_triage else ""
        no_triage = NO_TRIAGE.format("differential" if info.is_ham10000 else "prediction set") + reason
    if info.is_ham10000:
        return HAM10000._replace(no_triage=no_triage)
    any_image = info.subject == "image"
    return Words(
        ham10000=False,
        subject=info.subject,
        thing="object" if any_image else info.subject,
        things="objects" if any_image else "subjects",
        images="images",
        category="class",
        categories="classes",
        prediction_set="prediction set",
        malignant="malignant classes",
        tag="malignant",
        own_prevalence="Prevalence",
        no_triage=no_triage,
    )


def listed(names: Sequence[str], most: int = MOST_LISTED) -> str:
    """Returns the names with commas, at most `most` of them, and the number of the others."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")

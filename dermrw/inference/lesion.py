"""One answer for several images of one lesion, for the demo and for `dermrw predict --lesions`. No torch in here."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dermrw.decisions.lesion_rule import combine
from dermrw.decisions.prevalence import at_prevalence
from dermrw.errors import UserError
from dermrw.inference.classifier import Explanation
from dermrw.inference.model_file import ModelInfo
from dermrw.inference.verdict import Verdict, decide


class Lesion(NamedTuple):
    """The answer for a lesion and the images that it comes from."""

    pictures: tuple[Explanation, ...]
    probabilities: npt.NDArray[np.float64] | None  # [C], at equal prevalence; None: every image is refused
    verdict: Verdict

    @property
    def accepted(self) -> tuple[Explanation, ...]:
        """The images that are not refused."""
        return tuple(picture for picture in self.pictures if not picture.verdict.refused)

    def at(self, prevalence: npt.NDArray[np.float64] | None) -> npt.NDArray[np.float64]:
        """Probabilities `[C]` at this prevalence `[C]`; None stands for equal prevalence.

        Raises:
            UserError: the prevalence is 0 for every diagnosis that has any probability.
            ValueError: every image is refused.
        """
        if self.probabilities is None:
            raise ValueError("every picture is refused")
        return adjust_prevalence(self.probabilities, prevalence)


def adjust_prevalence(
    probabilities: npt.NDArray[np.floating], prevalence: npt.NDArray[np.float64] | None
) -> npt.NDArray[np.float64]:
    """Probabilities `[C]` at this prevalence `[C]`, from those at equal prevalence `[C]`; None: unchanged.

    Raises:
        UserError: the prevalence is 0 for every diagnosis that has any probability.
    """
    if prevalence is None:
        return np.asarray(probabilities, dtype=np.float64)
    if not probabilities @ prevalence > 0:
        raise UserError("all of the probability is on diagnoses without a share: state shares above 0")
    return at_prevalence(probabilities[None], prevalence)[0]


def combine_images(
    probabilities: npt.NDArray[np.floating], verdicts: Sequence[Verdict], info: ModelInfo
) -> tuple[npt.NDArray[np.float64] | None, Verdict]:
    """Probabilities `[C]` at equal prevalence, and the verdict, of a lesion with N images.

    Refused images are left out. Prediction set, triage and ranking all follow from the combined probabilities. By
    `LESION_RULE`, their malignant share, at the prevalence of triage, is that of the most suspicious image, so that
    triage refers the lesion exactly if it refers one of the images.

    Args:
        probabilities: of the images `[N, C]`, at equal prevalence.
        verdicts: on each image.
        info: the model's metadata.

    Raises:
        ValueError: there is no image.
    """
    if not verdicts:
        raise ValueError("no picture")
    accepted = [i for i, image_verdict in enumerate(verdicts) if not image_verdict.refused]
    if not accepted:
        reason = verdicts[0].refused if len(verdicts) == 1 else f"each of the {len(verdicts)} pictures is refused"
        return None, Verdict(reason, (), None)
    images = np.asarray(probabilities, dtype=np.float64)[accepted]
    combined = combine(images, [0] * len(accepted), malignant=info.malignant, prevalence=info.triage_shares)[0]
    if len(accepted) == 1:
        return combined, verdicts[accepted[0]]
    lesion_verdict = decide(combined, info)
    if lesion_verdict.refer is False and any(verdicts[i].refer for i in accepted):  # rounding, at the threshold
        scores = [score for i in accepted if (score := verdicts[i].malignancy_score) is not None]
        lesion_verdict = lesion_verdict._replace(refer=True, malignancy_score=max(scores, default=None))
    return combined, lesion_verdict


def combine_explanations(pictures: Sequence[Explanation], info: ModelInfo) -> Lesion:
    """The answer for a lesion from one explained image or more.

    Raises:
        ValueError: there is no image.
    """
    probabilities = np.array([picture.probabilities for picture in pictures])
    return Lesion(tuple(pictures), *combine_images(probabilities, [picture.verdict for picture in pictures], info))

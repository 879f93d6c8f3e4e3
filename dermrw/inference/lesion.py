"""One answer from the pictures of one lesion, as `dermrw predict --lesions` gives it. No torch in here."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dermrw.decisions.prevalence import at_prevalence, combine
from dermrw.errors import UserError
from dermrw.inference.classifier import Explanation
from dermrw.inference.model_file import ModelInfo
from dermrw.inference.verdict import Verdict, judged, of_lesion


class Lesion(NamedTuple):
    """What the pictures say together; those that are refused have no say."""

    pictures: tuple[Explanation, ...]
    probabilities: npt.NDArray[np.float64] | None  # [C], for equal prevalence; None: every picture is refused
    verdict: Verdict

    @property
    def accepted(self) -> tuple[Explanation, ...]:
        """The pictures that aren't refused."""
        return tuple(picture for picture in self.pictures if not picture.verdict.refused)

    def at(self, prevalence: npt.NDArray[np.float64] | None) -> npt.NDArray[np.float64]:
        """Probabilities `[C]` for a clinic of this prevalence `[C]`, or, without one, for equal prevalence.

        Raises:
            UserError: every diagnosis in question has no share in the clinic.
            ValueError: every picture is refused.
        """
        if self.probabilities is None:
            raise ValueError("every picture is refused")
        return shifted(self.probabilities, prevalence)


def shifted(
    probabilities: npt.NDArray[np.floating], prevalence: npt.NDArray[np.float64] | None
) -> npt.NDArray[np.float64]:
    """Probabilities `[C]` for equal prevalence, or a clinic's `[C]`, of those for equal prevalence `[C]`.

    Raises:
        UserError: every diagnosis in question has no share in the clinic.
    """
    if prevalence is None:
        return np.asarray(probabilities, dtype=np.float64)
    if not probabilities @ prevalence > 0:
        raise UserError("all of the probability is on diagnoses without a share: state shares above 0")
    return at_prevalence(probabilities[None], prevalence)[0]


def together(pictures: Sequence[Explanation], info: ModelInfo) -> Lesion:
    """One answer from one picture or more.

    Raises:
        ValueError: there is none.
    """
    if not pictures:
        raise ValueError("no picture")
    accepted = [picture for picture in pictures if not picture.verdict.refused]
    if not accepted:
        reason = (
            pictures[0].verdict.refused if len(pictures) == 1 else f"each of the {len(pictures)} pictures is refused"
        )
        return Lesion(tuple(pictures), None, Verdict(reason, (), None))
    each = np.stack([picture.probabilities for picture in accepted]).astype(np.float64)  # [N, C]
    one = combine(each, [0] * len(each), info.lesion_rule)[0]
    return Lesion(tuple(pictures), one, of_lesion(judged(one, info), [picture.verdict for picture in accepted]))

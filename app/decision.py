"""The decision as the page and its printout word it. The API and the CSV file keep the codes of `Verdict.triage`.

An image that triage does not refer, but whose prediction set holds a malignant class, has a decision of its own: it
must not read like reassurance.
"""

from typing import NamedTuple

from dermrw.inference.verdict import Verdict


class Decision(NamedTuple):
    """A decision in words, with a mark, so that its meaning does not depend on colour alone."""

    key: str  # class of the style sheet, and value of the filter
    label: str
    mark: str


REFER = Decision("refer", "Refer", "\N{BLACK UP-POINTING TRIANGLE}")
NOT_RULED_OUT = Decision("open", "Malignancy not ruled out", "\N{BLACK DIAMOND}")
NO_REASON = Decision("none", "No reason to refer seen", "\N{WHITE CIRCLE}")
REFUSED = Decision("refused", "Cannot be judged", "\N{MULTIPLICATION X}")
NO_TRIAGE = Decision("set", "", "")
DECISIONS = (REFER, NOT_RULED_OUT, NO_REASON, REFUSED)


def decision_of(verdict: Verdict) -> Decision:
    """Returns the decision that a verdict stands for; without words if the model has no triage."""
    if verdict.refused:
        return REFUSED
    if verdict.refer is None:
        return NO_TRIAGE
    if verdict.refer:
        return REFER
    return NOT_RULED_OUT if verdict.not_ruled_out else NO_REASON

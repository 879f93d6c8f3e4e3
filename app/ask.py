"""What the page's script sends with the uploads: the prevalence, and the turn and crop of each picture, as JSON."""

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dermrw.decisions.prevalence import parse_prevalence
from dermrw.errors import UserError
from dermrw.inference.model_file import ModelInfo

from .presets import EQUAL, OWN, presets
from .region import Edit

MAX_TEXT = 100_000  # characters
NOT_VALID = "the request is not valid: reload the page"


class PictureAsk(BaseModel):
    """The user's changes to one picture."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    turn: int = Field(0, ge=0, le=3, description="quarter turns clockwise")
    crop: list[int] | None = Field(None, min_length=4, max_length=4, description="left, top, right, bottom, in pixels")
    preview: bool = Field(False, description="whether the browser can't show the file")

    @property
    def edit(self) -> Edit:
        """Turn and crop."""
        return Edit(self.turn, (self.crop[0], self.crop[1], self.crop[2], self.crop[3]) if self.crop else None)


class Ask(BaseModel):
    """A call of the page's script."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    call: int = Field(0, ge=0, le=10**9, description="number of the call; the result states it")
    prevalence: str = Field(EQUAL, description="key of a preset, or the share of each class: mel=0.05,nv=0.8,…")
    pictures: list[PictureAsk] = Field([], max_length=1000, description="in the order of the uploads")

    def picture(self, place: int) -> PictureAsk:
        """Returns the changes to the upload at this place; none if the call does not name it."""
        return self.pictures[place] if place < len(self.pictures) else PictureAsk()

    def shares(self, info: ModelInfo) -> tuple[str, npt.NDArray[np.float64] | None]:
        """Returns the key of the selected preset, or `own`, and the shares `[C]`; None for equal prevalence.

        Raises:
            UserError: a share is missing or not a number, or they do not sum to 1.
        """
        for preset in presets(info):
            if preset.key == self.prevalence:
                return preset.key, preset.shares
        try:
            return OWN, parse_prevalence(self.prevalence, info.codes, info.prevalence)
        except UserError as error:
            raise UserError(str(error).replace("--prevalence", "prevalence")[:300]) from None


def parse(text: object) -> Ask:
    """Returns the call that the script sent; an empty text is one without changes.

    Raises:
        UserError: the text is not such a call. The message does not repeat it.
    """
    if not text:
        return Ask()
    if not isinstance(text, str) or len(text) > MAX_TEXT:
        raise UserError(NOT_VALID)
    try:
        return Ask.model_validate_json(text)
    except (ValidationError, RecursionError):
        raise UserError(NOT_VALID) from None

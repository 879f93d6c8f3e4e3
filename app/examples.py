"""Drawn lesions to try the page with, one for each diagnosis. They are drawings by dermrw, not photographs."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

from dermrw.diagnoses import HAM_CLASSES

from .region import data_uri

FOLDER = Path(__file__).parent / "examples"


class Example(NamedTuple):
    """A drawing."""

    name: str  # of the diagnosis that is drawn
    file: str
    uri: str


@cache
def drawn_examples() -> tuple[Example, ...]:
    """Returns the drawings, in the order of the classes."""
    return tuple(
        Example(name, f"drawn-{code}.jpg", data_uri((FOLDER / f"drawn-{code}.jpg").read_bytes()))
        for code, name in zip(HAM_CLASSES.codes, HAM_CLASSES.names, strict=True)
    )

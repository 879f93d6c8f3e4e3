"""Pictures to try the page with, one for each diagnosis: drawings by dermrw, or labelled cases of the index."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

from dermrw.diagnoses import HAM_CLASSES
from dermrw.errors import UserError
from dermrw.images.preprocess import read_image
from dermrw.inference.case_index import Index

from .region import THUMBNAIL, data_uri, jpeg

FOLDER = Path(__file__).parent / "examples"


class Example(NamedTuple):
    """A picture to try."""

    name: str  # of the diagnosis
    file: str
    uri: str  # of the picture as data: the whole drawing, or a small copy of a case
    address: str = ""  # from which the page fetches a case


@cache
def drawn_examples() -> tuple[Example, ...]:
    """Returns the drawings, in the order of the classes."""
    return tuple(
        Example(name, f"drawn-{code}.jpg", data_uri((FOLDER / f"drawn-{code}.jpg").read_bytes()))
        for code, name in zip(HAM_CLASSES.codes, HAM_CLASSES.names, strict=True)
    )


def labelled_examples(index: Index | None) -> list[Example]:
    """Returns the examples of the index whose files can be read; the page fetches them from `address`."""
    if index is None:
        return []
    names, found = dict(zip(HAM_CLASSES.codes, HAM_CLASSES.names, strict=True)), []
    for place, row in enumerate(index.examples):
        path, code = Path(str(index.paths[row])), str(index.codes[row])
        try:
            uri = data_uri(jpeg(read_image(path), 2 * THUMBNAIL, 85))
        except UserError:
            continue  # the file was moved: the nearest cases are shown without picture, too
        found.append(Example(names.get(code, code), path.name, uri, f"example/{place}"))
    return found

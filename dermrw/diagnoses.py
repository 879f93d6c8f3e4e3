"""The seven diagnoses of HAM10000 and of ISIC 2018 Task 3, in ISIC's column order.

The order of `DIAGNOSES` is the order of the classes everywhere: labels, logits, probabilities, columns.
Source: Tschandl, Rosendahl, Kittler, Sci. Data 5:180161 (2018), table 2.
"""

from typing import NamedTuple


class Diagnosis(NamedTuple):
    """One class: HAM10000's `dx` code, ISIC's column, a name for people, malignant or pre-malignant, colour."""

    dx: str
    column: str
    name: str
    malignant: bool
    colour: str  # the same colour (Okabe-Ito, safe for colour-blind readers) in every figure


DIAGNOSES = (
    Diagnosis("mel", "MEL", "melanoma", True, "#d55e00"),
    Diagnosis("nv", "NV", "melanocytic nevus", False, "#0072b2"),
    Diagnosis("bcc", "BCC", "basal cell carcinoma", True, "#cc79a7"),
    Diagnosis("akiec", "AKIEC", "actinic keratosis / intraepithelial carcinoma", True, "#e69f00"),
    Diagnosis("bkl", "BKL", "seborrheic keratosis / solar lentigo", False, "#009e73"),
    Diagnosis("df", "DF", "dermatofibroma", False, "#56b4e9"),
    Diagnosis("vasc", "VASC", "vascular lesion", False, "#8c564b"),
)
DX = tuple(d.dx for d in DIAGNOSES)
COLUMNS = tuple(d.column for d in DIAGNOSES)
MALIGNANT = frozenset(d.dx for d in DIAGNOSES if d.malignant)  # or pre-malignant
INDEX = {d.dx: i for i, d in enumerate(DIAGNOSES)}


class Classes(NamedTuple):
    """A data set's classes in the order of the labels: codes in split.csv, columns in predictions.csv."""

    codes: tuple[str, ...]
    columns: tuple[str, ...]


HAM_CLASSES = Classes(DX, COLUMNS)

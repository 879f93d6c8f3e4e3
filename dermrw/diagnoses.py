"""The seven diagnoses of HAM10000 and of ISIC 2018 Task 3, in ISIC's column order.

The order of `DIAGNOSES` is the order of the classes everywhere: labels, logits, probabilities, columns.
Source: Tschandl, Rosendahl, Kittler, Sci. Data 5:180161 (2018), table 2.
"""

from typing import NamedTuple


class Diagnosis(NamedTuple):
    """One class: HAM10000's `dx` code, ISIC's column, display name, whether (pre-)malignant, colour."""

    dx: str
    column: str
    name: str
    malignant: bool
    colour: str  # in every figure; Okabe-Ito palette, safe for colour-blind readers


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
ABOUT = {  # one-line description of each class
    "mel": "A malignant tumour of pigment cells. Taken out early it is cured; delay can kill.",
    "nv": "A mole, a harmless growth of pigment cells; by far the commonest of the seven.",
    "bcc": "The commonest skin cancer. It grows slowly, destroys what it grows into and seldom spreads.",
    "akiec": "Sun-damaged skin that can become squamous cell carcinoma, or carcinoma within the epidermis (Bowen).",
    "bkl": "Warty or flat brown growths of ageing and sun-exposed skin, and lichen-planus-like keratosis; harmless.",
    "df": "A firm harmless knot of fibrous tissue, often on the legs.",
    "vasc": "Widened, newly grown or bleeding vessels: angioma, angiokeratoma, pyogenic granuloma, haemorrhage.",
}
BENIGN_LABEL = "benign"  # in split.csv: a benign lesion without a diagnosis, of which only `BENIGN_CLASSES` is known
BENIGN_CLASSES = tuple(i for i, d in enumerate(DIAGNOSES) if not d.malignant)
INDEX = {d.dx: i for i, d in enumerate(DIAGNOSES)}


class Classes(NamedTuple):
    """The classes of a data set in label order."""

    codes: tuple[str, ...]  # in split.csv
    columns: tuple[str, ...]  # in predictions.csv
    names: tuple[str, ...]  # in reports and on the page
    malignant: tuple[bool, ...] | None  # or pre-malignant; None: not stated, so there is no triage


HAM_CLASSES = Classes(DX, COLUMNS, tuple(d.name for d in DIAGNOSES), tuple(d.malignant for d in DIAGNOSES))


def shows_skin(classes: Classes, unit: str) -> bool:
    """Returns whether images show skin: of HAM10000's classes, or split by lesions (`unit`)."""
    return classes.codes == DX or unit == "lesions"

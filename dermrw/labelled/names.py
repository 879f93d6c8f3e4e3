"""The names under which labels of users' and published tables are known as classes. No torch, no pandas."""

from dermrw.diagnoses import DX, Classes
from dermrw.published import fold

# further names of HAM10000's classes, in addition to code, column and display name
SYNONYMS = {
    "mel": ("malignant melanoma", "melanoma in situ"),
    "nv": ("nevus", "naevus", "nevi", "melanocytic naevus", "melanocytic nevi"),
    "bcc": (),
    "akiec": ("ak", "actinic keratosis", "intraepithelial carcinoma", "bowen's disease", "bowen disease"),
    "bkl": (
        "benign keratosis", "benign keratosis like lesions", "seborrheic keratosis", "seborrhoeic keratosis",
        "solar lentigo", "lichen planus like keratosis", "lichenoid keratosis",
    ),
    "df": (),
    "vasc": ("vascular", "vascular lesions"),
}  # fmt: skip


def codes_by_name(classes: Classes) -> dict[str, str]:
    """Returns the code of each folded code, column, display name and synonym."""
    names: dict[str, str] = {}
    if classes.codes == DX:
        names = {name: code for code, synonyms in SYNONYMS.items() for name in synonyms}
    for parts in (classes.names, classes.columns, classes.codes):  # a code overrides a name that another class has
        names |= {fold(name): code for name, code in zip(parts, classes.codes, strict=True)}
    return names

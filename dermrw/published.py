"""The tables of published dermoscopic data sets: how each is recognised and what its labels mean. No torch, no pandas.

Sources: ISIC 2019, 2020 and 2024 challenges (challenge.isic-archive.com), the metadata.csv that the ISIC archive and
isic-cli write, PAD-UFES-20 (Pacheco et al., Data in Brief 32:106221, 2020), PH2 (Mendonça et al., EMBC 2013).
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

MALIGNANT, BENIGN = "malignant", "benign"

Row = Mapping[str, str]  # cells by column name in lower case


class PublishedSet(NamedTuple):
    """A published table. Names of columns are in lower case."""

    name: str
    columns: frozenset[str]  # all of them must be there
    image: str  # the column with the image's id or file name
    groups: tuple[str, ...]  # columns of the patient or lesion, the coarser first
    label: Callable[[Row], str]  # of a row, in the data set's own words; empty if the row has none
    codes: Mapping[str, str]  # HAM10000's code of each folded label, or malignant and benign; others have no class


def fold(label: str) -> str:
    """Returns a label in lower case, with one space for spaces, hyphens, underscores and slashes."""
    return re.sub(r"[\s_/-]+", " ", label).strip().casefold()


def recognise(columns: Iterable[str]) -> PublishedSet | None:
    """Returns the published set whose columns a table has, or None. The case of the names does not matter."""
    names = {column.strip().casefold() for column in columns}
    return next((known for known in PUBLISHED if known.columns <= names), None)


def target(known: PublishedSet, row: Row) -> str:
    """Returns HAM10000's code of a row's label, or malignant or benign; empty if the label has no such class."""
    return known.codes.get(fold(known.label(row)), "")


ARCHIVE_ID = re.compile(r"isic_\d{7}")  # cameras and clinics name no image like this


def file_stem(image_id: str) -> str:
    """Returns an id, which may be a path, without its folders, suffix and the ending `_downsampled`, in lower case."""
    name = image_id.replace("\\", "/").rpartition("/")[2]
    return image_name(re.sub(r"\.[A-Za-z]\w{1,5}$", "", name)).casefold()


def archive_id(image_id: str) -> str | None:
    """Returns the id of the ISIC archive, in lower case, that an image's name is; None for other names.

    HAM10000 and the ISIC challenges have these ids, too.
    """
    stem = file_stem(image_id)
    return stem if ARCHIVE_ID.fullmatch(stem) else None


def image_name(text: str) -> str:
    """Returns the id of an image of ISIC 2019, where some ids have the ending `_downsampled`, or the text itself."""
    return text.removesuffix("_downsampled")


def _one_hot(columns: Sequence[str]) -> Callable[[Row], str]:
    """Returns a function that names the column of the only 1 of a row."""

    def label(row: Row) -> str:
        ones = [column for column in columns if _number(row.get(column, "")) == 1]
        return ones[0] if len(ones) == 1 else ""

    return label


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _binary(column: str) -> Callable[[Row], str]:
    """Returns a function that reads 0 and 1, or benign and malignant, from a column."""
    words = {0.0: BENIGN, 1.0: MALIGNANT}

    def label(row: Row) -> str:
        text = row.get(column, "").strip().casefold()
        number = _number(text)
        return text if number is None else words.get(number, text)

    return label


def _deepest_diagnosis(row: Row) -> str:
    """Returns the most specific diagnosis of an ISIC archive row that has a class, else the most specific one."""
    given = [row.get(f"diagnosis_{level}", "").strip() for level in (5, 4, 3, 2, 1)]
    given = [name for name in given if name]
    known = ARCHIVE.keys() | OTHER_CODES.keys()
    return next((name for name in given if fold(name) in known), given[0] if given else "")


def _ph2_marks(row: Row) -> str:
    """Returns the diagnosis of a row of PH2's spreadsheet, which marks one of three columns with an X."""
    marked = [name for name in ("common nevus", "atypical nevus", "melanoma") if row.get(name, "").strip()]
    return marked[0] if len(marked) == 1 else ""


ISIC_2019 = ("mel", "nv", "bcc", "ak", "bkl", "df", "vasc", "scc", "unk")
BINARY = {MALIGNANT: MALIGNANT, BENIGN: BENIGN}

# The archive's names. HAM10000's own images of intraepithelial carcinoma are "Squamous cell carcinoma, NOS" there, as
# are the invasive carcinomas of other sources: these have no class.
ARCHIVE = {
    "melanoma": "mel", "melanoma, nos": "mel", "melanoma in situ": "mel", "melanoma invasive": "mel",
    "melanoma metastasis": "mel", "nevus": "nv", "blue nevus": "nv", "basal cell carcinoma": "bcc",
    "solar or actinic keratosis": "akiec", "actinic keratosis": "akiec",
    "squamous cell carcinoma in situ": "akiec", "squamous cell carcinoma in situ, bowens disease": "akiec",
    "seborrheic keratosis": "bkl", "solar lentigo": "bkl", "lichen planus like keratosis": "bkl",
    "lichenoid keratosis": "bkl", "pigmented benign keratosis": "bkl", "dermatofibroma": "df",
    "hemangioma": "vasc", "angiokeratoma": "vasc", "pyogenic granuloma": "vasc",
    "benign soft tissue proliferations vascular": "vasc",
}  # fmt: skip

# Classes that HAM10000 lacks and that several tables name differently: one code, and one name for people
OTHER_CODES = dict.fromkeys(
    (
        "scc",
        "squamous cell carcinoma",
        "squamous cell carcinoma, nos",
        "squamous cell carcinoma, invasive",
    ),
    "scc",
)
OTHER_NAMES = {"scc": "squamous cell carcinoma"}

# More specific tables first: the archive's metadata of 2024 has the columns of both.
PUBLISHED = (
    PublishedSet(
        "ISIC 2019", frozenset({"image", *ISIC_2019}), "image", ("lesion_id",), _one_hot(ISIC_2019),
        {name: name for name in ISIC_2019[:7]} | {"ak": "akiec"},
    ),
    PublishedSet(
        "ISIC 2020", frozenset({"image_name", "patient_id", "target"}), "image_name", ("patient_id", "lesion_id"),
        _binary("target"), BINARY,
    ),
    PublishedSet(
        "ISIC 2024", frozenset({"isic_id", "target"}), "isic_id", ("patient_id", "lesion_id"), _binary("target"), BINARY
    ),
    PublishedSet(
        "ISIC 2024", frozenset({"isic_id", "malignant"}), "isic_id", ("patient_id", "lesion_id"), _binary("malignant"),
        BINARY,
    ),
    PublishedSet(
        "ISIC archive", frozenset({"isic_id", "diagnosis_1"}), "isic_id", ("patient_id", "lesion_id"),
        _deepest_diagnosis, ARCHIVE,
    ),
    PublishedSet(
        "PAD-UFES-20", frozenset({"img_id", "diagnostic", "patient_id"}), "img_id", ("patient_id", "lesion_id"),
        lambda row: row.get("diagnostic", ""),
        {"mel": "mel", "nev": "nv", "bcc": "bcc", "ack": "akiec", "sek": "bkl"},
    ),
    PublishedSet(
        "PH2", frozenset({"image name", "common nevus", "atypical nevus", "melanoma"}), "image name", (), _ph2_marks,
        {"common nevus": "nv", "atypical nevus": "nv", "melanoma": "mel"},
    ),
    PublishedSet(
        "PH2", frozenset({"name", "clinical diagnosis"}), "name", (), lambda row: row.get("clinical diagnosis", ""),
        {"0": "nv", "1": "nv", "2": "mel"},
    ),
)  # fmt: skip


# further labels of these sets that are known to be malignant or benign, folded
ALSO_MALIGNANT = {
    *OTHER_CODES, "melanoma metastasis", "merkel cell carcinoma", "cutaneous lymphoma", "kaposi sarcoma", MALIGNANT,
}  # fmt: skip
ALSO_BENIGN = {"verruca", "scar", "cyst", "neurofibroma", "lipoma", "acrochordon", BENIGN}


def states_malignancy(label: str) -> bool | None:
    """Returns whether a label of a published set that has no class of HAM10000 is malignant; None: not known."""
    folded = fold(label)
    return True if folded in ALSO_MALIGNANT else False if folded in ALSO_BENIGN else None


def published_duplicates(pairs: Iterable[tuple[str, str]], images: Iterable[str]) -> set[str]:
    """Returns the images to leave out so that no two of a published list of duplicates remain (ISIC 2020 has one).

    Of each set of images that the pairs connect, the first by name is kept.

    Args:
        pairs: of image ids, such as the rows of `ISIC_2020_Training_Duplicates.csv`.
        images: the ids in the table.
    """
    from scipy.cluster.hierarchy import DisjointSet  # takes long to import, and few need it

    connected: DisjointSet[str] = DisjointSet(images)
    for one, other in pairs:
        if one in connected and other in connected:
            connected.merge(one, other)
    return {image for group in connected.subsets() for image in group - {min(group)}}

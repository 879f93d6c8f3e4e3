"""Published tables are recognised by their columns, and each label has the class that its source states."""

from pathlib import Path

import pytest
from tools.any_model import model_info

from dermrw.csv_table import read_csv_table
from dermrw.diagnoses import DX
from dermrw.labelled.classes import assign_classes
from dermrw.published import ARCHIVE, PUBLISHED, archive_id, image_name, published_duplicates, recognise, target
from dermrw.scoring.labels import find_truth

ONE_HOT = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK\n"
ARCHIVE_HEADER = (
    "isic_id,attribution,copyright_license,age_approx,anatom_site_general,concomitant_biopsy,diagnosis_1,diagnosis_2,"
    "diagnosis_3,diagnosis_4,diagnosis_5,image_type,lesion_id,patient_id,sex\n"
)
VASCULAR = "Benign soft tissue proliferations - Vascular"


def archive(*diagnoses: str) -> str:
    cells = [f'"{name}"' for name in (*diagnoses, *[""] * (5 - len(diagnoses)))]
    return f"ISIC_1,A,CC-0,50,torso,False,{','.join(cells)},dermoscopic,IL_1,IP_1,male\n"


CASES = [
    ("ISIC 2019", ONE_HOT + "ISIC_0000000_downsampled,0.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0\n", "nv"),
    ("ISIC 2019", ONE_HOT + "ISIC_1,0,0,0,1,0,0,0,0,0\n", "akiec"),
    ("ISIC 2019", ONE_HOT + "ISIC_1,0.0,0.0,0.0,0.0,0.0,0.0,0.0,1.0,0.0\n", ""),
    ("ISIC 2019", ONE_HOT.replace("\n", ",score_weight,validation_weight\n") + "ISIC_1,1,0,0,0,0,0,0,0,0,1,0\n", "mel"),
    (
        "ISIC 2020",
        "image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis,benign_malignant,target\n"
        "ISIC_2637011,IP_7279968,male,45.0,head/neck,unknown,benign,0\n",
        "benign",
    ),
    ("ISIC 2024", "isic_id,target,patient_id,age_approx,sex,lesion_id,iddx_full\nISIC_1,1,IP_1,60.0,male,,Malignant\n",
     "malignant"),
    ("ISIC 2024", "isic_id,malignant\nISIC_1,0.0\n", "benign"),
    ("ISIC archive", ARCHIVE_HEADER + archive("Malignant", "Malignant melanocytic proliferations (Melanoma)",
                                              "Melanoma in situ", "Melanoma in situ, Lentigo maligna type"), "mel"),
    ("ISIC archive", ARCHIVE_HEADER + archive("Benign", "Benign melanocytic proliferations", "Nevus",
                                              "Nevus, Atypical, Dysplastic, or Clark"), "nv"),
    ("ISIC archive", ARCHIVE_HEADER + archive("Benign", VASCULAR), "vasc"),
    ("ISIC archive", ARCHIVE_HEADER + archive("Benign", VASCULAR, "Hemangioma"), "vasc"),
    ("ISIC archive", ARCHIVE_HEADER + archive("Malignant", "Malignant epidermal proliferations",
                                              "Squamous cell carcinoma, NOS"), ""),
    ("ISIC archive", ARCHIVE_HEADER + archive("Indeterminate", "Indeterminate epidermal proliferations",
                                              "Solar or actinic keratosis"), "akiec"),
    ("PAD-UFES-20", "patient_id,lesion_id,age,gender,fitspatrick,region,diagnostic,img_id,biopsed\n"
                    "PAT_1516,1765,8,FEMALE,3.0,ARM,NEV,PAT_1516_1765_530.png,False\n", "nv"),
    ("PAD-UFES-20", "patient_id,lesion_id,diagnostic,img_id\nPAT_46,881,SCC,PAT_46_881_939.png\n", ""),
    ("PH2", "Image Name;Histological Diagnosis;Common Nevus;Atypical Nevus;Melanoma\nIMD003;;X;;\n", "nv"),
    ("PH2", "Name,Histological Diagnosis,Clinical Diagnosis,Asymmetry\nIMD058,Melanoma,2,2\n", "mel"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "expected"), CASES)
def test_a_row_has_its_class(name: str, text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    table = read_csv_table(path)
    known = recognise(table.columns)
    assert known is not None and known.name == name
    row = dict(zip((column.casefold() for column in table.columns), table.rows[0], strict=True))
    assert row[known.image] and known.label(row)
    assert target(known, row) == expected


def test_tables_of_the_user_are_not_recognised() -> None:
    for columns in (["image", "label"], ["image_id", "dx", "lesion_id"], ["image", "MEL", "NV"], ["isic_id", "label"]):
        assert recognise(columns) is None


def test_the_classes_are_ham10000s_or_binary() -> None:
    for known in PUBLISHED:
        assert set(known.codes.values()) <= {*DX, "malignant", "benign"}, known.name
    assert set(ARCHIVE.values()) == set(DX)


def test_rows_without_a_clear_label_have_none() -> None:
    two, none = (dict(zip(("image", "mel", "nv"), cells, strict=True)) for cells in (("a", "1", "1"), ("a", "0", "0")))
    isic_2019 = PUBLISHED[0]
    assert isic_2019.label(two) == isic_2019.label(none) == ""


def test_downsampled_names_and_published_duplicates() -> None:
    assert image_name("ISIC_0000000_downsampled") == "ISIC_0000000" and image_name("ISIC_1") == "ISIC_1"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ISIC_0024306", "isic_0024306"), ("a\\b/isic_0024306.JPG", "isic_0024306"),
        ("ISIC_0000000_downsampled.jpg", "isic_0000000"), ("ISIC_1", None), ("isic_00001.png", None),
        ("PAT_12_3_1.png", None), ("IMD013.bmp", None), ("IMG_20230001.jpg", None), ("1.jpg", None), ("DSC12345", None),
    ],
)  # fmt: skip
def test_ids_of_public_archives(name: str, expected: str | None) -> None:
    """Names that cameras and people give belong to many images."""
    assert archive_id(name) == expected
    pairs = [("b", "a"), ("b", "c"), ("x", "y"), ("p", "q")]
    assert published_duplicates(pairs, ["a", "b", "c", "d", "x", "y", "p"]) == {"b", "c", "y"}


@pytest.mark.parametrize(
    ("table", "spelled"),
    [
        (ONE_HOT + "ISIC_1,0,0,0,0,0,0,0,1,0\n", "scc"),
        ('isic_id,diagnosis_1,diagnosis_2,diagnosis_3,diagnosis_4\n'
         'ISIC_1,Malignant,,"Squamous cell carcinoma, NOS",Rare kind\n', "Squamous cell carcinoma, NOS"),
        ('isic_id,diagnosis_1,diagnosis_3\nISIC_1,Malignant,"Squamous cell carcinoma, Invasive"\n',
         "Squamous cell carcinoma, Invasive"),
        ("patient_id,lesion_id,diagnostic,img_id\nPAT_46,881,SCC,PAT_46_881_939.png\n", "SCC"),
    ],
)  # fmt: skip
def test_squamous_cell_carcinoma_is_one_class_in_all_tables(table: str, spelled: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(table)
    read = read_csv_table(path)
    known = recognise(read.columns)
    assert known is not None
    row = dict(zip((column.casefold() for column in read.columns), read.rows[0], strict=True))
    assert known.label(row) == spelled
    labels = [spelled, next(label for label, code in known.codes.items() if code == "mel")]
    assigned = assign_classes(labels, path, published=known)
    assert assigned.codes == ["scc", "mel"] and assigned.classes.codes == ("mel", "scc")
    assert assigned.classes.names == ("melanoma", "squamous cell carcinoma")
    assert assigned.classes.malignant == (True, True)
    own = assign_classes(["SCC", "mel"], path)  # a table of one's own: as written
    assert own.classes.codes == ("SCC", "mel")
    info = model_info(("mel", "scc"), ("melanoma", "squamous cell carcinoma"))
    assert find_truth(labels, info, {}, published=known).targets == ["scc", "mel"]
    assert find_truth(labels, model_info(("mel", "nv")), {}, published=known).left_out == {spelled: 1}

"""Tables and folders of labelled images, and the maps of their labels."""

import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from dermrw.diagnoses import COLUMNS, DX
from dermrw.errors import UserError
from dermrw.inference.classifier import Classifier
from dermrw.inference.known_images import KnownImages
from dermrw.inference.model_file import ModelInfo
from dermrw.labelled.labelled_images import read_labelled_images
from dermrw.scoring.labels import class_names, find_truth, read_map

SHIPPED = Path(__file__).parents[2] / "app/model.onnx"


@pytest.fixture(scope="module")
def info() -> ModelInfo:
    return Classifier(SHIPPED, "cpu").info


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)
    return path


def test_ham10000s_table(tmp_path: Path) -> None:
    for name in ("ISIC_1", "ISIC_2", "ISIC_3"):
        image(tmp_path / "HAM10000_images_part_1" / f"{name}.jpg")
    table = tmp_path / "HAM10000_metadata.csv"
    table.write_text(
        "lesion_id,image_id,dx,dx_type,age,sex,localization\nHAM_1,ISIC_1,bkl,histo,80.0,male,scalp\n"
        "HAM_1,ISIC_2,bkl,histo,80.0,male,scalp\nHAM_2,ISIC_3,nv,consensus,,female,back\n"
    )
    found = read_labelled_images(table)
    assert found.table["lesion_id"].nunique() == 2 and found.unit == "lesions"
    assert all(found.table["path"]) and found.table["label"].tolist() == ["bkl", "bkl", "nv"]
    assert {"sex", "age", "localization", "dx_type"} <= set(found.table.columns)


def test_isics_one_hot_tables_with_their_metadata(tmp_path: Path, info: ModelInfo) -> None:
    """Columns as in ISIC 2019, with its metadata next to the ground truth."""
    header = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK"
    lines = []
    for i in range(9):
        image(tmp_path / "ISIC_2019_Training_Input" / f"ISIC_{i}.jpg")
        lines.append(f"ISIC_{i}," + ",".join("1.0" if i == j else "0.0" for j in range(9)))
    truth = tmp_path / "ISIC_2019_Training_GroundTruth.csv"
    truth.write_text("\n".join([header, *lines]))
    (tmp_path / "ISIC_2019_Training_Metadata.csv").write_text(
        "image,age_approx,anatom_site_general,lesion_id,sex\n"
        + "".join(f"ISIC_{i},50,head/neck,{'BCN_1' if i < 2 else ''},male\n" for i in range(9))
    )
    found = read_labelled_images(truth, classes=class_names(info).keys())
    assert found.table["lesion_id"].nunique() == 8 and found.unit == "groups"
    assert "7 of 9 images have no group" in found.notes[0]
    labels = found.table["label"].tolist()
    truth_of = find_truth(labels, info, {}, published=found.published)
    assert truth_of.targets == ["mel", "nv", "bcc", "akiec", "bkl", "df", "vasc", "", ""]
    assert truth_of.left_out == {"scc": 1, "unk": 1}
    with pytest.raises(UserError, match=r"scc \(1\), unk \(1\).*scc=,unk="):  # of a table that is not ISIC's
        find_truth(labels, info, {})
    assert find_truth(labels, info, read_map(["SCC=bcc,UNK="], info)).targets[-2:] == ["bcc", ""]


def test_isic_2020_is_binary_and_the_archives_names_are_known(tmp_path: Path, info: ModelInfo) -> None:
    for i in range(3):
        image(tmp_path / "train" / f"ISIC_{i}.jpg")
    (tmp_path / "train.csv").write_text(
        "image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis,benign_malignant,target\n"
        "ISIC_0,IP_1,male,45,head/neck,unknown,benign,0\nISIC_1,IP_1,male,45,torso,melanoma,malignant,1\n"
        "ISIC_2,IP_2,,,torso,unknown,benign,0\n"
    )
    found = read_labelled_images(tmp_path / "train.csv")
    truth = find_truth(found.table["label"].tolist(), info, {}, published=found.published)
    assert truth.binary and truth.targets == ["benign", "malignant", "benign"] and found.unit == "patients"
    assert found.duplicates == () and "published duplicates count as separate images" in found.notes[-1]
    (tmp_path / "ISIC_2020_Training_Duplicates.csv").write_text(
        "image_name_1,image_name_2,sim_score\nISIC_2,ISIC_0,1\nISIC_0,ISIC_9,1\n"
    )
    found = read_labelled_images(tmp_path / "train.csv")
    assert found.table["image_id"].tolist() == ["ISIC_0", "ISIC_1"] and found.duplicates == ("ISIC_2",)
    assert found.notes == ["1 image left out: it is a duplicate by ISIC_2020_Training_Duplicates.csv"]
    (tmp_path / "metadata.csv").write_text(
        "isic_id,diagnosis_1,diagnosis_2,diagnosis_3,age_approx,sex\nISIC_0,Benign,,Nevus,40,male\n"
        'ISIC_1,Malignant,,"Melanoma, NOS",40,male\nISIC_2,Malignant,,"Squamous cell carcinoma, NOS",40,male\n'
    )
    found = read_labelled_images(tmp_path / "metadata.csv")
    truth = find_truth(found.table["label"].tolist(), info, {}, published=found.published)
    assert truth.targets == ["nv", "mel", ""] and not truth.binary


def test_codes_columns_and_names_need_no_map(info: ModelInfo) -> None:
    for labels in (DX, COLUMNS, info.names, [name.upper().replace(" ", "_") for name in info.names]):
        assert tuple(find_truth(list(labels), info, {}).targets) == DX


def test_maps(tmp_path: Path, info: ModelInfo) -> None:
    assert read_map(["mel=Lentigo maligna|LM, nv = Spitz", "odd="], info) == {
        "lentigo maligna": "mel", "lm": "mel", "spitz": "nv", "odd": "",
    }  # fmt: skip
    assert read_map(["Spitz=nv"], info) == {"spitz": "nv"}
    path = tmp_path / "map.csv"
    path.write_text("label;code\nSpitz, pigmented;nv\nodd;\n")
    assert read_map([str(path)], info) == {"spitz, pigmented": "nv", "odd": ""}
    for text, message in (
        ("spitz=unknown", "which the model does not have"),
        ("mel=x,nv=x", "two classes"),
        ("=x", "write CODE=LABEL"),
    ):
        with pytest.raises(UserError, match=message):
            read_map([text], info)
    with pytest.raises(UserError, match="gives the label benign two classes"):  # also in two options
        read_map(["nv=benign", "mel=benign"], info)
    assert "does not have: spitz" in find_truth(["mel"], info, {"spitz": "nv"}).notes[0]


def test_a_map_that_names_no_label_of_the_table_is_part_of_the_error(info: ModelInfo) -> None:
    """`benign=foo` gives the label foo the class benign, which is the wrong way round here."""
    mapped = read_map(["benign=foo"], info)
    for labels in (["mel", "benign"], ["mel", "strange"]):
        with pytest.raises(UserError, match="does not have: foo; write the class first"):
            find_truth(labels, info, mapped)


def test_classes_and_malignant_or_benign_are_not_mixed(info: ModelInfo) -> None:
    labels = ["mel", "nv", "benign", ""]
    with pytest.raises(UserError, match="--binary"):
        find_truth(labels, info, {})
    truth = find_truth(labels, info, {}, binary=True)
    assert truth.binary and truth.targets == ["malignant", "benign", "benign", ""]
    assert truth.left_out == {"no label": 1}
    assert find_truth(labels, info, {"benign": ""}).targets == ["mel", "nv", "", ""]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label\nmel\n", "lacks the column image"),
        ("image\na.png\n", "lacks the column label"),
        ("image,label\nb.png,mel\n", "no image b.png"),
        ("image,label\na.png,mel\na.png,nv\n", "two labels"),
        ("image,label\n,mel\n", "line 2 names no image"),
        ("image,MEL,NV\na.png,1,1\n", "exactly one of MEL, NV"),
        ("image,MEL,NV\na.png,1,2\n", "exactly one of MEL, NV"),
        ("image,MEL,NV\na.png,1,yes\n", "exactly one of MEL, NV"),
        ("image,MEL,NV\na.png,,\n", "exactly one of MEL, NV"),
        ("image,label\na.png,mel\na,nv\n", "names one file as a.png and as a: keep one row"),
        ("image,label\na.png,nv\n./a.png,nv\n", "names one file as a.png and as ./a.png"),
        ("image,Label,label\na.png,nv,mel\n", "has two columns Label and label"),
    ],
)
def test_bad_tables(tmp_path: Path, info: ModelInfo, text: str, message: str) -> None:
    image(tmp_path / "a.png")
    (tmp_path / "mine.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_labelled_images(tmp_path / "mine.csv", classes=class_names(info).keys())


def test_a_patient_overrides_a_lesion_and_repeated_rows_count_once(tmp_path: Path) -> None:
    for name in "abcd":
        image(tmp_path / "below" / f"{name}.png")
    (tmp_path / "mine.csv").write_text(
        "image_id,dx,lesion_id,patient_id\na,nv,l1,p1\nb,nv,l2,p1\nc,nv,l3,\nd,nv,,\nd,nv,,\n"
    )
    found = read_labelled_images(tmp_path / "mine.csv")
    assert found.table["lesion_id"].tolist() == ["patient_id p1", "patient_id p1", "lesion_id l3", "image d"]
    assert any("counted once" in note for note in found.notes)


def test_binary_truth_of_models_with_other_classes(info: ModelInfo) -> None:
    binary = info.model_copy(
        update={"codes": ("Benign", "Malignant"), "columns": ("Benign", "Malignant"), "names": ("Benign", "Malignant"),
                "malignant": (False, True)}
    )  # fmt: skip
    truth = find_truth(["benign", "MALIGNANT"], binary, {})
    assert truth.targets == ["Benign", "Malignant"] and not truth.binary  # its own classes
    truth = find_truth(["0", "1"], binary, {}, binary=True)
    assert truth.targets == ["benign", "malignant"] and truth.binary
    three = binary.model_copy(update={"codes": ("a", "b", "c"), "columns": ("a", "b", "c"), "names": ("a", "b", "c"),
                                      "malignant": (False, True, True)})  # fmt: skip
    assert find_truth(["a", "c"], three, {}, binary=True).targets == ["benign", "malignant"]
    for malignant in (None, (True, True, True)):
        with pytest.raises(UserError, match="does not state malignant and benign classes"):
            find_truth(["malignant", "benign"], three.model_copy(update={"malignant": malignant}), {})


def test_a_lesion_is_whole_where_some_of_its_images_lack_the_patient(tmp_path: Path) -> None:
    rows = [("a", "P1", "L1"), ("b", "", "L1"), ("c", "P1", "L2"), ("d", "", "L3"), ("e", "P2", ""), ("a", "P3", "")]
    text = "image,label,patient_id,lesion_id\n" + "".join(f"{i},nv,{p},{lesion}\n" for i, p, lesion in rows)
    for name in "abcde":
        Image.new("RGB", (40, 40)).save(tmp_path / f"{name}.png")
    (tmp_path / "t.csv").write_text(text)
    table = read_labelled_images(tmp_path / "t.csv").table.set_index("image_id")
    groups = table["lesion_id"]
    assert groups["a"] == groups["b"] == groups["c"]  # also through the second row of a, whose patient is another
    assert groups.nunique() == 3 and groups["d"] == "lesion_id L3" and groups["e"] == "patient_id P2"


def test_other_tables_next_to_a_table_of_ones_own_are_not_read(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    (tmp_path / "mine.csv").write_text("image,label\na,nv\n")
    (tmp_path / "old.csv").write_text("image,group,split\na,G1,test\n")
    labelled = read_labelled_images(tmp_path / "mine.csv")
    assert labelled.unit == "images" and "split" not in labelled.table and labelled.table["lesion_id"].tolist() == ["a"]


def test_a_long_map_is_no_file_name(info: ModelInfo) -> None:
    text = ",".join(f"mel=a long diagnosis of number {i}" for i in range(40))
    assert len(text) > 300 and set(read_map([text], info).values()) == {"mel"}


def test_an_empty_cell_of_a_class_is_a_zero(tmp_path: Path, info: ModelInfo) -> None:
    for name in "abc":
        image(tmp_path / f"{name}.png")
    (tmp_path / "mine.csv").write_text("image,mel,nv,bcc\na,,1,\nb,1,,\nc,0,,1\n")
    found = read_labelled_images(tmp_path / "mine.csv", classes=class_names(info).keys())
    assert found.table["label"].tolist() == ["nv", "mel", "bcc"]


def test_a_missing_file_is_not_another_folders(tmp_path: Path) -> None:
    """`site1/0001.jpg` is not `site2/0001.jpg`; an archive's id is the same image in every folder."""
    other = image(tmp_path / "site2" / "0001.jpg")
    known = image(tmp_path / "below" / "images" / "ISIC_0024306.jpg")
    rows = ["site1/0001.jpg,mel", "site2\\0001.jpg,nv", "elsewhere/ISIC_0024306.jpg,nv", "images/ISIC_0024306,nv"]
    (tmp_path / "mine.csv").write_text("\n".join(["image,label", *rows[:3]]))
    found = read_labelled_images(tmp_path / "mine.csv").table["path"].tolist()
    assert found[0] == "" and Path(found[1]) == other and Path(found[2]) == known
    (tmp_path / "mine.csv").write_text("\n".join(["image,label", rows[3], "0001,mel"]))
    found = read_labelled_images(tmp_path / "mine.csv").table["path"].tolist()
    assert [Path(path) for path in found] == [known, other]


def test_paths_of_windows_name_files_and_known_images(tmp_path: Path) -> None:
    image(tmp_path / "ISIC_0030623.jpg")
    table = tmp_path / "t.csv"
    table.write_text("image,label\nC:\\Users\\me\\ISIC_0030623.jpg,mel\n")
    found = read_labelled_images(table).table
    assert KnownImages.of(["ISIC_0030623"], []).match_ids(found["image_id"].tolist()).all()
    assert found["path"].tolist() == [str(tmp_path / "ISIC_0030623.jpg")]


def test_a_cameras_name_in_another_folder_is_another_image(tmp_path: Path) -> None:
    """Cameras number their pictures anew, so only an archive's id tells that a file was moved."""
    image(tmp_path / "Weber/DSC01234.jpg")
    image(tmp_path / "moved/ISIC_0030623.jpg")
    image(tmp_path / "IMG_20240115.jpg")  # in the folder of the images itself
    table = tmp_path / "t.csv"
    table.write_text("image,label\nMueller/DSC01234.jpg,mel\npics/ISIC_0030623.jpg,nv\npics/IMG_20240115.jpg,nv\n")
    assert [bool(path) for path in read_labelled_images(table).table["path"]] == [False, True, True]


def test_a_link_in_two_class_folders_is_named(tmp_path: Path) -> None:
    first = image(tmp_path / "mel/x.png")
    image(tmp_path / "nv/y.png")
    (tmp_path / "mel/again").mkdir()
    (tmp_path / "mel/again/x.png").symlink_to(first)  # of the same class: one image
    assert sorted(read_labelled_images(tmp_path).table["label"]) == ["mel", "nv"]
    (tmp_path / "nv/x.png").symlink_to(first)
    with pytest.raises(UserError, match="are the same, by a link, in two folders"):
        read_labelled_images(tmp_path)
    (tmp_path / "nv/x.png").unlink()
    (tmp_path / ".thumbs").mkdir()  # hidden, so not read
    (tmp_path / ".thumbs/x.png").symlink_to(first)
    (tmp_path / "nv/up").symlink_to(tmp_path)  # a loop: it ends
    assert sorted(read_labelled_images(tmp_path).table["label"]) == ["mel", "nv"]
    (tmp_path / "bcc").symlink_to(tmp_path / "mel")
    with pytest.raises(UserError, match="are the same, by a link, in two folders"):
        read_labelled_images(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_of_other_bytes_in_a_class_folder_is_named(tmp_path: Path) -> None:
    image(tmp_path / "mel/x.png")
    image(tmp_path / "nv/y.png")
    image(tmp_path / ".trash/z.png").rename(os.fsdecode(bytes(tmp_path / ".trash") + b"/M\xfcller.png"))
    assert len(read_labelled_images(tmp_path).table) == 2
    (tmp_path / "nv/y.png").rename(os.fsdecode(bytes(tmp_path / "nv") + b"/M\xfcller.png"))
    with pytest.raises(UserError, match="is not UTF-8"):
        read_labelled_images(tmp_path)


@pytest.mark.parametrize("text", ["", "NA", "#N/A", "<NA>", "n.a.", "-", "?", ".", "None", "NULL", "nan"])
def test_a_missing_group_is_no_group(tmp_path: Path, text: str) -> None:
    for name in "abc":
        image(tmp_path / f"{name}.png")
    table = tmp_path / "t.csv"
    table.write_text(f"image,label,patient\na.png,mel,{text}\nb.png,nv,{text}\nc.png,nv,P1\n")
    assert read_labelled_images(table).table["lesion_id"].nunique() == 3

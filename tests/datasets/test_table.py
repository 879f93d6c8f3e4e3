"""A user's labelled images as training data: classes, splits, meta set, contradictions, and `dermrw check`."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dermrw.config import Data, load_config
from dermrw.datasets.dataset import Splits, load_splits, resolve_root
from dermrw.datasets.verify import check
from dermrw.diagnoses import DX, Classes
from dermrw.errors import UserError
from dermrw.inference.known_images import is_distinctive
from dermrw.labelled.classes import CLASS_FILE, RunClasses, read_class_file, read_run_classes, run_classes_text


def draw(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (32, 36, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def write(path: Path, header: str, rows: Sequence[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def patients(
    folder: Path, classes: Sequence[str] = ("cat", "dog"), n: int = 8, header: str = "image,label,patient"
) -> Path:
    """A table of n patients per class with two images each."""
    rows = []
    for c, label in enumerate(classes):
        for i in range(2 * n):
            draw(folder / f"{c}_{i}.png", 100 * c + i)
            rows.append(f"{c}_{i}.png,{label},P{c}_{i // 2}")
    return write(folder / "table.csv", header, rows)


def load(root: Path, **keys: object) -> Splits:
    data = Data.model_validate({"name": "table", "root": str(root), "meta_per_class": 1, **keys})
    return load_splits(data, resolve_root(data))


def parts(splits: Splits) -> dict[str, set[str]]:
    return {name: set(getattr(splits, name).table["lesion_id"]) for name in ("train", "validation", "test", "meta")}


def test_patients_are_whole_and_every_split_has_every_class(tmp_path: Path) -> None:
    splits = load(patients(tmp_path))
    groups = parts(splits)
    assert sum(map(len, groups.values())) == len(set().union(*groups.values())) == 16
    assert all(set(getattr(splits, name).labels) == {0, 1} for name in groups)
    assert splits.classes.codes == ("cat", "dog") and splits.classes.malignant is None
    assert splits.facts and splits.facts.unit == "patients" and "no triage" in splits.facts.notes[0]
    again = load(tmp_path / "table.csv")
    assert again.table.equals(splits.table) and not load(tmp_path / "table.csv", split_seed=1).table.equals(
        splits.table
    )


def test_a_run_reads_its_split_back(tmp_path: Path) -> None:
    path = patients(tmp_path)
    splits = load(path)
    (tmp_path / CLASS_FILE).write_text("classes: [dog, cow")  # a later class file, even a bad one, is not read
    data = Data(name="table", root=str(path))
    again = load_splits(data, path, splits.table, facts=splits.facts)
    assert again.classes == splits.classes and again.test.sources == splits.test.sources


def test_a_patient_may_have_several_classes(tmp_path: Path) -> None:
    rows = []
    for p in range(10):
        for k, label in enumerate(["cat", "dog", "cow"]):
            draw(tmp_path / f"{p}_{k}.png", 10 * p + k)
            rows.append(f"{p}_{k}.png,{label},P{p}")
    splits = load(write(tmp_path / "t.csv", "image,label,group", rows), meta_noise_rate=0.5, noise_rate=0.5)
    groups = parts(splits)
    assert sum(map(len, groups.values())) == len(set().union(*groups.values()))
    assert set(splits.test.table["dx"]) == {"cat", "dog", "cow"}


def test_thirty_class_folders(tmp_path: Path) -> None:
    for c in range(30):
        for i in range(5):
            draw(tmp_path / f"Klasse {c:02d}" / f"{i}.png", 10 * c + i)  # the same names in every folder
    splits = load(tmp_path)
    assert len(splits.classes.codes) == 30 and splits.classes.codes[3] == "Klasse 03"
    assert len(splits.meta) == 30 and set(splits.validation.labels) == set(range(30))
    assert splits.facts and splits.facts.unit == "images" and "not patients" in splits.facts.notes[0]


def test_the_split_column(tmp_path: Path) -> None:
    rows = []
    for i, split in enumerate(["train"] * 8 + ["val"] * 2 + ["test"] * 2):
        draw(tmp_path / f"{i}.png", i)
        rows.append(f"{i}.png,{'ab'[i % 2]},{split}")
    path = write(tmp_path / "t.csv", "image,label,split", rows)
    splits = load(path)
    assert splits.test.table["image_id"].tolist() == ["10", "11"]
    assert splits.validation.table["image_id"].tolist() == ["8", "9"] and len(splits.meta) == 2
    write(path, "image,label,split", [row.replace("val", "train") for row in rows])
    splits = load(path)  # a split that is absent is drawn from train
    assert splits.test.table["image_id"].tolist() == ["10", "11"] and set(splits.validation.labels) == {0, 1}
    write(path, "image,label,split", [row.replace("val", "meta") for row in rows])
    assert load(path).meta.table["image_id"].tolist() == ["8", "9"]
    write(path, "image,label,split", [rows[0].replace("train", "holdout"), *rows[1:]])
    with pytest.raises(UserError, match=r"line 2 has the split 'holdout'"):
        load(path)
    write(path, "image,label,split,group", [f"{row},G{i // 3}" for i, row in enumerate(rows)])
    with pytest.raises(UserError, match=r"groups? in two splits: group G2 .train, validation"):
        load(path)


def test_split_folders(tmp_path: Path) -> None:
    for c in "ab":
        for i in range(5):
            draw(tmp_path / "Train" / c / f"{c}{i}.png", ord(c) * 10 + i)
        draw(tmp_path / "Test" / c / f"{c}9.png", ord(c) * 10 + 9)
    assert load(tmp_path).test.table["image_id"].tolist() == ["a9", "b9"]


def test_the_meta_set_by_list_and_rule(tmp_path: Path) -> None:
    path = patients(tmp_path)
    meta = write(tmp_path / "meta" / "list.csv", "image_id", ["0_3", "1_4"])
    splits = load(path, meta=str(meta))
    assert set(splits.meta.table["image_id"]) == {"0_3", "1_4"}
    assert not splits.table["image_id"].isin(["0_2", "1_5"]).any()  # the other images of the two patients
    assert len(load(path, meta_per_class=3).meta) == 6 and load(path, meta="rule").meta.table.equals(
        load(path).meta.table
    )
    write(meta, "image_id", ["0_3"])
    with pytest.raises(UserError, match="the meta set has no image of dog"):
        load(path, meta=str(meta))


def test_contradictions_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for c in "abc":
        for i in range(6):
            draw(tmp_path / c / f"{c}{i}.png", ord(c) * 10 + i)
    (tmp_path / "b" / "other name.png").write_bytes((tmp_path / "a" / "a0.png").read_bytes())
    draw(tmp_path / "a" / "ISIC_0024306.jpg", 1)
    draw(tmp_path / "c" / "ISIC_0024306.png", 2)
    with pytest.raises(UserError, match=r"2 images in two classes: a0 .a. = other name .b.; "):
        load(tmp_path)
    with pytest.raises(UserError, match="2 images in two classes"):
        check(tmp_path)
    assert "a0 (a) = other name (b)" in capsys.readouterr().out
    (tmp_path / "b" / "other name.png").unlink()
    (tmp_path / "c" / "ISIC_0024306.png").unlink()
    Image.open(tmp_path / "a" / "a0.png").save(tmp_path / "a" / "copy.bmp")
    splits = load(tmp_path)
    groups = splits.table.set_index("image_id")["lesion_id"]
    assert splits.facts and "2 images are identical" in splits.facts.notes[-1]
    assert "a0" not in groups or "copy" not in groups or groups["a0"] == groups["copy"]
    check(tmp_path)
    out = capsys.readouterr().out
    assert "a0 = copy" in out and "No fault found" in out


def test_two_splits_share_an_image(tmp_path: Path) -> None:
    for c in "ab":
        for i in range(5):
            draw(tmp_path / "train" / c / f"{c}{i}.png", ord(c) * 10 + i)
        draw(tmp_path / "test" / c / f"{c}9.png", ord(c) * 10 + (4 if c == "a" else 9))
    with pytest.raises(UserError, match=r"1 image in two splits: a4 .train. = a9 .test."):
        load(tmp_path)
    with pytest.raises(UserError, match="in two splits"):
        check(tmp_path)


def test_isic_2019(tmp_path: Path) -> None:
    """Its columns as published, with its metadata next to the ground truth."""
    names = ["MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK"]
    rows, metadata = [], []
    for i in range(9 * 5):
        name = f"ISIC_{i:07d}" + "_downsampled" * (i % 2)
        draw(tmp_path / "ISIC_2019_Training_Input" / f"{name}.jpg", i)
        rows.append(name + "," + ",".join("1.0" if i % 9 == j else "0.0" for j in range(9)))
        metadata.append(f"{name},50,anterior torso,BCN_{i:07d},female")
    path = write(tmp_path / "ISIC_2019_Training_GroundTruth.csv", "image," + ",".join(names), rows)
    write(tmp_path / "ISIC_2019_Training_Metadata.csv", "image,age_approx,anatom_site_general,lesion_id,sex", metadata)
    splits = load(path)
    assert set(splits.classes.codes) == {*DX, "scc"} and splits.facts and splits.facts.unit == "lesions"
    assert splits.classes.malignant and sum(splits.classes.malignant) == 4
    assert any("unk (5)" in note for note in splits.facts.notes)
    assert {"age", "sex", "localization"} <= set(splits.test.table.columns)
    without = [row for i, row in enumerate(rows) if i % 9 < 7]
    assert load(write(path, "image," + ",".join(names), without)).classes.codes == DX


def test_isic_2020_states_malignant(tmp_path: Path) -> None:
    rows = []
    for i in range(12):
        draw(tmp_path / f"ISIC_{i:07d}.jpg", i)
        rows.append(f"ISIC_{i:07d},IP_{i},female,45,torso,unknown,{'malignant' if i % 2 else 'benign'},{i % 2}")
    header = "image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis,benign_malignant,target"
    path = write(tmp_path / "train.csv", header, rows)
    write(tmp_path / "ISIC_2020_Training_Duplicates.csv", "image_name_1,image_name_2", ["ISIC_0000000,ISIC_0000002"])
    splits = load(path)
    assert splits.classes.codes == ("benign", "malignant") and splits.classes.malignant == (False, True)
    assert "ISIC_0000002" not in set(splits.table["image_id"])


def test_class_files(tmp_path: Path) -> None:
    path = patients(tmp_path, ("Melanom", "Nävus", "?"))
    file = tmp_path / CLASS_FILE
    file.write_text(
        "classes: [{code: mm, name: Melanom, malignant: true, labels: [Melanom]}, "
        '{code: nv, malignant: false, labels: ["Nävus"]}]\nleave_out: ["?"]',
        encoding="utf-8",
    )
    splits = load(path)
    assert splits.classes == (("mm", "nv"), ("mm", "nv"), ("Melanom", "nv"), (True, False))
    assert splits.facts and "? (16)" in splits.facts.notes[0]
    file.write_text("[Nävus, Melanom]", encoding="utf-8")
    with pytest.raises(UserError, match=r"does not name: \? .16."):
        load(path)
    file.unlink()
    other = tmp_path / "mine.yaml"
    other.write_text("classes: [Nävus, Melanom]\nleave_out: others", encoding="utf-8")
    assert load(path, classes=str(other)).classes.codes == ("Nävus", "Melanom")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes: [a]", "2 to 100 classes"),
        ("classes: [a, a]", "twice"),
        ("classes: [a, yes]", "class 2 is True"),
        ("classes: [a, {code: 1}]", "must be text"),
        ("classes: [a, {name: b}]", "has no code"),
        ("classes: [a, {code: b, colour: red}]", "has the key 'colour'"),
        ("classes: [{code: a, malignant: true}, b]", "not for b"),
        ("classes: [{code: a, malignant: 1}, b]", "true or false"),
        ("classes: [a, {code: b, labels: [A]}]", "is of two classes"),
        ('classes: [a, "=b"]', "formula"),
        ("classes: [a, Image]", "another column"),
        ('classes: [a, "b\\u202e"]', "control characters"),
        ("klasses: [a, b]", "must contain a list of classes"),
        ("classes: [a, b]\nother: 1", "has the key 'other'"),
        ("classes: [a, b]\nleave_out: [a]", "remove one"),
        ("classes: [a, b", "can't be read as YAML"),
    ],
)
def test_mistakes_in_a_class_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        read_class_file(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_runs_classes_come_back(tmp_path: Path) -> None:
    codes = ("3e-4", "no", 'a "b", c: {d}', "Ünklar\\x")
    for malignant in (None, (True, False, False, True)):
        facts = RunClasses(read_class_file_of(tmp_path, codes, malignant), "patients", ('A "note".',))
        (tmp_path / "run.yaml").write_text(run_classes_text(facts), encoding="utf-8")
        assert read_run_classes(tmp_path / "run.yaml") == facts


def read_class_file_of(folder: Path, codes: Sequence[str], malignant: Sequence[bool] | None) -> Classes:
    rows = [{"code": code} | ({} if malignant is None else {"malignant": malignant[i]}) for i, code in enumerate(codes)]
    (folder / "c.yaml").write_text(json.dumps({"classes": rows}), encoding="utf-8")
    return read_class_file(folder / "c.yaml").classes


def test_mistakes_in_a_table(tmp_path: Path) -> None:
    path = patients(tmp_path)
    rows = path.read_text().splitlines()[1:]
    header = "image,label,patient"
    cases = {
        "one class, cat": [row.replace("dog", "cat") for row in rows],
        "the class cow has 1 patient, but needs 4": [*rows[1:], rows[0].replace("cat", "cow").replace("P0_0", "P99")],
        "differ only in case": [rows[0].replace("cat", "Cat"), *rows[1:]],
        "1 image has no label, line 2 the first": [rows[0].replace("cat", ""), *rows[1:]],
        "no label, line 2 the first: .*, or declare the class N/A in classes.yaml": [
            rows[0].replace("cat", "N/A"),
            *rows[1:],
        ],
        "1 of 33 images are not in .*, nothing the first": ["nothing.png,cat,P1", *rows],
        "starts as a formula": [row.replace("dog", "=dog") for row in rows],
    }
    for message, changed in cases.items():
        write(path, header, changed)
        with pytest.raises(UserError, match=message):
            load(path)
    write(path, header, rows)
    (tmp_path / "1_0.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match="1 of 32 images can't be read"):
        load(path)
    write(path, header, ["nothing.png,cat,P1", *rows])
    splits = load(path, skip_unreadable=True)
    assert splits.facts and "1 image without a file and 1 that can't be read" in splits.facts.notes[-1]
    for root, message in ((None, "requires data.root"), (tmp_path / "no.csv", "does not exist")):
        with pytest.raises(UserError, match=message):
            resolve_root(Data(name="table", root=root and str(root)))
    with pytest.raises(UserError, match=r"data\.images is an option of data\.name=table"):
        load_config(None, ["data.images=x"])


def test_too_many_classes(tmp_path: Path) -> None:
    draw(tmp_path / "x.png", 0)
    rows = [f"{i}.png,c{i}" for i in range(120)] + ["x.png,c0"]
    with pytest.raises(UserError, match="120 different labels, more than 100 classes"):
        load(write(tmp_path / "t.csv", "image,label", rows))
    for i in range(101):
        (tmp_path / f"folders/c{i}").mkdir(parents=True)
        draw(tmp_path / f"folders/c{i}/x{i}.png", 0)
    with pytest.raises(UserError, match="101 different labels, more than 100 classes: group the"):
        load(tmp_path / "folders")


def test_check_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = patients(tmp_path)
    check(path)
    out = capsys.readouterr().out
    assert "32 images of 16 patients, 2 classes" in out and "not stated" in out and "missing: 0" in out
    (tmp_path / "0_0.png").unlink()
    with pytest.raises(UserError, match="1 image is missing"):
        check(path)
    assert "  0_0\n" in capsys.readouterr().out
    check(path, overrides=["data.skip_unreadable=true", "data.split_seed=3"])  # as training would
    out = capsys.readouterr().out
    assert "  0_0\n" in out and out.endswith("No fault found.\n")
    check(path, overrides=["data.skip_unreadable=true", "data.meta_per_class=8"])
    assert "this meta set will stop" in capsys.readouterr().out
    (tmp_path / "own.yaml").write_text("- {code: cat, name: A cat, malignant: false}\n- {code: dog, malignant: true}\n")
    check(path, overrides=["data.skip_unreadable=true", f"data.classes={tmp_path / 'own.yaml'}"])
    assert "cat (A cat)" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"check reads only data: train\.lr=1 is not a key of data"):
        check(path, overrides=["train.lr=1"])
    path.write_text(path.read_text().replace(",cat,", ",,", 1))  # training would refuse it, too
    with pytest.raises(UserError, match="1 image has no label"):
        check(path)
    check(path, overrides=["data.skip_unreadable=true"])
    assert capsys.readouterr().out.endswith("No fault found.\n")
    with pytest.raises(UserError, match="--images is an option for a table"):
        check(None, tmp_path)


def test_ids_that_may_name_other_peoples_images_too() -> None:
    assert all(is_distinctive(name) for name in ("ISIC_0024306", "a/IMG_20240131.jpg", "123456"))
    assert not any(is_distinctive(name) for name in ("1", "mel/0001.jpg", "image 12", "20240131/3.png"))


def test_codes_of_ham10000_state_what_is_malignant(tmp_path: Path) -> None:
    mixed = load(patients(tmp_path / "a", ("nv", "mel", "benign"))).classes
    assert mixed.codes == ("benign", "mel", "nv") and mixed.malignant == (False, True, False)
    assert load(patients(tmp_path / "b", ("nv", "mel"))).classes.columns == ("MEL", "NV")


def test_a_class_file_may_leave_out_na(tmp_path: Path) -> None:
    path = patients(tmp_path)
    header, *rows = path.read_text().splitlines()
    write(path, header, [rows[0].replace("cat", "NA"), *rows[1:]])
    for left_out in ("[NA]", "others"):
        (tmp_path / "classes.yaml").write_text(f"classes: [cat, dog]\nleave_out: {left_out}\n")
        splits = load(path)
        assert splits.facts and "1 image whose label has no class: NA (1)" in " ".join(splits.facts.notes)


def test_the_rule_takes_no_reserved_image(tmp_path: Path) -> None:
    path = patients(tmp_path)
    chosen = load(path, meta="rule").meta.table
    reserve = write(tmp_path / "meta" / "reserve.csv", "image_id", chosen["image_id"].tolist())
    splits = load(path, meta="rule", reserve=str(reserve))
    assert len(splits.meta) == len(chosen)
    assert not splits.table["lesion_id"].isin(chosen["lesion_id"]).any()
    meta = write(tmp_path / "meta" / "meta.csv", "image_id", chosen["image_id"].tolist())  # a list may name them
    assert set(load(path, meta=str(meta), reserve=str(reserve)).meta.table["image_id"]) == set(chosen["image_id"])

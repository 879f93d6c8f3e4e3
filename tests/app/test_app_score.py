"""The score of many uploaded images with a table of labels, without a server."""

import re
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from tools.any_model import TRIAGE, model_info, write_model

from app.engine import Engine, plain_name
from app.gradio_hardening import UPLOADS
from app.page import PageEvents, take_upload
from app.page_cache import PageCache
from app.score_table import MAX_TABLE_BYTES, is_table
from app.table import Upload, classify_many
from dermrw.inference.classifier import Classifier
from dermrw.inference.known_images import KnownImages
from dermrw.inference.model_file import ModelInfo
from dermrw.scoring.score import score

RED, GREEN, BLUE = (255, 40, 20), (30, 200, 60), (40, 60, 250)
NAMES = (("ash", "birch", "cedar"), ("Ash", "Birch (white)", "Cedar"))
MALIGNANT: dict[str, Any] = {"malignant": (True, False, False), "triage": TRIAGE}


def engine_of(folder: Path, known: KnownImages | None = None, info: ModelInfo | None = None) -> Engine:
    return Engine(Classifier(write_model(folder / "tiny.onnx", info or model_info(*NAMES), known), "cpu"))


def upload(name: str, content: bytes) -> str:
    folder = UPLOADS.folder / str(len(list(UPLOADS.folder.iterdir())))
    folder.mkdir()
    (folder / name).write_bytes(content)
    return str(folder / name)


def picture(folder: Path, name: str, colour: tuple[int, int, int]) -> str:
    Image.new("RGB", (40, 40), colour).save(folder / name)
    return upload(name, (folder / name).read_bytes())


def table_of(engine: Engine, paths: list[str], rows: dict[str, Upload] | None = None) -> str:
    *_, html = classify_many(
        engine, paths, take_upload, UPLOADS.drop, UPLOADS.touch, "equal", None, {} if rows is None else rows
    )
    assert UPLOADS.size() == 0
    return re.sub(r"\s+", " ", unescape(re.sub('<[^>]*>|base64,[^"]*', " ", html)))


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    colours = {
        "one.png": RED,
        "two (2).png": RED,
        "three.png": GREEN,
        "Four.PNG": BLUE,
        "five.png": BLUE,
        "six.png": RED,
    }
    return [picture(tmp_path, name, colour) for name, colour in colours.items()]


LABELS = (
    "image,label,patient_id\none.png,ash,p1\ntwo (2).png,Birch (white),p2\nphotos/three,BIRCH,p3\nfour,cedar,p4\n"
    "five.png,cedar,p1\nabsent.png,ash,p9\n"
)


def test_the_score_is_that_of_dermrw_score(
    tmp_path: Path, images: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    engine = engine_of(tmp_path)
    page = table_of(engine, [*images, upload("labels.csv", LABELS.encode())])
    (tmp_path / "labels.csv").write_text(
        LABELS.replace("photos/", "").replace("four", "Four").replace("absent.png,ash,p9\n", "")
    )
    report = score(tmp_path / "tiny.onnx", tmp_path / "labels.csv", out=tmp_path / "out", device="cpu")
    assert report.balanced_accuracy == pytest.approx((1 + 0.5 + 1) / 3)
    low, high = (f"{100 * end:.1f}\N{NO-BREAK SPACE}%" for end in report.interval_95 if end is not None)
    figure = f"Balanced accuracy 83.3\N{NO-BREAK SPACE}% {low} to {high} 80.0\N{NO-BREAK SPACE}%"
    assert re.sub(r"\s+", " ", figure) in page
    assert "6 images: 0 not judged" in page and "Score on 5 labelled images Labels: labels.csv ." in page
    assert "The images show 4 patients." in page and "Birch (white) 2 50.0 % " in page and "AUC, mean over" in page
    assert "Not scored: 1 upload has no row in labels.csv: six.png." in page
    assert "1 image in labels.csv was not uploaded." in page
    assert "Overlap with the training images was not checked" in page


def test_training_images_their_groups_and_other_labels_are_left_out(tmp_path: Path, images: list[str]) -> None:
    engine = engine_of(tmp_path, KnownImages.of(["one"], []))
    labels = LABELS.replace("four,cedar", "four,oak").replace("photos/three,BIRCH", "photos/three,") + "six,benign,p8\n"
    page = table_of(engine, [*images, upload("labels.csv", labels.encode())])
    assert "Score on 1 labelled image " in page and "No image of Ash, Cedar is scored" in page
    assert "oak (1)" in page and "benign (1)" in page and "no label (1)" in page
    assert re.search(r"Not scored: 1 image that is, .* trained, .*, and 1 more of the same patients\.", page)


def test_a_training_image_that_was_not_uploaded_tells_its_patient(tmp_path: Path, images: list[str]) -> None:
    engine = engine_of(tmp_path, KnownImages.of(["ISIC_0000001"], []))
    page = table_of(engine, [*images, upload("labels.csv", (LABELS + "ISIC_0000001.jpg,ash,p1\n").encode())])
    assert "Score on 3 labelled images " in page and "2 images in labels.csv were not uploaded." in page


def test_a_figure_that_is_worse_than_on_the_card(tmp_path: Path) -> None:
    engine = engine_of(tmp_path, info=model_info(*NAMES, **MALIGNANT))
    files = [picture(tmp_path, f"{i}.png", GREEN) for i in range(12)] + [picture(tmp_path, "r.png", RED)]
    labels = "image,label\n" + "".join(f"{i},{'ash' if i < 8 else 'birch'}\n" for i in range(12)) + "r,ash\n"
    page = table_of(engine, [*files, upload("labels.csv", labels.encode())])
    assert "Worse than on the card: triage sensitivity is 11.1 % here" in page
    assert re.search(r"Triage sensitivity 11\.1\s% worse .* Triage specificity 100\.0\s% .* AUC|AUC, malignant", page)


def test_malignant_and_benign_are_labels_or_classes(tmp_path: Path) -> None:
    files = [picture(tmp_path, f"{i}.png", RED if i < 3 else GREEN) for i in range(6)]
    labels = "image,label\n" + "".join(f"{i},{'malignant' if i < 2 else 'benign'}\n" for i in range(6))
    page = table_of(
        engine_of(tmp_path, info=model_info(*NAMES, **MALIGNANT)), [*files, upload("l.csv", labels.encode())]
    )
    assert re.search(r"AUC, malignant against benign 0\.\d+ .* Triage sensitivity 100\.0", page)
    assert "Balanced accuracy" not in page and "Recall" not in page
    files = [picture(tmp_path, f"{i}.png", RED if i < 3 else GREEN) for i in range(6)]
    classes = engine_of(tmp_path, info=model_info(("malignant", "odd", "benign")))
    page = table_of(classes, [*files, upload("l.csv", labels.encode())])
    assert "Balanced accuracy" in page and "No image of odd is scored" in page


def test_another_prevalence_needs_no_new_score_and_another_image_does(
    tmp_path: Path, images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, rows = engine_of(tmp_path), dict[str, Upload]()
    paths = [*images, upload("labels.csv", LABELS.encode())]
    first = table_of(engine, paths, rows)
    calls: list[int] = []

    def score_box(engine: Engine, tables: Any, images: Any) -> str:
        calls.append(len(images))
        return "new"

    monkeypatch.setattr("app.table.score_box", score_box)
    assert table_of(engine, paths, rows) == first and calls == []
    table_of(engine, paths[1:], rows)
    assert calls == [5]


@pytest.mark.parametrize(
    ("name", "content", "wrong"),
    [
        ("labels.csv", b"", "labels.csv is empty"),
        ("labels.csv", b"image,label\none.png,ash\none.png,birch\n", "gives the image one.png two labels"),
        ("labels.csv", b"file,kind\none.png,ash\n", "labels.csv lacks the column label"),
        ("labels.csv", b"photo,label\none.png,ash\n", "labels.csv lacks the column image"),
        ("labels.csv", b"image,label\nx.png,ash\n", "none of the uploaded images is in labels.csv: its first"),
        ("labels.csv", b"image,label\none.png,oak\n", "no label in labels.csv is a class of the model: the labels"),
        ("labels.csv", b"image,label\none.png,1\nthree,0\n", "write the names of classes instead of numbers"),
        ("labels.csv", b"image,label\none.png,\n", "labels.csv has no label for these images"),
        ("labels.csv", b"image,label\none.png,malignant\nfive,benign\n", "must have classes of the model as labels"),
        ("labels.csv", b"image,label\na/one.png,ash\nb/one.png,ash\n", "a/one.png and b/one.png in labels.csv both"),
        ("labels.xlsx", b"PK\x03\x04", "labels.xlsx is a spreadsheet or an archive, not a CSV file"),
        ("labels.csv", b"image,label\none.png,\"ash\n", "is a quotation mark unbalanced?"),
        ("labels.csv", b"image,label\n" + b"x" * MAX_TABLE_BYTES, "labels.csv is larger than 4 MB"),
        ("labels.csv", ",".join(map(str, range(2000))).encode() + b"\na" * 1000, "more than 1,000,000 cells"),
    ],
)  # fmt: skip
def test_mistakes_in_the_table_are_a_sentence(name: str, content: bytes, wrong: str, tmp_path: Path) -> None:
    engine = engine_of(tmp_path)
    files = [
        picture(tmp_path, f"{stem}.png", colour) for stem, colour in (("one", RED), ("three", GREEN), ("five", BLUE))
    ]
    page = table_of(engine, [*files, upload(name, content)])
    assert "No score" in page and "3 images: 0 not judged" in page and wrong.lower() in page.lower()
    assert "--" not in page and "Score on" not in page


def test_two_tables_no_image_and_two_fitting_uploads(tmp_path: Path, images: list[str]) -> None:
    engine, rows = engine_of(tmp_path), dict[str, Upload]()
    one, two = upload("a.csv", LABELS.encode()), upload("b.csv", LABELS.encode())
    assert "There is more than one table, a.csv and 1 more: remove all but one." in table_of(
        engine, [*images, one, two]
    )
    assert "there is no image that can be read: add" in table_of(engine, [upload("a.csv", LABELS.encode())])
    files = [*images, picture(tmp_path, "one.jpg", RED), upload("a.csv", LABELS.replace("one.png", "one").encode())]
    assert "Two uploads, one.png and one.jpg, fit the image one of a.csv" in table_of(engine, files, rows)


def test_which_uploads_are_tables() -> None:
    assert is_table("/x/labels.CSV") and is_table("a.tsv") and is_table("a.xlsx")
    assert not is_table("a.png") and not is_table("1.2.840.7") and not is_table("csv")
    assert plain_name("/x/labels.CSV") == "labels.CSV"


def test_a_newer_call_stops_the_older_one_after_one_image(tmp_path: Path, images: list[str]) -> None:
    """The images that it did not read stay, for the newer call may need them."""
    rows: dict[str, Upload] = {}
    drawn = list(
        classify_many(
            engine_of(tmp_path), images, take_upload, UPLOADS.drop, UPLOADS.touch, "equal", None, rows,
            superseded=lambda: bool(rows),
        )
    )  # fmt: skip
    assert list(rows) == images[:1] and len(drawn) == 1 and UPLOADS.size() > 0
    assert all(Path(path).exists() for path in images[1:])
    for path in images[1:]:
        UPLOADS.drop(path)


def test_images_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """Folders of two patients often hold files of one name."""
    rows: dict[str, Upload] = {}
    paths = [picture(tmp_path, "0001.png", colour) for colour in (RED, GREEN, BLUE)]
    engine = engine_of(tmp_path)
    page = table_of(engine, paths, rows)
    assert [row.name for row in rows.values()] == ["0001.png", "0001.png (2)", "0001.png (3)"]
    assert "2 of the images have this name: this is number 2, in the order in which they were added" in page
    assert table_of(engine, paths, rows).count("0001.png (2)") == page.count("0001.png (2)")  # drawn again
    labels = upload("labels.csv", b"image,label\n0001.png,ash\n")
    assert "0001.png" in table_of(engine, [*paths, labels], rows)


def test_the_table_says_that_uploads_are_gone(tmp_path: Path) -> None:
    """The script then sends the files again."""
    events = PageEvents(engine_of(tmp_path), PageCache(), PageCache())
    request = SimpleNamespace(session_hash="s")
    path = picture(tmp_path, "a.png", RED)
    *_, html = events.show_table(request, [path], '{"call": 1}')  # type: ignore[arg-type]
    assert "data-code" not in html
    events.rows.close("s")  # ten minutes later
    *_, html = events.show_table(request, [path], '{"call": 2}')  # type: ignore[arg-type]
    assert (
        "data-call=&quot;2&quot; data-code=&quot;gone&quot;" in html
        or "data-call=&#34;2&#34; data-code=&#34;gone&#34;" in html
    )

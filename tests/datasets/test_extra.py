"""`data.extra`: further images in training; copies and relatives of held-out images stay out."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, command
from PIL import Image

from dermrw.config import Config, load_config, settings_of
from dermrw.datasets.dataset import Splits, load_splits
from dermrw.datasets.extra import PREFIX, _key, choose_extra, count_reasons, held_out, read_extra, validation_sources
from dermrw.datasets.ham10000 import read_folder, read_ham10000
from dermrw.datasets.hash_cache import SIDE, HashCache, hash_images
from dermrw.datasets.sample_drawing import draw_lesion
from dermrw.diagnoses import DX
from dermrw.errors import UserError
from dermrw.images.preprocess import evaluation_pixels
from dermrw.inference.known_images import image_hash
from dermrw.training.checkpoint import load_checkpoint
from dermrw.training.head_loop import HeadLoop
from dermrw.training.run_folder import latest_run, open_run, read_split
from dermrw.training.train import train
from export.__main__ import export
from export.card import recipe
from export.training_images import known_images


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def splits(sample: Path) -> Splits:
    """The sample as HAM10000, without extra images."""
    return load_splits(load_config(None, ["data.meta=rule"]).data, sample)


def picture(code: str, n: int) -> Image.Image:
    rng = np.random.default_rng
    return Image.fromarray(draw_lesion(code, rng([n, 77]), rng([n, 78]), 90, 120))


@pytest.fixture
def table(tmp_path: Path, sample: Path, splits: Splits) -> Path:
    """Labelled images: new ones, and ids and copies of the sample's."""
    folder = tmp_path / "more"
    folder.mkdir()
    paths = dict(zip(read_ham10000(sample)["image_id"], read_ham10000(sample)["path"], strict=True))
    test, train = splits.test.table["image_id"], splits.train.table["image_id"]
    rows: list[tuple[str, str, str]] = []

    def add(name: str, label: str, group: str, image: Image.Image) -> None:
        image.save(folder / f"{name}.jpg", quality=85)
        rows.append((name, label, group))

    for n, code in enumerate(DX):
        add(f"new_{code}", code.upper(), f"p{n}", picture(code, n))
    add("naevus", "Naevus", "", picture("nv", 20))
    add("scc", "SCC", "p1", picture("bcc", 21))
    add("copy_of_test", "nv", "q1", Image.open(paths[test.iloc[0]]).resize((200, 150)))
    add("relative", "nv", "q1", picture("nv", 22))
    add(test.iloc[1].lower(), "mel", "q2", picture("mel", 23))
    add("relative_2", "mel", "q2", picture("mel", 24))
    add("copy_of_train", "nv", "q3", Image.open(paths[train.iloc[0]]).resize((160, 120)))
    add("other_of_q3", "nv", "q3", picture("nv", 25))
    add(train.iloc[1], "nv", "q4", picture("nv", 26))
    add("ISIC_0035000_downsampled", "nv", "q5", picture("nv", 27))
    rows.append(("gone", "nv", ""))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff cut short")
    rows.append(("broken", "nv", ""))
    lines = ["image,label,patient_id", *(",".join(row) for row in rows)]
    (folder / "mine.csv").write_text("\n".join(lines))
    return folder / "mine.csv"


@pytest.mark.slow
def test_held_out_images_and_their_groups_stay_out(
    sample: Path, splits: Splits, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = load_config(None, ["data.meta=rule", f"data.extra={table}"]).data
    found = load_splits(data, sample)
    assert found.left_out is not None
    reason = dict(zip(found.left_out["image_id"], found.left_out["reason"], strict=True))
    test, train = splits.test.table["image_id"], splits.train.table["image_id"]
    assert reason == {
        "scc": "label without a class",
        "copy_of_test": "looks like a held-out image",
        "relative": "group of a held-out image",
        test.iloc[1].lower(): "id of a held-out image",
        "relative_2": "group of a held-out image",
        "copy_of_train": "looks like a training image",
        train.iloc[1]: "id of a training image",
        "ISIC_0035000_downsampled": "id of a held-out image",
        "gone": "no file",
        "broken": "can't be read",
    }
    assert count_reasons(found.left_out)["label without a class: SCC"] == 1
    names = [*(f"new_{code}" for code in DX), "naevus", "other_of_q3"]
    added = found.train.table[found.train.table["lesion_id"].str.startswith(PREFIX)]
    assert added["image_id"].tolist() == names and added["dx"].tolist() == [*DX, "nv", "nv"]
    assert len(found.train) == len(splits.train) + len(names)
    for part in ("validation", "test", "meta"):
        assert getattr(found, part).table["image_id"].tolist() == getattr(splits, part).table["image_id"].tolist()
    output = capsys.readouterr().out
    assert "9 of 19 images (mel 1, nv 3, bcc 1" in output and "perceptual hashes" in output
    again = load_splits(data, sample)
    assert "hashes of 1 image to" in capsys.readouterr().out  # of the one that can't be read
    assert again.table.equals(found.table)
    stored = load_splits(data, sample, found.table)  # as evaluation reads it; nothing is compared
    assert stored.train.table.equals(found.train.table) and stored.train.sources == found.train.sources
    assert capsys.readouterr().out == "" and stored.left_out is None
    (table.parent / "naevus.jpg").unlink()
    with pytest.raises(UserError, match="lacks 1 of the 9 images that the run added from it, such as naevus"):
        load_splits(data, sample, found.table)


def test_ids_of_the_archive_in_any_path() -> None:
    names = ["ISIC_0034321", "a/ISIC_0034321.jpg", r"C:\a\ISIC_0034321.png", "isic_0034321_downsampled", "a/b.png"]
    assert [_key(name) for name in names] == ["isic_0034321"] * 4 + ["a/b.png"]


def test_a_lesion_of_a_held_out_image_stays_out(sample: Path, splits: Splits, table: Path) -> None:
    """ISIC 2019 names HAM10000's lesions."""
    lesion = splits.validation.table["lesion_id"].iloc[0]
    text = table.read_text().replace("patient_id", "lesion_id").replace("new_mel,MEL,p0", f"new_mel,MEL,{lesion}")
    table.write_text(text)
    images = read_extra(load_config(None, [f"data.extra={table}"]).data)
    chosen = choose_extra(images, read_ham10000(sample), splits.table, sample, "mine.csv")
    reason = dict(zip(chosen.left_out["image_id"], chosen.left_out["reason"], strict=True))
    assert reason["new_mel"] == "lesion of a held-out image" and "new_nv" not in reason


def test_one_picture_with_two_labels_is_left_out(sample: Path, splits: Splits, table: Path) -> None:
    """As benign, without a diagnosis, it contradicts no class."""
    with table.open("a") as file:
        for name, label in (("again_nv", "mel"), ("again_df", "df")):
            (table.parent / f"{name}.jpg").write_bytes((table.parent / f"new_{name[-2:]}.jpg").read_bytes())
            file.write(f"\n{name},{label},p9{name}")
    data = load_config(None, [f"data.extra={table}"]).data
    ham = read_ham10000(sample)
    chosen = choose_extra(read_extra(data), ham, splits.table, sample, "x")
    reasons = chosen.left_out.set_index("image_id")["reason"]
    assert reasons["new_nv"] == reasons["again_nv"] == "looks the same as an image with another label"
    assert {"new_df", "again_df"} <= set(chosen.rows["image_id"])


def test_a_group_of_two_classes_is_two_lesions_in_training(sample: Path, splits: Splits, table: Path) -> None:
    table.write_text(table.read_text().replace("new_mel,MEL,p0", "new_mel,MEL,p1"))
    images = read_extra(load_config(None, [f"data.extra={table}"]).data)
    rows = choose_extra(images, read_ham10000(sample), splits.table, sample, "mine.csv").rows
    assert rows["lesion_id"].tolist()[:2] == ["extra patient_id p1 mel", "extra patient_id p1 nv"]


def test_published_labels_have_their_classes(tmp_path: Path) -> None:
    names = ["Nevus", '"Melanoma, NOS"', '"Squamous cell carcinoma, NOS"']
    for i in range(3):
        picture("nv", i).save(tmp_path / f"ISIC_{i}.jpg")
    lines = ["isic_id,diagnosis_1,diagnosis_3", *(f"ISIC_{i},x,{name}" for i, name in enumerate(names))]
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    images = read_extra(load_config(None, [f"data.extra={tmp_path / 'metadata.csv'}"]).data)
    assert images["dx"].tolist() == ["nv", "mel", ""]


def test_changed_files_are_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    picture("nv", 1).save(path)
    first = hash_images([str(path), "", str(path), str(tmp_path / "none.png")])
    picture("mel", 2).save(path)
    second = hash_images([str(path)])
    assert set(first) == {str(path)} and first != second
    cache = HashCache.of(SIDE)
    assert cache.get(str(path)) == second[str(path)]
    cache.path.write_text("damaged")
    assert HashCache.of(SIDE).entries == {}
    assert hash_images([str(path)]) == second
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))  # not a folder
    assert hash_images([str(path)]) == second


def test_the_key_changes_no_other_digest() -> None:
    assert settings_of(Config()) == []
    config = load_config(None, ["data.extra=/a/b/labels.csv", "data.extra_images=/a/b"])
    assert settings_of(config) == ["data.extra: labels.csv, was None"]
    with pytest.raises(UserError, match=r"option of data\.name=ham10000, not of cifar10"):
        load_config(None, ["data.name=cifar10", "data.extra=x.csv"])


@pytest.mark.slow
def test_a_run_with_extra_images(
    sample: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained, resumed, evaluated from another folder, audited; the images are on the list of the model file."""
    monkeypatch.chdir(table.parent)
    keys = ["data.meta=rule", "data.test=0.15", f"data.root={sample}", "data.extra=mine.csv", "model.weights=none"]
    keys.append("model.backbone=small_cnn")
    command(monkeypatch, "train", "name=more", *TINY, *keys, "--run", str(tmp_path / "runs/more"))
    run = tmp_path / "runs/more"
    command(monkeypatch, "train", "name=more", *TINY, *keys, "--run", str(run))
    monkeypatch.chdir(tmp_path)
    assert latest_run() == Path("runs/more")
    added = read_split(run)["lesion_id"].str.startswith(PREFIX)
    assert added.sum() == 9 and set(read_split(run)["split"][added]) == {"train"}
    command(monkeypatch, "eval", str(run))
    report = json.loads((run / "report.json").read_text())
    own, more = report["training_sources"]
    assert own["source"] == "HAM10000" and own["left_out"] == {}
    assert more["source"] == "mine.csv" and more["images"] == 9 and more["classes"]["nv"] == 3
    assert more["left_out"]["group of a held-out image"] == 2
    assert report["training_images"] == own["images"] + 9
    counts = pd.Series(own["classes"]) + pd.Series(more["classes"])
    assert report["training_prevalence"] == pytest.approx((counts / counts.sum()).to_dict())
    page = (run / "report.html").read_text()
    assert "Sources of the training images" in page and "looks like a held-out image, 1" in page
    command(monkeypatch, "audit", str(run), "--count", "5")
    found = load_splits(open_run(run).data, sample, read_split(run))
    known = known_images(found, open_run(run))
    ours = {n: image_hash(evaluation_pixels(table.parent / f"{n}.jpg", 32)) for n in ("new_nv", "scc")}
    assert known.match(["1", "2"], list(ours.values())).tolist() == [True, False]
    assert not known.match(["new_nv"], [(0, 0)]).any()  # the name of another person's image, too
    bounding = pd.DataFrame({"image_id": ["scc_20001"], "path": [str(table.parent / "scc.jpg")]})
    monkeypatch.setattr("export.training_images.bounding_images", lambda *_: {"a camera": bounding})
    assert known_images(found, open_run(run)).match(["scc_20001"], [(0, 0)]).tolist() == [True]
    text = recipe(open_run(run))
    assert "extra: mine.csv" in text and str(tmp_path) not in text


@pytest.fixture
def with_benign(table: Path) -> Path:
    """The table with four benign images without a diagnosis, one of the group of a test image."""
    rows = [
        ("benign_1", "benign", "p1"),
        ("benign_2", "Benign", "p8"),
        ("benign_3", "benign", ""),
        ("b_4", "benign", "q1"),
    ]
    for n, (name, *_) in enumerate(rows):
        picture("nv", 30 + n).save(table.parent / f"{name}.jpg", quality=85)
    table.write_text("\n".join([table.read_text(), *(",".join(row) for row in rows)]))
    return table


@pytest.mark.slow
def test_benign_images_without_a_diagnosis(
    sample: Path, splits: Splits, with_benign: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ["data.meta=rule", f"data.extra={with_benign}"]
    without = load_splits(load_config(None, keys).data, sample)
    found = load_splits(load_config(None, [*keys, "data.extra_benign=sum"]).data, sample)
    assert "vasc 1, benign 3)" in capsys.readouterr().out
    assert without.left_out is not None and found.left_out is not None
    assert count_reasons(without.left_out)["label without a class: benign"] == 3
    assert count_reasons(found.left_out)["group of a held-out image"] == 3
    benign = found.train.table[found.train.table["dx"] == "benign"]
    assert benign["image_id"].tolist() == ["benign_1", "benign_2", "benign_3"]
    assert set(found.train.labels[benign.index]) == {7} and found.label_names == (*DX, "benign")
    assert np.array_equal(found.train.labels[found.train.labels < 7], without.train.labels)
    assert found.train.table.iloc[:-3]["image_id"].tolist() == without.train.table["image_id"].tolist()
    for part in ("validation", "test", "meta"):
        assert getattr(found, part).table.equals(getattr(without, part).table)
        assert getattr(found, part).labels.max() < 7
    with pytest.raises(UserError, match=r"split\.csv holds the class 'benign'"):
        load_splits(load_config(None, keys).data, sample, found.table)
    moved = found.table.assign(split=found.table["split"].where(found.table["dx"] != "benign", "test"))
    with pytest.raises(UserError, match=r"split\.csv holds the class 'benign'"):
        load_splits(load_config(None, [*keys, "data.extra_benign=sum"]).data, sample, moved)
    noise = ["data.noise_rate=0.3", "data.meta_noise_rate=0.3"]
    noisy = load_splits(load_config(None, [*keys, *noise, "data.extra_benign=sum"]).data, sample)
    plain = load_splits(load_config(None, [*keys, *noise]).data, sample)
    assert set(noisy.train.labels[benign.index]) == {7}
    assert np.array_equal(noisy.train.labels[noisy.train.labels < 7], plain.train.labels)


def test_only_rows_of_the_training_split_are_used(sample: Path, splits: Splits, with_benign: Path) -> None:
    lines = with_benign.read_text().splitlines()
    parts = {"new_mel": "test", "new_nv": "Training", "new_bcc": "", "benign_2": "validation"}
    rows = [f"{line},{parts.get(line.partition(',')[0], 'train')}" for line in lines[1:]]
    with_benign.write_text("\n".join([f"{lines[0]},split", *rows]))
    keys = ["data.meta=rule", f"data.extra={with_benign}", "data.extra_benign=sum"]
    found = load_splits(load_config(None, keys).data, sample)
    assert found.left_out is not None
    reason = dict(zip(found.left_out["image_id"], found.left_out["reason"], strict=True))
    assert {name for name, text in reason.items() if text == "split is not train"} == {"new_mel", "new_bcc", "benign_2"}
    assert set(found.train.table["image_id"]) >= {"new_nv", "benign_1", "benign_3"}


@pytest.mark.slow
def test_a_run_with_benign_images(
    sample: Path,
    with_benign: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Trained in two sizes, resumed, evaluated and exported; every count names the images."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs/more"
    keys = [
        f"data.root={sample}",
        "data.meta=rule",
        f"data.extra={with_benign}",
        "data.extra_benign=sum",
        "data.test=0.15",
    ]
    keys += ["model.weights=none", "model.backbone=small_cnn", "objective=noise_weights", "data.size=40"]
    keys += ["objective.loss=balanced_softmax", "train.epochs=2", "train.first_share=0.5", "train.first_size=32"]
    command(monkeypatch, "train", "name=more", *TINY, *keys, "--run", str(run))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    drawn = [row["samples"] for row in rows if "samples" in row]
    assert all(list(row) == [*DX, "benign"] and row["benign"] <= 3 for row in drawn)
    assert max(row["benign"] for row in drawn) > 0
    split = read_split(run)
    assert (split["dx"] == "benign").sum() == 3
    command(monkeypatch, "eval", str(run))
    report = json.loads((run / "report.json").read_text())
    own, more = report["training_sources"]
    assert own["benign"] == 0 and more["benign"] == 3 and more["images"] == 12 and "benign" not in more["classes"]
    assert report["training_images"] == own["images"] + 12
    counts = pd.Series(own["classes"]) + pd.Series(more["classes"])
    assert report["training_prevalence"] == pytest.approx((counts / counts.sum()).to_dict())
    assert "3 images of mine.csv show benign lesions without a diagnosis" in (run / "report.html").read_text()
    weights = pd.read_csv(run / "weights.csv")
    assert (weights["label"] == "benign").sum() == 3
    command(monkeypatch, "audit", str(run), "--count", "200")
    assert "benign" in set(pd.read_csv(run / "audit.csv")["label"])
    export(run, [])
    card = (run / "MODEL_CARD.md").read_text()
    assert "mine.csv 12, of which 3 benign without a diagnosis" in card
    assert "extra_benign: sum" in card


@pytest.mark.slow
def test_a_head_on_embeddings_learns_from_benign_images(
    sample: Path, with_benign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also resumed after the first epoch, with the same end."""
    keys = [f"data.root={sample}", "data.meta=rule", f"data.extra={with_benign}", "data.extra_benign=sum", *TINY]
    keys += ["model.weights=none", "model.freeze=backbone", "model.embedding_views=2", "objective=reweight"]
    config = load_config(None, ["name=more", *keys, "objective.loss=balanced_softmax", "train.epochs=2"])
    whole = train(config, tmp_path / "whole")

    def stop(self: HeadLoop) -> None:
        validate(self)
        self.save("last.pt")
        raise KeyboardInterrupt

    validate = HeadLoop.validate
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(HeadLoop, "validate", stop)
        train(config, tmp_path / "parts")
    resumed = train(config, tmp_path / "parts")
    one, other = (load_checkpoint(run / "last.pt") for run in (whole, resumed))
    assert all(torch.equal(one["model"][name], other["model"][name]) for name in one["model"])
    assert torch.equal(one["objective"]["sum"], other["objective"]["sum"])
    weights = pd.read_csv(whole / "weights.csv")
    assert (weights["label"] == "benign").sum() == 3


def test_validation_rows_by_source_without_what_was_trained_on(table: Path) -> None:
    """Their groups, ids and copies are known from the run, whatever its split of the table was."""
    more = table.parent
    picture("mel", 40).save(more / "of_a_trained_group.jpg")
    picture("bkl", 41).save(more / "camera_b.jpg")
    picture("nv", 42).save(more / "patient_of_a_copy.jpg")
    Image.open(more / "new_mel.jpg").resize((100, 75)).save(more / "copy.jpg", quality=90)
    rows = [
        ("new_mel", "mel", "p0", "A", "train"),
        ("new_nv", "nv", "p1", "A", "validation"),
        ("naevus", "nv", "p2", "", "validation"),
        ("camera_b", "bkl", "p3", "B", "val"),
        ("of_a_trained_group", "mel", "p0", "A", "validation"),
        ("copy", "mel", "p4", "B", "validation"),
        ("patient_of_a_copy", "nv", "p4", "B", "validation"),
        ("new_bcc", "bcc", "p5", "A", "test"),
        ("broken", "nv", "p6", "A", "validation"),
        ("gone", "nv", "p7", "A", "validation"),
    ]
    lines = ["image,label,patient_id,source,split", *(",".join(row) for row in rows)]
    (more / "parts.csv").write_text("\n".join(lines))
    data = load_config(None, [f"data.extra={more / 'parts.csv'}"]).data
    trained = pd.DataFrame({"image_id": ["new_mel"], "lesion_id": [f"{PREFIX}patient_id p0"]})
    nothing = pd.DataFrame({"image_id": [], "path": []}, dtype=str)
    found = validation_sources(data, trained, [str(more / "new_mel.jpg")], nothing)
    assert {name: part["image_id"].tolist() for name, part in found.items()} == {
        "A": ["new_nv"], "B": ["camera_b"], "parts.csv": ["naevus"],
    }  # fmt: skip
    several = trained.assign(lesion_id=f"{PREFIX}patient_id p1 nv")  # a group of two classes has one name for each
    assert "new_nv" not in validation_sources(data, several, [], nothing)["A"]["image_id"].tolist()
    plain = load_config(None, [f"data.extra={table}"]).data
    assert validation_sources(plain, trained, [], nothing) == {}
    for held in ({"image_id": "NEW_NV", "path": ""}, {"image_id": "x", "path": str(more / "new_nv.jpg")}):
        assert "A" not in validation_sources(data, trained, [], pd.DataFrame([held]))


def test_what_a_run_holds_out(sample: Path) -> None:
    split = load_splits(load_config(None, ["data.name=sample", "data.meta=rule"]).data, sample).table
    held = held_out(sample, split)
    used = set(split["image_id"][split["split"].isin(["train", "validation"])])
    everything = set(read_folder(sample).table["image_id"])
    assert everything - used <= set(held["image_id"]) and not used & set(held["image_id"])
    assert len(everything - used) < len(everything)


@pytest.mark.slow
def test_check_gives_the_numbers_without_training(
    sample: Path, table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ["data.meta=rule", "data.validation=0.15", "data.test=0.15"]
    load_splits(load_config(None, [*keys, f"data.extra={table}"]).data, sample)
    want = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("Added", "Left out"))]
    command(monkeypatch, "check", str(sample), f"data.extra={table}", *keys)
    printed = capsys.readouterr().out
    assert len(want) == 2 and "\n".join(want) in printed and printed.rstrip().splitlines()[-1].startswith("Complete")
    monkeypatch.setenv("HAM10000_DIR", str(sample))
    command(monkeypatch, "check", f"data.extra={table}", *keys)  # without the folder
    assert "\n".join(want) in capsys.readouterr().out
    for arguments, message in (
        (["check", str(sample), "data.split_seed=1"], "only with data.extra=TABLE"),
        (["check", str(table), f"data.extra={table}"], "data.extra is an option of data.name=ham10000"),
        (["check", str(sample), "data.extra=absent.csv"], "which does not exist"),
    ):
        with pytest.raises(SystemExit):
            command(monkeypatch, *arguments)
        assert message in capsys.readouterr().err

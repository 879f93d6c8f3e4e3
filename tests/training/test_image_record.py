"""A run that starts from the weights of another: its head, and the images that must not judge it."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY
from PIL import Image

from dermrw.config import Config, load_config
from dermrw.datasets.dataset import ImageSet, Splits, load_splits, resolve_root
from dermrw.datasets.sample_drawing import draw_lesion
from dermrw.diagnoses import DX, HAM_CLASSES
from dermrw.errors import UserError
from dermrw.evaluation.predict import load_best
from dermrw.images.preprocess import evaluation_pixels
from dermrw.inference.classifier import Classifier
from dermrw.inference.known_images import KEY, ImageHash, KnownImages, id_digest, image_hash
from dermrw.training.checkpoint import load_checkpoint
from dermrw.training.image_overlap import FILE as OVERLAP_FILE
from dermrw.training.image_overlap import (
    copies_across_splits,
    hashes_array,
    known_by,
    require_same_pictures,
    require_unseen,
)
from dermrw.training.image_record import FILE, METADATA, NOTHING, ImageRecord, group_keys, hashes_of, of_other_images
from dermrw.training.run_data import run_splits
from dermrw.training.train import train
from dermrw.weights import safetensors_bytes
from export.__main__ import export, export_encoder


def start(place: Path, weights: Path, *keys: str, name: str = "second") -> Path:
    settings = [
        *TINY,
        "data.name=sample",
        "data.meta=rule",
        f"data.root={place / 'data/sample'}",
        f"model.weights={weights}",
        *keys,
    ]
    return train(load_config(None, settings), place / "runs" / name)


@pytest.fixture
def first(run: Path, sample: Path, place: Path) -> Path:
    """A run whose data the second one can find."""
    (place / "data").mkdir(exist_ok=True)
    if not (place / "data/sample").exists():
        shutil.copytree(sample, place / "data/sample")
    return run


def test_the_head_comes_along(first: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, origin = load_checkpoint(first / "best.pt")["model"], first / "best.pt"
    still = ["train.lr=1e-30", "train.weight_decay=0"]  # the parameters stay as they start
    kept = load_checkpoint(start(place, origin, "model.keep_head=true", *still) / "best.pt")["model"]
    assert "with its head" in capsys.readouterr().out
    assert all(torch.equal(kept[name], tensor) for name, tensor in weights.items() if name.startswith("16."))
    fresh = load_checkpoint(start(place, origin, *still, name="third") / "best.pt")["model"]
    assert not torch.equal(fresh["16.weight"], weights["16.weight"])
    assert torch.equal(fresh["0.weight"], weights["0.weight"])


def test_a_head_of_other_classes_is_refused(first: Path, place: Path) -> None:
    state = torch.load(first / "best.pt", weights_only=True)
    for classes, reason in ((state["classes"][::-1], "a head for the classes vasc, "), (None, "no head whose classes")):
        torch.save({**state, "classes": classes}, place / "other.pt")
        with pytest.raises(UserError, match=reason):
            start(place, place / "other.pt", "model.keep_head=true")
    head = {"16.weight": state["model"].pop("16.weight")}
    state["model"].pop("16.bias")
    torch.save({**state, "model": {**state["model"], **head}}, place / "other.pt")
    with pytest.raises(UserError, match="another kind of head"):
        start(place, place / "other.pt", "model.keep_head=true")
    with pytest.raises(UserError, match=r"keep_head requires model\.weights=FILE"):
        load_config(None, ["model.keep_head=true"])


def test_training_images_of_the_weights_may_not_judge_the_run(
    first: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the file is called, and wherever it is."""
    export_encoder(first, place / "encoder.safetensors")
    shutil.copy(first / "best.pt", place / "copy.pt")
    (place / "link.pt").symlink_to(first / "last.pt")
    files = [first / "best.pt", place / "copy.pt", place / "link.pt", place / "encoder.safetensors"]
    for weights in files:
        for key in ("data.split_seed=5", "data.test=0.4"):
            with pytest.raises(
                UserError, match=r"was trained( or selected)? on \d+ of the \d+ (test|validation) images"
            ):
                start(place, weights, key)
    assert not (place / "runs/second").exists()
    capsys.readouterr()
    for number, weights in enumerate(files):  # the same split
        assert start(place, weights, name=f"same{number}").is_dir()
    assert "too good" not in capsys.readouterr().out


def test_images_of_a_lesion_count_like_it(first: Path, place: Path) -> None:
    record = ImageRecord.of_run(first)
    config = load_config(first / "config.yaml")
    splits = run_splits(first, config)
    require_unseen(record, splits, config, {}, first)
    for part, other in (("test", "validation"), ("validation", "train")):
        table = getattr(splits, part).table.copy()
        table["lesion_id"] = (
            getattr(splits, other).table["lesion_id"].iloc[0]
        )  # under names that the weights don't know
        table["image_id"] = [f"ISIC_99{i:05}" for i in range(len(table))]
        changed = splits._replace(**{part: replace(getattr(splits, part), table=table)})
        sentence = rf"on {len(table)} of the {len(table)} {part} images of this run \(known by lesion {len(table)}\)"
        with pytest.raises(UserError, match=sentence):
            require_unseen(record, changed, config, {}, first)


def test_a_runs_own_images_stay_known_after_weights_that_do_not_tell(
    first: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The encoder of a model file doesn't tell training from validation images; the runs after it do, and say so."""
    own = ImageRecord.of_run(first)
    config = load_config(first / "config.yaml")
    half = own._replace(fitted=KnownImages.of([], []), selected=own.used, gaps=("something is not known",))
    merged = ImageRecord.of_split(pd.read_csv(first / "split.csv"), config, {}, half)
    assert merged.fitted.ids == own.fitted.ids
    assert ImageRecord.of_text(merged.to_text(), "x").fitted.ids == own.fitted.ids
    require_unseen(merged, run_splits(first, config), config, {}, first)
    assert ": something is not known. Figures on such images would be too good" in capsys.readouterr().out


def draw_table(folder: Path, names: Sequence[str], seed: int = 0, patients: bool = True) -> Path:
    """A table whose images have these names; the seed gives the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [f"image,label{',patient' * patients}"]
    for i, name in enumerate(names):
        path = folder / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        code = DX[i % 2]
        rng = np.random.default_rng([seed, i])
        Image.fromarray(draw_lesion(code, rng, np.random.default_rng([seed, i, 1]), 90, 120)).save(path)
        rows.append(f"{name}.png,{code}{f',P{i // 4}' * patients}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    return folder / "table.csv"


def on_table(table: Path, *keys: str) -> tuple[Splits, Config]:
    """The split that a run on a table would have."""
    config = load_config(None, [*TINY, "data.name=table", f"data.root={table}", "data.meta_per_class=1", *keys])
    return load_splits(config.data, resolve_root(config.data)), config


def record_of(splits: Splits, config: Config) -> tuple[ImageRecord, dict[str, ImageHash]]:
    hashes = hashes_of([splits.train, splits.validation, splits.test, splits.meta], config)
    record = ImageRecord.of_split(splits.table, config, hashes, None)
    return ImageRecord.of_text(record.to_text(), "x"), hashes


def test_own_images_are_known_by_their_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In another folder and under other names. Names such as IMG_20230001 of other pictures are not the same image."""
    names = [f"IMG_202300{i:02}" for i in range(48)]
    table = draw_table(tmp_path / "mine", names)
    splits, config = on_table(table)
    record, hashes = record_of(splits, config)
    require_unseen(record, splits, config, hashes, tmp_path)
    assert "too good" not in capsys.readouterr().out and not record.gaps

    copied = tmp_path / "copied"  # JPEGs under running numbers, in another order and without patients
    copied.mkdir()
    rows = ["image,label"]
    for i, name in enumerate(reversed(names)):
        with Image.open(table.parent / f"{name}.png") as image:
            image.save(copied / f"{i}.jpg", quality=80)
        rows.append(f"{i}.jpg,{DX[(47 - i) % 2]}")
    (copied / "table.csv").write_text("\n".join(rows) + "\n")
    others, other_config = on_table(copied / "table.csv")
    _, other_hashes = record_of(others, other_config)
    with pytest.raises(UserError, match=r"\d+ of the \d+ test images of this run \(known by picture \d+\)") as raised:
        require_unseen(record, others, other_config, other_hashes, tmp_path)
    used = splits.table["image_id"][splits.table["split"] != "test"]
    both = sum(names[47 - int(name)] in set(used) for name in others.test.table["image_id"])
    assert f"on {both} of the {len(others.test)} test images" in str(raised.value)

    fresh, fresh_config = on_table(draw_table(tmp_path / "fresh", names, seed=1))
    _, fresh_hashes = record_of(fresh, fresh_config)
    require_unseen(record, fresh, fresh_config, fresh_hashes, tmp_path)
    assert "belong to a patient that is named in another table" in capsys.readouterr().out


def test_a_refused_table_lists_its_known_images_and_the_remedy_works(tmp_path: Path) -> None:
    table = draw_table(tmp_path / "mine", [str(i) for i in range(48)], patients=False)
    splits, config = on_table(table)
    record, _ = record_of(splits, config)
    others, other_config = on_table(table, "data.split_seed=3")
    _, hashes = record_of(others, other_config)
    with pytest.raises(UserError, match="The figures would be too good: add a column split") as raised:
        require_unseen(record, others, other_config, hashes, tmp_path)
    listed = pd.read_csv(tmp_path / OVERLAP_FILE, dtype=str)
    used = splits.table["image_id"][splits.table["split"] != "test"]
    assert set(listed["image"]) == set(used) and set(listed["known_by"]) == {"picture"}
    assert f"train for the {len(used)} images that" in str(raised.value)
    assert all(Path(path).is_file() for path in listed["path"])
    assert "was trained or selected on" in str(raised.value) and "and trained on" in str(raised.value)

    rows = pd.read_csv(table, dtype=str)
    fresh = rows.index[~rows["image"].str.removesuffix(".png").isin(listed["image"])]
    rows["split"] = "train"
    turn = rows.loc[fresh].groupby("label").cumcount() % 2  # each part has both classes
    rows.loc[fresh, "split"] = turn.map({0: "test", 1: "validation"})
    rows.to_csv(table, index=False)
    divided, divided_config = on_table(table)
    require_unseen(record, divided, divided_config, record_of(divided, divided_config)[1], tmp_path)


def test_the_list_of_known_images_has_whole_groups(tmp_path: Path) -> None:
    """Also images of the groups of meta images, which the drawn split leaves out."""
    table = draw_table(tmp_path / "mine", [str(i) for i in range(48)])
    splits, config = on_table(table)
    record, _ = record_of(splits, config)
    others, other_config = on_table(table, "data.split_seed=3")
    with pytest.raises(UserError, match="Groups count as the same because the table has the same path"):
        require_unseen(record, others, other_config, record_of(others, other_config)[1], tmp_path)
    rows = pd.read_csv(table, dtype=str)
    is_listed = rows["image"].str.removesuffix(".png").isin(pd.read_csv(tmp_path / OVERLAP_FILE, dtype=str)["image"])
    assert is_listed.any() and not set(rows["patient"][is_listed]) & set(rows["patient"][~is_listed])
    assert len(others.table) < len(rows)
    with pytest.raises(UserError, match=r"restore the file of model\.weights, or name another RUN"):
        require_unseen(record, others, other_config, {}, tmp_path, resumed=True)

    used = record._replace(fitted=KnownImages(record.fitted.ids, record_of(splits, config)[0].used.hashes))
    every = used._replace(fitted=used.fitted.united(KnownImages.of([], hashes_of([splits.test], config).values())))
    with pytest.raises(UserError, match="the weights know all images of the table, so name other weights"):
        require_unseen(every, others, other_config, record_of(others, other_config)[1], tmp_path)


def test_copies_within_a_table_are_its_own_fault(tmp_path: Path) -> None:
    """They are reported in the first stage, and the same split is accepted in the second."""
    table = draw_table(tmp_path / "mine", [str(i) for i in range(48)], patients=False)
    rows = pd.read_csv(table, dtype=str)
    for i in range(24):  # under other names, resized: no identical pixels
        with Image.open(table.parent / f"{i}.png") as image:
            image.resize((240, 180)).save(table.parent / f"copy{i}.png")
    more = rows.iloc[:24].assign(image=[f"copy{i}.png" for i in range(24)])
    pd.concat([rows, more]).to_csv(table, index=False)
    splits, config = on_table(table)
    record, hashes = record_of(splits, config)
    note = copies_across_splits(splits, hashes)
    assert note is not None and "look like an image of another split, such as" in note
    require_unseen(record, splits, config, hashes, tmp_path)
    whole = ImageSet(splits.test.table, splits.test.labels, splits.test.sources)
    assert any(known_by(record.fitted, whole, config, hashes))
    training = hashes_array([splits.train, splits.meta], hashes)
    assert not any(known_by(record.fitted, whole, config, hashes, training))
    others, other_config = on_table(table, "data.split_seed=3")  # another split is refused all the same
    with pytest.raises(UserError, match="The figures would be too good"):
        require_unseen(record, others, other_config, record_of(others, other_config)[1], tmp_path)


def test_groups_whose_names_differ_in_case_are_two(tmp_path: Path) -> None:
    table = pd.DataFrame({"image_id": ["a", "b", "c"], "lesion_id": ["patient q", "patient Q", "b"]})
    config = load_config(None, ["data.name=table", f"data.root={tmp_path}"])
    keys = [key for key, _ in group_keys(table, config)]
    assert None not in keys[:2] and keys[0] != keys[1] and keys[2] is None
    assert [key for key, _ in group_keys(table.iloc[:1].assign(lesion_id="lesion_id HAM_0000118"), config)] == [
        id_digest("group of HAM_0000118")
    ]


def test_groups_of_a_table_and_archive_names(tmp_path: Path) -> None:
    """An image of a known patient counts, in the same table; ids of public archives are known in any folder."""
    table = draw_table(tmp_path / "mine", [f"a/{i}" for i in range(48)])
    splits, config = on_table(table)
    record, hashes = record_of(splits, config)
    moved = splits.test.table.assign(lesion_id=splits.train.table["lesion_id"].iloc[0])
    moved["image_id"] = [f"new {i}" for i in range(len(moved))]
    changed = splits._replace(test=replace(splits.test, table=moved))
    with pytest.raises(UserError, match=rf"\(known by patient {len(moved)}\)"):
        require_unseen(record, changed, config, hashes, tmp_path)
    with pytest.raises(UserError, match="add a column split to the table, with train for the"):
        require_unseen(record, splits._replace(test=splits.train), config, {}, tmp_path)
    one = splits.test.part(lambda rows: rows[:1])
    for name in ("ISIC_0000882", "b/isic_0000882.png"):
        one = replace(one, table=one.table.assign(image_id=name, lesion_id="patient of nobody"))
        split = pd.DataFrame({"image_id": [name.upper()], "lesion_id": ["a"], "dx": ["nv"], "split": ["train"]})
        known = ImageRecord.of_split(split, load_config(None, ["data.name=table", "data.root=/elsewhere"]), {}, None)
        with pytest.raises(UserError, match=r"\(known by name 1\)"):
            require_unseen(known, splits._replace(test=one), config, {}, tmp_path)
        assert known.gaps[0].startswith("no hash of 1 training image is stored")


def test_records_of_the_first_format_are_read(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """They have no hashes, so images such as 1.jpg are compared with nothing."""
    known = KnownImages.of(["ISIC_0000882"], [])
    values = {"fitted": known.to_prop(), "used": known.to_prop(), KEY: known.to_prop(), "local": 3, "folder": "ab"}
    record = ImageRecord.of_text(json.dumps({**values, "licences": ["Free."]}), "x")
    assert record.fitted.ids == record.used.ids == record.names == known.ids and record.licences == ("Free.",)
    splits, config = on_table(draw_table(tmp_path / "mine", [str(i) for i in range(48)]))
    require_unseen(record, splits, config, {}, tmp_path)
    assert "no hash of 4 training images is stored" in capsys.readouterr().out
    hashed = {**values, KEY: KnownImages.of(["ISIC_0000882"], [(3, 4)]).to_prop(), "licences": []}
    assert ImageRecord.of_text(json.dumps(hashed), "x").known.hashes.tolist() == [[3, 4]]
    half = ImageRecord.of_text(json.dumps({**values, "fitted": None, "licences": []}), "x")
    assert half.fitted.ids == frozenset() and half.used.ids == known.ids and len(half.gaps) == 2


def test_a_run_on_a_table_knows_its_images_in_its_model_file(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also those of the first stage: `score` leaves them out, although their names say nothing."""
    pictures = draw_table(tmp_path / "one", [str(i) for i in range(48)])
    second = draw_table(tmp_path / "two", [str(i) for i in range(48)], seed=1)
    keys = [*TINY, "data.size=128", "data.name=table", "data.meta_per_class=1"]
    first = train(load_config(None, [*keys, f"data.root={pictures}", "model.weights=none"]), place / "runs/one")
    run = train(load_config(None, [*keys, f"data.root={second}", f"model.weights={first / 'best.pt'}"]), place / "two")
    record = ImageRecord.of_run(run)
    assert len(record.weights) == 64 and not record.gaps
    export(run, [])
    known = Classifier(run / "model.onnx").known_images()
    assert known is not None
    for stage in (first, run):
        split = pd.read_csv(stage / "split.csv", dtype=str)
        images = (pictures if stage == first else second).parent
        hashes = [image_hash(evaluation_pixels(images / f"{name}.png", 128)) for name in split["image_id"]]
        found = known.match(split["image_id"].tolist(), hashes)
        assert found[split["split"] != "test"].all() and not found[split["split"] == "test"].any()
    encoder = ImageRecord.of_weights(run / "encoder.safetensors")
    assert encoder is not None and encoder.used.hashes.tolist() == record.used.hashes.tolist()
    metadata = {"backbone": "small_cnn", KEY: known.to_prop()}  # as of the encoder of a model file
    (place / "file.safetensors").write_bytes(safetensors_bytes({}, metadata))
    third = ImageRecord.of_weights(place / "file.safetensors")
    assert third is not None and len(third.gaps) == 2
    with pytest.raises(UserError, match="known by picture"):  # an encoder of a model file, and names that say nothing
        splits, config = on_table(pictures, "data.split_seed=3")
        require_unseen(third, splits, config, hashes_of([splits.validation, splits.test], config), tmp_path)


def test_weights_without_a_record_are_named(first: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of an earlier version of dermrw: known by the run's split.csv, as long as they are in its folder."""
    state = torch.load(first / "best.pt", weights_only=True)
    del state[METADATA]
    for path in (first / "best.pt", place / "copy.pt"):
        torch.save(state, path)
    before = ImageRecord.of_run(first)
    (first / FILE).unlink()
    found = ImageRecord.of_weights(first / "best.pt")
    assert found is not None and found.fitted.ids == before.fitted.ids and found.used.ids == before.used.ids
    assert ImageRecord.of_weights(place / "copy.pt") is None
    assert "does not list the images" in capsys.readouterr().out
    torch.save(state["model"], place / "weights.pth")  # of another program
    assert ImageRecord.of_weights(place / "weights.pth") is None
    assert "weights.pth does not list the images" in capsys.readouterr().out
    assert ImageRecord.of_weights(None) is None and capsys.readouterr().out == ""
    (first / "split.csv").unlink()
    (first / "last.pt").unlink()  # it has a record
    with pytest.raises(UserError, match=r"the run of model\.weights="):
        ImageRecord.of_weights(first / "best.pt")


@pytest.mark.slow
def test_the_model_file_lists_the_images_of_all_stages(first: Path, place: Path) -> None:
    """Also an image that only the first run was trained on, and the licence of the first weights, once."""
    split = pd.read_csv(first / "split.csv")
    further = split[split["split"] == "train"].head(1).assign(image_id="ISIC_9999999", lesion_id="HAM_9999999")
    config = load_config(first / "config.yaml")
    record = ImageRecord.of_split(pd.concat([split, further]), config, {}, None)  # as if the first run had data.extra
    record = record._replace(licences=(*record.licences, "Only for tests."))
    state = torch.load(first / "best.pt", weights_only=True)
    torch.save({**state, METADATA: record.to_text()}, first / "best.pt")
    second = start(place, first / "best.pt")
    third = start(place, second / "best.pt", name="third")
    shutil.rmtree(first)
    shutil.rmtree(second)
    export(third, [])
    classifier = Classifier(third / "model.onnx")
    known = classifier.known_images()
    assert known is not None and len(known.ids) == 1 + (split["split"] != "test").sum()
    assert id_digest("ISIC_9999999") in known.ids and len(known.hashes) > 0
    licence = classifier.info.licence
    assert licence.count("Apache-2.0") == 1
    assert licence.endswith("Training started from weights with this licence: Only for tests.")
    export_encoder(third, place / "third.safetensors")
    again = ImageRecord.of_weights(place / "third.safetensors")
    assert again is not None and again.names == known.ids and again.licences == record.licences
    metadata = {"backbone": "small_cnn", KEY: known.to_prop()}  # as of the encoder of a model file
    (place / "file.safetensors").write_bytes(safetensors_bytes({}, metadata))
    listed = ImageRecord.of_weights(place / "file.safetensors")
    assert listed is not None and not listed.fitted.ids and listed.used.ids == known.ids


def test_a_run_is_resumed_after_its_weights_are_gone(first: Path, place: Path) -> None:
    shutil.copy(first / "best.pt", place / "gone.pt")
    run = start(place, place / "gone.pt", "model.keep_head=true", "train.epochs=2")
    whole = load_checkpoint(run / "last.pt")
    state = torch.load(run / "last.pt", weights_only=True)
    (place / "gone.pt").unlink()
    assert start(place, place / "gone.pt", "model.keep_head=true", "train.epochs=2") == run
    assert torch.equal(state["model"]["0.weight"], whole["model"]["0.weight"])


def test_a_run_without_a_checkpoint_is_resumed_with_the_same_weights_only(first: Path, place: Path) -> None:
    """Otherwise the images of other weights would be compared with nothing."""
    weights = Path(shutil.copy(first / "best.pt", place / "first.pt"))
    run = start(place, weights)
    for path in (run / "last.pt", run / "best.pt"):
        path.unlink()
    assert start(place, weights) == run
    shutil.copy(first / "last.pt", weights)
    assert start(place, weights) == run  # the checkpoint counts
    for path in (run / "last.pt", run / "best.pt"):
        path.unlink()
    with pytest.raises(UserError, match=r"is not the file that .* was started from"):
        start(place, weights)


def test_a_run_without_a_checkpoint_and_without_a_list_is_compared_again(first: Path, place: Path) -> None:
    weights = Path(shutil.copy(first / "best.pt", place / "first.pt"))
    run = start(place, weights)
    before = (run / FILE).read_text()
    for name in ("last.pt", "best.pt", FILE):
        (run / name).unlink()
    assert start(place, weights) == run and (run / FILE).read_text() == before
    for name in ("last.pt", "best.pt", FILE):
        (run / name).unlink()
    state = torch.load(weights, weights_only=True)
    record = ImageRecord.of_text(state[METADATA], "x")
    split = pd.read_csv(run / "split.csv")
    tests = record.fitted.added(split["image_id"][split["split"] == "test"], record.fitted.hashes)
    torch.save({**state, METADATA: record._replace(fitted=tests).to_text()}, weights)
    with pytest.raises(UserError, match="was trained or selected on"):
        start(place, weights)


def test_a_lost_list_of_images_is_restored_from_the_checkpoint(first: Path, place: Path) -> None:
    text = (first / FILE).read_text()
    record = ImageRecord.of_text(text, "x")
    record = record._replace(licences=(*record.licences, "Only for tests."))  # as of earlier weights
    for name in ("last.pt", "best.pt"):
        state = torch.load(first / name, weights_only=True)
        torch.save({**state, METADATA: record.to_text()}, first / name)
    (first / FILE).unlink()
    assert ImageRecord.of_run(first).licences == record.licences
    (first / "last.pt").unlink()
    assert ImageRecord.of_run(first).licences == record.licences
    (first / "best.pt").unlink()  # only split.csv is left
    assert ImageRecord.of_run(first).gaps == ()
    text = (first / "config.yaml").read_text().replace("weights: none", "weights: first.pt")
    (first / "config.yaml").write_text(text)
    assert "training images of its own first weights are not known" in ImageRecord.of_run(first).gaps[0]


def test_damaged_records_and_headers_are_one_sentence(first: Path, place: Path) -> None:
    for content in (
        "[]",
        "{",
        "[" * 100_000,
        '{"licences": null}',
        '{"fitted": "x", "used": "x", "known_images": "x"}',
    ):
        (first / FILE).write_text(content)
        with pytest.raises(UserError, match=rf"{FILE} is damaged"):
            ImageRecord.of_run(first)
    for header in (b"{nonsense", b"[1]     ", b'{"__metadata__": [1]}', b"{\xff\xfe  "):
        (place / "bad").write_bytes(len(header).to_bytes(8, "little") + header)
        with pytest.raises(UserError, match=r"is damaged|must be a file"):
            start(place, place / "bad")


def test_other_pictures_under_the_same_names_are_refused(tmp_path: Path) -> None:
    """After a renumbering, pictures of the training may be in the test split. Resized copies are the same pictures."""
    table = draw_table(tmp_path / "mine", [str(i) for i in range(48)], patients=False)
    splits, config = on_table(table)
    record, _ = record_of(splits, config)
    require_same_pictures(record, splits.validation, config)
    files = sorted(table.parent.glob("*.png"))
    for path in files:
        with Image.open(path) as image:
            image.resize((240, 180)).save(path)
    require_same_pictures(record, splits.validation, config)
    contents = [path.read_bytes() for path in files]
    for path, content in zip(files, contents[1:] + contents[:1], strict=True):
        path.write_bytes(content)
    with pytest.raises(UserError, match="validation images are other pictures than in training, such as"):
        require_same_pictures(record, splits.validation, config)
    # lists without hashes of the run's own images, as of 28 November, that may hold those of its first weights
    for without in (record._replace(fitted=NOTHING), record._replace(selected=NOTHING)):
        require_same_pictures(without, splits.validation, config)


def test_records_of_two_splits_differ(tmp_path: Path) -> None:
    table = draw_table(tmp_path / "mine", [str(i) for i in range(48)], patients=False)
    texts = [record_of(*on_table(table, f"data.split_seed={seed}"))[0].to_text() for seed in (0, 1)]
    assert of_other_images(*texts) and not of_other_images(texts[0], texts[0])
    without = ImageRecord.of_text(texts[0], "x")
    without = without._replace(fitted=without.fitted._replace(hashes=without.fitted.hashes[:0]))
    assert not of_other_images(texts[0], without.to_text())  # as if the files could not be read
    for unknown in ("[]", "{", '{"format": 1}', '{"format": 2}'):
        assert not of_other_images(unknown, texts[0])


def test_a_checkpoint_of_another_run_is_refused(first: Path, place: Path) -> None:
    """With the same classes it would fit, and test images of this run may have trained it."""
    record = ImageRecord.of_run(first)
    other = record._replace(fitted=record.fitted.added(["another"], record.fitted.hashes)).to_text()
    config = load_config(first / "config.yaml")
    for name in ("best.pt", "last.pt"):
        state = torch.load(first / name, weights_only=True)
        torch.save({**state, METADATA: other}, first / name)
    with pytest.raises(UserError, match=r"best\.pt was trained on other images than"):
        load_best(first, config, HAM_CLASSES)
    with pytest.raises(UserError, match=r"last\.pt was trained on other images than"):
        train(config, first)


def test_a_training_is_not_resumed_with_other_pictures(tmp_path: Path) -> None:
    table = draw_table(tmp_path / "mine", [str(i) for i in range(48)], patients=False)
    config = on_table(table, "model.weights=none")[1]
    run = train(config, tmp_path / "run")
    files = sorted(table.parent.glob("*.png"))
    contents = [path.read_bytes() for path in files]
    for path, content in zip(files, contents[1:] + contents[:1], strict=True):
        path.write_bytes(content)
    with pytest.raises(UserError, match="validation images are other pictures than in training"):
        train(config, run)

"""A run that starts from the weights of another: its head, and the images that must not judge it."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY

from dermrw.config import Config, load_config
from dermrw.datasets.dataset import ImageSet, Splits
from dermrw.diagnoses import HAM_CLASSES
from dermrw.errors import UserError
from dermrw.inference.classifier import Classifier
from dermrw.inference.known_images import KEY, id_digest
from dermrw.training.checkpoint import load_checkpoint
from dermrw.training.image_record import FILE, METADATA, ImageRecord
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
            with pytest.raises(UserError, match=r"trained or selected on \d+ of the \d+ (test|validation) images"):
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
    record.require_unseen(splits, config)
    for part, other in (("test", "validation"), ("validation", "train")):
        table = getattr(splits, part).table.copy()
        table["lesion_id"] = (
            getattr(splits, other).table["lesion_id"].iloc[0]
        )  # under names that the weights don't know
        table["image_id"] = [f"ISIC_99{i:05}" for i in range(len(table))]
        changed = splits._replace(**{part: replace(getattr(splits, part), table=table)})
        with pytest.raises(UserError, match=f"on {len(table)} of the {len(table)} {part} images"):
            record.require_unseen(changed, config)


def test_a_runs_own_images_stay_known_after_weights_that_do_not_tell(first: Path) -> None:
    """The encoder of a model file doesn't tell training from validation images; the runs after it do."""
    own = ImageRecord.of_run(first)
    merged = ImageRecord.of_split(
        pd.read_csv(first / "split.csv"), load_config(first / "config.yaml"), own._replace(fitted=None)
    )
    assert merged.fitted == own.fitted and ImageRecord.of_text(merged.to_text(), "x").fitted == own.fitted


def test_names_of_a_users_own_images(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Running numbers are compared within one folder only."""

    def splits(names: list[str]) -> Splits:
        table = pd.DataFrame({"image_id": names, "lesion_id": [f"patient {i}" for i in range(len(names))], "dx": "nv"})
        images = ImageSet(table, np.zeros(len(names), np.int64), names)
        return Splits(HAM_CLASSES, table, images, images, images, images, None, None, ())

    def config(folder: str) -> Config:
        return load_config(None, ["data.name=table", f"data.root={tmp_path / folder}"])

    for name, compared in (("1.jpg", False), ("00011.jpg", False), ("a/ISIC_0000882.jpg", True), ("p_73812", True)):
        split = pd.DataFrame({"image_id": [name, "x"], "lesion_id": ["a", "b"], "split": ["train", "test"]})
        record = ImageRecord.of_split(split, config("mine"), None)
        assert ImageRecord.of_text(record.to_text(), "x").to_text() == record.to_text()
        with pytest.raises(UserError, match="by a column split in the table"):
            record.require_unseen(splits([name]), config("mine"))
        capsys.readouterr()
        if compared:
            with pytest.raises(UserError, match="too good"):
                record.require_unseen(splits([name]), config("other"))
        else:
            record.require_unseen(splits([name]), config("other"))
            assert "1 of the images that" in capsys.readouterr().out


def test_weights_without_a_record_are_named(first: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of an earlier version of dermrw: known by the run's split.csv, as long as they are in its folder."""
    state = torch.load(first / "best.pt", weights_only=True)
    del state[METADATA]
    for path in (first / "best.pt", place / "copy.pt"):
        torch.save(state, path)
    before = ImageRecord.of_run(first)
    (first / FILE).unlink()
    found = ImageRecord.of_weights(first / "best.pt")
    assert found is not None and found.fitted == before.fitted and found.used == before.used
    assert ImageRecord.of_weights(place / "copy.pt") is None
    assert "does not list the images" in capsys.readouterr().out
    torch.save(state["model"], place / "weights.pth")  # of another program
    assert ImageRecord.of_weights(place / "weights.pth") is None and ImageRecord.of_weights(None) is None
    assert capsys.readouterr().out == ""
    (first / "split.csv").unlink()
    with pytest.raises(UserError, match=r"the run of model\.weights="):
        ImageRecord.of_weights(first / "best.pt")


@pytest.mark.slow
def test_the_model_file_lists_the_images_of_all_stages(first: Path, place: Path) -> None:
    """Also an image that only the first run was trained on, and the licence of the first weights, once."""
    split = pd.read_csv(first / "split.csv")
    further = split[split["split"] == "train"].head(1).assign(image_id="ISIC_9999999", lesion_id="HAM_9999999")
    config = load_config(first / "config.yaml")
    record = ImageRecord.of_split(pd.concat([split, further]), config, None)  # as if the first run had data.extra
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
    assert again is not None and again.known.ids == known.ids and again.licences == record.licences
    metadata = {"backbone": "small_cnn", KEY: known.to_prop()}  # as of the encoder of a model file
    (place / "file.safetensors").write_bytes(safetensors_bytes({}, metadata))
    listed = ImageRecord.of_weights(place / "file.safetensors")
    assert listed is not None and listed.fitted is None and listed.used == known.ids


def test_a_run_is_resumed_after_its_weights_are_gone(first: Path, place: Path) -> None:
    shutil.copy(first / "best.pt", place / "gone.pt")
    run = start(place, place / "gone.pt", "model.keep_head=true", "train.epochs=2")
    whole = load_checkpoint(run / "last.pt")
    state = torch.load(run / "last.pt", weights_only=True)
    (place / "gone.pt").unlink()
    assert start(place, place / "gone.pt", "model.keep_head=true", "train.epochs=2") == run
    assert torch.equal(state["model"]["0.weight"], whole["model"]["0.weight"])


def test_damaged_records_and_headers_are_one_sentence(first: Path, place: Path) -> None:
    for content in ("[]", "{", '{"licences": null}', '{"fitted": "x", "used": "x", "known_images": "x"}'):
        (first / FILE).write_text(content)
        with pytest.raises(UserError, match=rf"{FILE} is damaged"):
            ImageRecord.of_run(first)
    for header in (b"{nonsense", b"[1]     ", b'{"__metadata__": [1]}', b"{\xff\xfe  "):
        (place / "bad").write_bytes(len(header).to_bytes(8, "little") + header)
        with pytest.raises(UserError, match=r"is damaged|must be a file"):
            start(place, place / "bad")

"""A run that starts from the weights of another: its head, and the images that must not judge it."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import TINY

from dermrw.config import load_config
from dermrw.errors import UserError
from dermrw.inference.classifier import Classifier
from dermrw.inference.known_images import id_digest
from dermrw.training.checkpoint import load_checkpoint
from dermrw.training.starting_weights import RECORD, StartingWeights
from dermrw.training.train import train
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
    for classes, reason in ((state["classes"][::-1], "a head for the classes vasc, "), (None, "no stated classes")):
        torch.save({**state, "classes": classes}, place / "other.pt")
        with pytest.raises(UserError, match=reason):
            start(place, place / "other.pt", "model.keep_head=true")
    with pytest.raises(UserError, match=r"keep_head requires model\.weights=FILE"):
        load_config(None, ["model.keep_head=true"])


def test_training_images_of_the_weights_may_not_judge_the_run(first: Path, place: Path) -> None:
    split = pd.read_csv(first / "split.csv")
    export_encoder(first, place / "encoder.safetensors")
    for weights in (first / "best.pt", first / "encoder.safetensors", place / "encoder.safetensors"):
        for key in ("data.split_seed=5", "data.test=0.4"):
            with pytest.raises(UserError, match=r"was trained on \d+ of the \d+ (test|validation) images .* too good"):
                start(place, weights, key)
    assert not (place / "runs/second").exists()
    assert start(place, place / "encoder.safetensors").is_dir()  # the same split
    trained = split["image_id"][split["split"].isin(["train", "meta"])]
    assert StartingWeights.of(str(first / "best.pt")).fitted == set(map(id_digest, trained))  # type: ignore[union-attr]


def test_weights_of_other_programs_tell_nothing(first: Path, place: Path) -> None:
    torch.save(load_checkpoint(first / "best.pt")["model"], place / "weights.pth")
    assert StartingWeights.of(str(place / "weights.pth")) is None and StartingWeights.of("imagenet") is None
    assert not (start(place, place / "weights.pth", "data.split_seed=5") / RECORD).exists()


@pytest.mark.slow
def test_the_model_file_lists_the_images_of_all_stages(first: Path, place: Path) -> None:
    """Also an image that only the first run was trained on, and the licence of the first weights."""
    split = pd.read_csv(first / "split.csv")
    further = split[split["split"] == "train"].head(1).assign(image_id="ISIC_9999999", lesion_id="HAM_9999999")
    pd.concat([split, further]).to_csv(first / "split.csv", index=False)  # as if the first run had data.extra
    second = start(place, first / "best.pt")
    record = json.loads((second / RECORD).read_text())
    (second / RECORD).write_text(json.dumps({**record, "licence": "Only for tests."}))
    third = start(place, second / "best.pt", name="third")
    shutil.rmtree(first)
    shutil.rmtree(second)
    export(third, [])
    classifier = Classifier(third / "model.onnx")
    known = classifier.known_images()
    assert known is not None and len(known.ids) == 1 + (split["split"] != "test").sum()
    assert id_digest("ISIC_9999999") in known.ids
    assert classifier.info.licence.endswith("Training started from weights with this licence: Only for tests.")
    export_encoder(third, place / "third.safetensors")
    again = StartingWeights.of(str(place / "third.safetensors"))
    assert again is not None and again.known.ids == known.ids and "Only for tests." in str(again.licence)


def test_a_damaged_record_is_one_sentence(run: Path) -> None:
    for content in ("[]", "{", '{"licence": null}', '{"licence": null, "known_images": "x"}'):
        (run / RECORD).write_text(content)
        with pytest.raises(UserError, match=rf"{RECORD}"):
            StartingWeights.recorded(run)

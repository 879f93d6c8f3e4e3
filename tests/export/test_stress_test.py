import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dermrw.config import NOT_PART_OF_A_RESULT, differences, load_config
from dermrw.errors import UserError
from dermrw.inference.classifier import Classifier
from export import stress_test as module
from export.card import recipe
from export.damages import DAMAGES
from export.foreign_pictures import LIKENESSES, composed, from_lesions, shipped
from export.ship import box
from export.stress_test import OUTCOMES, challenge


def test_the_first_degree_of_every_damage_leaves_the_picture_as_it_is() -> None:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(60, 200, (6, 8, 3), dtype=np.uint8)).resize(
        (160, 120), Image.Resampling.BICUBIC
    )
    for name, degrees, damage in DAMAGES:
        away = [np.abs(np.asarray(damage(smooth, d), dtype=float) - np.asarray(smooth)).mean() for d in degrees]
        assert away[0] < 1.5, name
        assert away[-1] > 10 * away[0] + 0.5, name
        assert all(damage(smooth, d).size == smooth.size for d in degrees)


def test_there_are_pictures_of_many_kinds_and_the_same_each_time() -> None:
    kinds = {kind for kind, *_ in [*shipped(), *composed(2)]}
    assert {"photograph", "document", "chart", "noise", "blank", "gradient"} <= kinds
    one, other = (list(composed(2)) for _ in range(2))
    assert all(
        a[1] == b[1] and np.array_equal(np.asarray(a[2]), np.asarray(b[2])) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.slow
def test_outcomes_are_in_the_model_card_and_the_model_can_be_shipped(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = model_file.parent
    monkeypatch.setattr(module, "PER_CLASS", 1)
    monkeypatch.setattr(module, "COMPOSED", 2)
    monkeypatch.setattr(module, "shipped", lambda: list(composed(1, seed=9)))
    found = challenge(run, [])
    for name, degrees, _ in DAMAGES:
        rows = found["damages"][name]
        assert [row["degree"] for row in rows] == list(degrees)
        assert all(sum(row[o] for o in OUTCOMES) == pytest.approx(1) for row in rows)
    blank = found["strangers"]["blank"]
    assert blank["pictures"] == 3 and blank["refused"] == 3
    assert json.loads((run / "doubt.json").read_text()) == found
    assert Image.open(run / "doubt.png").size[0] > 1000
    card = (run / "MODEL_CARD.md").read_text()
    for place in ("app", "docs"):
        (tmp_path / place).mkdir()
    box(run, tmp_path, notes="From small copies.")
    assert (tmp_path / "app/model.onnx").read_bytes() == model_file.read_bytes()
    boxed = (tmp_path / "MODEL_CARD.md").read_text()
    for link in re.findall(r"\]\((.*?\.png)\)", boxed):
        assert (tmp_path / link).is_file(), link
    assert boxed.count("docs/model/") == 2 and "`app/model.onnx`" in boxed
    assert "\n\nFrom small copies.\n\n## How good it is\n" in boxed
    (run / "MODEL_CARD.md").write_text("another")
    with pytest.raises(UserError, match="describes another model file"):
        box(run, tmp_path)
    (run / "doubt.json").unlink()
    with pytest.raises(UserError, match="has no stress test"):
        box(run, tmp_path)
    assert "| blank | 3 | 3 (100.0 %) |" in card and Classifier(model_file).digest in card


def test_the_cards_recipe_is_the_run(tmp_path: Path) -> None:
    configs = Path(__file__).parents[2] / "configs"
    for name in ("ham.yaml", "ham_balanced_softmax.yaml", "cifar.yaml"):
        config = load_config(configs / name, ["data.root=/secret", "train.epochs=7", "train.channels_last=true"])
        (tmp_path / "recipe.yaml").write_text(recipe(config))
        again = load_config(tmp_path / "recipe.yaml", [])
        assert {line.partition(":")[0] for line in differences(config, again)} <= NOT_PART_OF_A_RESULT
        assert "secret" not in (tmp_path / "recipe.yaml").read_text()
    settings = [
        "data.meta=/secret/meta.csv",
        "model.weights=/secret/first/best.pt",
        "model.keep_head=true",
        "model.colour_constancy=shades_of_grey",
    ]
    (tmp_path / "recipe.yaml").write_text(recipe(load_config(configs / "ham.yaml", settings)))
    again = load_config(tmp_path / "recipe.yaml", [])
    assert again.model.weights == "best.pt" and again.model.keep_head and "secret" not in recipe(again)


def test_every_likeness_is_named() -> None:
    assert {kind for kind, *_ in from_lesions([Image.new("RGB", (320, 240))])} == set(LIKENESSES)

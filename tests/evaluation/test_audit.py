import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, command

from dermrw.config import load_config
from dermrw.datasets.dataset import Splits
from dermrw.diagnoses import DX, HAM_CLASSES
from dermrw.errors import UserError
from dermrw.evaluation.audit import NEIGHBOURS, audit, find, of_labels
from dermrw.training.train import train


@pytest.fixture(scope="module")
def flipped(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by reweighting, a quarter of its training lesions with a wrong label."""
    settings = [
        "data.name=sample",
        f"data.root={sample}",
        "data.meta=rule",
        "model.weights=none",
        "data.noise_rate=0.25",
    ]
    return train(load_config(None, [*TINY, *settings]), tmp_path_factory.mktemp("runs") / "flipped")


@pytest.mark.slow
def test_neighbours_are_the_nearest_by_the_embedding_and_of_other_lesions(flipped: Path) -> None:
    found, splits, _ = find(flipped, 20)
    images = splits.train
    lesion = images.table["lesion_id"].to_numpy()
    rows = [images.table["image_id"].tolist().index(i) for i in found.table["image_id"]]
    assert [len(near) for near in found.neighbours] == 20 * [NEIGHBOURS]
    for row, near in zip(rows, found.neighbours, strict=True):
        assert lesion[row] not in set(lesion[near]) and len(set(near)) == NEIGHBOURS
    assert found.wrong_share == pytest.approx(0.25, abs=0.12)
    assert [row.name for row in found.detection] == [
        "the weights within their class", "the weights", "the trained network's probability of the label",
        "the class of the label alone",
    ]  # fmt: skip
    alone = found.detection[3]
    assert alone.auroc_within_class == 0.5 < alone.auroc


def test_the_probability_of_a_label_that_is_a_set_of_classes() -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(7), 3)
    one = Splits(HAM_CLASSES, *[None] * 5)  # type: ignore[arg-type]
    assert of_labels(p, np.array([4, 0, 6]), one) == pytest.approx(p[range(3), [4, 0, 6]])
    benign = [code in ("bkl", "df", "nv", "vasc") for code in DX]
    found = of_labels(p, np.array([7, 0, 7]), one._replace(sets=("benign",)))
    assert found == pytest.approx([p[0, benign].sum(), p[1, 0], p[2, benign].sum()])


def test_the_gallery(flipped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command(monkeypatch, "audit", str(flipped), "--count", "12")
    said = capsys.readouterr().out
    assert "12 of 123 training images" in said and "training labels are wrong on purpose" in said
    assert len(re.findall(r"by .*: \d+ % of the first 12, AUROC 0\.\d\d, within a class 0\.\d\d", said)) == 4
    assert "the same weight as the last one shown" in said  # most have no weight at all
    page, table = (flipped / "audit.html").read_text(), pd.read_csv(flipped / "audit.csv")
    assert page.count('<th scope="row">') == 4
    assert page.count("<li>") == len(table) == 12
    assert page.count("data:image/jpeg") == 12 * (1 + NEIGHBOURS)
    assert re.findall(r'class="id">(\w+)<', page) == table["image_id"].tolist()
    assert "<script" not in page and "http" not in page and "Embedded sample" in page
    assert list(table["relative"]) == sorted(table["relative"])


@pytest.mark.slow
def test_what_cant_be_audited_is_a_sentence(run: Path, flipped: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be at least 1"):
        audit(flipped, 0)
    (run / "weights.csv").unlink()
    with pytest.raises(UserError, match=r"has no weights\.csv: name a run that weights"):
        audit(run)
    (run / "weights.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="can't be read"):
        audit(run)
    (run / "weights.csv").write_text("image_id,lesion_id,dx,label,weight\nother,L,nv,nv,1\n")
    with pytest.raises(UserError, match="not in the training split"):
        audit(run)
    assert not (run / "audit.html").exists()
    assert json.loads((run / "report.json").read_text())  # what was there is as it was

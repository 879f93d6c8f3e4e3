"""A part of a labelled table is held out by group, with the same shares of the labels."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dermrw.datasets.hold_out import main, split_table
from dermrw.errors import UserError


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """300 rows of 299 images; patients have 1 to 4 images each, and some rows have no patient."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(120), rng.integers(1, 5, 120))[:250]
    names = [f"i{n:03}" for n in range(299)]
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    rows = [
        f"{name},{rng.choice(['nv', 'mel', 'benign'], p=[0.6, 0.3, 0.1])},{f'p{patients[n]}' if n < 250 else ''},"
        f"{'A' if n < 150 else 'B'}"
        for n, name in enumerate(names)
    ]
    path = tmp_path / "mine.csv"
    path.write_text("\n".join(["image,label,patient_id,camera", *rows, rows[0]]))
    return path


def test_groups_stay_together_and_the_shares_are_kept(table: Path) -> None:
    rows = split_table(table, None, ["camera"], 3, 0)
    assert len(rows) == 300 and rows.columns.tolist() == ["image", "label", "patient_id", "camera", "split"]
    assert rows[rows["patient_id"] != ""].groupby("patient_id")["split"].nunique().max() == 1
    assert rows.iloc[0]["split"] == rows.iloc[-1]["split"]  # the repeated row
    shares = rows.groupby(["label", "camera"])["split"].agg(lambda split: (split == "test").mean())
    assert (rows["split"] == "test").mean() == pytest.approx(1 / 3, abs=0.02)
    large = rows.groupby(["label", "camera"]).size() > 30
    assert (shares[large] - 1 / 3).abs().max() < 0.08
    assert split_table(table, None, ["camera"], 3, 0).equals(rows)
    assert not split_table(table, None, ["camera"], 3, 1).equals(rows)


def test_the_command(table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["hold_out", str(table), "--by", "camera", "--rows", "test"]
    monkeypatch.setattr("sys.argv", arguments)
    main()
    printed = capsys.readouterr()
    test = pd.read_csv(io.StringIO(printed.out), keep_default_na=False)
    assert set(test["split"]) == {"test"} and printed.err == f"{len(test)} of 300 rows are held out\n"


def test_half_of_the_held_out_rows_may_be_for_validation(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = split_table(table, None, ["camera"], 3, 0)
    rows = split_table(table, None, ["camera"], 3, 0, validation=True)
    held = rows["split"] != "train"
    assert (plain["split"] == "test").equals(held)
    assert rows[rows["patient_id"] != ""].groupby("patient_id")["split"].nunique().max() == 1
    assert (rows["split"][held] == "validation").mean() == pytest.approx(1 / 2, abs=0.06)
    monkeypatch.setattr("sys.argv", ["hold_out", str(table), "--by", "camera", "--validation", "--rows", "validation"])
    main()
    printed = capsys.readouterr()
    test = pd.read_csv(io.StringIO(printed.out), keep_default_na=False)
    assert set(test["split"]) == {"validation"} and printed.err == f"{held.sum()} of 300 rows are held out\n"


def test_errors(table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"--by device: .* has the columns image, label"):
        split_table(table, None, ["device"], 3, 0)
    with pytest.raises(UserError, match="groups, fewer than --parts 500: lower --parts"):
        split_table(table, None, [], 500, 0)
    monkeypatch.setattr("sys.argv", ["hold_out", str(table), "--parts", "1"])
    with pytest.raises(SystemExit):
        main()
    assert "--parts must be at least 2, not 1" in capsys.readouterr().err
    table.write_text(table.read_text().replace("camera", "split"))
    with pytest.raises(UserError, match="has a column split already"):
        split_table(table, None, [], 3, 0)


def test_a_published_table(tmp_path: Path) -> None:
    """PH2 names its images in the column Name."""
    rows = [f"IMD{i:03d};{kind}" for i in range(12) for kind in ["Melanoma" if i % 2 else "Common Nevus"]]
    for i in range(12):
        Image.new("RGB", (8, 8)).save(tmp_path / f"IMD{i:03d}.bmp")
    table = tmp_path / "PH2.csv"
    table.write_text("\n".join(["Name;Clinical Diagnosis", *rows]))
    divided = split_table(table, None, [], 3, 0)
    assert len(divided) == 12 and set(divided["split"]) == {"train", "test"}

import pickle
from pathlib import Path

import pytest
import torch

from dermrw.checkpoint import load_checkpoint, save_checkpoint, write_atomic
from dermrw.errors import UserError


def test_round_trip(tmp_path: Path) -> None:
    state = {"model": {"w": torch.arange(3.0)}, "epoch": 2, "rows": [{"loss": 0.5}]}
    save_checkpoint(tmp_path / "last.pt", state)
    loaded = load_checkpoint(tmp_path / "last.pt")
    assert torch.equal(loaded["model"]["w"], state["model"]["w"]) and loaded["rows"] == state["rows"]  # type: ignore[index]


def test_a_failed_write_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"model": 1})
    before = path.read_bytes()

    def full(_: object, file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise RuntimeError("[enforce fail] unexpected pos: no space left")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"last\.pt"):
        save_checkpoint(path, {"model": 2})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    with pytest.raises(UserError, match="absent"):
        write_atomic(tmp_path / "absent/x", b"")


@pytest.mark.parametrize("data", [b"", b"rubbish", pickle.dumps([1, 2])])
def test_foreign_files(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(UserError, match=r"x\.pt") as caught:
        load_checkpoint(tmp_path / "x.pt")
    assert "\n" not in str(caught.value)
    torch.save({"other": 1}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="no model"):
        load_checkpoint(tmp_path / "x.pt")
    with pytest.raises(UserError, match="train first"):
        load_checkpoint(tmp_path / "absent.pt")

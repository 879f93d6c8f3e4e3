import os
import pickle
from pathlib import Path

import pytest
import torch

from dermrw.errors import UserError
from dermrw.files import write_atomic, writing_atomic
from dermrw.training.checkpoint import load_checkpoint, save_checkpoint

STATE = {
    "model": {"w": torch.arange(3.0)}, "optimizer": {}, "schedule": {}, "objective": {}, "classes": ["a"], "origin": "",
    "epoch": 2, "step": 0, "best": 0.5, "best_epoch": 1, "all_zero": 0.0, "seconds": 1.5, "rows": [{"loss": 0.5}],
    "log_offset": 3, "random": torch.get_rng_state(), "random_cuda": [],
}  # fmt: skip


def test_round_trip(tmp_path: Path) -> None:
    state = STATE
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


def test_of_two_writers_at_the_same_time_the_last_ones_content_is_kept(tmp_path: Path) -> None:
    path, abandoned = tmp_path / "a.csv", tmp_path / ".a.csv.01234567.partial"
    for left in (abandoned, tmp_path / ".a.csv.76543210.partial"):
        left.touch()
    os.utime(abandoned, (0, 0))  # of a process that was killed long ago; the other one may still be written
    with writing_atomic(path) as first:
        first.write(b"a" * 20)
        with writing_atomic(path) as second:
            second.write(b"b" * 10)
        assert path.read_bytes() == b"b" * 10
    assert path.read_bytes() == b"a" * 20
    assert {p.name for p in tmp_path.iterdir()} == {"a.csv", ".a.csv.76543210.partial"}


@pytest.mark.parametrize("data", [b"", b"rubbish", pickle.dumps([1, 2])])
def test_foreign_files(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(UserError, match=r"x\.pt") as caught:
        load_checkpoint(tmp_path / "x.pt")
    assert "\n" not in str(caught.value)
    for state in ({"other": 1}, {**STATE, "epoch": "2"}, {k: v for k, v in STATE.items() if k != "rows"}):
        torch.save(state, tmp_path / "x.pt")
        with pytest.raises(UserError, match=r"x\.pt is not a checkpoint"):
            load_checkpoint(tmp_path / "x.pt")
    with pytest.raises(UserError, match="train first"):
        load_checkpoint(tmp_path / "absent.pt")


class Harm:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    harmed = tmp_path / "harmed"
    torch.save({**STATE, "origin": Harm(harmed)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x\.pt is not a checkpoint"):
        load_checkpoint(tmp_path / "x.pt")
    assert not harmed.exists()
    torch.load(tmp_path / "x.pt", weights_only=False)  # the file is a harmful one
    assert harmed.exists()

"""`train.tensorboard=true`: the values of metrics.jsonl, each step once, also after a crash."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from dermrw.config import Config, load_config, settings_of
from dermrw.diagnoses import DX
from dermrw.errors import UserError
from dermrw.training import loop as module
from dermrw.training.loop import Loop
from dermrw.training.run_folder import read_log
from dermrw.training.tensorboard import scalars
from dermrw.training.train import train

SETTINGS = [
    "name=tiny", "data.name=sample", "data.size=32", "data.meta=rule", "model.backbone=small_cnn",
    "model.weights=none", "train.epochs=2", "train.batch_size=16", "train.precision=fp32",
    "train.channels_last=false", "train.device=cpu",
]  # fmt: skip


def config(sample: Path, *overrides: str) -> Config:
    return load_config(None, [*SETTINGS, f"data.root={sample}", *overrides])


def logged(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Returns step and value of each event in metrics.jsonl, by name."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in read_log(run):
        for name, value in scalars(row, DX):
            found.setdefault(name, []).append((row["step"], value))
    return found


def events(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Returns what TensorBoard shows."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reader = accumulator.EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    reader.Reload()
    return {tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def test_the_names_of_the_scalars() -> None:
    row: dict[str, Any] = {
        "epoch": 1, "step": 7, "loss": 0.5, "class_weight": [0.25, 0.75], "other": [1, 2, 3],
        "validation": {"balanced_accuracy": 0.9},
    }  # fmt: skip
    assert dict(scalars(row, ("mel", "nv"))) == {
        "loss": 0.5, "class_weight/mel": 0.25, "class_weight/nv": 0.75, "other/0": 1, "other/1": 2, "other/2": 3,
        "validation/balanced_accuracy": 0.9,
    }  # fmt: skip


def test_without_the_package_training_does_not_start(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dermrw.training.tensorboard.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"requires the Python package tensorboard: run `make install`, or leave"):
        train(config(sample, "train.tensorboard=true"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_key_does_not_change_a_result(sample: Path) -> None:
    asked = config(sample, "train.tensorboard=true")
    assert settings_of(asked) == settings_of(config(sample))


@pytest.mark.slow
def test_after_a_crash_and_a_resume_each_step_is_there_once(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    torch.set_num_threads(1)
    plain = train(config(sample), tmp_path / "plain")
    asked = config(sample, "train.tensorboard=true", "train.checkpoint_seconds=1")
    step, taken, run = Loop.train_step, [0], tmp_path / "run"

    def crashing(self: Loop, *arguments: Any) -> dict[str, Any]:
        taken[0] += 1
        if taken[0] == 12:
            raise RuntimeError("power cut")
        return step(self, *arguments)

    monkeypatch.setattr(module, "LOG_EVERY", 1)
    monkeypatch.setattr(Loop, "train_step", crashing)
    monkeypatch.setattr(module.time, "monotonic", itertools.count(0, 0.2).__next__)  # a checkpoint after some steps
    with pytest.raises(RuntimeError, match="power cut"):
        train(asked, run)
    monkeypatch.setattr(Loop, "train_step", step)
    train(asked, run)
    shown = events(run)
    assert shown == {name: [(s, pytest.approx(v)) for s, v in values] for name, values in logged(run).items()}
    steps = [number for number, _ in shown["loss"]]
    assert steps == sorted(set(steps)) and len(shown["validation/balanced_accuracy"]) == 2
    # the events change nothing else
    ends = [torch.load(folder / "last.pt", weights_only=False)["model"] for folder in (plain, run)]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    # a run that was started without the key shows its whole history once it is resumed with it
    assert not (plain / "tensorboard").exists()

"""The loop: resume bit for bit, nothing overwritten, mistakes named, and that it learns."""

import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from dermrw.config import Config, load_config
from dermrw.datasets.dataset import load_splits
from dermrw.errors import UserError
from dermrw.metrics.classification import balanced_accuracy
from dermrw.models import build_model
from dermrw.training import loop as module
from dermrw.training import progress
from dermrw.training.checkpoint import load_checkpoint
from dermrw.training.loop import Loop
from dermrw.training.run_folder import Log, latest_run, new_run, read_log, read_split
from dermrw.training.train import _check_batch, train
from export.report import require_reported

SETTINGS = [
    "name=tiny", "data.name=sample", "data.size=32", "data.meta=rule", "model.backbone=small_cnn",
    "model.weights=none", "train.epochs=2", "train.lr=1e-3", "train.batch_size=16", "train.precision=fp32",
    "train.channels_last=false", "train.device=cpu",
]  # fmt: skip


def config(sample: Path, *overrides: str) -> Config:
    return load_config(None, [*SETTINGS, f"data.root={sample}", *overrides])


def with_workers(asked: Config, workers: int) -> Config:
    """The same run, whose images other processes augment."""
    return asked.model_copy(update={"data": asked.data.model_copy(update={"workers": workers})})


def weights(run: Path, name: str = "last.pt") -> dict[str, Tensor]:
    return load_checkpoint(run / name)["model"]


def assert_same_end(one: Path, other: Path) -> None:
    for name in ("last.pt", "best.pt"):
        a, b = weights(one, name), weights(other, name)
        assert all(torch.equal(a[k], b[k]) for k in a), name
    assert read_log(one) == read_log(other)


@pytest.fixture(scope="module")
def whole(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run by reweighting."""
    torch.set_num_threads(1)
    return train(config(sample), tmp_path_factory.mktemp("runs") / "whole")


@pytest.mark.slow
def test_the_run_folder(whole: Path, sample: Path) -> None:
    names = {"config.yaml", "split.csv", "images.json", "metrics.jsonl", "last.pt", "best.pt", "weights.csv"}
    assert {p.name for p in whole.iterdir()} == names
    stored = load_config(whole / "config.yaml")
    assert stored.data.root == str(sample.resolve()) and stored.train.precision == "fp32"
    assert list(pd.read_csv(whole / "split.csv").columns) == ["image_id", "lesion_id", "dx", "split"]
    rows = read_log(whole)
    steps = [r for r in rows if "loss" in r]
    assert {"lr", "class_weight", "zero_share", "effective_batch"} <= set(steps[0])
    assert np.allclose([sum(r["class_weight"]) for r in steps], 1, atol=1e-5)
    assert [r["epoch"] for r in rows if "validation" in r] == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop_at", "backbone", "more"),
    # mobilenet_v3_small has dropout, too, whose random stream a resume has to restore
    [
        (3, "small_cnn", []),
        (6, "mobilenet_v3_small", []),
        (9, "small_cnn", ["data.meta_views=2", "data.augment=dermoscopy", "objective.warm_up=0.3"]),
        (5, "small_cnn", ["objective=label_posterior", "objective.loss=balanced_softmax", "data.noise_rate=0.4"]),
    ],
)
def test_a_crash_at_any_step_and_a_resume_change_nothing(
    whole: Path,
    sample: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_at: int,
    backbone: str,
    more: list[str],
) -> None:
    asked = config(sample, "train.checkpoint_seconds=1", f"model.backbone={backbone}", *more)
    if backbone != "small_cnn" or more:
        whole = train(asked, tmp_path / "whole")
    step, taken = Loop.train_step, [0]

    def crashing(self: Loop, *args: Any) -> dict:
        taken[0] += 1
        if taken[0] == stop_at:
            torch.rand(5)  # a random stream that a resume has to put right
            raise RuntimeError("power cut")
        return step(self, *args)

    monkeypatch.setattr(Loop, "train_step", crashing)
    # a checkpoint after every second step, so that the crash loses one in one case and none in the other
    monkeypatch.setattr(module.time, "monotonic", itertools.count(0, 0.5).__next__)
    with pytest.raises(RuntimeError, match="power cut"):
        train(asked, tmp_path / "run")
    monkeypatch.undo()
    torch.manual_seed(99)
    train(with_workers(asked, 1), tmp_path / "run")
    assert_same_end(whole, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["disk", "none"])
def test_where_pixels_are_kept_does_not_change_a_training(
    whole: Path, sample: Path, tmp_path: Path, cache: str
) -> None:
    run = train(config(sample, f"data.cache={cache}", f"data.cache_folder={tmp_path / 'pixels'}"), tmp_path / "run")
    assert_same_end(whole, run)
    assert len(list(tmp_path.glob("pixels/*.pixels"))) == (3 if cache == "disk" else 0)
    train(config(sample, "data.cache=memory"), run)  # such a resume is allowed


@pytest.mark.slow
def test_a_resume_across_sizes_keeps_the_moving_average(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = config(sample, "train.average=0.9", "train.first_share=0.5", "train.first_size=32", "data.size=48")
    whole = train(asked, tmp_path / "whole")
    step, taken = Loop.train_step, [0]

    def crashing(self: Loop, *args: Any) -> dict:
        taken[0] += 1
        if taken[0] == 9:
            raise RuntimeError("power cut")
        return step(self, *args)

    monkeypatch.setattr(Loop, "train_step", crashing)
    with pytest.raises(RuntimeError, match="power cut"):
        train(asked, tmp_path / "run")
    monkeypatch.undo()
    train(asked, tmp_path / "run")
    assert_same_end(whole, tmp_path / "run")
    mean, last = load_checkpoint(whole / "last.pt")["mean"], load_checkpoint(whole / "last.pt")
    kept = load_checkpoint(whole / "best.pt")
    assert "mean" not in kept
    if kept["epoch"] == 2:
        assert all(torch.equal(mean[f"module.{k}"], v) for k, v in kept["model"].items())
    assert any(not torch.equal(mean[f"module.{k}"], v) for k, v in last["model"].items())


@pytest.mark.slow
def test_the_first_epochs_see_smaller_images(sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, seen = Loop.train_step, []

    def noting(self: Loop, images: Tensor, labels: Tensor, index: Tensor, meta: tuple[Tensor, Tensor]) -> dict:
        seen.append((self.epoch, images.shape[1], meta[0].shape[2]))
        return step(self, images, labels, index, meta)

    monkeypatch.setattr(Loop, "train_step", noting)
    train(config(sample, "train.first_share=0.5", "train.first_size=32", "data.size=40"), tmp_path / "run")
    assert set(seen) == {(0, 32, 32), (1, 40, 40)}


@pytest.mark.parametrize(("size", "epochs"), [(32, 0), (128, 0), (129, 5), (224, 5)])
def test_the_first_images_are_never_the_larger_ones(size: int, epochs: int) -> None:
    asked = load_config(None, ["train.epochs=10", "train.first_share=0.5", "train.first_size=128", f"data.size={size}"])
    assert asked.first_epochs == epochs


def test_the_time_left_knows_that_reweighting_costs_more_than_its_warm_up() -> None:
    keys = ["train.epochs=4", "data.size=64", "train.first_size=32", "train.first_share=0.25", "objective.warm_up=0.5"]
    weighed, plain = (
        progress.TimeEstimate(load_config(None, [*keys[:-1], *more]), 10) for more in ([keys[-1]], ["objective=erm"])
    )
    assert [plain.cost(n) for n in (10, 20, 40)] == [2.5, 12.5, 32.5]
    assert [weighed.cost(n) for n in (10, 20, 40)] == [2.5, 12.5, 12.5 + 20 * progress.REWEIGHTED]


@pytest.mark.slow
def test_the_time_left_knows_that_later_images_are_larger(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step, clock, steps = Loop.train_step, [0.0], []

    def timed(self: Loop, images: Tensor, *args: Any) -> dict:
        clock[0] += 60 * (images.shape[1] / 64) ** 2
        steps.append(images.shape[1])
        return step(self, images, *args)

    monkeypatch.setattr(Loop, "train_step", timed)
    # only the estimate's clock is replaced
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    train(config(sample, "train.first_share=0.5", "train.first_size=32", "data.size=64"), tmp_path / "run")
    said, large = capsys.readouterr().out, steps.count(64)
    assert large == steps.count(32) and 2 * large > 9
    assert "epoch 1/2: balanced validation accuracy" in said and f", {large} min left" in said
    assert f"About {2 * large - 9} min left on" in said


@pytest.mark.slow
def test_a_crash_between_the_last_step_and_validation(
    whole: Path, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crashing(self: Loop) -> None:
        raise RuntimeError("power cut")

    monkeypatch.setattr(Loop, "validate", crashing)
    asked = config(sample, "train.checkpoint_seconds=1e-9")
    with pytest.raises(RuntimeError, match="power cut"):
        train(asked, tmp_path / "run")
    state = load_checkpoint(tmp_path / "run" / "last.pt")
    assert state["epoch"] == 0 and state["step"] == read_log(whole)[0]["step"] > 0
    monkeypatch.undo()
    train(asked, tmp_path / "run")
    assert_same_end(whole, tmp_path / "run")


# the pause leaves time for the signal, however fast the machine is
SLOWLY = """
import time, torch
from dermrw.__main__ import main
from dermrw.training.loop import Loop

def train_step(*arguments, step=Loop.train_step):
    time.sleep(0.5)
    return step(*arguments)

torch.set_num_threads(1)
Loop.train_step = train_step
main()
"""


def stopped_by(number: signal.Signals, sample: Path, run: Path) -> str:
    """Trains in a process that gets a signal after its first checkpoint, and returns what it printed."""
    before = (run / "last.pt").stat().st_mtime_ns if run.exists() else 0
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, "train", "configs/sample.yaml", *SETTINGS, f"data.root={sample}",
         "train.checkpoint_seconds=0.001", "--run", str(run)],
        cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={k: v for k, v in os.environ.items() if k != "HAM10000_DIR"},
    )  # fmt: skip
    while process.poll() is None and (not (run / "last.pt").exists() or (run / "last.pt").stat().st_mtime_ns == before):
        time.sleep(0.01)
    process.send_signal(number)
    out = process.communicate(timeout=1200)[0]
    assert process.returncode == (-9 if number == signal.SIGKILL else 130), out
    return out


@pytest.mark.slow
def test_interrupt_kill_and_resume(
    whole: Path, sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    out = stopped_by(signal.SIGINT, sample, run)
    assert "Traceback" not in out and "resumes from the last checkpoint" in out
    assert "Resuming" in stopped_by(signal.SIGKILL, sample, run)
    assert load_checkpoint(run / "last.pt")["epoch"] < 2, "the run was over before the signal"
    capsys.readouterr()
    train(config(sample, "train.checkpoint_seconds=0.001"), run)
    assert "Resuming" in capsys.readouterr().out
    assert_same_end(whole, run)


def test_a_finished_run_stays_as_it_is(whole: Path, sample: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p.name: p.read_bytes() for p in whole.iterdir()}
    train(config(sample), whole)
    assert "is finished" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"train\.epochs: 9, was 2"):
        train(config(sample, "train.epochs=9"), whole)
    assert before == {p.name: p.read_bytes() for p in whole.iterdir()}


@pytest.mark.slow
def test_the_config_in_the_folder_alone_reruns_the_run(whole: Path, tmp_path: Path) -> None:
    again = train(load_config(whole / "config.yaml"), tmp_path / "again")
    assert_same_end(whole, again)
    assert (again / "split.csv").read_bytes() == (whole / "split.csv").read_bytes()


def test_the_best_epoch_is_chosen_on_validation(whole: Path) -> None:
    scores = [r["validation"]["balanced_accuracy"] for r in read_log(whole) if "validation" in r]
    best = load_checkpoint(whole / "best.pt")
    assert best["best"] == max(scores) and best["epoch"] == best["best_epoch"] == scores.index(max(scores)) + 1


def test_a_loss_that_is_not_a_number_stops_and_names_the_step(sample: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"epoch 1, step \d+.*train\.lr"):
        train(config(sample, "objective=erm", "train.lr=1e30", "train.schedule=constant"), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["erm", "mixup"])
def test_baselines_run_through_the_same_loop(sample: Path, tmp_path: Path, objective: str) -> None:
    run = train(config(sample, f"objective={objective}", "train.epochs=1"), tmp_path / "run")
    assert "class_weight" not in read_log(run)[0]


@pytest.mark.slow
def test_what_is_auto_is_resolved_and_may_be_asked_again(sample: Path, tmp_path: Path) -> None:
    auto = config(sample, "train.precision=auto", "train.channels_last=auto", "train.device=auto", "train.epochs=1")
    run = train(auto, tmp_path / "run")
    stored = load_config(run / "config.yaml").train
    assert stored.precision in ("fp32", "bf16") and isinstance(stored.channels_last, bool) and stored.device != "auto"
    train(auto, run)


def test_the_log_is_cut_to_what_the_checkpoint_knows(tmp_path: Path) -> None:
    log = Log(tmp_path / "metrics.jsonl", 0)
    log.write({"a": 1})
    offset = log.offset
    log.write({"a": 2})
    log = Log(tmp_path / "metrics.jsonl", offset)
    log.write({"a": 3})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"a": 4')  # a kill in the middle of a line
    assert read_log(tmp_path) == [{"a": 1}, {"a": 3}]


def test_names_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="make train-ham"):
        latest_run()
    first = new_run("ham")
    first.mkdir(parents=True)
    monkeypatch.setattr(time, "strftime", lambda *_: first.name.removeprefix("ham-"))
    assert new_run("ham").name == f"{first.name}-2"
    for age, name in ((100, "old"), (0, "new")):
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "config.yaml").touch()
        then = time.time() - age
        os.utime(tmp_path / "runs" / name / "config.yaml", (then, then))
    assert latest_run() == Path("runs/new")


def test_a_balanced_score_is_logged(whole: Path) -> None:
    """The validation score is that of best.pt's predictions, computed anew."""
    from dermrw.datasets.dataset import load_splits
    from dermrw.datasets.pixels import ImageDataset
    from dermrw.training.device import Placement
    from dermrw.training.logits import predict_logits
    from dermrw.training.run_folder import read_split

    stored = load_config(whole / "config.yaml")
    assert stored.data.root is not None
    valid = load_splits(stored.data, Path(stored.data.root), read_split(whole)).validation
    model, _ = build_model(stored.model, 7)
    model.load_state_dict(weights(whole, "best.pt"))
    logits = predict_logits(model, ImageDataset(valid, stored.data), Placement(torch.device("cpu"), "fp32", False), 16)
    logged = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    scores = [row["validation"]["balanced_accuracy"] for row in logged if "validation" in row]
    assert balanced_accuracy(logits, valid.labels) == pytest.approx(max(scores))


@pytest.mark.parametrize("batch, said", [("16", "the loss became"), ("200", "not finite after epoch 1")])
def test_a_training_that_diverges_is_told_in_a_sentence(sample: Path, tmp_path: Path, batch: str, said: str) -> None:
    """Between two steps, or in an epoch's last one, where no loss shows it."""
    settings = ["train.schedule=constant", "train.lr=1e30", "train.optimizer=sgd", f"train.batch_size={batch}"]
    with pytest.raises(UserError, match=said) as caught:
        train(config(sample, *settings), tmp_path / "run")
    assert "last checkpoint is kept" not in str(caught.value) and "train.lr=" in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "examples", "processes", "message"),
    [
        (1, 100, 1, r"^train.batch_size=1 gives one image, but the batch norm of mobilenet_v3_small requires two: set "
         r"train.batch_size=2 or more, or .* model.freeze=batch_norm$"),
        (2, 100, 2, r"train.batch_size=2 gives one image to at least one of 2 processes, .* set train.batch_size=4 or "
         r"more, start fewer processes, or"),
        (5, 100, 3, r"train.batch_size=5 gives one image to .* set train.batch_size=6"),
        (64, 5, 3, r"a training split of 5 images gives one image to .*: use a larger training split, start fewer"),
        (2, 100, 3, r"train.batch_size=2 must be at least the number of processes, 3: "),
        (64, 2, 3, r"a training split of 2 images must be at least the number of processes, 3: "),
        (2, 100, 1, ""), (4, 100, 2, ""), (6, 100, 3, ""),
    ],
)  # fmt: skip
def test_batch_norm_needs_two_images_in_each_process(size: int, examples: int, processes: int, message: str) -> None:
    def check(backbone: str, freeze: str = "none") -> None:
        changes = (f"model.backbone={backbone}", f"model.freeze={freeze}", f"train.batch_size={size}")
        asked = load_config(None, [*SETTINGS, *changes])
        _check_batch(asked, build_model(asked.model, 7)[0], examples, processes)

    if message:
        with pytest.raises(UserError, match=message):
            check("mobilenet_v3_small")
    else:
        check("mobilenet_v3_small")
    if min(size, examples) >= processes:  # without batch norm, and with fixed statistics, one image is enough
        check("convnext_tiny")
        check("mobilenet_v3_small", "batch_norm")
        check("mobilenet_v3_small", "backbone")


@pytest.mark.slow
def test_batches_of_one_image(sample: Path, tmp_path: Path) -> None:
    one = ["train.batch_size=1", "train.epochs=1", "train.lr=1e-5", "objective=erm"]
    with pytest.raises(UserError, match=r"train\.batch_size=1 gives one image, but"):
        train(config(sample, *one), tmp_path / "refused")
    assert not (tmp_path / "refused" / "config.yaml").exists()
    run = train(config(sample, *one, "model.freeze=batch_norm"), tmp_path / "run")
    assert read_log(run)[-1]["validation"]["balanced_accuracy"] > 0


def test_a_checkpoint_without_a_config_is_no_run(sample: Path, tmp_path: Path, whole: Path) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(whole / "last.pt", tmp_path / "run")
    with pytest.raises(UserError, match=r"has a checkpoint but no config\.yaml"):
        train(config(sample), tmp_path / "run")


@pytest.mark.slow
def test_a_run_writes_what_each_training_image_weighed(sample: Path, tmp_path: Path) -> None:
    asked = config(sample, "objective=reweight", "train.epochs=2", "data.noise_rate=0.3")
    run = train(asked, tmp_path / "run")
    table, split = pd.read_csv(run / "weights.csv"), read_split(run)
    assert list(table.columns) == ["image_id", "lesion_id", "dx", "label", "weight"]
    assert set(table["image_id"]) == set(split["image_id"][split["split"] == "train"])
    assert (table["weight"].dropna() >= 0).all() and table["weight"].mean() == pytest.approx(1, abs=0.3)
    assert 0.1 < (table["dx"] != table["label"]).mean() < 0.5


@pytest.mark.slow
def test_the_log_counts_the_images_that_an_epoch_drew(sample: Path, tmp_path: Path) -> None:
    for sampler in ("shuffled", "balanced"):
        run = train(
            config(sample, "objective=erm", f"objective.sampler={sampler}", "train.epochs=2"), tmp_path / sampler
        )
        seen = [row["samples"] for row in read_log(run) if "samples" in row]
        labels = load_splits(load_config(run / "config.yaml").data, sample).train.labels
        per_epoch = len(labels) // 16 * 16
        assert [sum(s.values()) for s in seen] == [per_epoch] * 2
        counts = np.bincount(labels, minlength=7)
        if sampler == "shuffled":  # all but what fills no batch
            assert (np.abs(np.array(list(seen[0].values())) - counts) <= 15).all()
        else:
            assert max(seen[0].values()) < per_epoch / 7 + 4 * np.sqrt(per_epoch / 7)


def test_lost_checkpoints(whole: Path, sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A training of more than the time between checkpoints is never started again without a word."""
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    config = load_config(run / "config.yaml")
    (run / "best.pt").rename(run / "kept.pt")
    with pytest.raises(UserError, match=r"is finished, but its best\.pt is gone"):
        train(config, run)
    (run / "kept.pt").rename(run / "best.pt")
    (run / "last.pt").rename(run / "kept.pt")
    state = torch.load(run / "best.pt", weights_only=True)
    torch.save({**state, "seconds": config.train.checkpoint_seconds + 1.0}, run / "best.pt")
    before = (run / "best.pt").read_bytes()
    with pytest.raises(UserError, match=r"but no last\.pt, so it can't be resumed"):
        train(config, run)
    assert (run / "best.pt").read_bytes() == before
    (run / "kept.pt").rename(run / "last.pt")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(
        text.replace(f"epochs: {config.train.epochs}", f"epochs: {config.train.epochs + 1}")
    )
    with pytest.raises(UserError, match=r"does not fit config\.yaml"):
        train(load_config(run / "config.yaml"), run)


def test_a_folder_of_other_files_is_no_run(sample: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"is not a run's folder, but holds classes\.yaml"):
        train(config(sample), tmp_path)
    (tmp_path / "average").mkdir()
    (tmp_path / "average/averaged_runs.json").write_text("[]")
    with pytest.raises(UserError, match="is the folder of an average of runs"):
        train(config(sample), tmp_path / "average")
    assert (tmp_path / "classes.yaml").read_text() == "mine"


def test_a_lost_log_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = Log(tmp_path / "metrics.jsonl", 100)
    assert log.offset == 0 and "lacks rows of before the checkpoint" in capsys.readouterr().out
    log.write({"epoch": 3})
    assert read_log(tmp_path) == [{"epoch": 3}]


def test_a_checkpoint_has_its_files_digest(whole: Path) -> None:
    """Also if a training replaces the file while it is evaluated."""
    state = load_checkpoint(whole / "best.pt")
    assert state["sha256"] == hashlib.sha256((whole / "best.pt").read_bytes()).hexdigest()
    report = SimpleNamespace(checkpoint_sha256=state["sha256"])
    require_reported(whole, cast(Any, report), state)
    with pytest.raises(UserError, match="was replaced during the export"):
        require_reported(whole, cast(Any, report), {**state, "sha256": "0"})

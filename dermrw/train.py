"""The training loop, readable from top to bottom."""

import math
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dermrw.checkpoint import load_checkpoint, save_checkpoint
from dermrw.config import Config
from dermrw.data import Pixels, Splits, epoch_batches, in_order, load_splits, loader, resolve_root
from dermrw.errors import UserError
from dermrw.machine import Choice, choose, environment, keep_freed_memory
from dermrw.metrics import balanced_accuracy
from dermrw.models import build_model, check_fit, freeze, to_input, train_mode
from dermrw.objectives import Batch, Objective, build_objective
from dermrw.optim import build_optimizer, build_schedule
from dermrw.progress import average, describe, duration, stoppable
from dermrw.runs import Log, new_run, read_split, resume_config, sole_training, start_run

LOG_EVERY = 10  # steps that one row of metrics.jsonl averages
WARM_UP = 3  # steps that the estimate of the whole time leaves out


def train(asked: Config, run: Path | None = None) -> Path:
    """Trains, or resumes, a run; returns its folder.

    Args:
        asked: the config, with `auto` where the machine may choose.
        run: the run's folder; resumed if it holds a run of the same config; None for a new one.
    """
    keep_freed_memory()
    root = resolve_root(asked.data)
    asked = asked.model_copy(update={"data": asked.data.model_copy(update={"root": str(root)})})
    run = run or new_run(asked.name)
    with sole_training(run):
        return _train(asked, run, root)


def _train(asked: Config, run: Path, root: Path) -> Path:
    resumed = (run / "config.yaml").exists()
    if resumed:
        config = resume_config(run, asked)
        splits = load_splits(config.data, root, read_split(run))
    else:
        config, splits = asked, load_splits(asked.data, root)

    torch.manual_seed(config.train.seed)
    classes = len(splits.classes.codes)
    model, origin = build_model(config.model, classes)
    check_fit(model, config.model.backbone, config.data.size)
    freeze(model, config.model.freeze)
    objective = build_objective(config.objective, classes)
    choice, timings = _choose(config, model, objective, classes, len(splits.meta), len(splits.train))
    config = _resolved(config, choice)
    if not resumed:
        start_run(run, config, splits.table)
    print(
        f"Run {run}: {config.objective.name} on {config.data.name} ({len(splits.train):,} training, "
        f"{len(splits.validation):,} validation, {len(splits.test):,} test and {len(splits.meta)} meta images)\n"
        f"Model {config.model.backbone}, {origin}, {config.data.size} px, {config.train.epochs} epochs, "
        f"batches of {config.train.batch_size}\nComputing on {choice}"
        + (f"; seconds a step: {', '.join(f'{k} {v:.2f}' for k, v in timings.items())}" if timings else ""),
        flush=True,
    )
    try:
        Loop(run, config, choice, splits, model, objective, origin).fit()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the same command with RUN={run} goes on from its last checkpoint") from None
    return run


def _choose(
    config: Config, model: nn.Module, objective: Objective, classes: int, meta: int, examples: int
) -> tuple[Choice, dict[str, float]]:
    """The machine's choice, timed on a batch as large as the real one."""
    size, n = config.data.size, min(config.train.batch_size, examples)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n + meta, 3, size, size, generator=generator)

    def step(candidate: nn.Module, inputs: Tensor) -> Tensor:
        y = torch.arange(len(inputs), device=inputs.device) % classes
        return objective(candidate, Batch(inputs[:n], y[:n], y[:n], inputs[n:], y[n:]))[0]

    return choose(config.train, model, step, x)


def _resolved(config: Config, choice: Choice) -> Config:
    """The config with what was `auto` replaced by what was chosen, so that a resume computes the same way."""
    chosen = {"device": str(choice.device), "precision": choice.precision, "channels_last": choice.channels_last}
    return config.model_copy(update={"train": config.train.model_copy(update=chosen)})


@torch.no_grad()
def predict_logits(model: nn.Module, pixels: Pixels, choice: Choice, batch_size: int) -> np.ndarray:
    """Logits float32 `[N, C]` of a set, in its order, in eval mode and fp32."""
    model.eval()
    parts = []
    for images, _, _ in in_order(pixels, batch_size):
        parts.append(model(to_input(images, choice.device, choice.channels_last)).float().cpu())
    return torch.cat(parts).numpy()


class Loop:
    """One run's state, and the loop over epochs and steps."""

    def __init__(
        self,
        run: Path,
        config: Config,
        choice: Choice,
        splits: Splits,
        model: nn.Module,
        objective: Objective,
        origin: str,
    ) -> None:
        self.run, self.config, self.choice, self.splits, self.origin = run, config, choice, splits, origin
        self.model, self.objective = choice.place(model), objective
        self.batch_size = min(config.train.batch_size, len(splits.train))
        self.steps = len(splits.train) // self.batch_size
        self.optimizer = build_optimizer(config.train, self.model)
        self.schedule = build_schedule(config.train, self.optimizer, self.steps * config.train.epochs)
        self.epoch = self.step = 0  # finished epochs; finished steps of the present one
        self.best, self.best_epoch, self.all_zero, self.seconds = -1.0, 0, 0.0, 0.0
        self.rows: list[dict[str, Any]] = []  # steps that no row of the log has averaged yet

    def fit(self) -> None:
        """Trains to the end, from the last checkpoint where there is one."""
        offset = self.load() if (self.run / "last.pt").exists() else 0
        if self.epoch == self.config.train.epochs:
            print(f"{self.run} is finished; `make eval RUN={self.run}` evaluates it.")
            return
        data, seed = self.config.data, self.config.train.seed
        self.pixels = Pixels(self.splits.train, data, seed, progress="the training split")
        self.validation = Pixels(self.splits.validation, data, progress="the validation split")
        meta = Pixels(self.splits.meta, data)
        images, labels, _ = next(in_order(meta, len(meta)))
        self.meta_x = to_input(images, self.choice.device, self.choice.channels_last)  # [M, 3, size, size]
        self.meta_y = labels.to(self.choice.device)
        self.log = Log(self.run / "metrics.jsonl", offset)
        self.started, self.saved = time.monotonic(), time.monotonic()
        self.done_before = self.epoch * self.steps + self.step
        with stoppable() as stop:
            while self.epoch < self.config.train.epochs:
                self.train_epoch(stop)
                self.validate()
        print(
            f"Best epoch {self.best_epoch} of {self.epoch}: balanced validation accuracy {self.best:.3f}, "
            f"in {duration(self.seconds)}. Now `make eval RUN={self.run}`."
        )

    def train_epoch(self, stop: threading.Event) -> None:
        """The steps that are left of the present epoch; a checkpoint, and the end, where `stop` is set."""
        train_mode(self.model, self.config.model.freeze)
        batches = epoch_batches(
            self.splits.train.labels, self.objective.sampler, self.batch_size, self.config.train.seed, self.epoch
        )
        rest = loader(self.pixels, batches[self.step :], self.epoch, self.config.data.workers)
        best = f", validation {self.best:.3f} at best" if self.best_epoch else ""
        bar = tqdm(
            rest, f"epoch {self.epoch + 1}/{self.config.train.epochs}{best}", self.steps, initial=self.step,
            leave=False, mininterval=1, dynamic_ncols=True, unit="step",
        )  # fmt: skip
        for images, labels, index in bar:
            self.rows.append(self.train_step(images, labels, index))
            self.step += 1
            if self.step % LOG_EVERY == 0 or self.step == self.steps:
                row = {"epoch": self.epoch, "step": self.epoch * self.steps + self.step, **average(self.rows)}
                self.log.write(row)
                bar.set_postfix_str(describe(row, self.splits.classes))
                self.rows = []
            self.estimate()
            if stop.is_set() or time.monotonic() - self.saved > self.config.train.checkpoint_seconds:
                self.save("last.pt")
            if stop.is_set():
                bar.close()
                raise KeyboardInterrupt
        bar.close()

    def train_step(self, images: Tensor, labels: Tensor, index: Tensor) -> dict[str, Any]:
        """One step of the optimiser on a batch of pixels uint8 `[B, size, size, 3]`."""
        x = to_input(images, self.choice.device, self.choice.channels_last)
        batch = Batch(x, labels.to(self.choice.device), index, self.meta_x, self.meta_y)
        with self.choice.autocast():
            loss, log = self.objective(self.model, batch)
        value = loss.item()
        if not math.isfinite(value):
            mend = f"train.lr={self.config.train.lr / 10:g}"
            if self.choice.precision != "fp32":
                mend += ", or train.precision=fp32"
            raise UserError(
                f"the loss became {value} at epoch {self.epoch + 1}, step {self.step + 1}: the run stopped and keeps "
                f"its last checkpoint; try a lower rate in a new run, such as {mend}"
            )
        self.optimizer.zero_grad()
        loss.backward()
        if self.config.train.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.clip)
        self.optimizer.step()
        row: dict[str, Any] = {
            "loss": value,
            "lr": self.schedule.get_last_lr()[0],
            **{k: v.tolist() for k, v in log.items()},
        }
        self.schedule.step()
        self.all_zero += float(log["all_zero"]) if "all_zero" in log else 0.0
        return row

    def validate(self) -> None:
        """Ends an epoch: balanced accuracy on validation, best.pt where it is the best so far, last.pt."""
        logits = predict_logits(self.model, self.validation, self.choice, self.batch_size)
        score = balanced_accuracy(logits, self.splits.validation.labels)
        self.epoch, self.step = self.epoch + 1, 0
        better = score > self.best
        if better:
            self.best, self.best_epoch = score, self.epoch
        row = {"epoch": self.epoch, "step": self.epoch * self.steps, "validation": {"balanced_accuracy": score}}
        self.log.write(row)
        if better:
            self.save("best.pt")
        self.save("last.pt")
        zero = f"; all weights were zero in {self.all_zero:.0f} steps so far" if self.all_zero else ""
        left = (time.monotonic() - self.started) / (self.epoch * self.steps - self.done_before)
        left *= (self.config.train.epochs - self.epoch) * self.steps
        tqdm.write(
            f"epoch {self.epoch}/{self.config.train.epochs}: balanced validation accuracy {score:.3f}"
            f"{' (best so far)' if better else ''}, {duration(left)} left{zero}"
        )

    def estimate(self) -> None:
        """After the first steps, once: how long it all will take and, where that is hours, what shortens it."""
        done = self.epoch * self.steps + self.step - self.done_before
        if done == WARM_UP:
            self.warm = time.monotonic()
        if done != 3 * WARM_UP:
            return
        train = self.config.train
        left = self.steps * train.epochs - self.done_before - done
        seconds = (time.monotonic() - self.warm) / (done - WARM_UP) * left
        text = f"About {duration(seconds)} to go on this machine."
        if seconds > 3600:
            epochs = max(1, int(train.epochs * 1800 / seconds))
            size = max(64, self.config.data.size // 2)
            text += f' Shorter, for less accuracy: ARGS="train.epochs={epochs}" (about half an hour)'
            text += f' or ARGS="data.size={size}".'
        tqdm.write(text)

    def save(self, name: str) -> None:
        """Writes a checkpoint."""
        now = time.monotonic()
        self.seconds += now - max(self.saved, self.started)
        self.saved = now
        save_checkpoint(
            self.run / name,
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "objective": self.objective.state_dict(),
                "epoch": self.epoch,
                "step": self.step,
                "best": self.best,
                "best_epoch": self.best_epoch,
                "all_zero": self.all_zero,
                "seconds": self.seconds,
                "rows": self.rows,
                "log_offset": self.log.offset,
                "random": torch.get_rng_state(),
                "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
                "classes": list(self.splits.classes.codes),
                "origin": self.origin,
                "environment": environment(),
            },
        )

    def load(self) -> int:
        """Takes back the state of last.pt; returns how much of metrics.jsonl belongs to it."""
        state = load_checkpoint(self.run / "last.pt")
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.objective.load_state_dict(state["objective"])
            for key in ("epoch", "step", "best", "best_epoch", "all_zero", "seconds", "rows", "origin"):
                setattr(self, key, state[key])
            torch.set_rng_state(state["random"])
            if self.choice.device.type == "cuda" and state["random_cuda"]:
                torch.cuda.set_rng_state_all(state["random_cuda"])
            offset = int(state["log_offset"])
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{self.run / 'last.pt'} does not fit this run: {reason}") from None
        print(f"Resuming {self.run} after epoch {self.epoch}, step {self.step} of {self.steps}", flush=True)
        return offset

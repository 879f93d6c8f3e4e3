"""The training loop, readable from top to bottom."""

import math
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from dermrw.config import Config
from dermrw.datasets.dataset import ImageDataset, Splits, epoch_batches, in_order, loader, steps_per_epoch
from dermrw.errors import UserError
from dermrw.files import write_atomic
from dermrw.metrics.classification import balanced_accuracy
from dermrw.models import to_input, train_mode
from dermrw.objectives import Batch, Objective
from dermrw.reweight.meta_step import sum_over
from dermrw.training.checkpoint import load_checkpoint, save_checkpoint
from dermrw.training.device import Placement, environment
from dermrw.training.distributed import Job
from dermrw.training.logits import predict_logits
from dermrw.training.optim import build_optimizer, build_schedule
from dermrw.training.progress import average, describe, duration, stoppable
from dermrw.training.run_folder import Log

LOG_EVERY = 10  # steps that one row of metrics.jsonl averages
WARM_UP = 3  # steps that the estimate of the whole time leaves out


def running_mean(model: nn.Module, decay: float) -> AveragedModel:
    """The exponential moving average of a model's weights and buffers; the first steps weigh less, as in a plain mean.

    Without that, a run of few hundred steps would keep much of the weights that it began with.
    """

    def follow(mean: Tensor, new: Tensor, steps: Tensor | int) -> Tensor:
        n = float(steps)
        kept = min(decay, (1 + n) / (10 + n))
        return kept * mean + (1 - kept) * new if mean.is_floating_point() else new

    return AveragedModel(model, avg_fn=follow, use_buffers=True)


class Loop:
    """One run's state, and the loop over epochs and steps."""

    pixels: ImageDataset  # the training images

    def __init__(
        self,
        run: Path,
        config: Config,
        choice: Placement,
        splits: Splits,
        model: nn.Module,
        objective: Objective,
        origin: str,
        job: Job,
    ) -> None:
        self.run, self.config, self.choice, self.splits, self.origin = run, config, choice, splits, origin
        self.job = job
        self.model, self.objective = choice.place(model), objective
        self.batch_size = min(config.train.batch_size, len(splits.train))
        self.steps = steps_per_epoch(len(splits.train), config.train.batch_size)
        self.mean = running_mean(self.model, config.train.average) if config.train.average else None
        self.optimizer = build_optimizer(config.train, self.model)
        self.schedule = build_schedule(config.train, self.optimizer, self.steps * config.train.epochs)
        self.epoch = self.step = 0  # finished epochs; finished steps of the present one
        self.best, self.best_epoch, self.all_zero, self.seconds = -1.0, 0, 0.0, 0.0
        self.rows: list[dict[str, Any]] = []  # steps that no row of the log has averaged yet

    def fit(self) -> None:
        """Trains to the end, from the last checkpoint where there is one."""
        offset = self.load() if self.job.same((self.run / "last.pt").exists) else 0
        for network in [self.model, *([self.mean] if self.mean is not None else [])]:
            self.job.spread([*network.parameters(), *network.buffers()])
        if self.epoch == self.config.train.epochs:
            print(f"{self.run} is finished; `make eval RUN={self.run}` evaluates it.")
            return
        part = self.splits.validation.part(self.job.part)
        self.validation = ImageDataset(part, self.config.data, progress="the validation split")
        self.size = 0  # of the images in memory
        self.log = Log(self.run / "metrics.jsonl", offset) if self.job.leads else None
        self.started, self.saved = time.monotonic(), time.monotonic()
        self.done_before = self.epoch * self.steps + self.step
        with stoppable(patient=self.job.world > 1) as stop:
            while self.epoch < self.config.train.epochs:
                self.train_epoch(stop)
                self.validate()
        print(
            f"Best epoch {self.best_epoch} of {self.epoch}: balanced validation accuracy {self.best:.3f}, "
            f"in {duration(self.seconds)}. Now `make eval RUN={self.run}`."
        )

    def read_images(self) -> None:
        """Has the training and the meta images in memory, of the size that the present epoch asks for."""
        train = self.config.train
        size = train.first_size if self.epoch < self.config.first_epochs else self.config.data.size
        if size == self.size:
            return
        if self.size:
            del self.pixels  # what is no longer needed goes before the new comes
        self.size, data = size, self.config.data.model_copy(update={"size": size})
        self.pixels = ImageDataset(self.splits.train, data, train.seed, progress=f"the training split, {size} px")
        meta = ImageDataset(self.splits.meta, data)
        images, labels, _ = next(in_order(meta, len(meta)))
        self.meta_x = to_input(images, self.choice.device, self.choice.channels_last)  # [M, 3, size, size]
        self.meta_y = labels.to(self.choice.device)

    def train_epoch(self, stop: threading.Event) -> None:
        """The steps that are left of the present epoch; a checkpoint, and the end, where `stop` is set."""
        self.read_images()
        train_mode(self.model, self.config.model.freeze)
        parts = [self.job.part(batch) for batch in self.batches(self.epoch)[self.step :]]
        rest = loader(self.pixels, parts, self.epoch, self.config.data.workers)
        best = f", validation {self.best:.3f} at best" if self.best_epoch else ""
        bar = tqdm(
            rest, f"epoch {self.epoch + 1}/{self.config.train.epochs}{best}", self.steps, initial=self.step,
            leave=False, mininterval=1, dynamic_ncols=True, unit="step", disable=not self.job.leads,
        )  # fmt: skip
        for images, labels, index in bar:
            self.rows.append(self.train_step(images, labels, index))
            self.step += 1
            if self.step % LOG_EVERY == 0 or self.step == self.steps:
                row = {"epoch": self.epoch, "step": self.epoch * self.steps + self.step, **average(self.rows)}
                self.record(row)
                bar.set_postfix_str(describe(row, self.splits.classes))
                self.rows = []
            self.estimate()
            stopping = self.job.any(stop.is_set())
            if stopping or time.monotonic() - self.saved > self.config.train.checkpoint_seconds:
                self.save("last.pt")
            if stopping:
                bar.close()
                self.job.wait()  # until the checkpoint is written: who ends first, ends the others
                raise KeyboardInterrupt
        bar.close()

    def batches(self, epoch: int) -> np.ndarray:
        """Rows of the training set for each step of an epoch, int `[steps, batch_size]`."""
        seed = self.config.train.seed
        return epoch_batches(self.splits.train.labels, self.objective.sampler, self.batch_size, seed, epoch)

    def samples(self, epoch: int) -> dict[str, int]:
        """How many training images of each label an epoch drew."""
        codes = self.splits.classes.codes
        counts = np.bincount(self.splits.train.labels[self.batches(epoch).ravel()], minlength=len(codes))
        return dict(zip(codes, counts.tolist(), strict=True))

    def write_weights(self) -> None:
        """weights.csv: what each training image weighed, on the leading process, where the objective weighs."""
        weights = self.objective.example_weights()
        if weights is None or not self.log:
            return
        train = self.splits.train
        label = [self.splits.classes.codes[c] for c in train.labels]
        table = train.table[["image_id", "lesion_id", "dx"]].assign(label=label, weight=weights)
        write_atomic(self.run / "weights.csv", table.to_csv(index=False, lineterminator="\n").encode())

    def train_step(self, images: Tensor, labels: Tensor, index: Tensor) -> dict[str, Any]:
        """One step of the optimiser on this process's part of a batch, pixels uint8 `[B, size, size, 3]`."""
        if self.job.world > 1:  # a stream for each step and process, which no checkpoint has to keep
            at = [self.config.train.seed, self.epoch * self.steps + self.step, self.job.rank]
            torch.manual_seed(int(np.random.SeedSequence(at).generate_state(1, np.uint64)[0] >> np.uint64(1)))
        x = to_input(images, self.choice.device, self.choice.channels_last)
        batch = Batch(
            x, labels.to(self.choice.device), index, self.meta_x, self.meta_y, self.batch_size, self.job.group
        )
        with self.choice.autocast():
            loss, log = self.objective(self.model, batch)
        whole = loss.detach().clone()
        sum_over([whole], self.job.group)
        value = whole.item()
        if not math.isfinite(value):
            raise self.diverged(f"the loss became {value} at epoch {self.epoch + 1}, step {self.step + 1}")
        self.optimizer.zero_grad()
        loss.backward()
        self.job.add_gradients(self.model)
        if self.config.train.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.clip)
        self.optimizer.step()
        if self.mean is not None:
            self.mean.update_parameters(self.model)
        row: dict[str, Any] = {
            "loss": value,
            "lr": max(self.schedule.get_last_lr()),
            **{k: v.tolist() for k, v in log.items()},
        }
        self.schedule.step()
        self.all_zero += float(log["all_zero"]) if "all_zero" in log else 0.0
        return row

    def validate(self) -> None:
        """Ends an epoch: balanced accuracy on validation, best.pt where it is the best so far, last.pt."""
        guess = self.best_guess()
        self.job.spread(list(guess.buffers()))  # each process had running statistics of its own
        part = predict_logits(guess, self.validation, self.choice, self.batch_size)
        logits = self.job.gather(part)
        if not np.isfinite(logits).all():
            raise self.diverged(f"the network gave numbers that are not finite after epoch {self.epoch + 1}")
        score = balanced_accuracy(logits, self.splits.validation.labels)
        self.epoch, self.step = self.epoch + 1, 0
        better = score > self.best
        if better:
            self.best, self.best_epoch = score, self.epoch
        row = {"epoch": self.epoch, "step": self.epoch * self.steps, "validation": {"balanced_accuracy": score}}
        row["samples"] = self.samples(self.epoch - 1)
        self.record(row)
        self.write_weights()
        if better:
            self.save("best.pt")
        self.save("last.pt")
        zero = f"; all weights were zero in {self.all_zero:.0f} steps so far" if self.all_zero else ""
        left, now = "", self.epoch * self.steps
        if now > self.done_before:  # else resumed after the epoch's last step: nothing shows the pace yet
            left = f", {duration(self.seconds_left(self.started, self.done_before, now))} left"
        tqdm.write(
            f"epoch {self.epoch}/{self.config.train.epochs}: balanced validation accuracy {score:.3f}"
            f"{' (best so far)' if better else ''}{left}{zero}"
        )

    def best_guess(self) -> nn.Module:
        """The network that is validated and kept: the running mean of the weights, where there is one."""
        return self.model if self.mean is None else self.mean.module

    def diverged(self, what: str) -> UserError:
        """The error of a training whose numbers left the finite ones."""
        mend = f"train.lr={self.config.train.lr / 10:g}"
        if self.choice.precision != "fp32":
            mend += ", or train.precision=fp32"
        kept = " and keeps its last checkpoint" if (self.run / "last.pt").exists() else ""
        return UserError(f"{what}: the run stopped{kept}; try a lower rate in a new run, such as {mend}")

    def work(self, steps: int) -> float:
        """What the first so many steps cost, in steps of `data.size`: time goes with the pixels of an image."""
        small = min(steps, self.config.first_epochs * self.steps)
        return small * (self.config.train.first_size / self.config.data.size) ** 2 + steps - small

    def seconds_left(self, since: float, before: int, now: int) -> float:
        """Until the end, if the rest goes as the steps `before` to `now` did, which began at the time `since`."""
        pace = (time.monotonic() - since) / (self.work(now) - self.work(before))
        return pace * (self.work(self.steps * self.config.train.epochs) - self.work(now))

    def estimate(self) -> None:
        """After the first steps, once: how long it all will take and, where that is hours, what shortens it."""
        now = self.epoch * self.steps + self.step
        done = now - self.done_before
        if done == WARM_UP:
            self.warm = time.monotonic()
        if done != 3 * WARM_UP:
            return
        train = self.config.train
        seconds = self.seconds_left(self.warm, self.done_before + WARM_UP, now)
        text = f"About {duration(seconds)} to go on this machine."
        if seconds > 3600:
            epochs = max(1, int(train.epochs * 1800 / seconds))
            size = max(64, self.config.data.size // 2)
            text += f' Shorter, for less accuracy: ARGS="train.epochs={epochs}" (about half an hour)'
            text += f' or ARGS="data.size={size}".'
        tqdm.write(text)

    def record(self, row: dict[str, Any]) -> None:
        """Appends a row to metrics.jsonl, on the leading process."""
        if self.log:
            self.log.write(row)

    def save(self, name: str) -> None:
        """Writes a checkpoint, on the leading process."""
        now = time.monotonic()
        self.seconds += now - max(self.saved, self.started)
        self.saved = now
        if not self.log:
            return
        save_checkpoint(
            self.run / name,
            {
                "model": (self.best_guess() if name == "best.pt" else self.model).state_dict(),
                **({"mean": self.mean.state_dict()} if self.mean is not None and name == "last.pt" else {}),
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
            if self.mean is not None:
                self.mean.load_state_dict(state["mean"])
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

"""The training loop."""

import itertools
import math
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dermrw.config import Config
from dermrw.datasets.dataset import Splits
from dermrw.datasets.pixels import ImageDataset, epoch_batches, loader, loader_of, steps_per_epoch
from dermrw.errors import UserError
from dermrw.files import write_atomic
from dermrw.formatting import duration
from dermrw.metrics.classification import balanced_accuracy, balanced_loss
from dermrw.models import train_mode, uses_batch_statistics
from dermrw.network_input import normalisation_of, to_input
from dermrw.objectives import Batch, Objective
from dermrw.objectives.held_out import HeldOutWeights
from dermrw.reweight.meta_step import sum_over
from dermrw.training.checkpoint import load_checkpoint, save_checkpoint
from dermrw.training.device import Placement, environment
from dermrw.training.distributed import Job
from dermrw.training.embeddings import temporary_embeddings
from dermrw.training.image_record import FILE, METADATA, require_own_images
from dermrw.training.logits import predict_logits
from dermrw.training.optim import build_optimizer, build_schedule, moving_average
from dermrw.training.progress import TimeEstimate, average, describe, stoppable
from dermrw.training.run_folder import Log, read_log
from dermrw.training.tensorboard import TensorBoard

META_SEED = 1 << 32  # added to train.seed, so that meta images are augmented with random numbers of their own
LOG_EVERY = 10  # steps averaged in one row of metrics.jsonl
COUNTERS = ("epoch", "step", "best", "best_epoch", "all_zero", "seconds", "rows", "origin")  # keys of a checkpoint


class EpochImages(NamedTuple):
    """The images of an epoch, in memory."""

    size: int  # side in pixels
    pixels: ImageDataset  # the training images
    meta: ImageDataset  # the whole meta set
    meta_batch: tuple[Tensor, Tensor] | None  # of every step: inputs and labels; None if new views are drawn


class Loop:
    """The state of one run, and the loop over its epochs and steps."""

    saves_every_epoch = True  # otherwise only after `train.checkpoint_seconds`
    attributes = frozenset(COUNTERS)  # that a checkpoint holds

    def __init__(
        self,
        run: Path,
        config: Config,
        placement: Placement,
        splits: Splits,
        model: nn.Module,
        objective: Objective,
        origin: str,
        job: Job,
    ) -> None:
        """Prepares a run that starts from the beginning; `fit` then resumes from the checkpoint, if there is one."""
        self.run, self.config, self.placement, self.splits, self.origin = run, config, placement, splits, origin
        self.job = job
        self.network = placement.place(model)  # as checkpoints store it
        self.model, self.objective = self.trained_part(), objective
        self.batch_size = min(config.train.batch_size, len(splits.train))
        self.steps = steps_per_epoch(len(splits.train), config.train.batch_size)
        self.averaged = moving_average(self.model, config.train.average) if config.train.average else None
        self.optimizer = build_optimizer(config.train, self.model)
        self.schedule = build_schedule(config.train, self.optimizer, self.steps * config.train.epochs)
        self.epoch = self.step = 0  # finished epochs; finished steps of the current epoch
        self.best, self.best_epoch = -1.0, 0  # highest balanced accuracy on validation, and its epoch
        self.all_zero, self.seconds = 0.0, 0.0  # steps in which all weights were zero; training time
        self.rows: list[dict[str, Any]] = []  # steps that are not yet averaged into a row of the log
        self.saved = time.monotonic()  # time of the last checkpoint
        self.images: EpochImages | None = None
        self.validation: ImageDataset | None = None
        self.image_record = (run / FILE).read_text() if (run / FILE).exists() else None  # of the training images
        self.log: Log | None = None  # only on the leading process
        self.tensorboard: TensorBoard | None = None
        self.time = TimeEstimate(config, self.steps)

    @property
    def steps_done(self) -> int:
        """Finished steps of the whole run."""
        return self.epoch * self.steps + self.step

    def trained_part(self) -> nn.Module:
        """Returns the module that is trained, which shares its parameters with the network: here the whole network."""
        return self.network

    def fit(self) -> None:
        """Trains to the last epoch, from the last checkpoint if there is one."""
        log_offset = self.load() if self.job.same((self.run / "last.pt").exists) else 0
        if not self.steps_done:
            self.job.same(self.require_new)
        for network in [self.network, *([self.averaged] if self.averaged is not None else [])]:
            self.job.spread([*network.parameters(), *network.buffers()])
        if self.epoch == self.config.train.epochs:
            if not self.job.same((self.run / "best.pt").exists):
                raise UserError(f"{self.run} is finished, but its best.pt is gone: restore it, or start a new run")
            print(f"{self.run} is finished. Next: `make eval RUN={self.run}`.")
            return
        self.prepare()
        self.log = Log(self.run / "metrics.jsonl", log_offset) if self.job.leads else None
        if self.log and self.config.train.tensorboard:
            self.tensorboard = TensorBoard(self.run, self.splits.classes.codes, read_log(self.run))
        self.saved = time.monotonic()
        self.time.start(self.steps_done)
        with stoppable(patient=self.job.world > 1) as stop:
            while self.epoch < self.config.train.epochs:
                self.train_epoch(stop)
                self.validate()
        if self.tensorboard:
            self.tensorboard.close()
        print(
            f"Best epoch {self.best_epoch} of {self.epoch}: balanced validation accuracy {self.best:.3f}, "
            f"in {duration(self.seconds)}. Next: `make eval RUN={self.run}`."
        )

    def require_new(self) -> None:
        """Checks that no training is lost that lasted longer than the time between checkpoints.

        Raises:
            UserError: there is a best.pt of such a training, whose last.pt is gone.
        """
        best = self.run / "best.pt"
        if not best.exists():
            return
        state = load_checkpoint(best)
        if state["seconds"] > self.config.train.checkpoint_seconds:
            raise UserError(
                f"{self.run} has best.pt, of epoch {state['best_epoch']}, but no last.pt, so it can't be resumed: "
                "restore last.pt, evaluate the run as it is, or name another RUN"
            )

    def prepare(self) -> None:
        """Reads the images that every epoch uses, and computes the weights that do not change during training."""
        if isinstance(self.objective, HeldOutWeights) and self.objective.values is None:
            parts = self.run, self.network, self.splits, self.config, self.placement, self.job
            with temporary_embeddings(*parts) as found:
                self.weigh_labels(self.objective, found)
        own_part = self.splits.validation.part(self.job.part)
        self.validation = ImageDataset(own_part, self.config.data, progress="the validation split")

    def weigh_labels(self, objective: HeldOutWeights, found: np.ndarray) -> None:
        """Sets the weights from embeddings `[rows, D]`, of the training images first and the meta images last."""
        train, meta = self.splits.train, self.splits.meta
        right = np.asarray(found[len(found) - len(meta) :]), meta.labels
        groups = train.table["lesion_id"].to_numpy(str)
        estimated = self.job.same(lambda: objective.estimate(np.asarray(found[: len(train)]), groups, right))
        objective.set_weights(estimated)
        if self.job.leads:
            print(estimated.sentence, flush=True)

    def read_images(self) -> EpochImages:
        """Returns the training and meta images in the size of the current epoch; reads them if the size changed."""
        train = self.config.train
        size = train.first_size if self.epoch < self.config.first_epochs else self.config.data.size
        if self.images is None or self.images.size != size:
            self.images = None  # free the memory of the old images before the new ones are read
            data = self.config.data.model_copy(update={"size": size})
            pixels = ImageDataset(self.splits.train, data, train.seed, progress=f"the training split, {size} px")
            meta = ImageDataset(self.splits.meta, data, META_SEED + train.seed if data.meta_views else None, once=True)
            batch = None if data.meta_views else next(self.on_device(loader(meta, [self.meta_rows()], 0)))
            self.images = EpochImages(size, pixels, meta, batch)
        return self.images

    def meta_rows(self) -> np.ndarray:
        """Returns this process's part of the meta set; all of it if a batch norm computes its statistics from it."""
        rows = np.arange(len(self.splits.meta))
        statistics = uses_batch_statistics(self.network, self.config.model.freeze)
        return rows if statistics or len(rows) < self.job.world else self.job.part(rows)

    def on_device(self, batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the inputs and the labels of these batches, on the device."""
        for images, labels, _ in batches:
            yield self.to_x(images), labels.to(self.placement.device)

    def train_epoch(self, stop: threading.Event) -> None:
        """Trains the remaining steps of the current epoch.

        Raises:
            KeyboardInterrupt: `stop` was set; a checkpoint is written first.
        """
        own_parts = [self.job.part(batch) for batch in self.batches(self.epoch)[self.step :]]
        remaining = self.examples(own_parts)
        train_mode(self.model, self.config.model.freeze)
        best = f", best validation {self.best:.3f}" if self.best_epoch else ""
        bar = tqdm(
            remaining, f"epoch {self.epoch + 1}/{self.config.train.epochs}{best}", self.steps, initial=self.step,
            leave=False, mininterval=1, dynamic_ncols=True, unit="step", disable=not self.job.leads,
        )  # fmt: skip
        for (images, labels, index), meta in zip(bar, self.meta_batches(len(own_parts)), strict=True):
            self.rows.append(self.train_step(images, labels, index, meta))
            self.step += 1
            if self.step % LOG_EVERY == 0 or self.step == self.steps:
                row = {"epoch": self.epoch, "step": self.steps_done, **average(self.rows)}
                self.record(row)
                bar.set_postfix_str(describe(row, self.splits.classes))
                self.rows = []
            if estimate := self.time.first_estimate(self.steps_done):
                tqdm.write(estimate)
            stopping = self.job.any(stop.is_set())
            if stopping or time.monotonic() - self.saved > self.config.train.checkpoint_seconds:
                self.save("last.pt")
            if stopping:
                bar.close()
                self.job.wait()  # the first process that ends would end the others before the checkpoint is written
                raise KeyboardInterrupt
        bar.close()

    def examples(self, parts: Sequence[np.ndarray]) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        """Returns the pixels uint8 `[B, size, size, 3]`, labels and rows of each part of a batch of this epoch."""
        return loader(self.read_images().pixels, list(parts), self.epoch, self.config.data.workers)

    def to_x(self, images: Tensor) -> Tensor:
        """Converts what `examples` returns to the input of the trained module."""
        return to_input(images, self.placement.device, normalisation_of(self.network), self.placement.channels_last)

    def meta_batches(self, steps: int) -> Iterable[tuple[Tensor, Tensor]]:
        """Returns the inputs and the labels of the meta batch of each of the next steps of this epoch."""
        images, views = self.read_images(), self.config.data.meta_views
        if images.meta_batch is not None:
            return itertools.repeat(images.meta_batch, steps)
        # each step has view numbers of its own, which seed the augmentation as an epoch does
        first, rows = [views * (self.steps_done + step) for step in range(steps)], self.meta_rows().tolist()
        keys = [[(start + view, i) for view in range(views) for i in rows] for start in first]
        return self.on_device(loader_of(images.meta, keys, self.config.data.workers))

    def validation_logits(self, model: nn.Module) -> np.ndarray:
        """Returns the logits of this process's part of the validation split, float32 `[N, C]`."""
        assert self.validation is not None
        return predict_logits(model, self.validation, self.placement, self.batch_size)

    def batches(self, epoch: int) -> np.ndarray:
        """Returns the rows of the training set for each step of an epoch, int `[steps, batch_size]`."""
        seed = self.config.train.seed
        return epoch_batches(self.splits.train.labels, self.objective.sampler, self.batch_size, seed, epoch)

    def samples(self, epoch: int) -> dict[str, int]:
        """Returns the number of training images drawn in an epoch, by label."""
        names = self.splits.label_names
        counts = np.bincount(self.splits.train.labels[self.batches(epoch).ravel()], minlength=len(names))
        return dict(zip(names, counts.tolist(), strict=True))

    def write_weights(self) -> None:
        """Writes weights.csv, the mean weight of each training image, if the objective weights the examples."""
        weights = self.objective.example_weights()
        if weights is None or not self.log:
            return
        train = self.splits.train
        label = [self.splits.label_names[c] for c in train.labels]
        table = train.table[["image_id", "lesion_id", "dx"]].assign(label=label, weight=weights)
        write_atomic(self.run / "weights.csv", table.to_csv(index=False, lineterminator="\n").encode())

    def train_step(self, images: Tensor, labels: Tensor, index: Tensor, meta: tuple[Tensor, Tensor]) -> dict[str, Any]:
        """Makes one optimiser step on this process's part of a batch; returns the values to log.

        Args:
            images: pixels, uint8 `[B, size, size, 3]`, or what else `examples` returns.
            labels: `[B]`.
            index: rows of the training set `[B]`.
            meta: inputs and labels of the meta batch.

        Raises:
            UserError: the loss is not finite.
        """
        if self.job.world > 1:  # one random stream per step and process, so that checkpoints need not store them
            entropy = [self.config.train.seed, self.steps_done, self.job.rank]
            torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1)))
        x, y = self.to_x(images), labels.to(self.placement.device)
        batch = Batch(x, y, index, *meta, self.batch_size, self.job.group)
        with self.placement.autocast():
            loss, log = self.objective(self.model, batch)
        total_loss = loss.detach().clone()
        sum_over([total_loss], self.job.group)
        value = total_loss.item()
        if not math.isfinite(value):
            raise self.diverged(f"the loss became {value} at epoch {self.epoch + 1}, step {self.step + 1}")
        self.optimizer.zero_grad()
        loss.backward()
        self.job.add_gradients(self.model)
        if self.config.train.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.clip)
        self.optimizer.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        row: dict[str, Any] = {
            "loss": value,
            "lr": max(self.schedule.get_last_lr()),
            **{k: v.tolist() for k, v in log.items()},
        }
        self.schedule.step()
        self.all_zero += float(log["all_zero"]) if "all_zero" in log else 0.0
        return row

    def validate(self) -> None:
        """Ends an epoch: validates the network and writes last.pt, and best.pt if its accuracy is the best."""
        network = self.evaluated_network()
        self.job.spread(list(network.buffers()))  # each process has its own running statistics
        logits = self.job.gather(self.validation_logits(network))
        if not np.isfinite(logits).all():
            raise self.diverged(f"the network's outputs were not finite after epoch {self.epoch + 1}")
        labels = self.splits.validation.labels
        score, loss = balanced_accuracy(logits, labels), balanced_loss(logits, labels)
        self.epoch, self.step = self.epoch + 1, 0
        better = score > self.best
        if better:
            self.best, self.best_epoch = score, self.epoch
        found = {"balanced_accuracy": score, "balanced_loss": loss}
        row = {"epoch": self.epoch, "step": self.steps_done, "validation": found}
        row["samples"] = self.samples(self.epoch - 1)
        self.record(row)
        self.write_weights()
        if better:
            self.save("best.pt")
        if self.epoch == self.config.train.epochs or self.saves_every_epoch:
            self.save("last.pt")
        zero = f"; all weights were zero in {self.all_zero:.0f} steps so far" if self.all_zero else ""
        seconds = self.time.seconds_left(self.steps_done)
        left = "" if seconds is None else f", {duration(seconds)} left"
        tqdm.write(
            f"epoch {self.epoch}/{self.config.train.epochs}: balanced validation accuracy {score:.3f}"
            f"{' (best so far)' if better else ''}, balanced loss {loss:.3f}{left}{zero}"
        )

    def evaluated_network(self) -> nn.Module:
        """The network to validate and to keep: the exponential moving average if there is one, else the model."""
        return self.model if self.averaged is None else self.averaged.module

    def network_state(self, model: nn.Module) -> dict[str, Any]:
        """Returns the state dict of the whole network with the weights of `model`, the trained part or its average."""
        return model.state_dict()

    def diverged(self, problem: str) -> UserError:
        """The error of a training whose loss or outputs are no longer finite."""
        fix = f"train.lr={self.config.train.lr / 10:g}"
        if self.placement.precision != "fp32":
            fix += ", or train.precision=fp32"
        kept = " (the last checkpoint is kept)" if (self.run / "last.pt").exists() else ""
        return UserError(f"{problem}{kept}: start a new run with a lower learning rate, such as {fix}")

    def record(self, row: dict[str, Any]) -> None:
        """Appends a row to metrics.jsonl, on the leading process."""
        if self.log:
            self.log.write(row)
        if self.tensorboard:
            self.tensorboard.write(row)

    def save(self, name: str) -> None:
        """Writes the checkpoint `name`, on the leading process."""
        now = time.monotonic()
        self.seconds += now - self.saved
        self.saved = now
        if not self.log:
            return
        if self.tensorboard:
            self.tensorboard.flush()
        last = name == "last.pt"
        save_checkpoint(
            self.run / name,
            {
                "model": self.network_state(self.model if last else self.evaluated_network()),
                **({"mean": self.averaged.state_dict()} if self.averaged is not None and last else {}),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "objective": self.objective.state_dict(),
                **{key: getattr(self, key) for key in self.attributes},
                "log_offset": self.log.offset,
                "random": torch.get_rng_state(),
                "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
                "classes": list(self.splits.classes.codes),
                **({METADATA: self.image_record} if self.image_record is not None else {}),
                "environment": environment(),
            },
        )

    def load(self) -> int:
        """Restores the state of last.pt; returns the length in bytes of metrics.jsonl at that checkpoint.

        Raises:
            UserError: the checkpoint is damaged or does not fit this run.
        """
        state = load_checkpoint(self.run / "last.pt")
        require_own_images(self.run / "last.pt", state, self.image_record)
        try:
            steps = [values.get("total_steps") for values in (state["schedule"], self.schedule.state_dict())]
            if steps[0] != steps[1]:
                raise ValueError(f"its schedule has {steps[0]} steps, not {steps[1]}")
            self.network.load_state_dict(state["model"])
            if self.averaged is not None:
                self.averaged.load_state_dict(state["mean"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.objective.load_state_dict(state["objective"])
            for key in self.attributes & state.keys():
                setattr(self, key, state[key])
            torch.set_rng_state(state["random"])
            own = self.placement.device.index or 0
            if self.placement.device.type == "cuda" and own < len(state["random_cuda"]):  # fewer: of another machine
                torch.cuda.set_rng_state(state["random_cuda"][own], self.placement.device)
            log_offset = int(state["log_offset"])
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{self.run / 'last.pt'} does not fit config.yaml ({reason}): restore both, or start a new run"
            ) from None
        print(f"Resuming {self.run} after epoch {self.epoch}, step {self.step} of {self.steps}", flush=True)
        return log_offset

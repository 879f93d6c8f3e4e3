"""Training of a run from its config: loads the data, builds the network and the objective, then starts `Loop`."""

import copy
import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from dermrw.config import Config
from dermrw.datasets.dataset import Splits, load_splits, located, resolve_root
from dermrw.datasets.pixels import steps_per_epoch
from dermrw.errors import UserError
from dermrw.files import write_atomic
from dermrw.formatting import counted
from dermrw.labelled.classes import CLASS_FILE
from dermrw.models import backbones, build_model, check_backbone, check_fit, embed, freeze, uses_batch_statistics
from dermrw.objectives import Batch, Objective, build_objective
from dermrw.objectives.confident_learning import require_cleanlab
from dermrw.timm_models import interpolation
from dermrw.training.checkpoint import load_checkpoint
from dermrw.training.device import Placement, choose
from dermrw.training.distributed import Job, join, require_an_image_each
from dermrw.training.head_loop import HeadLoop
from dermrw.training.image_overlap import FILE as OVERLAP
from dermrw.training.image_overlap import copies_across_splits, require_same_pictures, require_unseen
from dermrw.training.image_record import FILE, ImageRecord, hashes_of
from dermrw.training.loop import Loop
from dermrw.training.run_folder import (
    AVERAGED_RUNS,
    new_run,
    read_split,
    resume_config,
    run_facts,
    sole_training,
    start_run,
)
from dermrw.training.tensorboard import require_tensorboard


def train(asked: Config, run: Path | None = None) -> Path:
    """Trains or resumes a run and returns its folder.

    Args:
        asked: the config. Settings with the value `auto` are chosen for this machine.
        run: the folder of the run. If it holds a run with the same config, that run is resumed. None creates a new
            folder.
    """
    if asked.train.tensorboard:
        require_tensorboard()
    if asked.objective.name == "confident_learning":
        require_cleanlab()
    with join() as job:
        check_backbone(asked.model)  # before the data is read, which can take minutes
        root = job.in_turn(lambda: resolve_root(asked.data))
        asked = asked.model_copy(update={"data": located(asked.data, root)})
        run = job.same(lambda: run or new_run(asked.name))
        with sole_training(run) if job.leads else nullcontext():
            return _train(asked, run, root, job)


def _train(asked: Config, run: Path, root: Path, job: Job) -> Path:
    resumed = job.same((run / "config.yaml").exists)
    if not resumed and job.same((run / "last.pt").exists):
        raise UserError(f"{run} has a checkpoint but no config.yaml: restore config.yaml, or name another RUN")
    if not resumed:
        job.in_turn(lambda: _require_run_folder(run))
    if resumed:
        config = resume_config(run, asked)
        splits = load_splits(config.data, root, read_split(run), announce=True, facts=run_facts(run, config))
        if job.same(lambda: any((run / name).exists() for name in (FILE, "last.pt"))):
            record = job.same(lambda: ImageRecord.of_run(run))
            _require_same_weights(run, config, record)
            job.in_turn(lambda: require_same_pictures(record, splits.validation, config))
        else:  # it is as new
            record, _ = _image_record(config, splits, run, job, resumed=True)
    else:
        config = _with_interpolation(asked)
        splits = load_splits(config.data, root, announce=True)
        record, note = _image_record(config, splits, run, job)
        if note and splits.facts is not None:
            print(note, flush=True)
            splits = splits._replace(facts=splits.facts._replace(notes=(*splits.facts.notes, note)))

    torch.manual_seed(config.train.seed)
    classes = len(splits.classes.codes)
    model, origin = job.in_turn(lambda: _network(run, config, splits.classes.codes, resumed))
    for size in {config.data.size, *([config.train.first_size] if config.first_epochs else [])}:
        check_fit(model, config.model.backbone, size)
    freeze(model, config.model.freeze)
    _check_batch(config, model, len(splits.train), job.world)
    steps = steps_per_epoch(len(splits.train), config.train.batch_size) * config.train.epochs
    objective = build_objective(config, splits.train.labels, classes, steps)
    choice, timings = job.same(lambda: _choose(config, model, objective, classes, len(splits.meta), len(splits.train)))
    config = _resolved(config, choice)
    if choice.device.type == "cuda" and job.world > 1:
        choice = choice._replace(device=torch.device("cuda", job.local_rank))
    if job.leads and not (resumed and (run / FILE).exists()):
        write_atomic(run / FILE, record.to_text().encode())
    if not resumed and job.leads:
        start_run(run, config, splits.table, splits.facts, splits.left_out)
    data = config.data.name if splits.facts is None else root.name
    print(
        f"Run {run}: {config.objective.title} on {data} ({len(splits.train):,} training, "
        f"{len(splits.validation):,} validation, {len(splits.test):,} test and {len(splits.meta)} meta images)\n"
        f"Model {config.model.backbone}, {origin}, {_sizes(config)}, {counted(config.train.epochs, 'epoch')}, "
        f"batches of {config.train.batch_size}\nComputing on {choice}"
        + (f", {job.world} processes" if job.world > 1 else "")
        + (f"; seconds per step: {', '.join(f'{k} {v:.2f}' for k, v in timings.items())}" if timings else ""),
        flush=True,
    )
    try:
        loop = HeadLoop if config.trains_on_embeddings else Loop
        loop(run, config, choice, splits, model, objective, origin, job).fit()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the same command with RUN={run} resumes from the last checkpoint") from None
    return run


def _require_run_folder(run: Path) -> None:
    """Checks that a new run replaces no file of another kind, such as classes.yaml next to a user's table."""
    if (run / AVERAGED_RUNS).exists():
        raise UserError(f"{run} is the folder of an average of runs: name another RUN")
    others = [name for name in (CLASS_FILE, "split.csv") if (run / name).exists()]
    if others and not (run / FILE).exists():  # a run that ended before its config was written has this file
        raise UserError(f"{run} is not a run's folder, but holds {' and '.join(others)}: name another RUN")


def _image_record(
    config: Config, splits: Splits, run: Path, job: Job, resumed: bool = False
) -> tuple[ImageRecord, str | None]:
    """Returns the record of a new run's training images, with those of its first weights, and a note on copies.

    Raises:
        UserError: these weights were trained on its validation or test images.
    """
    weights = config.model.weights_file
    earlier = ImageRecord.of_weights(weights)
    sets = (splits.train, splits.validation, splits.test, splits.meta)
    hashes = job.in_turn(lambda: hashes_of(sets, config))
    if earlier is not None:
        require_unseen(earlier, splits, config, hashes, run, resumed)
    if job.leads:
        (run / OVERLAP).unlink(missing_ok=True)  # of an earlier attempt
    digest = hashlib.sha256(weights.read_bytes()).hexdigest() if weights is not None and weights.is_file() else ""
    record = ImageRecord.of_split(splits.table, config, hashes, earlier, digest)
    return record, copies_across_splits(splits, hashes)


def _require_same_weights(run: Path, config: Config, record: ImageRecord) -> None:
    """Checks that a run that is resumed before its first checkpoint starts from the same weights.

    Raises:
        UserError: the file of `model.weights` has changed, so its training images were not compared.
    """
    weights = config.model.weights_file
    if (run / "last.pt").exists() or weights is None or not weights.is_file() or not record.weights:
        return
    if hashlib.sha256(weights.read_bytes()).hexdigest() != record.weights:
        raise UserError(
            f"model.weights={config.model.weights} is not the file that {run} was started from: restore it, or name "
            "another RUN"
        )


def _network(run: Path, config: Config, codes: Sequence[str], resumed: bool) -> tuple[nn.Module, str]:
    """Builds the network. If a resumed run's `model.weights` are gone, `Loop` loads all weights of last.pt."""
    weights, checkpoint = config.model.weights_file, run / "last.pt"
    gone = weights is not None and not weights.is_file()
    if not (resumed and gone and checkpoint.exists()):
        return build_model(config.model, len(codes), codes)
    model, _ = build_model(config.model.model_copy(update={"weights": "none"}), len(codes))
    return model, load_checkpoint(checkpoint)["origin"]


def _with_interpolation(config: Config) -> Config:
    """Returns the config with `data.interpolation=auto` replaced by the filter of the backbone."""
    if config.data.interpolation != "auto":
        return config
    timms = config.model.backbone not in backbones()
    chosen = interpolation(config.model.backbone) if timms else "bilinear"
    return config.model_copy(update={"data": config.data.model_copy(update={"interpolation": chosen})})


def _check_batch(config: Config, model: nn.Module, examples: int, processes: int) -> None:
    """Checks that the smallest part of a batch that a process computes is large enough for the network.

    Raises:
        UserError: a process has no image, or has one image and the network has batch norm in train mode.
    """
    size = min(config.train.batch_size, examples)
    given, larger = f"train.batch_size={config.train.batch_size}", f"set train.batch_size={2 * processes} or more"
    if size < config.train.batch_size:
        given, larger = f"a training split of {examples} images", "use a larger training split"
    require_an_image_each(config.train.batch_size, processes)
    if size < processes:
        raise UserError(
            f"{given} must be at least the number of processes, {processes}: {larger}, or start fewer processes"
        )
    if size < 2 * processes and uses_batch_statistics(model, config.model.freeze):
        where = f" to at least one of {processes} processes" if processes > 1 else ""
        fewer = "start fewer processes, " if processes > 1 else ""
        raise UserError(
            f"{given} gives one image{where}, but the batch norm of {config.model.backbone} requires two: {larger}, "
            f"{fewer}or keep the statistics of batch norm fixed with model.freeze=batch_norm"
        )


def _choose(
    config: Config, model: nn.Module, objective: Objective, classes: int, meta: int, examples: int
) -> tuple[Placement, dict[str, float]]:
    """Chooses precision and memory layout by timing steps on a batch of the real size.

    Returns the choice and the seconds per step of each candidate.
    """
    objective = copy.deepcopy(objective)  # the timed steps must not change the state of the objective
    if config.trains_on_embeddings:
        return _choose_for_embeddings(config, model)
    if config.objective.weights == "finite_difference":  # in bf16, rounding errors exceed the difference
        config = config.model_copy(update={"train": config.train.model_copy(update={"precision": "fp32"})})
    size, n = config.data.size, min(config.train.batch_size, examples)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n + meta, 3, size, size, generator=generator)

    def step(candidate: nn.Module, inputs: Tensor) -> Tensor:
        y = torch.arange(len(inputs), device=inputs.device) % classes
        return objective(candidate, Batch(inputs[:n], y[:n], torch.arange(n), inputs[n:], y[n:], n))[0]

    return choose(config.train, model, step, x, config.model.freeze)


def _choose_for_embeddings(config: Config, model: nn.Module) -> tuple[Placement, dict[str, float]]:
    """Chooses the memory layout by timing forward passes. The precision of the head's steps is fp32 if it is `auto`."""
    train = config.train
    if train.precision == "auto":
        train = train.model_copy(update={"precision": "fp32"})
    x = torch.randn(16, 3, config.data.size, config.data.size, generator=torch.Generator().manual_seed(0))

    def forward(candidate: nn.Module, inputs: Tensor) -> Tensor:
        return embed(candidate, inputs).mean().requires_grad_()

    return choose(train, model, forward, x, config.model.freeze)


def _sizes(config: Config) -> str:
    first = f"{config.train.first_size} px for {config.first_epochs} epochs, then "
    return f"{first if config.first_epochs else ''}{config.data.size} px"


def _resolved(config: Config, choice: Placement) -> Config:
    """Returns the config with `auto` replaced by the choice, so that a resumed run computes in the same way."""
    chosen = {"device": str(choice.device), "precision": choice.precision, "channels_last": choice.channels_last}
    return config.model_copy(update={"train": config.train.model_copy(update=chosen)})

"""Configuration: frozen pydantic models, YAML files that contain only differences, and `key=value` overrides.

An unknown key, or a value of the wrong type or out of range, raises a `UserError` that names the key. A run folder
contains the complete config, which is enough to repeat the run.
"""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dermrw.errors import UserError
from dermrw.files import expand_home
from dermrw.strict_yaml import parse_value, read_yaml, short

_HERE = Path(__file__).resolve().parent
# an installed package contains the configs; in a checkout they are next to it
CONFIGS = _HERE / "configs" if (_HERE / "configs").is_dir() else _HERE.parent / "configs"

LARGEST_SEED = 2**32 - 1  # the largest that NumPy, torch and scikit-learn all accept
# keys that change where and how fast a run is computed, but not its result
NOT_PART_OF_A_RESULT = {
    "data.root", "data.images", "data.extra_images", "data.refuse", "model.weights", "train.checkpoint_seconds",
    "train.tensorboard", "data.workers", "data.cache", "data.cache_folder", "train.device", "name",
}  # fmt: skip


# losses that correct for the number of images of each class
COUNTS_CLASSES = ("inverse_frequency", "class_balanced", "ldam_drw", "balanced_softmax")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator(
        "root", "images", "classes", "extra", "extra_images", "refuse", "meta", "reserve", "cache_folder", "weights",
        check_fields=False,
    )  # fmt: skip
    @classmethod
    def _a_path(cls, value: str | None) -> str | None:
        if value:
            expand_home(value)
        return value


class Data(_Section):
    """The data set and its splits."""

    name: Literal["ham10000", "sample", "cifar10", "table"] = "ham10000"
    root: str | None = Field(
        None,
        description="folder of the data; default: HAM10000_DIR, then data/ham10000. For table: a CSV with the columns "
        "image and label, or a folder with a folder per class",
    )
    images: str | None = Field(None, description="table: the folder of the images; default: the folder of the table")
    classes: str | None = Field(
        None, description="table: a YAML file with the classes; default: classes.yaml next to the table, if it exists"
    )
    extra: str | None = Field(
        None,
        description="ham10000: a CSV with the columns image and label, optionally group, or a folder with a folder per "
        "class; its images are added to training",
    )
    extra_images: str | None = Field(None, description="the folder of these images; default: the folder of the table")
    extra_benign: Literal["leave_out", "sum"] = Field(
        "leave_out",
        description="images of data.extra with the label benign and no diagnosis; sum: they train through the summed "
        "probability of the benign classes",
    )
    refuse: str | None = Field(
        None,
        description="a folder of pictures that the model file is to refuse though they show the same subject, such as "
        "clinical photographs of skin; `dermrw eval` fits a detector on two thirds of them",
    )
    size: int = Field(224, ge=32, le=1024, description="side of the network's input in pixels")
    field_of_view: Literal["none", "find"] = Field(
        "none", description="find: borders and dark corners are cut first, also by the model file's users"
    )
    crop: Literal["square", "whole"] = Field(
        "square", description="evaluation: the middle square, or the whole picture squeezed to a square"
    )
    interpolation: Literal["bilinear", "bicubic", "auto"] = Field(
        "bilinear",
        description="antialiased filter of the resize; auto: that of the backbone's pretrained configuration in timm, "
        "bilinear for other backbones",
    )
    meta: str = Field(
        "ham10000_meta_3_per_class.csv",
        description="the curated meta set: a CSV with a column image_id, or 'rule' to choose it by a rule; table: the "
        "default means 'rule'",
    )
    meta_per_class: int = Field(3, ge=1, le=1000, description="images per class drawn by 'rule'")
    split_seed: int = Field(0, ge=0, le=LARGEST_SEED)
    validation: float = Field(0.15, gt=0, lt=0.5, description="share of the lesions")
    test: float = Field(0.15, gt=0, lt=0.5, description="share of the lesions")
    dominant: int = Field(2, ge=0, le=9, description="CIFAR-10: the dominant class (2 is bird)")
    bias: float = Field(0.9, ge=0.1, lt=1, description="CIFAR-10: the dominant class's share of the training set")
    meta_views: int = Field(
        0,
        ge=0,
        le=64,
        description="augmented views of each meta image in every meta batch, new ones in each step; 0: the meta images "
        "are not augmented, as in Ren et al. (2018)",
    )
    noise: Literal["uniform", "class_conditional"] = Field(
        "uniform", description="wrong labels: any other class, or the class that the true class is mistaken for"
    )
    noise_rate: float = Field(0.0, ge=0, lt=1, description="share of the training lesions that are given a wrong label")
    meta_noise_rate: float = Field(
        0.0, ge=0, lt=1, description="share of the meta images that are given a wrong label (uniform noise)"
    )
    noise_seed: int = Field(0, ge=0, le=LARGEST_SEED)
    reserve: str | None = Field(
        None,
        description="a CSV with a column image_id: these lesions are not used, except as meta images in a list",
    )
    augment: Literal["dermoscopy", "strong", "cutout", "cameras", "devices", "none"] = Field(
        "dermoscopy",
        description="random changes of training images; devices: strong, with the effects of other dermatoscopes, "
        "cameras, files and framing",
    )
    views: Literal[1, 4, 8] = Field(
        1,
        description="evaluation and the model file average the logits over this many views of each image: 4: all "
        "quarter turns; 8: also those of the mirror image",
    )
    skip_unreadable: bool = Field(False, description="leave out missing and unreadable images, and list them")
    workers: int = Field(0, ge=0, le=64, description="processes that augment images in parallel; 0: none")
    cache: Literal["auto", "memory", "disk", "none"] = Field(
        "auto", description="where decoded images are kept; auto: in memory, else on disk, else nowhere, as they fit"
    )
    cache_folder: str | None = Field(None, description="folder of data.cache=disk; default: runs/.pixel_cache")

    @property
    def meta_list(self) -> str:
        """The file of the meta set, or `rule`; HAM10000's list has no meaning for a table."""
        no_list = self.name == "table" and self.meta == Data.model_fields["meta"].default
        return "rule" if no_list else self.meta


class Model(_Section):
    """The network."""

    backbone: str = Field(
        "efficientnet_b0",
        description="a torchvision classifier, efficientnet_lite0 to 2, timm/NAME, small_cnn or cifar_alexnet",
    )
    weights: str = Field(
        "imagenet",
        description="imagenet (pretrained, from torchvision or timm), none, or a file: a state dict or safetensors",
    )
    colour_constancy: Literal["none", "shades_of_grey"] = Field(
        "none", description="shades_of_grey: each picture is normalised to a reference illuminant; none: as it is"
    )
    freeze: Literal["none", "batch_norm", "backbone"] = Field(
        "none", description="batch_norm: its statistics stay fixed; backbone: only the last linear layer is trained"
    )
    embedding_views: int = Field(
        4,
        ge=0,
        le=64,
        description="freeze=backbone: number of views of each training image whose embeddings are computed once; the "
        "first is not augmented. 0: no embeddings are kept, and every step computes the backbone",
    )
    head: Literal["linear", "cosine"] = Field(
        "linear", description="cosine: logits are 30 times the cosine similarity; for ldam_drw"
    )
    keep_head: bool = Field(
        False, description="the head is that of model.weights, too: the checkpoint of a run with the same classes"
    )

    @property
    def weights_file(self) -> Path | None:
        """The file that `weights` names; None for `imagenet` and `none`."""
        return None if self.weights in ("imagenet", "none") else Path(self.weights).expanduser()


class Objective(_Section):
    """The training objective. `objective=NAME` sets `objective.name` and resets the other keys to their defaults."""

    name: Literal[
        "erm",
        "mixup",
        "fine_tune_meta",
        "random_weights",
        "reweight",
        "meta_weight_net",
        "noise_weights",
        "label_posterior",
        "confident_learning",
    ] = Field("reweight", description="the method: how examples are weighted, or a baseline")
    loss: Literal["cross_entropy", "inverse_frequency", "class_balanced", "focal", "ldam_drw", "balanced_softmax"] = (
        Field("cross_entropy", description="the loss of one example")
    )
    sampler: Literal["shuffled", "balanced"] = Field(
        "shuffled", description="every example once per epoch, or every class equally often"
    )
    weights: Literal["exact", "finite_difference", "last_stage"] = Field(
        "exact", description="reweight: exact weights, or a cheaper approximation (docs/cost.md)"
    )
    refresh_every: int = Field(
        1,
        ge=1,
        description="steps between two meta gradients; in between, reweight uses the last known weight of each image "
        "(from the previous epoch; the first epoch is exact), and noise_weights keeps κ constant",
    )
    warm_up: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the training, from its start, in which all weights are equal: those of the examples "
        "(reweight, random_weights, meta_weight_net), or of the classes (erm with loss=inverse_frequency or "
        "class_balanced)",
    )
    odds: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="noise_weights: κ = ε / ((1 − ε)(C − 1)) for a share ε of wrong labels; learned from the meta set "
        "if not set",
    )

    @property
    def title(self) -> str:
        """The name, and the loss and the sampler if they are not the defaults, such as `reweight, balanced_softmax`."""
        default = Objective()
        loss = [self.loss] if self.loss != default.loss else []
        sampler = [f"{self.sampler} sampling"] if self.sampler != default.sampler else []
        return ", ".join([self.name, *loss, *sampler])


class Train(_Section):
    """The optimiser and the training loop."""

    epochs: int = Field(30, ge=1, le=1_000_000)
    batch_size: int = Field(64, ge=1, le=1_000_000)
    lr: float = Field(1e-3, gt=0, le=1e30, description="peak learning rate")  # float32 cannot represent 1e300
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD's momentum")
    weight_decay: float = Field(0.01, ge=0, le=1000)
    schedule: Literal["one_cycle", "constant"] = "one_cycle"
    first_share: float = Field(
        0.0, ge=0, lt=1, description="share of the epochs, from the first on, that train on images of first_size"
    )
    first_size: int = Field(
        128,
        ge=32,
        le=1024,
        description="side in pixels; ignored unless smaller than data.size",
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="ratio of the learning rate of each block to that of the block after it"
    )
    average: float = Field(
        0.0, ge=0, lt=1, description="decay per step of the exponential moving average of the weights; 0: no average"
    )
    clip: float = Field(0.0, ge=0, description="gradients are clipped to this norm; 0: no clipping")
    seed: int = Field(0, ge=0, le=LARGEST_SEED)
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    channels_last: bool | Literal["auto"] = "auto"
    checkpoint_seconds: float = Field(
        120.0, gt=0, description="time between checkpoints: the work lost at most when a run is killed"
    )
    tensorboard: bool = Field(False, description="write the values of metrics.jsonl for TensorBoard, too")


class Config(_Section):
    """The config of one run."""

    name: str = Field(
        "ham", max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="prefix of the run folder"
    )
    data: Data = Data()
    model: Model = Model()
    objective: Objective = Objective()
    train: Train = Train()

    @field_validator("objective", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        default, name = Objective(), self.objective.name
        if name != "reweight" and self.objective.weights != default.weights:
            raise ValueError(f"objective.weights is an option of reweight, not of {name}")
        if name not in ("reweight", "noise_weights") and self.objective.refresh_every != default.refresh_every:
            raise ValueError(f"objective.refresh_every is an option of reweight and noise_weights, not of {name}")
        if self.objective.odds is not None and name != "noise_weights":
            raise ValueError(f"objective.odds is an option of noise_weights, not of {name}")
        weighs_classes = name == "erm" and self.objective.loss in ("inverse_frequency", "class_balanced")
        if self.objective.warm_up and not (weighs_classes or name in ("reweight", "random_weights", "meta_weight_net")):
            raise ValueError(
                "objective.warm_up is an option of reweight, random_weights and meta_weight_net, and of erm with "
                f"loss=inverse_frequency or class_balanced, not of {self.objective.title}"
            )
        if name in ("noise_weights", "label_posterior", "confident_learning") and self.objective.loss not in (
            "cross_entropy",
            "balanced_softmax",
        ):
            raise ValueError(f"{name} requires objective.loss=cross_entropy or balanced_softmax")
        if self.objective.sampler == "balanced" and self.objective.loss in COUNTS_CLASSES:
            raise ValueError(
                f"objective.sampler=balanced and objective.loss={self.objective.loss} would both balance the classes: "
                "set one of them"
            )
        if (self.objective.loss == "ldam_drw") != (self.model.head == "cosine"):
            raise ValueError("objective.loss=ldam_drw and model.head=cosine require each other: set both or neither")
        if self.model.keep_head and self.model.weights_file is None:
            raise ValueError("model.keep_head requires model.weights=FILE, the best.pt of a run")
        if self.model.keep_head and self.model.head == "cosine":
            raise ValueError("model.keep_head requires model.head=linear")
        if self.objective.weights == "finite_difference" and self.train.precision == "bf16":
            raise ValueError("objective.weights=finite_difference requires train.precision=fp32: bf16 is too coarse")
        for key in ("images", "classes"):
            if self.data.name != "table" and getattr(self.data, key) is not None:
                raise ValueError(f"data.{key} is an option of data.name=table, not of {self.data.name}")
        for key in ("extra", "extra_images"):
            if self.data.name != "ham10000" and getattr(self.data, key) is not None:
                raise ValueError(f"data.{key} is an option of data.name=ham10000, not of {self.data.name}")
        if self.data.extra_benign == "sum":
            self._fits_benign_images()
        if self.data.name == "cifar10":
            for key in ("field_of_view", "meta", "reserve", "validation", "test"):
                if getattr(self.data, key) != Data.model_fields[key].default:
                    raise ValueError(f"data.{key} is not an option of data.name=cifar10")
        drawn = self.data.name in ("cifar10", "table") or self.data.meta == "rule"
        if not drawn and self.data.meta_per_class != Data.model_fields["meta_per_class"].default:
            raise ValueError(
                f"data.meta_per_class is an option of data.meta=rule; data.meta={self.data.meta} lists the images"
            )
        if self.data.meta_views and self.trains_on_embeddings:
            raise ValueError(
                "data.meta_views augments images, but model.freeze=backbone computes their embeddings once"
            )
        if self.data.validation + self.data.test >= 0.9:
            raise ValueError("data.validation and data.test leave less than a tenth of the lesions for training")
        return self

    def _fits_benign_images(self) -> None:
        """Checks the settings that images without a single class need."""
        losses = ("cross_entropy", "balanced_softmax", "focal")
        if self.data.extra is None:
            raise ValueError("data.extra_benign=sum requires data.extra: name a table, or leave data.extra_benign out")
        if self.objective.loss not in losses:
            raise ValueError(f"data.extra_benign=sum requires objective.loss={', '.join(losses[:-1])} or {losses[-1]}")
        if self.objective.sampler != "shuffled":
            raise ValueError("data.extra_benign=sum requires objective.sampler=shuffled")

    @property
    def trains_on_embeddings(self) -> bool:
        """Whether the head is trained on embeddings that are computed once."""
        return self.model.freeze == "backbone" and self.model.embedding_views > 0

    @property
    def draws_artefacts(self) -> bool:
        """Whether training images have drawn rulers, hairs, ink, bubbles and dark corners (`data.augment=devices`)."""
        plain = self.trains_on_embeddings and self.model.embedding_views == 1
        return self.data.augment == "devices" and not plain

    @property
    def first_epochs(self) -> int:
        """Number of epochs that train on images of `train.first_size`; 0 if that is not smaller than `data.size`.

        A head that is trained on embeddings sees them in one size.
        """
        if self.trains_on_embeddings:
            return 0
        return int(self.train.first_share * self.train.epochs) if self.train.first_size < self.data.size else 0


def known_keys() -> list[str]:
    """Returns every key that a config file or an override may set, such as `train.epochs`."""
    sections: dict[str, type[BaseModel]] = {"data": Data, "model": Model, "objective": Objective, "train": Train}
    keys = [f"{section}.{key}" for section, model in sections.items() for key in model.model_fields]
    return ["name", "objective", *keys]


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    if key not in known_keys():
        close = difflib.get_close_matches(key, known_keys(), n=1, cutoff=0.6)
        hint = f"did you mean {close[0]}?" if close else "dermrw/config.py lists all keys"
        raise UserError(f"there is no key {short.repr(key)} in the configuration: {hint}")
    section, _, name = key.partition(".")
    if not name:
        # `objective=erm` selects another objective: options of the previous one do not carry over
        values[section] = {"name": value} if section == "objective" else value
    else:
        values.setdefault(section, {})[name] = value


def _add_former_values(values: dict[str, Any]) -> None:
    """Adds the former behaviour to the complete config of a run that is older than a key.

    Runs with a frozen backbone computed it in every step before `model.embedding_views` existed.
    """
    model, train = values.get("model", {}), values.get("train", {})
    if set(model) == {"backbone", "weights", "freeze", "head"} and set(train) >= {"seed", "clip", "checkpoint_seconds"}:
        model["embedding_views"] = 0


def _flat(values: dict[str, Any], source: str) -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{inner}", v) for inner, v in value.items())
        elif key in ("data", "model", "train"):
            raise UserError(f"{source}: {key} must be a section with keys, such as {key}: {{...}}")
        else:
            yield key, value


def find_config(name: str) -> Path:
    """Returns the config file of this path, or dermrw's own of this name: `configs/ham.yaml`, `ham.yaml` or `ham`.

    Raises:
        UserError: the name is that of a former config; the message names its replacement.
    """
    path = Path(name)
    if path.exists():
        return path
    if path.parent in (Path(), Path("configs")):
        own = CONFIGS / path.with_suffix(".yaml").name
        if own.is_file():
            return own
        if toy := re.fullmatch(r"cifar_([5-9])0_(reweight|sgd)(\.yaml)?", path.name):
            objective = "erm" if toy[2] == "sgd" else "reweight"
            raise UserError(f"{name} is now configs/cifar.yaml data.bias=0.{toy[1]} objective={objective}")
    if path.parent in (Path("study"), Path("configs/study")):
        method = path.name.removesuffix(".yaml")
        if method in read_yaml(CONFIGS / "study" / "study.yaml").get("methods", {}):
            row = f"{method}_bias90" if method.startswith("cifar") else method
            raise UserError(
                f"{name} is now a row of configs/study/study.yaml: python -m dermrw.study --run {row}-0 trains it"
            )
    return path


def load_config(path: Path | None, overrides: Iterable[str] = ()) -> Config:
    """Returns the defaults, changed by the keys of the file, then by the overrides `section.key=value`.

    Raises:
        UserError: the file cannot be read, or it or an override sets an unknown key or an invalid value.
    """
    values: dict[str, Any] = {}
    source = str(path) if path else "the defaults"
    if path is not None:
        for key, value in _flat(read_yaml(path), source):
            _set(values, key, value)
        _add_former_values(values)
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals:
            raise UserError(f"{item!r} is not an override: write key=value, such as train.epochs=5")
        value = parse_value(text)
        # such as of a variable that the shell does not know; `~` may be meant as the home folder
        if value is None and text.strip().casefold() != "null":
            raise UserError(f"{item!r} has no value: leave it out for the default")
        _set(values, key.strip(), value)
        source = "the command line" if path is None else f"{path} with the overrides"
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) + ": " if first["loc"] else ""
        given = "" if isinstance(first["input"], dict) else f", not {short.repr(first['input'])}"
        reason = first["msg"].removeprefix("Value error, ").partition(", unable to parse")[0]
        raise UserError(f"{source}: {where}{reason[0].lower()}{reason[1:]}{given}") from None


def dump(config: Config) -> str:
    """Returns the complete config as YAML."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False)


def differences(config: Config, other: Config) -> list[str]:
    """Returns the keys whose values differ, as `train.epochs: 5, was 30`, where 30 is the value of `other`."""
    lines = []
    for section, value in config.model_dump().items():
        before = other.model_dump()[section]
        pairs = value.items() if isinstance(value, dict) else [("", value)]
        for key, new in pairs:
            old = before[key] if key else before
            if old != new:
                lines.append(f"{section}{'.' if key else ''}{key}: {new}, was {old}")
    return lines


def with_views(config: Config, views: int) -> Config:
    """Returns the config with another `data.views`, such as that of an evaluation."""
    return config.model_copy(update={"data": config.data.model_copy(update={"views": views})})


def without_folders(config: Config) -> Config:
    """Returns the config with the name of the table in `data.extra` only, which is the same on every machine."""
    if config.data.extra is None:
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"extra": Path(config.data.extra).name})})


def settings_of(config: Config) -> list[str]:
    """Returns the differences from the defaults that change the result of a run, as `train.epochs: 5, was 30`."""
    lines = differences(without_folders(config), Config())
    return [line for line in lines if line.partition(":")[0] not in NOT_PART_OF_A_RESULT]

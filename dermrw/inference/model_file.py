"""The metadata of a model file, which `export` writes into the .onnx. No torch in here."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dermrw.decisions.refusal import ALL_CHECKS, CHECKS, PHOTOGRAPH
from dermrw.diagnoses import HAM_CLASSES, Classes
from dermrw.errors import UserError, first_of
from dermrw.images.preprocess import ColourConstancy, Crop, FieldOfView, Framing, Interpolation

INPUT = "images"  # uint8 [N, H, W, 3], RGB
# [N, C], [N, C, h, w], [N, D], [N, 8] or [N, 9]; the checks in the order of `dermrw.decisions.refusal.ALL_CHECKS`
OUTPUTS = ("probabilities", "activation_map", "embedding", "checks")
RESIZE = (
    "any height and width; inside the graph the shorter side is brought to `size` (Pillow's antialiased bilinear "
    "filter) and the middle square is cut out; turn a picture upright by its EXIF orientation before"
)
RESIZE_WHOLE = (
    "any height and width; inside the graph the whole picture (its middle, if one side is more than twice the other) "
    "is squeezed to `size` × `size` (Pillow's antialiased bilinear filter); turn a picture upright by its EXIF "
    "orientation before"
)
FIND = (
    ", and cut its borders and dark corners, as `dermrw.images.field_of_view.find_field_of_view` does: the graph does "
    "not look for them, and may refuse or misjudge a picture that has them"
)


NEWEST = 3  # number of the newest format
# fields that older model files lack
ADDED_LATER = frozenset(
    {
        "malignant",
        "subject",
        "refit",
        "no_triage",
        "field_of_view",
        "crop",
        "weights",
        "rounding",
        "runs",
        "interpolation",
        "colour_constancy",
    }
)
# control characters, line ends, and marks that change the direction of writing: a terminal would act on them
CONTROL_CHARACTERS = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\u202a-\\u202e\\u2066-\\u2069]")
Share = Annotated[float, Field(ge=0, le=1)]
Precision = Literal["fp32", "fp16"]


def first_fault(error: ValidationError) -> str:
    """The first validation error, as `size: input should be less than …`."""
    first = error.errors()[0]
    reason = first["msg"].removeprefix("Value error, ")
    return f"{'.'.join(str(part) for part in first['loc'])}: {reason[0].lower()}{reason[1:]}".removeprefix(": ")


class Score(BaseModel):
    """Balanced accuracy on the run's own test split, with its 95 % confidence interval over lesions."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    balanced_accuracy: Share
    interval_95: tuple[Share, Share]
    scored_on: str
    images: int = Field(ge=1)


class Proportion(BaseModel):
    """A proportion with its 95 % confidence interval over lesions."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    share: Share
    interval_95: tuple[Share, Share]
    images: int = Field(ge=1)


class Triage(BaseModel):
    """Refer if the summed probability of the malignant classes reaches the threshold, measured on test images."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    threshold: Share
    sensitivity: Proportion | None
    specificity: Proportion | None
    prevalence: dict[str, Annotated[float, Field(gt=0, le=1)]] | None = Field(
        None, description="each class's share, at which the probabilities are summed; None: equal shares"
    )

    @property
    def at(self) -> str:
        """The prevalence in words, such as `at equal prevalence`."""
        return "at equal prevalence" if self.prevalence is None else "at the training data’s prevalence"


class AveragedRun(BaseModel):
    """One of the runs that a model file averages."""

    model_config = ConfigDict(frozen=True)
    name: str = Field(max_length=255)
    backbone: str = Field(max_length=200)
    digest: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the run's best.pt")


class Rounding(BaseModel):
    """The effect of float16 weights on the answers, compared with the same network with float32 weights."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    images: int = Field(ge=1)
    largest_difference: Share = Field(description="of a probability")
    referrals_changed: int = Field(ge=0, description="images that triage judges differently")
    refusals_changed: int = Field(ge=0)

    def __str__(self) -> str:
        """A phrase for people."""
        return (
            f"on {self.images} validation images, the largest difference of a probability is "
            f"{self.largest_difference:.1e}, and triage changes for {self.referrals_changed} and refusal for "
            f"{self.refusals_changed} of them"
        )


class Refit(BaseModel):
    """The labelled images that `dermrw score --refit` fitted thresholds on, and figures out of fold."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    created: str = Field(max_length=40, description="date, UTC")
    source: str = Field(max_length=255, description="name of the table or folder")
    images: int = Field(ge=1)
    groups: int = Field(ge=1)
    unit: str = Field(max_length=40, description="of the folds: patients, lesions or groups; images without them")
    model_sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the model file before")
    fields: tuple[str, ...] = Field(description="of the metadata that changed")
    classes: tuple[str, ...] = Field(description="whose prediction-set threshold was refitted")
    folds: int
    seed: int
    sensitivity: Proportion | None = Field(description="of triage, out of fold; None: its threshold was kept")
    specificity: Proportion | None
    covered: Proportion | None = Field(description="coverage of the prediction sets, out of fold; None: kept")


def resize_sentence(framing: Framing) -> str:
    """The description of the pixels to give to the graph, and of its own resize, for the metadata."""
    resize = (RESIZE_WHOLE if framing.crop == "whole" else RESIZE).replace("bilinear", framing.interpolation)
    return resize + FIND * (framing.field_of_view == "find")


class ModelInfo(BaseModel):
    """The metadata of a model file; each field is an entry of the .onnx' `metadata_props`, as JSON."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)
    format: Literal["dermrw 2", "dermrw 3"] = Field(
        "dermrw 2",
        description="dermrw 3: malignant probabilities are not summed at equal prevalence, as older versions do",
    )
    name: str = Field(max_length=255, description="the run's name, a folder's")
    created: str = Field(max_length=40, description="date, UTC")
    version: str = Field(max_length=40, description="dermrw's")
    digest: str = Field(
        pattern="^[0-9a-f]{64}$", description="SHA-256 of the run's best.pt; of several, of their digests"
    )
    backbone: str = Field(max_length=200)
    objective: str = Field(max_length=200)
    origin: str = Field(max_length=500, description="where the first weights came from")
    size: int = Field(ge=32, le=1024, description="side of the network's input, pixels; as data.size")
    resize: str = RESIZE
    field_of_view: FieldOfView = Field(
        "none", description="find: the network was trained without borders and dark corners, so cut them before"
    )
    crop: Crop = Field("square", description="inside the graph: the middle square, or the whole picture squeezed")
    interpolation: Interpolation = Field("bilinear", description="inside the graph: the filter of the resize")
    colour_constancy: ColourConstancy = Field(
        "none", description="inside the graph: whether each picture is normalised to a reference illuminant"
    )
    codes: tuple[str, ...] = Field(min_length=2, max_length=1000, description="classes, in the outputs' order")
    columns: tuple[str, ...] = Field(description="their columns in ISIC's format")
    names: tuple[str, ...] = Field(description="their names for people")
    malignant: tuple[bool, ...] | None = Field(
        None, description="whether each class is malignant or pre-malignant; None: not stated, so there is no triage"
    )
    subject: str = Field(
        "image",
        pattern="^\\S(.*\\S)?$",
        max_length=40,
        description="what an image shows, a noun in the singular; default: lesion for HAM10000's classes",
    )
    temperature: float = Field(gt=0, description="applied inside the graph")
    offsets: tuple[float, ...] = Field(description="applied inside the graph, nats")
    prevalence: dict[str, float] = Field(description="each class's share of the training images")
    lesion_rule: Literal["mean", "geometric", "most_suspicious"] = Field(
        description="how the dermrw that wrote the file combined the images of a lesion; dermrw uses its own rule"
    )
    smallest: int = Field(ge=1, description="pixels that the shorter side of a picture must have, or it is refused")
    limits: dict[str, float] = Field(description="of each of the checks; a picture beyond one is refused")
    refused: Proportion | None = Field(description="share of the images that the score is of, refused in error")
    coverage: Share = Field(description="share of each class's cases whose prediction set is to hold the class")
    thresholds: tuple[Share, ...] = Field(description="probability from which a class belongs to the prediction set")
    covered: Proportion | None = Field(description="share of the images that the score is of, whose set held the class")
    triage: Triage | None = Field(description="None: no class is known to be malignant, or see no_triage")
    no_triage: str | None = Field(
        None, max_length=500, description="why there is no triage, a phrase; None: not stated"
    )
    score: Score
    runs: tuple[AveragedRun, ...] = Field((), description="the runs whose logits are averaged; empty: a single run")
    weights: Precision = Field(
        "fp32", description="how the layers' weights are stored; everything is computed in float32"
    )
    rounding: Rounding | None = Field(None, description="the effect of fp16 weights; None: not measured")
    refit: Refit | None = Field(None, description="how `dermrw score --refit` made this file from another")
    warning: str | None = Field(None, max_length=2000)
    licence: str = Field(max_length=2000, description="of the model: the training data's")

    @model_validator(mode="before")
    @classmethod
    def _name_subject(cls, values: Any) -> Any:
        """Images of HAM10000's classes show lesions, unless the metadata states another subject."""
        if isinstance(values, dict) and values.get("codes") in (HAM_CLASSES.codes, list(HAM_CLASSES.codes)):
            return {"subject": "lesion", **values}
        return values

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        lengths = {len(part) for part in (self.codes, self.columns, self.names, self.offsets, self.thresholds)}
        lengths |= {len(set(self.codes)), len(set(self.columns))}
        if self.malignant is not None:
            lengths.add(len(self.malignant))
        if lengths != {len(self.codes)} or set(self.prevalence) != set(self.codes):
            raise ValueError(
                "codes, columns, names, malignant, offsets, thresholds and prevalence must name the same classes"
            )
        if set(self.limits) not in (set(CHECKS), set(ALL_CHECKS)):
            raise ValueError(f"limits must be of {', '.join(CHECKS)}, and of {PHOTOGRAPH} if the model has this check")
        for key, value in self:
            if any(CONTROL_CHARACTERS.search(text) for text in _texts(value)):
                raise ValueError(f"{key} holds control characters")
        if self.triage and self.triage.prevalence is not None:
            if set(self.triage.prevalence) != set(self.codes):
                raise ValueError("the prevalence of triage must name the classes of codes")
            if self.format == "dermrw 2":
                raise ValueError("a file of the format dermrw 2 must not state a prevalence of triage")
            if not 0.99 < sum(self.triage.prevalence.values()) < 1.01:
                raise ValueError("the prevalence of triage must be shares that sum to 1")
        if self.format == "dermrw 3" and min(self.prevalence.values()) <= 0:
            raise ValueError("prevalence must be shares above 0 in a file of the format dermrw 3")
        if min(self.prevalence.values()) < 0 or not 0.99 < sum(self.prevalence.values()) < 1.01:
            raise ValueError("prevalence must be shares that sum to 1")
        return self

    @property
    def prevalence_images(self) -> str:
        """The images that `prevalence` is of, such as `the training data`."""
        if self.refit and "prevalence" in self.refit.fields:
            return f"{self.refit.source} (refitted)"
        return "the training data"

    @property
    def triage_prevalence(self) -> dict[str, float] | None:
        """Each class's share, at which the malignant probabilities are summed; None: equal shares.

        Without triage it is what triage would use: the shares of the training images, if they are known.
        """
        if self.triage is not None or self.format == "dermrw 2":
            return self.triage.prevalence if self.triage else None
        refitted = self.refit is not None and "prevalence" in self.refit.fields
        return None if refitted else self.prevalence

    @property
    def triage_shares(self) -> list[float] | None:
        """`triage_prevalence` `[C]` in the order of the outputs; None: equal."""
        prevalence = self.triage_prevalence
        total = sum((prevalence or {}).values())
        return None if prevalence is None else [prevalence[code] / total for code in self.codes]

    @property
    def is_ham10000(self) -> bool:
        """Whether the classes are HAM10000's."""
        return self.codes == HAM_CLASSES.codes

    @property
    def classes(self) -> Classes:
        """The classes in the order of the outputs."""
        return Classes(self.codes, self.columns, self.names, self.malignant)

    def to_props(self) -> dict[str, str]:
        """The entries of `metadata_props`."""
        return {key: json.dumps(value, ensure_ascii=False) for key, value in self.model_dump(mode="json").items()}

    @classmethod
    def from_props(cls, props: Mapping[str, str], source: str) -> Self:
        """From the entries of `metadata_props`.

        Raises:
            UserError: they are not the metadata of a dermrw model, or of one of a newer version.
        """
        if (newer := re.fullmatch(r'"dermrw (\d{1,4})"', props.get("format", ""))) and int(newer[1]) > NEWEST:
            raise UserError(
                f"{source} has the format dermrw {newer[1]}, which a newer version of dermrw reads: update it"
            )
        try:
            absent = [key for key in cls.model_fields if key not in props and key not in ADDED_LATER]
            if absent:
                raise ValueError(f"it lacks {first_of(absent)}")
            values = {key: _parsed(key, props[key]) for key in cls.model_fields if key in props}
            if "malignant" not in props and values["codes"] == list(HAM_CLASSES.codes):
                values["malignant"] = HAM_CLASSES.malignant
            return cls.model_validate(values)
        except ValidationError as error:
            reason = first_fault(error)
        except ValueError as error:
            reason = str(error)
        raise UserError(
            f"{source} is not a dermrw model ({reason[:200]}): name a file that `make export` wrote"
        ) from None


def _parsed(key: str, text: str) -> Any:
    """The value of an entry of the metadata."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"its metadata entry {key} is not valid JSON") from None


def _texts(value: Any) -> Iterator[str]:
    """Every string in a field."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, BaseModel):
        yield from (text for _, inner in value for text in _texts(inner))
    elif isinstance(value, dict | tuple):
        yield from (text for inner in value for text in _texts(inner))

"""The schema of report.json, shared by `eval`, which writes it, and by everything that reads it.

Figures that are undefined, such as the recall of a class without images, are null. Shares lie in 0..1.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Interval = tuple[float | None, float | None]


class _Part(BaseModel):
    # strict: a value of another type was not written by `eval`
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


class ShareWithInterval(_Part):
    """A share of images with its 95 % interval over lesions, and the counts behind it."""

    share: float = Field(ge=0, le=1)
    interval_95: tuple[float, float]
    images: int
    lesions: int


class AsTrained(_Part):
    """Figures of the network's own softmax, before calibration."""

    what: str
    balanced_accuracy: float | None
    interval_95: Interval


class ClassRow(_Part):
    """Figures of one class against the rest."""

    images: int
    lesions: int
    recall: float | None
    recall_interval_95: Interval
    auc: float | None
    average_precision: float | None
    sensitivity_at_95_specificity: float | None
    # the figures below are absent from reports of dermrw before 27 November 2026
    auc_interval_95: Interval = (None, None)
    precision: float | None = None
    f1: float | None = None
    sensitivity_at_90_specificity: float | None = None
    sensitivity_at_80_specificity: float | None = None
    specificity_at_95_sensitivity: float | None = None
    specificity_at_90_sensitivity: float | None = None
    partial_auc: float | None = None  # above 80 % sensitivity, 0..0.2


class Confusion(_Part):
    """Counts `[C, C + 1]`: true class by decision; the last column counts ties."""

    rows: str
    counts: list[list[int]]


class CalibrationFigures(_Part):
    """Calibration errors and proper scores at one prevalence."""

    top_label_ece: float | None
    classwise_ece: float | None
    brier: float | None
    nll: float | None  # nats
    intervals_95: dict[str, Interval] | None = None  # only in reports of `score`


class CalibrationError(_Part):
    """Calibration at equal prevalence, at the training set's and, in a report of `score`, at the table's own."""

    binning: str
    equal_prevalence: CalibrationFigures
    training_prevalence: CalibrationFigures
    table_prevalence: CalibrationFigures | None = None


class Malignant(_Part):
    """Malignant and pre-malignant diagnoses against the rest."""

    what: str
    auc: float | None
    average_precision: float | None
    sensitivity_at_90_specificity: float | None
    specificity_at_95_sensitivity: float | None
    # the figures below are absent from reports of dermrw before 27 November 2026
    auc_interval_95: Interval = (None, None)
    sensitivity_at_95_specificity: float | None = None
    sensitivity_at_80_specificity: float | None = None
    specificity_at_90_sensitivity: float | None = None
    partial_auc: float | None = None  # ISIC 2024's measure: above 80 % sensitivity, 0..0.2
    partial_auc_interval_95: Interval = (None, None)
    summed_at: str | None = None  # the prevalence at which the probabilities are summed; None: equal


class GroupRow(_Part):
    """One group of images, such as one age band; balanced accuracy over the classes present in it."""

    name: str
    images: int
    lesions: int
    classes: list[str]
    balanced_accuracy: float | None
    recalls: dict[str, float | None]
    interval_95: Interval = (None, None)  # of balanced accuracy; absent from reports before 27 November 2026
    auc: float | None = None  # malignant against benign; only where the truth is binary
    auc_interval_95: Interval = (None, None)


class Refused(ShareWithInterval):
    """Images that are refused in error: all images of a set are of the kind that the model is for."""

    reasons: dict[str, int]
    by_class: dict[str, float]


class Sets(_Part):
    """Coverage and size of the prediction sets."""

    coverage: ShareWithInterval
    mean_over_classes: float
    by_class: dict[str, ShareWithInterval | None]
    mean_size: float
    sizes: list[int]  # sets of 1, 2, …, C classes


class TriagePoint(_Part):
    """Sensitivity and specificity of triage at one threshold."""

    threshold: float
    sensitivity: ShareWithInterval
    specificity: ShareWithInterval


class MeasuredTriage(_Part):
    """Sensitivity and specificity of triage on a set, which may have only malignant or only benign images."""

    threshold: float
    sensitivity: ShareWithInterval | None  # None: no malignant images
    specificity: ShareWithInterval | None  # None: no benign images


class Judged(_Part):
    """Coverage of the prediction sets, and triage."""

    coverage: ShareWithInterval
    triage: MeasuredTriage | None  # None: the model has no triage


class ByLesion(_Part):
    """Lesions with several images: combined to one answer each, and image by image."""

    together: Judged
    one_by_one: Judged


class DecidedGroup(_Part):
    """Refusal and triage of one subgroup."""

    name: str
    images: int
    lesions: int
    refused: ShareWithInterval  # in error
    sensitivity: ShareWithInterval | None  # of triage; None without triage, or without malignant images
    specificity: ShareWithInterval | None  # None without triage, or without benign images


class Decided(_Part):
    """Refusal, prediction sets and triage, measured on the set."""

    refused: Refused | None
    sets: Sets | None
    triage: MeasuredTriage | None
    by_lesion: ByLesion | None
    # None for images that do not show skin; absent from reports of dermrw before 28 November 2026
    by_skin_tone: list[DecidedGroup] | None = None


class SetFigures(_Part):
    """Figures that follow from probabilities and labels alone."""

    balanced_accuracy: float | None = Field(ge=0, le=1)
    interval_95: Interval
    interval: str
    auc_interval: str | None = None  # how the intervals of AUCs were computed; absent before 27 November 2026
    scored_on: str
    images: int
    lesions: int
    as_trained: AsTrained
    accuracy: float | None
    mean_auc: float | None
    classes: dict[str, ClassRow]  # empty where the truth is malignant or benign
    confusion: Confusion
    calibration_error: CalibrationError
    malignant: Malignant | None = None  # None, and absent from the file, where the classes are not HAM10000's
    groups: dict[str, list[GroupRow]] | None = None  # likewise


class CrossValidationRow(_Part):
    """One penalty on the calibration's offsets; None is an infinite one, temperature alone. NLL in nats."""

    strength: float | None
    nll: float | None
    standard_error: float | None
    behind: float | None
    behind_error: float | None


class Calibration(_Part):
    """Temperature and offsets `[C]`, and the penalty that cross-validation chose."""

    temperature: float = Field(gt=0)
    offsets: tuple[float, ...]
    fitted_on: str
    strength: float | None
    cross_validation: list[CrossValidationRow]


class FittedSets(_Part):
    """The validation lesions behind the thresholds of the prediction sets."""

    coverage: float
    validation_lesions: dict[str, int]
    likely_coverage: dict[str, tuple[float, float]]


class FittedTriage(_Part):
    """The required sensitivity, and the threshold's figures on validation."""

    least: float
    validation: TriagePoint


class RefusedGroup(_Part):
    """Images that bound the limits of refusal, and the share of them that is refused in error."""

    name: str
    images: int
    refused: float


class RefusedPhotographs(_Part):
    """Held-out pictures to refuse: all that are refused, and those beyond the detector's limit."""

    pictures: int
    refused: int
    detected: int


class FittedRefusal(_Part):
    """The basis of the limits of refusal."""

    harmful: dict[str, float]  # the value of each quality measure from which answers are measurably worse
    groups: list[RefusedGroup]  # the validation images first
    photographs: RefusedPhotographs | None


class FittedDecisions(_Part):
    """The basis of the thresholds."""

    sets: FittedSets
    triage: FittedTriage | None
    refusal: FittedRefusal | None = None  # None: by an older version


class DecisionRules(_Part):
    """Thresholds and limits, fitted on validation."""

    thresholds: dict[str, float]
    triage_threshold: float | None
    # each class's share, at which triage sums the malignant probabilities; None, and before 29 November 2026: equal
    triage_prevalence: dict[str, float] | None = None
    no_triage: str | None = None  # why there is none, a phrase; only for data.name=table
    limits: dict[str, float]
    fitted: FittedDecisions

    @property
    def triage_shares(self) -> list[float] | None:
        """`triage_prevalence` `[C]` in the order of `thresholds`; None: equal."""
        return None if self.triage_prevalence is None else [self.triage_prevalence[code] for code in self.thresholds]


class LesionRuleFigures(_Part):
    """A rule for combining the images of a lesion, on validation."""

    nll: float | None
    balanced_accuracy: float | None
    sensitivity: float | None = None  # of triage; these two are absent from reports of dermrw before 27 November 2026
    specificity: float | None = None


class LesionRule(_Part):
    """The rule that combines the images of one lesion."""

    rule: Literal["mean", "geometric", "most_suspicious"]
    lesions_with_several_images: int
    compared: dict[str, LesionRuleFigures]


class Validation(_Part):
    """The network's own softmax on validation."""

    images: int
    balanced_accuracy_as_trained: float | None
    interval_95: Interval


class CardFigure(_Part):
    """A figure of the scored images next to the one of the model file's card."""

    figure: str
    here: float | None
    interval_95: Interval
    card: float
    card_interval_95: Interval
    worse: bool  # whether the interval excludes the card's figure on the worse side
    sentence: str | None  # for people; None if the figure is not worse


class LeftOut(_Part):
    """Images of the table that are not scored, by reason."""

    labels: dict[str, int]  # labels that `--map` leaves out
    missing: list[str]  # ids without a file
    unreadable: list[str]
    training_images: int  # images that the model was trained, calibrated or selected on
    same_group: int  # further images of their groups


class External(_Part):
    """A model file on a user's labelled images: the part of the report that only `score` writes."""

    model_file: str
    model_sha256: str
    unit: str  # of resampling: patients, lesions or groups; images if the table names none
    binary: bool  # whether the truth is malignant or benign
    overlap_checked: bool  # whether the model file lists its training images
    left_out: LeftOut
    card: list[CardFigure]
    card_scored_on: str
    notes: list[str]


class TrainingSource(_Part):
    """Training images of one source."""

    source: str  # HAM10000, or the name of the table of data.extra
    images: int
    classes: dict[str, int]
    benign: int = 0  # images that train through the summed probability of the benign classes, in addition to `classes`
    left_out: dict[str, int]  # images of the table that were not used, by reason


class AveragedRun(_Part):
    """One of the runs that a model averages."""

    run: str
    backbone: str
    objective: str
    weights: str  # where its first weights came from
    epoch: int
    epochs: int
    training_images: int
    checkpoint_sha256: str
    seed: int | None = None  # train.seed; absent from reports of dermrw before 29 November 2026


class Report(SetFigures):
    """All of report.json."""

    decided: Decided
    run: str
    warning: str | None
    incomplete: str | None = None  # images of an official set that are not scored; absent from complete sets
    objective: str
    backbone: str
    weights: str
    size: int
    views: int | None = None  # data.views; absent from reports of `score`, and from those of before 28 November 2026
    epoch: int | None = None  # a model file does not hold these four: absent from reports of `score`
    epochs: int | None = None
    training_seconds: int | None = None
    training_images: int | None = None
    training_sources: list[TrainingSource] | None = None  # only of runs with data.extra
    runs: list[AveragedRun] | None = None  # only of an average of several runs
    training_prevalence: dict[str, float]
    calibration: Calibration
    decisions: DecisionRules
    lesion_rule: LesionRule | None = None  # likewise
    external: External | None = None  # only in reports of `score`
    # only in reports of `eval` on other data than HAM10000 and its sample
    data: str | None = None  # data.name
    unit: str | None = None  # of the split and of resampling: images, groups, patients or lesions
    notes: list[str] | None = None  # sentences on the data
    validation: Validation | None = None  # absent from reports of dermrw before 25 November 2026
    checkpoint_sha256: str
    checks_sha256: str | None = None  # of familiarity.npz; only in reports of `eval`, since 29 November 2026
    evaluated: str
    environment: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The JSON values that the file holds, in its order."""
        return self.model_dump(mode="json", exclude_unset=True)


class DefinedReport(Report):
    """A report whose score is defined, as a model file needs it."""

    balanced_accuracy: float = Field(ge=0, le=1)
    interval_95: tuple[float, float]
    images: int = Field(ge=1)
    lesions: int = Field(ge=1)
    epoch: int
    epochs: int
    training_seconds: int
    training_images: int
    lesion_rule: LesionRule

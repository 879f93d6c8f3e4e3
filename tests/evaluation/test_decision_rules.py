import numpy as np
import pandas as pd
import pytest

from dermrw.decisions.refusal import CHECKS
from dermrw.decisions.triage import choose, share_of
from dermrw.diagnoses import DX, HAM_CLASSES, Classes
from dermrw.evaluation.decision_rules import Predicted, fit_decisions, measure_decisions
from dermrw.reports.report_json import compare_lesion_rules
from dermrw.reports.report_schema import DecisionRules, FittedDecisions, FittedSets, Judged

THRESHOLDS = np.array([0.2, 0.3, 0.25, 0.2, 0.15, 0.4, 0.35])
RULES = DecisionRules(
    thresholds=dict(zip(DX, THRESHOLDS.tolist(), strict=True)),
    triage_threshold=0.3,
    limits=dict(zip(CHECKS, (0.0, 1.0, 0.0, 0.0, 0.0, 9.0, 9.0, 3.0), strict=True)),
    fitted=FittedDecisions(sets=FittedSets(coverage=0.9, validation_lesions={}, likely_coverage={}), triage=None),
)


def seen(n: int = 60) -> Predicted:
    rng = np.random.default_rng(3)
    lesions = np.array([f"L{i // 3 if i < 45 else i}" for i in range(n)])  # 15 of three images, 15 of one
    labels = np.array([int(lesion[1:]) % 7 for lesion in lesions])
    p = rng.dirichlet(np.full(7, 0.6), n) + 0.2 * np.eye(7)[labels] * rng.random((n, 1))
    checks = np.tile([100, 0, 20, 0.2, 5, 0.2, 0.2, 1], (n, 1)).astype(float)
    checks[7, 7], checks[50, 6] = 4, 10
    return Predicted(p / p.sum(1, keepdims=True), checks, labels, lesions)


def test_lesions_of_several_images_are_judged_by_what_pandas_makes_of_them() -> None:
    data = seen()
    by_lesion = measure_decisions(RULES, data, np.ones(60), HAM_CLASSES).by_lesion
    assert by_lesion is not None
    together = by_lesion.together
    frame = pd.DataFrame(data.probabilities, columns=DX)
    groups = frame.groupby(data.lesions)
    mean = groups.mean()[groups.size() > 1]
    malignant = [code in ("mel", "bcc", "akiec") for code in DX]
    highest = frame.loc[:, malignant].sum(axis=1).groupby(data.lesions).max()[mean.index]
    bad_sum = mean.loc[:, malignant].sum(axis=1)
    p = np.where(malignant, mean.mul(highest / bad_sum, axis=0), mean.mul((1 - highest) / (1 - bad_sum), axis=0))
    y = np.array([int(lesion[1:]) % 7 for lesion in mean.index])
    held = [row[c] >= THRESHOLDS[c] or row.argmax() == c for row, c in zip(p, y, strict=True)]
    assert together.coverage.share == pytest.approx(np.mean(held)) and 0 < np.mean(held) < 1
    assert together.coverage.images == together.coverage.lesions == 15
    bad = [DX.index(code) for code in ("mel", "bcc", "akiec")]
    positive, score = np.isin(y, bad), p[:, bad].sum(1)
    assert together.triage and together.triage.sensitivity and together.triage.specificity
    assert together.triage.sensitivity.share == pytest.approx((score[positive] >= 0.3).mean())
    assert together.triage.specificity.share == pytest.approx((score[~positive] < 0.3).mean())


def test_images_of_weight_zero_count_nowhere_and_single_ones_make_no_lesion() -> None:
    data = seen()
    single = measure_decisions(RULES, data, np.array([0.0] * 45 + [1.0] * 15), HAM_CLASSES)
    several = measure_decisions(RULES, data, np.array([1.0] * 45 + [0.0] * 15), HAM_CLASSES)
    assert several.sets and several.by_lesion and single.refused
    assert several.by_lesion.one_by_one == Judged(coverage=several.sets.coverage, triage=several.triage)
    assert single.by_lesion is None and single.refused.images == 15
    assert single.refused.reasons == {"it is too grainy": 1}
    assert measure_decisions(RULES, data, np.zeros(60), HAM_CLASSES).by_lesion is None


def test_figures_by_skin_tone_are_those_of_pandas() -> None:
    data, weights = seen(), np.ones(60)
    weights[5] = 0
    tones = [("not estimated", "tan", "very light")[i % 3] for i in range(60)]
    decided = measure_decisions(RULES, data, weights, HAM_CLASSES, skin_tones=tones)
    bad = [DX.index(code) for code in ("mel", "bcc", "akiec")]
    frame = pd.DataFrame({"tone": tones, "lesion": data.lesions, "bad": np.isin(data.labels, bad)})
    frame = frame.assign(referred=data.probabilities[:, bad].sum(1) >= 0.3, refused=False)
    frame.loc[[7, 50], "refused"] = True
    frame = frame.drop(5)
    assert decided.by_skin_tone is not None
    assert [row.name for row in decided.by_skin_tone] == ["very light", "tan", "not estimated"]
    for row in decided.by_skin_tone:
        part = frame[frame["tone"] == row.name]
        assert row.images == len(part) and row.lesions == part["lesion"].nunique()
        expected = [
            (row.refused, part["refused"], part["lesion"]),
            (row.sensitivity, part["referred"][part["bad"]], part["lesion"][part["bad"]]),
            (row.specificity, ~part["referred"][~part["bad"]], part["lesion"][~part["bad"]]),
        ]
        for share, hits, lesions in expected:
            assert share is not None and share.share == pytest.approx(hits.mean()) and share.images == len(hits)
            assert share.interval_95 == share_of(hits, lesions)[1:3] and share.lesions == lesions.nunique()


def test_skin_tones_without_malignant_images_or_without_triage() -> None:
    data = seen()
    tones = ["dark" if label == DX.index("nv") else "light" for label in data.labels]
    found = measure_decisions(RULES, data, np.ones(60), HAM_CLASSES, skin_tones=tones).by_skin_tone
    assert found is not None
    light, dark = found
    assert light.sensitivity is not None and light.specificity is not None
    assert dark.sensitivity is None and dark.specificity is not None and dark.specificity.images == dark.images
    without = RULES.model_copy(update={"triage_threshold": None})
    for row in measure_decisions(without, data, np.ones(60), HAM_CLASSES, skin_tones=tones).by_skin_tone or ():
        assert row.sensitivity is None and row.specificity is None and row.refused.images == row.images
    assert measure_decisions(RULES, data, np.ones(60), HAM_CLASSES).by_skin_tone is None


def test_triage_is_judged_at_the_training_prevalence() -> None:
    data = seen()
    checks = np.tile([100, 0, 20, 0.2, 5, 0.2, 0.2, 1], (60, 1)).astype(float)
    shares = [0.03, 0.05, 0.1, 0.02, 0.1, 0.65, 0.05]
    rules = fit_decisions(data._replace(checks=checks), HAM_CLASSES, prevalence=shares)
    assert rules.triage_prevalence == dict(zip(DX, shares, strict=True)) and rules.triage_threshold is not None
    joint = data.probabilities * shares
    bad = np.isin(DX, ["mel", "bcc", "akiec"])
    score, positive = joint[:, bad].sum(1) / joint.sum(1), bad[data.labels]
    assert rules.triage_threshold == choose(score, positive, data.lesions).threshold
    rules = rules.model_copy(update={"triage_threshold": float(np.quantile(score[positive], 0.3))})
    decided = measure_decisions(rules, data, np.ones(60), HAM_CLASSES, skin_tones=["light"] * 60)
    assert decided.triage and decided.by_lesion and decided.by_lesion.together.triage and decided.by_skin_tone
    referred = score >= rules.triage_threshold
    for found in (decided.triage, decided.by_skin_tone[0]):
        assert found.sensitivity and found.sensitivity.share == pytest.approx(referred[positive].mean())
        assert found.specificity and found.specificity.share == pytest.approx((~referred)[~positive].mean())
    # a lesion is referred exactly if one of its images is
    frame = pd.DataFrame({"lesion": data.lesions, "referred": referred, "positive": positive}).groupby("lesion")
    lesions = frame.agg(referred=("referred", "max"), positive=("positive", "max"), images=("positive", "size"))
    lesions = lesions[lesions["images"] > 1]
    together = decided.by_lesion.together.triage
    assert together.sensitivity and together.specificity
    assert together.sensitivity.share == pytest.approx(lesions["referred"][lesions["positive"]].mean())
    assert together.specificity.share == pytest.approx(1 - lesions["referred"][~lesions["positive"]].mean())
    # a class without training images would never count: then the shares are equal
    assert fit_decisions(data, HAM_CLASSES, prevalence=[0.0, *shares[1:]]).triage_prevalence is None


def test_the_rules_of_combining_images_are_compared_at_the_prevalence_of_triage() -> None:
    data = seen()
    shares = np.array([0.03, 0.05, 0.1, 0.02, 0.1, 0.65, 0.05])
    bad = np.isin(DX, ["mel", "bcc", "akiec"])
    score = (data.probabilities * shares)[:, bad].sum(1) / (data.probabilities * shares).sum(1)
    frame = pd.DataFrame({"lesion": data.lesions, "score": score, "positive": bad[data.labels]})
    lesions = frame.groupby("lesion").agg(score=("score", "max"), positive=("positive", "max"), n=("score", "size"))
    lesions = lesions[lesions["n"] > 1]
    threshold = float(lesions["score"].sort_values().iloc[6:8].mean())  # between two lesions: rounding decides nothing
    found = compare_lesion_rules(
        data.probabilities, data.labels, data.lesions, HAM_CLASSES.malignant, threshold, shares.tolist()
    )["compared"]
    for name, rows in (("most_suspicious", lesions), ("each image alone", frame[frame["lesion"].isin(lesions.index)])):
        refer, positive = rows["score"] >= threshold, rows["positive"]
        assert found[name]["specificity"] == pytest.approx((~refer)[~positive].mean())
        assert found[name]["sensitivity"] == pytest.approx(refer[positive].mean())


def test_triage_of_ones_own_images_needs_enough_malignant_groups() -> None:
    rng = np.random.default_rng(0)
    classes = Classes(("a", "b"), ("a", "b"), ("a", "b"), (True, False))

    def fitted(malignant: int, unit: str | None, classes: Classes = classes) -> DecisionRules:
        labels = np.repeat([0, 1], [malignant, 60])
        p = rng.dirichlet([1, 1], len(labels))
        checks = np.tile([100, 0, 20, 0.2, 5, 0.2, 0.2, 1], (len(labels), 1)).astype(float)
        return fit_decisions(Predicted(p, checks, labels, np.arange(len(labels)).astype(str)), classes, unit)

    few = fitted(44, "patients")
    assert few.triage_threshold is None and few.fitted.triage is None
    assert few.no_triage == "only 44 malignant patients in validation; at least 45 are needed"
    enough, ham = fitted(45, "patients"), fitted(44, None)
    assert enough.triage_threshold is not None and enough.fitted.triage and enough.fitted.triage.validation
    assert enough.fitted.triage.validation.sensitivity.interval_95[0] >= 0.92
    assert ham.triage_threshold is not None  # HAM10000's runs keep their rule
    assert "no_triage" not in enough.model_dump(exclude_unset=True) | ham.model_dump(exclude_unset=True)
    unstated = fitted(50, "images", classes._replace(malignant=None))
    assert unstated.no_triage == "the data does not state which classes are malignant"
    assert fitted(50, "images", classes._replace(malignant=(False, False))).no_triage == "no class is malignant"


@pytest.mark.parametrize("malignant", [True, False])
def test_triage_is_measured_on_images_of_one_side(malignant: bool) -> None:
    data = seen()
    positive = np.isin(DX, ["mel", "bcc", "akiec"])[data.labels]
    both = measure_decisions(RULES, data, np.ones(60), HAM_CLASSES).triage
    one = measure_decisions(RULES, data, (positive == malignant).astype(float), HAM_CLASSES).triage
    assert both and both.sensitivity and both.specificity and one
    assert one.sensitivity == (both.sensitivity if malignant else None)
    assert one.specificity == (None if malignant else both.specificity)
    without = RULES.model_copy(update={"triage_threshold": None})
    assert measure_decisions(without, data, np.ones(60), HAM_CLASSES).triage is None

"""The study: what is planned, what is kept, how methods are compared, and the whole way on the embedded sample."""

import copy
import json
import os
import re
import shlex
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.special import logsumexp
from scipy.stats import ttest_ind
from sklearn.metrics import roc_auc_score

from dermrw.__main__ import main as dermrw_main
from dermrw.config import CONFIGS, Config, load_config
from dermrw.errors import UserError
from dermrw.evaluation.evaluate import evaluate
from dermrw.study import __main__ as command_line
from dermrw.study import plan as plan_module
from dermrw.study.execute import Options, Processes, check_weights, execute, folder_of, run_with_ray
from dermrw.study.laboratory import stored_embeddings
from dermrw.study.plan import Plan, Table, read_plan
from dermrw.study.report import mean_sd, write_report
from dermrw.study.result import (
    Truth,
    decisions,
    finished,
    found_by_weight,
    over_time,
    read_result,
    read_truth,
    result_path,
    same_again,
    same_origin,
)
from dermrw.study.sections import (
    Row,
    Section,
    build_sections,
    class_alone,
    corrected,
    load_results,
    same_samples,
    verdict,
)
from dermrw.study.statistics import Paired, _seed_noise, _seed_spread, holm, paired_interval
from dermrw.training.checkpoint import load_checkpoint
from dermrw.training.train import train


def recalls_by_seed(decisions: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Recalls `[S, C]` of decisions `[S, N]`."""
    return np.array([[(row[labels == c] == c).mean() for c in range(classes)] for row in decisions])


def test_every_run_of_the_study_has_a_config_that_holds() -> None:
    plan = read_plan()
    for budget in plan.budgets:
        runs = plan.runs(budget)
        assert len({run.name for run in runs}) == len(runs) > (10 if plan.budgets[budget].tables else 100)
        assert len({run.digest() for run in runs}) == len(runs)  # no two are the same training
        assert {run.seed for run in runs} == set(range(plan.budgets[budget].seeds))
    for table in plan.tables.values():
        names = {run.row for run in plan.runs_of("full", table, 0)}
        assert any(name == table.against or name.startswith(f"{table.against}_") for name in names)


def test_every_method_of_the_study_is_in_a_table() -> None:
    plan = read_plan()
    assert set(plan.methods) == {run.method for budget in ("cpu", "alone") for run in plan.runs(budget)}


def test_a_budget_may_train_under_some_of_a_table_s_conditions() -> None:
    plan = read_plan()
    runs = plan.runs("toy")
    assert {run.condition for run in runs} == {"bias50", "bias70", "bias90"} < set(plan.tables["toy"].under)
    assert {run.load().data.bias for run in runs} == {0.5, 0.7, 0.9}
    for run in runs:  # the network and the training of configs/cifar.yaml, the paper's
        config, paper = run.load(), load_config(CONFIGS / "cifar.yaml")
        assert (config.model, config.train.epochs, config.train.lr) == (paper.model, 50, paper.train.lr)
        assert (config.train.batch_size, config.train.momentum) == (paper.train.batch_size, paper.train.momentum)


def test_a_condition_that_no_table_has_is_named(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    plan = copy.deepcopy(TINY)
    next(iter(plan["budgets"].values()))["conditions"] = ["bias55"]
    path.write_text(yaml.safe_dump(plan))
    with pytest.raises(UserError, match="condition bias55, which none of its tables has"):
        read_plan(path)


def test_a_table_of_an_unknown_method_is_named(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**TINY, "methods": {"ham_reweight": TINY["methods"]["ham_reweight"]}}))
    with pytest.raises(UserError, match="table methods names ham_cross_entropy, which is not in methods"):
        read_plan(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("configs/cifar_90_sgd.yaml", "is now configs/cifar.yaml data.bias=0.9 objective=erm"),
        ("cifar_50_reweight", "is now configs/cifar.yaml data.bias=0.5 objective=reweight"),
        ("configs/study/ham_focal.yaml", "a row of configs/study/study.yaml: python -m dermrw.study --run ham_focal-0"),
        ("study/cifar_sgd", "python -m dermrw.study --run cifar_sgd_bias90-0"),
    ],
)  # fmt: skip
def test_a_former_config_names_its_successor(
    old: str, new: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dermrw", "train", old])
    with pytest.raises(SystemExit) as ended:
        dermrw_main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and new in said and old in said and said.count("\n") == 1
    run = re.search(r"--run (\S+)", new)
    assert run is None or run[1] in {planned.name for planned in read_plan().runs("cpu")}


@pytest.mark.parametrize("bias", [50, 90])
@pytest.mark.parametrize(("method", "objective"), [("reweight", "reweight"), ("sgd", "erm")])
def test_make_train_cifar_resumes_run_folders_of_the_former_configs(bias: int, method: str, objective: str) -> None:
    """The former config files, written out: the same names and settings, so that their run folders resume."""
    former = {
        "name": f"cifar_{bias}_{method}",
        "data": {"name": "cifar10", "size": 32, "bias": bias / 100, "meta_per_class": 5, "augment": "none"},
        "model": {"backbone": "cifar_alexnet", "weights": "none"},
        "objective": objective,
        "train": {
            "epochs": 50, "batch_size": 64, "lr": 1e-3, "optimizer": "sgd", "momentum": 0.9, "weight_decay": 0,
            "schedule": "constant",
        },
    }  # fmt: skip
    overrides = [f"name=cifar_{bias}_{method}", f"data.bias=0.{bias}", f"objective={objective}"]
    assert load_config(CONFIGS / "cifar.yaml", overrides) == Config.model_validate(former)


def test_a_digest_knows_what_a_run_gives_and_not_where() -> None:
    run = read_plan().runs("cpu")[0]
    moved = run._replace(settings={**run.settings, "model.weights": "elsewhere.pth", "data.root": "elsewhere"})
    assert moved.digest() == run.digest()
    assert run._replace(settings={**run.settings, "train.lr": 0.5}).digest() != run.digest()
    assert run._replace(seed=1).digest() != run.digest()


def test_the_defaults_are_those_that_the_results_rest_on() -> None:
    """A result knows by its digest what its config changes, not what it leaves as it is.

    Who changes a default names the former one in configs/study/study.yaml, or runs the study again; then this file too
    can change.
    """
    was = json.loads((Path(__file__).parents[2] / "docs/study/defaults.json").read_text())
    now = Config().model_dump(mode="json")
    flat = {f"{section}.{key}": value for section in now if isinstance(now[section], dict)
            for key, value in now[section].items()}  # fmt: skip
    assert {key: flat[key] for key in was} == was


def test_the_lesions_part_of_an_interval_against_a_bootstrap_written_out() -> None:
    """Every seed decides alike, so nothing but the lesions is uncertain."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [40, 20, 10])
    lesions = np.array([f"L{i // 2}" for i in range(70)])  # two images a lesion
    b = np.where(rng.random(70) < 0.6, labels, (labels + 1) % 3)
    a = np.where(rng.random(70) < 0.3, labels, b)
    found = paired_interval(np.tile(a, (3, 1)), np.tile(b, (3, 1)), labels, lesions)
    assert found.difference == pytest.approx(
        recalls_by_seed(a[None], labels, 3).mean() - recalls_by_seed(b[None], labels, 3).mean()
    )
    values = []
    for _ in range(1500):
        gains = []
        for c in range(3):
            ids = np.unique(lesions[labels == c])
            rows = np.concatenate([np.flatnonzero(lesions == i) for i in rng.choice(ids, len(ids))])
            gains.append((a[rows] == labels[rows]).mean() - (b[rows] == labels[rows]).mean())
        values.append(np.mean(gains))
    assert (found.low, found.high) == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.015)


def test_the_seeds_part_of_an_interval_is_welchs() -> None:
    a, b = np.array([0.5, 0.62, 0.55]), np.array([0.6, 0.61, 0.59])
    drawn = np.concatenate([_seed_noise(*_seed_spread(a, b), np.random.default_rng(i)) for i in range(100)])
    welch = ttest_ind(a, b, equal_var=False).confidence_interval()
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (a.mean() - b.mean() + low, a.mean() - b.mean() + high) == pytest.approx((welch.low, welch.high), abs=0.005)


def test_the_p_value_is_welchs_where_lesions_add_nothing() -> None:
    """Every lesion of a class is as often right as the others, so only seeds vary."""
    labels, lesions = np.repeat([0, 1], 100), np.arange(200) // 100
    rights = np.array([[50, 62, 55], [60, 71, 69]])
    a, b = (np.array([np.where(np.arange(200) % 100 < n, labels, 2) for n in row]) for row in rights)
    found = paired_interval(a, b, labels, lesions)
    assert found.p == pytest.approx(ttest_ind(rights[0], rights[1], equal_var=False).pvalue, abs=1e-6)


def test_holms_correction_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.9, 0.6]) == pytest.approx([1, 1])
    assert holm([]).tolist() == []
    rows = [Row(str(k), "a", "clean", [], Paired(0.1, 0, 1, 3, p), None) for k, p in enumerate([0.01, 0.04])]
    few = Row("few", "a", "clean", [], Paired(0.1, 0, 1, 2, 0.001), None)
    adjusted = [row.against.holm for row in corrected([*rows, few]) if row.against]
    assert adjusted[:2] == pytest.approx([0.02, 0.04]) and np.isnan(adjusted[2])


def test_the_class_alone_against_scikit_learn() -> None:
    right, wrong = np.array([900, 20, 60]), np.array([10, 80, 40])
    labels = np.concatenate([np.repeat([0, 1, 2], right), np.repeat([0, 1, 2], wrong)])
    is_wrong = np.repeat([0, 1], [right.sum(), wrong.sum()])
    auroc, first = class_alone(right, wrong, first=150)
    assert auroc == pytest.approx(roc_auc_score(is_wrong, (wrong / (right + wrong))[labels]))
    assert first == pytest.approx((80 + 50 * 0.4) / 150)


def test_an_interval_of_three_seeds_covers_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two methods of the same expected accuracy, one of which is good or bad by its seed: zero is to be within."""
    monkeypatch.setattr("dermrw.study.statistics.REPLICATES", 300)
    labels, lesions = np.repeat([0, 1, 2], [60, 40, 20]), np.arange(120) // 2
    covered = 0
    for trial in range(300):
        rng = np.random.default_rng(trial)
        hard = np.repeat(rng.uniform(size=60), 2)  # a lesion's difficulty, the same for both
        seeds = rng.normal(0, [[[0.06]], [[0.02]]], (2, 3, 1))
        right = hard + rng.normal(0, 0.15, (2, 3, 120)) < 0.5 + seeds
        a, b = np.where(right, labels, (labels + 1) % 3)
        found = paired_interval(a, b, labels, lesions)
        covered += found.low <= 0 <= found.high
    assert 0.92 < covered / 300 <= 0.995


def test_one_seed_has_no_interval() -> None:
    labels = np.repeat([0, 1], 10)
    found = paired_interval(labels[None], 1 - labels[None], labels, np.arange(20))
    assert found.difference == 1 and np.isnan([found.low, found.high]).all()


def test_a_method_is_no_better_than_itself_and_worse_the_other_way_round() -> None:
    labels, lesions = np.repeat([0, 1], 10), np.arange(20)
    right, wrong = np.tile(labels, (2, 1)), np.tile(1 - labels, (2, 1))
    assert paired_interval(right, right, labels, lesions)[:5] == (0, 0, 0, 2, 1)
    assert paired_interval(wrong, right, labels, lesions)[:5] == (-1, -1, -1, 2, 0)
    with pytest.raises(ValueError, match="decisions"):
        paired_interval(right, right[:1], labels, lesions)


def test_how_well_low_weights_find_wrong_labels(tmp_path: Path) -> None:
    """Within a class, so that a class which receives little as a whole doesn't count as found."""
    rng = np.random.default_rng(0)
    label = np.repeat(["nv", "df"], 500)
    wrong = rng.random(1000) < 0.2
    weight = np.where(wrong, 0.1, 1.0) * np.where(label == "nv", 0.05, 1.0) * rng.uniform(0.9, 1.1, 1000)
    table = pd.DataFrame({"image_id": range(1000), "lesion_id": range(1000), "dx": np.where(wrong, "mel", label)})
    table.assign(label=label, weight=weight).to_csv(tmp_path / "weights.csv", index=False)
    found = found_by_weight(tmp_path / "weights.csv")
    assert found is not None
    assert found["auroc_within_class"] == 1 and found["precision_of_first_100"] == 1 and found["auroc"] < 0.95
    assert found["share"] == pytest.approx(wrong.mean())
    table.assign(dx=label, label=label, weight=weight).to_csv(tmp_path / "weights.csv", index=False)
    assert found_by_weight(tmp_path / "weights.csv") is None


def test_weights_over_time_are_means_of_each_epoch() -> None:
    log = [
        {"epoch": 0, "class_weight": [0.2, 0.8], "zero_share": 0.5},
        {"epoch": 0, "class_weight": [0.4, 0.6], "zero_share": 0.7, "class_swing": 0.2},
        {"epoch": 1, "validation": {}},
        {"epoch": 1, "class_weight": [1.0, 0.0], "zero_share": 0.1, "class_swing": 0.4},
    ]
    first, second = over_time(log)
    assert first == {"class_weight": pytest.approx([0.3, 0.7]), "zero_share": pytest.approx(0.6), "class_swing": 0.2}
    assert second["class_weight"] == [1, 0]


def test_the_verdict_follows_the_corrected_p_values_of_rows_with_enough_seeds() -> None:
    def row(name: str, seeds: int, *against: float) -> Row:
        """`against`: difference, low, high, the seeds that the reference has, too, and the corrected p-value."""
        paired = None
        if against:
            difference, low, high, common, p = against
            paired = Paired(difference, low, high, int(common), 0.01, p)
        return Row(name, name, "clean", [{"seed": seed} for seed in range(seeds)], paired)

    rows = [
        row("reference", 4),
        row("one", 3, 0.05, 0.01, 0.09, 3, 0.03),
        row("two", 3, -0.05, -0.09, -0.01, 3, 0.04),
        row("three", 4, 0.02, 0.01, 0.05, 4, 0.06),
        row("early", 2, 0.50, 0.40, 0.60, 2, 0.001),
        row("ahead of the reference", 5, 0.50, 0.40, 0.60, 2, 0.001),
    ]
    table = Table(title="", text="", against="reference", rows=[])
    said = verdict(Section("key", table, rows, None, ""))
    assert said == ("As trained, better: one (+5.0); worse: two (-5.0); no significant difference: three (+2.0).")
    assert verdict(Section("key", table, rows[:1] + rows[-2:], None, "")) == ""


def test_a_repeated_run_is_compared_decision_by_decision() -> None:
    def result(truth: str, decided: str, score: float) -> dict:
        return {"sets": {"test": {"truth": truth, "as_trained": decided, "balanced_accuracy_as_trained": score}}}

    old = result("truth_a.csv", "0123-", 0.5)
    assert same_again(old, result("truth_a.csv", "0124-", 0.4)) == (
        "balanced accuracy as trained 40.00 % now, 50.00 % in the result; the decisions are equal on 4 of 5 test images"
    )
    assert "the test splits differ" in same_again(old, result("truth_b.csv", "012", 0.4))


def test_the_findings_of_the_report_hold_in_the_committed_results() -> None:
    folder = Path(__file__).parents[2] / "docs/study/cpu"
    results = {path.stem: json.loads(path.read_text()) for path in folder.glob("ham_*-*.json")}
    effective = {
        name: [epoch["effective_batch"] for epoch in result["weights_over_time"]]
        for name, result in results.items()
        if name.startswith("ham_noise_weights")
    }
    assert len(effective) == 18
    assert min(value for epochs in effective.values() for value in epochs[:4]) > 63.55
    uniform = {name: epochs for name, epochs in effective.items() if "uniform" in name}
    assert min(min(epochs) for name, epochs in effective.items() if name not in uniform) > 63.9
    last = [epochs[4] for epochs in uniform.values()]
    assert (min(last), max(last)) == pytest.approx((54.1, 64.0), abs=0.05)
    assert sum(results[name]["epoch"] == 4 for name in uniform) == 6
    random, reweight = (
        np.mean([results[f"{row}-{seed}"]["balanced_accuracy"] for seed in range(3)])
        for row in ("ham_random_weights", "ham_reweight")
    )
    assert 100 * (random - reweight) == pytest.approx(12.9, abs=0.05)


def test_figures_of_the_documentation_that_are_not_in_the_report() -> None:
    """They follow from the decisions in the committed result files."""
    folder = Path(__file__).parents[2] / "docs/study/cpu"

    def committed(row: str, which: str) -> tuple[np.ndarray, Truth, list[str]]:
        results = [json.loads((folder / f"{row}-{seed}.json").read_text()) for seed in range(3)]
        codes = list(results[0]["recalls"])
        tests = [result["sets"]["test"] for result in results]
        return (
            np.stack([decisions(t[which]) for t in tests]),
            read_truth(folder / tests[0]["truth"], tuple(codes)),
            codes,
        )

    random, truth, _ = committed("ham_random_weights", "fitted")
    reweight, _, codes = committed("ham_reweight", "fitted")
    paired = paired_interval(reweight, random, *truth)
    assert [100 * paired.difference, 100 * paired.low, 100 * paired.high] == pytest.approx(
        [-12.9, -22.6, -2.9], abs=0.05
    )

    def recalls(row: str) -> np.ndarray:
        decided, truth, _ = committed(row, "as_trained")
        return np.array([np.mean(decided[:, truth.labels == c] == c) for c in range(len(codes))])

    clean, noisy, df = recalls("ham_balanced_softmax"), recalls("ham_balanced_softmax_uniform20"), codes.index("df")
    assert [100 * clean[df], 100 * noisy[df]] == pytest.approx([62, 16], abs=0.5)
    assert 100 * (clean[df] - noisy[df]) / len(codes) == pytest.approx(6.7, abs=0.05)
    assert 100 * (clean.mean() - noisy.mean()) == pytest.approx(9.5, abs=0.05)


def test_means_and_deviations() -> None:
    assert mean_sd(np.array([0.5, 0.6, 0.7])) == "60.0 ± 10.0"
    assert (mean_sd(np.array([0.5])), mean_sd(np.array([np.nan]))) == ("50.0", "–")


TINY: dict[str, Any] = {
    "budgets": {
        "tiny": {
            "seeds": 2,
            "ham": {
                "data.name": "sample", "data.meta": "rule", "data.size": 32, "model.backbone": "small_cnn",
                "model.weights": "none", "train.epochs": 1, "train.batch_size": 16, "train.precision": "fp32",
                "train.channels_last": False, "train.device": "cpu",
            },
            "cifar": {},
        }
    },
    "base": {"ham": {}},
    "methods": {
        "ham_cross_entropy": {"text": "Plain.", "set": {"objective": "erm"}},
        "ham_reweight": {"text": "Weights.", "set": {"objective": "reweight"}},
    },
    "tables": {
        "methods": {
            "title": "Methods", "text": "Which?", "against": "ham_cross_entropy",
            "rows": ["ham_cross_entropy", "ham_reweight"],
        },
        "noise": {
            "title": "Noise", "text": "How much?", "against": "ham_cross_entropy",
            "rows": ["ham_cross_entropy", "ham_reweight"],
            "under": {"clean": {}, "uniform30": {"data.noise_rate": 0.3}},
        },
    },
}  # fmt: skip


@pytest.fixture
def tiny(tmp_path: Path, sample: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A study of eight short runs on the embedded sample, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dermrw.datasets.dataset.write_sample", lambda _: sample)
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(TINY))
    monkeypatch.setattr(plan_module, "STUDY", path)
    monkeypatch.setattr(command_line, "read_plan", lambda: read_plan(path))
    monkeypatch.setattr("dermrw.study.execute.read_plan", lambda: read_plan(path))
    monkeypatch.setattr("dermrw.study.report.read_plan", lambda: read_plan(path))
    # the runs' own pages are tested elsewhere, and the study does not read them
    monkeypatch.setattr("dermrw.evaluation.evaluate.write_html", lambda path, *_, **__: path.touch())
    return read_plan(path)


def study(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["dermrw.study", "--budget", "tiny", *arguments])
    command_line.main()


@pytest.mark.slow
def test_the_whole_way_on_the_sample(
    tiny: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    runs = tiny.runs("tiny")
    assert len(runs) == 8
    study(monkeypatch, "--list")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    for line in lines:
        arguments = shlex.split(line)
        assert arguments[:3] == ["python", "-m", "dermrw.study"]
        study(monkeypatch, *arguments[arguments.index("--run") :])
    for run in runs:
        result = json.loads(result_path(run).read_text())
        assert result["row"] == run.row and result["seed"] == run.seed
        assert len(result["sets"]["test"]["as_trained"]) == result["sets"]["test"]["images"]
        assert (result["wrong_labels"] is not None) == (run.row == "ham_reweight_uniform30")
        assert not [line for line in result["differences_from_default"] if "/" in line]  # no path of the machine
        assert bool(result["weights_over_time"]) == run.row.startswith("ham_reweight")
        assert result_path(run).stat().st_size < 10_000
    before = {run.name: result_path(run).stat().st_mtime_ns for run in runs}
    capsys.readouterr()
    study(monkeypatch, "--list")
    assert capsys.readouterr().out == ""
    study(monkeypatch, "--run", runs[0].name)
    assert "is finished" in capsys.readouterr().out
    study(monkeypatch, "--run", runs[0].name, "--again")
    images = json.loads(result_path(runs[0]).read_text())["sets"]["test"]["images"]
    assert f"the decisions are equal on {images} of {images} test images" in capsys.readouterr().out
    assert not [path for path in (tmp_path / "runs/study/tiny").iterdir() if path.name.endswith("again")]
    study(monkeypatch, "--jobs", "1")  # nothing to do but the report
    assert {run.name: result_path(run).stat().st_mtime_ns for run in runs} == before
    text = (tmp_path / "docs/study/tiny/report.md").read_text()
    assert "8 of 8 runs" in text and "ham_reweight_uniform30" in text
    page = (tmp_path / "docs/study/tiny/report.html").read_text()
    assert "left\nout" not in text and page.count("<table>") == 3 and "<script" not in page and "src=" not in page

    # the balanced accuracy of the file's own decisions is the one that it states
    sections = build_sections(tiny, "tiny", load_results(tiny, "tiny"))
    row = sections[0].rows[0]
    truth = pd.read_csv(tmp_path / "docs/study/tiny" / row.results[0]["sets"]["test"]["truth"])
    codes = list(row.results[0]["recalls"])
    decided = np.array([codes[int(d)] if d != "-" else "" for d in row.results[0]["sets"]["test"]["as_trained"]])
    recalls = [(decided[truth["dx"] == c] == c).mean() for c in codes]
    assert np.mean(recalls) == pytest.approx(row.values("balanced_accuracy_as_trained")[0], abs=1e-5)

    # a table of one method compares its conditions, one of several the methods under each
    assert [row.against is None for row in sections[1].rows] == [True, False, True, False]
    alone = tiny.tables["noise"].model_copy(update={"rows": ["ham_reweight"], "against": "ham_reweight"})
    single = tiny.model_copy(update={"tables": {"noise": alone}})
    (section,) = build_sections(single, "tiny", load_results(tiny, "tiny"))
    assert [row.against is None for row in section.rows] == [True, False]

    # the benchmark's table is there where its file is
    assert "Cost of the weights" not in page
    (tmp_path / "docs/bench.json").write_text("{}")
    with pytest.raises(UserError, match="was not written by `make bench`"):
        write_report("tiny")
    (tmp_path / "docs/bench.json").write_bytes((Path(__file__).parents[2] / "docs/bench.json").read_bytes())
    write_report("tiny")
    assert "Cost of the weights" in (tmp_path / "docs/study/tiny/report.html").read_text()

    # nor can a result of settings that the study no longer has
    path = result_path(runs[0])
    path.write_text(path.read_text().replace(runs[0].digest(), "0" * 16))
    assert write_report("tiny").endswith("7 of 8 runs")
    text = (tmp_path / "docs/study/tiny/report.md").read_text()
    assert "7 of 8 runs" in text and "Left out: 1 made with settings that differ" in text

    # a row that saw other images can't stand in the table
    row.results[0]["samples"][0]["nv"] += 1
    with pytest.raises(UserError, match="drew other images"):
        same_samples(sections[0].rows)
    row.results[0]["sampler"] = "balanced"
    with pytest.raises(UserError, match="differ in the number of images drawn or in the training lesions"):
        same_samples(sections[0].rows)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ham_cross_entropy", "ham_reweight"])
def test_the_laboratory_has_the_figures_of_an_evaluation(method: str, tiny: Plan, tmp_path: Path) -> None:
    budget = tiny.budgets["tiny"]
    frozen = {"model.freeze": "backbone", "model.embedding_views": 2}
    changed = budget.model_copy(
        update={"ham": {**budget.ham, **frozen}, "tables": ["methods"], "rows": [method], "seeds": 2}
    )
    plan = tiny.model_copy(update={"budgets": {"tiny": changed}})
    runs = plan.runs("tiny")
    assert [run.name for run in runs] == [f"{method}-0", f"{method}-1"]
    options = Options(None, keep=True)
    for run in runs:
        execute(run, options)
    folder = folder_of(runs[0])
    stored = [path.stat().st_ino for path in folder.parent.glob("*/embeddings-*.npy")]
    assert (
        len(set(stored)) == 3 and len(stored) == 3
    )  # of two seeds, whose augmented views differ, and of the test images
    ours, frames = json.loads((folder / "report.json").read_text()), {}
    names = ("predictions_validation_as_trained", "predictions_as_trained", "predictions")
    for name in names:
        frames[name] = pd.read_csv(folder / f"{name}.csv")
    evaluate(folder)  # by passes of the whole network
    theirs = json.loads((folder / "report.json").read_text())
    for name in names:
        again = pd.read_csv(folder / f"{name}.csv")
        assert frames[name]["image"].tolist() == again["image"].tolist()
        np.testing.assert_allclose(frames[name].iloc[:, 1:], again.iloc[:, 1:], atol=1e-5)
    assert ours["balanced_accuracy"] == theirs["balanced_accuracy"] and ours["epoch"] == theirs["epoch"]
    assert ours["weights"] == theirs["weights"] and set(ours["classes"]) == set(theirs["classes"])
    again = json.loads((folder_of(runs[1]) / "report.json").read_text())
    assert read_result(runs[1])["balanced_accuracy"] == pytest.approx(again["balanced_accuracy"], abs=1e-4)

    features, table = stored_embeddings(folder)
    assert len(features) == len(table) == table["image_id"].nunique()
    rows = table["image_id"].isin(frames["predictions"]["image"])
    *_, weight, bias = load_checkpoint(folder / "best.pt")["model"].values()  # of the head, the last layer
    logits = features[rows] @ weight.numpy().T + bias.numpy()
    expected = frames["predictions_as_trained"].set_index("image").loc[table["image_id"][rows]]
    np.testing.assert_allclose(np.log(expected), logits - logsumexp(logits, axis=1, keepdims=True), atol=1e-3)
    (own,) = folder.glob("embeddings-*.npy")
    own.rename(own.with_name("embeddings-0123456789abcdef.npy"))  # of another version
    with pytest.raises(UserError, match="no embeddings of these images by this version: delete it and repeat the run"):
        stored_embeddings(folder)


@pytest.mark.slow
def test_runs_are_processes_beside_each_other(tiny: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is run is the command; a failed one is named, and the others' report is written."""
    done: list[str] = []

    def instead(_: Processes, line: list[str], **options: object) -> int:
        name = line[line.index("--run") + 1]
        done.append(name)
        if name == "ham_reweight-1":
            return 2
        study(monkeypatch, "--run", name)
        return 0

    monkeypatch.setattr("dermrw.study.execute.Processes.call", instead)
    with pytest.raises(SystemExit, match="1 runs failed \\(ham_reweight-1\\)"):
        study(monkeypatch, "--table", "methods", "--jobs", "1")
    assert sorted(done) == sorted(f"{row}-{seed}" for row in ("ham_cross_entropy", "ham_reweight") for seed in (0, 1))
    assert "3 of 8 runs" in (tmp_path / "docs/study/tiny/report.md").read_text()


@pytest.mark.slow
def test_a_study_that_is_stopped_stops_its_runs(
    tiny: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """SIGTERM to the study reaches the run under way, which has time to end well; no other is started."""
    script = (
        "import pathlib, signal, sys, time\n"
        "def end(*_): pathlib.Path(sys.argv[1] + '.ended').touch(); sys.exit(130)\n"
        "signal.signal(signal.SIGTERM, end); pathlib.Path(sys.argv[1] + '.began').touch(); time.sleep(60)"
    )
    monkeypatch.setattr(
        "dermrw.study.execute.command", lambda run, _: [sys.executable, "-c", script, str(tmp_path / run.name)]
    )

    def when_it_runs() -> None:
        while not list(tmp_path.glob("*.began")):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=when_it_runs).start()
    with pytest.raises(SystemExit) as ended:
        study(monkeypatch, "--jobs", "1")
    assert ended.value.code == 130 and "the same command resumes the unfinished runs" in capsys.readouterr().err
    assert len(list(tmp_path.glob("*.ended"))) == len(list(tmp_path.glob("*.began"))) == 1


def damaged(text: str, **changes: object) -> str:
    """A result file with other values."""
    return json.dumps({**json.loads(text), **changes})


@pytest.mark.slow
def test_a_damaged_result_is_named_and_never_in_a_mean(tiny: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny.runs("tiny")[0]
    study(monkeypatch, "--run", run.name)
    path = result_path(run)
    text = path.read_text()
    assert finished(run)
    good = json.loads(text)
    decided = good["sets"]["test"]["as_trained"]

    def with_test(**changes: object) -> str:
        return damaged(text, sets={**good["sets"], "test": {**good["sets"]["test"], **changes}})

    for bad in [
        text[: len(text) // 2],
        "[]",
        "null",
        "[" * 100_000,
        "{}",
        json.dumps({"config_digest": run.digest()}),
        damaged(text, balanced_accuracy_as_trained=float("nan")),
        damaged(text, balanced_accuracy=good["balanced_accuracy"] + 0.01),
        damaged(text, seed=1),
        with_test(as_trained=decided[:-3]),
        with_test(as_trained="-" * len(decided)),
        with_test(as_trained="x" + decided[1:]),
        with_test(truth="truth_of_another.csv"),
    ]:
        path.write_text(bad)
        for action in ("--list", "--report"):
            with pytest.raises(SystemExit) as ended:
                study(monkeypatch, action)
            assert ended.value.code == 2
    path.write_text(text)
    assert finished(run)
    truth = path.parent / good["sets"]["test"]["truth"]
    truth.write_text(truth.read_text().replace(",nv", ",mel", 1))
    read_truth.cache_clear()
    with pytest.raises(UserError, match=r"the content of truth_.* has changed"):
        finished(run)


def test_a_run_that_began_with_other_settings_does_not_go_on(tiny: Plan, tmp_path: Path) -> None:
    run = tiny.runs("tiny")[0]
    train(run._replace(settings={**run.settings, "train.lr": 0.5}).load(), tmp_path / "runs/study/tiny" / run.name)
    with pytest.raises(UserError, match="contains a run whose settings differ from those of the study: delete it"):
        execute(run, Options(None, False))


@pytest.mark.slow
def test_other_weights_are_another_study(tiny: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What finished runs started from is what the others start from: found out before anything is trained."""
    first, second = tiny.runs("tiny")[:2]
    study(monkeypatch, "--run", first.name)
    path = result_path(first)
    path.write_text(path.read_text().replace("trained from scratch", "weights from mine.pth (sha256 0123456789ab)"))
    with pytest.raises(UserError, match=r"started from weights from mine\.pth .*would start from trained from scratch"):
        check_weights([second], Options(None, False))
    with pytest.raises(SystemExit):
        study(monkeypatch, "--run", second.name)
    assert not (tmp_path / "runs/study/tiny" / second.name).exists()
    result = read_result(first)
    rows = [Row("a", "a", "clean", [result], None), Row("b", "b", "clean", [{**result, "weights": "other"}], None)]
    with pytest.raises(UserError, match="started from different weights"):
        same_samples(rows)


def test_weights_are_the_same_by_what_is_in_them() -> None:
    assert same_origin("weights from a.pth (sha256 01ab)") == same_origin("weights from b.pth (sha256 01ab)")
    assert same_origin("weights from a.pth (sha256 01ab)") != same_origin("weights from a.pth (sha256 02ab)")
    assert same_origin("ImageNet weights V1 of torchvision 0.29") == same_origin(
        "ImageNet weights V1 of torchvision 0.30"
    )
    assert same_origin("ImageNet weights V1 of torchvision 0.29") != same_origin("trained from scratch")


def test_mistakes_are_sentences(
    tiny: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, said in [
        (["--table", "nonsense"], "--budget tiny has no table nonsense"),
        (["--run", "nonsense-0"], "the study has no run nonsense-0"),
        (["--run", "ham_reweight"], "name a row and a seed, such as ham_reweight-"),
        (["--weights", "nowhere.pth"], "--weights nowhere.pth is not a file"),
        (["--report"], "contains no result yet"),
        (["--run", "ham_reweight-0", "--again"], "ham_reweight-0 has no result yet"),
        (["--again"], "--again requires the name of a run"),
        (["--jobs", "-1"], "must be a whole number of at least 1, not -1"),
        (["--jobs", "two"], "must be a whole number of at least 1, not two"),
        (["--hours", "nan"], "a number of hours, not nan"),
        (["--hours", "-2"], "a number of hours, not -2"),
        (["--list", "--report"], "give only one of them"),
    ]:
        with pytest.raises(SystemExit) as ended:
            study(monkeypatch, *arguments)
        assert ended.value.code == 2 and said in capsys.readouterr().err


def test_a_report_wants_a_result(tiny: Plan) -> None:
    with pytest.raises(UserError, match="contains no result yet"):
        write_report("tiny")


def test_data_that_is_not_there_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dermrw.study", "--table", "methods"])
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    assert ended.value.code == 2 and "HAM10000 is not at data/ham10000" in capsys.readouterr().err


@pytest.mark.slow
def test_ray_spreads_the_runs(tiny: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sample: Path) -> None:
    """Each run is a command on a worker; a worker knows the tiny study by what it is told alone."""
    pytest.importorskip("ray")
    line = [sys.executable, "-c", "import sys; sys.exit(sys.argv[1] == 'ham_reweight-1')"]
    monkeypatch.setattr("dermrw.study.execute.command", lambda run, options: [*line, run.name])
    ended = {run.name: status for run, status in run_with_ray(tiny.runs("tiny"), Options(None, False))}
    assert len(ended) == 8 and ended.pop("ham_reweight-1") == 1 and set(ended.values()) == {0}

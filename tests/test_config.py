import os
from pathlib import Path

import pytest
import yaml

from dermrw.config import CONFIGS, Config, differences, dump, known_keys, load_config
from dermrw.errors import UserError


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_file_then_overrides(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "name: mine\ntrain: {lr: 3e-4, epochs: 4}\nobjective: erm\n")
    config = load_config(path, ["train.epochs=7", "data.root=/x", "train.device=cpu", "objective=reweight"])
    assert (config.name, config.train.lr, config.train.epochs) == ("mine", 3e-4, 7)
    assert (config.data.root, config.objective.name) == ("/x", "reweight")


@pytest.mark.parametrize("text", ["3e-4", "3E-4", "0.0003", "3.0e-04"])
def test_numbers_as_people_write_them(text: str) -> None:
    assert load_config(None, [f"train.lr={text}"]).train.lr == 3e-4
    assert load_config(None, ["train.seed=010", "train.epochs=1_0"]).train.seed == 10  # YAML 1.1 reads 8


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.name)
def test_every_config_of_the_project_is_valid_and_named_after_its_file(path: Path) -> None:
    assert load_config(path).name == path.stem


def test_a_dumped_config_is_complete_and_comes_back(tmp_path: Path) -> None:
    config = load_config(CONFIGS / "ham.yaml", ["train.seed=5", "data.meta=rule"])
    path = write(tmp_path / "config.yaml", dump(config))
    assert load_config(path) == config
    stored = yaml.safe_load(path.read_text())
    flat = {f"{s}.{k}" for s, v in stored.items() if isinstance(v, dict) for k in v} | {"name", "objective"}
    assert flat == set(known_keys())


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("train.epoch=3", "did you mean train.epochs"),
        ("xyz=3", "no key 'xyz'"),
        ("train.epochs=many", "train.epochs"),
        ("train.epochs=0", "train.epochs"),
        ("train.lr=-1", "train.lr"),
        ("data.size=1e9", "data.size"),
        ("objective=magic", "objective.name"),
        ("train.epochs", "key=value"),
        ("data.extra=", r"'data\.extra=' has no value: leave it out for the default"),
        ("data.root=~", "has no value"),
        ("data.root=#x", "has no value"),
        ("train.epochs=1:30", r"train\.epochs: .*'1:30'"),
        ("train.epochs=0x10", r"train\.epochs: .*'0x10'"),
        ("train.lr=1:30.5", r"train\.lr"),
        ("train=3", "train"),
        ("name=../x", "name"),
        (f"name={'n' * 300}", "name"),
        ("data.size=2024-02-30", r"data\.size: .*'2024-02-30'"),
        (f"data.size={'9' * 5000}", r"data\.size"),
        (f"data.size={'[' * 3000}", r"data\.size"),
        (f"data.size={'[' * 400}{']' * 400}", r"data\.size"),
        ("data.size=[&a x, *a]", r"data\.size"),
        ("train.seed=18446744073709551616", r"train\.seed: .*less than or equal to 4294967295"),
        ("data.split_seed=4294967296", r"data\.split_seed"),
        ("train.lr=1e300", r"train\.lr"),
        ("train.epochs=999999999999999999999999", r"train\.epochs"),
        ("train.batch_size=100000000000000000000", r"train\.batch_size"),
        ("data.root=~nobodyx/y", r"data\.root: this user has no home folder"),
        ("data.meta=~nobodyx/y", r"data\.meta: this user has no home folder"),
        ("model.weights=~nobodyx/y", r"model\.weights: this user has no home folder"),
        ('data.root="a\\0b"', r"data\.root: a path can't contain"),
    ],
)
def test_mistakes_are_named(override: str, named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        load_config(None, [override])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["objective=erm", "objective.sampler=balanced", "objective.loss=balanced_softmax"], "would both balance"),
        (["objective=reweight", "objective.sampler=balanced", "objective.loss=class_balanced"], "would both balance"),
        (["data.name=cifar10", "data.test=0.2"], r"data\.test is not an option of data\.name=cifar10"),
        (["data.name=cifar10", "data.meta=mine.csv"], r"data\.meta is not an option of data\.name=cifar10"),
        (["data.name=cifar10", "data.field_of_view=find"], r"data\.field_of_view is not an option"),
        (["data.meta_per_class=10"], r"data\.meta_per_class is an option of data\.meta=rule"),
    ],
)
def test_keys_that_would_be_ignored_or_act_twice_are_refused(overrides: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        load_config(None, overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["objective=erm", "objective.sampler=balanced"],
        ["objective.sampler=balanced", "objective.loss=focal"],
        ["data.meta=rule", "data.meta_per_class=10"],
        ["data.name=cifar10", "data.meta_per_class=5", "data.crop=whole"],
        ["data.name=table", "data.root=x.csv", "data.meta_per_class=5"],
    ],
)
def test_their_allowed_neighbours(overrides: list[str]) -> None:
    load_config(None, overrides)


def test_a_frozen_network_with_one_view_has_seen_no_drawn_artefacts() -> None:
    drawn = load_config(None, ["data.augment=devices"])
    assert drawn.draws_artefacts and not load_config(None, ["data.augment=strong"]).draws_artefacts
    frozen = ["data.augment=devices", "model.freeze=backbone"]
    views = {n: load_config(None, [*frozen, f"model.embedding_views={n}"]).draws_artefacts for n in (0, 1, 4)}
    assert views == {0: True, 1: False, 4: True}


def bomb() -> str:
    """Aliases of aliases: half a kilobyte that unfolds to gigabytes."""
    lines = [f"    - &a{i} [{','.join([f'*a{i - 1}' if i else 'x'] * 10)}]" for i in range(10)]
    return "\n".join(["model:", "  backbone:", *lines])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("1: 2", "the key '1' must be text"),
        ("on: 2", "the key 'on' must be text"),
        ("null: 2", "must be text"),
        ("2020-01-01: 3", "2020-01-01"),
        ("? [a]\n: b", "must be text"),
        ("train: {1: 2}", "the key '1' must be text"),
        ("train: {epochs: 2024-13-01}", r"train\.epochs"),
        ("train: {epochs: !!timestamp 2024-13-01}", "can't be read"),
        (f"train: {{epochs: {'1' * 5000}}}", "can't be read"),
        ("data: " + "[" * 20_000, "nested too deeply"),
        ("{a: " * 5000, "nested too deeply"),
        (bomb(), r"the alias \*a0 is not supported"),
        ("a: &a {b: 1}\nc: {<<: *a}", "the alias"),
        ("train: {epochs: 2}\ntrain: {lr: 1}", "the key train occurs twice"),
        ("train: {epochs: 2, epochs: 3}", "the key epochs occurs twice"),
    ],
    ids=range(15),
)
def test_files_that_are_read_by_no_guess(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        load_config(write(tmp_path / "c.yaml", text))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def test_what_looks_like_a_date_is_text(tmp_path: Path) -> None:
    assert load_config(write(tmp_path / "c.yaml", "name: 2024-02-30")).name == "2024-02-30"


def test_a_pipe_is_no_config(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "c.yaml")
    with pytest.raises(UserError, match=r"c\.yaml is a pipe"):
        load_config(tmp_path / "c.yaml")


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n", "train: 3\n", "trian: {epochs: 3}\n", "\x00"])
def test_files_that_are_no_configs(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"c\.yaml|trian"):
        load_config(write(tmp_path / "c.yaml", text))
    with pytest.raises(UserError, match=r"absent\.yaml"):
        load_config(tmp_path / "absent.yaml")


def test_differences() -> None:
    assert differences(load_config(None, ["train.epochs=5", "name=a"]), Config()) == [
        "name: a, was ham",
        "train.epochs: 5, was 30",
    ]

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
        ("train=3", "train"),
        ("name=../x", "name"),
    ],
)
def test_mistakes_are_named(override: str, named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        load_config(None, [override])
    assert "\n" not in str(caught.value)


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

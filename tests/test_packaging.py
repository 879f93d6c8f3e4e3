"""The wheel's and the checkout's metadata, the commands of `app` and `export`, and what a missing package says."""

import itertools
import os
import platform
import shutil
import subprocess
import sys
import tomllib
from email import message_from_bytes
from importlib.metadata import distributions, metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from tools.link_requirements import required

import dermrw
from dermrw import __main__ as command_line
from dermrw.errors import plain_endings
from dermrw.inference.classifier import Classifier
from dermrw.inference.shipped import shipped_model

ROOT = Path(__file__).parents[1]
RUNTIMES = {"onnxruntime", "onnxruntime-gpu"}


@pytest.fixture(scope="module")
def requirements(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The `Requires-Dist` lines of a wheel (`wheel`) and of a checkout (`editable`)."""
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    (source / "dermrw").mkdir(parents=True)
    for name in ("setup.py", "README.md", "LICENSE", "dermrw/__init__.py"):
        shutil.copy(ROOT / name, source / name)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    begin, end = project.index("packages = ["), project.index("[tool.setuptools.dynamic]")
    # the metadata alone does not need the other packages
    (source / "pyproject.toml").write_text(f'{project[:begin]}packages = ["dermrw"]\n{project[end:]}', encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    lines = {}
    for kind in ("wheel", "editable"):
        (folder / kind).mkdir()
        hook = f"import setup; setup.prepare_metadata_for_build_{kind}({str(folder / kind)!r})"
        ended = subprocess.run(
            [sys.executable, "-c", hook], cwd=source, capture_output=True, text=True, env=environment, check=False
        )
        assert ended.returncode == 0, ended.stderr
        (file,) = (folder / kind).glob("*.dist-info/METADATA")
        lines[kind] = message_from_bytes(file.read_bytes()).get_all("Requires-Dist") or []
    return lines


def names(lines: list[str], extras: list[str]) -> set[str]:
    """Returns the names of the requirements with these extras, those of dermrw's other extras included."""
    found = {str(canonicalize_name(r.name)) for r in required(lines, extras)}
    more = sorted({e for r in required(lines, extras) if r.name == "dermrw" for e in r.extras} | set(extras))
    return found if more == sorted(extras) else names(lines, more)


def test_pinned_packages_admit_the_oldest_python() -> None:
    """The set-up failed on Python 3.11.2, as of Debian 12: one package needed 3.11.5."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    oldest = project["requires-python"].removeprefix(">=") + ".0"
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    needs = {
        name: metadata(name)["Requires-Python"]
        for name, version in pinned.items()
        if any(d.version == version for d in distributions(name=name))
    }
    assert len(needs) > 50
    assert not [name for name, python in needs.items() if python and not SpecifierSet(python).contains(oldest)]


@pytest.mark.slow
def test_no_combination_of_extras_installs_two_runtimes(requirements: dict[str, list[str]]) -> None:
    extras = list(
        tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    )
    runtime = {}
    for kind, lines in requirements.items():
        some = [list(chosen) for n in (0, 1, 2, len(extras)) for chosen in itertools.combinations(extras, n)]
        (runtime[kind],) = {frozenset(names(lines, chosen) & RUNTIMES) for chosen in some}
    on_amd64 = sys.platform != "darwin" and platform.machine() in ("x86_64", "AMD64")
    assert runtime == {"wheel": {"onnxruntime"}, "editable": {"onnxruntime-gpu" if on_amd64 else "onnxruntime"}}


def test_the_base_installation_is_small(requirements: dict[str, list[str]]) -> None:
    wheel = requirements["wheel"]
    large = {"torch", "torchvision", "monai", "gradio", "pandas", "matplotlib", "scipy", "scikit-learn", "onnx"}
    assert not names(wheel, []) & large
    assert names(wheel, ["demo"]) & large == {"gradio", "pandas", "matplotlib", "scipy", "scikit-learn"}
    assert names(wheel, ["train"]) & large == large - {"gradio"}


def test_the_requirements_of_the_demo_are_those_of_a_checkout(requirements: dict[str, list[str]]) -> None:
    lines = [line for line in (ROOT / "app/requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    app = {(r.name, str(r.specifier), str(r.marker)) for r in map(Requirement, lines)}
    editable = requirements["editable"]
    base = {
        (r.name, str(r.specifier), str(r.marker)) for r in map(Requirement, editable) if "extra" not in str(r.marker)
    }
    assert base < app
    assert {name for name, *_ in app} <= names(editable, ["demo"]) | RUNTIMES


def test_every_folder_of_code_is_in_the_wheel() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {
        path.parent.relative_to(ROOT) for top in ("dermrw", "app", "export") for path in (ROOT / top).rglob("*.py")
    }
    below = {".".join(("dermrw", *f.parts)) if f.parts[0] != "dermrw" else ".".join(f.parts) for f in folders}
    assert set(setuptools["packages"]) == below | {"dermrw.configs"}
    data = setuptools["package-data"]
    for package in ("app", "export"):
        needed = [p for p in (ROOT / package).iterdir() if p.suffix in (".jinja", ".css", ".js", ".onnx", ".conf")]
        for file in needed:
            assert any(file.match(pattern) for pattern in data[f"dermrw.{package}"]), file


@pytest.mark.slow
@pytest.mark.parametrize(("command", "heading"), [("demo", "usage: dermrw demo"), ("export", "usage: dermrw export")])
def test_app_and_export_are_commands_in_a_checkout(command: str, heading: str, tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "dermrw", command, "--help"], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert ended.returncode == 0 and ended.stdout.startswith(heading), ended.stderr


def test_every_command_is_in_the_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["dermrw", "--help"])
    with pytest.raises(SystemExit):
        command_line.main()
    text = capsys.readouterr().out
    for command in ("download", "check", "train", "eval", "audit", "compare", "predict", "export", "demo"):
        assert f"    {command} " in text
    monkeypatch.setattr(sys, "argv", ["dermrw", "--version"])
    with pytest.raises(SystemExit):
        command_line.main()
    assert capsys.readouterr().out == f"dermrw {dermrw.__version__}\n"


def test_without_a_model_the_classifier_is_the_one_shipped_with_dermrw() -> None:
    assert shipped_model() == ROOT / "app" / "model.onnx"
    assert Classifier().digest == Classifier(ROOT / "app/model.onnx").digest


def test_in_a_wheel_a_missing_package_names_pips_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dermrw.errors.__file__", str(tmp_path / "site-packages/dermrw/errors.py"))
    with pytest.raises(SystemExit) as caught, plain_endings("dermrw", "demo"):
        import gradio_of_another_world  # noqa: F401
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        "dermrw: the Python package gradio_of_another_world is missing: run `pip install 'dermrw[demo]'`\n"
    )

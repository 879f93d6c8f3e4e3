"""Fixtures that several test files share."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from tools.serving import Server

from dermrw.__main__ import main
from dermrw.datasets.sample import write_sample
from dermrw.datasets.sample_drawing import draw_lesion
from dermrw.training.run_folder import latest_run
from export.__main__ import export

SHARED_IN_A_FILE = {"server", "attacked", "whole"}  # fixtures of module scope that take long
REAL_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives a file's tests that share a demo or a run to one process, so that it is started or trained once."""
    for item in items:
        if SHARED_IN_A_FILE.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test sees the user's own data or cache, and none fights the others for cores."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("HAM10000_DIR", raising=False)
    monkeypatch.delenv("CIFAR10_DIR", raising=False)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small embedded sample in HAM10000's layout."""
    return write_sample(tmp_path_factory.mktemp("data") / "sample", 200)


TINY = [
    "data.size=32", "model.backbone=small_cnn", "train.epochs=1", "train.batch_size=16",
    "train.precision=fp32", "train.channels_last=false",
]  # fmt: skip


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """What a user types after `dermrw`."""
    monkeypatch.setattr("sys.argv", ["dermrw", *arguments])
    main()


def exit_status(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Runs a command as `command` does, and returns its exit status."""
    try:
        command(monkeypatch, *arguments)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory, sample: Path, worker_id: str) -> Path:
    """A newcomer's folder: the sample where `train` looks for it, a run, its evaluation and its model file.

    The processes of one test run share it. Tests use copies.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "trained"
    with FileLock(f"{folder}.lock"):
        if not (folder / "complete").exists():
            _train(folder, sample)
            (folder / "complete").touch()
    return folder


def _train(folder: Path, sample: Path) -> None:
    torch.set_num_threads(1)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("HAM10000_DIR", raising=False)
        patch.setattr("dermrw.datasets.dataset.write_sample", lambda _: sample)
        command(patch, "train", *TINY)
        command(patch, "eval")
        export(latest_run(), [])


@pytest.fixture
def place(_trained: Path, tmp_path: Path) -> Path:
    """A copy of the newcomer's folder, for a test of its own."""
    return Path(shutil.copytree(_trained, tmp_path / "clone"))


@pytest.fixture
def run(place: Path) -> Path:
    """The run in it."""
    return next((place / "runs").iterdir())


@pytest.fixture
def model_file(run: Path) -> Path:
    """The run's model file."""
    return run / "model.onnx"


@pytest.fixture(scope="session")
def ham10000() -> Path:
    """The real HAM10000, where the developer has it; the test skips elsewhere."""
    folder = Path(os.environ.get("DERMRW_TEST_DATA", REAL_DATA)) / "ham10000"
    if not (folder / "HAM10000_metadata.csv").exists():
        pytest.skip("the real HAM10000 is not on this machine")
    return folder


@pytest.fixture(scope="session")
def model(_trained: Path) -> Path:
    """The model that the demo's tests serve."""
    return next((_trained / "runs").glob("*/model.onnx"))


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo, shared by a file's tests."""
    running = Server(model, tmp_path_factory.mktemp("demo"))
    yield running
    if running.process.poll() is None:
        running.end()


def draw(path: Path, seed: int = 4, **options: Any) -> Path:
    """A drawn lesion as a file."""
    rng = np.random.default_rng
    Image.fromarray(draw_lesion("mel", rng(seed), rng(seed + 1), 300, 400)).save(path, **options)
    return path


@pytest.fixture(scope="session")
def lesion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn lesion with a patient's name in its EXIF and its file's name."""
    exif = Image.Exif()
    exif[0x010E] = "Mrs Smith, born 1950"
    return draw(tmp_path_factory.mktemp("lesion") / "mrs-smith.jpg", quality=92, exif=exif)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's chromium, cut off from every machine but this one."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("there is no chromium on this machine: apt install chromium")
    with sync_api.sync_playwright() as playwright:
        rules = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        launched = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", rules])
        yield launched
        launched.close()

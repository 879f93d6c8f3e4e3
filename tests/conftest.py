"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest
import torch

from dermrw.synthetic import write_sample

REAL_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the user's own data, and none fights the others for cores."""
    monkeypatch.delenv("HAM10000_DIR", raising=False)
    monkeypatch.delenv("CIFAR10_DIR", raising=False)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small embedded sample in HAM10000's layout."""
    return write_sample(tmp_path_factory.mktemp("data") / "sample", 200)


@pytest.fixture(scope="session")
def ham10000() -> Path:
    """The real HAM10000, where the developer has it; the test skips elsewhere."""
    folder = Path(os.environ.get("DERMRW_TEST_DATA", REAL_DATA)) / "ham10000"
    if not (folder / "HAM10000_metadata.csv").exists():
        pytest.skip("the real HAM10000 is not on this machine")
    return folder

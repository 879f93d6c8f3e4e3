"""What an exported model needs, and the demo, are imported without torch. `make lint` checks the layers."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

IMPORT_ALL_WITHOUT_TORCH = """
import importlib, pkgutil, sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "monai", "albumentations"):
            raise ModuleNotFoundError(f"{name} is imported", name=name)

sys.meta_path.insert(0, NoTorch())
for package in sys.argv[1:]:
    module = importlib.import_module(package)
    print(package)
    for _, name, _ in pkgutil.walk_packages(module.__path__, f"{package}."):
        importlib.import_module(name)
        print(name)
"""


@pytest.mark.slow
def test_the_torch_free_packages_are_imported_without_torch() -> None:
    names = ("images", "decisions", "inference", "labelled", "metrics", "reports", "scoring")
    packages = [*(f"dermrw.{name}" for name in names), "app"]
    ended = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL_WITHOUT_TORCH, *packages], cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    imported = set(ended.stdout.split())
    files = [file for package in packages for file in (ROOT / package.replace(".", "/")).rglob("*.py")]
    assert {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files
    } <= imported

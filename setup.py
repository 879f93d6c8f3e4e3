"""The build of dermrw: setuptools, and the one dependency that differs between a wheel and a checkout.

onnxruntime and onnxruntime-gpu contain the same Python package, so they overwrite each other in one environment. The
runtime is therefore a dependency of dermrw itself and of no extra. A wheel depends on onnxruntime. An editable
installation (a checkout: `pip install -e .`) depends on onnxruntime-gpu where there is one.

pyproject.toml names this file as its build backend (PEP 517 and 660), so that it learns which of the two is built.
"""

import os

from setuptools import build_meta, setup
from setuptools.build_meta import (
    build_sdist,
    build_wheel,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

EDITABLE = "DERMRW_EDITABLE_BUILD"  # set while setuptools runs this file for an editable installation

# of `from dermrw import Classifier` and `dermrw predict`; the extras in pyproject.toml add to them
BASE = [
    "numpy",
    "pillow>=11.3",  # with AVIF
    "pi-heif",  # HEIC, as phones write it; the decoder alone
    "tifffile",  # 16-bit TIFF
    "pydicom>=3",
    "pydantic>=2.7",
    "tqdm",
]
CPU = ["onnxruntime>=1.27"]
GPU = [
    "onnxruntime-gpu>=1.27; sys_platform != 'darwin' and platform_machine in 'x86_64 AMD64'",
    "onnxruntime>=1.27; sys_platform == 'darwin' or platform_machine not in 'x86_64 AMD64'",
]


def prepare_metadata_for_build_editable(metadata_directory, config_settings=None):
    """The hook of PEP 660 of this name."""
    os.environ[EDITABLE] = "1"
    return build_meta.prepare_metadata_for_build_editable(metadata_directory, config_settings)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    """The hook of PEP 660 of this name."""
    os.environ[EDITABLE] = "1"
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)


if __name__ == "__main__":  # as setuptools runs this file; the backend is imported as `setup`
    setup(install_requires=[*(GPU if EDITABLE in os.environ else CPU), *BASE])

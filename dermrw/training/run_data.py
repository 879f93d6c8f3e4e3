"""The classes and the images of a run, from its folder."""

from pathlib import Path

from dermrw.config import Config
from dermrw.datasets.cifar10 import CIFAR_CLASSES
from dermrw.datasets.dataset import Splits, load_splits, resolve_root
from dermrw.diagnoses import HAM_CLASSES, Classes
from dermrw.training.run_folder import read_split, run_facts


def classes_of(run: Path, config: Config) -> Classes:
    """Returns the classes of a run.

    Raises:
        UserError: the run is on a user's own table, and its classes.yaml can't be read.
    """
    facts = run_facts(run, config)
    if facts is not None:
        return facts.classes
    return CIFAR_CLASSES if config.data.name == "cifar10" else HAM_CLASSES


def run_splits(run: Path, config: Config, announce: bool = False) -> Splits:
    """Returns the image sets of a run.

    Raises:
        UserError: the data is not found, or it is not the data that the run was trained on.
    """
    root = resolve_root(config.data)
    return load_splits(config.data, root, read_split(run), announce, run_facts(run, config))

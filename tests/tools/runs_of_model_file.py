"""Restores the runs of a model file: `PYTHONPATH=.:tests python tests/tools/runs_of_model_file.py MODEL FOLDER …`.

Their own folders may be gone, and with them the checkpoints. A model file of several views stores every parameter, so
its networks can be evaluated and exported anew, or trained further, with a later version of dermrw. FOLDER/NAME gets
the config (`configs/ham.yaml` with the keys), the split that this config draws, and best.pt with the weights as the
file stores them. The optimiser, the log and the time of the training are not in a model file.
"""

import argparse
from pathlib import Path

import torch

from dermrw.config import load_config
from dermrw.datasets.dataset import load_splits, resolve_root
from dermrw.errors import UserError, plain_endings
from dermrw.inference.classifier import Classifier
from dermrw.training.checkpoint import save_checkpoint
from dermrw.training.run_folder import start_run
from export.encoder import network_of_model_file


def restore(path: Path, folder: Path, keys: list[str], epochs: list[int]) -> None:
    """Writes a run for each network of the model file; network n has the seed n and its best epoch in `epochs`.

    Raises:
        UserError: the file does not store the parameters, or a run of that name exists.
    """
    classifier = Classifier(path, "cpu")
    info = classifier.info
    names = [run.name for run in info.runs] or [info.name]
    data = load_config(Path("configs/ham.yaml"), keys).data
    splits = load_splits(data, resolve_root(data))
    if splits.classes.codes != info.codes:
        raise UserError(f"{path} has the classes {', '.join(info.codes)}, not those of this config")
    for number, name in enumerate(names):
        run = folder / name
        if run.exists():
            raise UserError(f"{run} exists: name another FOLDER")
        model = network_of_model_file(path, info, run, number, with_head=True)
        config = load_config(Path("configs/ham.yaml"), [*keys, f"train.seed={number}"])
        run.mkdir(parents=True)
        epoch = epochs[number] if number < len(epochs) else config.train.epochs
        state = {
            "model": model.state_dict(), "optimizer": {}, "schedule": {}, "objective": {}, "classes": list(info.codes),
            "origin": info.origin, "epoch": epoch, "step": 0, "best": 0.0, "best_epoch": epoch, "all_zero": 0.0,
            "seconds": 0, "rows": [], "log_offset": 0, "random": torch.get_rng_state(), "random_cuda": [],
        }  # fmt: skip
        save_checkpoint(run / "best.pt", state)
        (run / "metrics.jsonl").touch()
        start_run(run, config, splits.table, splits.facts, splits.left_out)
        print(f"{run}: network {number + 1} of {len(names)}")


def main() -> None:
    """Restores the runs. A user error prints one sentence and exits with status 2."""
    parser = argparse.ArgumentParser("runs_of_model_file", description="Restore the runs of a model file.")
    parser.add_argument("model", type=Path, help="the .onnx file")
    parser.add_argument("folder", type=Path, help="the folder for the runs")
    parser.add_argument("keys", nargs="*", metavar="key=value", help="the settings of data that the runs had")
    parser.add_argument("--epochs", default="", help="the best epoch of each run, from the card, such as 9,13,11")
    arguments = parser.parse_args()
    with plain_endings("runs_of_model_file"):
        restore(arguments.model, arguments.folder, arguments.keys, [int(n) for n in arguments.epochs.split(",") if n])


if __name__ == "__main__":
    main()

"""Measures 8-bit weights: `PYTHONPATH=. python tests/tools/eight_bit_weights.py MODEL RUN`.

Rounds the float16 weights of a model file to 255 levels, symmetric and with one scale for each output channel, and
compares its answers with those of the file itself on the validation images of a run. It prints balanced accuracy, AUC
of triage, and the number of images whose answer changes.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import pandas as pd

from dermrw.config import load_config
from dermrw.inference.classifier import Classifier
from dermrw.metrics import classification as metrics
from dermrw.training.run_data import run_splits

LEVELS = 127  # on each side of zero


def round_weights(model: onnx.ModelProto) -> None:
    """Rounds all float16 initialisers of at least two dimensions, the first of which is the output channels."""
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT16 and len(tensor.dims) > 1:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            largest = np.abs(values).max(axis=tuple(range(1, values.ndim)), keepdims=True)
            scale = np.where(largest > 0, largest, 1) / LEVELS
            rounded = (np.round(values / scale) * scale).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(rounded, tensor.name))


def answers(model: Path, paths: list[Path]) -> pd.DataFrame:
    """The columns of `dermrw predict`, one row for each image."""
    return pd.DataFrame(Classifier(model, "cpu")({"path": np.array(list(map(str, paths)))}))


def main() -> None:
    """Prints the figures of both, and what changes."""
    model, run = Path(sys.argv[1]), Path(sys.argv[2])
    images = run_splits(run, load_config(run / "config.yaml")).validation
    rounded = onnx.load(model)
    round_weights(rounded)
    info = Classifier(model, "cpu").info
    bad = np.array(info.malignant)[images.labels]
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(rounded, Path(folder) / "model.onnx")
        found = {name: answers(path, images.sources) for name, path in (
            ("as it is", model), ("8-bit weights", Path(folder) / "model.onnx"),
        )}  # fmt: skip
    values = {name: table[list(info.columns)].to_numpy(np.float64) for name, table in found.items()}
    for name, table in found.items():
        judged = table["malignancy_score"].notna().to_numpy()
        auc = metrics.auc(bad[judged], table["malignancy_score"].to_numpy()[judged])
        print(f"{name}: balanced accuracy {metrics.balanced_accuracy(values[name], images.labels):.4f}, AUC {auc:.4f}")
    one, other = found.values()
    p, q = values.values()
    print(f"largest difference of a probability {np.abs(p - q).max():.3f}")
    print(f"most probable diagnosis changes for {(p.argmax(1) != q.argmax(1)).sum()} of {len(p)} images")
    for column in ("triage", "set"):
        print(f"{column} changes for {(one[column] != other[column]).sum()}")
    print(f"refusal changes for {((one['refused'] == '') != (other['refused'] == '')).sum()}")


if __name__ == "__main__":
    main()

"""Writes small model files of any classes, for tests of the code that uses model files."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from dermrw.decisions.refusal import CHECKS, RULES
from dermrw.inference.known_images import KEY, KnownImages
from dermrw.inference.model_file import INPUT, OUTPUTS, ModelInfo, Proportion, Score, Triage


def model_info(codes: Sequence[str], names: Sequence[str] = (), **changes: Any) -> ModelInfo:
    """Returns metadata of a model of these classes, whose prediction sets hold only the most probable class."""
    values: dict[str, Any] = {
        "name": "tiny", "created": "2026-11-27", "version": "0.3.0", "digest": hashlib.sha256(b"").hexdigest(),
        "backbone": "tiny", "objective": "none", "origin": "random", "size": 32, "codes": tuple(codes),
        "columns": tuple(code.upper() for code in codes), "names": tuple(names) or tuple(codes), "temperature": 1.0,
        "offsets": (0.0,) * len(codes), "prevalence": dict.fromkeys(codes, 1 / len(codes)),
        "lesion_rule": "most_suspicious", "smallest": 24,
        "limits": {name: -1.0 if RULES[name][0] == "low" else 1.0 for name in CHECKS}, "refused": None,
        "coverage": 0.9, "thresholds": (1.0,) * len(codes),
        "covered": Proportion(share=0.92, interval_95=(0.88, 0.95), images=100), "triage": None,
        "score": Score(
            balanced_accuracy=0.8, interval_95=(0.75, 0.85), scored_on="the run's own test split", images=100
        ),
        "licence": "for tests",
    }  # fmt: skip
    return ModelInfo(**{**values, **changes})


TRIAGE = Triage(
    threshold=0.5,
    sensitivity=Proportion(share=0.95, interval_95=(0.9, 0.98), images=50),
    specificity=Proportion(share=0.7, interval_95=(0.6, 0.8), images=50),
)


def write_model(path: Path, info: ModelInfo, known: KnownImages | None = None) -> Path:
    """Writes a model file whose probabilities depend on the mean colour of the image: class k peaks at hue k of C."""
    count = len(info.codes)
    angle = 2 * np.pi * np.arange(count) / count
    hue = np.stack([np.cos(angle), np.cos(angle - 2 * np.pi / 3), np.cos(angle + 2 * np.pi / 3)])  # [3, C]
    constants: dict[str, np.ndarray] = {
        "weight": (hue / 8).astype(np.float32),
        "axes": np.array([1, 2], np.int64),
        "positions": np.array([[[[1.0, 0.5], [0.2, 0.1]]]], np.float32),
        "last": np.array([2, 3], np.int64),
        "nothing": np.zeros((3, 8), np.float32),
        "one": np.ones((1, 8), np.float32) / 2,
    }
    nodes = [
        helper.make_node("Cast", [INPUT], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["colour"], keepdims=0),
        helper.make_node("MatMul", ["colour", "weight"], ["logits"]),
        helper.make_node("Softmax", ["logits"], [OUTPUTS[0]], axis=1),
        helper.make_node("Unsqueeze", ["logits", "last"], ["column"]),
        helper.make_node("Mul", ["column", "positions"], [OUTPUTS[1]]),
        helper.make_node("MatMul", ["colour", "nothing"], ["zeros"]),
        helper.make_node("Add", ["zeros", "one"], [OUTPUTS[2]]),
        helper.make_node("Identity", [OUTPUTS[2]], [OUTPUTS[3]]),
    ]
    shapes = ([None, count], [None, count, 2, 2], [None, 8], [None, 8])
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, [None, None, None, 3])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in zip(OUTPUTS, shapes, strict=True)],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    props = info.to_props() | ({KEY: known.to_prop()} if known else {})
    helper.set_model_props(model, props)
    path.write_bytes(model.SerializeToString())
    return path

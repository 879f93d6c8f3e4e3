"""Model files with float16 weights: size, agreement with torch, measured rounding, encoder and quantization."""

from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process
from test_export import same_graph
from torch import nn

from dermrw.errors import UserError
from dermrw.inference.classifier import Classifier
from export.__main__ import export, main
from export.half_weights import rounded_network, store_half_weights
from export.ship import MOST

RNG = np.random.default_rng(0)


def graph_of(weight: np.ndarray, *, name: str = "weight", operator: str = "MatMul") -> onnx.ModelProto:
    """A graph of one layer."""
    node = helper.make_node(operator, ["x", name], ["y"])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, weight.shape[0]])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, weight.shape[1]])
    graph = helper.make_graph([node], "g", [x], [y], [onnx.numpy_helper.from_array(weight, name)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_layer_computes_in_float32_with_the_rounded_weight() -> None:
    weight = RNG.normal(size=(32, 16)).astype(np.float32)
    model = graph_of(weight)
    store_half_weights(model)
    assert model.graph.initializer[0].data_type == TensorProto.FLOAT16
    x = RNG.normal(size=(5, 32)).astype(np.float32)
    (found,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    np.testing.assert_allclose(found, x @ weight.astype(np.float16).astype(np.float32), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("weight", "name"),
    [
        (np.full((32, 16), 7e4, np.float32), "weight"),  # more than float16 can represent
        (np.ones((4, 4), np.float32), "weight"),
        (np.ones((32, 16), np.float32), "checks.familiarity.basis"),
    ],
)
def test_weights_that_stay_in_float32(weight: np.ndarray, name: str) -> None:
    model = graph_of(weight, name=name)
    store_half_weights(model)
    assert [tensor.data_type for tensor in model.graph.initializer] == [TensorProto.FLOAT]


def test_the_rounding_follows_scales_and_transposes_of_the_export() -> None:
    """A graph may hold a weight that is scaled by its batch norm, or transposed under another name."""
    layers = nn.Linear(32, 16), nn.Linear(16, 32)
    network = nn.Sequential(*layers)
    scaled, other = (layer.weight.detach().numpy() for layer in layers)
    factors = RNG.uniform(0.1, 3, (16, 1)).astype(np.float32)
    for weight, name, index in ((scaled * factors, "0.weight", 0), (other.T.copy(), "val_3", 1)):
        copied = rounded_network(network, graph_of(weight, name=name))
        rounded = copied.state_dict()[f"{index}.weight"].numpy()
        half = weight.astype(np.float16).astype(np.float32)
        np.testing.assert_allclose(rounded * factors if index == 0 else rounded.T, half, rtol=2e-7)
    with pytest.raises(UserError, match=r"computed val_4 from several parameters: use --weights fp32"):
        rounded_network(network, graph_of(np.ones((32, 16), np.float32), name="val_4"))


def test_an_export_with_float16_weights(
    run: Path, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Classifier(model_file, "cpu")
    size = model_file.stat().st_size
    same_graph(run, monkeypatch)
    export(run, [], "fp16")
    after = Classifier(model_file, "cpu")
    assert model_file.stat().st_size < 0.6 * size < MOST
    assert before.info.weights == "fp32" and after.info.weights == "fp16" and after.lists_known_images
    rounding = after.info.rounding
    assert rounding is not None and f"on {rounding.images} validation images" in capsys.readouterr().out
    pictures = [RNG.integers(0, 256, (90, 120 + i, 3), dtype=np.uint8) for i in range(4)]
    difference = float(np.abs(before(pictures) - after(pictures)).max())
    assert 0 < difference < 5e-3 and 0 < rounding.largest_difference < 5e-3
    card = (run / "MODEL_CARD.md").read_text()
    assert f"with float32 weights. Compared with these, {rounding}" in card and after.digest in card
    assert not list(run.glob(".model*"))

    quant_pre_process(model_file, tmp_path / "whole.onnx", skip_symbolic_shape=True)
    quantize_dynamic(tmp_path / "whole.onnx", tmp_path / "int8.onnx")
    quantized = Classifier(tmp_path / "int8.onnx", "cpu")
    assert quantized.quantized and quantized.info == after.info
    assert (tmp_path / "int8.onnx").stat().st_size < 0.7 * model_file.stat().st_size


def test_files_without_the_key_hold_float32_weights(model_file: Path) -> None:
    model = onnx.load(model_file)
    props = {entry.key: entry.value for entry in model.metadata_props if entry.key not in ("weights", "rounding")}
    del model.metadata_props[:]
    helper.set_model_props(model, props)
    onnx.save(model, model_file)
    info = Classifier(model_file, "cpu").info
    assert info.weights == "fp32" and info.rounding is None


def test_the_option_is_checked(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(run), "--weights", "int8"])
    assert "invalid choice: 'int8'" in capsys.readouterr().err

"""The metadata of an .onnx file, edited without onnx."""

import onnx
import pytest
from onnx import TensorProto, helper

from dermrw.inference.model_props import read_props, with_props


def content() -> bytes:
    one = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [one], [one])
    model = helper.make_model(graph, producer_name="test", opset_imports=[helper.make_opsetid("", 18)])
    helper.set_model_props(model, {"a": "1", "é": "x" * 300})
    return bytes(model.SerializeToString())


def test_props_are_replaced_and_the_rest_is_kept() -> None:
    before = content()
    assert read_props(before) == {"a": "1", "é": "x" * 300}
    after = with_props(before, {"é": "y" * 20_000, "": ""})
    assert read_props(after) == {"é": "y" * 20_000, "": ""}
    found, expected = onnx.load_model_from_string(after), onnx.load_model_from_string(before)
    assert {entry.key: entry.value for entry in found.metadata_props} == read_props(after)
    del found.metadata_props[:], expected.metadata_props[:]
    assert found == expected
    assert with_props(before, {}) == expected.SerializeToString()


def test_damaged_files_are_refused() -> None:
    for damaged in (content()[:-1], b"\x0b", b"\xff" * 20):
        with pytest.raises(ValueError, match=r"truncated|wire type"):
            read_props(damaged)

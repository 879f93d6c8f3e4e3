"""float16 weights in a model file: half the size, and all computation stays in float32.

The weights of convolutions and linear layers are stored as float16, each followed by a `Cast` to float32. ONNX Runtime
computes these casts once, when it loads the file. Biases, batch norm and the checks for refusal stay in float32.
"""

import copy
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import onnx
import onnx.numpy_helper
import torch
from torch import nn

from dermrw.errors import UserError
from dermrw.inference.classifier import Classifier
from dermrw.inference.model_file import Rounding

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
EXCLUDED = re.compile(r"(^|\.)checks\.")  # the distance of the checks is a difference of large sums
CAST = "/float32"  # ending of the name of a weight after its Cast
LEAST = 256  # numbers in a weight that is worth a Cast

Pixels = npt.NDArray[np.uint8]
Network = TypeVar("Network", bound=nn.Module)


def _weights(model: onnx.ModelProto) -> Iterator[tuple[onnx.TensorProto, npt.NDArray[np.float32]]]:
    """Yields the float32 weights of the layers that float16 can represent without overflow."""
    used = {name for node in model.graph.node if node.op_type in LAYERS for name in node.input}
    for tensor in model.graph.initializer:
        if tensor.name not in used or tensor.data_type != onnx.TensorProto.FLOAT or EXCLUDED.search(tensor.name):
            continue
        values = onnx.numpy_helper.to_array(tensor)
        if values.ndim > 1 and values.size >= LEAST and np.abs(values).max() <= np.finfo(np.float16).max:
            yield tensor, values


def store_half_weights(model: onnx.ModelProto) -> None:
    """Stores the weights of convolutions and linear layers as float16, each with a `Cast` to float32 behind it."""
    graph = model.graph
    casts = []
    renamed = {}
    for tensor, values in _weights(model):
        name = tensor.name
        renamed[name] = name + CAST
        casts.append(onnx.helper.make_node("Cast", [name], [name + CAST], name + CAST, to=onnx.TensorProto.FLOAT))
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), name))
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model, full_check=True)


def rounded_network(network: Network, model: onnx.ModelProto) -> Network:
    """Returns a copy of a network with the weights that `store_half_weights` stores, for comparison with the file.

    The export may have multiplied a convolution's weight by the scale of the batch norm after it. So each parameter is
    multiplied by the relative change that rounding makes in the graph.

    Args:
        network: the network.
        model: its graph, with float32 weights.

    Raises:
        UserError: a weight of the graph is not a parameter of the network.
    """
    rounded = copy.deepcopy(network)
    parameters = dict(rounded.named_parameters())
    changed = set()
    for tensor, values in _weights(model):
        exact = values.astype(np.float64)
        ratio = np.divide(values.astype(np.float16), exact, out=np.ones_like(exact), where=exact != 0)
        parameter, transposed = _parameter_of(tensor.name.removesuffix("/transposed"), values, parameters)
        if id(parameter) in changed:
            continue  # a weight that the graph stores both ways
        changed.add(id(parameter))
        factor = torch.from_numpy(np.ascontiguousarray(ratio.T if transposed else ratio))
        with torch.no_grad():
            parameter.copy_(parameter.double() * factor.view(parameter.shape))
    return rounded


def _parameter_of(
    name: str, values: npt.NDArray[np.float32], parameters: dict[str, nn.Parameter]
) -> tuple[nn.Parameter, bool]:
    """Returns the parameter that a weight of the graph is, and whether the graph holds its transpose.

    A constant that the exporter computed, such as a transpose, has a name of its own. It is found by its values.
    """
    own = parameters.get(name)
    if own is not None:
        return own, tuple(own.shape) != values.shape or _is_transpose(own, values)
    for parameter in parameters.values():
        if _is_transpose(parameter, values):
            return parameter, True
        if parameter.numel() == values.size and np.array_equal(parameter.detach().numpy().ravel(), values.ravel()):
            return parameter, False
    raise UserError(
        f"the weights of this network can't be stored as fp16, because the export computed {name} from several "
        "parameters: use --weights fp32"
    )


def _is_transpose(parameter: nn.Parameter, values: npt.NDArray[np.float32]) -> bool:
    return parameter.ndim == 2 and values.ndim == 2 and np.array_equal(parameter.detach().numpy().T, values)


def compare_precisions(whole: Path, half: Path, pictures: Sequence[Pixels]) -> Rounding:
    """Compares the answers of a file with float16 weights with those of the same network with float32 weights.

    Args:
        whole: the model file with float32 weights.
        half: the one with float16 weights.
        pictures: images uint8 `[H, W, 3]` of any size.
    """
    classifiers = [Classifier(path, "cpu") for path in (whole, half)]
    largest, referrals, refusals = 0.0, 0, 0
    for picture in pictures:
        exact, rounded = (classifier.explain(picture) for classifier in classifiers)
        largest = max(largest, float(np.abs(exact.probabilities - rounded.probabilities).max()))
        if (exact.verdict.refused is None) != (rounded.verdict.refused is None):
            refusals += 1
        elif exact.verdict.triage != rounded.verdict.triage:
            referrals += 1
    return Rounding(
        images=len(pictures), largest_difference=largest, referrals_changed=referrals, refusals_changed=refusals
    )

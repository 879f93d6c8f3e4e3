"""Builds the .onnx graph of a network and checks that ONNX Runtime agrees with torch."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx.numpy_helper
import torch
from onnx import compose

from dermrw.decisions.refusal import ALL_CHECKS
from dermrw.errors import UserError
from dermrw.images.preprocess import content, network_pixels
from dermrw.inference.classifier import Classifier
from dermrw.inference.model_file import INPUT, OUTPUTS, ModelInfo

from .backbone_head import logits_and_map
from .network import Averaged, Exported
from .pillow_resize import resize_graph
from .timm_parts import require_equal

OPSET = 20
# Largest accepted difference: absolute for a probability; relative to the largest value for the activation map and the
# embedding; for a check, relative to its limit or its value, whichever is greater. `refusal.fit_limits` leaves the same
# margin at each limit.
TOLERANCE = 1e-4
BATCHES = (1, 2, 5)
LEAST_UNIT = 1e-3  # unit of a check whose limit and value are both about 0

Pixels = npt.NDArray[np.uint8]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides the exporter's progress and its warnings about torchvision's own code."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def build(network: Exported | Averaged, info: ModelInfo) -> onnx.ModelProto:
    """Returns the whole graph with metadata, from images of any size to the outputs."""
    example = torch.zeros(2, info.size, info.size, 3, dtype=torch.uint8)
    noise = torch.randn(2, 3, info.size, info.size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for member in network.members:
            require_equal(member.model, logits_and_map(member.parts, noise)[0], noise, info.backbone)
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # attention's fused kernel has no ONNX form
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                input_names=["pixels"],
                output_names=list(OUTPUTS),
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
    assert program is not None
    net = program.model_proto
    resize = resize_graph(info.size, info.crop, info.interpolation)
    resize = compose.add_prefix(resize, "resize/")
    resize.ir_version = net.ir_version
    whole = compose.merge_models(
        resize, net, [(resize.graph.output[0].name, "pixels")], outputs=list(OUTPUTS), producer_name="dermrw"
    )
    _rename_input(whole, INPUT)
    make_quantizable(whole)
    remove_exporter_notes(whole)
    onnx.helper.set_model_props(whole, info.to_props())
    onnx.checker.check_model(whole, full_check=True)
    return whole


def remove_exporter_notes(model: onnx.ModelProto) -> None:
    """Removes what the exporter noted beside the graph: above all the stack trace of each node.

    No user needs these notes. In the file of three averaged networks they take 2 MB, and they name folders of the
    machine that exported it.
    """
    graph = model.graph
    parts = [model, graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output]
    for function in model.functions:
        parts += [function, *function.node]
    for part in parts:
        del part.metadata_props[:]
        part.doc_string = ""


def make_quantizable(model: onnx.ModelProto) -> None:
    """Changes what ONNX Runtime's `quantize_dynamic` does not accept; the outputs stay the same.

    - A second entry of an operator set, which `merge_models` leaves, is removed.
    - The shapes of constants are removed. The quantization transposes constants without changing these shapes.
    - A constant that several nodes use is transposed here if `Gemm` transposes it (transB=1). The quantization would
      transpose it once for each node.
    """
    versions = {(opset.domain, opset.version) for opset in model.opset_import}
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in sorted(versions))
    graph = model.graph
    constants = {constant.name: constant for constant in graph.initializer}
    shapes = [shape for shape in graph.value_info if shape.name not in constants]
    del graph.value_info[:]
    graph.value_info.extend(shapes)

    for name, constant in constants.items():
        users = [node for node in graph.node if name in node.input]
        flags = {
            node.name: flag
            for node in users
            if node.op_type == "Gemm" and node.input[1] == name
            for flag in node.attribute
            if flag.name == "transB" and flag.i
        }
        if not flags or len(users) == 1:
            continue
        transposed = np.ascontiguousarray(onnx.numpy_helper.to_array(constant).T)
        graph.initializer.append(onnx.numpy_helper.from_array(transposed, f"{name}/transposed"))
        for node in users:
            if node.name in flags:
                flags[node.name].i = 0
                node.input[1] = f"{name}/transposed"
        if not any(name in node.input for node in graph.node):
            graph.initializer.remove(constant)


def _rename_input(model: onnx.ModelProto, name: str) -> None:
    """Renames the only input of the graph."""
    old = model.graph.input[0].name
    model.graph.input[0].name = name
    for node in model.graph.node:
        node.input[:] = [name if i == old else i for i in node.input]


def check(path: Path, network: Exported | Averaged, pictures: Sequence[Pixels]) -> float:
    """Compares ONNX Runtime with torch on images uint8 `[H, W, 3]` of any size; returns the largest difference.

    The graph processes each image, cut to its field of view, and, in batches of `BATCHES`, the evaluation pixels.
    torch processes only the evaluation pixels. Differences are relative to the units of `TOLERANCE`.

    Raises:
        UserError: a difference is larger than `TOLERANCE`.
    """
    classifier = Classifier(path, "cpu")
    framing, size = classifier.framing, classifier.info.size
    contents = [content(picture, framing) for picture in pictures]
    pixels = np.stack([network_pixels(image, size, framing) for image in contents])
    with torch.no_grad():
        expected = [o.numpy() for o in network(torch.from_numpy(pixels))]
    limits = np.abs([classifier.info.limits[name] for name in ALL_CHECKS[: len(classifier.info.limits)]])
    # the unit of a difference for each output in the order of `OUTPUTS`: one number or one per value
    units: list[npt.ArrayLike] = [1.0, *(max(1.0, float(np.abs(values).max())) for values in expected[1:3])]
    units.append(np.maximum(np.maximum(np.abs(expected[3]), limits), LEAST_UNIT))
    worst = 0.0

    def compare(found: Sequence[npt.NDArray[np.float32]], rows: slice) -> None:
        nonlocal worst
        for name, ours, theirs, unit in zip(OUTPUTS, found, expected, units, strict=True):
            unit_of_rows = np.broadcast_to(unit, theirs.shape)[rows]
            difference = float((np.abs(ours - theirs[rows]) / unit_of_rows).max())
            if not difference <= TOLERANCE:  # NaN counts as a difference
                # scores fitted by version 0.2 and before may be ill-conditioned
                fix = "fit the checks again with `make eval`, or " if name == "checks" else ""
                raise UserError(
                    f"no model was written, because ONNX Runtime and torch differ by {difference:.1e} in {name}: "
                    f"{fix}report this with the backbone and the versions of both"
                )
            worst = max(worst, difference)

    for i, image in enumerate(contents):
        compare(classifier.run(np.asarray(image)[None], *OUTPUTS), slice(i, i + 1))
    for batch in BATCHES:
        for start in range(0, len(pixels), batch):
            rows = slice(start, start + batch)
            compare(classifier.run(pixels[rows], *OUTPUTS), rows)
    return worst

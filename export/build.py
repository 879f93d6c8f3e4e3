"""The .onnx graph of a network, and the check that ONNX Runtime agrees with torch on it."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import compose

from dermrw.decisions.refusal import CHECKS
from dermrw.errors import UserError
from dermrw.inference.classifier import Classifier
from dermrw.inference.model_file import INPUT, OUTPUTS, ModelInfo

from .network import Exported
from .pillow_resize import resize_graph

OPSET = 20
# of a probability; of the activation map and the embedding relative to their largest value; of a check relative to the
# limit of its refusal, or to its value where that is greater. `refusal.fit_limits` leaves as much room at each limit.
TOLERANCE = 1e-4
BATCHES = (1, 2, 5)
LEAST_UNIT = 1e-3  # of a check whose limit and value are both about 0

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


def build(network: Exported, info: ModelInfo) -> onnx.ModelProto:
    """The whole graph, from pictures of any size to the three outputs, with its metadata."""
    example = torch.zeros(2, info.size, info.size, 3, dtype=torch.uint8)
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
    resize = resize_graph(info.size)
    resize = compose.add_prefix(resize, "resize/")
    resize.ir_version = net.ir_version
    whole = compose.merge_models(
        resize, net, [(resize.graph.output[0].name, "pixels")], outputs=list(OUTPUTS), producer_name="dermrw"
    )
    _rename_input(whole, INPUT)
    del whole.metadata_props[:]  # the exporter's
    onnx.helper.set_model_props(whole, info.to_props())
    onnx.checker.check_model(whole, full_check=True)
    return whole


def _rename_input(model: onnx.ModelProto, name: str) -> None:
    """Gives the graph's only input this name."""
    old = model.graph.input[0].name
    model.graph.input[0].name = name
    for node in model.graph.node:
        node.input[:] = [name if i == old else i for i in node.input]


def check(path: Path, network: Exported, pictures: Sequence[Pixels]) -> float:
    """Compares ONNX Runtime with torch on pictures uint8 `[H, W, 3]` of any sizes; returns the largest difference.

    Each picture goes to the graph as it is and, in batches of `BATCHES`, as the evaluation pixels; torch sees the
    evaluation pixels alone. Differences are relative to the units of `TOLERANCE`.

    Raises:
        UserError: a difference is larger than `TOLERANCE`.
    """
    classifier = Classifier(path, "cpu")
    pixels = np.stack([classifier.pixels(picture) for picture in pictures])
    with torch.no_grad():
        expected = [o.numpy() for o in network(torch.from_numpy(pixels))]
    limits = np.abs([classifier.info.limits[name] for name in CHECKS])
    # of each output, in the order of `OUTPUTS`: the unit of a difference, one number or one per value
    units: list[npt.ArrayLike] = [1.0, *(max(1.0, float(np.abs(values).max())) for values in expected[1:3])]
    units.append(np.maximum(np.maximum(np.abs(expected[3]), limits), LEAST_UNIT))
    worst = 0.0

    def compare(found: Sequence[npt.NDArray[np.float32]], rows: slice) -> None:
        nonlocal worst
        for name, ours, theirs, unit in zip(OUTPUTS, found, expected, units, strict=True):
            unit_of_rows = np.broadcast_to(unit, theirs.shape)[rows]
            difference = float((np.abs(ours - theirs[rows]) / unit_of_rows).max())
            if not difference <= TOLERANCE:  # not a number is a difference, too
                raise UserError(
                    f"ONNX Runtime and torch differ by {difference:.1e} in {name}: no model was written; "
                    "please report this backbone and these versions"
                )
            worst = max(worst, difference)

    for i, picture in enumerate(pictures):
        compare(classifier.run(picture[None], *OUTPUTS), slice(i, i + 1))
    for batch in BATCHES:
        for start in range(0, len(pixels), batch):
            rows = slice(start, start + batch)
            compare(classifier.run(pixels[rows], *OUTPUTS), rows)
    return worst

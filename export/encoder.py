"""The encoder of a run or of a model file: the network without its head, as safetensors.

The tensors have the names of torchvision's or timm's network, so `load_state_dict(…, strict=False)` and
`model.weights=FILE` read them.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import torch
from torch import nn

from dermrw.config import Model
from dermrw.datasets.sample_drawing import draw_lesion
from dermrw.diagnoses import DX
from dermrw.errors import UserError
from dermrw.files import write_atomic
from dermrw.inference.classifier import Classifier
from dermrw.inference.known_images import KEY
from dermrw.inference.model_file import OUTPUTS, ModelInfo
from dermrw.models import Head, backbones, build_model, embed
from dermrw.network_input import normalisation_of, to_input
from dermrw.timm_models import is_timm
from dermrw.weights import encoder_state, safetensors_bytes

TOLERANCE = 1e-4  # of an embedding, relative to the largest value
PREFIX = "model."  # of the network in `export.network.Exported`; in `Averaged` after `runs.NUMBER.`


def write_encoder(
    model: nn.Module, path: Path, backbone: str, size: int, origin: str, licence: str, images: Mapping[str, str]
) -> None:
    """Writes the encoder of a network as safetensors, with a description in the file's metadata.

    Args:
        model: the network, from `build_model`.
        path: the file to write.
        backbone: the name of the network.
        size: side in pixels of the images that it was trained on.
        origin: the run or the model file, and its digest.
        licence: of the weights.
        images: entry of the metadata with the images that they were trained on, so that they judge no later run.
    """
    head = Head(model)
    metadata = {
        "backbone": backbone, "size": str(size), "embedding": str(head.linear.in_features), "origin": origin,
        "licence": licence, "colour_constancy": normalisation_of(model).colour_constancy,
    }  # fmt: skip
    write_atomic(path, safetensors_bytes(encoder_state(model, head.name), {**metadata, **images}))


def encoder_of_model_file(path: Path, out: Path) -> tuple[int, float]:
    """Writes the encoder of a model file.

    A model of several views stores each parameter under its name in torch. In most other model files, the export has
    merged batch norm into the convolutions, and their encoder can't be recovered. Of an average, the encoder of the
    first run is written. The embeddings of drawn pictures are compared before the encoder is written.

    Returns:
        the number of runs that the file averages (0 for a single one), and the largest difference of the embeddings
        from ONNX Runtime's.

    Raises:
        UserError: the model file can't be read, lacks a parameter, or has other embeddings than torch.
    """
    classifier = Classifier(path, "cpu")
    info = classifier.info
    model = network_of_model_file(path, info, out)
    backbone = info.runs[0].backbone if info.runs else info.backbone
    worst = _difference(model, classifier)
    if worst > TOLERANCE:
        raise UserError(
            f"the embeddings of torch differ from those of {path} by {worst:.0e}: the encoder isn't written"
        )
    part = f", the first of {len(info.runs)} networks" if info.runs else ""
    origin = f"{info.name} (sha256 {classifier.digest}){part}"
    known = classifier.known_images()
    images = {} if known is None else {KEY: known.to_prop()}
    write_encoder(model, out, backbone, info.size, origin, info.licence, images)
    return len(info.runs), worst


def network_of_model_file(
    path: Path, info: ModelInfo, out: Path, number: int = 0, with_head: bool = False
) -> nn.Module:
    """Returns a network with the parameters that a model file stores.

    Args:
        path: the model file.
        info: its metadata.
        out: the encoder to write, for messages.
        number: of the run, if the file averages several.
        with_head: its head is restored, too; otherwise it is random.

    Raises:
        UserError: the backbone is unknown, or the file lacks a parameter or is quantized.
    """
    backbone = info.runs[number].backbone if info.runs else info.backbone
    prefix = f"runs.{number}.{PREFIX}" if info.runs else PREFIX
    if backbone not in backbones() and not is_timm(backbone):
        raise UserError(f"{path} has the unknown backbone {backbone}: export it with this version of dermrw")
    settings = Model(backbone=backbone, weights="none", colour_constancy=info.colour_constancy)
    model, _ = build_model(settings, len(info.codes))
    skipped = () if with_head else (f"{Head(model).name}.",)
    stored = {c.name: c for c in onnx.load(path).graph.initializer}
    state = model.state_dict()
    for name, tensor in state.items():
        if name.startswith(skipped) or name.endswith("num_batches_tracked"):
            continue
        if f"{prefix}{name}" in stored:
            value = onnx.numpy_helper.to_array(stored[f"{prefix}{name}"])
        elif f"{prefix}{name}/transposed" in stored:
            value = onnx.numpy_helper.to_array(stored[f"{prefix}{name}/transposed"]).T
        else:
            layer = model.get_submodule(name.rpartition(".")[0])
            merged = ", because its export merged batch norm into the convolutions" * isinstance(layer, nn.BatchNorm2d)
            raise UserError(
                f"{path} does not contain {name} of {backbone}{merged}: write the encoder from the run, with "
                f"`dermrw export --encoder {out} RUN`"
            )
        if value.dtype == np.float16:  # as `export --weights fp16` stores it
            value = value.astype(np.float32)
        if value.shape != tuple(tensor.shape) or value.dtype != np.float32:
            raise UserError(
                f"{path} stores {name} as {value.dtype} {list(value.shape)}: name a file that isn't quantized"
            )
        state[name] = torch.from_numpy(value.copy())
    model.load_state_dict(state)
    return model


def _difference(model: nn.Module, classifier: Classifier) -> float:
    """Returns the largest difference between torch's embeddings and the model file's on drawn pictures."""
    rng = np.random.default_rng
    pictures = [draw_lesion(code, rng([i, 0]), rng([i, 1]), 300, 400) for i, code in enumerate(DX)]
    pixels = np.stack([classifier.pixels(picture) for picture in pictures])
    x = to_input(torch.from_numpy(pixels), torch.device("cpu"), normalisation_of(model))
    ours = embed(model, x).numpy()
    theirs = classifier.run(pixels, *OUTPUTS)[2]
    if classifier.info.runs:  # unit vectors, one after the other
        ours /= np.linalg.norm(ours, axis=1, keepdims=True)
        theirs = theirs[:, : ours.shape[1]]
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-9))

"""Weights of a backbone from a file: a state dict of `torch.save`, or safetensors.

Such files differ in the prefix of their names and in their head. Both are recognised: the prefix is removed, and the
head is left out, because the classes have a head of their own.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dermrw.errors import UserError, install_command

PREFIXES = ("module.", "model.", "backbone.", "encoder.", "network.", "_orig_mod.")
NESTED = ("state_dict", "model_state_dict", "model")  # keys under which training programs store a state dict


class WeightsFile(NamedTuple):
    """The content of a weights file."""

    tensors: dict[str, Tensor]
    metadata: Mapping[str, str]  # of a safetensors file, such as one of `dermrw export --encoder`
    sha256: str
    classes: tuple[str, ...] | None = None  # of a run's checkpoint, in the order of the head


def read_weights(path: Path) -> WeightsFile:
    """Reads a weights file of either format, without executing code in it.

    Raises:
        UserError: the file is absent, or of another format.
    """
    if not path.is_file():
        raise UserError(f"model.weights={path} is not a file: name one, or set it to imagenet or none")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if is_safetensors(path):
        return WeightsFile(*_read_safetensors(path), digest)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        # torch raises errors of many types on other files, and some messages suggest executing code in the file
        raise UserError(
            f"model.weights={path} must be a file that torch.save wrote from a state dict alone, or a safetensors file"
        ) from None
    classes = state.get("classes") if isinstance(state, Mapping) else None
    for key in NESTED:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, Mapping) else {}
    if not tensors:
        raise UserError(f"model.weights={path} contains no state dict: save one with torch.save(model.state_dict(), …)")
    return WeightsFile(tensors, {}, digest, tuple(map(str, classes)) if isinstance(classes, list) else None)


def is_safetensors(path: Path) -> bool:
    """Whether the file begins like safetensors: the length of a JSON object, then the object."""
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise UserError(
            f"model.weights={path} requires the Python package safetensors: run `{install_command('train')}`"
        ) from None
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"model.weights={path} is damaged ({reason}): download or write it again") from None


def without_prefix(tensors: Mapping[str, Tensor], wanted: set[str]) -> tuple[dict[str, Tensor], str]:
    """Returns the tensors by their names in the network `wanted`, and the prefix that was removed from their names.

    Of the prefixes in `PREFIXES` and their combinations, it is the one that leaves the most names of the network.
    """
    best, removed = dict(tensors), ""
    candidates = [""]
    while candidates:
        prefix = candidates.pop()
        found = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        if len(wanted & set(found)) > len(wanted & set(best)):
            best, removed = found, prefix
        candidates += [prefix + p for p in PREFIXES if any(name.startswith(p) for name in found)]
    return best, removed


def load_backbone(
    network: nn.Module,
    head: str,
    backbone: str,
    path: Path,
    colour_constancy: str,
    kept_classes: Sequence[str] | None = None,
) -> str:
    """Loads all weights of a network but its head from a file, and prints what was left out or differs.

    Args:
        network: the network.
        head: the name of its last linear layer.
        backbone: the name of the network, for messages.
        path: the weights file.
        colour_constancy: the config's key.
        kept_classes: load the head, too, which must be for these classes; None: leave it out.

    Returns:
        the file's name and SHA-256 digest.

    Raises:
        UserError: the file can't be read, it lacks a tensor of the network or has it in another shape, or its head is
            for other classes.
    """
    file = read_weights(path)
    if kept_classes is not None and file.classes != tuple(kept_classes):
        has = f"a head for the classes {', '.join(file.classes)}" if file.classes else "no head whose classes it states"
        raise UserError(
            f"model.weights={path} has {has}, and model.keep_head needs one for {', '.join(kept_classes)}: leave it "
            "out, or name the best.pt of a run with these classes"
        )
    state: dict[str, Any] = network.state_dict()
    without = () if kept_classes is not None else (f"{head}.",)
    wanted = {name: tensor for name, tensor in state.items() if not name.startswith(without)}
    stated = file.metadata.get("backbone", backbone)
    if stated != backbone:
        raise UserError(
            f"model.weights={path} holds the weights of {stated}: set model.backbone={stated}, or name "
            f"weights of {backbone}"
        )
    tensors, prefix = without_prefix(file.tensors, set(wanted))
    remedy = f"name weights of model.backbone={backbone}"
    # counters of batch norm, which some formats leave out; only a cumulative average uses them
    lacking = [name for name in wanted if name not in tensors and not name.endswith("num_batches_tracked")]
    if lacking and all(name.startswith(f"{head}.") for name in lacking):
        raise UserError(
            f"model.weights={path} has another kind of head, such as the cosine head of ldam_drw: leave out "
            "model.keep_head"
        )
    if lacking:
        raise UserError(
            f"model.weights={path} lacks {len(lacking)} of the {len(wanted)} tensors of the network, such as "
            f"{lacking[0]}: {remedy}"
        )
    other = [name for name in wanted if name in tensors and tensors[name].shape != wanted[name].shape]
    if other:
        shapes = f"{list(tensors[other[0]].shape)}, not {list(wanted[other[0]].shape)}"
        raise UserError(f"model.weights={path} has {other[0]} of shape {shapes}: {remedy}")
    for name in wanted.keys() & tensors.keys():
        fault = _fault(tensors[name]) if wanted[name].is_floating_point() else None
        if fault:
            raise UserError(f"model.weights={path} has {name}, which {fault}: {remedy}")
    left_out = [name for name in tensors if name not in wanted]
    head_parent, parts = head.partition(".")[0], {name.partition(".")[0] for name in wanted}
    deeper = [name for name in left_out if name.partition(".")[0] in parts - {head_parent}]
    if deeper:  # such as the further blocks of a ResNet-101 for a ResNet-50
        raise UserError(
            f"model.weights={path} has {len(deeper)} tensors that the network lacks, such as {deeper[0]}: {remedy}"
        )
    network.load_state_dict({name: tensors[name] for name in wanted if name in tensors}, strict=False)
    notes = [f"names without the prefix {prefix!r}"] if prefix else []
    notes += [f"without {', '.join(left_out[:4])}{' …' if len(left_out) > 4 else ''}"] if left_out else []
    if kept_classes is not None:
        notes.append("with its head")
    # dermrw's own files have a key backbone; older ones have no colour_constancy, and were trained without it
    trained = file.metadata.get("colour_constancy", "none" if "backbone" in file.metadata else colour_constancy)
    if trained != colour_constancy:
        notes.append(f"trained with model.colour_constancy={trained}, not {colour_constancy}")
    if notes:
        print(f"Weights of {backbone} from {path}: {'; '.join(notes)}", flush=True)
    return f"{path.name} (sha256 {file.sha256[:12]})"


def _fault(tensor: Tensor) -> str | None:
    """Why a tensor can't be a weight, or None."""
    if tensor.is_meta or tensor.layout is not torch.strided:
        return "holds no dense numbers"
    if not tensor.is_floating_point():
        return f"is of type {str(tensor.dtype).removeprefix('torch.')}, such as that of a quantized network"
    return None if tensor.isfinite().all() else "has values that are not finite"


def encoder_state(network: nn.Module, head: str) -> dict[str, Tensor]:
    """Returns the state dict of a network without its last linear layer, as contiguous tensors on the CPU."""
    state = network.state_dict()
    return {name: t.detach().cpu().contiguous().clone() for name, t in state.items() if not name.startswith(f"{head}.")}


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Returns the content of a safetensors file."""
    from safetensors.torch import save

    return save(dict(tensors), {"format": "pt", **metadata})


def safetensors_metadata(path: Path) -> dict[str, Any]:
    """Returns the metadata in the header of a safetensors file; none if the header is damaged."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            metadata = json.loads(file.read(length)).get("__metadata__", {})
        except (ValueError, AttributeError, RecursionError):  # a damaged file, which `read_weights` refuses
            return {}
    return metadata if isinstance(metadata, dict) else {}

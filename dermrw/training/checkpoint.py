"""Checkpoints: written atomically, and read without executing any code in them."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import torch

from dermrw.errors import UserError
from dermrw.files import open_regular, replacing

# the keys of every checkpoint and their types; weights_only=True reads only plain values and tensors
KEYS: dict[str, type | tuple[type, ...]] = {
    "model": dict, "optimizer": dict, "schedule": dict, "objective": dict, "classes": list, "origin": str,
    "epoch": int, "step": int, "best": float, "best_epoch": int, "all_zero": float, "seconds": (int, float),
    "rows": list, "log_offset": int, "random": torch.Tensor, "random_cuda": list,
}  # fmt: skip
RESTORE = "restore it, or start a new run"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes the state with `torch.save`, atomically.

    Raises:
        UserError: the file can't be written. The previous checkpoint is kept.
    """
    try:
        with replacing(path) as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:
        # torch's zip writer reports a full disk as a RuntimeError about positions
        reason = getattr(error, "strerror", None) or "is the disk full?"
        onward = "resume from the previous checkpoint" if path.exists() else "start again"
        raise UserError(
            f"the checkpoint {path} can't be written ({reason}): free some space, then repeat the command with "
            f"RUN={path.parent} to {onward}"
        ) from None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Returns the state that `save_checkpoint` wrote, with tensors on the CPU, and the SHA-256 of the file (`sha256`).

    Raises:
        UserError: the file is absent, damaged, or not a checkpoint of this version.
    """
    try:
        with open_regular(path) as file:  # both of one file, also if a training replaces it in the meantime
            digest = hashlib.sha256(file.read()).hexdigest()
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path}: train first, or name the run with RUN=runs/NAME") from None
    except Exception as error:
        # torch raises errors of many types on other files, and some messages suggest executing code in the file
        forbidden = isinstance(error, pickle.UnpicklingError)
        reason = "it contains more than tensors and plain values" if forbidden else "it is truncated or damaged"
        raise UserError(f"{path} is not a checkpoint of dermrw ({reason}): {RESTORE}") from None
    if not isinstance(state, dict):
        raise UserError(f"{path} is not a checkpoint of dermrw (it contains no state): {RESTORE}")
    for key, kind in KEYS.items():
        if not isinstance(state.get(key), kind):
            raise UserError(f"{path} is not a checkpoint of this version of dermrw (it lacks {key!r}): {RESTORE}")
    return {**state, "sha256": digest}

"""Checkpoints: written whole or not at all, read without executing anything in them."""

import os
from pathlib import Path
from typing import Any

import torch

from dermrw.errors import UserError


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file so that at any moment, a power cut included, it holds either its old or its new content."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path} can't be written ({error.strerror}): free some space or name another RUN") from None


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """`torch.save`, atomically."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        # torch's zip writer reports a full disk as a RuntimeError
        temporary.unlink(missing_ok=True)
        raise UserError(f"the checkpoint {path} can't be written: {' '.join(str(error).split())[:200]}") from None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state that `save_checkpoint` wrote, tensors on the CPU."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path}: train first, or name the run with RUN=runs/NAME") from None
    except Exception as error:
        # torch raises errors of many types on a foreign file
        raise UserError(f"{path} is not a checkpoint of dermrw: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(state, dict) or "model" not in state:
        raise UserError(f"{path} is not a checkpoint of dermrw: it holds no model")
    return state

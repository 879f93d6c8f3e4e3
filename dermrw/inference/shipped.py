"""The model file that is shipped with dermrw."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped_model() -> Path:
    """Returns the path of the model shipped with dermrw: inside the installed package, or in `app/` of a checkout."""
    installed = _PACKAGE / "app" / "model.onnx"
    return installed if installed.exists() else _PACKAGE.parent / "app" / "model.onnx"

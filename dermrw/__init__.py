"""dermrw: skin-lesion classification on HAM10000 by learning to reweight examples.

Importing this package imports none of its modules. Import from them directly, for instance
`from dermrw.reweight import reweighted_losses`, or `from dermrw import Classifier` to use an exported model.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dermrw.inference.classifier import Classifier as Classifier

__version__ = "0.3.0"


def __getattr__(name: str) -> Any:
    # loaded on demand (PEP 562): `import dermrw` stays fast, and training does not need ONNX Runtime
    if name == "Classifier":
        from dermrw.inference.classifier import Classifier

        return Classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

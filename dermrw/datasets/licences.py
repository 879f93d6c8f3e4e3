"""The licences of the data, which apply to a model that was trained on it."""

from pathlib import Path

from dermrw.config import Config

HAM_LICENCE = (
    "CC BY-NC 4.0, as its training data: HAM10000, ViDIR Group, Medical University of Vienna; Tschandl, Rosendahl, "
    "Kittler, Sci. Data 5:180161 (2018). For research, non-commercial. Not a medical device."
)
LICENCES = {
    "ham10000": HAM_LICENCE,
    "sample": "Apache-2.0, like dermrw, which drew its training images. It was not trained on images of skin.",
    "cifar10": "Trained on CIFAR-10 (Krizhevsky 2009), which has no stated licence: for research.",
    "table": "The licence of the training images applies. dermrw does not know it: ask whoever provided the images "
    "before you pass the model on.",
}


def licences_of(config: Config) -> tuple[str, ...]:
    """Returns a sentence or more on the licence of each data set that a run trains on."""
    extra = config.data.extra
    further = f"Also trained on images of {Path(extra).name[:200]}, whose licence applies, too." if extra else ""
    return (LICENCES[config.data.name], *([further] if further else []))

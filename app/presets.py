"""The prevalences that the page offers, each with its source."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dermrw.inference.model_file import ModelInfo

EQUAL, TRAINING, OWN = "equal", "training", "own"
# images of each diagnosis; Tschandl, Rosendahl, Kittler, Scientific Data 5:180161 (2018), table 1
HAM10000_IMAGES = {"mel": 1113, "nv": 6705, "bcc": 514, "akiec": 327, "bkl": 1099, "df": 115, "vasc": 142}
# melanomas among the images of the ISIC 2020 challenge; Rotemberg et al., Scientific Data 8:34 (2021)
ISIC_2020_MELANOMAS = 584 / 33_126


class Preset(NamedTuple):
    """A prevalence to choose."""

    key: str
    label: str
    source: str  # a sentence or two
    phrase: str  # as in "Probability at equal prevalence"
    shares: npt.NDArray[np.float64] | None  # [C]; None: equal


def presets(info: ModelInfo) -> tuple[Preset, ...]:
    """Returns the prevalences to choose; the first is the initial one. The clinical ones need HAM10000's classes."""
    total = sum(info.prevalence.values())
    training = np.array([info.prevalence[code] for code in info.codes]) / total
    common = int(training.argmax())
    category = "diagnosis" if info.is_ham10000 else "class"
    chosen = [
        Preset(EQUAL, "Equal", f"Each {category} is equally frequent.", "at equal prevalence", None),
        Preset(
            TRAINING,
            "Training data" if info.prevalence_images == "the training data" else "Refitted",
            f"{100 * training[common]:.0f} % {info.names[common]}, as in {info.prevalence_images}.",
            f"at {info.prevalence_images}’s prevalence",
            training,
        ),
    ]
    if info.is_ham10000:
        images = np.array([HAM10000_IMAGES[code] for code in info.codes], dtype=np.float64)
        melanoma = np.array(info.codes) == "mel"
        screening = np.where(
            melanoma, ISIC_2020_MELANOMAS, (1 - ISIC_2020_MELANOMAS) * images / images[~melanoma].sum()
        )
        chosen += [
            Preset(
                "specialist",
                "Specialist clinic",
                "Shares of HAM10000: 10,015 images from Vienna and Queensland, 11 % melanoma (Tschandl et al. 2018). "
                "They are shares of images, not of patients.",
                "at a specialist clinic’s prevalence",
                images / images.sum(),
            ),
            Preset(
                "screening",
                "Screening",
                "Melanoma 1.8 %, as in ISIC 2020 (584 of 33,126 images, Rotemberg et al. 2021). No reliable source "
                "has all seven diagnoses: the other six are in HAM10000’s proportions.",
                "at a screening prevalence",
                screening,
            ),
        ]
    return tuple(chosen)

"""What is minimised: plain losses, reweighting, and what it is measured against.

Three choices that go together in any way: who weighs the examples (`objective.name`), what one example costs
(`objective.loss`), and how often it is drawn (`objective.sampler`).
"""

import numpy as np

from dermrw.config import Config
from dermrw.objectives.baselines import FineTuneMeta, Mixup
from dermrw.objectives.interface import Batch as Batch
from dermrw.objectives.interface import Objective as Objective
from dermrw.objectives.meta_weight_net import MetaWeightNet
from dermrw.objectives.noise_weights import NoiseWeights
from dermrw.objectives.weighted import RandomWeights, Reweight

OBJECTIVES: dict[str, type[Objective]] = {
    "erm": Objective,
    "mixup": Mixup,
    "fine_tune_meta": FineTuneMeta,
    "random_weights": RandomWeights,
    "reweight": Reweight,
    "meta_weight_net": MetaWeightNet,
    "noise_weights": NoiseWeights,
}


def build_objective(config: Config, labels: np.ndarray, classes: int, steps: int) -> Objective:
    """What `objective=…` asks for: of a training set with these labels `[N]`, in a training of so many steps."""
    return OBJECTIVES[config.objective.name](config, labels, classes, steps)

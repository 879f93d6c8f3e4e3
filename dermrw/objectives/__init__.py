"""Training objectives: plain losses, reweighting, and the baselines that reweighting is compared with.

Three settings can be combined freely: the weighting of the examples (`objective.name`), the loss of one example
(`objective.loss`), and the sampling (`objective.sampler`).
"""

import numpy as np

from dermrw.config import Config
from dermrw.objectives.baselines import FineTuneMeta, Mixup
from dermrw.objectives.confident_learning import ConfidentLearning
from dermrw.objectives.interface import Batch as Batch
from dermrw.objectives.interface import Objective as Objective
from dermrw.objectives.label_posterior import LabelPosterior
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
    "label_posterior": LabelPosterior,
    "confident_learning": ConfidentLearning,
}


def build_objective(config: Config, labels: np.ndarray, classes: int, steps: int) -> Objective:
    """Returns the objective that the config names.

    Args:
        config: the config of the run.
        labels: labels of the training set `[N]`.
        classes: number of classes.
        steps: total number of training steps.
    """
    return OBJECTIVES[config.objective.name](config, labels, classes, steps)

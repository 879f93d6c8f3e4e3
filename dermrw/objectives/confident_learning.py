"""Confident learning (Northcutt, Jiang and Chuang, JAIR 70:1373-1411 (2021)): images with a suspect label do not train.

Which labels are suspect is decided by the package cleanlab, with its default rule (`prune_by_noise_rate`), from the
held-out predictions of `held_out`, by the head with the highest held-out likelihood. The paper predicts with networks
that are trained on parts of the data, which costs several trainings. This is the baseline for `label_posterior`, whose
weights come from the same predictions.
"""

import importlib.util

import numpy as np

from dermrw.errors import UserError, install_command
from dermrw.objectives.held_out import CrossValidation, Floats, HeldOutWeights, Labels, LabelWeights


def require_cleanlab() -> None:
    """Raises a `UserError` if the package cleanlab is not installed."""
    if importlib.util.find_spec("cleanlab") is None:
        raise UserError(
            "objective=confident_learning requires the Python package cleanlab: "
            f"run `{install_command('confident')}`, or choose another objective"
        )


def suspect_labels(labels: Labels) -> Floats:
    """Returns 1.0 for each label that cleanlab finds to be wrong, else 0.0 `[N]`."""
    from cleanlab.filter import find_label_issues

    present, y = np.unique(labels.y, return_inverse=True)  # cleanlab requires images of every class
    if len(present) == 1:
        return np.zeros(len(y))
    held_out = CrossValidation(labels)
    p = np.exp(held_out.log_probabilities(0.0, held_out.best_penalty()))[:, present]
    return np.asarray(find_label_issues(y, p / p.sum(1, keepdims=True), n_jobs=1), np.float64)


class ConfidentLearning(HeldOutWeights):
    """Weight 0 for images whose label is suspect, and the same weight for all others."""

    def estimate_labels(self, data: Labels) -> LabelWeights:
        """Returns 1 for the labels that are kept, and 0 for the others."""
        suspect = suspect_labels(data)
        share = float(suspect.mean())
        sentence = f"Confident learning finds {100 * share:.1f} % of the labels suspect: these images do not train"
        return LabelWeights(1 - suspect, share, sentence)

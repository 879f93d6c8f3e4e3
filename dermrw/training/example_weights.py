"""weights.csv: the mean weight of each training image over training."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from dermrw.errors import UserError

TEXTS = ("image_id", "lesion_id", "dx", "label")  # columns


def by_weight(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows of weights.csv with a column `relative`, sorted by it in ascending order.

    `relative` is the weight divided by the mean weight of the label's class. A class with a low mean weight would
    otherwise fill the first places, although its labels are right. Images that were never drawn are left out.
    """
    known = table.dropna(subset="weight")
    mean = known.groupby("label")["weight"].transform("mean")
    relative = (known["weight"] / mean.where(mean > 0)).fillna(0.0)
    return known.assign(relative=relative).sort_values("relative", kind="stable")


def wrong_in_lowest(ordered: pd.DataFrame, count: int) -> float:
    """Returns the share of wrong labels among the `count` images of the lowest relative weight.

    `ordered` is the result of `by_weight`.
    """
    wrong = (ordered["dx"] != ordered["label"]).to_numpy()
    return wrong_in_first(wrong, -ordered["relative"].to_numpy(), count)


def wrong_in_first(wrong: np.ndarray, suspicion: np.ndarray, count: int) -> float:
    """Returns the share of wrong labels among the `count` images of the highest score.

    Reweighting gives thousands of images a weight of zero. If images tie for the last places, the share of wrong labels
    among all tied images is used, which is the expected value of a random choice.
    """
    count = min(count, len(wrong))
    last = np.sort(suspicion)[-count]
    above, tied = suspicion > last, suspicion == last
    return float((wrong[above].sum() + (count - above.sum()) * wrong[tied].mean()) / count)


class Detection(NamedTuple):
    """How well a ranking of the training images finds wrong labels."""

    name: str
    auroc: float
    auroc_within_class: float  # mean over the classes that have right and wrong labels; 0.5 is chance
    precision: float  # share of wrong labels among the first images


def detection(name: str, wrong: np.ndarray, suspicion: np.ndarray, labels: np.ndarray, count: int) -> Detection:
    """Returns how well a score finds wrong labels.

    Args:
        name: of the score.
        wrong: whether each label is wrong, bool `[N]`, neither all nor none.
        suspicion: the score, high where the label may be wrong `[N]`.
        labels: the given labels `[N]`.
        count: number of images of the highest score for the precision.
    """
    overall, within = float(roc_auc_score(wrong, suspicion)), auroc_within_class(wrong, suspicion, labels)
    return Detection(name, overall, within, wrong_in_first(wrong, suspicion, count))


def auroc_within_class(wrong: np.ndarray, suspicion: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean AUROC over the classes of the labels that have right and wrong ones; 0.5 if there is none."""
    parts = [labels == label for label in np.unique(labels)]
    within = [roc_auc_score(wrong[p], suspicion[p]) for p in parts if 0 < wrong[p].sum() < p.sum()]
    return float(np.mean(within)) if within else 0.5


def wrong_share_of_class(wrong: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns for each image the share of wrong labels in the class of its label `[N]`: the class alone as a score."""
    return pd.Series(wrong.astype(float)).groupby(labels).transform("mean").to_numpy()


def read_weights(run: Path) -> pd.DataFrame:
    """Returns weights.csv of a run.

    Raises:
        UserError: the file is absent, because the run's objective has no example weights or no epoch has ended, or it
            can't be read.
    """
    try:
        return pd.read_csv(  # a class may be called NA
            run / "weights.csv", dtype=dict.fromkeys(TEXTS, str), keep_default_na=False, na_values={"weight": [""]}
        )
    except FileNotFoundError:
        raise UserError(
            f"{run} has no weights.csv: name a run that weights its examples (objective=label_posterior, "
            "confident_learning, reweight, noise_weights, meta_weight_net or random_weights) and has finished an epoch"
        ) from None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{run / 'weights.csv'} can't be read ({reason}): restore it, or name another run") from None

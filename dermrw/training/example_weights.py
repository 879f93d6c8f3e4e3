"""weights.csv: the mean weight of each training image over training."""

from pathlib import Path

import pandas as pd

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

    `ordered` is the result of `by_weight`. Reweighting gives thousands of images a weight of zero. If images tie for
    the last places, the share of wrong labels among all tied images is used, which is the expected value of a random
    choice.
    """
    wrong = (ordered["dx"] != ordered["label"]).to_numpy()
    count = min(count, len(ordered))
    relative = ordered["relative"].to_numpy()
    below, tied = relative < relative[count - 1], relative == relative[count - 1]
    return float((wrong[below].sum() + (count - below.sum()) * wrong[tied].mean()) / count)


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
            f"{run} has no weights.csv: name a run that weights its examples (objective=reweight, noise_weights, "
            "meta_weight_net or random_weights) and has finished an epoch"
        ) from None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{run / 'weights.csv'} can't be read ({reason}): restore it, or name another run") from None

"""Label noise: deliberately wrong training labels, to measure how well a method detects them."""

import numpy as np
import pandas as pd

# The class that each class is most easily confused with; for a malignant class a benign one, so that the error matters.
MISTAKEN_FOR = {
    "akiec": "bkl",
    "bcc": "akiec",
    "bkl": "mel",
    "df": "nv",
    "mel": "nv",
    "nv": "mel",
    "vasc": "nv",
}


def with_wrong_labels(table: pd.DataFrame, codes: tuple[str, ...], kind: str, rate: float, seed: int) -> np.ndarray:
    """Returns labels int `[N]` in which the fraction `rate` of each class's lesions is wrong.

    All images of a lesion have the same label, as after a single wrong diagnosis of the lesion.

    Args:
        table: one row per image, with the columns `lesion_id` and `dx`.
        codes: the classes.
        kind: `uniform`: all other classes are equally likely. `class_conditional`: always the class of `MISTAKEN_FOR`,
            or the next class for a data set that `MISTAKEN_FOR` does not cover.
        rate: fraction of the lesions of each class, rounded to whole lesions.
        seed: seed of the draw, its only source of randomness.
    """
    index = {code: i for i, code in enumerate(codes)}
    lesions = table.drop_duplicates("lesion_id").sort_values("lesion_id")
    ids, true = lesions["lesion_id"].to_numpy(), lesions["dx"].map(index).to_numpy(np.int64)
    given, rng = true.copy(), np.random.default_rng([seed, 1])
    for c, code in enumerate(codes):
        rows = np.flatnonzero(true == c)
        chosen = rng.permutation(rows)[: round(rate * len(rows))]
        if kind == "uniform":
            given[chosen] = (c + rng.integers(1, len(codes), len(chosen))) % len(codes)
        else:
            given[chosen] = index[MISTAKEN_FOR[code]] if code in MISTAKEN_FOR else (c + 1) % len(codes)
    return table["lesion_id"].map(dict(zip(ids, given, strict=True))).to_numpy(np.int64)

"""Wrong labels, put into a training set on purpose, so that what finds them can be measured."""

import numpy as np
import pandas as pd

# the class that each is most readily taken for, of malignant ones a harmless look-alike, so that it matters
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
    """Labels int `[N]` of a table's rows (`lesion_id`, `dx`), those of `rate` of each class's lesions wrong.

    A lesion keeps one label, as it would if one person had read it wrongly.

    Args:
        table: one row an image.
        codes: the classes.
        kind: `uniform`: each other class is as likely; `class_conditional`: always `MISTAKEN_FOR`, or the next class of
            a data set that it does not know.
        rate: share of the lesions of each class, rounded to whole lesions.
        seed: of the draw, which rests on nothing else.
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

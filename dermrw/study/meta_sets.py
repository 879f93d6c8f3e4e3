"""The meta sets of the study's third table: `python -m dermrw.study.meta_sets [FOLDER OF HAM10000]` writes them again.

All are drawn before any training. The rule of each is stated in its file. The lesions of all lists are excluded from
training in every row of the table (`reserve.csv`), so that the rows differ only in their meta set.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from dermrw.config import CONFIGS
from dermrw.datasets.ham10000 import find_ham10000, read_ham10000
from dermrw.datasets.split import meta_by_rule
from dermrw.diagnoses import DX
from dermrw.errors import UserError, plain_endings
from dermrw.files import write_atomic

SEEDS = 5
UNBALANCED = {"nv": 14, "mel": 2}  # and one of every other class: 21 images, about in HAM10000's proportions


def lists(table: pd.DataFrame) -> dict[str, tuple[str, pd.DataFrame]]:
    """Returns the description and the rows of each list, by file name."""
    found = {
        f"curated_{n}": (f"{n} of each class by the rule of ham10000_meta_3_per_class.csv.", meta_by_rule(table, n))
        for n in (1, 3, 5, 10)
    }
    ten = found["curated_10"][1]
    lesions = table.sort_values("image_id").drop_duplicates("lesion_id")
    for seed in range(SEEDS):
        # The lists are drawn from few lesions of each class, so that all together exclude few lesions from training.
        pool = [_sample(lesions[lesions["dx"] == dx], 10, 0) for dx in DX]
        rows = pd.concat([_sample(rows, 3, seed + 1) for rows in pool])
        text = "3 of each class at random from ten lesions of it, themselves random, however diagnosed."
        found[f"random_3_{seed}"] = (text, rows)
    chosen = [ten[ten["dx"] == dx].iloc[: UNBALANCED.get(dx, 1)] for dx in DX if dx != "nv"]
    nevi = lesions[(lesions["dx"] == "nv") & (lesions["dx_type"] == "histo")]
    chosen.append(_sample(nevi, UNBALANCED["nv"], 0))
    found["unbalanced"] = ("14 nv, 2 mel and one of every other class.", pd.concat(chosen))
    everything = pd.concat([rows for _, rows in found.values()]).drop_duplicates("image_id").sort_values("image_id")
    found["reserve"] = ("The images of all lists of this table: their lesions leave training in every row.", everything)
    return found


def _sample(rows: pd.DataFrame, n: int, seed: int) -> pd.DataFrame:
    rows = rows.sort_values("image_id")
    return rows.iloc[np.sort(np.random.default_rng([seed, 3]).permutation(len(rows))[:n])]


def main() -> None:
    """Writes configs/study/*.csv."""
    with plain_endings("dermrw.study.meta_sets"):
        folder = find_ham10000(sys.argv[1] if len(sys.argv) > 1 else None)
        if folder is None:
            raise UserError("HAM10000 was not found: name its folder on the command line, or set HAM10000_DIR")
        for name, (text, rows) in lists(read_ham10000(Path(folder))).items():
            body = rows[["image_id", "lesion_id", "dx", "dx_type"]].to_csv(index=False, lineterminator="\n")
            head = f"# {text}\n# Reproduce it: .venv/bin/python -m dermrw.study.meta_sets [FOLDER OF HAM10000]\n"
            write_atomic(CONFIGS / "study" / f"{name}.csv", (head + body).encode())


if __name__ == "__main__":
    main()

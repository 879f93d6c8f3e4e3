"""The split by lesion, and the curated meta set.

`python -m dermrw.datasets.split [ROOT] > configs/ham10000_meta_3_per_class.csv` reproduces the curated list.
"""

import argparse
import hashlib
import sys
from pathlib import Path

import pandas as pd
from sklearn.model_selection import train_test_split

from dermrw.config import CONFIGS
from dermrw.datasets.ham10000 import find_ham10000, read_ham10000
from dermrw.diagnoses import DX
from dermrw.errors import UserError, plain_endings
from dermrw.labelled.folder import read_frame, require_columns

SPLIT_COLUMNS = ["image_id", "lesion_id", "dx", "split"]
RULE = """\
The meta set's rule. Of each class, among the lesions confirmed by histology: those with the fewest images first
(the other images of a chosen lesion leave training, so the set costs training as few images as it can), and among
these in the order of the SHA-256 of the lesion's id, an order that nobody chose. Of each lesion, the image
with the first id. Neither the pictures nor any model's output were looked at."""


COMPLETE = "Complete the data (`make data`), or let the same rule choose among what you have with data.meta=rule"


def require_classes(table: pd.DataFrame, source: Path) -> None:
    """Checks that the data has images of every class.

    Raises:
        UserError: a class is absent from the table `source`.
    """
    counts = table["dx"].value_counts()
    present = [f"{dx} ({counts[dx]:,})" for dx in DX if dx in counts]
    absent = [dx for dx in DX if dx not in counts]
    if absent:
        raise UserError(
            f"{source} has images of {', '.join(present)} and none of {', '.join(absent)}: "
            "add lesions of every class, since the network learns all seven"
        )


def meta_by_rule(table: pd.DataFrame, per_class: int = 3) -> pd.DataFrame:
    """Returns the meta set by `RULE`: one image of each of `per_class` lesions per class, in class order.

    Raises:
        UserError: the metadata has too few lesions confirmed by histology.
    """
    confirmed = table[table["dx_type"] == "histo"]
    if confirmed.empty:
        raise UserError(
            "the rule for the meta set needs diagnoses confirmed by histology, but the metadata has no dx_type "
            "'histo': name a list of your own with data.meta=FILE"
        )
    size = table.groupby("lesion_id")["image_id"].size()
    chosen = []
    for dx in DX:
        lesions = sorted(
            set(confirmed.loc[confirmed["dx"] == dx, "lesion_id"]),
            key=lambda lesion: (size[lesion], hashlib.sha256(lesion.encode()).hexdigest()),
        )
        if len(lesions) < per_class:
            raise UserError(
                f"the meta set needs {per_class} histology-confirmed lesions of {dx}, but there are {len(lesions)}: "
                "lower data.meta_per_class or name a list of your own with data.meta=FILE"
            )
        for lesion in lesions[:per_class]:
            chosen.append(confirmed[confirmed["lesion_id"] == lesion].sort_values("image_id").iloc[0])
    return pd.DataFrame(chosen).reset_index(drop=True)


def listed(table: pd.DataFrame, name: str, what: str, remedy: str = COMPLETE) -> pd.DataFrame:
    """Returns the rows of `table` whose ids are listed in a CSV file with the column `image_id`.

    Lines of the CSV file that start with # are comments.

    Args:
        table: the images of the data.
        name: path of the CSV file, or its name in configs/.
        what: name of the listed set in error messages.
        remedy: advice if images are absent.

    Raises:
        UserError: the list can't be read, or lists images that are not in the data.
    """
    path = Path(name).expanduser()
    if not path.exists() and (CONFIGS / name).exists():
        path = CONFIGS / name
    try:
        ids = require_columns(read_frame(path, comments=True), ["image_id"], path)["image_id"]
    except UserError as error:
        raise UserError(f"{what}'s list {error}") from None
    if ids.empty or ids.duplicated().any() or (ids == "").any():
        raise UserError(f"{what}'s list {path} must hold image ids, each once")
    present = table.loc[table["path"] != "", "image_id"]
    absent = ids[~ids.isin(present)]
    stem = ids[absent.index[0]].rpartition(".")[0] if len(absent) else ""
    if stem in set(present):
        raise UserError(f"{what}'s list {path}: write {stem} instead of {ids[absent.index[0]]}, likewise in all rows")
    if len(absent):
        raise UserError(
            f"{len(absent)} of the {len(ids)} images that {path.name} lists are not in your copy of the data: "
            f"{', '.join(absent)}. {remedy}"
        )
    return table.set_index("image_id", drop=False).loc[ids.tolist()].reset_index(drop=True)


def meta_set(table: pd.DataFrame, meta: str, per_class: int) -> pd.DataFrame:
    """Returns the meta set's rows for `data.meta`: `rule`, a file, or the name of a file in configs/."""
    if meta == "rule":
        return meta_by_rule(table, per_class)
    rows = listed(table, meta, "the meta set")
    without = [dx for dx in DX if dx not in set(rows["dx"])]
    if without:
        raise UserError(f"the meta set's list {meta} has no image of {', '.join(without)}: every class needs one")
    return rows


def split_lesions(
    table: pd.DataFrame,
    meta: pd.DataFrame,
    validation: float,
    test: float,
    seed: int,
    reserved: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Returns a table with `SPLIT_COLUMNS`: a split by lesion, stratified by diagnosis, one row per image used.

    Reserved lesions and the other images of the meta set's lesions are not used and have no row. `validation` and
    `test` are fractions of the remaining lesions.

    Raises:
        UserError: a class has too few lesions.
    """
    apart = pd.concat([meta["lesion_id"], meta["lesion_id"].iloc[:0] if reserved is None else reserved["lesion_id"]])
    rest = table[~table["lesion_id"].isin(apart)]
    lesions = rest.drop_duplicates("lesion_id").sort_values("lesion_id")[["lesion_id", "dx"]]
    counts = lesions["dx"].value_counts()
    few = [dx for dx in DX if counts.get(dx, 0) < 3]
    if few:
        raise UserError(
            f"of {few[0]} only {counts.get(few[0], 0)} lesions remain without those of the meta set, but a split needs "
            "at least 3 of every class (train, validation, test): add lesions, or lower data.meta_per_class with "
            "data.meta=rule"
        )
    try:
        train, held = train_test_split(lesions, test_size=validation + test, stratify=lesions["dx"], random_state=seed)
        valid, tests = train_test_split(
            held, test_size=test / (validation + test), stratify=held["dx"], random_state=seed
        )
    except ValueError:  # scikit-learn's message has names of its own
        raise UserError(
            f"data.validation={validation:g} and data.test={test:g} of {len(lesions):,} lesions are "
            f"{validation * len(lesions):.1f} and {test * len(lesions):.1f} lesions, but training, validation and test "
            f"each need a lesion of every one of the {counts.size} classes: {_remedy(validation, test)}"
        ) from None
    part = {
        **dict.fromkeys(train["lesion_id"], "train"),
        **dict.fromkeys(valid["lesion_id"], "validation"),
        **dict.fromkeys(tests["lesion_id"], "test"),
    }
    rows = rest.assign(split=rest["lesion_id"].map(part))
    rows = pd.concat([rows, meta.assign(split="meta")])
    for name in ("train", "validation", "test"):
        without = [dx for dx in DX if not ((rows["split"] == name) & (rows["dx"] == dx)).any()]
        if without:
            fix = "lower data.validation and data.test" if name == "train" else f"raise data.{name}"
            raise UserError(f"the {name} split has no lesion of {', '.join(without)}: {fix}, or add lesions")
    return rows[SPLIT_COLUMNS].sort_values("image_id", ignore_index=True)


def _remedy(validation: float, test: float) -> str:
    """Returns advice for fractions that leave a split without a class."""
    if validation + test > 0.5:
        return "lower them, or add lesions"
    return "raise them, or add lesions"


def curated_list(table: pd.DataFrame, per_class: int = 3) -> str:
    """Returns the text of configs/ham10000_meta_3_per_class.csv."""
    rows = meta_by_rule(table, per_class)
    head = [f"# {line}" for line in RULE.splitlines()]
    head.append("# Reproduce it: .venv/bin/python -m dermrw.datasets.split [FOLDER OF HAM10000]")
    body = rows[["image_id", "lesion_id", "dx", "dx_type"]].to_csv(index=False, lineterminator="\n")
    return "\n".join(head) + "\n" + body


def main() -> None:
    """Prints the curated list for the HAM10000 folder given on the command line."""
    with plain_endings("dermrw.datasets.split"):
        parser = argparse.ArgumentParser("python -m dermrw.datasets.split", description="Print the curated meta set.")
        parser.add_argument("folder", nargs="?", help="HAM10000's folder (default: HAM10000_DIR, then data/ham10000)")
        folder = find_ham10000(parser.parse_args().folder)
        if folder is None:
            raise UserError("HAM10000 was not found: name its folder, or download it with `make data`")
        sys.stdout.write(curated_list(read_ham10000(folder)))


if __name__ == "__main__":
    main()

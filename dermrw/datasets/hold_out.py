"""Divides a labelled table into parts by group: a column `split` for `data.extra`.

`python -m dermrw.datasets.hold_out TABLE > OUT.csv` writes the rows of the table with this column. `data.extra=OUT.csv`
then trains on the rows with `train` alone. `--rows test` writes the rows with `test`, images of other cameras on which
`dermrw score` measures the model. With `--validation`, half of the held-out rows are `validation`: `dermrw eval` fits
refusal on them, so that it hardly refuses these cameras.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from dermrw.config import LARGEST_SEED
from dermrw.diagnoses import HAM_CLASSES
from dermrw.errors import UserError, plain_endings
from dermrw.files import path_argument
from dermrw.labelled.folder import read_frame
from dermrw.labelled.labelled_images import IMAGE_COLUMNS, read_labelled_images
from dermrw.labelled.names import codes_by_name


def held_out(strata: pd.Series, groups: pd.Series, parts: int, seed: int) -> np.ndarray:
    """Returns whether each image is held out, bool `[N]`: about one image of `parts`, and whole groups.

    Args:
        strata: labels, or labels and further columns as one text; their shares are kept as far as groups allow.
        groups: images of one group stay together.
        parts: the share that is held out is 1 / parts.
        seed: of the draw.

    Raises:
        UserError: there are fewer groups than parts.
    """
    if groups.nunique() < parts:
        raise UserError(f"the table has {groups.nunique()} groups, fewer than --parts {parts}: lower --parts")
    folds = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
    # scikit-learn warns of strata that not every part can have
    rare = strata.map(strata.value_counts()) < parts
    other = "rare" if rare.sum() >= parts else strata.mode()[0]
    _, test = next(folds.split(np.zeros(len(strata)), strata.mask(rare, other), groups))
    return np.isin(np.arange(len(strata)), test)


def split_table(
    source: Path, images: Path | None, by: list[str], parts: int, seed: int, validation: bool = False
) -> pd.DataFrame:
    """Returns the rows of a table with a column `split`: train, test and, if wanted, validation.

    Groups are those of `read_labelled_images`: patients and lesions, else the image.

    Raises:
        UserError: the table can't be read, has a split already, or lacks a column of `by`.
    """
    frame = read_frame(source)
    column = {name.casefold(): name for name in frame.columns}
    if "split" in column:
        raise UserError(f"{source} has a column {column['split']} already: remove it, or use the table as it is")
    absent = [name for name in by if name.casefold() not in column]
    if absent:
        raise UserError(f"--by {absent[0]}: {source} has the columns {', '.join(frame.columns)[:200]}")
    found = read_labelled_images(source, images, classes=codes_by_name(HAM_CLASSES).keys())
    labelled = found.table
    lines = labelled["line"].tolist()
    strata = labelled["label"].str.cat([frame.loc[lines, column[n.casefold()]].to_numpy(str) for n in by], sep="\n")
    names = np.full(len(labelled), "train", dtype=object)
    test = held_out(strata, labelled["lesion_id"], parts, seed)
    names[test] = "test"
    if validation:
        names[np.flatnonzero(test)[held_out(strata[test], labelled["lesion_id"][test], 2, seed)]] = "validation"
    # a row that repeats an image has the split of its first row; images that are left out have no row
    image = column[found.published.image if found.published else next(n for n in IMAGE_COLUMNS if n in column)]
    part = dict(zip(frame.loc[lines, image], names, strict=True))
    rows = frame.assign(split=frame[image].map(part))
    return rows[rows["split"].notna()]


def main() -> None:
    """Prints the table with its split to standard output, and the counts to standard error."""
    parser = argparse.ArgumentParser("python -m dermrw.datasets.hold_out", description="Hold out a part of a table.")
    parser.add_argument("table", type=path_argument, help="a CSV with the columns image and label")
    parser.add_argument("--images", type=path_argument, help="folder of the images; default: the folder of the table")
    parser.add_argument("--by", action="append", default=[], metavar="COLUMN", help="also keep this column's shares")
    parser.add_argument("--parts", type=int, default=3, help="hold out one image in this many; default: %(default)s")
    parser.add_argument("--validation", action="store_true", help="half of the held-out rows are for validation")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--rows", choices=("all", "train", "validation", "test"), default="all", help="rows to write")
    arguments = parser.parse_args()
    with plain_endings("dermrw.datasets.hold_out"):
        if arguments.parts < 2:
            raise UserError(f"--parts must be at least 2, not {arguments.parts}")
        if not 0 <= arguments.seed <= LARGEST_SEED:
            raise UserError(f"--seed must be from 0 to {LARGEST_SEED}, not {arguments.seed}")
        rows = split_table(
            arguments.table, arguments.images, arguments.by, arguments.parts, arguments.seed, arguments.validation
        )
        wanted = rows if arguments.rows == "all" else rows[rows["split"] == arguments.rows]
        sys.stdout.write(wanted.to_csv(index=False, lineterminator="\n"))
        print(f"{(rows['split'] != 'train').sum():,} of {len(rows):,} rows are held out", file=sys.stderr)


if __name__ == "__main__":
    main()

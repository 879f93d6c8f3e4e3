"""A user's labelled images as training data: `data.name=table`."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import DisjointSet

from dermrw.config import Data
from dermrw.csv_table import NO_VALUE
from dermrw.datasets.readable import Decoded, print_list, read_all, unlike
from dermrw.datasets.split import SPLIT_COLUMNS, listed
from dermrw.diagnoses import DIAGNOSES, Classes
from dermrw.errors import UserError
from dermrw.files import expand_home
from dermrw.formatting import counted
from dermrw.images.preprocess import evaluation_pixels
from dermrw.inference.known_images import MOST_BITS, image_hash
from dermrw.labelled.classes import (
    CLASS_FILE,
    ClassFile,
    RunClasses,
    assign_classes,
    malignancy_note,
    read_class_file,
)
from dermrw.labelled.labelled_images import SPLIT_NAMES, LabelledImages, read_labelled_images
from dermrw.published import ARCHIVE_ID, file_stem, fold

HELD_OUT = ("validation", "test")
PARTS = ("train", *HELD_OUT, "meta")
SHOWN = 5  # images or groups named in an error
HASH_SIZE = 224  # pixels
SPLIT_BY_IMAGE = (
    "Images were split, not patients: the data names no group, so images of one patient or one object may be in "
    "several splits, and the figures may be too good."
)


class TableImages(NamedTuple):
    """A user's table or folder with its classes."""

    # N rows with image_id, lesion_id (the group), dx, path (empty: missing), and split, line and subgroups if known
    table: pd.DataFrame
    facts: RunClasses
    source: Path
    folder: Path  # of the images
    left_out: dict[str, int]  # images without a class, by label


class Conflicts(NamedTuple):
    """Contradictions of a table or folder; each text names images."""

    two_classes: list[str]  # one image in two classes
    two_splits: list[str]  # one image in two of the user's splits
    divided_groups: list[str]  # a group in two of the user's splits
    copies: list[list[str]]  # ids of one image within one class

    @property
    def errors(self) -> list[str]:
        """One sentence for each kind of contradiction that makes training wrong."""
        kinds = (
            ("image", "in two classes", self.two_classes),
            ("image", "in two splits", self.two_splits),
            ("group", "in two splits", self.divided_groups),
        )
        return [f"{counted(len(items), noun)} {where}: {_listed(items)}" for noun, where, items in kinds if items]


def _listed(items: Sequence[str]) -> str:
    more = f"; and {len(items) - SHOWN:,} more" if len(items) > SHOWN else ""
    return "; ".join(items[:SHOWN]) + more


def find_table(data: Data) -> Path:
    """Returns the table or folder that `data.root` names.

    Raises:
        UserError: it is not set, or it does not exist.
    """
    what = "a CSV with the columns image and label, or a folder with a folder per class"
    if not data.root:
        raise UserError(f"data.name=table requires data.root: set it to {what}")
    try:
        path = expand_home(data.root)
    except ValueError as error:
        raise UserError(f"data.root is {data.root}: {error}") from None
    if not path.exists():
        raise UserError(f"data.root is {data.root}, which does not exist: name {what}")
    return path.resolve()


def class_file(root: Path, data: Data) -> ClassFile | None:
    """Returns the classes that the user declares for a table or folder, or None."""
    if data.classes is not None:
        return read_class_file(expand_home(data.classes))
    path = (root if root.is_dir() else root.parent) / CLASS_FILE
    return read_class_file(path) if path.is_file() else None


def read_images(data: Data, root: Path) -> LabelledImages:
    """Returns the images of a table or folder with the labels that the user gives them."""
    try:
        declared = class_file(root, data)
    except UserError:  # `read_table` reports it; a run that exists does not need the file
        declared = None
    names = {fold(d.dx) for d in DIAGNOSES} | {fold(d.column) for d in DIAGNOSES} | {"ak", "scc"}
    names |= set(declared.code_of) if declared else set()
    images = expand_home(data.images) if data.images else None
    return read_labelled_images(root, images, classes=names, option="data.images")


def read_table(data: Data, root: Path) -> TableImages:
    """Reads a table or folder, and the classes of its images.

    Raises:
        UserError: it can't be read, its labels are no classes, or rows have no label.
    """
    labelled = read_images(data, root)
    table = labelled.table
    declared = class_file(root, data)
    labels = _without_missing(table, declared)
    without = [i for i, label in enumerate(labels) if not label]
    if len(without) and not labelled.published and not data.skip_unreadable:
        row = table.loc[without[0]]
        where = f"line {row['line']}" if "line" in table else f"{row['path']}"
        declare = f", or declare the class {row['label']} in {CLASS_FILE} if it is one" if row["label"] else ""
        raise UserError(
            f"{root}: {counted(len(without), 'image has', 'images have')} no label, {where} the first: give each a "
            f"label, or leave them out with data.skip_unreadable=true{declare}"
        )
    assigned = assign_classes(labels, root, declared, labelled.published)
    notes = []
    if labelled.unit == "images":
        notes.append(SPLIT_BY_IMAGE)
    notes += [f"{note[0].upper()}{note[1:]}." for note in labelled.notes]
    if assigned.left_out:
        names = ", ".join(f"{label} ({n:,})" for label, n in assigned.left_out.items())
        left_out = counted(sum(assigned.left_out.values()), "image whose label has", "images whose labels have")
        notes.append(f"Left out: {left_out} no class: {names}.")
    note = malignancy_note(assigned.classes)
    notes += [note] if note else []
    table = table.assign(dx=assigned.codes).drop(columns="label")
    folder = expand_home(data.images) if data.images else root if root.is_dir() else root.parent
    facts = RunClasses(assigned.classes, labelled.unit, tuple(notes))
    return TableImages(table[table["dx"] != ""].reset_index(drop=True), facts, root, folder, assigned.left_out)


def _without_missing(table: pd.DataFrame, declared: ClassFile | None) -> list[str]:
    """The labels, empty where a program wrote a missing value such as NA, unless the class file names that text.

    A folder is named by hand, so its name is a label.
    """
    labels: list[str] = table["label"].tolist()
    if "line" not in table or (declared and declared.leave_out is None):  # the file leaves out all others
        return labels
    named = {*declared.code_of, *(declared.leave_out or ())} if declared else set()
    return ["" if label.casefold() in NO_VALUE and fold(label) not in named else label for label in labels]


def draw_split(images: TableImages, data: Data) -> tuple[pd.DataFrame, RunClasses]:
    """Returns the rows of split.csv for a new run, and the facts to store with it. Reads every image once.

    Raises:
        UserError: images are missing or unreadable, contradict each other, or are too few.
    """
    table, decoded, notes = _readable(images, data.skip_unreadable)
    table = with_checked_splits(table, images)
    conflicts = find_conflicts(table, decoded.identical)
    if conflicts.errors:
        raise UserError(
            f"{images.source}: {'; '.join(conflicts.errors)}. Keep each image once and each group in one split; "
            f"`dermrw check {images.source}` lists them"
        )
    if conflicts.copies:
        table = merged_groups(table, conflicts.copies)
        copies = sum(len(group) for group in conflicts.copies)
        notes.append(
            f"{copies:,} images are identical to others of their class, such as "
            f"{' and '.join(conflicts.copies[0][:2])}: copies are kept in one split."
        )
    for warning in unlike(decoded.pictures, images.folder):
        print(warning, flush=True)
    classes = images.facts.classes
    reserved = table.iloc[:0] if data.reserve is None else _listed_rows(table, data.reserve, "the reserve")
    chosen = "split" in table and table["split"].eq("meta").any()
    by_rule = data.meta_list == "rule" and not chosen  # a list may name reserved images
    free = table[~table["lesion_id"].isin(reserved["lesion_id"])] if by_rule else table
    meta = choose_meta(free, classes, data, images)
    others = int(table["lesion_id"].isin(meta["lesion_id"]).sum()) - len(meta)
    if others:
        notes.insert(0, f"Not used: {others:,} further images of the groups of the {len(meta):,} meta images.")
    rest = table[~table["lesion_id"].isin([*meta["lesion_id"], *reserved["lesion_id"]])]
    split = split_groups(rest, classes.codes, data, images)
    split = pd.concat([split, meta.assign(split="meta")])[SPLIT_COLUMNS].sort_values("image_id", ignore_index=True)
    return split, images.facts._replace(notes=(*images.facts.notes, *notes))


def _readable(images: TableImages, skip: bool) -> tuple[pd.DataFrame, Decoded, list[str]]:
    """The images that can be read, what decoding them has shown, and notes on the others."""
    table = images.table
    missing = table.loc[table["path"] == "", "image_id"].tolist()
    if missing and not skip:
        raise UserError(
            f"{images.source}: {len(missing):,} of {len(table):,} images are not in {images.folder}, {missing[0]} the "
            "first: add them, correct data.images, or leave them out with data.skip_unreadable=true"
        )
    table = table[table["path"] != ""]
    decoded = read_all(table)
    bad = dict(decoded.unreadable)
    if bad and not skip:
        more = f"\n… and {len(bad) - 10:,} more" if len(bad) > 10 else ""
        reasons = "\n".join(list(bad.values())[:10])
        raise UserError(
            f"{len(bad):,} of {len(table):,} images can't be read: replace them, or leave them out with "
            f"data.skip_unreadable=true\n{reasons}{more}"
        )
    notes = []
    if bad or missing:
        print(f"Left out of {len(images.table):,} images, because data.skip_unreadable is set:")
        print_list("missing", missing)
        print_list("unreadable", list(bad.values()))
        notes.append(f"Left out: {counted(len(missing), 'image')} without a file and {len(bad):,} that can't be read.")
    table = table[~table["image_id"].isin(list(bad))].reset_index(drop=True)
    if table.empty:
        raise UserError(f"{images.source}: no image is left: is data.images the folder of the images?")
    return table, decoded, notes


def with_checked_splits(table: pd.DataFrame, images: TableImages) -> pd.DataFrame:
    """Returns the table with the user's splits by dermrw's names.

    Raises:
        UserError: a value is not the name of a split, or no image is for training.
    """
    if "split" not in table:
        return table
    odd = table[~table["split"].isin(list(SPLIT_NAMES))]
    if len(odd):
        row = odd.iloc[0]
        where = f", line {row['line']}" if "line" in table else ""
        if set(row["split"].split(" and ")) <= set(SPLIT_NAMES):
            raise UserError(f"{images.source}{where}: the image {row['image_id']} is in {row['split']}: keep one row")
        raise UserError(
            f"{images.source}{where} has the split {row['split']!r}: use train, validation, test or meta, or remove "
            "the column split"
        )
    table = table.assign(split=table["split"].map(SPLIT_NAMES))
    if not (table["split"] == "train").any():
        raise UserError(f"{images.source}: no image has the split train: correct or remove the column split")
    return table


def find_conflicts(table: pd.DataFrame, identical: Iterable[Sequence[str]]) -> Conflicts:
    """Returns the contradictions of a table with `image_id`, `lesion_id`, `dx`, `path` and, if known, `split`.

    Args:
        table: one row per readable image.
        identical: ids of images with the same pixels.
    """
    known = set(table["image_id"])
    same = [[name for name in group if name in known] for group in identical]
    same += _same_names(table)
    row_of = table.set_index("image_id")
    two_classes, two_splits, copies = [], [], []
    for group in _joined(same):
        rows = row_of.loc[group]
        classes = rows["dx"].unique()
        splits = set(rows["split"]) if "split" in rows else set()
        if len(classes) > 1:
            two_classes.append(_members(rows, "dx"))
        elif len(splits) > 1:
            two_splits.append(_members(rows, "split"))
        else:
            copies.append(group)
    divided = []
    if "split" in table:
        splits_of = table.groupby("lesion_id", sort=False)["split"].agg(lambda values: sorted(set(values)))
        divided = [f"{group} ({', '.join(names)})" for group, names in splits_of.items() if len(names) > 1]
    if len(table) == table["lesion_id"].nunique():
        divided = []  # the groups are the images
    return Conflicts(two_classes, two_splits, divided, copies)


def _members(rows: pd.DataFrame, column: str) -> str:
    """The images of one conflict, such as `a.jpg (nv) = b.jpg (mel)`."""
    return " = ".join(f"{name} ({value})" for name, value in rows[column].drop_duplicates().items())


def _same_names(table: pd.DataFrame) -> list[list[str]]:
    """Groups of ids that name one image: the same archive id, or the same file name and a similar picture."""
    of_name: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(table["image_id"]):
        of_name[file_stem(name)].append(i)
    groups: list[list[str]] = []
    for name, rows in of_name.items():
        if len(rows) < 2:
            continue
        ids = table["image_id"].iloc[rows].tolist()
        if ARCHIVE_ID.fullmatch(name):
            groups.append(ids)
            continue
        hashes = [image_hash(evaluation_pixels(path, HASH_SIZE)) for path in table["path"].iloc[rows]]
        for i, first in enumerate(hashes):
            for j in range(i + 1, len(hashes)):
                bits = [(a ^ b).bit_count() for a, b in zip(first, hashes[j], strict=True)]
                if bits[0] <= MOST_BITS[0] and bits[1] <= MOST_BITS[1]:
                    groups.append([ids[i], ids[j]])
    return groups


def _joined(groups: Iterable[Sequence[str]]) -> list[list[str]]:
    """The groups of ids, with those that share an id joined."""
    joined: DisjointSet[str] = DisjointSet()
    for first, *others in groups:
        joined.add(first)
        for other in others:
            joined.add(other)
            joined.merge(first, other)
    return [sorted(group) for group in joined.subsets() if len(group) > 1]


def merged_groups(table: pd.DataFrame, copies: Sequence[Sequence[str]]) -> pd.DataFrame:
    """Returns the table with the groups of identical images joined to one group each."""
    group_of = table.set_index("image_id")["lesion_id"]
    joined = _joined([sorted({str(group_of[name]) for name in group}) for group in copies])
    name_of = {name: group[0] for group in joined for name in group}
    return table.assign(lesion_id=[name_of.get(name, name) for name in table["lesion_id"]])


def choose_meta(table: pd.DataFrame, classes: Classes, data: Data, images: TableImages) -> pd.DataFrame:
    """Returns the rows of the meta set: the user's split `meta`, a list, or a choice by rule from the training images.

    The rule takes, of each class, `data.meta_per_class` groups: those with a histological diagnosis first, then those
    with the fewest images, then by the SHA-256 of the group's name. Of each group it takes the first image by id.

    Raises:
        UserError: a class has no image in the meta set, or too few groups.
    """
    own = table[table["split"] == "meta"] if "split" in table else table.iloc[:0]
    if len(own) and data.meta_list != "rule":
        raise UserError(f"the column split of {images.source} has a meta set: leave out data.meta={data.meta}")
    if len(own) or data.meta_list != "rule":
        rows = own if len(own) else _listed_rows(table, data.meta, "the meta set")
        if "split" in table and rows["split"].isin(HELD_OUT).any():
            row = rows[rows["split"].isin(HELD_OUT)].iloc[0]
            raise UserError(f"the meta set's list {data.meta} names {row['image_id']}, whose split is {row['split']}")
        without = [code for code in classes.codes if code not in set(rows["dx"])]
        if without:
            raise UserError(f"the meta set has no image of {', '.join(without[:SHOWN])}: every class needs one")
        return rows
    _require_groups(table, classes.codes, data, images, data.meta_per_class)
    pool = table[table["split"] == "train"] if "split" in table else table
    size = table.groupby("lesion_id")["image_id"].size()
    confirmed = set()
    if "dx_type" in pool:
        confirmed = set(pool.loc[pool["dx_type"].str.casefold().str.startswith("histo"), "lesion_id"])
    chosen: list[pd.DataFrame] = []
    taken: set[str] = set()
    counts = pool.groupby("dx")["lesion_id"].nunique()
    for code in sorted(classes.codes, key=lambda code: counts.get(code, 0)):  # rare classes choose first
        rows = pool[pool["dx"] == code]
        groups = sorted(
            set(rows["lesion_id"]) - taken,
            key=lambda name: (name not in confirmed, size[name], sha256(name.encode()).hexdigest()),
        )[: data.meta_per_class]
        if len(groups) < data.meta_per_class:
            raise UserError(
                f"{images.source}: only {len(groups)} {images.facts.unit} with {code} are left for the meta set, which "
                f"needs {data.meta_per_class}: lower data.meta_per_class, or name a list with data.meta=FILE"
            )
        taken |= set(groups)
        first = rows.sort_values("image_id").drop_duplicates("lesion_id").set_index("lesion_id", drop=False)
        chosen.append(first.loc[groups])
    meta = pd.concat(chosen)
    order = meta["dx"].map({code: i for i, code in enumerate(classes.codes)})
    return meta.iloc[np.argsort(order.to_numpy(), kind="stable")].reset_index(drop=True)


def _listed_rows(table: pd.DataFrame, name: str, what: str) -> pd.DataFrame:
    return listed(table, name, what, "Add them, or correct the list")


def _require_groups(table: pd.DataFrame, codes: Sequence[str], data: Data, images: TableImages, for_meta: int) -> None:
    """Raises a UserError if a class has fewer groups than splits need it in."""
    given = set(table["split"]) if "split" in table else set()
    drawn = [name for name in ("train", *HELD_OUT) if name not in given]
    least = (len(drawn) if not given else 1 + len(drawn)) + for_meta
    pool = table if not given else table[table["split"] == "train"]
    groups = pool.groupby("dx")["lesion_id"].nunique()
    for code in codes:
        n = int(groups.get(code, 0))
        if n >= least:
            continue
        meta = f" and data.meta_per_class={for_meta} for the meta set" if for_meta else ""
        parts = ", ".join(["training", *(name for name in drawn if name != "train")])
        lower = "lower data.meta_per_class, " if for_meta > 1 else ""
        where = " in the split train" if given else ""
        unit = images.facts.unit[:-1] if n == 1 else images.facts.unit
        raise UserError(
            f"{images.source}: the class {code} has {n} {unit}{where}, but needs {least} (at least one for {parts}"
            f"{meta}): add images of it, {lower}or leave it out with {CLASS_FILE}"
        )


def split_groups(table: pd.DataFrame, codes: Sequence[str], data: Data, images: TableImages) -> pd.DataFrame:
    """Returns the rows with their split: the user's, or one drawn by groups so that every split has every class.

    Rare classes are assigned first: of each class's groups without a split, a share goes to each held-out split, at
    least one group (after Sechidis, Tsoumakas, Vlahavas, ECML PKDD 2011). Groups may hold images of several classes.
    A held-out split that the user's splits lack is drawn from `train`.

    Raises:
        UserError: a split has no image of a class.
    """
    given = table["split"] if "split" in table else pd.Series("train", index=table.index)
    _require_groups(table, codes, data, images, 0)
    drawn = [name for name in HELD_OUT if not (given == name).any()]
    pool = table[given == "train"]
    rng = np.random.default_rng(data.split_seed)
    groups_of = {code: sorted(set(rows["lesion_id"])) for code, rows in pool.groupby("dx")}
    part: dict[str, str] = {}
    for code in sorted(groups_of, key=lambda code: (len(groups_of[code]), code)):
        groups = groups_of[code]
        free = [groups[i] for i in rng.permutation(len(groups)) if groups[i] not in part]
        for name in drawn:
            have = sum(part.get(group) == name for group in groups)
            want = max(1, round(getattr(data, name) * len(groups))) - have
            for group in free[: max(0, want)]:
                part[group] = name
            free = free[max(0, want) :]
        part |= dict.fromkeys(free, "train")
    split = [
        part.get(group, name) if name == "train" else name
        for group, name in zip(table["lesion_id"], given, strict=True)
    ]
    table = table.assign(split=split)
    for name in ("train", *HELD_OUT):
        present = set(table.loc[table["split"] == name, "dx"])
        absent = [code for code in codes if code not in present]
        if absent:
            fix = "try another data.split_seed" if name in drawn else "correct the column split"
            fix = "lower data.validation and data.test" if name == "train" else fix
            raise UserError(
                f"{images.source}: the split {name} has no image of {', '.join(absent[:SHOWN])}: {fix}, or add images"
            )
    return table

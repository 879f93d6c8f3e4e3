"""Whether the weights that a run starts from were trained on its validation or test images.

An image is the same if its name is an id of the ISIC archive that is known, or if its perceptual hashes differ from a
known image's in at most `SAME_BITS`. All images of its group count like it, as do those whose group is known.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dermrw.config import Config
from dermrw.datasets.dataset import ImageSet, Splits, resolve_root
from dermrw.datasets.table import read_table
from dermrw.errors import UserError
from dermrw.files import csv_text, write_atomic
from dermrw.formatting import counted
from dermrw.inference.known_images import SAME_BITS, Hashes, ImageHash, KnownImages, have_copy
from dermrw.training.image_record import NO_HASHES, ImageRecord, group_keys, hashes_of, name_key, table_digest

FILE = "images_of_weights.csv"  # of a run on a user's own table that was refused
SHOWN = 5  # images named in a message
MOST_CHANGED = 0.1  # of the validation images: of resized copies up to 3 % are not recognised
NAME, PICTURE, GROUP = "name", "picture", "group"
UNITS = {"lesions": "lesion", "patients": "patient"}


def known_by(
    known: KnownImages,
    images: ImageSet,
    config: Config,
    hashes: Mapping[str, ImageHash],
    own: Hashes = NO_HASHES,
) -> list[str]:
    """Returns how each image `[N]` of a set is known: `NAME`, `PICTURE` or `GROUP`; empty if it is not.

    Args:
        known: the images to compare with, from an `ImageRecord`.
        images: the set.
        config: of its run.
        hashes: of its images, by id.
        own: of the images that train or select the run itself `[M, 2]`. A picture that looks like one of them says
            nothing about earlier weights: `copies_across_splits` reports it.
    """
    names, groups = images.table["image_id"].tolist(), images.table["lesion_id"].tolist()
    same = _look_like(images, hashes, known.hashes) & ~_look_like(images, hashes, own)
    found = [
        NAME if name_key(name, config) in known.ids else PICTURE * bool(copy)
        for name, copy in zip(names, same, strict=True)
    ]
    known_groups = {group for group, how in zip(groups, found, strict=True) if how}
    keys = group_keys(images.table, config)
    return [
        how or GROUP * (group in known_groups or key in known.ids)
        for how, group, (key, _) in zip(found, groups, keys, strict=True)
    ]


def hashes_array(images: Sequence[ImageSet], hashes: Mapping[str, ImageHash]) -> Hashes:
    """Returns the hashes `[M, 2]` of the images of several sets that have some."""
    names = [name for part in images for name in part.table["image_id"] if name in hashes]
    return np.array([hashes[name] for name in names], dtype=np.uint64).reshape(-1, 2)


def _look_like(images: ImageSet, hashes: Mapping[str, ImageHash], others: Hashes) -> npt.NDArray[np.bool_]:
    """Whether each image `[N]` looks like one of the others."""
    hashed = np.array([name in hashes for name in images.table["image_id"]], dtype=bool)
    result = np.zeros(len(images), dtype=bool)
    result[hashed] = have_copy(hashes_array([images], hashes), others, SAME_BITS)
    return result


def require_same_pictures(record: ImageRecord, validation: ImageSet, config: Config) -> None:
    """Checks that a run's validation images look like those with which it was trained.

    After a new export or a renumbering, files with the same names can hold other pictures. Then pictures that trained
    the network can be in its test split.

    Args:
        record: of the run. Without hashes of its own images, as of drawn ones and in lists of 28 November 2026, nothing
            is checked.
        validation: its images as they are now.
        config: of the run.

    Raises:
        UserError: more than `MOST_CHANGED` of them look different.
    """
    if not (len(record.fitted.hashes) and len(record.selected.hashes)):
        return
    hashes = hashes_of([validation], config)
    names = validation.table["image_id"]
    changed = names[names.isin(hashes) & ~_look_like(validation, hashes, record.selected.hashes)].tolist()
    if len(changed) > MOST_CHANGED * len(hashes):
        raise UserError(
            f"{len(changed):,} of the {len(hashes):,} validation images are other pictures than in training, such as "
            f"{_shown(changed)}. Pictures that trained the network may now be in its test split: restore the files, or "
            "train again"
        )


def copies_across_splits(splits: Splits, hashes: Mapping[str, ImageHash]) -> str | None:
    """Returns a sentence on validation and test images that look like images that train or select a run, or None."""
    found: list[str] = []
    for part, _, own in _held_out(splits, hashes):
        images = getattr(splits, part)
        found += images.table["image_id"][_look_like(images, hashes, own)].tolist()
    if not found:
        return None
    count = counted(len(found), "validation or test image looks", "validation and test images look")
    return (
        f"{count} like an image of another split, such as {_shown(found)}: the figures may be too good. Give all "
        "pictures of one lesion or object the same group."
    )


def _held_out(splits: Splits, hashes: Mapping[str, ImageHash]) -> list[tuple[str, str, Hashes]]:
    """The held-out parts, what earlier weights must not have done with them, and the run's own images before them."""
    trained = [splits.train, splits.meta]
    return [
        ("test", "trained or selected", hashes_array([*trained, splits.validation], hashes)),
        ("validation", "trained", hashes_array(trained, hashes)),
    ]


def require_unseen(
    record: ImageRecord,
    splits: Splits,
    config: Config,
    hashes: Mapping[str, ImageHash],
    run: Path,
    resumed: bool = False,
) -> None:
    """Checks that no validation image of a run trained its first weights, and that no test image was used for them.

    Prints what can't be compared.

    Args:
        record: of the weights.
        splits: the run's images.
        config: of the run.
        hashes: of its images, by id.
        run: its folder.
        resumed: whether the run exists, so that its split can't change.

    Raises:
        UserError: there are such images. For a new run on a user's own table, `FILE` in the run's folder lists all
            images of the table that the weights know.
    """
    unit = UNITS.get(splits.facts.unit if splits.facts else "lesions", "group")
    seen = []
    for part, verb, own in _held_out(splits, hashes):
        images, known = getattr(splits, part), record.used if part == "test" else record.fitted
        found = known_by(known, images, config, hashes, own)
        names = [name for name, how in zip(images.table["image_id"], found, strict=True) if how]
        if names:
            seen.append(
                f"{verb} on {len(names):,} of the {len(images):,} {part} images of this run ({_ways(found, unit)}), "
                f"such as {_shown(names)}"
            )
    if seen:
        remedy = "restore the file of model.weights, or name another RUN" if resumed else _remedy(record, config, run)
        raise UserError(
            f"model.weights={config.model.weights} was {' and '.join(seen)}. The figures would be too good: {remedy}"
        )
    for sentence in _not_compared(record, config, unit):
        print(f"model.weights={config.model.weights}: {sentence}. Figures on such images would be too good", flush=True)


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN])


def _ways(found: Sequence[str], unit: str) -> str:
    count = Counter(found)
    words = {NAME: "name", PICTURE: "picture", GROUP: unit}
    return "known by " + ", ".join(f"{word} {count[how]:,}" for how, word in words.items() if count[how])


def _not_compared(record: ImageRecord, config: Config, unit: str) -> list[str]:
    """What the comparison leaves open."""
    sentences = list(record.gaps)
    others = sum(images for table, images in record.tables.items() if table != table_digest(config.data.root))
    if others and config.data.name == "table":
        sentences.append(
            f"{counted(others, 'of its images belongs', 'of its images belong')} to a {unit} that is named in another "
            f"table, so other pictures of the same {unit} are not recognised"
        )
    return sentences


def _remedy(record: ImageRecord, config: Config, run: Path) -> str:
    if config.data.name == "cifar10":
        return "use the data.split_seed of those weights, or name other weights"
    if config.data.name != "table":
        return (
            "divide the images as for those weights, if these are of the same data (data.split_seed, data.validation, "
            "data.test, data.meta, data.reserve), or name other weights"
        )
    root = resolve_root(config.data)
    table = read_table(config.data, root).table  # also images that the split leaves out
    table = table[table["path"] != ""].reset_index(drop=True)
    whole = ImageSet(table, np.zeros(len(table), np.int64), table["path"].tolist())
    found = known_by(record.used, whole, config, hashes_of([whole], config))
    listed = table.assign(known_by=found)[np.array(found) != ""]
    if len(listed) == len(table):
        return "the weights know all images of the table, so name other weights"
    rows = zip(listed["image_id"], listed["path"], listed["known_by"], strict=True)
    write_atomic(run / FILE, csv_text([["image", "path", "known_by"], *rows]).encode("utf-8", "surrogateescape"))
    images = f"the {counted(len(listed), 'image')} that {run / FILE} lists"
    if root.is_dir():
        way = f"sort the images into folders train, val and test of folders of classes, with {images} in train"
    else:
        way = f"add a column split to the table, with train for {images}, and train, validation or test for every other"
    by_path = GROUP in found and record.tables.get(table_digest(config.data.root))
    moved = ". Groups count as the same because the table has the same path: if it is another table now, move it"
    return f"{way}; or name other weights{moved if by_path else ''}"

"""Whether the weights that a run starts from were trained on its validation or test images.

An image is the same if its name is one of HAM10000 or of another public archive and is known, or if its perceptual
hashes differ from a known image's in at most `SAME_BITS`. All images of its group count like it, as do those whose
group is known.
"""

from collections import Counter
from collections.abc import Mapping

import numpy as np

from dermrw.config import Config
from dermrw.datasets.dataset import ImageSet, Splits
from dermrw.errors import UserError
from dermrw.formatting import counted
from dermrw.inference.known_images import SAME_BITS, ImageHash, KnownImages, have_copy
from dermrw.training.image_record import ImageRecord, group_key, name_key, table_digest

SHOWN = 5  # images named in an error
NAME, PICTURE, GROUP = "name", "picture", "group"
UNITS = {"lesions": "lesion", "patients": "patient", "groups": "group"}  # images have no group


def known_by(known: KnownImages, images: ImageSet, config: Config, hashes: Mapping[str, ImageHash]) -> list[str]:
    """Returns how each image `[N]` of a set is known: `NAME`, `PICTURE` or `GROUP`; empty if it is not.

    Args:
        known: the images to compare with, from an `ImageRecord`.
        images: the set.
        config: of its run.
        hashes: of its images, by id.
    """
    names = images.table["image_id"].tolist()
    found = [NAME if name_key(name, config) in known.ids else "" for name in names]
    rows = [i for i, name in enumerate(names) if name in hashes]
    own = np.array([hashes[names[i]] for i in rows], dtype=np.uint64).reshape(-1, 2)
    for i, same in zip(rows, have_copy(own, known.hashes, SAME_BITS), strict=True):
        found[i] = found[i] or PICTURE * bool(same)
    groups = images.table["lesion_id"].tolist()
    known_groups = {group for group, how in zip(groups, found, strict=True) if how}
    for i, row in enumerate(images.table.itertuples()):
        if not found[i] and (groups[i] in known_groups or group_key(row, config)[0] in known.ids):
            found[i] = GROUP
    return found


def require_unseen(record: ImageRecord, splits: Splits, config: Config, hashes: Mapping[str, ImageHash]) -> None:
    """Checks that no validation image of a run trained its first weights, and that no test image was used for them.

    Prints what can't be compared.

    Args:
        record: of the weights.
        splits: the run's images.
        config: of the run.
        hashes: of its images, by id.

    Raises:
        UserError: there are such images.
    """
    unit = UNITS.get(splits.facts.unit if splits.facts else "lesions", "group")
    for part, known in (("test", record.used), ("validation", record.fitted)):
        images = getattr(splits, part)
        found = known_by(known, images, config, hashes)
        seen = [name for name, how in zip(images.table["image_id"], found, strict=True) if how]
        if seen:
            shown = ", ".join(seen[:SHOWN]) + f" and {len(seen) - SHOWN:,} more" * (len(seen) > SHOWN)
            raise UserError(
                f"model.weights={config.model.weights} was trained or selected on {len(seen):,} of the "
                f"{len(images):,} {part} images of this run ({_ways(found, unit)}): {shown}. Its figures would be too "
                f"good: {_remedy(config)}, or name other weights"
            )
    for sentence in _not_compared(record, config, unit):
        print(f"model.weights={config.model.weights}: {sentence}. Figures on such images would be too good", flush=True)


def _ways(found: list[str], unit: str) -> str:
    count = Counter(found)
    ways = {NAME: "known by name", PICTURE: "the same picture", GROUP: f"of a {unit} of such an image"}
    return ", ".join(f"{count[how]:,} {text}" for how, text in ways.items() if count[how])


def _not_compared(record: ImageRecord, config: Config, unit: str) -> list[str]:
    """What the comparison leaves open."""
    sentences = []
    if record.undivided:
        sentences.append(
            f"it is not known which of its {record.undivided:,} images trained it and which selected it, so they are "
            "compared with the test images of this run, and not with its validation images"
        )
    if record.nameless:
        images = counted(record.nameless, "of its images has", "of its images have")
        sentences.append(f"{images} a name such as 1.jpg and no stored hash, so they are not compared")
    others = sum(images for table, images in record.tables.items() if table != table_digest(config.data.root))
    if others and config.data.name == "table":
        sentences.append(
            f"{counted(others, 'of its images belongs', 'of its images belong')} to a {unit} that is named in another "
            f"table, so other pictures of the same {unit} are not recognised"
        )
    return sentences


def _remedy(config: Config) -> str:
    if config.data.name == "table":
        return "give these images to training by a column split in the table, or leave them out"
    if config.data.name == "cifar10":
        return "use the data.split_seed of those weights"
    return (
        "divide the images as for those weights (data.split_seed, data.validation, data.test, data.meta, data.reserve)"
    )

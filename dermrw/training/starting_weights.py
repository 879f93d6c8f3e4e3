"""What is known of the weights that a run starts from, `model.weights=FILE`: their training images and their licence.

A figure on images that these weights were trained on is too good. So none of them may be in the run's validation and
test split, and the run's own model file lists them among its training images, so that `dermrw score` leaves them out.
"""

import json
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import pandas as pd

from dermrw.datasets.dataset import Splits
from dermrw.errors import UserError
from dermrw.files import open_regular
from dermrw.inference.known_images import KEY, KnownImages, id_digest, is_distinctive
from dermrw.training.run_folder import open_run, read_split
from dermrw.weights import is_safetensors, safetensors_metadata

RECORD = "starting_weights.json"  # in the folder of a run that started from such weights
OF_A_RUN = ("best.pt", "last.pt", "encoder.safetensors")
FITTED = ("train", "meta")  # parts of a split that train the network
USED = (*FITTED, "validation")  # parts that it was trained, selected or calibrated on
FITTED_KEY = "fitted_images"  # of the record
NO_HASHES = np.empty((0, 2), np.uint64)


class StartingWeights(NamedTuple):
    """The images that weights were trained on, and their licence."""

    fitted: frozenset[bytes]  # digests of the ids in training and meta set; empty if the file does not tell them apart
    known: KnownImages  # all images that the weights were trained, selected or calibrated on
    licence: str | None

    @classmethod
    def of(cls, weights: str) -> Self | None:
        """Returns what is known of `model.weights`; None for weights of ImageNet, and for files of other programs.

        The images of a checkpoint or an encoder in a run's folder are in that run's split.csv. An encoder elsewhere
        lists them in its metadata, from 29 November 2026 on.

        Raises:
            UserError: the run's files or the list can't be read.
        """
        path = Path(weights).expanduser()
        if weights in ("imagenet", "none") or not path.is_file():
            return None
        metadata = safetensors_metadata(path) if is_safetensors(path) else {}
        licence = metadata.get("licence")
        if path.name in OF_A_RUN and (path.parent / "config.yaml").is_file():
            run = path.parent
            known, earlier = images_of(run), cls.recorded(run)
            fitted = _ids(run, FITTED)
            if earlier is not None:
                fitted |= earlier.fitted
                licence = licence or earlier.licence
            return cls(fitted, known, licence)
        listed = KnownImages.from_props(metadata, str(path))
        if listed is None and "backbone" in metadata:  # an encoder that an earlier version of dermrw wrote
            print(
                f"model.weights={path} does not list the images that it was trained on: figures on such images would "
                "be too good. Write it again with `dermrw export --encoder` to have them checked",
                flush=True,
            )
        if listed is None and licence is None:
            return None
        return cls(frozenset(), listed or KnownImages.of([], []), licence)

    @classmethod
    def recorded(cls, run: Path) -> Self | None:
        """Returns what the run recorded when it started; None if it started from other weights.

        Raises:
            UserError: the record can't be read.
        """
        path = run / RECORD
        if not path.exists():
            return None
        try:
            with open_regular(path) as file:
                values = json.load(file)
            known, fitted = (KnownImages.from_props({KEY: values[key]}, str(path)) for key in (KEY, FITTED_KEY))
            assert known is not None and fitted is not None
            return cls(fitted.ids, known, values["licence"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} can't be read ({error}): restore it, or train again") from None

    def record(self) -> bytes:
        """Returns the content of the file `RECORD`."""
        fitted = KnownImages(self.fitted, NO_HASHES)
        values = {"licence": self.licence, KEY: self.known.to_prop(), FITTED_KEY: fitted.to_prop()}
        return json.dumps(values, indent=1).encode()

    def require_unseen(self, splits: Splits, weights: str) -> None:
        """Checks that the weights were not trained on the images that the run is judged on.

        Raises:
            UserError: they were trained on validation or test images.
        """
        for part, known in (("test", self.known.ids), ("validation", self.fitted)):
            names = getattr(splits, part).table["image_id"].tolist()
            seen = [name for name in names if id_digest(name) in known]
            if seen:
                raise UserError(
                    f"model.weights={weights} was trained on {len(seen):,} of the {len(names):,} {part} images of this "
                    f"run, such as {seen[0]}, so its figures would be too good: divide the images as that run did "
                    "(data.split_seed, data.validation, data.test, data.meta and data.reserve in its config.yaml), or "
                    "name other weights"
                )


def images_of(run: Path) -> KnownImages:
    """Returns the images that a run, and the weights that it started from, were trained or selected on, by their ids.

    Raises:
        UserError: its files can't be read.
    """
    known, earlier = KnownImages(_ids(run, USED), NO_HASHES), StartingWeights.recorded(run)
    return known if earlier is None else with_earlier(known, earlier)


def with_earlier(known: KnownImages, earlier: StartingWeights) -> KnownImages:
    """Returns the list with the images of the weights that a run started from."""
    hashes = np.unique(np.concatenate([known.hashes, earlier.known.hashes]), axis=0)
    return KnownImages(known.ids | earlier.known.ids, hashes)


def _ids(run: Path, parts: tuple[str, ...]) -> frozenset[bytes]:
    """The digests of the ids in these parts of a run's split."""
    split: pd.DataFrame = read_split(run)
    names = split["image_id"][split["split"].isin(parts)]
    if open_run(run).data.name == "table":  # a name such as 1.jpg also belongs to other images
        names = names[names.map(is_distinctive)]
    return frozenset(map(id_digest, names))

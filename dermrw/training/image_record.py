"""The images that a network was trained on, stored beside its weights, and their licence.

A figure on images that a network was trained on is too good. A run may start from the weights of another
(`model.weights=FILE`). None of the images that these were trained on may then be in the run's validation and test
split, and the run's own model file lists them among its training images, so that `dermrw score` leaves them out.

Each run writes its record to `images.json`. Its checkpoints and its encoder contain it, so that a copy of them has it.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
import torch

from dermrw.config import Config
from dermrw.datasets.dataset import Splits
from dermrw.datasets.licences import licences_of
from dermrw.errors import UserError
from dermrw.files import open_regular
from dermrw.inference.known_images import KEY, KnownImages, id_digest, is_distinctive
from dermrw.training.run_folder import averaged_runs, open_run, read_split
from dermrw.weights import is_safetensors, safetensors_metadata

FILE = "images.json"  # in a run's folder
METADATA = "images"  # of a checkpoint and of an encoder
FITTED = ("train", "meta")  # the parts of a split that train the network
USED = (*FITTED, "validation")  # the parts that it was trained, selected or calibrated on
NO_HASHES = np.empty((0, 2), np.uint64)
LONGEST_LICENCE = 300  # characters of a file's licence that are kept
OF_A_CHECKPOINT = {"model", "classes", "best_epoch"}  # keys that tell a checkpoint of dermrw


class ImageRecord(NamedTuple):
    """The images that a network was trained on, in this run and in those that its weights come from.

    Attributes:
        fitted: digests of the images in training and meta sets, and of their lesions; None if this is not known.
        used: the same with validation.
        known: the images of `used`, for a model file.
        local: the number of images whose names, such as 1.jpg, say nothing outside their folder.
        folder: digest of the data's folder, with which such names can be compared.
        licences: sentences.
    """

    fitted: frozenset[bytes] | None
    used: frozenset[bytes]
    known: KnownImages
    local: int
    folder: str
    licences: tuple[str, ...]

    @classmethod
    def of_split(cls, split: pd.DataFrame, config: Config, earlier: Self | None) -> Self:
        """Returns the record of a run.

        Args:
            split: the content of split.csv.
            config: of the run.
            earlier: the record of the weights that it starts from.
        """
        used, fitted = (split[split["split"].isin(parts)] for parts in (USED, FITTED))
        names = used["image_id"].tolist()
        if config.data.name == "table":
            names = [name for name in names if is_distinctive(name)]
        ids = [] if config.data.name == "cifar10" else names
        record = cls(
            frozenset().union(*_keys(fitted, config)),
            frozenset().union(*_keys(used, config)),
            KnownImages.of(ids, []),
            sum(_is_local(name, config) for name in used["image_id"]),
            _folder(config),
            licences_of(config),
        )
        if earlier is None:
            return record
        return record._replace(
            fitted=frozenset(record.fitted or ()) | frozenset(earlier.fitted or ()),
            used=record.used | earlier.used,
            known=record.known.united(earlier.known),
            local=record.local + earlier.local,
            licences=tuple(dict.fromkeys([*record.licences, *earlier.licences])),
        )

    @classmethod
    def of_run(cls, run: Path) -> Self:
        """Returns the record of a run; that of its split alone if it is of dermrw before 29 November 2026.

        Raises:
            UserError: the run's files can't be read.
        """
        path = run / FILE
        if not path.exists():
            return cls.of_split(read_split(run), open_run(run), None)
        try:
            with open_regular(path) as file:
                return cls.of_text(file.read().decode(), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} can't be read ({error}): restore it, or train again") from None

    @classmethod
    def of_runs(cls, folder: Path) -> list[Self]:
        """Returns the record of a run, or of each run whose average was exported into the folder.

        Raises:
            UserError: a run's files can't be read.
        """
        return [cls.of_run(run) for run in averaged_runs(folder) or [folder]]

    @classmethod
    def of_text(cls, text: str, source: str) -> Self:
        """Returns the record in the result of `to_text`.

        Raises:
            UserError: the text is damaged.
        """
        try:
            values = json.loads(text)
            fitted, used, known = (
                None if values[key] is None else KnownImages.from_props({KEY: values[key]}, source)
                for key in ("fitted", "used", KEY)
            )
            assert used is not None and known is not None
            return cls(
                None if fitted is None else fitted.ids,
                used.ids,
                known,
                int(values["local"]),
                str(values["folder"]),
                tuple(str(sentence)[:LONGEST_LICENCE] for sentence in values["licences"]),
            )
        except (ValueError, KeyError, TypeError, AssertionError, UserError):
            raise UserError(f"the list of training images in {source} is damaged: restore it, or train again") from None

    def to_text(self) -> str:
        """Returns JSON."""
        fitted = None if self.fitted is None else KnownImages(self.fitted, NO_HASHES).to_prop()
        values = {
            "fitted": fitted, "used": KnownImages(self.used, NO_HASHES).to_prop(), KEY: self.known.to_prop(),
            "local": self.local, "folder": self.folder, "licences": list(self.licences),
        }  # fmt: skip
        return json.dumps(values, indent=1)

    @classmethod
    def of_weights(cls, path: Path | None) -> Self | None:
        """Returns the record of the weights in a file; None without a file, and for files of other programs.

        A checkpoint or an encoder of an earlier version of dermrw has no record. If it is in its run's folder, the
        record follows from split.csv; otherwise a line says that nothing is known.

        Raises:
            UserError: the record, or the run's files, can't be read.
        """
        if path is None or not path.is_file():
            return None
        own: Mapping[str, Any] | None = safetensors_metadata(path) if is_safetensors(path) else _checkpoint(path)
        if own is None or not ("backbone" in own or set(own) >= OF_A_CHECKPOINT):
            return None
        if isinstance(own.get(METADATA), str):
            return cls.of_text(own[METADATA], str(path))
        listed = KnownImages.from_props(own, str(path)) if isinstance(own.get(KEY), str) else None
        if listed is not None:  # the encoder of a model file
            print(f"model.weights={path} does not tell training from validation images: only test images are compared")
            licence = str(own.get("licence", ""))[:LONGEST_LICENCE]
            return cls(None, listed.ids, listed, 0, "", (licence,) if licence else ())
        run = path.resolve().parent
        if (run / "config.yaml").is_file():
            try:
                return cls.of_run(run)
            except UserError as error:
                raise UserError(f"the run of model.weights={path}: {error}") from None
        print(
            f"model.weights={path} does not list the images that it was trained on, so they can't be compared with "
            "this run's validation and test images. Figures on images that are the same would be too good",
            flush=True,
        )
        return None

    def require_unseen(self, splits: Splits, config: Config) -> None:
        """Checks that no validation image of a run trained these weights, and that no test image or lesion was used.

        Raises:
            UserError: there are such images.
        """
        for part, known in (("test", self.used), ("validation", self.fitted or frozenset())):
            table = getattr(splits, part).table
            keys = _keys(table, config)
            seen = [name for name, own in zip(table["image_id"], keys, strict=True) if not known.isdisjoint(own)]
            if seen:
                raise UserError(
                    f"model.weights={config.model.weights} was trained or selected on {len(seen):,} of the "
                    f"{len(table):,} {part} images of this run (or on others of their lesions), such as {seen[0]}. Its "
                    f"figures would be too good: {_remedy(config)}, or name other weights"
                )
        if self.local and self.folder != _folder(config):
            print(
                f"{self.local:,} of the images that model.weights={config.model.weights} was trained on have names "
                "such as 1.jpg, which other images have, too: they are not compared with this run's validation and "
                "test images. Figures on images that are the same would be too good",
                flush=True,
            )


def _remedy(config: Config) -> str:
    if config.data.name == "table":
        return "give these images to training by a column split in the table, or leave them out"
    if config.data.name == "cifar10":
        return "use the data.split_seed of those weights"
    return (
        "divide the images as for those weights (data.split_seed, data.validation, data.test, data.meta, data.reserve)"
    )


def _checkpoint(path: Path) -> Mapping[str, Any] | None:
    """The content of a file of `torch.save`; None if it is another file, which `read_weights` refuses."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # torch raises errors of many types on other files
        return None
    return state if isinstance(state, Mapping) else None


def _folder(config: Config) -> str:
    """A digest of the folder or table that names of a user's own images belong to, which does not tell its path."""
    return id_digest(str(Path(config.data.root or ".").expanduser().resolve())).hex()


def _is_local(name: str, config: Config) -> bool:
    """Whether a name says nothing outside its folder: of a user's own images, those with short or running numbers."""
    if config.data.name != "table":
        return False
    return re.search(r"ISIC_\d{7}|[1-9]\d{4}", name.replace("\\", "/").rpartition("/")[2]) is None


def _keys(table: pd.DataFrame, config: Config) -> list[set[bytes]]:
    """The digests by which each image, and the images of its lesion, patient or group, are found in another run."""
    names, groups = table["image_id"].astype(str), table["lesion_id"]
    if config.data.name == "cifar10":
        return [{id_digest(f"CIFAR-10 {name}")} for name in names]
    if config.data.name != "table":
        return [{id_digest(name), id_digest(f"group of {group}")} for name, group in zip(names, groups, strict=True)]
    folder = _folder(config)
    return [
        {id_digest(f"{folder} {name}" if _is_local(name, config) else name), id_digest(f"{folder} group of {group}")}
        for name, group in zip(names, groups, strict=True)
    ]

"""The images that a network was trained on, stored beside its weights, and their licence.

A figure on images that a network was trained on is too good. A run may start from the weights of another
(`model.weights=FILE`). None of the images that these were trained on may then be in the run's validation and test
split (`dermrw.training.image_overlap`), and the run's own model file lists them among its training images, so that
`dermrw score` leaves them out.

An image is known by its name, if that is an id of the ISIC archive (as of HAM10000), and by its perceptual hashes. A
name such as 1.jpg says nothing. Each run writes its record to `images.json`. Its checkpoints and its encoder contain
it, so that a copy of them has it.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
import torch

from dermrw.config import Config
from dermrw.datasets.dataset import ImageSet
from dermrw.datasets.extra import PREFIX
from dermrw.datasets.hash_cache import hash_images
from dermrw.datasets.licences import licences_of
from dermrw.errors import UserError
from dermrw.files import open_regular
from dermrw.formatting import counted
from dermrw.inference.known_images import KEY, ImageHash, KnownImages, id_digest, id_digests, is_distinctive
from dermrw.published import archive_id
from dermrw.training.run_folder import averaged_runs, open_run, read_split
from dermrw.weights import is_safetensors, safetensors_metadata

FILE = "images.json"  # in a run's folder
METADATA = "images"  # of a checkpoint and of an encoder
FITTED = ("train", "meta")  # the parts of a split that train the network
SELECTED = ("validation",)  # the part that chooses the epoch, and calibrates
USED = (*FITTED, *SELECTED)
NO_HASHES = np.empty((0, 2), np.uint64)
NOTHING = KnownImages(frozenset(), NO_HASHES)
UNDIVIDED = (
    "it is not known which of its training images trained it and which selected it, so they are compared with the test "
    "images of this run and not with its validation images"
)
LONGEST_LICENCE = 300  # characters of a file's licence that are kept
OF_A_CHECKPOINT = {"model", "classes", "best_epoch"}  # keys that tell a checkpoint of dermrw
# names of a group that mean the same in every table: lesions and patients of HAM10000 and the ISIC archive
ARCHIVE_GROUP = re.compile(r"(?:\w+ )?((?:ham|bcn|il|ip)_\d{7})", re.IGNORECASE)


class ImageRecord(NamedTuple):
    """The images that a network was trained on, in this run and in those that its weights come from.

    Attributes:
        fitted: those in training and meta sets: digests of names and of groups, and perceptual hashes.
        selected: those of the validation split, and those of which the part is not known.
        names: digests of the images' names alone, for a model file.
        gaps: sentences on what is not known, without a full stop.
        tables: the number of images whose group has a meaning in one table only, by the digest of the table's path.
        licences: sentences.
        weights: SHA-256 of the file of `model.weights` that the run started from; empty without one.
    """

    fitted: KnownImages
    selected: KnownImages
    names: frozenset[bytes]
    gaps: tuple[str, ...]
    tables: Mapping[str, int]
    licences: tuple[str, ...]
    weights: str = ""

    @property
    def used(self) -> KnownImages:
        """The images that trained, selected or calibrated the network."""
        return self.fitted.united(self.selected)

    @property
    def known(self) -> KnownImages:
        """The list for a model file."""
        return KnownImages(self.names, self.used.hashes)

    @classmethod
    def of_split(
        cls,
        split: pd.DataFrame,
        config: Config,
        hashes: Mapping[str, ImageHash],
        earlier: Self | None,
        weights: str = "",
    ) -> Self:
        """Returns the record of a run.

        Args:
            split: the content of split.csv.
            config: of the run.
            hashes: of the images, by id; empty if they are not known.
            earlier: the record of the weights that it starts from.
            weights: the digest of their file.
        """
        used = split[split["split"].isin(USED)]
        names = used["image_id"].tolist()
        hashless = 0 if config.data.name in ("sample", "cifar10") else sum(name not in hashes for name in names)
        listed = [] if config.data.name == "cifar10" else [name for name in names if is_distinctive(name)]
        tables = [table for _, table in group_keys(used, config)]
        record = cls(
            _known(split[split["split"].isin(FITTED)], config, hashes),
            _known(split[split["split"].isin(SELECTED)], config, hashes),
            id_digests(listed),
            (_no_pictures(hashless),) if hashless else (),
            {table: tables.count(table) for table in set(tables) if table},
            licences_of(config),
            weights,
        )
        return record if earlier is None else record._with(earlier)

    def _with(self, earlier: Self) -> Self:
        return self._replace(
            fitted=self.fitted.united(earlier.fitted),
            selected=self.selected.united(earlier.selected),
            names=self.names | earlier.names,
            gaps=tuple(dict.fromkeys([*self.gaps, *earlier.gaps])),
            tables={**earlier.tables, **self.tables},
            licences=tuple(dict.fromkeys([*self.licences, *earlier.licences])),
        )

    @classmethod
    def of_run(cls, run: Path) -> Self:
        """Returns the record of a run: from images.json, or else a checkpoint, or else its split alone.

        Raises:
            UserError: the run's files can't be read.
        """
        path = run / FILE
        if path.exists():
            try:
                with open_regular(path) as file:
                    return cls.of_text(file.read().decode(), str(path))
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"{path} can't be read ({error}): restore it, or train again") from None
        for checkpoint in (run / "last.pt", run / "best.pt"):
            content = _checkpoint(checkpoint)
            if content is not None and isinstance(content.get(METADATA), str):
                return cls.of_text(content[METADATA], str(checkpoint))
        config = open_run(run)
        record = cls.of_split(read_split(run), config, {}, None)
        if config.model.weights_file is None:
            return record
        return record._replace(
            gaps=(*record.gaps, f"the training images of its own first weights are not known ({run})")
        )

    @classmethod
    def of_runs(cls, folder: Path) -> list[Self]:
        """Returns the record of a run, or of each run whose average was exported into the folder.

        Raises:
            UserError: a run's files can't be read.
        """
        return [cls.of_run(run) for run in averaged_runs(folder) or [folder]]

    @classmethod
    def of_text(cls, text: str, source: str) -> Self:
        """Returns the record in the result of `to_text`, also of dermrw of 28 November 2026.

        Raises:
            UserError: the text is damaged.
        """
        try:
            values = json.loads(text)
            licences = tuple(str(sentence)[:LONGEST_LICENCE] for sentence in values["licences"])
            if "format" not in values:
                return cls._of_first_format(values, licences, source)
            if values["format"] != 2:
                raise ValueError("of another version")
            fitted, selected, names = (_listed(values[key], source) for key in ("fitted", "selected", "names"))
            gaps = tuple(str(sentence) for sentence in values["gaps"])
            tables = {str(table): int(images) for table, images in values["tables"].items()}
            return cls(fitted, selected, names.ids, gaps, tables, licences, str(values["weights"]))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, UserError):
            raise UserError(f"the list of training images in {source} is damaged: restore it, or train again") from None

    @classmethod
    def _of_first_format(cls, values: Mapping[str, Any], licences: tuple[str, ...], source: str) -> Self:
        """The record as dermrw wrote it on 28 November 2026, with ids and almost no hashes."""
        known, used = _listed(values[KEY], source), _listed(values["used"], source)
        divided = values["fitted"] is not None
        fitted = _listed(values["fitted"], source) if divided else NOTHING
        gaps = [] if divided else [UNDIVIDED]
        if not len(known.hashes):
            gaps.append(_no_pictures(int(values["local"]) + len(known.ids)))
        return cls(fitted, used.united(known), known.ids, tuple(gaps), {}, licences)

    def to_text(self) -> str:
        """Returns JSON."""
        values = {
            "format": 2, "fitted": self.fitted.to_prop(), "selected": self.selected.to_prop(),
            "names": KnownImages(self.names, NO_HASHES).to_prop(), "gaps": list(self.gaps),
            "tables": dict(self.tables), "licences": list(self.licences), "weights": self.weights,
        }  # fmt: skip
        return json.dumps(values, indent=1)

    @classmethod
    def of_weights(cls, path: Path | None) -> Self | None:
        """Returns the record of the weights in a file; None without a file, or without a record in it.

        A file of another program has none, nor has a checkpoint or an encoder of an earlier version of dermrw. If this
        is in its run's folder, the record follows from split.csv; otherwise a line says that nothing is known.

        Raises:
            UserError: the record, or the run's files, can't be read.
        """
        if path is None or not path.is_file():
            return None
        own: Mapping[str, Any] | None = safetensors_metadata(path) if is_safetensors(path) else _checkpoint(path)
        if own is None:
            return None
        if isinstance(own.get(METADATA), str):
            return cls.of_text(own[METADATA], str(path))
        listed = KnownImages.from_props(own, str(path)) if isinstance(own.get(KEY), str) else None
        if listed is not None:  # the encoder of a model file
            licence = str(own.get("licence", ""))[:LONGEST_LICENCE]
            gaps = [UNDIVIDED, "the lesions, patients or groups of its training images are not known"]
            if not len(listed.hashes):
                gaps.append(_no_pictures(len(listed.ids)))
            return cls(NOTHING, listed, listed.ids, tuple(gaps), {}, (licence,) if licence else ())
        run = path.resolve().parent
        if ("backbone" in own or set(own) >= OF_A_CHECKPOINT) and (run / "config.yaml").is_file():
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


def of_other_images(one: str, other: str) -> bool:
    """Whether two results of `to_text` are of runs that were trained on other images; False if that is not known."""
    try:
        if any(json.loads(text).get("format") != 2 for text in (one, other)):
            return False
        first, second = (ImageRecord.of_text(text, FILE) for text in (one, other))
    except (ValueError, AttributeError, UserError):
        return False
    pairs = (first.fitted, second.fitted), (first.selected, second.selected)
    return any(
        a.ids != b.ids or (len(a.hashes) and len(b.hashes) and not np.array_equal(a.hashes, b.hashes)) for a, b in pairs
    )


def require_own_images(checkpoint: Path, state: Mapping[str, Any], listed: str | None) -> None:
    """Checks that a checkpoint in a run's folder was trained on the images that the run's `FILE` lists.

    Args:
        checkpoint: its file, for the message.
        state: its content.
        listed: the content of `FILE`; None: there is none, and nothing is checked.

    Raises:
        UserError: it was trained on other images.
    """
    if listed is not None and METADATA in state and of_other_images(state[METADATA], listed):
        raise UserError(
            f"{checkpoint} was trained on other images than {checkpoint.with_name(FILE)} lists: restore both, or train "
            "again"
        )


def _no_pictures(count: int) -> str:
    images = counted(count, "training image")
    return f"no hash of {images} is stored, so they are recognised only if their names are ids of the ISIC archive"


def _checkpoint(path: Path) -> Mapping[str, Any] | None:
    """The content of a file of `torch.save`; None if it is another file, which `read_weights` refuses."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # torch raises errors of many types on other files
        return None
    return state if isinstance(state, Mapping) else None


def hashes_of(sets: Iterable[ImageSet], config: Config) -> dict[str, ImageHash]:
    """Returns the perceptual hashes of a run's images by id, where they are files; none of drawn pictures."""
    if config.data.name not in ("ham10000", "table"):
        return {}
    paths = {name: path for part in sets for name, path in zip(part.table["image_id"], part.sources, strict=True)}
    hashes = hash_images(paths.values())
    return {name: hashes[path] for name, path in paths.items() if path in hashes}


def name_key(name: str, config: Config) -> bytes | None:
    """Returns the digest of an image's name, or None if the name says nothing outside its table."""
    if config.data.name == "cifar10":
        return id_digest(f"CIFAR-10 {name}")
    if config.data.name == "sample":
        return id_digest(name)
    archived = archive_id(name)
    return id_digest(archived) if archived else None


def group_keys(table: pd.DataFrame, config: Config) -> list[tuple[bytes | None, str]]:
    """Returns the digest of each row's group, and that of its table if the group has a meaning only there.

    Args:
        table: with `image_id` and `lesion_id` of a split.csv.
        config: of the run.
    """
    ids = set(table["image_id"])
    return [
        (None, "") if config.data.name == "cifar10" or _is_image(str(group), ids) else _group_key(str(group), config)
        for group in table["lesion_id"]
    ]


def _is_image(group: str, ids: Collection[str]) -> bool:
    """Whether a group is named after an image, because the table names no group for it."""
    name = group.removeprefix(PREFIX)
    return name in ids or name.removeprefix("image ") in ids


def _group_key(group: str, config: Config) -> tuple[bytes, str]:
    extra, name = group.startswith(PREFIX), group.removeprefix(PREFIX)
    archived = ARCHIVE_GROUP.fullmatch(name)
    if archived or not (extra or config.data.name == "table"):
        return id_digest(f"group of {archived.group(1) if archived else name}"), ""
    table = table_digest(config.data.extra if extra else config.data.root)
    return id_digest(f"{table} group of {name.encode('utf-8', 'surrogateescape').hex()}"), table  # hex keeps the case


def table_digest(source: str | None) -> str:
    """Returns a digest of the path of a table, which does not tell the path."""
    return id_digest(str(Path(source or ".").expanduser().resolve())).hex()


def _known(rows: pd.DataFrame, config: Config, hashes: Mapping[str, ImageHash]) -> KnownImages:
    """The images of a part of a split: their names, groups and hashes."""
    keys = {name_key(name, config) for name in rows["image_id"]}
    keys |= {key for key, _ in group_keys(rows, config)}
    pictures = KnownImages.of([], (hashes[name] for name in rows["image_id"] if name in hashes)).hashes
    return KnownImages(frozenset(key for key in keys if key is not None), pictures)


def _listed(text: Any, source: str) -> KnownImages:
    known = KnownImages.from_props({KEY: text}, source)
    assert known is not None
    return known

"""`python -m export.training_images MODEL key=value…`: adds the list of training images to an existing model file.

`make export` writes the list itself. This command is for files of dermrw before 27 November 2026. It draws the split
again from the config, so it needs the images and the settings of `data` that the model was trained with.
"""

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from dermrw.config import Config, load_config
from dermrw.datasets.dataset import Splits, class_shares, load_splits, resolve_root
from dermrw.errors import UserError, plain_endings
from dermrw.evaluation.refusal_fit import bounding_images
from dermrw.files import path_argument, write_atomic
from dermrw.images.preprocess import evaluation_pixels
from dermrw.inference.classifier import Classifier
from dermrw.inference.known_images import KEY, ImageHash, KnownImages, image_hash, is_distinctive
from dermrw.training.image_record import USED


def known_images(splits: Splits, config: Config) -> KnownImages:
    """Returns the list of the images that a run was trained, selected and calibrated on.

    It contains the validation images of `data.extra`, which bound the limits of refusal.
    """
    size = config.data.size

    def hashed(source: Any) -> ImageHash | None:
        try:
            return image_hash(evaluation_pixels(source, size))
        except UserError:  # it is still listed by its id
            return None

    parts = [getattr(splits, name) for name in USED]
    ids = [name for part in parts for name in part.table["image_id"]]
    sources = [source for part in parts for source in part.sources]
    for table in bounding_images(config, splits).values():
        ids += table["image_id"].tolist()
        sources += table["path"].tolist()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        hashes = pool.map(hashed, sources)
        listed = (name for name in ids if is_distinctive(name))
        return KnownImages.of(listed, (value for value in hashes if value is not None))


def add_list(content: bytes, known: KnownImages) -> bytes:
    """Returns an .onnx file with the list in its metadata; the graph and its answers stay the same."""
    model = onnx.load_model_from_string(content)
    kept = {entry.key: entry.value for entry in model.metadata_props if entry.key != KEY}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, kept | {KEY: known.to_prop()})
    return model.SerializeToString()


def add_to_file(path: Path, config: str, overrides: Sequence[str]) -> None:
    """Adds the list to a model file.

    Raises:
        UserError: the split of this config has another number of training images of a class than the model's.
    """
    settings = load_config(Path(config), overrides)
    classifier = Classifier(path, "cpu")
    splits = load_splits(settings.data, resolve_root(settings.data))
    shares = class_shares(splits.train.table, splits.classes)
    prevalence = [classifier.info.prevalence[code] for code in splits.classes.codes]
    if not np.allclose(shares, prevalence, rtol=0, atol=1e-9):
        raise UserError(
            f"{path} was trained on another split: name the settings of data that its model card lists, such as "
            "data.test=0.05"
        )
    known = known_images(splits, settings)
    content = add_list(path.read_bytes(), known)
    write_atomic(path, content)
    print(f"{path} ({len(content):,} bytes) lists {len(known.ids):,} images. SHA-256 {Classifier(path, 'cpu').digest}")


def main() -> None:
    """Adds the list. A user error prints one sentence and exits with status 2."""
    parser = argparse.ArgumentParser("export.training_images", description="Add the training images to a model file.")
    parser.add_argument("model", type=path_argument, help="the .onnx file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="the settings of data; data.root=FOLDER")
    parser.add_argument("--config", default="configs/ham.yaml", help="default: %(default)s")
    arguments = parser.parse_args()
    with plain_endings("export.training_images"):
        add_to_file(arguments.model, arguments.config, arguments.overrides)


if __name__ == "__main__":
    main()

"""`python -m export.index [MODEL]`: writes index.npz, the model's embeddings of the labelled cases of HAM10000."""

import argparse
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pandas as pd
from tqdm import tqdm

from dermrw.datasets.ham10000 import find_ham10000, read_ham10000, with_images
from dermrw.diagnoses import DX
from dermrw.errors import UserError, plain_endings
from dermrw.files import filled, path_argument, require_writable, write_atomic
from dermrw.images.preprocess import evaluation_pixels
from dermrw.inference.case_index import CASES, Index, index_path
from dermrw.inference.classifier import Classifier
from dermrw.inference.known_images import id_digest, image_hash
from dermrw.inference.model_file import INPUT
from dermrw.inference.shipped import shipped_model
from dermrw.training.run_folder import read_split

BATCH = 32
SHOWN = (".jpg", ".jpeg", ".png")  # suffixes of examples, since browsers show these


def embedder(content: bytes) -> onnxruntime.InferenceSession:
    """Returns a session of the graph up to the embedding: an eighth of the computation for a model with eight views."""
    model = onnx.load_from_string(content)
    part = onnx.utils.Extractor(model).extract_model([INPUT], ["embedding"])
    return onnxruntime.InferenceSession(part.SerializeToString(), providers=["CPUExecutionProvider"])


def write_index(model: Path, root: str | None) -> Path:
    """Writes the index of the images of a HAM10000 folder next to the model file; returns its path.

    Raises:
        UserError: the model or the images can't be read.
    """
    classifier = Classifier(model)
    if classifier.info.codes != DX:
        raise UserError(f"{model} has other classes than HAM10000, whose cases the index holds: name another model")
    out = index_path(model)
    require_writable(out)
    folder = find_ham10000(root, "--data")
    if folder is None:
        raise UserError(
            "HAM10000 is not at data/ham10000: name its folder with --data or HAM10000_DIR, or run `make data`"
        )
    table = with_images(read_ham10000(folder), folder).reset_index(drop=True)
    session, size = embedder(model.read_bytes()), classifier.info.size

    def read(path: str) -> npt.NDArray[np.uint8]:
        return evaluation_pixels(path, size, classifier.framing)

    found, paths = [], table["path"].tolist()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in tqdm(range(0, len(paths), BATCH), "Embedding the cases", leave=False):
            batch = np.stack(list(pool.map(read, paths[start : start + BATCH])))
            found.append(session.run(["embedding"], {INPUT: batch})[0])
    ids, lesions, codes = (table[key].astype(str).to_numpy(str) for key in ("image_id", "lesion_id", "dx"))
    where = np.array([str(Path(path).resolve()) for path in paths])
    examples = choose_examples(table, classifier)
    index = Index(classifier.digest, ids, lesions, codes, where, np.concatenate(found), examples)
    write_atomic(out, index.save())
    print(f"{len(paths):,} cases of {table['lesion_id'].nunique():,} lesions in {out}. `make demo` shows the nearest.")
    if examples:
        print(f"{len(examples)} of them, which the model was not fitted on, are examples on the page.")
    if (model.parent / "split.csv").is_file():
        split = read_split(model.parent)
        test = set(split.loc[split["split"] == "test", "image_id"].astype(str)) & set(ids)
        if not test:
            return out
        images, classes = index.agreement(sorted(test))
        print(
            f"For the run's test images, {100 * images:.1f} % of the {CASES} nearest cases of other lesions "
            f"have the same diagnosis (mean over classes: {100 * classes:.1f} %)."
        )
    return out


def choose_examples(table: pd.DataFrame, classifier: Classifier) -> list[int]:
    """Returns a row of `table` for each class: the first image, by id, of a lesion that the model was not fitted on.

    A class without such an image has no example. A model file without a list of its images has none at all.
    """
    known = classifier.known_images()
    if known is None:
        return []
    listed = np.array([id_digest(name) in known.ids for name in table["image_id"]])
    fitted = set(table.loc[listed, "lesion_id"])
    chosen = []
    for code in classifier.info.codes:
        of_class = table[(table["dx"] == code) & ~table["lesion_id"].isin(fitted)].sort_values("image_id")
        for row, image_id, path in zip(of_class.index, of_class["image_id"], of_class["path"], strict=True):
            if not str(path).lower().endswith(SHOWN):
                continue
            pixels = evaluation_pixels(path, classifier.info.size)  # without framing, as in the list
            if not known.match([image_id], [image_hash(pixels)])[0]:
                chosen.append(int(row))
                break
    return chosen


def main() -> None:
    """Writes the index. A user error prints one sentence and exits with status 2."""
    parser = argparse.ArgumentParser(
        "export.index", description="Index HAM10000 so that the demo shows the nearest labelled cases."
    )
    parser.add_argument(
        "model", nargs="?", type=path_argument, help="an .onnx file or a run (default: the model shipped with dermrw)"
    )
    parser.add_argument("--data", type=filled, help="HAM10000's folder (default: HAM10000_DIR, then data/ham10000)")
    arguments = parser.parse_args()
    with plain_endings("export.index"):
        model: Path = arguments.model or shipped_model()
        write_index(model / "model.onnx" if model.is_dir() else model, arguments.data)


if __name__ == "__main__":
    main()

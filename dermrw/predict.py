"""From a model file and pictures to probabilities: ONNX Runtime and `pixels.py`. No torch in here."""

import csv
import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

# ONNX Runtime's official builds report each session to Microsoft since 1.29; it reads this when it is imported
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image
from tqdm import tqdm

from dermrw.errors import UserError
from dermrw.files import write_atomic
from dermrw.model_file import INPUT, OUTPUTS, ModelInfo
from dermrw.pixels import IMAGE_SUFFIXES, evaluation_pixels
from dermrw.prevalence import at_prevalence, combine, parse_prevalence

onnxruntime.disable_telemetry_events()  # where another module imported it first

BATCH = 32
MODEL_BYTES = 2 * 2**30  # protobuf's own limit

Picture = str | Path | BinaryIO | Image.Image | npt.NDArray[np.uint8]


class Explanation(NamedTuple):
    """All that the model says of one picture."""

    probabilities: npt.NDArray[np.float32]  # [C], for equal prevalence
    activation_map: npt.NDArray[np.float32]  # [C, h, w]: what each position adds to each logit
    embedding: npt.NDArray[np.float32]  # [D]
    pixels: npt.NDArray[np.uint8]  # [size, size, 3]: what the network was shown


def _providers(device: str) -> list[str]:
    """ONNX Runtime's execution providers for `auto`, `cpu` or `cuda`."""
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device takes auto, cpu or cuda, not {device}")
    # the CUDA build lists its provider on machines without a GPU, too, and prints red errors when asked for it there
    gpu = "CUDAExecutionProvider" in onnxruntime.get_available_providers() and (
        Path("/dev/nvidia0").exists() or os.name == "nt"
    )
    if device == "cuda" and not gpu:
        raise UserError("--device cuda: ONNX Runtime finds no CUDA device here; leave it out to use the CPU")
    return ["CUDAExecutionProvider", "CPUExecutionProvider"] if gpu and device != "cpu" else ["CPUExecutionProvider"]


class Classifier:
    """A model file, ready to classify pictures.

    >>> classifier = Classifier("runs/mine/model.onnx")
    >>> classifier(["one.jpg", "two.png"])  # [2, 7], for equal prevalence; the classes are classifier.info.codes
    """

    def __init__(self, model: str | Path, device: str = "auto", threads: int = 0) -> None:
        """Loads a model file that `make export` wrote.

        Args:
            model: the .onnx file.
            device: `auto` (a GPU where ONNX Runtime can use one), `cpu` or `cuda`.
            threads: threads of one inference; 0: as many as there are cores.

        Raises:
            UserError: the file is absent, damaged or not dermrw's; or CUDA is asked for and can't be used.
        """
        path = Path(model)
        try:
            if path.stat().st_size > MODEL_BYTES:
                raise UserError(f"{path} is larger than a model file can be")
            content = path.read_bytes()
        except FileNotFoundError:
            raise UserError(f"there is no model {path}: `make export` writes one") from None
        except OSError as error:
            raise UserError(f"the model {path} can't be read: {error.strerror}") from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        try:
            # from memory: a file that points to weights elsewhere on the disk is not self-contained and doesn't load
            self._session = onnxruntime.InferenceSession(content, options, providers=_providers(device))
            props = self._session.get_modelmeta().custom_metadata_map
        except UserError:
            raise
        except Exception as error:  # ONNX Runtime's errors have no common type
            raise UserError(f"{path} is not a model that can be loaded: {_short(error)}") from None
        self.path = path
        self.digest = hashlib.sha256(content).hexdigest()  # of the file
        self.info = ModelInfo.from_props(props, str(path))
        self.device = "CUDA" if "CUDAExecutionProvider" in self._session.get_providers() else "CPU"
        if device == "cuda" and self.device != "CUDA":
            raise UserError("--device cuda: CUDA is here and does not start; leave it out to use the CPU")
        inputs = [(i.name, i.type) for i in self._session.get_inputs()]
        if inputs != [(INPUT, "tensor(uint8)")] or tuple(o.name for o in self._session.get_outputs()) != OUTPUTS:
            raise UserError(f"{path} doesn't take and give what a model of dermrw does: `make export` writes one anew")

    def __call__(self, pictures: Picture | Sequence[Picture]) -> npt.NDArray[np.float32]:
        """Probabilities `[N, C]` for equal prevalence of N pictures: files, PIL images or arrays uint8 `[H, W, 3]`.

        Raises:
            UserError: a picture can't be read.
        """
        if isinstance(pictures, str | Path | Image.Image | np.ndarray) or hasattr(pictures, "read"):
            pictures = [pictures]  # type: ignore[list-item]
        found = [np.zeros((0, len(self.info.codes)), np.float32)]
        for start in range(0, len(pictures), BATCH):
            batch = [self.pixels(picture) for picture in pictures[start : start + BATCH]]
            found.append(self.run(np.stack(batch), OUTPUTS[0])[0])
        return np.concatenate(found)

    def explain(self, picture: Picture) -> Explanation:
        """All that the model says of one picture.

        Raises:
            UserError: the picture can't be read.
        """
        pixels = self.pixels(picture)
        probabilities, activation_map, embedding = self.run(pixels[None], *OUTPUTS)
        return Explanation(probabilities[0], activation_map[0], embedding[0], pixels)

    def pixels(self, picture: Picture) -> npt.NDArray[np.uint8]:
        """What the network is shown of a picture, uint8 `[size, size, 3]`."""
        return evaluation_pixels(picture, self.info.size)

    def run(self, pixels: npt.NDArray[np.uint8], *outputs: str) -> list[npt.NDArray[np.float32]]:
        """The graph's outputs for pixels uint8 `[N, H, W, 3]` of any height and width."""
        try:
            values = self._session.run(list(outputs), {INPUT: pixels})
        except Exception as error:
            raise UserError(f"{self.path} can't be run on this picture: {_short(error)}") from None
        if not np.isfinite(values[0]).all():
            raise UserError(f"{self.path} gave a number that is not finite: the model is damaged, export it anew")
        return list(values)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


class Found(NamedTuple):
    """What lies at the paths that a user named."""

    images: dict[str, Path]  # by id: the file's name without its ending
    skipped: int  # files in folders that aren't images by their ending


def find_images(paths: Iterable[Path]) -> Found:
    """Images among files and, recursively, in folders. A file that is named is taken whatever its ending.

    Raises:
        UserError: a path is absent; or two files would have the same id.
    """
    images: dict[str, Path] = {}
    skipped = 0

    def add(path: Path) -> None:
        other = images.setdefault(path.stem, path)
        if other.resolve() != path.resolve():
            raise UserError(f"{other} and {path} would both be image {path.stem}: rename one, or predict them apart")

    for path in paths:
        if path.is_dir():
            for file in sorted(p for p in path.rglob("*") if p.is_file()):
                if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith("."):
                    add(file)
                else:
                    skipped += 1
        elif path.exists():
            add(path)
        else:
            raise UserError(f"there is no file or folder {path}")
    return Found(images, skipped)


def read_lesions(path: Path, image_ids: Sequence[str]) -> list[str]:
    """Each image's lesion, from a CSV with the columns `image` (or `image_id`) and `lesion_id`.

    Raises:
        UserError: the file can't be read, lacks a column, or names no lesion for an image, or two.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} can't be read as a table: {_short(error)}") from None
    column = next((c for c in ("image", "image_id") if rows and c in rows[0]), None)
    if column is None or "lesion_id" not in rows[0]:
        raise UserError(f"{path} must have rows with the columns image and lesion_id")
    lesion: dict[str, str] = {}
    for row in rows:
        image, name = row[column] or "", row["lesion_id"] or ""
        if lesion.setdefault(image, name) != name:
            raise UserError(f"{path}: image {image} has two lesions")
    without = [i for i in image_ids if not lesion.get(i)]
    if without:
        raise UserError(f"{path} names no lesion for image {without[0]} and {len(without) - 1} more: add their rows")
    return [lesion[i] for i in image_ids]


def _pixels_of(classifier: Classifier, paths: Sequence[Path]) -> Iterator[npt.NDArray[np.uint8] | UserError]:
    """Each file's pixels, or what is wrong with it, in order; read ahead by a batch."""

    def read(path: Path) -> npt.NDArray[np.uint8] | UserError:
        try:
            return classifier.pixels(path)
        except UserError as error:
            return error

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(paths), BATCH):
            yield from pool.map(read, paths[start : start + BATCH])


def predict(
    model: Path,
    paths: Sequence[Path],
    out: Path,
    *,
    prevalence: str = "equal",
    lesions: Path | None = None,
    device: str = "auto",
) -> None:
    """Writes the probabilities of every readable image among `paths` to `out`, in ISIC's format.

    Args:
        model: the .onnx file.
        paths: files and folders.
        out: the CSV: `image`, and a column a class.
        prevalence: `equal`, `training`, or shares such as `mel=0.05,nv=0.8,…`.
        lesions: a CSV that names each image's lesion; images of one lesion get the lesion's probabilities.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        UserError: something that was asked for can't be had; or, after all is written, images that can't be read.
    """
    classifier = Classifier(model, device)
    info = classifier.info
    stated = parse_prevalence(prevalence, info.codes, info.prevalence)
    if not out.parent.is_dir() or out.is_dir():
        raise UserError(f"{out} can't be written: --csv takes a file in a folder that exists")
    found = find_images(paths)
    if not found.images:
        raise UserError(f"there is no image at {', '.join(map(str, paths))} ({found.skipped} other files)")
    ids = list(found.images)
    lesion_of = dict(zip(ids, read_lesions(lesions, ids), strict=True)) if lesions else {}
    print(
        f"Model {info.name} of {info.created}, sha256 {classifier.digest[:12]}, on the {classifier.device}", flush=True
    )
    if info.warning:
        print(info.warning, flush=True)

    kept: list[str] = []
    unreadable: list[UserError] = []
    probabilities = [np.zeros((0, len(info.codes)), np.float32)]
    batch: list[npt.NDArray[np.uint8]] = []
    for image_id, pixels in zip(
        tqdm(ids, "Predicting", unit="image", leave=False),
        _pixels_of(classifier, list(found.images.values())),
        strict=True,
    ):
        if isinstance(pixels, UserError):
            unreadable.append(pixels)
            continue
        kept.append(image_id)
        batch.append(pixels)
        if len(batch) == BATCH:
            probabilities.append(classifier.run(np.stack(batch), OUTPUTS[0])[0])
            batch = []
    if batch:
        probabilities.append(classifier.run(np.stack(batch), OUTPUTS[0])[0])
    values = np.concatenate(probabilities).astype(np.float64)
    if lesion_of and kept:
        values = combine(values, [lesion_of[i] for i in kept], info.lesion_rule)
    if stated is not None and kept:
        values = at_prevalence(values, stated)
    write_atomic(out, _csv(kept, info.columns, values))
    said = f"{len(kept):,} images into {out}, probabilities for {_prevalence_words(prevalence)}"
    if lesion_of:
        said += f", {len({lesion_of[i] for i in kept}):,} lesions combined by their {info.lesion_rule} mean".replace(
            "mean mean", "mean"
        )
    if found.skipped:
        said += f"; {found.skipped:,} files that aren't images skipped"
    print(said)
    if unreadable:
        raise UserError("\n".join([f"{len(unreadable):,} images are not in {out}:", *map(str, unreadable)]))


def _prevalence_words(prevalence: str) -> str:
    return {"equal": "equal prevalence", "training": "the training data's prevalence"}.get(
        prevalence, "the stated prevalence"
    )


def _csv(image_ids: Sequence[str], columns: Sequence[str], values: npt.NDArray[np.float64]) -> bytes:
    """ISIC's format; all digits, since rounding makes ties."""
    text = io.StringIO()
    writer: Any = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *columns])
    for image_id, row in zip(image_ids, np.clip(values, 0.0, 1.0), strict=True):
        writer.writerow([image_id, *map(repr, row.tolist())])
    return text.getvalue().encode()

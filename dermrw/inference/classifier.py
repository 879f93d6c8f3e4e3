"""A model file as a Python object, by ONNX Runtime and `dermrw.images.preprocess`. No torch in here."""

import hashlib
import operator
import os
from collections.abc import Callable, Mapping, Sequence, Set
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, overload

# since 1.29 ONNX Runtime's official builds report each session to Microsoft; the variable is read on import
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image

from dermrw.errors import UserError
from dermrw.files import open_regular
from dermrw.images.field_of_view import Box
from dermrw.images.preprocess import PLAIN, Framing, cut, evaluation_pixels, field_of_view, network_pixels, read_image
from dermrw.inference.image_rows import BATCH, classify_table
from dermrw.inference.known_images import KEY, ImageHash, KnownImages, image_hash
from dermrw.inference.messages import adapted
from dermrw.inference.model_file import INPUT, OUTPUTS, ModelInfo
from dermrw.inference.shipped import shipped_model
from dermrw.inference.verdict import Verdict, verdict

onnxruntime.disable_telemetry_events()  # in case another module imported it first

MODEL_BYTES = 2 * 2**30  # protobuf's own limit
MOST_THREADS = 1024
THUMBNAIL = 320  # pixels of the longer side of the picture that shows what was cut
QUANTIZED = (
    "The model file was quantized after its export: its thresholds and its scores are those of the original file, so "
    "check its answers on labelled images"
)

# types with a length that are not sequences of pictures; `read_image` raises the error for the invalid ones
NOT_SEQUENCES = (str, bytes, bytearray, memoryview, Mapping, Set, Path, Image.Image, np.ndarray)
Picture = str | Path | BinaryIO | Image.Image | npt.NDArray[np.uint8]


class Origin(NamedTuple):
    """How a classifier was loaded, so that another process can load it too."""

    path: str  # of the model file, absolute
    device: str
    threads: int
    digest: str  # SHA-256 of the file


class NetworkInput(NamedTuple):
    """The network's input for one picture, and the picture's original size."""

    pixels: npt.NDArray[np.uint8]  # [size, size, 3]
    width: int
    height: int
    notes: tuple[str, ...] = ()  # for the user, such as `its colour profile is damaged … and was ignored`
    box: Box | None = None  # the part of the upright picture that is used; None: all of it, nothing was cut
    thumbnail: npt.NDArray[np.uint8] | None = None  # the whole picture `[h, w, 3]`, if something was cut
    hashes: ImageHash | None = None  # perceptual hashes of the uncut picture, if they are asked for

    @property
    def content_size(self) -> tuple[int, int]:
        """Width and height in pixels of the part that is used."""
        return (self.box.width, self.box.height) if self.box else (self.width, self.height)


class Explanation(NamedTuple):
    """The outputs of the model for one picture, and the verdict."""

    probabilities: npt.NDArray[np.float32]  # [C], at equal prevalence
    activation_map: npt.NDArray[np.float32]  # [C, h, w]: the contribution of each position to each logit
    embedding: npt.NDArray[np.float32]  # [D]
    pixels: npt.NDArray[np.uint8]  # [size, size, 3]: the network's input
    verdict: Verdict  # refusal, prediction set, triage
    notes: tuple[str, ...] = ()  # on how the picture was read, for the user
    size: tuple[int, int] = (0, 0)  # width and height of the upright picture, pixels
    box: Box | None = None  # the part of it that is used; None: all of it, nothing was cut
    thumbnail: npt.NDArray[np.uint8] | None = None  # the whole picture `[h, w, 3]`, if something was cut
    hashes: ImageHash | None = None  # perceptual hashes of the uncut picture, if they are asked for

    @property
    def used(self) -> Box:
        """The part of the upright picture that is used; all of it if nothing was cut."""
        return self.box or Box(0, 0, *self.size)


def _providers(device: str) -> list[str]:
    """ONNX Runtime's execution providers for `auto`, `cpu` or `cuda`."""
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device takes auto, cpu or cuda, not {device}")
    # on machines without a GPU the CUDA build lists its provider too, and prints errors when it is requested
    gpu = "CUDAExecutionProvider" in onnxruntime.get_available_providers() and (
        Path("/dev/nvidia0").exists() or os.name == "nt"
    )
    if device == "cuda" and not gpu:
        raise UserError("--device cuda: ONNX Runtime finds no CUDA device; leave the option out to use the CPU")
    return ["CUDAExecutionProvider", "CPUExecutionProvider"] if gpu and device != "cpu" else ["CPUExecutionProvider"]


class Classifier:
    """A model file, ready to classify pictures.

    >>> classifier = Classifier()  # the model shipped with dermrw; Classifier("runs/mine/model.onnx") loads another
    >>> classifier(["one.jpg", "two.png"])  # [2, 7], at equal prevalence; the classes are classifier.info.codes
    """

    def __init__(self, model: str | Path | None = None, device: str = "auto", threads: int = 0) -> None:
        """Loads a model file that `make export` wrote.

        Args:
            model: the .onnx file; default: the model shipped with dermrw.
            device: `auto` (a GPU if ONNX Runtime can use one), `cpu` or `cuda`.
            threads: threads of one inference; 0: one per core.

        Raises:
            UserError: the file is absent, damaged or not a dermrw model; CUDA cannot be used; or `threads` is not
                from 0 to `MOST_THREADS`.
        """
        if not isinstance(model, str | os.PathLike | None):
            raise UserError(f"the model must be the path of an .onnx file, not {type(model).__name__}")
        path = shipped_model() if model is None else Path(model)
        try:
            with open_regular(path) as file:
                if os.fstat(file.fileno()).st_size > MODEL_BYTES:
                    raise UserError(f"{path} is too large for a model file: name one that `make export` wrote")
                content = file.read()
        except FileNotFoundError:
            raise UserError(f"there is no model {path}: `make export` writes one") from None
        except OSError as error:
            raise UserError(f"the model {path} can't be read: {error.strerror}") from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if isinstance(threads, bool) or not hasattr(threads, "__index__") or not 0 <= threads <= MOST_THREADS:
            raise UserError(f"threads must be a whole number from 0 (one per core) to {MOST_THREADS}, not {threads!r}")
        threads = operator.index(threads)
        options.intra_op_num_threads = threads
        try:
            # from memory, so that a file that refers to weights in other files on the disk does not load
            self._session = onnxruntime.InferenceSession(content, options, providers=_providers(device))
            props = self._session.get_modelmeta().custom_metadata_map
        except UserError:
            raise
        except Exception as error:  # ONNX Runtime's errors have no common base class
            raise UserError(
                f"{path} is not a model that can be loaded: name a file that `dermrw export` wrote ({_short(error)})"
            ) from None
        self.path = path
        self._device, self._threads = device, threads
        self.digest = hashlib.sha256(content).hexdigest()  # SHA-256 of the file
        self.info = ModelInfo.from_props(props, str(path))
        self.framing = Framing.of(self.info)
        self._known_images = {KEY: props[KEY]} if KEY in props else {}
        self.quantized = props.get("onnx.infer") == "onnxruntime.quant"  # the mark of ONNX Runtime's quantization
        self.device = "CUDA" if "CUDAExecutionProvider" in self._session.get_providers() else "CPU"
        if device == "cuda" and self.device != "CUDA":
            raise UserError("--device cuda: CUDA is installed but does not start; leave the option out to use the CPU")
        inputs = [(i.name, i.type) for i in self._session.get_inputs()]
        if inputs != [(INPUT, "tensor(uint8)")] or tuple(o.name for o in self._session.get_outputs()) != OUTPUTS:
            raise UserError(
                f"{path} has other inputs or outputs than a dermrw model: export it again with `make export`"
            )
        self._require_size()

    def known_images(self) -> KnownImages | None:
        """The images that the model was trained and calibrated on; None if the file does not list them.

        Raises:
            UserError: the list is damaged.
        """
        return KnownImages.from_props(self._known_images, str(self.path))

    @property
    def lists_known_images(self) -> bool:
        """Whether the file lists the images that the model was trained and calibrated on."""
        return bool(self._known_images)

    @property
    def origin(self) -> Origin:
        """How this classifier was loaded."""
        return Origin(str(self.path.absolute()), self._device, self._threads, self.digest)

    def __reduce__(self) -> tuple[Callable[[Origin], "Classifier"], tuple[Origin]]:
        """Pickled by the path of the model file, which the other process loads."""
        return load, (self.origin,)

    @overload
    def __call__(self, pictures: Picture | Sequence[Picture]) -> npt.NDArray[np.float32]: ...

    @overload
    def __call__(self, pictures: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]: ...

    def __call__(
        self, pictures: Picture | Sequence[Picture] | Mapping[str, Any]
    ) -> npt.NDArray[np.float32] | dict[str, npt.NDArray[Any]]:
        """Probabilities `[N, C]` at equal prevalence of N pictures: files, PIL images or arrays uint8 `[H, W, 3]`.

        A table with the column `path`, as Ray Data's `map_batches` passes it, is returned with the columns of
        `dermrw predict`: `image`, one per class, `refused`, `set`, `triage`, `not_ruled_out`, `malignancy_score`, and
        `error`. A file that can't be read has an error, and nan as its probabilities and score. The score is also nan
        for a refused image, and without triage.

        Raises:
            UserError: a picture can't be read.
        """
        if isinstance(pictures, Mapping) and "path" in pictures:
            return classify_table(self, pictures)
        if isinstance(pictures, NOT_SEQUENCES) or not hasattr(pictures, "__len__") or hasattr(pictures, "read"):
            pictures = [pictures]  # type: ignore[list-item]
        batches = [np.zeros((0, len(self.info.codes)), np.float32)]
        waiting = iter(pictures)  # also of what has no slices: a deque, the values of a dict, a column of a data frame
        while batch := [self.pixels(picture) for picture in islice(waiting, BATCH)]:
            batches.append(self.run(np.stack(batch), OUTPUTS[0])[0])
        return np.concatenate(batches)

    def explain(self, picture: Picture, box: Box | None = None, hashed: bool = False) -> Explanation:
        """All outputs of the model for one picture, and the verdict.

        Args:
            picture: a file, a PIL image or an array.
            box: the part of the upright picture to use, instead of the field of view that `self.framing` finds.
            hashed: whether to compute perceptual hashes.

        Raises:
            UserError: the picture can't be read, or the box is not a part of it.
        """
        network_input = self.prepare(picture, hashed, box)
        probabilities, activation_map, embedding, checks = self.run(network_input.pixels[None], *OUTPUTS)
        image_verdict = verdict(probabilities[0], checks[0], *network_input.content_size, self.info)
        return Explanation(
            probabilities[0], activation_map[0], embedding[0], network_input.pixels, image_verdict, network_input.notes,
            (network_input.width, network_input.height), network_input.box, network_input.thumbnail,
            network_input.hashes,
        )  # fmt: skip

    def prepare(self, picture: Picture, hashed: bool = False, box: Box | None = None) -> NetworkInput:
        """The network's input for a picture, the picture's size, and the part of it that is used.

        Args:
            picture: a file, a PIL image or an array.
            hashed: whether to compute perceptual hashes.
            box: as of `explain`.

        Raises:
            UserError: the picture can't be read, or the box is not a part of it.
        """
        try:
            image = read_image(picture)
        except UserError as error:
            raise UserError(adapted(str(error), self.info)) from None
        notes = tuple(image.info.get("notes", ()))
        box = field_of_view(image, self.framing) if box is None else _part(box, image)
        pixels = network_pixels(cut(image, box), self.info.size, self.framing)
        hashes = None
        if hashed:  # the list in the model file is of uncut pictures
            hashes = image_hash(pixels if self.framing == PLAIN else evaluation_pixels(image, self.info.size))
        if box == (0, 0, *image.size):
            return NetworkInput(pixels, *image.size, notes, hashes=hashes)
        whole = image.copy()
        whole.thumbnail((THUMBNAIL, THUMBNAIL))
        return NetworkInput(pixels, *image.size, notes, box, np.array(whole), hashes)

    def pixels(self, picture: Picture) -> npt.NDArray[np.uint8]:
        """The network's input for a picture, uint8 `[size, size, 3]`."""
        return self.prepare(picture).pixels

    def run(self, pixels: npt.NDArray[np.uint8], *outputs: str) -> list[npt.NDArray[np.float32]]:
        """The graph's outputs for pixels uint8 `[N, H, W, 3]` of any height and width.

        Raises:
            UserError: the graph fails, or an output has the wrong shape, type or range.
        """
        options = None
        if len(pixels) > 1 and self._session.get_providers() == ["CPUExecutionProvider"]:
            # a batch's memory goes back; else ONNX Runtime reserves as much again for the next one
            options = onnxruntime.RunOptions()
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        try:
            values = self._session.run(list(outputs), {INPUT: pixels}, options)
        except Exception as error:
            raise UserError(f"{self.path} can't be run on this picture: {_short(error)}") from None
        for name, value in zip(outputs, values, strict=True):
            fault = _fault(name, value, len(pixels), len(self.info.codes), len(self.info.limits))
            if fault:
                raise UserError(f"{self.path} gave {name} {fault}: the model is damaged, export it again")
        return list(values)

    def _require_size(self) -> None:
        """Refuses metadata with another input size than the graph's: the results would be silently worse.

        The graph resizes to its own size by the same arithmetic as `pixels`. So noise gives the same embedding if it is
        resized before to the graph's size, and another embedding if it is resized to any other size.
        """
        side = self.info.size
        noise = np.random.default_rng(0).integers(0, 256, (3 * side // 2, 2 * side, 3), dtype=np.uint8)
        expected = network_pixels(Image.fromarray(noise), side, self.framing)
        raw, resized = (self.run(pixels[None], *OUTPUTS)[2] for pixels in (noise, expected))
        if raw.shape != resized.shape or np.abs(raw - resized).max(initial=0) > 1e-3 * np.abs(raw).max(initial=0):
            raise UserError(
                f"{self.path} has another input size than {side}, or another crop than {self.framing.crop}, as in its "
                "metadata: export it again"
            )


def load(origin: Origin) -> Classifier:
    """Loads the same model file again, such as in another process.

    Raises:
        UserError: as of `Classifier`; or the file has changed.
    """
    classifier = Classifier(origin.path, origin.device, origin.threads)
    if classifier.digest != origin.digest:
        raise UserError(f"the model {origin.path} has changed since it was first loaded: start again")
    return classifier


def _part(box: Box, image: Image.Image) -> Box:
    """The box, which must be a part of the picture."""
    try:
        left, top, right, bottom = map(operator.index, box)
    except (TypeError, ValueError):
        raise UserError(f"box must be (left, top, right, bottom) in whole pixels, not {box!r}") from None
    if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
        raise UserError(f"box {tuple(box)} is no part of a picture of {image.width} × {image.height} pixels")
    return Box(left, top, right, bottom)


def _fault(name: str, value: Any, rows: int, classes: int, checks: int) -> str | None:
    """The fault of an output of the graph, for an error message; None if there is none."""
    shapes = [(rows, classes), (rows, classes, None, None), (rows, None), (rows, checks)]
    expected = dict(zip(OUTPUTS, shapes, strict=True))[name]
    shape, dtype = getattr(value, "shape", ()), getattr(value, "dtype", type(value).__name__)
    if len(shape) != len(expected) or any(want not in (None, size) for size, want in zip(shape, expected, strict=True)):
        return f"of shape {list(shape)} for {rows} pictures and {classes} classes"
    if dtype != np.float32:
        return f"of type {dtype}"
    if not np.isfinite(value).all():
        return "that are not finite"
    if name == OUTPUTS[0] and ((value < 0).any() or (np.abs(value.sum(1, dtype=np.float64) - 1) > 1e-3).any()):
        return "that are below 0 or don't sum to 1"
    return None


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

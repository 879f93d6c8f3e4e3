"""A model file as a Python object: ONNX Runtime and `pixels.py`. No torch in here."""

import hashlib
import os
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

# ONNX Runtime's official builds report each session to Microsoft since 1.29; it reads this when it is imported
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image

from dermrw.decisions.refusal import CHECKS
from dermrw.errors import UserError
from dermrw.files import open_regular
from dermrw.images.preprocess import evaluation_pixels, read_image
from dermrw.inference.model_file import INPUT, OUTPUTS, ModelInfo
from dermrw.inference.verdict import Verdict, verdict

onnxruntime.disable_telemetry_events()  # where another module imported it first

BATCH = 32
MODEL_BYTES = 2 * 2**30  # protobuf's own limit

# what has a length and still is no sequence of pictures; `read_image` says of those that are none what it takes
ONE = (str, bytes, bytearray, memoryview, Mapping, Set, Path, Image.Image, np.ndarray)
Picture = str | Path | BinaryIO | Image.Image | npt.NDArray[np.uint8]


class Shown(NamedTuple):
    """A picture as the network is shown it, and how large it was."""

    pixels: npt.NDArray[np.uint8]  # [size, size, 3]
    width: int
    height: int


class Explanation(NamedTuple):
    """All that the model says of one picture."""

    probabilities: npt.NDArray[np.float32]  # [C], for equal prevalence
    activation_map: npt.NDArray[np.float32]  # [C, h, w]: what each position adds to each logit
    embedding: npt.NDArray[np.float32]  # [D]
    pixels: npt.NDArray[np.uint8]  # [size, size, 3]: what the network was shown
    verdict: Verdict  # refused or not, the prediction set, refer or not


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
            UserError: the file is absent, damaged or not dermrw's; CUDA can't be used; or `threads` < 0.
        """
        path = Path(model)
        try:
            with open_regular(path) as file:
                if os.fstat(file.fileno()).st_size > MODEL_BYTES:
                    raise UserError(f"{path} is larger than a model file can be: name one that `make export` wrote")
                content = file.read()
        except FileNotFoundError:
            raise UserError(f"there is no model {path}: `make export` writes one") from None
        except OSError as error:
            raise UserError(f"the model {path} can't be read: {error.strerror}") from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if threads < 0:
            raise UserError(f"threads must be 0, for as many as there are cores, or more, not {threads}")
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
        self._require_size()

    def __call__(self, pictures: Picture | Sequence[Picture]) -> npt.NDArray[np.float32]:
        """Probabilities `[N, C]` for equal prevalence of N pictures: files, PIL images or arrays uint8 `[H, W, 3]`.

        Raises:
            UserError: a picture can't be read.
        """
        if isinstance(pictures, ONE) or not hasattr(pictures, "__len__") or hasattr(pictures, "read"):
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
        shown = self.show(picture)
        probabilities, activation_map, embedding, checks = self.run(shown.pixels[None], *OUTPUTS)
        said = verdict(probabilities[0], checks[0], shown.width, shown.height, self.info)
        return Explanation(probabilities[0], activation_map[0], embedding[0], shown.pixels, said)

    def show(self, picture: Picture) -> Shown:
        """What the network is shown of a picture, and how large the picture is.

        Raises:
            UserError: the picture can't be read.
        """
        image = read_image(picture)
        return Shown(evaluation_pixels(image, self.info.size), *image.size)

    def pixels(self, picture: Picture) -> npt.NDArray[np.uint8]:
        """What the network is shown of a picture, uint8 `[size, size, 3]`."""
        return self.show(picture).pixels

    def run(self, pixels: npt.NDArray[np.uint8], *outputs: str) -> list[npt.NDArray[np.float32]]:
        """The graph's outputs for pixels uint8 `[N, H, W, 3]` of any height and width.

        Raises:
            UserError: the graph fails, or gives what can't be probabilities, maps, embeddings and checks of N pictures.
        """
        try:
            values = self._session.run(list(outputs), {INPUT: pixels})
        except Exception as error:
            raise UserError(f"{self.path} can't be run on this picture: {_short(error)}") from None
        for name, value in zip(outputs, values, strict=True):
            fault = _fault(name, value, len(pixels), len(self.info.codes))
            if fault:
                raise UserError(f"{self.path} gave {name} {fault}: the model is damaged, export it anew")
        return list(values)

    def _require_size(self) -> None:
        """Refuses metadata that name another size than the graph's, whose answers would be quietly worse.

        The graph resizes to its own size by the very arithmetic of `pixels`: what was brought to that size before
        gives the same embedding, and noise that was brought to another size does not.
        """
        side = self.info.size
        noise = np.random.default_rng(0).integers(0, 256, (3 * side // 2, 2 * side, 3), dtype=np.uint8)
        given, shown = (self.run(pixels[None], *OUTPUTS)[2] for pixels in (noise, self.pixels(noise)))
        if given.shape != shown.shape or np.abs(given - shown).max(initial=0) > 1e-3 * np.abs(given).max(initial=0):
            raise UserError(
                f"{self.path} is not of the size {side} that it names: the model is damaged, export it anew"
            )


def _fault(name: str, value: Any, rows: int, classes: int) -> str | None:
    """What is wrong with an output of the graph."""
    shapes = [(rows, classes), (rows, classes, None, None), (rows, None), (rows, len(CHECKS))]
    wanted = dict(zip(OUTPUTS, shapes, strict=True))[name]
    shape, kind = getattr(value, "shape", ()), getattr(value, "dtype", type(value).__name__)
    if len(shape) != len(wanted) or any(b not in (None, a) for a, b in zip(shape, wanted, strict=True)):
        return f"of shape {list(shape)} for {rows} pictures and {classes} classes"
    if kind != np.float32:
        return f"of type {kind}"
    if not np.isfinite(value).all():
        return "that are not finite"
    if name == OUTPUTS[0] and ((value < 0).any() or (np.abs(value.sum(1, dtype=np.float64) - 1) > 1e-3).any()):
        return "that are below 0 or don't sum to 1"
    return None


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

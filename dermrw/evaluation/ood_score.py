"""Out-of-distribution score: the distance of an image from the training images in intermediate features.

A classifier returns a class for any image, including images of other subjects. The intermediate layers of the network
can detect such images: they describe textures and colours, and training on seven lesion classes has not yet made them
insensitive to other content. The features are the mean and the standard deviation of each channel over the image, at
the last block of every scale from a quarter to a sixteenth of the input. The score is the squared Mahalanobis distance
from the features of the training images (Lee et al., NeurIPS 2018, here with a single class for all images; as there,
no out-of-distribution image is needed for the fit). The covariance keeps its largest principal components and is
assumed equal in all other directions (Tipping and Bishop, J. R. Stat. Soc. B 61:611-622 (1999)). The estimate is
therefore also stable with a thousand channels and a few hundred images.
"""

from collections.abc import Mapping
from functools import partial
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dermrw.models import blocks

COMPONENTS = 128
IMAGES = 2500  # maximum number of training images for the fit

# Lower bounds of the fit. Without them, a channel or a combination of channels that hardly varies over the training
# images would amplify the rounding errors of float32, which differ between processors.
LEAST_SCALE = 0.01  # of a channel's standard deviation, relative to the root mean square over all channels
LEAST_VARIATION = 1e-3  # of a channel's standard deviation, relative to its mean
LEAST_VARIANCE = 0.01  # of a principal component, relative to the mean over all directions
GREATEST_CONDITION = 1e4  # largest variance over smallest


def _positions(x: Tensor) -> tuple[int, ...] | None:
    """Returns the spatial axes of a map `[N, D, h, w]`, or `[N, h, w, D]` as in Swin, or of tokens `[N, T, D]`.

    It returns None for other outputs.
    """
    if x.ndim == 3:
        return (1,)
    if x.ndim != 4:
        return None
    if x.shape[2] == x.shape[3]:
        return 2, 3
    return (1, 2) if x.shape[1] == x.shape[2] else None


def describe(maps: list[Tensor]) -> Tensor:
    """Returns the mean and standard deviation of every channel of every map: maps `[N, D, h, w]` -> `[N, K]`."""
    found = []
    for x in maps:
        axes = _positions(x)
        assert axes is not None
        mean = x.mean(axes, keepdim=True)
        deviation = ((x - mean).square().mean(axes) + 1e-6).sqrt()
        found += [mean.flatten(1), deviation]
    return torch.cat(found, 1)


class Watch:
    """Context manager that records the outputs of named modules of a network."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        self.model, self.names = model, names
        self.maps: dict[str, Tensor] = {}  # last output of each module, in the order of their first calls
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        for name in self.names:
            self._handles.append(self.model.get_submodule(name).register_forward_hook(partial(self._note, name)))
        return self

    def _note(self, name: str, _module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> None:
        self.maps[name] = output

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def take(self) -> list[Tensor]:
        """Returns the last output of each module since the previous call of `take`, and clears the record."""
        taken, self.maps = list(self.maps.values()), {}
        return taken


def middle(model: nn.Module, size: int) -> tuple[str, ...]:
    """Returns the names of the last block of every scale from a quarter to a sixteenth of `size`.

    If there is no block in this range, it returns the last block of every scale. If blocks return tokens alone, as in
    timm's vision transformers, it returns the block in the middle.

    Raises:
        ValueError: no block outputs a map or tokens.
    """
    with torch.no_grad(), Watch(model, tuple(name for name, _ in blocks(model))) as watch:
        model.eval()(torch.zeros(1, 3, size, size, device=next(model.parameters()).device))
    sides: dict[int, str] = {}  # the last block of each side wins
    tokens = []
    for name, given in watch.maps.items():
        axes = _positions(given) if isinstance(given, Tensor) else None
        if axes == (1,):
            tokens.append(name)
        elif axes:
            sides[given.shape[axes[0]]] = name
    if tokens and not sides:
        return (tokens[len(tokens) // 2],)
    kept = tuple(name for side, name in sides.items() if size // 16 <= side <= size // 4)
    if not sides:
        raise ValueError("no block of this network returns a feature map")
    return kept or tuple(sides.values())


def last_map(model: nn.Module, size: int) -> tuple[str, ...]:
    """Returns the name of the last block of a stage that outputs a map of more than one position.

    There is none, and the result is empty, in networks that return tokens.
    """
    with torch.no_grad(), Watch(model, tuple(name for name, _ in blocks(model))) as watch:
        model.eval()(torch.zeros(1, 3, size, size, device=next(model.parameters()).device))
    found = []
    for name, given in watch.maps.items():
        axes = _positions(given) if "." in name and isinstance(given, Tensor) else None
        if axes and len(axes) == 2 and given.shape[axes[0]] > 1:
            found.append(name)
    return tuple(found[-1:])


class Familiarity(nn.Module):
    """Out-of-distribution score `[N]` from descriptions of the maps of the blocks `names`.

    The score is about 1 on the training set and higher for images that differ from it.
    """

    mean: Tensor  # [K]
    scale: Tensor  # [K]
    basis: Tensor  # [K, k], principal axes of the scaled descriptions
    variance: Tensor  # [k]
    rest: Tensor  # [], variance in every other direction

    def __init__(self, names: tuple[str, ...], arrays: Mapping[str, npt.ArrayLike]) -> None:
        super().__init__()
        self.names = names
        for key in ("mean", "scale", "basis", "variance", "rest"):
            self.register_buffer(key, torch.from_numpy(np.array(arrays[key], dtype=np.float32)))

    def forward(self, descriptions: Tensor) -> Tensor:
        """Returns the squared distance divided by K `[N]` for descriptions `[N, K]`."""
        x = (descriptions - self.mean) / self.scale
        z = x @ self.basis
        rest = (x.square().sum(1) - z.square().sum(1)).clamp(min=0)
        return ((z.square() / self.variance).sum(1) + rest / self.rest) / x.shape[1]

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Returns the names of the blocks and the fitted arrays, for `Checks.save`."""
        fitted = {key: value.cpu().numpy() for key, value in self.state_dict().items()}
        return {"names": np.array(self.names), **fitted}

    @classmethod
    def of(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """Restores the score from the result of `arrays`.

        Raises:
            KeyError: an array is absent.
        """
        return cls(tuple(arrays["names"].tolist()), arrays)

    @classmethod
    def fit(cls, names: tuple[str, ...], descriptions: npt.NDArray[np.floating[Any]]) -> Self:
        """Fits the score on the descriptions `[n, K]` of n > 1 training images, in float64.

        Standard deviations and variances have lower bounds (see `LEAST_SCALE` and the constants after it), so that the
        score is also well-conditioned with constant and collinear channels.
        """
        x = descriptions.astype(np.float64)
        mean, deviation = x.mean(0), x.std(0)
        scale = np.maximum(deviation, LEAST_SCALE * np.sqrt(np.square(deviation).mean()))
        scale = np.maximum(scale, LEAST_VARIATION * np.abs(mean)) + 1e-6
        _, values, axes = np.linalg.svd((x - mean) / scale, full_matrices=False)
        variance = values**2 / len(x)
        # with few images, the smallest components are mostly noise
        k = max(1, min(COMPONENTS, x.shape[1] - 1, len(x) // 4))
        least = max(LEAST_VARIANCE * variance.sum() / x.shape[1], variance[0] / GREATEST_CONDITION, 1e-4)
        rest = max(variance[k:].sum() / max(1, x.shape[1] - k), least)
        kept = np.maximum(variance[:k], least)
        return cls(names, {"mean": mean, "scale": scale, "basis": axes[:k].T, "variance": kept, "rest": rest})

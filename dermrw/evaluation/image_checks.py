"""The image checks for refusal, computed by a network from the pixels: eight, or nine with a photograph detector."""

import io
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from dermrw.config import Data
from dermrw.datasets import artefacts
from dermrw.datasets.augment import augmenter, example_seed
from dermrw.datasets.composed_photographs import compose
from dermrw.datasets.dataset import ImageSet
from dermrw.datasets.pixels import ImageDataset, in_order
from dermrw.evaluation.ood_score import IMAGES, Familiarity, Watch, describe, last_map, middle
from dermrw.evaluation.photograph_detector import PhotographDetector
from dermrw.images.preprocess import Framing, content, network_pixels, read_image, resize
from dermrw.network_input import normalisation_of, to_input
from dermrw.training.device import Placement
from dermrw.training.logits import predict_logits

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601
BURNT = 250  # grey levels from which a pixel counts as overexposed
# quantiles of the absolute value of a standard normal variable
NORMAL_QUARTER, NORMAL_MEDIAN = 0.3186, 0.6745
# what may be seen in a picture that is to be judged
ARTEFACTS: tuple[artefacts.Draw, ...] = (
    artefacts.ruler, artefacts.hairs, artefacts.ink, artefacts.bubbles, artefacts.dark_corners, artefacts.sticker,
    artefacts.glare, artefacts.vignette,
)  # fmt: skip
COMPOSED = 350  # training images that are made into photographs to refuse
COPIES = 5  # random changes of each picture to refuse, in addition to the picture


def quality(pixels: Tensor) -> Tensor:
    """Returns seven quality measures `[N, 7]` of pixels uint8 `[N, S, S, 3]`, in the order of `refusal.CHECKS`.

    Brightness and contrast are the mean and the standard deviation of the luminance, in grey levels. The second measure
    is the share of overexposed pixels, with a luminance of `BURNT` or more. Sharpness is the standard deviation of the
    Laplacian of the luminance divided by the contrast plus 1: blurred images have small second derivatives, regardless
    of the strength of their colours.

    Colour is the standard deviation, in grey levels, of the residuals of red and blue after regression on the
    luminance. It is zero for a grey image, and also for a sepia-toned one.

    Grain and colour grain are the standard deviations, in grey levels, of the noise in the luminance and in red and
    blue minus the luminance. They are estimated from second differences in both directions (Immerkær, CVIU 64:300-302,
    1996). Immerkær uses the mean of their absolute values, which hair and borders would raise. Here, the lower quartile
    is used for the luminance, which has more texture, and the median for the smoother colours.
    """
    x = pixels.float()
    y = (x * torch.tensor(LUMINANCE, device=pixels.device)).sum(3)  # [N, S, S]
    mean = y.mean((1, 2))
    contrast = (y - mean[:, None, None]).square().mean((1, 2)).sqrt()
    inner = y[:, 1:-1, 1:-1]
    laplacian = y[:, :-2, 1:-1] + y[:, 2:, 1:-1] + y[:, 1:-1, :-2] + y[:, 1:-1, 2:] - 4 * inner
    sharpness = laplacian.square().mean((1, 2)).sqrt() / (contrast + 1)
    red_blue = torch.stack([x[..., 0], x[..., 2]], 1).flatten(2)  # [N, 2, S²]
    red_blue = red_blue - red_blue.mean(2, keepdim=True)
    centred = (y - mean[:, None, None]).flatten(1)[:, None]  # [N, 1, S²]
    slope = (red_blue * centred).mean(2, keepdim=True) / (contrast.square() + 1)[:, None, None]
    colour = (red_blue - slope * centred).square().mean((1, 2)).sqrt()
    grain = _noise(y[:, None], 0.25) / NORMAL_QUARTER
    colour_grain = _noise(torch.stack([x[..., 0] - y, x[..., 2] - y], 1), 0.5) / NORMAL_MEDIAN
    burnt = (y >= BURNT).float().mean((1, 2))
    return torch.stack([mean, burnt, contrast, sharpness, colour, grain, colour_grain], 1)


def _noise(maps: Tensor, quantile: float) -> Tensor:
    """Returns this quantile `[N]` of the absolute second differences of maps `[N, M, S, S]`.

    The differences are scaled so that their standard deviation is that of white noise in the maps.
    """
    across = maps[..., :-2] + maps[..., 2:] - 2 * maps[..., 1:-1]
    second = (across[..., :-2, :] + across[..., 2:, :] - 2 * across[..., 1:-1, :]) / 6
    size = second[..., ::2, ::2].flatten(1).abs().sort(1).values  # a quarter of the positions is enough
    return size[:, int(quantile * size.shape[1])]


class Checks(nn.Module):
    """All checks `[N, 8]` or `[N, 9]`, in the order of `refusal.ALL_CHECKS`, from pixels and maps of blocks."""

    def __init__(
        self, familiarity: Familiarity, detector: PhotographDetector | None = None, own_colours: bool = True
    ) -> None:
        """`own_colours`: the parts were fitted on pixels without colour constancy, see `maps_in_own_colours`."""
        super().__init__()
        self.familiarity = familiarity
        self.detector = detector
        self.own_colours = own_colours

    @property
    def names(self) -> tuple[str, ...]:
        """The blocks whose maps `forward` takes, in the order in which the network computes them."""
        return self.familiarity.names if self.detector is None else self.detector.names

    def forward(self, pixels: Tensor, maps: list[Tensor]) -> Tensor:
        """Returns the checks for pixels uint8 `[N, S, S, 3]` and the maps of `names` from `Watch.take`."""
        known = maps[: len(self.familiarity.names)]
        columns = [quality(pixels), self.familiarity(describe(known))[:, None]]
        if self.detector is not None:
            columns.append(self.detector(describe(maps))[:, None])
        return torch.cat(columns, 1)

    def save(self) -> bytes:
        """Returns the content of a NumPy archive with everything that was fitted."""
        buffer = io.BytesIO()
        parts: dict[str, Any] = self.familiarity.arrays() | ({} if self.detector is None else self.detector.arrays())
        np.savez(buffer, own_colours=self.own_colours, **parts)
        return buffer.getvalue()

    @classmethod
    def load(cls, content: bytes) -> Self:
        """Restores the checks from the result of `save`.

        Raises:
            ValueError: the content is not such an archive.
        """
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                own_colours = bool(arrays["own_colours"]) if "own_colours" in arrays else False
                return cls(Familiarity.of(arrays), PhotographDetector.of(arrays), own_colours)
        except (OSError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(str(error)) from None


def maps_in_own_colours(model: nn.Module, watch: Watch, pixels: Tensor, channels_last: bool = False) -> list[Tensor]:
    """Returns the maps of the blocks that `watch` records, for pixels without colour constancy.

    It is called directly after the network's own pass over these pixels. If that pass had colour constancy, it runs
    another one without. Constancy removes the colours by which many other pictures differ from dermoscopy: on the
    changed colours, the checks let a photograph of an animal pass, and miss more clinical photographs.

    Args:
        model: the network that `watch` records, in eval mode.
        watch: the record of its own pass.
        pixels: uint8 `[N, S, S, 3]`, on the network's device.
        channels_last: the memory layout of the input.
    """
    maps = watch.take()
    normalisation = normalisation_of(model)
    if normalisation.colour_constancy == "none":
        return maps
    model(to_input(pixels, pixels.device, normalisation._replace(colour_constancy="none"), channels_last))
    return watch.take()


@torch.no_grad()
def fit_checks(
    model: nn.Module,
    train: ImageSet,
    data: Data,
    choice: Placement,
    batch_size: int,
    drawn: bool,
    refuse: Sequence[Path] = (),
    skin: bool = False,
) -> Checks:
    """Fits the out-of-distribution score, and the detector of pictures to refuse if there are any.

    The score is fitted on at most `IMAGES` training images in a fixed random choice. If training drew artefacts, every
    second one has one, so that hair or a ruler alone is no reason to refuse an image.

    Args:
        model: the trained network.
        train: the training images.
        data: the config's section.
        choice: the device and memory layout.
        batch_size: images per forward pass.
        drawn: whether training drew artefacts (`Config.draws_artefacts`).
        refuse: files of pictures to refuse, of which all are used.
        skin: the training images are dermoscopic. Then `COMPOSED` of them are made into photographs to refuse.

    Raises:
        UserError: one of these files cannot be read.
    """
    part = train.part(lambda rows: np.random.default_rng(0).permutation(rows)[:IMAGES])
    familiar = middle(model, data.size)
    names = (*familiar, *last_map(model, data.size)) if refuse else familiar
    names = tuple(dict.fromkeys(names))
    own_colours = normalisation_of(model)._replace(colour_constancy="none")

    def descriptions(batches: Iterable[np.ndarray]) -> list[list[np.ndarray]]:
        found = []
        with Watch(model, names) as watch:
            model.eval()
            for pixels in batches:
                x = torch.from_numpy(np.ascontiguousarray(pixels))
                model(to_input(x, choice.device, own_colours, choice.channels_last))
                maps = watch.take()
                found.append([describe(m).float().cpu().numpy() for m in (maps[: len(familiar)], maps)])
        return found

    images = ImageDataset(part, data, progress="of the training split", once=True)
    batches = (batch.numpy() for batch, _, _ in in_order(images, batch_size))
    known = descriptions(with_artefacts(batch, every=2) if drawn else batch for batch in batches)
    familiarity = Familiarity.fit(familiar, np.concatenate([some for some, _ in known]))
    if not refuse:
        return Checks(familiarity)
    composed = _composed(part.sources[:COMPOSED] if skin else [])
    photographs = chain(_batches(refuse, data, batch_size, COPIES), _batches(composed, data, batch_size))
    other = descriptions(photographs)
    judged, refused = (np.concatenate([every for _, every in found]) for found in (known, other))
    return Checks(familiarity, PhotographDetector.fit(names, judged, refused))


def _composed(sources: Sequence[Any]) -> list[np.ndarray]:
    return [compose(np.asarray(read_image(source)), np.random.default_rng(i)) for i, source in enumerate(sources)]


def _batches(sources: Sequence[Any], data: Data, batch_size: int, copies: int = 0) -> Iterator[np.ndarray]:
    """Yields the pixels of pictures to refuse, and copies of each with random crops, flips and colours."""
    augment = augmenter("dermoscopy", data.size)
    assert augment is not None
    framing = Framing.of(data)
    for start in range(0, len(sources), batch_size):
        pictures = [content(source, framing) for source in sources[start : start + batch_size]]
        yield np.stack([network_pixels(picture, data.size, framing) for picture in pictures])
        for copy in range(copies):
            changed = [
                augment(np.asarray(resize(picture, data.size, framing.interpolation)), example_seed(0, copy, start + i))
                for i, picture in enumerate(pictures)
            ]
            yield np.stack(changed)


def with_artefacts(pixels: np.ndarray, every: int = 1) -> np.ndarray:
    """Returns pixels uint8 `[N, S, S, 3]` of which each (of `every`) has one artefact of `ARTEFACTS`, in turn."""
    rng = np.random.default_rng(len(pixels))
    changed = pixels.copy()
    for turn, row in enumerate(range(0, len(pixels), every)):
        changed[row] = ARTEFACTS[turn % len(ARTEFACTS)](np.ascontiguousarray(pixels[row]), rng)
    return changed


@torch.no_grad()
def logits_and_checks(
    model: nn.Module, checks: Checks, pixels: ImageDataset, choice: Placement, batch_size: int, number_of_views: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns logits float32 `[N, C]` and checks float32 `[N, 8]` or `[N, 9]` of a set of images.

    The logits are the mean over `number_of_views` views of each image, the checks those of the upright view.
    """
    measures: list[Tensor] = []
    with Watch(model, checks.names) as watch:

        def measure(images: Tensor) -> None:
            images = images.to(choice.device)
            maps = maps_in_own_colours(model, watch, images, choice.channels_last)
            measures.append(checks(images, maps).float().cpu())

        logits = predict_logits(model, pixels, choice, batch_size, number_of_views, measure)
    return logits, torch.cat(measures).numpy()


@torch.no_grad()
def logits_and_checks_of(
    model: nn.Module, checks: Checks, pixels: np.ndarray, choice: Placement, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns logits and checks, as `logits_and_checks` does, of pixels uint8 `[N, S, S, 3]`, of one view."""
    logits, measures = [], []
    model.eval()
    with Watch(model, checks.names) as watch:
        for start in range(0, len(pixels), batch_size):
            images = torch.from_numpy(np.ascontiguousarray(pixels[start : start + batch_size])).to(choice.device)
            x = to_input(images, choice.device, normalisation_of(model), choice.channels_last)
            logits.append(model(x).float().cpu())
            maps = maps_in_own_colours(model, watch, images, choice.channels_last)
            measures.append(checks(images, maps).float().cpu())
    return torch.cat(logits).numpy(), torch.cat(measures).numpy()

"""The eight measures that a picture may be refused for, as a network computes them from its pixels."""

import numpy as np
import torch
from torch import Tensor, nn

from dermrw.config import Data
from dermrw.datasets.dataset import ImageDataset, ImageSet, in_order
from dermrw.evaluation.ood_score import IMAGES, Familiarity, Watch, describe, middle
from dermrw.models import to_input
from dermrw.training.device import Placement
from dermrw.training.logits import predict_logits

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601
BURNT = 250  # grey levels from which a pixel counts as overexposed
# quantiles of the absolute value of a standard normal variable
NORMAL_QUARTER, NORMAL_MEDIAN = 0.3186, 0.6745


def quality(pixels: Tensor) -> Tensor:
    """Six measures and colour grain `[N, 7]`, in the order of `refusal.CHECKS`, of pixels uint8 `[N, S, S, 3]`.

    Brightness and contrast are the mean and the standard deviation of the luminance, in grey levels. Sharpness is the
    standard deviation of its Laplacian over its contrast: what is blurred changes slowly, however strong its colours.
    Colour is what of red and blue the luminance doesn't tell: the standard deviation, in grey levels, of what is left
    of them after regression on it. A grey picture has none, and one toned in sepia neither. Grain and colour grain
    are the standard deviations, in grey levels, of the noise in the luminance and in red and blue less luminance, from
    the second differences both ways (Immerkær, CVIU 64:300-302, 1996). He takes their mean, which hair and borders
    would raise: here it is their lower quartile where texture is, and their median in the smoother colours.
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
    """This quantile `[N]` of maps' `[N, M, S, S]` absolute second differences, which keep white noise's deviation."""
    across = maps[..., :-2] + maps[..., 2:] - 2 * maps[..., 1:-1]
    second = (across[..., :-2, :] + across[..., 2:, :] - 2 * across[..., 1:-1, :]) / 6
    size = second[..., ::2, ::2].flatten(1).abs().sort(1).values  # a quarter is enough of them
    return size[:, int(quantile * size.shape[1])]


class Checks(nn.Module):
    """All eight, from the pixels and the maps of the network's middle: `[N, 8]`, as `refusal.CHECKS`."""

    def __init__(self, familiarity: Familiarity) -> None:
        super().__init__()
        self.familiarity = familiarity

    def forward(self, pixels: Tensor, maps: list[Tensor]) -> Tensor:
        """Pixels uint8 `[N, S, S, 3]` and what `Watch` took."""
        return torch.cat([quality(pixels), self.familiarity(describe(maps))[:, None]], 1)


@torch.no_grad()
def fit_familiarity(model: nn.Module, train: ImageSet, data: Data, choice: Placement, batch_size: int) -> Familiarity:
    """From the training images, or as many of them, the same each time, as are enough."""
    part = train.part(lambda rows: np.random.default_rng(0).permutation(rows)[:IMAGES])
    names = middle(model, data.size)
    found = []
    with Watch(model, names) as watch:
        model.eval()
        for images, _, _ in in_order(ImageDataset(part, data, progress="of the training split"), batch_size):
            model(to_input(images, choice.device, choice.channels_last))
            found.append(describe(watch.take()).float().cpu())
    return Familiarity.fit(names, torch.cat(found).numpy())


@torch.no_grad()
def logits_and_checks(
    model: nn.Module, checks: Checks, pixels: ImageDataset, choice: Placement, batch_size: int, every_view: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Logits float32 `[N, C]` (the mean over the eight views if `every_view`) and checks float32 `[N, 8]` of a set."""
    measures: list[Tensor] = []
    with Watch(model, checks.familiarity.names) as watch:

        def measure(images: Tensor) -> None:
            measures.append(checks(images.to(choice.device), watch.take()).float().cpu())

        logits = predict_logits(model, pixels, choice, batch_size, every_view, measure)
    return logits, torch.cat(measures).numpy()

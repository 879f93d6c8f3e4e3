"""The eight image checks for refusal, computed by a network from the pixels."""

import numpy as np
import torch
from torch import Tensor, nn

from dermrw.config import Data
from dermrw.datasets.dataset import ImageSet
from dermrw.datasets.pixels import ImageDataset, in_order
from dermrw.evaluation.ood_score import IMAGES, Familiarity, Watch, describe, middle
from dermrw.models import pixel_statistics, to_input
from dermrw.training.device import Placement
from dermrw.training.logits import predict_logits

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601
BURNT = 250  # grey levels from which a pixel counts as overexposed
# quantiles of the absolute value of a standard normal variable
NORMAL_QUARTER, NORMAL_MEDIAN = 0.3186, 0.6745


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
    """All eight checks `[N, 8]`, in the order of `refusal.CHECKS`, from pixels and maps of intermediate blocks."""

    def __init__(self, familiarity: Familiarity) -> None:
        super().__init__()
        self.familiarity = familiarity

    def forward(self, pixels: Tensor, maps: list[Tensor]) -> Tensor:
        """Returns the checks `[N, 8]` for pixels uint8 `[N, S, S, 3]` and the maps from `Watch.take`."""
        return torch.cat([quality(pixels), self.familiarity(describe(maps))[:, None]], 1)


@torch.no_grad()
def fit_familiarity(model: nn.Module, train: ImageSet, data: Data, choice: Placement, batch_size: int) -> Familiarity:
    """Fits the out-of-distribution score on the training images, at most `IMAGES` of them in a fixed random choice."""
    part = train.part(lambda rows: np.random.default_rng(0).permutation(rows)[:IMAGES])
    names = middle(model, data.size)
    found = []
    with Watch(model, names) as watch:
        model.eval()
        for images, _, _ in in_order(ImageDataset(part, data, progress="of the training split", once=True), batch_size):
            model(to_input(images, choice.device, choice.channels_last, pixel_statistics(model)))
            found.append(describe(watch.take()).float().cpu())
    return Familiarity.fit(names, torch.cat(found).numpy())


@torch.no_grad()
def logits_and_checks(
    model: nn.Module, checks: Checks, pixels: ImageDataset, choice: Placement, batch_size: int, every_view: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns logits float32 `[N, C]` and checks float32 `[N, 8]` of a set of images.

    If `every_view`, the logits are the mean over the eight views of each image.
    """
    measures: list[Tensor] = []
    with Watch(model, checks.familiarity.names) as watch:

        def measure(images: Tensor) -> None:
            measures.append(checks(images.to(choice.device), watch.take()).float().cpu())

        logits = predict_logits(model, pixels, choice, batch_size, every_view, measure)
    return logits, torch.cat(measures).numpy()

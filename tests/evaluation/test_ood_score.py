from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models as tv

from dermrw.evaluation.ood_score import Familiarity, Watch, describe, middle
from dermrw.models import SmallCNN


def test_the_distance_is_the_mahalanobis_distance_where_all_components_are_kept() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 6)) @ rng.normal(size=(6, 6)) + 3
    found = Familiarity.fit((), x)
    new = rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6))
    z = (new - x.mean(0)) / (x.std(0) + 1e-6)
    inverse = np.linalg.inv(np.cov(((x - x.mean(0)) / x.std(0)).T, bias=True))
    expected = np.einsum("ni,ij,nj->n", z, inverse, z) / 6
    np.testing.assert_allclose(found(torch.tensor(new).float()).numpy(), expected, rtol=1e-3)
    assert found(torch.tensor(x).float()).mean().item() == pytest.approx(1, rel=1e-3)


def test_few_images_of_many_channels_still_tell_another_kind() -> None:
    rng = np.random.default_rng(1)
    mix = rng.normal(size=(10, 400))
    draw = lambda n: rng.normal(size=(n, 10)) @ mix + 0.3 * rng.normal(size=(n, 400))  # noqa: E731
    found = Familiarity.fit((), draw(60))
    own = found(torch.tensor(draw(200)).float()).numpy()
    other = found(torch.tensor(rng.normal(size=(200, 400)) * mix.std()).float()).numpy()
    assert np.quantile(own, 0.99) < other.min()


def collinear(n: int, seed: int) -> np.ndarray:
    """24 channels: 6 independent, 12 linear combinations of them, 4 nearly constant and 2 constant."""
    rng = np.random.default_rng(seed)
    own = rng.normal(size=(n, 6)) * [1, 3, 0.5, 2, 1, 1] + 4
    mixed = own @ np.random.default_rng(9).normal(size=(6, 12))
    nearly = 7 + 1e-7 * rng.normal(size=(n, 4))
    return np.concatenate([own, mixed, nearly, np.zeros((n, 1)), np.full((n, 1), 3.0)], 1)


def test_collinear_and_constant_channels_leave_the_score_well_conditioned() -> None:
    """Against float64 with the covariance's eigenvalues bounded below, for inputs on and off the training subspace."""
    train = collinear(500, 0)
    score = Familiarity.fit((), train)
    rng = np.random.default_rng(1)
    new = np.concatenate([collinear(50, 2), collinear(50, 3) + rng.normal(size=(50, 24))])

    deviation = train.std(0)
    scale = np.maximum(deviation, 0.01 * np.sqrt((deviation**2).mean()))
    scale = np.maximum(scale, 1e-3 * np.abs(train.mean(0))) + 1e-6
    values, vectors = np.linalg.eigh(np.cov(((train - train.mean(0)) / scale).T, bias=True))
    bounded = np.maximum(values, max(0.01 * values.mean(), values.max() / 1e4))
    z = (new - train.mean(0)) / scale
    expected = (np.square(z @ vectors) / bounded).sum(1) / 24
    assert values.min() < 1e-12 and expected[:50].max() < 3 < expected[50:].min()

    single = score(torch.tensor(new).float()).numpy()
    np.testing.assert_allclose(single, expected, rtol=1e-4, atol=1e-4)
    # another processor's rounding
    rounded = new * (1 + 1e-6 * rng.choice([-1, 1], size=new.shape))
    again = score(torch.tensor(rounded).float()).numpy()
    np.testing.assert_allclose(again, single, rtol=1e-3, atol=1e-4)


def test_descriptions_are_means_and_deviations_of_channels() -> None:
    torch.manual_seed(0)
    first, swin = torch.randn(3, 5, 8, 8), torch.randn(3, 4, 4, 7)
    found = describe([first, swin])
    assert found.shape == (3, 2 * 5 + 2 * 7)
    torch.testing.assert_close(found[:, :5], first.mean((2, 3)))
    torch.testing.assert_close(found[:, 5:10], first.std((2, 3), correction=0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[:, 10:17], swin.mean((1, 2)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "size", "expected"),
    [
        (lambda: tv.mobilenet_v2(), 208, ("features.3", "features.6", "features.13")),
        (lambda: tv.resnet18(), 224, ("layer1.1", "layer2.1", "layer3.1")),
        (lambda: tv.swin_t(), 224, ("features.1", "features.3", "features.5")),
        (lambda: tv.vit_b_16(), 224, ("conv_proj",)),
    ],
)
def test_the_middle_of_a_network(build: Callable[[], nn.Module], size: int, expected: tuple[str, ...]) -> None:
    assert middle(build(), size) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alexnet", "densenet121", "convnext_tiny", "maxvit_t", "googlenet", "squeezenet1_0"])
def test_every_family_has_a_middle(name: str) -> None:
    model = tv.get_model(name, weights=None).eval()
    names = middle(model, 224)
    with torch.no_grad(), Watch(model, names) as watch:
        model(torch.zeros(2, 3, 224, 224))
        assert describe(watch.take()).isfinite().all()
    assert not watch.take() and not any(m._forward_hooks for m in model.modules())


def test_small_networks_have_a_middle_and_a_vector_has_none() -> None:
    assert middle(SmallCNN(7), 64)
    with pytest.raises(ValueError, match="no block"):
        middle(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 7)), 32)


def test_the_blocks_are_found_on_the_device_of_the_network() -> None:
    """The device `meta` stands for a GPU: an input on the CPU would raise."""
    assert middle(SmallCNN(3).to("meta"), 64) == middle(SmallCNN(3), 64)

"""Each loss against the formula of its paper, written out anew in NumPy or by what torch has of its own."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dermrw.objectives.losses import build_loss, class_balanced_weights, inverse_frequency_weights, ldam_margins

COUNTS = np.array([500, 20, 3])
Y = torch.tensor([0, 1, 2, 2, 0])


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def shares(logits: torch.Tensor) -> np.ndarray:
    """Softmax, by hand."""
    e = np.exp(logits.numpy() - logits.numpy().max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_cross_entropy(logits: torch.Tensor) -> None:
    expected = -np.log(shares(logits)[np.arange(5), Y.numpy()])
    np.testing.assert_allclose(build_loss("cross_entropy", COUNTS)(logits, Y, 0.0), expected, rtol=1e-12)


def test_inverse_frequency_gives_every_class_the_same_total(logits: torch.Tensor) -> None:
    weights = inverse_frequency_weights(COUNTS)
    np.testing.assert_allclose(weights * COUNTS, COUNTS.sum() / 3)
    expected = F.cross_entropy(logits, Y, weight=torch.from_numpy(weights), reduction="none")
    torch.testing.assert_close(build_loss("inverse_frequency", COUNTS)(logits, Y, 0.0), expected)


def test_class_balanced_interpolates_between_no_weight_and_inverse_frequency(logits: torch.Tensor) -> None:
    by_hand = np.array([(1 - 0.999) / (1 - 0.999**n) for n in COUNTS])
    np.testing.assert_allclose(class_balanced_weights(COUNTS), 3 * by_hand / by_hand.sum())
    np.testing.assert_allclose(class_balanced_weights(COUNTS, 0.0), 1)
    almost = class_balanced_weights(COUNTS, 1 - 1e-9) * COUNTS
    np.testing.assert_allclose(almost, almost[0], rtol=1e-5)
    expected = F.cross_entropy(logits, Y, weight=torch.from_numpy(class_balanced_weights(COUNTS)), reduction="none")
    torch.testing.assert_close(build_loss("class_balanced", COUNTS)(logits, Y, 0.0), expected)


def test_focal(logits: torch.Tensor) -> None:
    p = shares(logits)[np.arange(5), Y.numpy()]
    np.testing.assert_allclose(build_loss("focal", COUNTS)(logits, Y, 0.0), -((1 - p) ** 2) * np.log(p), rtol=1e-10)


def test_balanced_softmax(logits: torch.Tensor) -> None:
    """Ren et al. 2020, eq. 4: n_y e^f_y / Σ n_c e^f_c. With equal counts it is cross-entropy."""
    weighed = COUNTS * np.exp(logits.numpy())
    expected = -np.log(weighed[np.arange(5), Y.numpy()] / weighed.sum(1))
    np.testing.assert_allclose(build_loss("balanced_softmax", COUNTS)(logits, Y, 0.0), expected, rtol=1e-10)
    equal = build_loss("balanced_softmax", np.array([7, 7, 7]))(logits, Y, 0.0)
    torch.testing.assert_close(equal, F.cross_entropy(logits, Y, reduction="none"))


def test_balanced_softmax_keeps_its_precision_under_bf16() -> None:
    logits = torch.zeros(1, 3, dtype=torch.bfloat16)
    loss = build_loss("balanced_softmax", COUNTS)(logits, torch.tensor([2]), 0.0)
    assert loss.item() == pytest.approx(-math.log(3 / 523), abs=1e-5)


def test_ldam_and_its_deferred_weights(logits: torch.Tensor) -> None:
    margins = np.array([n**-0.25 for n in COUNTS])
    margins *= 0.5 / margins.max()
    np.testing.assert_allclose(ldam_margins(COUNTS), margins)
    cosines = torch.tanh(logits)
    moved = 30 * cosines.numpy()
    moved[np.arange(5), Y.numpy()] -= 30 * margins[Y.numpy()]  # 30 (cos − Δ) for the label, 30 cos for the others
    expected = -np.log(shares(torch.from_numpy(moved))[np.arange(5), Y.numpy()])
    loss = build_loss("ldam_drw", COUNTS)
    np.testing.assert_allclose(loss(30 * cosines, Y, 0.79), expected, rtol=1e-9)
    weights = class_balanced_weights(COUNTS, 0.9999)
    # on the whole training set it is what their code minimises: torch's weighted mean
    everyone = torch.from_numpy(np.repeat([0, 1, 2], COUNTS))
    scores = 30 * torch.tanh(torch.randn(len(everyone), 3, dtype=torch.float64))
    shift = 30 * F.one_hot(everyone, 3) * torch.from_numpy(margins)
    theirs = F.cross_entropy(scores - shift, everyone, weight=torch.from_numpy(weights))
    torch.testing.assert_close(loss(scores, everyone, 0.8).mean(), theirs)
    np.testing.assert_allclose(
        loss(30 * cosines, Y, 0.8) / torch.from_numpy(expected), (weights * 523 / (weights @ COUNTS))[Y.numpy()]
    )

"""Each loss against the formula of its paper, written out anew in NumPy or by what torch has of its own."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import logsumexp

from dermrw.objectives.losses import (
    LossName,
    build_loss,
    class_balanced_weights,
    expected_counts,
    inverse_frequency_weights,
    label_losses,
    ldam_margins,
)

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


SETS = ((1, 2, 4), (0, 3))  # of five classes: labels 5 and 6
LABELS = torch.tensor([0, 5, 2, 6, 5, 4, 6])


def of_set(z: np.ndarray, y: int) -> float:
    """−log of the summed softmax of a label's classes."""
    members = [y] if y < 5 else list(SETS[y - 5])
    return float(logsumexp(z) - logsumexp(z[members]))


@pytest.mark.parametrize("name", ["cross_entropy", "balanced_softmax", "focal"])
def test_a_set_of_classes_has_the_summed_probability(name: LossName) -> None:
    """Value by SciPy in float64, with large logits too; gradient by finite differences."""
    counts = np.array([60.0, 500, 20, 3, 17])
    logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3
    logits[1] += torch.tensor([900.0, 0, -800, 0, 0])
    z = logits.numpy() + (np.log(counts / counts.sum()) if name == "balanced_softmax" else 0)
    expected = np.array([of_set(row, y) for row, y in zip(z, LABELS.tolist(), strict=True)])
    if name == "focal":
        expected = (1 - np.exp(-expected)) ** 2 * expected
    loss = build_loss(name, counts, SETS)
    np.testing.assert_allclose(loss(logits, LABELS, 0.0), expected, rtol=1e-12, atol=1e-14)
    moderate = torch.randn(7, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: loss(f, LABELS, 0.0), (moderate,))
    assert torch.autograd.gradgradcheck(lambda f: loss(f, LABELS, 0.0), (moderate,))


def test_the_gradient_of_a_set_is_that_of_the_networks_own_belief_within_it() -> None:
    logits = torch.randn(1, 5, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(label_losses(logits, torch.tensor([5]), SETS).sum(), logits)
    p = shares(logits.detach())[0]
    q = np.zeros(5)
    q[list(SETS[0])] = p[list(SETS[0])] / p[list(SETS[0])].sum()
    np.testing.assert_allclose(gradient[0], p - q, rtol=1e-10, atol=1e-14)


def test_a_set_of_one_class_is_that_class_and_a_set_of_all_has_no_loss() -> None:
    for dtype in (torch.float32, torch.float64):
        logits = torch.randn(50, 5, dtype=dtype, requires_grad=True)
        y = torch.arange(50) % 5
        gradients = []
        for losses in (
            F.cross_entropy(logits, y, reduction="none"),
            label_losses(logits, y, SETS),
            label_losses(logits, y + 5, ((0,), (1,), (2,), (3,), (4,))),
        ):
            gradients.append((losses, torch.autograd.grad(losses.sum(), logits)[0]))
        for losses, gradient in gradients[1:]:
            assert torch.equal(losses, gradients[0][0])
            torch.testing.assert_close(gradient, gradients[0][1], rtol=1e-6, atol=1e-7)
        everything = label_losses(logits, torch.full((50,), 5), ((0, 1, 2, 3, 4),))
        torch.testing.assert_close(everything, torch.zeros_like(everything), rtol=0, atol=1e-6)


def test_images_of_a_set_count_for_its_classes_as_the_likelihood_demands() -> None:
    """The shares maximise Σ n_c log π_c + Σ_S N_S log Σ_{c∈S} π_c, by EM."""
    counts, of_sets = np.array([60, 500, 20, 3, 17]), np.array([100, 30])
    expected = expected_counts(counts, of_sets, SETS)
    assert expected.sum() == pytest.approx(counts.sum() + of_sets.sum())
    pi = np.full(5, 0.2)
    for _ in range(2000):
        filled = counts.astype(float)
        for members, n in zip(SETS, of_sets, strict=True):
            filled[list(members)] += n * pi[list(members)] / pi[list(members)].sum()
        pi = filled / filled.sum()
    np.testing.assert_allclose(expected / expected.sum(), pi, rtol=1e-10)

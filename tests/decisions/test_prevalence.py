"""Bayes' rule by sampling and by its properties."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dermrw.decisions.prevalence import at_prevalence, parse_prevalence
from dermrw.errors import UserError


def test_at_prevalence_by_sampling() -> None:
    """Draw labels at a clinic's prevalence and a symptom given the label: the shares are the answer."""
    rng = np.random.default_rng(0)
    likelihood = rng.dirichlet(np.ones(5), 3)  # [class, symptom]
    prevalence = np.array([0.7, 0.25, 0.05])
    y = rng.choice(3, 2_000_000, p=prevalence)
    symptom = (rng.random((len(y), 1)) > np.cumsum(likelihood, 1)[y]).sum(1)
    counts = np.zeros((5, 3))
    np.add.at(counts, (symptom, y), 1)
    equal = (likelihood / likelihood.sum(0)).T  # what a model for equal prevalence says of each symptom
    n = counts.sum(1, keepdims=True)
    ours = at_prevalence(equal, prevalence)
    assert (np.abs(ours - counts / n) < 4.5 * np.sqrt(ours * (1 - ours) / n)).all()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 8))
def test_at_prevalence_properties(seed: int, c: int) -> None:
    rng = np.random.default_rng(seed)
    p, a, b = rng.dirichlet(np.ones(c), 5), rng.dirichlet(np.ones(c)), rng.dirichlet(np.ones(c))
    np.testing.assert_allclose(at_prevalence(p, np.full(c, 1 / c)), p, rtol=1e-13, atol=0)
    there = at_prevalence(p, a)
    np.testing.assert_allclose(there.sum(1), 1, rtol=0, atol=1e-14)
    # odds are multiplied by the odds of the prevalence, and steps compose
    np.testing.assert_allclose(there[:, 0] * p[:, 1] * a[1], there[:, 1] * p[:, 0] * a[0], rtol=1e-9)
    both = a * b / (a @ b)
    np.testing.assert_allclose(at_prevalence(there, b), at_prevalence(p, both), rtol=1e-9, atol=1e-300)


def test_at_prevalence_of_zero_rules_out() -> None:
    np.testing.assert_allclose(at_prevalence([[0.2, 0.3, 0.5]], [0.5, 0.5, 0]), [[0.4, 0.6, 0]], rtol=1e-15)


@pytest.mark.parametrize(
    ("prevalence", "fault"),
    [
        ([0.5, 0.6], "sums to 1.1"),
        ([1.2, -0.2], "negative number: -0.2 for class 1"),
        ([np.nan, 1], "not finite"),
        ([1.0], "2 numbers"),
        ([[0.5, 0.5]], "2 numbers"),
        ([0.0, 1.0], "row 1: every class"),
    ],
)
def test_at_prevalence_names_the_fault(prevalence: npt.ArrayLike, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        at_prevalence([[0.5, 0.5], [1.0, 0.0]], prevalence)


def test_a_stated_prevalence() -> None:
    codes, training = ("mel", "nv"), {"mel": 0.2, "nv": 0.8}
    assert parse_prevalence("equal", codes, training) is None
    for text, expected in (("training", [0.2, 0.8]), ("nv=0.9, mel=0.1", [0.1, 0.9])):
        found = parse_prevalence(text, codes, training)
        assert found is not None and found.tolist() == expected


@pytest.mark.parametrize(
    "text", ["", "mel=1", "mel=.5,nv=.6", "mel=-1,nv=2", "mel=nan,nv=1", "mel=a,nv=1", "x=1,nv=0", "mel=0,mel=.2,nv=.8"]
)
def test_a_prevalence_that_is_none(text: str) -> None:
    with pytest.raises(UserError, match="--prevalence"):
        parse_prevalence(text, ("mel", "nv"), {"mel": 0.2, "nv": 0.8})


def test_codes_with_commas_and_equals_signs() -> None:
    codes = ("a", "a, b", "c=d")
    found = parse_prevalence(" a, b =0.5,c=d=0.3,a=0.2", codes, dict.fromkeys(codes, 1 / 3))
    assert found is not None and found.tolist() == [0.2, 0.5, 0.3]
    with pytest.raises(UserError, match="a share of each of a, a, b, c=d"):
        parse_prevalence("a=0.5,c=d=0.5,", codes, dict.fromkeys(codes, 1 / 3))

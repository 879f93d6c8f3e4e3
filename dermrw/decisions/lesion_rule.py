"""Combination of the images of a lesion to one probability vector. Needs NumPy only."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dermrw.decisions.prevalence import at_prevalence

Floats = npt.NDArray[np.float64]

# The rule of `dermrw predict --lesions` and of the demo. On the validation lesions with several images it has the
# sensitivity of referring a lesion as soon as one image alone is referred; the means miss some of these
# (docs/model_file.md has the figures).
LESION_RULE = "most_suspicious"
LESION_RULES = ("most_suspicious", "mean", "geometric")
LEAST = 1e-9  # lower bound of a probability in a geometric mean, so that a single image has no veto


def combine(
    probabilities: npt.ArrayLike,
    lesions: npt.ArrayLike,
    rule: str = LESION_RULE,
    malignant: Sequence[bool] | npt.NDArray[np.bool_] | None = None,
    prevalence: npt.ArrayLike | None = None,
) -> Floats:
    """Returns the probabilities `[N, C]` of each image's lesion, combined over its images.

    With p_ic the probability of class c in image i, q_c its arithmetic mean over the images, and M the malignant
    (and pre-malignant) classes, the rules are

    - `mean`: q_c.
    - `geometric`: the geometric mean of p_ic, scaled to sum to 1.
    - `most_suspicious`: proportional to q_c m / Σ_{k in M} π_k q_k for c in M, and to
      q_c (1 - m) / Σ_{k not in M} π_k q_k for the others, where m = max_i Σ_{c in M} π_c p_ic / Σ_c π_c p_ic. At the
      prevalence π of the triage, the malignant classes together have the probability that the most suspicious image
      gives them, so that images on which a melanoma looks harmless can't hide the one that shows it. Within the
      malignant classes, and within the others, the ratios are those of the mean.

    The probabilities of a lesion with a single image are unchanged.

    Args:
        probabilities: of the images `[N, C]`, at equal prevalence.
        lesions: the lesion of each image `[N]`.
        rule: one of `LESION_RULES`.
        malignant: which classes are malignant `[C]`. None: unknown, then `most_suspicious` is the mean.
        prevalence: the classes' shares π `[C]`, above 0, at which triage sums the malignant classes; None: equal.

    Raises:
        ValueError: the rule is unknown, or `malignant` or `prevalence` does not have C elements.
    """
    if rule not in LESION_RULES:
        raise ValueError(f"rule must be one of {', '.join(LESION_RULES)}, not {rule!r}")
    p = np.asarray(probabilities, dtype=np.float64)
    if prevalence is not None and np.shape(prevalence) != p.shape[1:]:
        raise ValueError(
            f"prevalence must hold {p.shape[1]} shares, one for each class, not shape {np.shape(prevalence)}"
        )
    _, lesion = np.unique(np.asarray(lesions), return_inverse=True)
    images = np.bincount(lesion)
    values = np.log(np.maximum(p, LEAST)) if rule == "geometric" else p
    total = np.zeros((len(images), p.shape[1]))
    np.add.at(total, lesion, values)
    merged = total / images[:, None]
    if rule == "geometric":
        merged = np.exp(merged)
    merged /= merged.sum(axis=1, keepdims=True)
    if rule == "most_suspicious" and malignant is not None:
        shares = np.full(p.shape[1], 1 / p.shape[1]) if prevalence is None else np.asarray(prevalence, np.float64)
        merged = _with_highest_malignant_share(merged, p, lesion, np.asarray(malignant, dtype=bool), shares)
    return np.where((images == 1)[lesion, None], p, merged[lesion])


def _with_highest_malignant_share(
    mean: Floats, p: Floats, lesion: npt.NDArray[np.intp], malignant: npt.NDArray[np.bool_], shares: Floats
) -> Floats:
    """Returns the lesions' means `[L, C]`, scaled so that the malignant classes have the highest share of an image."""
    if malignant.shape != p.shape[1:]:
        raise ValueError(f"malignant must hold {p.shape[1]} truths, one for each class, not shape {malignant.shape}")
    highest = np.zeros(len(mean))
    np.maximum.at(highest, lesion, at_prevalence(p, shares)[:, malignant].sum(axis=1))
    result = mean.copy()
    for group, target in ((malignant, np.minimum(highest, 1)), (~malignant, 1 - np.minimum(highest, 1))):
        share = mean[:, group] @ shares[group]
        result[:, group] *= np.divide(target, share, out=np.zeros_like(share), where=share > 0)[:, None]
    return result / result.sum(axis=1, keepdims=True)

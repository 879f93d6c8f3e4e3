"""Prior correction to the prevalence of a clinic. Needs NumPy only.

The model's probabilities hold at *equal prevalence*: every diagnosis is equally frequent. Bayes' rule adjusts them to
any other prevalence, provided that the appearance of each diagnosis stays the same (label shift: Saerens, Latinne,
Decaestecker, Neural Computation 14:21-41 (2002), eq. 2.4).
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from dermrw.errors import UserError

Floats = npt.NDArray[np.float64]


def at_prevalence(probabilities: npt.ArrayLike, prevalence: npt.ArrayLike | None) -> Floats:
    """Returns probabilities `[N, C]` at this `prevalence` `[C]`, from those at equal prevalence `[N, C]`.

    Bayes' rule: p'_c is proportional to p_c pi_c. With pi_c = 1/C nothing changes; None stands for it.

    Raises:
        ValueError: the prevalence is not C finite, non-negative numbers that sum to 1 (within 1e-6), or it is 0 for
            every diagnosis to which an image gives any probability.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 2:
        raise ValueError(f"probabilities must be [N, C], not of shape {p.shape}")
    if prevalence is None:
        return p
    pi = np.asarray(prevalence, dtype=np.float64)
    if pi.shape != p.shape[1:]:
        raise ValueError(f"prevalence must hold {p.shape[1]} numbers, one for each class, not shape {pi.shape}")
    if not np.isfinite(pi).all():
        raise ValueError(f"prevalence holds a number that is not finite: {pi.tolist()}")
    if (pi < 0).any():
        raise ValueError(f"prevalence holds a negative number: {pi.min():g} for class {pi.argmin()}")
    if abs(pi.sum() - 1) > 1e-6:
        raise ValueError(f"prevalence sums to {pi.sum():.9g}, not to 1")
    joint = p * pi
    total = joint.sum(axis=1, keepdims=True)
    if not (total > 0).all():
        raise ValueError(
            f"row {np.flatnonzero(~(total[:, 0] > 0))[0]}: every class it gives probability has prevalence 0"
        )
    return joint / total


def parse_prevalence(text: str, codes: Sequence[str], training: Mapping[str, float]) -> Floats | None:
    """Returns a prevalence `[C]` from `equal` (None), `training`, or shares of all classes: `mel=0.05,nv=0.8,...`.

    Raises:
        UserError: a class is missing, unknown or named twice, or the shares don't sum to 1 (within 0.001).
    """
    if text == "equal":
        return None
    if text == "training":
        return np.array([training[code] for code in codes]) / sum(training.values())
    pairs: list[tuple[str, str]] = []
    rest = text
    alternatives = "|".join(re.escape(code) for code in sorted(codes, key=len, reverse=True))
    while len(pairs) <= len(codes) and (
        item := re.match(rf"\s*({alternatives})\s*=([^,]*)(,(?=.)|$)", rest, re.DOTALL)
    ):  # a code can contain a comma
        pairs.append((item[1], item[2]))
        rest = rest[item.end() :]
    if rest or sorted(name for name, _ in pairs) != sorted(codes):
        raise UserError(
            f"--prevalence takes equal, training, or a share of each of {', '.join(codes)}: {codes[0]}=0.05,..."
        )
    try:
        share = {name: float(number) for name, number in pairs}
    except ValueError:
        raise UserError(f"--prevalence {text}: every share must be a number, such as {codes[0]}=0.05") from None
    values = np.array([share[code] for code in codes])
    if not np.isfinite(values).all() or (values < 0).any():
        raise UserError("--prevalence: every share must be at least 0")
    if abs(values.sum() - 1) > 1e-3:
        raise UserError(f"--prevalence: the shares must sum to 1, not to {values.sum():g}")
    return values / values.sum()

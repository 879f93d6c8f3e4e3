"""The image checks of a network with colour constancy: they see a picture's own colours."""

import numpy as np
import pandas as pd
import torch

from dermrw.config import Data, Model
from dermrw.datasets.dataset import ImageSet
from dermrw.datasets.sample_drawing import draw_lesion
from dermrw.diagnoses import DX
from dermrw.evaluation.image_checks import Checks, fit_checks, logits_and_checks_of
from dermrw.models import build_model
from dermrw.training.device import Placement

PLACEMENT = Placement(torch.device("cpu"), "fp32", False)
SIZE = 32


def lesions(number: int) -> np.ndarray:
    """Drawn lesions uint8 `[N, S, S, 3]`, each under its own light."""
    rng = np.random.default_rng(0)
    drawn = [draw_lesion(DX[i % 7], rng, rng, SIZE, SIZE) * rng.uniform(0.7, 1, 3) for i in range(number)]
    return np.stack(drawn).astype(np.uint8)


def test_checks_do_not_see_colour_constancy() -> None:
    """The logits are of the changed colours; the fit and the checks equal those of the network without constancy."""
    found = {}
    pixels = lesions(24)
    for key in ("none", "shades_of_grey"):
        torch.manual_seed(0)
        model = build_model(Model(backbone="small_cnn", weights="none", colour_constancy=key), 7)[0].eval()
        table = pd.DataFrame({"image_id": [f"i{i}" for i in range(16)]})
        train = ImageSet(table, np.arange(16) % 7, list(pixels[:16]))
        checks = fit_checks(model, train, Data(size=SIZE), PLACEMENT, 5, drawn=False)
        found[key] = (*logits_and_checks_of(model, checks, pixels, PLACEMENT, 5), checks)
    (plain, own, fitted), (constant, again, refitted) = found["none"], found["shades_of_grey"]
    for name, value in fitted.state_dict().items():
        torch.testing.assert_close(refitted.state_dict()[name], value)
    np.testing.assert_allclose(again, own, rtol=1e-5, atol=1e-5)
    assert np.abs(constant - plain).max() > 1e-3
    assert Checks.load(refitted.save()).own_colours

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from dermrw.evaluation.image_checks import Checks
from dermrw.evaluation.ood_score import Familiarity
from dermrw.evaluation.photograph_detector import PENALTY, PhotographDetector, is_held_out


def test_the_log_odds_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    judged, refused = rng.normal(2, [1, 5, 0.2], (300, 3)), rng.normal([3, 0, 2], 1, (40, 3))
    found = PhotographDetector.fit(("a",), judged, refused)
    x, y = np.concatenate([judged, refused]), np.repeat([0, 1], [300, 40])
    scaled = StandardScaler().fit(x)
    model = LogisticRegression(C=PENALTY, class_weight="balanced").fit(scaled.transform(x), y)
    new = rng.normal(2, 2, (50, 3))
    expected = model.decision_function(scaled.transform(new))
    np.testing.assert_allclose(found(torch.tensor(new).float()).numpy(), expected, rtol=1e-3, atol=1e-3)


def test_checks_are_restored_with_and_without_a_detector() -> None:
    rng = np.random.default_rng(1)
    maps = [torch.rand(4, 3, 8, 8), torch.rand(4, 5, 4, 4)]
    pixels = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    familiarity = Familiarity.fit(("a",), rng.normal(size=(30, 6)))
    detector = PhotographDetector.fit(("a", "b"), rng.normal(size=(30, 16)), rng.normal(1, 1, (30, 16)))
    for checks, given, columns in ((Checks(familiarity), maps[:1], 8), (Checks(familiarity, detector), maps, 9)):
        again = Checks.load(checks.save())
        assert again.names == checks.names and len(again.names) == len(given)
        found = checks(pixels, given)
        assert found.shape == (4, columns)
        assert torch.equal(again(pixels, given), found)


def test_a_third_of_the_pictures_is_held_out_by_name() -> None:
    names = [f"picture {i}" for i in range(3000)]
    held = [is_held_out(name) for name in names]
    assert 0.3 < np.mean(held) < 0.37
    assert held[:100] == [is_held_out(name) for name in names[:100]]

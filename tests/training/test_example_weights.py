import numpy as np
import pandas as pd
import pytest

from dermrw.training.example_weights import by_weight, detection, wrong_in_lowest, wrong_share_of_class


def test_lowest_within_its_class() -> None:
    table = pd.DataFrame(
        {"image_id": list("abcde"), "label": ["nv", "nv", "df", "df", "mel"], "weight": [0.1, 0.3, 1.0, 5.0, np.nan]}
    )
    found = by_weight(table)
    assert found["image_id"].tolist() == ["c", "a", "b", "d"]  # 1/3, 0.5, 1.5, 5/3; what was never drawn is left out
    assert found["relative"].tolist() == pytest.approx([1 / 3, 0.5, 1.5, 5 / 3])
    assert by_weight(table.assign(weight=0.0))["relative"].tolist() == [0.0] * 5


def test_images_that_tie_for_the_last_places_count_as_by_lot() -> None:
    ordered = pd.DataFrame(
        {"relative": [0.0, 0.1, 0.1, 0.1, 0.1, 1.0], "dx": list("anannn"), "label": list("nnnnnn")}
    )  # wrong, right, wrong, right, right, right
    found = [wrong_in_lowest(ordered, count) for count in (1, 2, 3, 5, 6, 9)]
    assert found == pytest.approx([1, (1 + 0.25) / 2, (1 + 0.5) / 3, 2 / 5, 2 / 6, 2 / 6])
    shuffled = [wrong_in_lowest(ordered.iloc[[0, *order, 5]], 3) for order in ([1, 2, 3, 4], [2, 4, 3, 1])]
    assert shuffled == pytest.approx([0.5, 0.5])  # whatever the order within the tie


def test_how_well_a_ranking_finds_wrong_labels() -> None:
    labels = np.array(list("aaaabbbbc"))
    wrong = np.array([1, 0, 0, 0, 1, 1, 0, 0, 0], bool)
    perfect = detection("perfect", wrong, wrong.astype(float), labels, 3)
    assert perfect == ("perfect", 1, 1, 1)
    alone = wrong_share_of_class(wrong, labels)
    assert alone.tolist() == [0.25] * 4 + [0.5] * 4 + [0]
    found = detection("class alone", wrong, alone, labels, 4)
    assert found.auroc_within_class == 0.5 and found.precision == 0.5
    pairs = [(a > b) + 0.5 * (a == b) for a in alone[wrong] for b in alone[~wrong]]
    assert found.auroc == pytest.approx(np.mean(pairs))
    mixed = np.array([3, 4, 1, 2, 9, 5, 6, 7, 8.0])
    within = [2 / 3, (2 + 0) / 4]  # of a: above two of three; of b: 9 above both, 5 above none
    assert detection("mixed", wrong, mixed, labels, 1).auroc_within_class == pytest.approx(np.mean(within))

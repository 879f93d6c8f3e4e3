import pytest
import torch
from torch import nn

from dermrw.config import Train
from dermrw.training import device as machine
from dermrw.training.device import choose


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        # fp32, fp32 channels-last, bf16, bf16 channels-last
        ((1.0, 0.95, 0.93, 0.92), ("fp32", False)),  # a tie goes to what rounds least and is plainest
        ((1.0, 0.59, 0.80, 0.57), ("fp32", True)),
        ((1.0, 0.59, 0.80, 0.40), ("bf16", True)),
        ((1.0, float("inf"), float("inf"), float("inf")), ("fp32", False)),
    ],
)
def test_a_way_that_is_no_tenth_faster_is_not_chosen(
    seconds: tuple[float, ...], expected: tuple[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter(seconds)
    monkeypatch.setattr(machine, "_seconds", lambda *_: next(times))
    choice, measured = choose(Train(device="cpu"), nn.Linear(1, 1), lambda model, x: model(x).sum(), torch.zeros(1))
    assert (choice.precision, choice.channels_last) == expected
    assert list(measured.values()) == list(seconds)

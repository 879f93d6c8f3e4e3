import pytest
import torch
from torch import nn

from dermrw.config import Model, Train
from dermrw.models import build_model
from dermrw.training import device as machine
from dermrw.training.device import Placement, choose, choose_device, unsafe_convolution


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
    monkeypatch.setattr(machine, "computes_bf16", lambda _: True)
    choice, measured = choose(Train(device="cpu"), nn.Linear(1, 1), lambda model, x: model(x).sum(), torch.zeros(1))
    assert (choice.precision, choice.channels_last) == expected
    assert list(measured.values()) == list(seconds)


def test_bf16_is_not_tried_on_a_cpu_without_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would take minutes to find out that it is slow."""
    monkeypatch.setattr(machine, "computes_bf16", lambda _: False)
    model, x = nn.Linear(1, 1), torch.zeros(1, 1)
    config = Train(device="cpu", channels_last=False)
    choice, measured = choose(config, model, lambda model, x: model(x).sum(), x)
    assert choice.precision == "fp32" and not measured and not capsys.readouterr().out
    config = Train(device="cpu", channels_last=False, precision="bf16")
    assert choose(config, model, lambda model, x: model(x).sum(), x)[0].precision == "bf16"
    assert "has no instructions for bf16" in capsys.readouterr().out


def strided(channels: int, kernel: int = 1, stride: int = 2) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 32, kernel, stride), nn.Flatten(), nn.LazyLinear(1))


@pytest.mark.parametrize("channels_last", ["auto", True])
def test_a_convolution_that_crashes_the_cpu_in_channels_last_layout(
    channels_last: bool | str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """oneDNN's issue 6035; the timing itself would crash, so it must not be tried."""
    tried = []

    def seconds(_model: nn.Module, _step: object, _x: object, choice: Placement, _frozen: str) -> float:
        tried.append(choice.channels_last)
        return 1.0

    monkeypatch.setattr(machine, "_seconds", seconds)
    config = Train(device="cpu", channels_last=channels_last)
    choice, _ = choose(config, strided(3), lambda model, x: model(x).sum(), torch.zeros(1))
    assert choice.channels_last is False and True not in tried
    assert "Channels-last layout is not used on the CPU: training 0, a 1 × 1 convolution" in capsys.readouterr().out


@pytest.mark.parametrize("model", [strided(16), strided(3, kernel=3), strided(3, stride=1)])
def test_other_convolutions_are_safe_in_channels_last_layout(
    model: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Train(device="cpu", channels_last=True, precision="fp32")
    assert choose(config, model, lambda model, x: model(x).sum(), torch.zeros(1))[0].channels_last is True
    assert not capsys.readouterr().out


def test_repvgg_is_not_trained_in_channels_last_layout() -> None:
    model = build_model(Model(backbone="repvgg_a0", weights="none"), 7)[0]
    assert unsafe_convolution(model) == "stem.conv_1x1.conv"
    assert unsafe_convolution(build_model(Model(backbone="resnet18", weights="none"), 7)[0]) is None


def test_the_timing_trains_as_the_config_says() -> None:
    """Batch norm in train mode can't compute one image of one position; with fixed statistics it can."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8), nn.Flatten())
    config = Train(device="cpu", precision="fp32", channels_last="auto")

    def seconds(frozen: str) -> list[float]:
        return list(choose(config, model, lambda model, x: model(x).sum(), torch.zeros(1, 3, 8, 8), frozen)[1].values())

    assert seconds("none") == [float("inf")] * 2
    assert all(0 < value < 1000 for value in seconds("batch_norm"))


def test_fp32_is_not_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    choose_device("cpu")
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32

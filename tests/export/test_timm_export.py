"""Model files of timm's networks: outputs against torch, and the activation map against blanking by hand."""

import os
from pathlib import Path

import pytest
import torch
from test_export import exported, network

from export.backbone_head import cut, logits_and_map

# name: side of the input in pixels
FAMILIES = {
    "efficientnet_lite0": 64, "convnext_atto": 64, "mobilenetv4_conv_small": 64,
    "tf_efficientnetv2_b0": 64, "mobilenetv3_small_050": 64, "timm/resnet18": 64, "resnet18d": 64,
    "timm/resnext50_32x4d": 64, "regnety_002": 64, "repvgg_a0": 64, "vit_tiny_patch16_224": 224,
    "deit_tiny_patch16_224": 224, "swin_tiny_patch4_window7_224": 224,
}  # fmt: skip
ALL = bool(os.environ.get("DERMRW_ALL_BACKBONES"))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(FAMILIES)[: None if ALL else 1])
def test_the_file_agrees_with_torch(name: str, tmp_path: Path) -> None:
    size = FAMILIES[name]
    assert exported(network(name, size), name, size, tmp_path) < 1e-4


@pytest.mark.parametrize("name", list(FAMILIES)[: None if ALL else 3])
def test_the_map_is_what_blanking_a_position_takes_away(name: str) -> None:
    size = FAMILIES[name]
    model, x = network(name, size), torch.randn(2, 3, size, size)
    parts = cut(model)
    with torch.no_grad():
        logits, found = logits_and_map(parts, x)
        torch.testing.assert_close(logits, model(x), rtol=1e-4, atol=1e-5)
        if not parts.pooled:  # tokens, which are hidden from the class token
            return
        features = parts.features(x).clone()
        i, j = found.shape[2] - 1, 0
        features[:, :, i, j] = 0
        blanked = parts.head(features.mean((2, 3)))
    scale = found.abs().max() + logits.abs().max()
    torch.testing.assert_close(found[:, :, i, j] / scale, (logits - blanked) / scale, rtol=0, atol=1e-5)

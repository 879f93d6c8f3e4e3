"""Backbone and head of timm's networks, by the methods that all of them have: `forward_features` and `forward_head`."""

from typing import Any

import torch
from torch import Tensor, nn

from dermrw.errors import UserError


class Features(nn.Module):
    """Inputs `[N, 3, H, W]` -> the last feature map `[N, D, h, w]`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.prefix: int = getattr(model, "num_prefix_tokens", 0)
        self.channels_last = channels_last(model)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the map. Tokens of a vision transformer are put in their places; a class token is left out."""
        f = self.model.forward_features(x)
        if f.ndim == 3:
            f = f[:, self.prefix :]
            side = int(f.shape[1] ** 0.5)
            return f.transpose(1, 2).unflatten(2, (side, side))
        return f.permute(0, 3, 1, 2) if self.channels_last else f


class HeadOfMean(nn.Module):
    """The mean over positions `[N, D]` -> logits `[N, C]`, in a network that starts its head with this mean."""

    def __init__(self, model: Any, tokens: bool) -> None:
        super().__init__()
        self.model, self.tokens, self.channels_last = model, tokens, channels_last(model)

    def forward(self, mean: Tensor) -> Tensor:
        """Returns the logits."""
        if self.tokens:
            return self.model.head(self.model.head_drop(self.model.fc_norm(mean)))
        return self.model.forward_head(mean[:, None, None, :] if self.channels_last else mean[:, :, None, None])


def channels_last(model: Any) -> bool:
    """Returns whether the network's feature map is `[N, h, w, D]`."""
    return getattr(model, "output_fmt", "NCHW") == "NHWC"


def has_class_token(model: Any) -> bool:
    """Returns whether the network is a vision transformer whose head takes the class token, its only additional one."""
    return (
        getattr(model, "global_pool", None) == "token"
        and getattr(model, "num_prefix_tokens", 0) == 1
        and getattr(model, "attn_pool", None) is None
        and hasattr(model, "patch_embed")
    )


class Tokens(nn.Module):
    """A vision transformer up to the input of its last block: tokens `[N, 1 + h w, D]`, the class token first."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Returns the tokens."""
        m = self.model
        return m.blocks[:-1](m.norm_pre(m.patch_drop(m._pos_embed(m.patch_embed(x)))))


def attended(model: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the attention weights of the class token in the last block, and the values.

    Args:
        model: the network.
        tokens: the input of the last block `[N, T, D]`.

    Returns:
        weights `[N, heads, T]`, values `[N, heads, T, D / heads]`.
    """
    block = model.blocks[-1]
    attention = block.attn
    qkv = attention.qkv(block.norm1(tokens))
    q, k, v = qkv.unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = attention.q_norm(q), attention.k_norm(k)
    return torch.softmax((q[:, :, :1] @ k.transpose(2, 3) * attention.scale)[:, :, 0], 2), v


def finish(model: Any, token: Tensor, seen: Tensor) -> Tensor:
    """Logits from the class token `[..., D]` before the last block and its heads' output `[..., heads, D / heads]`."""
    block = model.blocks[-1]
    x = token + block.ls1(block.attn.proj(block.attn.norm(seen.flatten(-2))))
    x = x + block.ls2(block.mlp(block.norm2(x)))
    return model.head(model.head_drop(model.fc_norm(model.norm(x))))


def require_equal(model: nn.Module, logits: Tensor, x: Tensor, name: str) -> None:
    """Checks that the parts of a network together compute its logits.

    Raises:
        UserError: they do not, as in a network that does not start its head with the mean over positions.
    """
    with torch.no_grad():
        whole = model(x)
    if not torch.allclose(logits, whole, rtol=1e-3, atol=1e-4 * max(1.0, float(whole.abs().max()))):
        raise UserError(f"{name} can't be exported, because its head does not start with the mean over positions")

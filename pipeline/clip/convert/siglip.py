"""SigLIP model of transformers, built from open_clip's transformer blocks.

open_clip's own SigLIP models take their image tower from timm, in a few fixed sizes. This one has any size, and its
blocks can be packed like those of other open_clip models.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn


class Siglip(nn.Module):
    """SigLIP model with the interface of open_clip's `CustomTextCLIP`, as far as the encoder uses it.

    Args:
        config: config in open_clip's form, as `read_config` returns it.
        library: the open_clip module.
        dtype: dtype to compute in if it is not float32, otherwise None.
    """

    def __init__(self, config: dict[str, Any], library: Any, dtype: torch.dtype | None) -> None:
        super().__init__()
        text = dict(config["text_cfg"])
        layers = {"act_layer": _activation(text), "norm_layer": _norm(text, library, dtype)}
        sizes = {name: value for name, value in text.items() if name not in ("act_kwargs", "norm_kwargs")}
        self.visual: nn.Module | None = _ImageTower(config["vision_cfg"], library, dtype)
        self.text = library.transformer.TextTransformer(output_dim=config["embed_dim"], **sizes, **layers)
        self.context_length: int = text["context_length"]

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode normalised images `[B, 3, H, W]` as embeddings `[B, D]`."""
        assert self.visual is not None
        return torch.as_tensor(self.visual(pixels))

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        """Encode tokens `[B, T]` as embeddings `[B, D]`."""
        return torch.as_tensor(self.text(tokens))


class _ImageTower(nn.Module):
    """Vision transformer without a class token, whose outputs are pooled by attention with one learned query."""

    def __init__(self, config: dict[str, Any], library: Any, dtype: torch.dtype | None) -> None:
        super().__init__()
        size, patch, width = config["image_size"], config["patch_size"], config["width"]
        heads, inner = width // config["head_width"], int(width * config["mlp_ratio"])
        activation, norm = _activation(config), _norm(config, library, dtype)
        self.image_size = (size, size)
        self.conv1 = nn.Conv2d(3, width, patch, patch)
        self.positional_embedding = nn.Parameter(torch.zeros((size // patch) ** 2, width))
        self.transformer = library.transformer.Transformer(
            width, config["layers"], heads, config["mlp_ratio"], act_layer=activation, norm_layer=norm
        )
        self.ln_post = norm(width)
        self.probe = nn.Parameter(torch.zeros(1, 1, width))
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_attn = norm(width)
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(width, inner), gelu=activation(), c_proj=nn.Linear(inner, width))
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)  # (B, L, W)
        states = self.ln_post(self.transformer(patches + self.positional_embedding.to(patches.dtype)))
        query = self.probe.to(states.dtype).expand(len(states), -1, -1)
        pooled = self.attn(query, states, states, need_weights=False)[0]
        pooled = pooled + self.mlp(self.ln_attn(pooled))
        return torch.as_tensor(pooled[:, 0])


def _activation(config: dict[str, Any]) -> Callable[[], nn.Module]:
    return partial(nn.GELU, **(config.get("act_kwargs") or {}))


def _norm(config: dict[str, Any], library: Any, dtype: torch.dtype | None) -> Callable[[int], nn.Module]:
    kind = library.transformer.LayerNorm if dtype is None else library.transformer.LayerNormFp32
    return partial(kind, **(config.get("norm_kwargs") or {}))

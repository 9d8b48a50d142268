"""Weights of a CLIP or SigLIP model of transformers, read and renamed to the names of open_clip."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from .transformers_config import Family

_BLOCK_PARTS = (
    ("self_attn.out_proj.", "attn.out_proj."),
    ("self_attn.", "attn."),
    ("layer_norm1.", "ln_1."),
    ("layer_norm2.", "ln_2."),
    ("mlp.fc1.", "mlp.c_fc."),
    ("mlp.fc2.", "mlp.c_proj."),
)
"""Names within a transformer block, each with open_clip's name."""
_BLOCKS: dict[Family, tuple[tuple[str, str], ...]] = {
    "clip": (
        ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
        ("text_model.encoder.layers.", "transformer.resblocks."),
    ),
    "siglip": (
        ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
        ("text_model.encoder.layers.", "text.transformer.resblocks."),
    ),
}
"""Prefixes of the transformer blocks, each with the prefix in open_clip."""
_OTHERS: dict[Family, tuple[tuple[str, str], ...]] = {
    "clip": (
        ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
        ("vision_model.embeddings.patch_embedding.", "visual.conv1."),
        ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
        ("vision_model.pre_layrnorm.", "visual.ln_pre."),
        ("vision_model.post_layernorm.", "visual.ln_post."),
        ("visual_projection.weight", "visual.proj"),
        ("text_model.embeddings.token_embedding.", "token_embedding."),
        ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
        ("text_model.final_layer_norm.", "ln_final."),
        ("text_projection.weight", "text_projection"),
    ),
    "siglip": (
        ("vision_model.embeddings.patch_embedding.", "visual.conv1."),
        ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
        ("vision_model.post_layernorm.", "visual.ln_post."),
        ("vision_model.head.probe", "visual.probe"),
        ("vision_model.head.attention.", "visual.attn."),
        ("vision_model.head.layernorm.", "visual.ln_attn."),
        ("vision_model.head.mlp.fc1.", "visual.mlp.c_fc."),
        ("vision_model.head.mlp.fc2.", "visual.mlp.c_proj."),
        ("text_model.embeddings.token_embedding.", "text.token_embedding."),
        ("text_model.embeddings.position_embedding.weight", "text.positional_embedding"),
        ("text_model.final_layer_norm.", "text.ln_final."),
        ("text_model.head.", "text.text_projection."),
    ),
}
"""Prefixes of the tensors outside the blocks, each with the prefix in open_clip."""
_TRANSPOSED = ("visual.proj", "text_projection")
"""Projections of open_clip's `CLIP`, which are stored transposed to those of transformers."""


def read_tensors(files: list[Path]) -> dict[str, torch.Tensor]:
    """Read the tensors of weight files. Pickled files are read with torch's `weights_only` option."""
    import safetensors.torch  # installed, because open_clip needs it

    tensors: dict[str, torch.Tensor] = {}
    for path in files:
        if path.suffix == ".safetensors":
            tensors |= safetensors.torch.load_file(path)
        else:
            tensors |= torch.load(path, map_location="cpu", weights_only=True)
    return tensors


def to_open_clip(tensors: Mapping[str, torch.Tensor], family: Family) -> dict[str, torch.Tensor]:
    """Rename the tensors of a model of transformers, and arrange their values as open_clip does.

    Tensors with unknown names keep them, so that loading the weights fails with a message that names them.
    """
    renamed = {}
    for name, value in tensors.items():
        if name.endswith("position_ids") or (family == "siglip" and name in ("logit_scale", "logit_bias")):
            continue
        new = _new_name(name, family)
        renamed[new] = value.T if family == "clip" and new in _TRANSPOSED else value
    return _join_projections(renamed)


def _new_name(name: str, family: Family) -> str:
    for old, new in _BLOCKS[family]:
        if name.startswith(old):
            number, _, part = name.removeprefix(old).partition(".")
            old_part, new_part = next((pair for pair in _BLOCK_PARTS if part.startswith(pair[0])), ("", ""))
            return f"{new}{number}.{new_part}{part.removeprefix(old_part)}"
    old, new = next((pair for pair in _OTHERS[family] if name.startswith(pair[0])), ("", ""))
    return new + name.removeprefix(old)


def _join_projections(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Join the query, key and value projections of each attention layer into one tensor, as torch stores them."""
    joined = {}
    for name, value in tensors.items():
        base, _, kind = name.partition(".attn.q_proj.")
        parts = [f"{base}.attn.{part}_proj.{kind}" for part in "qkv"]
        if kind and all(part in tensors for part in parts):
            joined[f"{base}.attn.in_proj_{kind}"] = torch.cat([tensors[part] for part in parts])
        elif ".attn.k_proj." not in name and ".attn.v_proj." not in name:
            joined[name] = value
    return joined

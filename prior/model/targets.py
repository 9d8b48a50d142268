"""Consumers of sampled embeddings, such as decoders, with their CLIP and the norm and shape that they take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch

from ...pipeline.clip.identity import Match, compare_clips, text_parts
from ...pipeline.errors import InputError, SettingsError
from ..sampling.settings import NormName
from .config import PriorConfig
from .prior import Prior
from .settings import TargetName
from .text_encoder import clip_named

_SENSITIVE = 5.0
"""Change of a picture in percent, for norms that are 10% off, from which a prior without norms of its own is worth a
warning."""


@dataclass(frozen=True)
class TargetClip:
    """CLIP model of a consumer, by the names of open_clip."""

    model: str
    pretrained: str
    embed_dim: int
    """Size of its image embeddings."""

    def __str__(self) -> str:
        return f"{self.model} ({self.pretrained}, size {self.embed_dim})"


@dataclass(frozen=True)
class Target:
    """Consumer of sampled embeddings."""

    name: TargetName
    """Name, as in `sample --for`."""
    norm: NormName
    """Norm of the embeddings that it takes."""
    clips: tuple[TargetClip, ...] = ()
    """CLIP models with which there are pretrained weights; empty if any CLIP will do."""
    negative: str | None = None
    """Negative image embedding that it takes: `zero image` for the CLIP's output for an image of zeros, `zeros` for a
    vector of zeros, or None for none."""
    has_image_axis: bool = False
    """True if each embedding has an axis for several images, `[B, 1, D]`."""
    change: float = 0.0
    """Change of a picture in percent if the norm of the embedding is 10% off."""


_BIG_G = TargetClip("ViT-bigG-14", "laion2b_s39b_b160k", 1280)
_H = TargetClip("ViT-H-14", "laion2b_s32b_b79k", 1024)
_L = TargetClip("ViT-L-14", "openai", 768)

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("kandinsky-2.2", "raw", (_BIG_G,), negative="zero image", change=1.9),
        Target("kandinsky-2.1", "raw", (_L,), negative="zero image", change=32.0),
        Target("karlo", "raw", (_L,), change=8.0),
        Target("stable-unclip", "raw", (_L, _H), change=9.0),
        Target("ip-adapter", "raw", (_H, _BIG_G), negative="zeros", has_image_axis=True, change=0.5),
        Target("dalle2-pytorch", "unit"),
        Target("clip-retrieval", "unit"),
    )
}
"""Known consumers, by name. The changes were measured with diffusers 0.42.1."""


def find_target(name: str) -> Target:
    """Return the consumer with the given name.

    Raises:
        SettingsError: the name is unknown.
    """
    if name not in TARGETS:
        raise SettingsError(f"--for {name}: known are {', '.join(get_args(TargetName))}")
    return TARGETS[name]


def check_target(target: Target, config: PriorConfig, *, has_negative_prompt: bool = False) -> list[str]:
    """Check that a prior's CLIP model is the one that a consumer takes embeddings of.

    Args:
        target: the consumer.
        config: configuration of the prior.
        has_negative_prompt: True if an embedding of a negative prompt is to be sampled for the consumer.

    Returns:
        Notes for the user, one sentence each.

    Raises:
        InputError: the prior has another CLIP model, or embeddings of another size.
        SettingsError: there is a negative prompt, but the consumer takes no embedding of it.
    """
    if has_negative_prompt and target.negative != "zero image":
        raise SettingsError(f"--negative-prompt: {target.name} takes no embedding of one; leave it or --for out")
    if not target.clips:
        return []
    wanted = " or ".join(map(str, target.clips))
    if config.spaces is not None:
        raise InputError(
            f"--for {target.name}: it takes embeddings of the CLIP {wanted}, and no CLIP made this prior's"
        )
    name = clip_named(config.clip_settings) or "unknown"
    if config.embed_dim not in [clip.embed_dim for clip in target.clips]:
        raise InputError(
            f"--for {target.name}: it takes embeddings of the CLIP {wanted}, and this prior's have size "
            f"{config.embed_dim} (CLIP {name})"
        )
    match = match_target(target, config.clip, config.clip_settings, config.embed_dim)
    if match == "same":
        notes = []
    elif match == "unknown":
        notes = [f"it is not known whether the prior's CLIP, {name}, is the one of {target.name}: {wanted}"]
    else:
        raise InputError(f"--for {target.name}: it takes embeddings of the CLIP {wanted}, and this prior's is {name}")
    norm = config.image_norm
    if target.norm == "raw" and not config.diffusion.takes_raw_images and norm and target.change >= _SENSITIVE:
        notes.append(
            f"this prior predicts no norms: all samples get the mean norm of its training images, {norm.mean:.3g}; "
            f"their norms vary by {norm.std / norm.mean:.0%}; pictures of {target.name} change by about "
            f"{target.change:.0f}% if a norm is 10% off. A prior with train.diffusion.normaliser=clip_stats predicts "
            "norms"
        )
    return notes


def match_target(target: Target, clip: Mapping[str, Any], clip_settings: Mapping[str, Any], embed_dim: int) -> Match:
    """Compare a CLIP model with those of a consumer that have the same embedding size.

    Args:
        target: the consumer.
        clip, clip_settings: identity and location of the CLIP model; either may be empty.
        embed_dim: size of its image embeddings.

    Returns:
        "same", "other" or "unknown", as `compare_clips` returns for the CLIP model that fits best.
    """
    matches = {
        compare_clips(
            text_parts(clip), text_parts(clip_settings), {}, {"model": wanted.model, "pretrained": wanted.pretrained}
        )
        for wanted in target.clips
        if wanted.embed_dim == embed_dim
    }
    return "same" if "same" in matches else "unknown" if "unknown" in matches or not matches else "other"


def negative_embed(target: Target, prior: Prior, sampled: torch.Tensor | None) -> torch.Tensor | None:
    """Return the negative image embedding `[D]` that a consumer takes, or None if it takes none.

    Args:
        target: the consumer.
        prior: prior of the samples.
        sampled: embedding that was sampled from a negative prompt; None if there is none.

    Raises:
        InputError: the CLIP's output for an image of zeros is needed, but neither stored with the prior nor computable.
    """
    if target.negative is None:
        return None
    if target.negative == "zeros":
        return torch.zeros(prior.config.embed_dim)
    return sampled if sampled is not None else prior.zero_image_embed()


def shaped(target: Target | None, embed_dim: int) -> Sequence[int]:
    """Return the shape of a sampled embedding in the file: `[D]`, or `[1, D]` with an axis for several images."""
    return (1, embed_dim) if target is not None and target.has_image_axis else (embed_dim,)

"""The CLIP whose text a prior understands, found again and checked against the weights that made the embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...pipeline.clip.settings import ClipSettings, EncoderSettings
from ...pipeline.compute.device import resolve
from ...pipeline.compute.settings import DeviceSettings
from ...pipeline.errors import InputError

if TYPE_CHECKING:
    from ...pipeline.clip.encoder import ClipEncoder

_BATCH_SIZE = 64
"""Captions in one forward pass."""


def find_text_encoder(
    location: Mapping[str, Any], identity: Mapping[str, Any], made: str, device: DeviceSettings
) -> ClipEncoder:
    """Load a CLIP without its image tower.

    Args:
        location: its settings, as `clip_location` gives them.
        identity: what is known of it; empty where nothing is.
        made: what those weights are known of, for the error.
        device: where it shall run, with how many threads.

    Raises:
        InputError: it is not to be had, or has other weights.
    """
    from ...pipeline.clip.encoder import load_text_encoder
    from ...pipeline.clip.identity import clip_difference, text_parts

    clip = ClipSettings(**location)
    if clip.pretrained == "openai" and clip.quick_gelu is None:
        # all of OpenAI's weights have QuickGELU, also where an imported prior names them without
        clip = clip.model_copy(update={"quick_gelu": True})
    here = resolve(device, "embed")
    encoder = load_text_encoder(
        EncoderSettings(
            clip=clip,
            device=here.device,
            threads=here.threads,
            dtype=identity.get("dtype", "float32"),
            batch_size=_BATCH_SIZE,
        )
    )
    if differing := clip_difference(text_parts(identity), encoder.identity):
        other = "weights" if "weights_sha256" in differing else differing
        raise InputError(f"the CLIP {clip.model} here has other {other} than the one {made}")
    return encoder

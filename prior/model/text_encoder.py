"""Functions that load a prior's CLIP model, or compare it with the CLIP model of an embedding folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...pipeline.clip.identity import Match, clip_difference, compare_clips, text_parts
from ...pipeline.clip.settings import ClipSettings, EncoderSettings
from ...pipeline.compute.device import resolve
from ...pipeline.compute.settings import DeviceSettings
from ...pipeline.contract.empty_inputs import EmptyInputs
from ...pipeline.errors import InputError
from ...pipeline.read.dataset import EmbeddingDataset
from .config import PriorConfig

if TYPE_CHECKING:
    from ...pipeline.clip.encoder import ClipEncoder

_BATCH_SIZE = 64
"""Number of captions per forward pass."""


def find_text_encoder(
    location: Mapping[str, Any], identity: Mapping[str, Any], made: str, device: DeviceSettings
) -> ClipEncoder:
    """Load a CLIP model without its image tower, and check that it is the expected model.

    Args:
        location: settings for loading the CLIP model, from `clip_location`.
        identity: values that identify the expected model, such as a hash of its weights. If empty, nothing is checked.
        made: description of the expected model. It completes the error message "the CLIP ... here has other weights
            than the one ...", for example with "this prior was trained with".
        device: settings for the device and the number of threads.

    Raises:
        InputError: the CLIP model cannot be loaded, or differs from `identity`, for example in its weights.
    """
    from ...pipeline.clip.encoder import load_text_encoder

    settings = _encoder_settings(location, identity, device)
    encoder = load_text_encoder(settings)
    clip = settings.clip
    if differing := clip_difference(text_parts(identity), encoder.identity):
        other = "weights" if "weights_sha256" in differing else differing
        raise InputError(f"the CLIP {clip.model} here has other {other} than the one {made}")
    return encoder


def encode_empty_inputs(
    location: Mapping[str, Any], identity: Mapping[str, Any], device: DeviceSettings
) -> EmptyInputs:
    """Compute a CLIP model's outputs for an image of zeros and the empty text.

    Args:
        location, identity, device: as for `find_text_encoder`.

    Raises:
        InputError: the CLIP model cannot be loaded, or differs from `identity`.
    """
    from ...pipeline.clip.encoder import ClipEncoder

    encoder = ClipEncoder(_encoder_settings(location, identity, device))
    if differing := clip_difference(identity, encoder.identity):
        raise InputError(f"the CLIP {location['model']} here differs from the one of this prior ({differing})")
    return encoder.encode_empty()


def _encoder_settings(
    location: Mapping[str, Any], identity: Mapping[str, Any], device: DeviceSettings
) -> EncoderSettings:
    """Return the settings with which to load a prior's CLIP model."""
    clip = ClipSettings(**location)
    if clip.pretrained == "openai" and clip.quick_gelu is None:
        # all OpenAI weights use QuickGELU, even if an imported prior does not record it
        clip = clip.model_copy(update={"quick_gelu": True})
    here = resolve(device, "embed")
    return EncoderSettings(
        clip=clip,
        device=here.device,
        threads=here.threads,
        dtype=identity.get("dtype", "float32"),
        batch_size=_BATCH_SIZE,
    )


def match_clips(config: PriorConfig, dataset: EmbeddingDataset) -> Match:
    """Determine whether a prior and an embedding folder use the same CLIP model, without loading any model.

    Image preprocessing is ignored, because it does not affect text embeddings. If no CLIP made the embeddings, the
    names and sizes of the source and the target are compared instead.

    Returns:
        "same", "other" (a different model) or "unknown". The result is "same" if the prior was trained on this folder's
        embeddings. Otherwise, it depends on the recorded identities (such as weight hashes) and locations of both
        models.
    """
    if config.trained_on is not None and config.trained_on.embeddings == dataset.content_fingerprint:
        return "same"
    if config.spaces is not None or dataset.spaces is not None:
        unknown = config.spaces is None and not config.clip and not config.clip_settings
        return "same" if config.spaces == dataset.spaces else "unknown" if unknown else "other"
    there = dataset.clip_if_known
    location = {} if not there or "source" in there else dataset.clip_settings
    return compare_clips(*map(text_parts, (config.clip, config.clip_settings, there, location)))


def clip_named(location: Mapping[str, Any]) -> str:
    """Return a CLIP model's name for messages, such as `ViT-B-32 (openai)`, or an empty string if it is unknown."""
    model, pretrained = location.get("model"), location.get("pretrained")
    return f"{model} ({pretrained})" if model and pretrained else str(model or "")

"""Estimates of the time and disk space that embedding takes, for `--dry-run` and for the check of the free space.

They are computed from the CLIP model's config and the speed of the device. Once a shard is complete, its measured rate
and size replace them.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from ..clip.cost import ClipCost
from ..clip.encoder import embedding_size
from ..compute.speed import estimate_flops
from ..contract.manifest import Manifest
from ..contract.storage import Store
from ..errors import InputError
from .settings import EmbedSettings

_RECENT_SHARDS = 16
"""Maximum number of complete shards whose rate and size are averaged."""
_UNKNOWN_DIM = 768
"""Embedding size assumed if the CLIP model's config is not available. It is the size of ViT-L/14."""
_UNKNOWN_COST = ClipCost(image_flops=1.6e11, text_flops=1.3e10, context_length=77, can_cut=True)
"""Operations assumed if the CLIP model's config is not available. They are those of ViT-L/14."""
_TOKENS = 16
"""Number of tokens per caption, typical of a caption of a dozen words."""
_METADATA_BYTES = 200
"""Bytes per row in the metadata: key, caption, URL and hash."""
SHARD_BYTES = 32 << 10
"""Bytes per shard in addition to those of its rows: headers, footers, the record, and the rest of the last disk blocks
of eight files."""
_DECODE_SECONDS = 0.003
"""Seconds to decode and preprocess an image of 256 pixels in one thread."""


@dataclass(frozen=True)
class Measured:
    """Rate and size of the shards that are complete."""

    seconds_per_sample: float
    """Seconds per sample, including those that failed, in one worker."""
    bytes_per_sample: float


def measure(store: Store, manifest: Manifest) -> Measured | None:
    """Return the rate and size of the latest complete shards with the manifest's settings; None if there are none.

    Args:
        store: embeddings folder.
        manifest: manifest of the folder.
    """
    settings = manifest.settings_fingerprint
    complete = sorted(name for name, record in manifest.shards.items() if record.settings == settings)
    samples, seconds, size = 0, 0.0, 0
    for name in complete[-_RECENT_SHARDS:]:
        record = manifest.shards[name]
        for log in record.logs:
            with contextlib.suppress(OSError, InputError, KeyError, TypeError, ValueError):  # logs may be missing
                seconds += float(store.read_json(log)["seconds"])
                samples += record.input_samples
                size += sum(entry.bytes for entry in record.files.values())
    return Measured(seconds / samples, size / samples) if samples and seconds else None


def estimate_bytes(settings: EmbedSettings) -> float:
    """Return the estimated disk space per sample, in bytes.

    Token states are assumed to be as wide as the embedding, which holds for most CLIP models.
    """
    vectors = settings.image + settings.text + (_TOKENS if settings.token_states else 0)
    return _METADATA_BYTES + vectors * (embedding_size(settings.clip) or _UNKNOWN_DIM) * 2


def estimate_seconds(settings: EmbedSettings, cost: ClipCost | None) -> float:
    """Return the estimated time per sample in one worker, in seconds.

    Args:
        settings: embed settings, with `device` and `threads` resolved to actual values.
        cost: operations of the CLIP model; None if they are unknown.
    """
    cost = cost or _UNKNOWN_COST
    flops = cost.image_flops * settings.image + cost.flops_of_caption(_TOKENS) * settings.text
    model = flops / estimate_flops(settings.device, settings.dtype, settings.threads)
    decode = _DECODE_SECONDS / settings.decode_threads if settings.image else 0.0
    # a GPU computes while the CPU decodes; on the CPU, both share the cores
    return max(model, decode) if settings.device == "cuda" else model + decode

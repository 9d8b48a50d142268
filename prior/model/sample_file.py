"""Sampling for many texts into one file, in batches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch.nn.functional as F

from ...pipeline.compute.stage import ProgressCallback, no_progress
from ...pipeline.errors import Interrupted
from .export import embeds_file
from .prior import SAMPLE_BATCH, Prior
from .texts import Texts

_SHOWN = 20
"""Number of captions whose cosines the summary lists."""


@dataclass
class Sampled:
    """Summary of a written file."""

    shape: tuple[int, int]
    """`[rows, D]`."""
    mean_cosine_to_text: float | None = None
    """Mean cosine of a sample to its text embedding; None if texts and images have different encoders."""
    labels: list[str] = field(default_factory=list)
    """First captions."""
    cosine_to_text: list[float] = field(default_factory=list)
    """Cosines of their samples to their texts."""
    notes: list[str] = field(default_factory=list)
    """Notes to the user about the texts, a sentence each."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON that `--json` prints."""
        return {**asdict(self), "shape": list(self.shape)}


@contextlib.contextmanager
def _nothing_written(output: Path) -> Iterator[None]:
    """Turn a KeyboardInterrupt into a message that nothing was written."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; {output} was not written, and the same command starts again") from None


def sample_to_file(
    prior: Prior, texts: Texts, output: Path, *, progress: ProgressCallback = no_progress, **settings: Any
) -> Sampled:
    """Sample one embedding for each text, in order, into a file of `[rows, D]` float32.

    Memory does not grow with the number of texts.

    Args:
        output: the file, `.npy` or `.safetensors`.
        settings: as for `Prior.sample`.
    """
    prior.sample([], **settings)  # raises for wrong settings before any work
    done = Sampled((texts.count, prior.config.embed_dim))
    total, first = 0.0, 0
    comparable = prior.network.text_dim == prior.config.embed_dim
    progress(0, texts.count, "")
    with _nothing_written(output), embeds_file(output, *done.shape) as append:
        for batch in texts.batches(prior, SAMPLE_BATCH):
            embeds = prior.sample(text_embed=batch.text_embed, token_states=batch.token_states, first=first, **settings)
            append(embeds)
            first += len(embeds)
            progress(first, texts.count, "")
            if not comparable:
                continue
            cosines = F.cosine_similarity(embeds, batch.text_embed.float(), dim=-1).tolist()
            total += sum(cosines)
            free = _SHOWN - len(done.labels)
            done.labels += batch.labels[:free]
            done.cosine_to_text += cosines[:free]
    done.notes = texts.notes
    if comparable and texts.count:
        done.mean_cosine_to_text = total / texts.count
    return done

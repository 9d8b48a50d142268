"""Sample for many texts into one file, in batches."""

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


@dataclass
class Sampled:
    """What was written."""

    shape: tuple[int, int]
    """`[rows, D]`."""
    mean_cosine_to_text: float | None = None
    """Mean cosine of a sample to its text embedding; None where text and images have different encoders."""
    labels: list[str] = field(default_factory=list)
    """The first captions."""
    cosine_to_text: list[float] = field(default_factory=list)
    """Their samples' cosines to their texts."""
    notes: list[str] = field(default_factory=list)
    """What a user should know about the texts, a sentence each."""

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {**asdict(self), "shape": list(self.shape)}


@contextlib.contextmanager
def _nothing_written(output: Path) -> Iterator[None]:
    """Say what an interrupt leaves."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; {output} was not written, and the same command begins anew") from None


def sample_to_file(
    prior: Prior, texts: Texts, output: Path, *, progress: ProgressCallback = no_progress, **settings: Any
) -> Sampled:
    """One embedding for each text, in order, as `[rows, D]` float32 in `output`.

    Memory does not grow with the number of texts.

    Args:
        output: `.npy` or `.safetensors`.
        settings: as for `Prior.sample`.
    """
    prior.sample([], **settings)  # what is wrong with the settings, before any work
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

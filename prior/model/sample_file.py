"""Sampling of many texts, batch by batch, into one file."""

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

NO_BEST_OF = "one draw is made for each source: source and target are in different spaces, so no draw is nearer to it"
"""Note for users if the best of several draws cannot be chosen."""
NO_COSINES = "cosines to the source are left out: source and target are in different spaces, so they mean nothing"
"""Note for users if samples cannot be compared with their texts."""
_SHOWN = 20
"""Maximum number of texts that the summary lists with their cosine similarities."""


@dataclass
class Sampled:
    """Summary of the embeddings that `sample_to_file` wrote, and their similarity to the texts."""

    shape: tuple[int, int]
    """Shape of the array in the file: number of rows and embedding size."""
    mean_cosine_to_text: float | None = None
    """Mean cosine similarity between samples and their texts.

    None if there are no texts, or if text and image embeddings are not in one space.
    """
    labels: list[str] = field(default_factory=list)
    """Captions or row numbers of up to 20 texts, starting with the first; empty if `mean_cosine_to_text` is None."""
    cosine_to_text: list[float] = field(default_factory=list)
    """Cosine similarity between a text and its sample, for each text in `labels`."""
    notes: list[str] = field(default_factory=list)
    """Remarks for the user about the source of the texts, one sentence each."""

    def to_json(self) -> dict[str, Any]:
        """Return the summary as a JSON-serialisable dictionary, as printed by `--json`."""
        return {**asdict(self), "shape": list(self.shape)}


@contextlib.contextmanager
def _nothing_written(output: Path) -> Iterator[None]:
    """Context manager that replaces KeyboardInterrupt with an Interrupted error.

    The error message says that `output` was not written, and that running the same command again starts from the
    beginning.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; {output} was not written, and the same command starts again") from None


def sample_to_file(
    prior: Prior, texts: Texts, output: Path, *, progress: ProgressCallback = no_progress, **settings: Any
) -> Sampled:
    """Sample one image embedding per text, and write the embeddings to a file in the order of the texts.

    The file contains one float32 array with a row per text. Texts are processed in batches, so memory use does not grow
    with their number.

    Args:
        prior: prior to sample from.
        texts: source of the texts.
        output: path of the file, which must end in `.npy` or `.safetensors`. An existing file is replaced.
        progress: called after each batch with the number of texts sampled so far and the total number of texts.
        settings: keyword arguments of `Prior.sample`.

    Returns:
        Summary of the samples.

    Raises:
        InputError: the texts cannot be read or encoded, or do not fit the prior.
        Interrupted: sampling was stopped with Ctrl-C, and no file was written.
        SettingsError: the prior does not support the settings, or the output path is invalid.
    """
    prior.sample([], **settings)  # check the settings before doing any work
    done = Sampled((texts.count, prior.config.embed_dim))
    total, first = 0.0, 0
    comparable = prior.config.compares_texts
    if not comparable and settings.get("num_candidates", 1) > 1:
        settings["num_candidates"] = 1
        done.notes.append(NO_BEST_OF)
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
    done.notes += texts.notes
    if not comparable:
        done.notes.append(NO_COSINES)
    if comparable and texts.count:
        done.mean_cosine_to_text = total / texts.count
    return done

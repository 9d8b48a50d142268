"""Sampling of many texts, batch by batch, into one file."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ...pipeline.compute.stage import ProgressCallback, no_progress
from ...pipeline.errors import Interrupted, SettingsError
from ..sampling.settings import NormName
from .export import embeds_file
from .folder import prior_fingerprint
from .norms import default_norm
from .prior import SAMPLE_BATCH, Prior
from .targets import Target, check_target, find_target, negative_embed, shaped
from .texts import Texts

NO_BEST_OF = "one draw is made for each source: source and target are in different spaces, so no draw is nearer to it"
"""Note for users if the best of several draws cannot be chosen."""
NO_COSINES = "cosines to the source are left out: source and target are in different spaces, so they mean nothing"
"""Note for users if samples cannot be compared with their texts."""
_MOST_PROMPTS = 64
"""Maximum number of texts that the file itself lists."""
_SHOWN = 20
"""Maximum number of texts that the summary lists with their cosine similarities."""


@dataclass
class Sampled:
    """Summary of the embeddings that `sample_to_file` wrote, and their similarity to the texts."""

    shape: tuple[int, ...]
    """Shape of the array in the file: number of rows and embedding size, with an axis for several images between them
    for some consumers."""
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
    prior: Prior,
    texts: Texts,
    output: Path,
    *,
    target: str | None = None,
    progress: ProgressCallback = no_progress,
    **settings: Any,
) -> Sampled:
    """Sample one image embedding per text, and write the embeddings to a file in the order of the texts.

    The file contains a float32 array with a row per text and, for some consumers, a second one with the negative
    embedding. Texts are processed in batches, so memory use does not grow with their number.

    Args:
        prior: prior to sample from.
        texts: source of the texts.
        output: path of the file, which must end in `.npy` or `.safetensors`. An existing file is replaced.
        target: consumer of the embeddings, which determines their norm and shape; one of `targets.TARGETS`. None if
            `settings` determine the norm.
        progress: called after each batch with the number of texts sampled so far and the total number of texts.
        settings: keyword arguments of `Prior.sample`.

    Returns:
        Summary of the samples.

    Raises:
        InputError: the texts cannot be read or encoded, or do not fit the prior; or the prior has another CLIP model
            than the consumer.
        Interrupted: sampling was stopped with Ctrl-C, and no file was written.
        SettingsError: the prior does not support the settings, or the output path is invalid.
    """
    consumer = None if target is None else find_target(target)
    done = Sampled((texts.count, *shaped(consumer, prior.config.embed_dim)))
    if consumer is not None:
        has_negative = settings.get("negative_prompt") is not None
        done.notes += check_target(consumer, prior.config, has_negative_prompt=has_negative)
        _fix_norm(consumer, settings, output)
    prior.sample([], **settings)  # check the settings before doing any work
    total, first = 0.0, 0
    comparable = prior.config.compares_texts
    if not comparable and settings.get("num_candidates", 1) > 1:
        settings["num_candidates"] = 1
        done.notes.append(NO_BEST_OF)
    progress(0, texts.count, "")
    with _nothing_written(output):
        negative = None if consumer is None else negative_embed(consumer, prior, _sampled_negative(prior, settings))
        batches = texts.batches(prior, SAMPLE_BATCH)
        head = next(batches, None)
        metadata = None
        if output.suffix == ".safetensors":  # takes seconds for a large prior
            metadata = _describe(prior, consumer, settings.get("norm"), [] if head is None else head.labels)
        file = embeds_file(output, texts.count, done.shape[1:], negative=negative, metadata=metadata)
        with file as append:
            for batch in itertools.chain([] if head is None else [head], batches):
                embeds = prior.sample(
                    text_embed=batch.text_embed, token_states=batch.token_states, first=first, **settings
                )
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


def _fix_norm(consumer: Target, settings: dict[str, Any], output: Path) -> None:
    """Set the norm that a consumer takes in the settings of `Prior.sample`.

    Raises:
        SettingsError: the settings ask for another norm, or the file type cannot hold what the consumer needs.
    """
    if settings.get("norm") not in (None, consumer.norm):
        raise SettingsError(
            f"--norm {settings['norm']}: {consumer.name} takes embeddings of norm {consumer.norm}; leave --norm out"
        )
    if consumer.norm == "raw" and output.suffix != ".safetensors":
        raise SettingsError(
            f"--output {output}: a file for {consumer.name} also holds the norm and the CLIP; end it with .safetensors"
        )
    settings["norm"] = consumer.norm


def _sampled_negative(prior: Prior, settings: dict[str, Any]) -> torch.Tensor | None:
    """Return an embedding sampled from the negative prompt, as Kandinsky's pipelines do; None without such a prompt.

    Guidance has no effect on it, because it would compare the negative prompt with itself.
    """
    if settings.get("negative_prompt") is None:
        return None
    without = {"negative_prompt": None, "guidance_scale": 1.0, "num_candidates": 1}
    return prior.sample([settings["negative_prompt"]], **{**settings, **without})[0]


def _describe(prior: Prior, consumer: Target | None, norm: NormName | None, labels: list[str]) -> dict[str, Any]:
    """Return the metadata of a file of samples."""
    return {
        "norm": default_norm(prior.config, norm) or "none",
        "for": None if consumer is None else consumer.name,
        "clip": prior.config.clip,
        "clip_settings": prior.config.clip_settings,
        "prior": prior_fingerprint(prior),
        "prompts": labels[:_MOST_PROMPTS],
    }

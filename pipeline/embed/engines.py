"""Embedding engines: the `Engine` interface, and priorkit's native engine.

An engine embeds the samples of a shard and yields them in groups of rows, called windows. For every engine, the module
`worker` writes these rows to the embedding shard.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from ..clip.encoder import ClipEncoder
from ..clip.pixels import PixelError
from ..clip.text_tower import TextEmbeds
from ..compute.read_ahead import DecodeAhead
from ..contract.manifest import embedding_shard_name
from ..contract.samples import Place, Sample, encodable
from ..contract.storage import Store
from .inputs import InputShard
from .settings import EmbedSettings

_WINDOW_BATCHES = 16
"""Number of batches per window (the group of rows that the native engine yields at once). The captions of a window are
sorted by length before they are divided into batches, so that each batch contains captions of similar length."""


@dataclass(frozen=True)
class EmbedTask:
    """Task to embed all samples of one input shard, or only its first `limit` samples."""

    shard: InputShard
    input: str
    """Fingerprint (hash) of the samples to embed: the whole shard, or its first `limit` samples."""
    limit: int | None
    """Number of samples to embed, starting with the first; None for all."""

    @property
    def name(self) -> str:
        """Name of the embedding shard that this task produces."""
        return embedding_shard_name(int(self.shard.name))


@dataclass(frozen=True)
class Failure:
    """Sample that could not be embedded, with the reason for the failure."""

    key: str
    reason: str
    """Kind of failure, such as `missing_image`, optionally followed by a colon and details. Failures are counted by
    kind."""
    place: Place


@dataclass(frozen=True)
class Window:
    """Group of embedded rows from the same shard that an engine yields at once.

    Shape symbols: N rows, D embedding size.
    """

    keys: list[str]
    places: list[Place]
    captions: list[str]
    image_embed: torch.Tensor | None
    """`[N, D]` image embeddings; None if images are not embedded."""
    text: TextEmbeds | None
    """Text embeddings and, if requested, token states (per-token text-encoder outputs); None if captions are not
    embedded."""
    normalised: bool = False
    """True if the engine has already normalised the embeddings. Their original norms are then unknown."""


class Engine(Protocol):
    """Interface of embedding engines. An engine embeds one shard per call, always with the same model."""

    def windows(self, task: EmbedTask, following: EmbedTask | None) -> Iterator[Window | Failure]:
        """Embed the samples of a task. Yield each sample exactly once, either as a row of a window or as a failure.

        Rows are in sample order, unless an engine documents another order.

        Args:
            task: shard to embed.
            following: next task, so that the engine can start to read its samples early; None if `task` is the last.
        """


@dataclass(frozen=True)
class _Row:
    """Sample that is ready to be embedded as one row per caption, with its decoded and preprocessed image.

    The field `pixels` is None if images are not embedded, or once the image has been moved to a batch.
    """

    key: str
    places: list[Place]
    """Position of the sample, once for each caption."""
    captions: list[str]
    """Captions of the sample. Each becomes a row. If captions are not embedded, there is one, which may be empty."""
    pixels: torch.Tensor | None


class NativeEngine:
    """priorkit's native engine. It decodes images in threads while the model runs, and sorts captions by length.

    Args:
        source: folder that contains the samples.
        settings: embed settings, with `device` and `threads` resolved to actual values.
        encoder: CLIP encoder that embeds the samples.
    """

    def __init__(self, source: Store, settings: EmbedSettings, encoder: ClipEncoder) -> None:
        self._source, self._settings, self._encoder = source, settings, encoder
        self._ahead: DecodeAhead[EmbedTask, Sample, _Row | Failure] = DecodeAhead(
            self._read, self._decode, threads=settings.decode_threads, depth=2 * settings.batch_size
        )

    def windows(self, task: EmbedTask, following: EmbedTask | None) -> Iterator[Window | Failure]:
        """Embed the samples of a task, and yield groups of embedded rows (windows) and failed samples; see `Engine`."""
        size = self._settings.batch_size
        rows: list[_Row] = []
        pixels: list[torch.Tensor] = []
        images: list[torch.Tensor] = []
        for sample in self._ahead.samples(task, following):
            if isinstance(sample, Failure):
                yield sample
                continue
            rows.append(replace(sample, pixels=None))
            if sample.pixels is not None:
                pixels.append(sample.pixels)
            if len(pixels) == size:
                images.append(self._encoder.encode_images(pixels))
                pixels = []
            if len(rows) == _WINDOW_BATCHES * size:
                yield self._window(rows, images)
                rows, images = [], []
        if pixels:
            images.append(self._encoder.encode_images(pixels))
        if rows:
            yield self._window(rows, images)

    def close(self) -> None:
        """Stop the reading and decoding threads."""
        self._ahead.close()

    def _window(self, rows: list[_Row], images: list[torch.Tensor]) -> Window:
        captions = [caption for row in rows for caption in row.captions]
        image_embed = torch.cat(images).cpu() if images else None
        if image_embed is not None and len(captions) > len(rows):  # an image with several captions is embedded once
            image_embed = image_embed.repeat_interleave(torch.tensor([len(row.captions) for row in rows]), dim=0)
        text = self._encoder.encode_texts(captions, self._settings.token_states) if self._settings.text else None
        keys, places = [row.key for row in rows for _ in row.captions], [place for row in rows for place in row.places]
        return Window(keys, places, captions, image_embed, text)

    def _read(self, task: EmbedTask) -> Iterator[Sample]:
        return task_samples(task, self._source)

    def _decode(self, sample: Sample) -> _Row | Failure:
        """Decode a sample's captions, and decode and preprocess its image. Runs in the decoding threads.

        Return a failure if `captions_of` returns one, or if the image cannot be decoded.
        """
        captions, pixels = captions_of(sample, self._settings), None
        if isinstance(captions, Failure):
            return captions
        try:
            if self._settings.image:
                assert sample.image is not None
                pixels = self._encoder.decode(sample.image)
        except PixelError as error:
            return _failure(sample, str(error))
        return _Row(sample.key, places_of(sample, captions), captions, pixels)


def task_samples(task: EmbedTask, source: Store) -> Iterator[Sample]:
    """Yield the samples of a task, each with its position in the shard.

    Samples are identified by position, because several samples may have the same key.

    Args:
        task: shard to embed.
        source: folder that contains the samples.
    """
    for position, sample in enumerate(itertools.islice(task.shard.read(source), task.limit)):
        place = sample.place._replace(position=position)
        yield replace(sample, key=encodable(sample.key), place=place)


def captions_of(sample: Sample, settings: EmbedSettings) -> list[str] | Failure:
    """Return the decoded captions of a sample: one empty string if it has none, or if captions are not embedded.

    Return a failure if the sample could not be read, its image or caption is missing, or a caption is not valid UTF-8.
    Images and captions that the settings exclude from embedding do not cause failures.
    """
    if sample.error is not None:
        return _failure(sample, sample.error)
    if settings.image and sample.image is None:
        return _failure(sample, "missing_image", sample.instead)
    if settings.text and sample.caption is None:
        return _failure(sample, "missing_caption", sample.instead)
    try:
        captions = [caption.decode() for caption in sample.captions] or [""]
    except UnicodeDecodeError as error:
        return _failure(sample, f"caption_not_utf8: {error}") if settings.text else [""]
    return captions if settings.text else captions[:1]


def places_of(sample: Sample, captions: list[str]) -> list[Place]:
    """Return the position of the row of each caption of a sample."""
    rows = sample.caption_rows or (0,) * len(captions)
    return [sample.place._replace(row=row) for row, _ in zip(rows, captions, strict=False)]


def _failure(sample: Sample, reason: str, detail: str = "") -> Failure:
    return Failure(sample.key, encodable(f"{reason}: {detail}" if detail else reason), sample.place)

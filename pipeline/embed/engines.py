"""Engines that turn the samples of a shard into embeddings: their interface, and priorkit's own engine.

An engine yields windows of rows. `worker` writes and commits them in the same way for all engines.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
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
"""Batches in a window, whose captions are sorted by length together."""


@dataclass(frozen=True)
class EmbedTask:
    """One shard to embed."""

    shard: InputShard
    input: str
    """Fingerprint of the samples to embed: all of the shard, or the first `limit`."""
    limit: int | None
    """Number of samples to embed, from the first on; None for all."""

    @property
    def name(self) -> str:
        """Name of the embedding shard."""
        return embedding_shard_name(int(self.shard.name))


@dataclass(frozen=True)
class Failure:
    """A sample that could not be embedded."""

    key: str
    reason: str
    """Outcome to count, then a colon and the details."""
    place: Place


@dataclass(frozen=True)
class Window:
    """Consecutive rows of a shard with their embeddings."""

    keys: list[str]
    places: list[Place]
    captions: list[str]
    image_embed: torch.Tensor | None
    """`[N, D]`; None if images are not embedded."""
    text: TextEmbeds | None
    """None if captions are not embedded."""
    normalised: bool = False
    """True if the embeddings have norm 1 already, so that their original norms are unknown."""


class Engine(Protocol):
    """Interface of an engine, which embeds one shard after the other with one model."""

    def windows(self, task: EmbedTask, following: EmbedTask | None) -> Iterator[Window | Failure]:
        """Yield every sample of a task: rows in order, grouped in windows, and failures.

        Args:
            following: the next task, whose samples may be read ahead; None if there is none.
        """


@dataclass(frozen=True)
class _Row:
    """A decoded sample that becomes a row."""

    key: str
    place: Place
    caption: str
    pixels: torch.Tensor | None


class NativeEngine:
    """priorkit's own engine. It decodes images in threads while the model runs, and sorts captions by length.

    Args:
        source: folder of the samples.
    """

    def __init__(self, source: Store, settings: EmbedSettings, encoder: ClipEncoder) -> None:
        self._source, self._settings, self._encoder = source, settings, encoder
        self._ahead: DecodeAhead[EmbedTask, Sample, _Row | Failure] = DecodeAhead(
            self._read, self._decode, threads=settings.decode_threads, depth=2 * settings.batch_size
        )

    def windows(self, task: EmbedTask, following: EmbedTask | None) -> Iterator[Window | Failure]:
        """See `Engine`."""
        size = self._settings.batch_size
        rows: list[_Row] = []
        pixels: list[torch.Tensor] = []
        images: list[torch.Tensor] = []
        for sample in self._ahead.samples(task, following):
            if isinstance(sample, Failure):
                yield sample
                continue
            rows.append(_Row(sample.key, sample.place, sample.caption, None))
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
        """Stop reading and decoding."""
        self._ahead.close()

    def _window(self, rows: list[_Row], images: list[torch.Tensor]) -> Window:
        captions = [row.caption for row in rows]
        image_embed = torch.cat(images).cpu() if images else None
        text = self._encoder.encode_texts(captions, self._settings.token_states) if self._settings.text else None
        return Window([row.key for row in rows], [row.place for row in rows], captions, image_embed, text)

    def _read(self, task: EmbedTask) -> Iterator[Sample]:
        """Yield the samples of a task, each with its place, since keys may repeat."""
        for position, sample in enumerate(itertools.islice(task.shard.read(self._source), task.limit)):
            place = sample.place._replace(position=position)
            yield dataclasses.replace(sample, key=encodable(sample.key), place=place)

    def _decode(self, sample: Sample) -> _Row | Failure:
        """Check and decode one sample; runs in the decoding threads."""
        if sample.error is not None:
            return _failure(sample, sample.error)
        caption, pixels = "", None
        if self._settings.image and sample.image is None:
            return _failure(sample, "missing_image", sample.instead)
        if self._settings.text and sample.caption is None:
            return _failure(sample, "missing_caption", sample.instead)
        try:
            caption = "" if sample.caption is None else sample.caption.decode()
        except UnicodeDecodeError as error:
            if self._settings.text:
                return _failure(sample, f"caption_not_utf8: {error}")
        try:
            if self._settings.image:
                assert sample.image is not None
                pixels = self._encoder.decode(sample.image)
        except PixelError as error:
            return _failure(sample, str(error))
        return _Row(sample.key, sample.place, caption, pixels)


def _failure(sample: Sample, reason: str, detail: str = "") -> Failure:
    return Failure(sample.key, encodable(f"{reason}: {detail}" if detail else reason), sample.place)

"""What turns the samples of a shard into embeddings: priorkit's own engine, or the real clip-retrieval.

An engine yields windows of rows. What is written, and how a shard is committed, is the same for all: `embed_worker`.
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
"""Captions of so many batches are sorted by length together."""


@dataclass(frozen=True)
class EmbedTask:
    """One shard to embed."""

    shard: InputShard
    input: str
    """Fingerprint of what is embedded: the shard, or its first samples."""
    limit: int | None
    """Embed only the first samples of the shard, this many."""

    @property
    def name(self) -> str:
        return embedding_shard_name(int(self.shard.name))


@dataclass(frozen=True)
class Failure:
    """A sample that gives no row."""

    key: str
    reason: str
    """An outcome to count, and after a colon what happened."""
    place: Place


@dataclass(frozen=True)
class Window:
    """Neighbouring rows of a shard."""

    keys: list[str]
    places: list[Place]
    captions: list[str]
    image_embed: torch.Tensor | None
    """`[n, D]`; None if images are not embedded."""
    text: TextEmbeds | None
    """None if captions are not embedded."""
    normalised: bool = False
    """Whether embeddings have norm 1 already, so that their own is not known."""


class Engine(Protocol):
    """Embeds one shard after the other, with one model."""

    def windows(self, task: EmbedTask, following: EmbedTask | None) -> Iterator[Window | Failure]:
        """All samples of a task: rows in order, in windows, and those that give none."""


@dataclass(frozen=True)
class _Row:
    """A sample that is going to be a row."""

    key: str
    place: Place
    caption: str
    pixels: torch.Tensor | None


class NativeEngine:
    """Decodes in threads while the model runs, and runs captions sorted by length.

    Args:
        source: where the samples are.
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
        waiting: list[torch.Tensor] = []
        images: list[torch.Tensor] = []
        for sample in self._ahead.samples(task, following):
            if isinstance(sample, Failure):
                yield sample
                continue
            rows.append(_Row(sample.key, sample.place, sample.caption, None))
            if sample.pixels is not None:
                waiting.append(sample.pixels)
            if len(waiting) == size:
                images.append(self._encoder.encode_images(waiting))
                waiting = []
            if len(rows) == _WINDOW_BATCHES * size:
                yield self._window(rows, images)
                rows, images = [], []
        if waiting:
            images.append(self._encoder.encode_images(waiting))
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
        """The samples of a task, each with its place, since keys may repeat."""
        for position, sample in enumerate(itertools.islice(task.shard.read(self._source), task.limit)):
            place = sample.place._replace(position=position)
            yield dataclasses.replace(sample, key=encodable(sample.key), place=place)

    def _decode(self, sample: Sample) -> _Row | Failure:
        """Called in decoding threads."""
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

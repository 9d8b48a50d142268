"""Embedding engine based on the clip-retrieval package: the package's reader loads batches, and its mapper runs CLIP.

priorkit itself writes the embedding shards and the manifest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..clip.encoder import is_plain
from ..clip.text_tower import TextEmbeds
from ..contract.image_shards import ImageShard
from ..contract.samples import IMAGE_EXTENSIONS, Place, Sample
from ..contract.storage import Store
from ..errors import PriorkitError, SettingsError
from .engines import EmbedTask, Failure, Window
from .settings import EmbedSettings

_INSTALL = "pip install 'priorkit[clip-retrieval]', Python below 3.13, in an environment of its own"
"""Installation instructions for the error message that is shown if clip-retrieval cannot be imported."""


@dataclass(frozen=True)
class _Pending:
    """Sample whose embeddings clip-retrieval has not returned yet."""

    place: Place
    caption: str
    reason: str
    """Reason to report for the failure if clip-retrieval never returns embeddings for the sample."""


class ClipRetrievalEngine:
    """Engine that reads and embeds image shards with the clip-retrieval package; implements `Engine`.

    Args:
        source: folder that contains the image shards.
        settings: embed settings, with `device` and `threads` resolved to actual values.

    Raises:
        PriorkitError: clip-retrieval is not installed or cannot be imported.
        SettingsError: clip-retrieval does not support a setting.
    """

    def __init__(self, source: Store, settings: EmbedSettings) -> None:
        check_settings(settings)
        try:
            from all_clip import load_clip
            from clip_retrieval.clip_inference.mapper import ClipMapper
            from clip_retrieval.clip_inference.reader import WebdatasetReader
        except ImportError as error:
            raise PriorkitError(f"embed.engine=clip-retrieval: {error}; install it: {_INSTALL}") from error
        self._source, self._settings, self._reader = source, settings, WebdatasetReader
        name = f"open_clip:{settings.clip.model}/{settings.clip.pretrained}"
        # load_clip prints warm-up messages, and stdout is reserved for results
        with contextlib.redirect_stdout(sys.stderr):
            _, self._preprocess, self._tokenizer = load_clip(clip_model=name, use_jit=False, warmup_batch_size=1)
            self._mapper = ClipMapper(
                enable_image=settings.image, enable_text=settings.text, enable_metadata=False, use_mclip=False,
                clip_model=name, use_jit=False, mclip_model=None,
            )  # fmt: skip

    def windows(self, task: EmbedTask, following: EmbedTask | None) -> Iterator[Window | Failure]:
        """Embed the samples of a task, and yield groups of embedded rows (windows) and failed samples; see `Engine`.

        Rows are grouped by the file extension of their images. Within a group, the rows are in sample order. A sample
        fails if an earlier sample has the same key, or if clip-retrieval returns no embeddings for it. `following` is
        not used.

        Raises:
            SettingsError: the task's shard is not an image shard.
        """
        if not isinstance(task.shard, ImageShard):
            raise SettingsError("embed.engine=clip-retrieval reads image shards (*.tar) one for one")
        pending: dict[str, _Pending] = {}
        for position, read in enumerate(itertools.islice(task.shard.read(self._source), task.limit)):
            sample = dataclasses.replace(read, place=Place(position=position))
            if sample.key in pending:
                reason = "duplicate_key: clip-retrieval tells rows apart by key, and an earlier sample has this one"
                yield Failure(sample.key, reason, sample.place)
            else:
                pending[sample.key] = self._pending(sample)
        with self._local(task.shard) as path:
            for batch in self._batches(path):
                rows = _first_rows(batch, pending)
                if rows:
                    yield self._window(batch, rows, pending)
        for key, remaining in pending.items():
            yield Failure(key, remaining.reason, remaining.place)

    def _pending(self, sample: Sample) -> _Pending:
        caption, reason = "", "clip_retrieval: gave no row"  # clip-retrieval drops samples without giving a reason
        try:
            caption = (sample.caption or b"").decode()
        except UnicodeDecodeError as error:
            if self._settings.text:
                reason = f"caption_not_utf8: {error}"
        if sample.image is None:
            reason = f"missing_image: {sample.instead}"
        elif sample.caption is None and self._settings.text:
            reason = f"missing_caption: {sample.instead}"
        return _Pending(sample.place, caption, sample.error or reason)

    def _batches(self, path: str) -> Iterator[dict[str, Any]]:
        """Yield the batches of samples that clip-retrieval's reader loads from a tar file.

        The reader accepts only one image extension per call, so it is called once for each extension in the file.
        """
        for extension in _image_extensions(path):
            yield from self._reader(
                lambda urls: urls, self._preprocess, self._tokenizer, [path], self._settings.batch_size,
                1,  # number of workers; the reader fails if there are fewer shards than workers
                # always read images: without them, the reader returns no keys
                enable_text=self._settings.text, enable_image=True, wds_image_key=extension,
            )  # fmt: skip

    def _window(self, batch: dict[str, Any], rows: dict[str, int], pending: dict[str, _Pending]) -> Window:
        """Embed a batch, and return the embedded samples named in `rows` as a window (a group of embedded rows).

        Args:
            batch: batch that clip-retrieval's reader returned.
            rows: position in the batch of each sample to return, keyed by sample key.
            pending: samples that have not been embedded yet, keyed by sample key. The samples in `rows` are removed
                from this mapping.
        """
        mapped = self._mapper(batch)
        indices = list(rows.values())
        samples = [pending.pop(key) for key in rows]
        image, text = (
            None if mapped[kind] is None else torch.from_numpy(mapped[kind][indices])
            for kind in ("image_embs", "text_embs")
        )
        texts = None if text is None else TextEmbeds(text, None, [])
        places, captions = [sample.place for sample in samples], [sample.caption for sample in samples]
        return Window(list(rows), places, captions, image, texts, normalised=True)

    @contextlib.contextmanager
    def _local(self, shard: ImageShard) -> Iterator[str]:
        """Context manager that yields the local path of a shard's tar file.

        A remote file is first copied to a temporary file, which is deleted on exit.
        """
        if self._source.is_local:
            yield self._source.path(shard.tar_name)
            return
        with tempfile.NamedTemporaryFile(suffix=".tar") as copy, self._source.open(shard.tar_name) as file:
            shutil.copyfileobj(file, copy)
            copy.flush()
            yield copy.name


def check_settings(settings: EmbedSettings) -> None:
    """Check that clip-retrieval supports the embed settings on this machine.

    clip-retrieval always uses a GPU if one is available, and chooses the dtype itself. The settings `device` and
    `dtype` must match its choice.

    Raises:
        SettingsError: clip-retrieval does not support a setting. The message names the setting.
    """
    device, dtype = "cpu", "float32"
    if torch.cuda.is_available():  # clip-retrieval always uses a GPU if one is available, and chooses the dtype
        device, dtype = "cuda", "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    supported = {
        "embed.device": (settings.device, device),
        "embed.dtype": (settings.dtype, dtype),
        "embed.token_states": (settings.token_states, False),
        "embed.compile": (settings.compile, False),
        "embed.rows_per_shard": (settings.rows_per_shard, None),
        "embed.caption_column": (settings.caption_column, None),
        "embed.caption_key": (settings.caption_key, None),
        "embed.caption_extension": (settings.caption_extension, None),
        "embed.image_extensions": (settings.image_extensions, None),
    }
    for name, (value, only) in supported.items():
        if value != only:
            raise SettingsError(f"{name}={value}: embed.engine=clip-retrieval can only do {name}={only} here")
    if settings.clip.pretrained is None:
        raise SettingsError(
            f"embed.clip.model={settings.clip.model}: embed.engine=clip-retrieval takes an open_clip name and tag"
        )
    if (settings.clip.overrides() or Path(settings.clip.pretrained).is_file()) and not is_plain(settings.clip):
        raise SettingsError(
            f"embed.clip.pretrained={settings.clip.pretrained}: embed.engine=clip-retrieval has open_clip's own "
            "preprocessing and activation only, and these weights or settings need others; take embed.engine=native"
        )


def _first_rows(batch: dict[str, Any], pending: Mapping[str, Any]) -> dict[str, int]:
    """Find pending samples in a batch, and return their positions, keyed by sample key.

    Pending samples that are not in the batch are left out. If several samples in the batch have the same key, the
    position of the first one is returned.

    Args:
        batch: batch that clip-retrieval's reader returned.
        pending: samples that have not been embedded yet, keyed by sample key. Only the keys are used.
    """
    rows: dict[str, int] = {}
    for row, name in enumerate(batch["image_filename"]):
        key = name.removeprefix("./")
        if key in pending:
            rows.setdefault(key, row)
    return rows


def _image_extensions(path: str) -> list[str]:
    """Return the distinct file extensions of the images in a tar file, in order of appearance.

    Reading stops at the first damaged entry.
    """
    extensions: dict[str, None] = {}
    with contextlib.suppress(tarfile.TarError, EOFError), tarfile.open(path, "r:*") as tar:
        for member in tar:
            extension = member.name.rpartition("/")[2].partition(".")[2].lower()
            if member.isfile() and extension in IMAGE_EXTENSIONS:
                extensions[extension] = None
    return list(extensions)

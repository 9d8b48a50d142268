"""The real clip-retrieval as an engine: its reader and mapper, under our manifest, commit and distribution."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import torch

from .config import EmbedSettings
from .engines import EmbedTask, Failure, Window
from .errors import PriorkitError, SettingsError
from .storage import Store
from .text_tower import TextEmbeds
from .webdataset import ImageShard

_IMAGE_KEY = "jpg;png;jpeg;webp"
_INSTALL = "pip install 'priorkit[clip-retrieval]' (Python below 3.13)"


class ClipRetrievalEngine:
    """Embeds image shards with clip-retrieval's own code.

    Args:
        source: where the shards are.

    Raises:
        PriorkitError: the package is not installed, or cannot be imported.
        SettingsError: a setting asks for what it cannot do.
    """

    def __init__(self, source: Store, settings: EmbedSettings) -> None:
        check_settings(settings)
        try:
            from all_clip import load_clip
            from clip_retrieval.clip_inference.mapper import ClipMapper
            from clip_retrieval.clip_inference.reader import WebdatasetReader
        except ImportError as error:
            raise PriorkitError(f"embed.engine=clip-retrieval: {error}; install it with {_INSTALL}") from error
        self._source, self._settings, self._reader = source, settings, WebdatasetReader
        name = f"open_clip:{settings.clip.model}/{settings.clip.pretrained}"
        _, self._preprocess, self._tokenizer = load_clip(clip_model=name, use_jit=False, warmup_batch_size=1)
        self._mapper = ClipMapper(
            enable_image=settings.image, enable_text=settings.text, enable_metadata=False, use_mclip=False,
            clip_model=name, use_jit=False, mclip_model=None,
        )  # fmt: skip

    def windows(self, task: EmbedTask, following: EmbedTask | None) -> Iterator[Window | Failure]:
        """See `Engine`. What clip-retrieval leaves out, it does not say why."""
        if not isinstance(task.shard, ImageShard):
            raise SettingsError("embed.engine=clip-retrieval reads image shards (*.tar) one for one")
        samples = list(task.shard.read(self._source))[: task.limit]
        wanted = {sample.key for sample in samples}
        given: set[str] = set()
        with self._local(task.shard) as path:
            for batch in self._batches(path):
                window = _window(self._mapper(batch), batch, wanted - given)
                given |= set(window.keys)
                if window.keys:
                    yield window
        for sample in samples:
            if sample.key not in given:
                yield Failure(sample.key, sample.error or "clip_retrieval: gave no row")

    def _batches(self, path: str) -> Iterator[dict[str, Any]]:
        reader = self._reader(
            lambda urls: urls, self._preprocess, self._tokenizer, [path], self._settings.batch_size,
            1,  # with fewer shards than workers it dies
            # without images it does not say which row is whose
            enable_text=self._settings.text, enable_image=True, wds_image_key=_IMAGE_KEY,
        )  # fmt: skip
        yield from reader

    @contextlib.contextmanager
    def _local(self, shard: ImageShard) -> Iterator[str]:
        """Path of the shard on this machine."""
        if self._source.is_local:
            yield self._source.path(shard.tar_name)
            return
        with tempfile.NamedTemporaryFile(suffix=".tar") as copy, self._source.open(shard.tar_name) as file:
            shutil.copyfileobj(file, copy)
            copy.flush()
            yield copy.name


def check_settings(settings: EmbedSettings) -> None:
    """SettingsError if clip-retrieval cannot do what is asked for; names the setting."""
    asked = {
        "embed.dtype": (settings.dtype, "float32"),
        "embed.token_states": (settings.token_states, False),
        "embed.compile": (settings.compile, False),
    }
    for name, (value, only) in asked.items():
        if value != only:
            raise SettingsError(f"{name}={value}: embed.engine=clip-retrieval can only do {name}={only}")
    if settings.clip.pretrained is None:
        raise SettingsError(
            f"embed.clip.model={settings.clip.model}: embed.engine=clip-retrieval takes an open_clip name and tag"
        )


def _window(made: dict[str, Any], batch: dict[str, Any], wanted: set[str]) -> Window:
    """What the mapper made of a batch, of the samples that are wanted."""
    rows = [row for row, key in enumerate(batch["image_filename"]) if key in wanted]
    keys = [batch["image_filename"][row] for row in rows]
    captions = [batch["text"][row] for row in rows] if "text" in batch else [""] * len(rows)
    image, text = (
        None if made[kind] is None else torch.from_numpy(made[kind][rows]) for kind in ("image_embs", "text_embs")
    )
    return Window(keys, captions, image, None if text is None else TextEmbeds(text, None, []), normalised=True)

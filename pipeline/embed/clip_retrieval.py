"""The real clip-retrieval as an engine: its reader and mapper, under our manifest, commit and distribution."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator
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


@dataclass(frozen=True)
class _Known:
    """What we know of a sample that clip-retrieval has not given yet."""

    place: Place
    caption: str
    reason: str
    """Why there will be none, if it gives none."""


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
            raise PriorkitError(f"embed.engine=clip-retrieval: {error}; install it: {_INSTALL}") from error
        self._source, self._settings, self._reader = source, settings, WebdatasetReader
        name = f"open_clip:{settings.clip.model}/{settings.clip.pretrained}"
        with contextlib.redirect_stdout(sys.stderr):  # it tells of its warm-up where our results go
            _, self._preprocess, self._tokenizer = load_clip(clip_model=name, use_jit=False, warmup_batch_size=1)
            self._mapper = ClipMapper(
                enable_image=settings.image, enable_text=settings.text, enable_metadata=False, use_mclip=False,
                clip_model=name, use_jit=False, mclip_model=None,
            )  # fmt: skip

    def windows(self, task: EmbedTask, following: EmbedTask | None) -> Iterator[Window | Failure]:
        """See `Engine`. Where images have several extensions, rows are in order within each."""
        if not isinstance(task.shard, ImageShard):
            raise SettingsError("embed.engine=clip-retrieval reads image shards (*.tar) one for one")
        waiting: dict[str, _Known] = {}
        for position, read in enumerate(itertools.islice(task.shard.read(self._source), task.limit)):
            sample = dataclasses.replace(read, place=Place(position=position))
            if sample.key in waiting:
                reason = "duplicate_key: clip-retrieval tells rows apart by key, and an earlier sample has this one"
                yield Failure(sample.key, reason, sample.place)
            else:
                waiting[sample.key] = self._known(sample)
        with self._local(task.shard) as path:
            for batch in self._batches(path):
                rows = _first_rows(batch, waiting)
                if rows:
                    yield self._window(batch, rows, waiting)
        for key, known in waiting.items():
            yield Failure(key, known.reason, known.place)

    def _known(self, sample: Sample) -> _Known:
        caption, reason = "", "clip_retrieval: gave no row"  # why it leaves a sample out, it does not say
        try:
            caption = (sample.caption or b"").decode()
        except UnicodeDecodeError as error:
            if self._settings.text:
                reason = f"caption_not_utf8: {error}"
        if sample.image is None:
            reason = f"missing_image: {sample.instead}"
        elif sample.caption is None and self._settings.text:
            reason = f"missing_caption: {sample.instead}"
        return _Known(sample.place, caption, sample.error or reason)

    def _batches(self, path: str) -> Iterator[dict[str, Any]]:
        """What its reader makes of a shard. It knows one extension at a time, and lists of them it takes for a name."""
        for extension in _image_extensions(path):
            yield from self._reader(
                lambda urls: urls, self._preprocess, self._tokenizer, [path], self._settings.batch_size,
                1,  # with fewer shards than workers it dies
                # without images it does not say which row is whose
                enable_text=self._settings.text, enable_image=True, wds_image_key=extension,
            )  # fmt: skip

    def _window(self, batch: dict[str, Any], rows: dict[str, int], waiting: dict[str, _Known]) -> Window:
        """What the mapper makes of a batch, of the rows given by key, which then wait no more."""
        made = self._mapper(batch)
        at = list(rows.values())
        known = [waiting.pop(key) for key in rows]
        image, text = (
            None if made[kind] is None else torch.from_numpy(made[kind][at]) for kind in ("image_embs", "text_embs")
        )
        texts = None if text is None else TextEmbeds(text, None, [])
        places, captions = [row.place for row in known], [row.caption for row in known]
        return Window(list(rows), places, captions, image, texts, normalised=True)

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
    device, dtype = "cpu", "float32"
    if torch.cuda.is_available():  # it takes the GPU if there is one, and casts as it sees fit
        device, dtype = "cuda", "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    asked = {
        "embed.device": (settings.device, device),
        "embed.dtype": (settings.dtype, dtype),
        "embed.token_states": (settings.token_states, False),
        "embed.compile": (settings.compile, False),
        "embed.rows_per_shard": (settings.rows_per_shard, None),
    }
    for name, (value, only) in asked.items():
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


def _first_rows(batch: dict[str, Any], waiting: dict[str, _Known]) -> dict[str, int]:
    """The first row in a batch of each key that waits for one."""
    rows: dict[str, int] = {}
    for row, name in enumerate(batch["image_filename"]):
        key = name.removeprefix("./")
        if key in waiting:
            rows.setdefault(key, row)
    return rows


def _image_extensions(path: str) -> list[str]:
    """Extensions of the images in a tar, in order of appearance; of a damaged one those before the damage."""
    found: dict[str, None] = {}
    with contextlib.suppress(tarfile.TarError, EOFError), tarfile.open(path, "r:") as tar:
        for member in tar:
            extension = member.name.rpartition("/")[2].partition(".")[2].lower()
            if member.isfile() and extension in IMAGE_EXTENSIONS:
                found[extension] = None
    return list(found)

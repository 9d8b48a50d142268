"""Embedding engine based on the clip-retrieval package: the package's reader, mapper and writer compute the embeddings.

The package runs on temporary tar files, to which the samples of any input are copied. priorkit then reads the writer's
files, and itself writes the embedding shards and the manifest.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import tarfile
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..clip.encoder import ClipEncoder, load_plain_clip
from ..clip.pixels import PixelError
from ..clip.text_tower import TextEmbeds
from ..contract.arrow.parquet import open_parquet
from ..contract.samples import Place, Sample, encodable
from ..contract.storage import Store
from ..errors import SettingsError
from .clip_retrieval_package import import_package
from .engines import EmbedTask, Failure, Window, captions_of, places_of, task_samples
from .settings import EmbedSettings

_PART_SAMPLES = 2048
"""Approximate number of samples that are copied to a temporary tar file and embedded at a time.

It limits the temporary disk space, and the memory that the writer needs for the embeddings.
"""
_TAR = "samples.tar"
"""Name of the temporary tar file."""
_NUMBER = "number"
"""Name of the JSON value, and of the column in the writer's table, that contains the number of a row."""


@dataclass(frozen=True)
class _Row:
    """Image and caption that were copied to the temporary tar file."""

    key: str
    place: Place
    caption: str


class ClipRetrievalEngine:
    """Engine that embeds the samples of any input with the clip-retrieval package; implements `Engine`.

    Args:
        source: folder that contains the samples.
        settings: embed settings, with `device` and `threads` resolved to actual values.
        encoder: CLIP encoder with the same model. It tokenizes captions and checks images, but does not embed them.

    Raises:
        PriorkitError: clip-retrieval is not installed or cannot be imported.
        SettingsError: clip-retrieval does not support a setting.
    """

    def __init__(self, source: Store, settings: EmbedSettings, encoder: ClipEncoder) -> None:
        check_settings(settings)
        self._source, self._settings, self._encoder = source, settings, encoder
        self._package = import_package()
        loaded = load_plain_clip(settings.clip, settings.device)
        self._preprocess = loaded.preprocess
        with contextlib.redirect_stdout(io.StringIO()):  # all_clip prints warm-up messages
            self._mapper = self._package.build_mapper(
                loaded.model, self._preprocess, encoder.tokenize, image=settings.image, text=settings.text
            )

    def windows(self, task: EmbedTask, following: EmbedTask | None) -> Iterator[Window | Failure]:
        """Embed the samples of a task, and yield groups of embedded rows (windows) and failed samples; see `Engine`.

        `following` is not used.
        """
        batches = max(1, _PART_SAMPLES // self._settings.batch_size)
        samples = task_samples(task, self._source)
        for first in samples:
            part = itertools.islice(samples, batches * self._settings.batch_size - 1)
            with tempfile.TemporaryDirectory(prefix="priorkit-") as folder:
                yield from self._embed(itertools.chain([first], part), Path(folder))

    def _embed(self, samples: Iterable[Sample], folder: Path) -> Iterator[Window | Failure]:
        """Embed the samples of a part. Yield the failed samples, and then one window with all embedded samples.

        Args:
            samples: samples of the part.
            folder: empty temporary folder.
        """
        rows, failures = self._copy(samples, folder / _TAR)
        numbers = self._run(folder) if rows else []
        dropped = {number: row for number, row in enumerate(rows) if number not in set(numbers)}
        failures += self._explain(dropped, folder / _TAR)
        yield from sorted(failures, key=lambda failure: failure.place.position)
        if numbers:
            yield self._window([rows[number] for number in numbers], folder)

    def _copy(self, samples: Iterable[Sample], path: Path) -> tuple[list[_Row], list[Failure]]:
        """Copy samples to a tar file in which files are named by the number of their row.

        A sample with several captions is copied once for each caption. Each row also gets a JSON file that contains its
        number, because clip-retrieval returns no keys without images.

        Returns:
            The copied rows, and the samples that cannot be embedded.
        """
        rows: list[_Row] = []
        failures: list[Failure] = []
        with tarfile.open(path, "w") as tar:
            for sample in samples:
                captions = captions_of(sample, self._settings)
                if isinstance(captions, Failure):
                    failures.append(captions)
                    continue
                if self._settings.image:
                    assert sample.image is not None
                    try:
                        self._encoder.check_image(sample.image)
                    except PixelError as error:
                        failures.append(Failure(sample.key, encodable(str(error)), sample.place))
                        continue
                for caption, place in zip(captions, places_of(sample, captions), strict=True):
                    self._add(tar, len(rows), sample.image, caption)
                    rows.append(_Row(sample.key, place, caption))
        return rows, failures

    def _add(self, tar: tarfile.TarFile, number: int, image: bytes | None, caption: str) -> None:
        """Write the files of a row to the temporary tar file."""
        parts = {"json": json.dumps({_NUMBER: number}).encode()}
        if self._settings.image and image is not None:
            parts["jpg"] = image  # of any format: the reader recognises it by its content
        if self._settings.text:
            parts["txt"] = caption.encode()
        for extension, data in parts.items():
            info = tarfile.TarInfo(_member(number, extension))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

    def _run(self, folder: Path) -> list[int]:
        """Run clip-retrieval's reader, mapper and writer on the temporary tar file.

        Args:
            folder: folder that contains the tar file. The writer's output folders are created in it.

        Returns:
            Numbers of the embedded rows, in the order of their embeddings.
        """
        kinds = {"enable_image": self._settings.image, "enable_text": self._settings.text, "enable_metadata": True}
        writer = self._package.writer(partition_id=0, output_folder=str(folder), output_partition_count=1, **kinds)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the reader warns about samples that it drops; they become failures
            reader = self._package.reader(
                _all_files, self._preprocess, self._encoder.tokenize, [str(folder / _TAR)], self._settings.batch_size,
                0,  # number of processes that load images; a process forked from one with threads may hang
                **kinds,
            )  # fmt: skip
            for batch in reader:
                writer(self._mapper(batch))
        writer.flush()
        table = folder / "metadata" / "metadata_0.parquet"
        if not table.exists():  # the reader has dropped all samples
            return []
        with table.open("rb") as file:
            numbers: list[int] = open_parquet(file).read([_NUMBER], use_threads=False)[_NUMBER].to_pylist()
        return numbers

    def _window(self, rows: list[_Row], folder: Path) -> Window:
        """Read the embeddings that clip-retrieval wrote, and return them as a window (a group of embedded rows).

        Args:
            rows: embedded rows, in the order of their embeddings.
            folder: temporary folder that contains the writer's output folders.
        """
        image, text = (
            torch.from_numpy(np.load(folder / name / f"{name}_0.npy")) if is_wanted else None
            for name, is_wanted in (("img_emb", self._settings.image), ("text_emb", self._settings.text))
        )
        texts = None if text is None else TextEmbeds(text, None, [])
        keys, places, captions = zip(*((row.key, row.place, row.caption) for row in rows), strict=True)
        return Window([*keys], [*places], [*captions], image, texts, normalised=True)

    def _explain(self, dropped: Mapping[int, _Row], path: Path) -> list[Failure]:
        """Return failures for the rows that clip-retrieval dropped, which it does without giving a reason.

        The reason is determined by decoding the image again.

        Args:
            dropped: rows that were copied to the tar file, but not embedded, keyed by their number.
            path: path of the temporary tar file.
        """
        failures: list[Failure] = []
        with contextlib.ExitStack() as stack:
            tar = stack.enter_context(tarfile.open(path)) if dropped else None
            for number, row in dropped.items():
                reason = "clip_retrieval: gave no row"
                if tar is not None and self._settings.image:
                    file = tar.extractfile(_member(number, "jpg"))
                    assert file is not None
                    try:
                        self._encoder.decode(file.read())
                    except PixelError as error:
                        reason = encodable(str(error))
                failures.append(Failure(row.key, reason, row.place))
        return failures


def _member(number: int, extension: str) -> str:
    """Return the name of a row's file in the temporary tar file."""
    return f"{number:012d}.{extension}"


def _all_files(paths: list[str]) -> list[str]:
    """Return all paths. clip-retrieval's reader expects a function that selects the files to read."""
    return paths


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
    supported: dict[str, tuple[Any, Any]] = {
        "embed.device": (settings.device, device),
        "embed.dtype": (settings.dtype, dtype),
        "embed.token_states": (settings.token_states, False),
        "embed.compile": (settings.compile, False),
    }
    for name, (value, only) in supported.items():
        if value != only:
            raise SettingsError(f"{name}={value}: embed.engine=clip-retrieval can only do {name}={only} here")
    if "decode_threads" in settings.model_fields_set:
        raise SettingsError(
            f"embed.decode_threads={settings.decode_threads}: embed.engine=clip-retrieval decodes in one thread; "
            "leave embed.decode_threads out"
        )

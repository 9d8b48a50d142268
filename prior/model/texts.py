"""Sources of texts to sample from, read in batches: captions, a caption file, or stored text embeddings."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np
import torch
from fsspec.implementations.local import LocalFileSystem

from ...pipeline.contract.storage import open_location
from ...pipeline.contract.vectors.rules import embed_dtypes_named, is_embed_dtype
from ...pipeline.errors import InputError
from ...pipeline.read.dataset import EmbeddingDataset
from .prior import Prior
from .text_encoder import clip_named, match_clips


class TextBatch(NamedTuple):
    """Batch of encoded texts, as input for `Prior.sample`, with labels for display."""

    labels: list[str]
    """Captions or row numbers for display.

    If the texts come from embedding shards, the list is empty in all batches except the first.
    """
    text_embed: torch.Tensor
    """Text embeddings `[B, D]`: one vector of size D for each of B texts."""
    token_states: torch.Tensor | None
    """Token states (per-token text-encoder outputs) `[B, T, W]`: T states of width W per text, padded with zeros.

    None if the prior uses no token states.
    """


class Texts(Protocol):
    """Text inputs for sampling, read in batches: captions, a caption file, or stored text embeddings."""

    count: int
    """Number of texts."""

    @property
    def notes(self) -> list[str]:
        """Remarks for the user about the source of the texts, one sentence each.

        The list is complete only after the last batch has been read.
        """

    def batches(self, prior: Prior, size: int) -> Iterator[TextBatch]:
        """Yield all texts in order, encoded for a prior, in batches of at most `size` texts.

        Args:
            prior: prior to encode the texts for. Captions are encoded with its CLIP model.
            size: maximum number of texts per batch.
        """


class Captions:
    """Captions given as a sequence of strings. They are encoded with the prior's CLIP model."""

    def __init__(self, captions: Sequence[str]) -> None:
        self.count, self.notes = len(captions), list[str]()
        self._captions = captions

    def batches(self, prior: Prior, size: int) -> Iterator[TextBatch]:
        """Encode the captions with the prior's CLIP model, and yield them in batches; see `Texts.batches`."""
        return _encode(iter(self._captions), prior, size)


class CaptionFile:
    """Text file with one caption per line, encoded with the prior's CLIP model. An empty line is an empty caption.

    The file is read twice: first to count its lines, and then to encode them.

    Raises:
        InputError: the file does not exist or is not UTF-8 text, or its number of lines changes while it is read.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.notes: list[str] = []
        self._fs, self._location = open_location(path)
        if not self._fs.isfile(self._location):
            raise InputError(f"--prompts {path}: no such file; it is read twice, so a pipe will not do")
        self.count = sum(1 for _ in self._lines())

    def batches(self, prior: Prior, size: int) -> Iterator[TextBatch]:
        """Read and encode the captions, and yield them in batches; see `Texts.batches`.

        Raises:
            InputError: the file is not UTF-8 text, or its number of lines has changed since it was opened.
        """
        return _encode(self._counted_lines(), prior, size)

    def _counted_lines(self) -> Iterator[str]:
        number = 0
        for number, line in enumerate(self._lines(), start=1):
            if number <= self.count:
                yield line
        if number != self.count:
            raise InputError(f"--prompts {self._path}: changed while it was read: {self.count} lines, then {number}")

    def _lines(self) -> Iterator[str]:
        try:
            with (
                self._fs.open(self._location, "rb") as file,
                io.TextIOWrapper(file, "utf-8-sig", newline=None) as lines,
            ):
                for line in lines:
                    yield line.rstrip("\n")
        except UnicodeDecodeError as error:
            raise InputError(f"--prompts {self._path}: not UTF-8 text ({error})") from None


class StoredArray:
    """Text embeddings in a `.npy` file with one row per text, for a prior that uses no token states.

    Raises:
        InputError: the file does not exist, or does not contain a two-dimensional array of a supported float dtype.
    """

    def __init__(self, path: str) -> None:
        fs, location = open_location(path)
        if not fs.isfile(location):
            raise InputError(f"--embeddings {path}: no such file")
        try:
            if isinstance(fs, LocalFileSystem):
                array = np.load(location, mmap_mode="r", allow_pickle=False)
            else:
                with fs.open(location, "rb") as file:
                    array = np.load(io.BytesIO(file.read()), allow_pickle=False)
        except Exception as error:  # numpy raises many kinds of exception for damaged headers
            raise InputError(f"--embeddings {path}: not an array of numbers ({error})") from None
        if not isinstance(array, np.ndarray):
            raise InputError(f"--embeddings {path}: holds several arrays, one is needed")
        if array.ndim != 2 or not is_embed_dtype(array.dtype):
            raise InputError(
                f"--embeddings {path}: holds {array.dtype} of shape {list(array.shape)}, floats [N, D] are needed: "
                f"{embed_dtypes_named()}"
            )
        self.notes: list[str] = []
        self._path, self._array = path, array
        self.count = len(array)

    def batches(self, prior: Prior, size: int) -> Iterator[TextBatch]:
        """Read the text embeddings, and yield them in batches; see `Texts.batches`.

        Raises:
            InputError: the prior needs embeddings of a different size or needs token states, or a value is not finite.
        """
        _require_size(self._path, self._array.shape[1], prior)
        if prior.token_states_used:
            raise InputError(
                f"--embeddings {self._path}: this prior takes token states too, which a .npy has none of; "
                "give a folder of embedding shards, or captions"
            )
        for start in range(0, self.count, size):
            with np.errstate(over="ignore"):  # overflow gives infinity, which the check below rejects
                embeds = torch.from_numpy(np.array(self._array[start : start + size], np.float32))
            finite = embeds.isfinite().all(dim=-1)
            if not finite.all():
                raise InputError(f"--embeddings {self._path}: row {start + int(finite.int().argmin())} is not finite")
            yield TextBatch([f"row {start + row}" for row in range(len(embeds))], embeds, None)


class StoredEmbeddings:
    """Text embeddings and token states in a folder of embedding shards.

    Raises:
        InputError: the folder contains no embeddings, or a file is missing or damaged.
    """

    def __init__(self, url: str) -> None:
        self._dataset = EmbeddingDataset(url)
        self._clip_notes: list[str] = []
        self.count = self._dataset.count

    def batches(self, prior: Prior, size: int) -> Iterator[TextBatch]:
        """Read the text embeddings and token states, and yield them in batches; see `Texts.batches`.

        Raises:
            InputError: the texts were embedded with a CLIP model other than the prior's, or the prior needs embeddings
                of a different size.
        """
        _require_size(self._dataset.store.url, self._dataset.text_dim, prior)
        url, name = self._dataset.store.url, clip_named(prior.config.clip_settings)
        match = match_clips(prior.config, self._dataset)
        if match == "other":
            raise InputError(f"{url} was embedded by another {_model(prior)} than the prior was trained with")
        if match == "unknown":
            self._clip_notes = [
                f"it is not known that the prior's CLIP{f', {name},' if name else ''} made {url}; it is taken to have"
            ]
        prior.take_empty_inputs(self._dataset)
        for start in range(0, self.count, size):
            rows = np.arange(start, min(start + size, self.count))
            batch = self._dataset.take(rows, prior.token_states_used, raw_text=prior.network.takes_raw_text)
            states = None if batch.token_states is None else torch.from_numpy(batch.token_states)
            labels = [] if start else self._labels(rows)
            yield TextBatch(labels, torch.from_numpy(batch.text_embed), states)

    @property
    def notes(self) -> list[str]:
        """Remarks for the user about the CLIP model and the embedding folder; see `Texts.notes`."""
        return [*self._clip_notes, *self._dataset.notes]

    def _labels(self, rows: np.ndarray) -> list[str]:
        """Return the caption of each row, or a label such as `row 5` for rows without a caption."""
        try:
            captions = self._dataset.metadata(rows, ["caption"]).column("caption").to_pylist()
        except InputError:
            captions = [None] * len(rows)
        return [f"row {row}" if caption is None else caption for row, caption in zip(rows, captions, strict=True)]


def _model(prior: Prior) -> str:
    """Return what made the embeddings of a prior, for messages: a CLIP, or a pair of other models."""
    return "CLIP" if prior.config.spaces is None else "model, or has another source and target,"


def stored_texts(url: str) -> Texts:
    """Open stored text embeddings: a `.npy` file if `url` ends in `.npy`, otherwise a folder of embedding shards."""
    return StoredArray(url) if url.endswith(".npy") else StoredEmbeddings(url)


def _require_size(source: str, size: int, prior: Prior) -> None:
    if size != prior.network.text_dim:
        raise InputError(
            f"--embeddings {source}: holds embeddings of {size}, this prior takes {prior.network.text_dim}"
        )


def _encode(captions: Iterator[str], prior: Prior, size: int) -> Iterator[TextBatch]:
    while batch := list(islice(captions, size)):
        yield TextBatch(batch, *prior.encode_text(batch))

"""Drawing of the pictures of a file of embeddings, batch by batch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...pipeline.compute.device import choose_device
from ...pipeline.compute.stage import ProgressCallback, no_progress
from ...pipeline.errors import InputError, Interrupted, SettingsError
from ...pipeline.explain import one_line
from .decoders import DECODER_CLASSES, Batch, Decoder
from .embeds import EmbedsFile
from .output import AddPicture, check_grid, is_folder, picture_folder, picture_grid
from .pipelines import load_decoder
from .settings import DecodeSettings

_BATCH = 4
"""Number of pictures drawn at the same time by default. More would need more memory and be little faster."""


@dataclass
class Decoded:
    """Summary of the pictures that `decode` wrote."""

    output: str
    """Path of the grid, or of the folder."""
    target: str
    """Name of the decoder."""
    pictures: int
    """Number of pictures."""
    size: int
    """Width and height of a picture in pixels."""
    notes: list[str] = field(default_factory=list)
    """Remarks for the user, one sentence each."""

    def to_json(self) -> dict[str, Any]:
        """Return the summary as a JSON-serialisable dictionary, as printed by `--json`."""
        return asdict(self)


def decode(
    embeds: str,
    pipeline: str,
    output: str,
    settings: DecodeSettings,
    *,
    target: str | None = None,
    progress: ProgressCallback = no_progress,
) -> Decoded:
    """Draw a picture for each embedding of a file, and write a grid of them or a folder of PNG files.

    Args:
        embeds: `.safetensors` file that `priorkit sample --for DECODER` wrote.
        pipeline: folder of the decoder's pipeline, or its name on the hub.
        output: PNG for a grid of all pictures, or a folder, ending in `/`, for one PNG each.
        settings: settings of the pictures.
        target: name of the decoder; None for the one in the file.
        progress: called with the number of pictures drawn so far, the number of all, and the current step.

    Raises:
        InputError: the file, the pipeline or the adapter cannot be read, they do not fit each other, or diffusers is
            not installed.
        Interrupted: drawing was stopped with Ctrl-C.
        SettingsError: a setting is invalid or has no effect on this decoder, or the output path is invalid.
    """
    in_folder = is_folder(output)
    file = EmbedsFile(embeds, target)
    kind = DECODER_CLASSES[file.target]
    kind.check(settings)
    if kind.has_negative:
        file.require_negatives()
    count = min(file.rows, settings.limit or file.rows)
    prompts = _prompts(file, kind, settings, count)
    device, dtype = choose_device(settings.device, "--device"), getattr(torch, settings.dtype)
    with _stopped_by_user(output, in_folder):
        decoder = load_decoder(file.target, pipeline, device, dtype, settings.ip_adapter)
    file.require_dim(decoder.embed_dim, settings.ip_adapter or pipeline)
    size = settings.size or decoder.size
    if size % decoder.size_step:
        raise SettingsError(f"--size {size}: {kind.name} draws multiples of {decoder.size_step} pixels")
    if not in_folder:
        check_grid(output, count, size)
    opened = picture_folder(output) if in_folder else picture_grid(output, count, size)
    with _stopped_by_user(output, in_folder), opened as add:
        withheld = _draw_all(file, decoder, prompts, settings, add, progress)
    notes = [f"{withheld} pictures are black, because the pipeline's safety checker withheld them"] if withheld else []
    return Decoded(output, file.target, count, size, notes)


def _draw_all(
    file: EmbedsFile,
    decoder: Decoder,
    prompts: list[str],
    settings: DecodeSettings,
    add: AddPicture,
    progress: ProgressCallback,
) -> int:
    """Draw a picture for each prompt, batch by batch.

    Args:
        file: embeddings.
        decoder: decoder that draws them.
        prompts: text for the pipeline, for each row that is drawn.
        settings: settings of the pictures.
        add: function that takes each picture and its label.
        progress: called after each denoising step and each batch.

    Returns:
        Number of pictures that the pipeline's safety checker made black.
    """
    count, withheld = len(prompts), 0
    counter = _Counter(count, progress)
    batch_size = settings.batch_size or decoder.largest_batch or _BATCH
    with counter.counting_steps(decoder):
        for first in range(0, count, batch_size):
            pictures, black = _draw(decoder, _batch(file, first, prompts[first:][:batch_size], settings), settings)
            for row, picture in enumerate(pictures, start=first):
                add(picture, file.prompts[row] if row < len(file.prompts) else f"row {row}")
            counter.add_pictures(len(pictures))
            withheld += black
    return withheld


def _prompts(file: EmbedsFile, kind: type[Decoder], settings: DecodeSettings, count: int) -> list[str]:
    """Return the prompts to give the pipeline for the first `count` rows; empty ones if it is to get none.

    Raises:
        SettingsError: the file does not have the prompts of all rows.
    """
    wanted = kind.prompts if settings.prompts is None else settings.prompts
    if not wanted:
        return [""] * count
    if len(file.prompts) < count:
        limit = f"draw them alone with --limit {len(file.prompts)}, or " if file.prompts else ""
        raise SettingsError(
            f"{file.path}: it holds the prompts of {len(file.prompts)} of its {file.rows:,} rows; {limit}give empty "
            "prompts with --no-prompts"
        )
    for row, prompt in enumerate(file.prompts[:count]):
        if prompt == f"row {row}":  # the label that `sample` gives to a stored embedding without a caption
            raise SettingsError(
                f"{file.path}: row {row} has no prompt, because it was sampled from a stored embedding without a "
                "caption; give empty prompts with --no-prompts"
            )
    return file.prompts[:count]


def _batch(file: EmbedsFile, first: int, prompts: list[str], settings: DecodeSettings) -> Batch:
    """Return the rows of a file from `first`, one for each prompt. Each row has a generator of its own."""
    last = first + len(prompts)
    image, negative = file.take(first, last)
    # generators of the CPU give the same noise for every device
    generators = [torch.Generator().manual_seed(settings.seed + row) for row in range(first, last)]
    return Batch(image, negative, prompts, generators)


def _draw(decoder: Decoder, batch: Batch, settings: DecodeSettings) -> tuple[list[Image.Image], int]:
    """Return the pictures of a batch, and the number of those that the pipeline's safety checker made black.

    Raises:
        InputError: the pictures are not finite.
        SettingsError: the device cannot compute them in this precision, or the pipeline refuses a setting.
    """
    device = decoder.pipeline.device
    arguments = decoder.arguments(batch.to(device, getattr(torch, settings.dtype)), settings)
    try:
        output = decoder.pipeline(**arguments, generator=batch.generators, output_type="np")
    except NotImplementedError as error:  # torch lacks some operations in half precision on a CPU
        raise SettingsError(
            f"--dtype {settings.dtype}: {decoder.name} cannot be computed in it on {device} ({one_line(error, 200)}); "
            f"use --dtype {_other_precision(settings.dtype)}"
        ) from error
    except ValueError as error:
        raise SettingsError(f"{decoder.name}: its pipeline refuses the settings ({one_line(error)})") from error
    if not np.isfinite(output.images).all():
        raise InputError(
            f"the pictures are not finite in {settings.dtype}; use --dtype {_other_precision(settings.dtype)}"
        )
    flagged = getattr(output, "nsfw_content_detected", None) or []
    return decoder.pipeline.numpy_to_pil(output.images), sum(map(bool, flagged))


def _other_precision(dtype: str) -> str:
    return "float32, or another pipeline" if dtype == "float32" else "float32"


class _Counter:
    """Counter of pictures, and of the denoising steps of the current batch, which reports both.

    Args:
        count: number of all pictures.
        progress: called with each change.
    """

    def __init__(self, count: int, progress: ProgressCallback) -> None:
        self._count, self._progress = count, progress
        self._drawn = self._step = 0
        progress(0, count, "")

    def add_pictures(self, number: int) -> None:
        """Count the pictures of a batch, and start to count the steps of the next one."""
        self._drawn, self._step = self._drawn + number, 0
        self._progress(self._drawn, self._count, "")

    @contextlib.contextmanager
    def counting_steps(self, decoder: Decoder) -> Iterator[None]:
        """Context manager that counts the evaluations of a decoder's networks, of which each step has one."""

        def add_step(*_: Any) -> None:
            self._step += 1
            self._progress(self._drawn, self._count, f"step {self._step}")

        hooks = [network.register_forward_hook(add_step) for network in decoder.networks]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


@contextlib.contextmanager
def _stopped_by_user(output: str, in_folder: bool) -> Iterator[None]:
    """Context manager that replaces KeyboardInterrupt with an Interrupted error, which says what was written."""
    try:
        yield
    except KeyboardInterrupt:
        if in_folder and os.path.isdir(output):
            number = sum(name.endswith(".png") for name in os.listdir(output))
            raise Interrupted(
                f"stopped; {output} has {number} pictures. The same command needs an empty folder, and starts again"
            ) from None
        raise Interrupted(f"stopped; {output} was not written, and the same command starts again") from None

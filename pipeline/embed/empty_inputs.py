"""Last step of the embed stage, which stores the CLIP model's outputs for empty inputs, once per folder.

The step runs after all shards are committed. The file is written first, and then recorded in the manifest. If the
process is killed in between, the next run writes the same file again. A folder that lacks the file, such as one from an
older version, gets it in the next run, and its shards stay as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import partial
from typing import Any

from ..clip.encoder import load_encoder
from ..clip.identity import clip_difference
from ..compute.parallel import map_shards
from ..compute.settings import ComputeSettings
from ..contract.commit import StageFolder
from ..contract.empty_inputs import EmptyInputs, has_empty_inputs, write_empty_inputs
from ..errors import InputError, PriorkitError
from ..explain import one_line
from .settings import EmbedSettings

_TASK = "empty inputs"
"""Name of the only task, which messages mention."""


class EmptyInputsWorker:
    """Callable that encodes empty inputs, on the device and in the dtype of the settings.

    Args:
        settings: embed settings, with `device` and `threads` resolved to actual values.
        clip: identity of the CLIP model, from the manifest.
    """

    def __init__(self, settings: EmbedSettings, clip: Mapping[str, Any]) -> None:
        self._settings, self._clip = settings, clip

    def __call__(self, task: str, following: str | None = None) -> EmptyInputs:
        # compiling the image tower for a batch of one image would take minutes
        settings = self._settings.encoder_settings().model_copy(update={"compile": False})
        encoder = load_encoder(settings)
        if differing := clip_difference(self._clip, encoder.identity, strict=True):
            raise InputError(f"the folder was made with another CLIP ({differing})")
        return encoder.encode_empty()


def store_empty_inputs(
    folder: StageFolder, settings: EmbedSettings, compute: ComputeSettings, *, required: bool
) -> list[str]:
    """Store the CLIP model's outputs for empty inputs in a folder that lacks them.

    Folders of the engine `clip-retrieval` get none, because that engine returns only normalised embeddings.

    Args:
        folder: embeddings folder, locked for writing, whose shards are complete.
        settings: embed settings, with `device` and `threads` resolved to actual values.
        compute: settings that control where the model runs.
        required: False to return a note instead of raising an exception if the CLIP model cannot be run.

    Returns:
        Notes for the summary; usually empty.

    Raises:
        PriorkitError: the CLIP model cannot be run, or it is not the one that made the folder.
    """
    store, about = folder.store, folder.manifest.about
    if settings.engine != "native" or "clip" not in about or has_empty_inputs(store, about):
        return []
    make_worker = partial(EmptyInputsWorker, settings, about["clip"])
    one_worker = compute.model_copy(update={"workers": 1, "min_workers": 1})
    try:
        with contextlib.closing(map_shards(make_worker, [_TASK], one_worker)) as results:
            (empty,) = results
    except PriorkitError as error:
        if required:
            raise
        return [f"the embeddings are complete, but the outputs for empty inputs are not stored: {one_line(error)}"]
    folder.describe(**write_empty_inputs(store, empty))
    return []

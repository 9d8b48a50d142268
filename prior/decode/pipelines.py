"""Loader of the decoders' pipelines. This is the only module that imports diffusers."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from ...pipeline.clip.errors import causes, silence_library_logs
from ...pipeline.errors import InputError
from ...pipeline.explain import one_line
from .decoders import DECODER_CLASSES, Decoder
from .settings import DecoderName

_LONGEST = 300
"""Maximum number of characters quoted from a library's error message."""


def load_decoder(
    name: DecoderName, pipeline: str, device: str, dtype: torch.dtype, ip_adapter: str | None = None
) -> Decoder:
    """Load the pipeline of a decoder.

    Args:
        name: name of the decoder.
        pipeline: folder that `save_pretrained` wrote, or name on the hub, which is downloaded.
        device: device to load it to.
        dtype: precision of its weights.
        ip_adapter: weights of the IP-Adapter, if the decoder has one: a file, or ORG/NAME/FILE on the hub.

    Raises:
        InputError: diffusers is not installed, or the pipeline is missing, damaged or of another class.
    """
    with _diffusers() as diffusers:
        kind = DECODER_CLASSES[name]
        _require_location(pipeline)
        with _explained(f"--pipeline {pipeline}", "Give the folder of a complete pipeline, or its name on the hub"):
            index = diffusers.DiffusionPipeline.load_config(pipeline)
        cls = getattr(diffusers, _checked_class(index.get("_class_name"), kind, pipeline))
        with _explained(f"--pipeline {pipeline}", "Save or download the pipeline again"):
            loaded = cls.from_pretrained(pipeline, dtype=dtype)
            if ip_adapter is not None:
                _load_ip_adapter(loaded, ip_adapter)
            loaded.to(device)
        loaded.set_progress_bar_config(disable=True)
        return kind(loaded)


@contextlib.contextmanager
def _diffusers() -> Iterator[Any]:
    """Context manager that imports diffusers, and hides its log messages and progress bars and those of transformers.

    Raises:
        InputError: diffusers or transformers is not installed.
    """
    try:
        import diffusers
        import transformers.utils.logging
        from diffusers.pipelines.deprecated import unclip
    except ImportError as error:
        raise InputError(
            f'decode needs diffusers and transformers ({one_line(error, _LONGEST)}): pip install "priorkit[decode]"'
        ) from error
    # Published pipelines of Karlo name the module `unclip`, which diffusers 0.38 moved and no longer finds.
    pipelines: Any = diffusers.pipelines
    if not hasattr(pipelines, "unclip"):
        pipelines.unclip = unclip
    logs = [diffusers.utils.logging, transformers.utils.logging]
    levels = [log.get_verbosity() for log in logs]
    bars = [log.is_progress_bar_enabled() for log in logs]
    try:
        for log in logs:
            log.set_verbosity(logging.CRITICAL)
            log.disable_progress_bar()
        with silence_library_logs(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The `local_dir_use_symlinks` argument")  # diffusers still passes it
            yield diffusers
    finally:
        for log, level, bar in zip(logs, levels, bars, strict=True):
            log.set_verbosity(level)
            if bar:
                log.enable_progress_bar()


@contextlib.contextmanager
def _explained(place: str, fix: str) -> Iterator[None]:
    """Context manager that raises an InputError if a pipeline or its weights cannot be loaded.

    The libraries raise errors of many types for damaged and missing files, so all are caught but those of memory.
    """
    try:
        yield
    except (InputError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        *_, cause = causes(error)
        names = {type(link).__name__ for link in causes(error)}
        if names & {"RepositoryNotFoundError", "GatedRepoError"}:
            reason = "the hub has no such repository, or it asks for a token that may read it (hf auth login)"
        elif names & {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError"}:
            reason = f"the hub cannot be reached: {one_line(cause, _LONGEST)}"
            fix = "Connect this machine, or give the path of a copy that is on it"
        else:
            reason = one_line(error, _LONGEST)
        raise InputError(f"{place}: cannot be loaded ({reason}).\n{fix}") from error


def _require_location(pipeline: str) -> None:
    """Raise an InputError if a pipeline is neither a folder with an index nor a name on the hub."""
    if os.path.isdir(pipeline):
        if not os.path.isfile(os.path.join(pipeline, "model_index.json")):
            raise InputError(
                f"--pipeline {pipeline}: it has no model_index.json; give the folder that save_pretrained of the "
                "pipeline wrote"
            )
    elif pipeline.count("/") != 1 or pipeline.startswith((".", "/")) or os.path.exists(pipeline):
        raise InputError(
            f"--pipeline {pipeline}: no such folder, and no name on the hub such as "
            "kandinsky-community/kandinsky-2-2-decoder"
        )


def _checked_class(found: str | None, kind: type[Decoder], pipeline: str) -> str:
    """Return the name of a pipeline's class, or raise an InputError if it is not one of a decoder's."""
    if found in kind.pipeline_classes:
        return found
    others = [other.name for other in DECODER_CLASSES.values() if found in other.pipeline_classes]
    needed = " or ".join(kind.pipeline_classes)
    fix = f"sample with --for {others[0]} for it" if others else f"give a {needed}"
    raise InputError(f"--pipeline {pipeline}: it is a {found}, and {kind.name} a {needed}; {fix}")


def _load_ip_adapter(pipeline: Any, path: str) -> None:
    """Load the weights of an IP-Adapter into a pipeline of Stable Diffusion.

    Raises:
        InputError: there are no such weights, or they take states of image patches in place of an embedding.
    """
    place = f"--ip-adapter {path}"
    folder, name = os.path.split(path)
    if os.path.isfile(path):
        repository, subfolder = folder or ".", ""
    elif path.count("/") >= 2 and not path.startswith((".", "/")):
        owner, model, *folders = folder.split("/")
        repository, subfolder = f"{owner}/{model}", "/".join(folders)
    else:
        raise InputError(f"{place}: no such file, and no ORG/NAME/FILE on the hub")
    with _explained(place, "Give the weights of a plain IP-Adapter for this pipeline, not Plus, Full or FaceID"):
        pipeline.load_ip_adapter(repository, subfolder=subfolder, weight_name=name, image_encoder_folder=None)
    projection = pipeline.unet.encoder_hid_proj.image_projection_layers[0]
    if not hasattr(projection, "image_embeds"):
        raise InputError(
            f"{place}: it takes states of image patches, not an image embedding.\nGive a plain one, such as "
            "h94/IP-Adapter/models/ip-adapter_sd15.safetensors, not Plus or Full"
        )

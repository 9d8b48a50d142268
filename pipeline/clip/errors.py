"""Error messages for CLIP models that cannot be loaded, and a context manager that hides redundant log messages."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from ..errors import InputError
from ..explain import one_line
from .names import HUB_PREFIX, TRANSFORMERS_PREFIX
from .settings import ClipSettings

_LONGEST = 400
"""Maximum number of characters quoted from a library's error message.

If a checkpoint belongs to a different architecture, torch's message lists hundreds of tensors.
"""

ASKS_TO_RUN_CODE = "trust_remote_code"
"""Part of the error of transformers for a model or tokenizer that needs Python code from its folder or repository."""


@contextlib.contextmanager
def silence_library_logs() -> Iterator[None]:
    """Context manager that hides log messages about a failure to load a model.

    It hides warnings and errors from open_clip, and warnings from huggingface_hub. They are redundant, because the
    failure also raises an exception.
    """
    hub, root = logging.getLogger("huggingface_hub"), logging.getLogger()
    level = hub.level

    def is_below_warning(record: logging.LogRecord) -> bool:
        return record.levelno < logging.WARNING

    hub.setLevel(logging.ERROR)
    root.addFilter(is_below_warning)
    try:
        yield
    finally:
        hub.setLevel(level)
        root.removeFilter(is_below_warning)


def explain(settings: ClipSettings, error: Exception) -> InputError:
    """Return an InputError with a message that explains why a CLIP model could not be loaded.

    The message suggests a fix if the cause is known.

    Args:
        settings: settings of the model.
        error: exception that was raised while the model was being loaded.
    """
    wanted = f"embed.clip.model={settings.model}, pretrained={settings.pretrained}"
    *_, cause = causes(error)
    names = {type(link).__name__ for link in causes(error)}
    # if weights from a hub are missing, open_clip logs the reason, and later raises this error without the reason
    is_absent = "Required pretrained weights" in str(error)
    if is_absent or "LocalEntryNotFoundError" in names:
        reason = "its config is there, its weights are not" if is_absent else str(cause)
        return InputError(f"{wanted}: {_unreachable(reason, settings.model)}")
    if "RepositoryNotFoundError" in names:
        return InputError(
            f"{wanted}: the hub has no such repository, or it is private.\nCorrect the name, or log in with a token "
            "that may read it (hf auth login)"
        )
    if settings.model.startswith(HUB_PREFIX) and names & {"EntryNotFoundError", "RemoteEntryNotFoundError"}:
        repository = settings.model.removeprefix(HUB_PREFIX)
        return InputError(
            f"{wanted}: the repository holds no open_clip_config.json, so it is not one of open_clip.\nFor a CLIP or "
            f"SigLIP of transformers write hf_clip:{repository}"
        )
    if ASKS_TO_RUN_CODE in str(error):
        return InputError(
            f"{wanted}: its tokenizer is a class of its own (auto_map in tokenizer_config.json); priorkit runs no "
            "code of a model's folder.\nUse a model whose tokenizer is a class of transformers"
        )
    if "QuickGELU mismatch" in str(error):
        return InputError(
            f"{wanted}: these weights were trained with the other activation than {settings.model} has "
            f"({one_line(error, _LONGEST)}); name {settings.model}-quickgelu, or set embed.clip.quick_gelu"
        )
    if isinstance(error, RuntimeError):  # torch's message names the tensors that do not fit
        return InputError(f"{wanted}: cannot be loaded ({one_line(error, _LONGEST)})")
    reason = f"{type(error).__name__}: {one_line(error, _LONGEST)}".removesuffix(": ")
    return InputError(
        f"{wanted}: cannot be loaded ({reason}); weights are the tensors of a model's state_dict, in safetensors or by "
        "torch.save, and must fit the model"
    )


def _unreachable(reason: str, model: str) -> str:
    """Return the part of a message that says how to go on without a hub."""
    absent = f"its files are not on this machine, and the hub that has them cannot be reached ({reason}).\n"
    if model.startswith(TRANSFORMERS_PREFIX):
        return (
            f"{absent}Connect this machine, or copy the model's folder (weights, config.json, preprocessor_config.json "
            "and the tokenizer) here and give --model local-dir:FOLDER"
        )
    return (
        f"{absent}Connect this machine, or copy the model's folder (weights and open_clip_config.json) here and give "
        "--model local-dir:FOLDER. A file of weights alone (--pretrained FILE) does not say its preprocessing"
    )


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception, then the exception that caused it, then the cause of that exception, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__

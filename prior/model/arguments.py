"""Checks of the arguments of `Prior.sample`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...pipeline.errors import SettingsError
from ..sampling.settings import SampleSettings


def check_arguments(
    prompts: Sequence[str] | None,
    text_embed: torch.Tensor | npt.NDArray[Any] | None,
    token_states: torch.Tensor | npt.NDArray[Any] | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    noise: Iterable[torch.Tensor] | None,
) -> None:
    """Raise SettingsError if arguments of `Prior.sample` are missing, contradictory or of different lengths."""
    if (prompts is None) == (text_embed is None):
        raise SettingsError("give either prompts or text_embed")
    if isinstance(prompts, str):
        raise SettingsError(f"prompts={prompts!r}: give a list of captions")
    if prompts is not None and token_states is not None:
        raise SettingsError("token_states belong to text_embed; prompts are encoded here")
    if text_embed is not None and token_states is not None and len(text_embed) != len(token_states):
        raise SettingsError(f"token_states are of {len(token_states)} texts, text_embed of {len(text_embed)}")
    if generator is not None and noise is not None:
        raise SettingsError("give either generator or noise")


def expand_negatives(given: str | Sequence[str], texts: int, settings: SampleSettings) -> list[str]:
    """Return one negative prompt for each caption.

    Raises:
        SettingsError: there is another number of negative prompts than of captions, or they have no effect.
    """
    if settings.guidance_scale == 1.0:
        raise SettingsError("negative_prompt has no effect with guidance_scale=1; raise it, or leave the prompt out")
    if settings.guidance != "text":
        raise SettingsError(f"negative_prompt needs guidance=text, not {settings.guidance}")
    negatives = [given] * texts if isinstance(given, str) else list(given)
    if len(negatives) != texts:
        raise SettingsError(f"negative_prompt: {len(negatives)} are given for {texts} captions; give one, or {texts}")
    return negatives


def choose_generators(
    given: torch.Generator | Sequence[torch.Generator], chosen: slice, candidates: int, texts: int
) -> torch.Generator | Sequence[torch.Generator]:
    """Return the generators for the embeddings to draw for some of the captions.

    Raises:
        SettingsError: the number of generators differs from the number of embeddings to draw.
    """
    if isinstance(given, torch.Generator):
        return given
    if len(given) != texts * candidates:
        raise SettingsError(f"generator: {len(given)} are given, needed are 1 or {texts * candidates}")
    return given[chosen.start * candidates : chosen.stop * candidates]


def as_tensor(value: torch.Tensor | npt.NDArray[Any] | None) -> torch.Tensor | None:
    """Return an array as a tensor, which is a copy; tensors and None are returned unchanged."""
    return torch.tensor(value) if isinstance(value, np.ndarray) else value  # copy, because arrays may be read-only

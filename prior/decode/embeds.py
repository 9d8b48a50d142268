"""Reader of the `.safetensors` files that `priorkit sample` writes."""

from __future__ import annotations

import os
from typing import Any

import safetensors
import torch

from ...pipeline.errors import InputError
from ...pipeline.json_text import parse_json
from ..model.targets import find_target, match_target
from ..model.text_encoder import clip_named
from .settings import DECODERS, DecoderName

_IMAGE, _NEGATIVE, _METADATA = "image_embed", "negative_image_embed", "priorkit"


class EmbedsFile:
    """Sampled embeddings of one file, read in slices of rows.

    Args:
        path: file that `priorkit sample` wrote.
        target: decoder that is to draw them; None for the one that they were sampled for.

    Raises:
        InputError: the file is missing, damaged or not written by `priorkit sample`, its embeddings are unit vectors,
            or they were sampled for another decoder.
    """

    def __init__(self, path: str, target: str | None = None) -> None:
        self.path = path
        self._file = _open(path)
        described = self._described()
        self.target: DecoderName = self._checked_target(described, target)
        prompts = described.get("prompts")
        self.prompts = [str(prompt) for prompt in prompts] if isinstance(prompts, list) else []
        """Prompts of the first rows; the file holds at most 64 of them."""
        if described.get("norm") != "raw":
            raise InputError(
                f"{path}: its embeddings have norm {described.get('norm')!r}, and {self.target} takes raw ones, as CLIP"
                f" gives them.\nSample them again with {self._fix()}"
            )
        self._image = self._tensor(_IMAGE)
        self._negative = self._tensor(_NEGATIVE) if _NEGATIVE in self._file.keys() else None  # noqa: SIM118
        self.rows, self.embed_dim = self._checked_shape()
        if described.get("for") is None:  # otherwise, `sample` has compared the CLIPs
            self._require_clip(described)

    def take(self, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return image embeddings and negative embeddings of rows, as float32; None for negatives that are absent.

        Raises:
            InputError: an embedding is not finite.
        """
        image = self._image[first:last].float()
        negative = None if self._negative is None else self._negative[first:last].float()
        for name, part in ((_IMAGE, image), (_NEGATIVE, negative)):
            if part is not None and not part.isfinite().all():
                raise InputError(f"{self.path}: {name} has values that are not finite; sample again")
        return image, negative

    def require_negatives(self) -> None:
        """Check that the file has negative embeddings.

        Raises:
            InputError: it has none.
        """
        if self._negative is None:
            raise InputError(
                f"{self.path}: it has no {_NEGATIVE}, which {self.target} needs.\nSample again with {self._fix()}"
            )

    def require_dim(self, embed_dim: int, pipeline: str) -> None:
        """Check that the embeddings have the size that a pipeline takes.

        Raises:
            InputError: they have another size.
        """
        if self.embed_dim != embed_dim:
            raise InputError(
                f"{self.path}: its embeddings have {self.embed_dim} values, and {pipeline} takes {embed_dim}; they are "
                "of another CLIP than the decoder's.\nUse a prior of the decoder's CLIP, or the decoder of this CLIP"
            )

    def _require_clip(self, described: dict[str, Any]) -> None:
        """Check that the embeddings do not come from another CLIP than the decoder's.

        Raises:
            InputError: they do.
        """
        clip, location = (described.get(name) for name in ("clip", "clip_settings"))
        consumer = find_target(self.target)
        if not isinstance(clip, dict) or not isinstance(location, dict):
            return
        if match_target(consumer, clip, location, self.embed_dim) == "other":
            raise InputError(
                f"{self.path}: its embeddings are of the CLIP {clip_named(location) or 'unknown'}, and {self.target} "
                f"takes those of {' or '.join(map(str, consumer.clips))}"
            )

    def _described(self) -> dict[str, Any]:
        """Return the metadata that `priorkit sample` wrote."""
        text = (self._file.metadata() or {}).get(_METADATA)
        try:
            described = None if text is None else parse_json(text)
        except ValueError:
            described = None
        if not isinstance(described, dict) or _IMAGE not in self._file.keys():  # noqa: SIM118
            raise InputError(
                f"{self.path}: not a file of `priorkit sample`, which holds {_IMAGE} and says its norm.\nWrite one "
                f"with priorkit sample PRIOR CAPTION --for DECODER --output FILE.safetensors"
            )
        return described

    def _checked_target(self, described: dict[str, Any], target: str | None) -> DecoderName:
        """Return the name of the decoder: `target`, or else the one in the file's metadata."""
        stored = described.get("for")
        known = ", ".join(DECODERS)
        for name, place in ((target, "--for"), (stored, f"{self.path}: sampled for")):
            if name is not None and name not in DECODERS:
                raise InputError(f"{place} {name}: decode draws with {known}")
        if target is None and stored is None:
            raise InputError(f"{self.path}: it does not say its decoder; give --for, one of {known}")
        if None not in (target, stored) and target != stored:
            raise InputError(
                f"{self.path}: sampled for {stored}, not {target}; leave --for out, or sample again with --for {target}"
            )
        return target or stored  # type: ignore[return-value]

    def _tensor(self, name: str) -> Any:
        part = self._file.get_slice(name)
        if part.get_dtype() not in ("F32", "F16", "BF16", "F64"):
            raise InputError(f"{self.path}: {name} has values of type {part.get_dtype()}, not of floating point")
        return part

    def _checked_shape(self) -> tuple[int, int]:
        """Return the number of rows and the embedding size."""
        shape = self._image.get_shape()
        needed = "[rows, images, size]" if self.target == "ip-adapter" else "[rows, size]"
        if len(shape) != needed.count(",") + 1 or 0 in shape:
            raise InputError(
                f"{self.path}: {_IMAGE} has shape {shape}, and {self.target} takes {needed}.\nSample again with "
                f"{self._fix()}"
            )
        if self._negative is not None and self._negative.get_shape() != shape:
            raise InputError(
                f"{self.path}: {_NEGATIVE} has shape {self._negative.get_shape()}, and {_IMAGE} {shape}; they must be "
                "alike"
            )
        return shape[0], shape[-1]

    def _fix(self) -> str:
        return f"priorkit sample PRIOR CAPTION --for {self.target} --output {self.path}"


def _open(path: str) -> Any:
    """Open a safetensors file."""
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file; `priorkit sample --for DECODER --output {path}` writes it")
    if not path.endswith(".safetensors"):
        raise InputError(
            f"{path}: decode reads .safetensors, which also holds the norm and the negatives.\nWrite it with priorkit "
            "sample PRIOR CAPTION --for DECODER --output FILE.safetensors"
        )
    try:
        return safetensors.safe_open(path, framework="pt")
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as safetensors ({error}); sample again") from None

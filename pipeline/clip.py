"""The CLIP encoder: images and captions -> raw embeddings and token states. The only file that imports open_clip."""

from __future__ import annotations

import difflib
import functools
import hashlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .config import ClipSettings, EmbedSettings
from .errors import InputError
from .shards import fingerprint

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # nothing phones home unless asked to

_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_BUNDLED_PREFIX = "priorkit:"
_LOCAL_PREFIX = "local-dir:"
_WEIGHT_SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".pth"})
_RECIPES = Path(__file__).resolve().parent.parent / "recipes"


@dataclass(frozen=True)
class TextEmbeds:
    """What the text tower makes of B captions."""

    text_embed: torch.Tensor
    """`[B, D]` float32, not normalised."""
    token_states: torch.Tensor | None
    """`[sum of lengths, D_text]` float32: states after the final norm, before projection; None unless asked for."""
    lengths: list[int]
    """Token states of each caption."""


def check_clip(settings: ClipSettings) -> None:
    """Check that a CLIP can be had, without loading it.

    Raises:
        InputError: open_clip knows no such model or tag, or a local file is not there; names what there is.
    """
    clip_source(settings)
    if ":" in settings.model:
        return
    import open_clip

    if settings.model not in open_clip.list_models():
        nearest = difflib.get_close_matches(settings.model, open_clip.list_models(), n=3, cutoff=0.4)
        raise InputError(
            f"embed.clip.model={settings.model}: open_clip has no such model; nearest: {', '.join(nearest) or 'none'}"
        )
    tags = open_clip.list_pretrained_tags_by_model(settings.model)
    if settings.pretrained not in tags and not Path(str(settings.pretrained)).is_file():
        raise InputError(
            f"embed.clip.pretrained={settings.pretrained}: neither a file nor a tag of {settings.model}, "
            f"which has {', '.join(tags) or 'none'}"
        )


def clip_location(settings: ClipSettings) -> dict[str, Any]:
    """Where a CLIP is to be had, from whatever folder: its settings with absolute paths."""
    model, pretrained = settings.model, settings.pretrained
    if model.startswith(_LOCAL_PREFIX):
        model = f"{_LOCAL_PREFIX}{Path(model.removeprefix(_LOCAL_PREFIX)).resolve()}"
    if pretrained is not None and Path(pretrained).is_file():
        pretrained = str(Path(pretrained).resolve())
    return {"model": model, "pretrained": pretrained}


def clip_source(settings: ClipSettings) -> dict[str, Any]:
    """What identifies a CLIP without loading it: names, and for local files their hashes instead of their paths.

    Raises:
        InputError: a local file or folder is not there.
    """
    folder = _local_folder(settings)
    if folder is not None:
        files = [
            path for path in folder.iterdir() if path.suffix in _WEIGHT_SUFFIXES or path.name == "open_clip_config.json"
        ]
        bundled = settings.model if settings.model.startswith(_BUNDLED_PREFIX) else "local-dir"
        return {"model": bundled, "files": {path.name: _hash_file(path) for path in sorted(files)}}
    if settings.pretrained and Path(settings.pretrained).is_file():
        path = Path(settings.pretrained)
        return {"model": settings.model, "files": {path.name: _hash_file(path)}}
    if settings.pretrained and os.path.sep in settings.pretrained:
        raise InputError(f"embed.clip.pretrained={settings.pretrained}: no such file")
    return {"model": settings.model, "pretrained": settings.pretrained}


def _local_folder(settings: ClipSettings) -> Path | None:
    if settings.model.startswith(_BUNDLED_PREFIX):
        folder = _RECIPES / settings.model.removeprefix(_BUNDLED_PREFIX)
    elif settings.model.startswith(_LOCAL_PREFIX):
        folder = Path(settings.model.removeprefix(_LOCAL_PREFIX))
    else:
        return None
    if not (folder / "open_clip_config.json").is_file():
        raise InputError(f"embed.clip.model={settings.model}: {folder} holds no open_clip_config.json")
    return folder


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def load_encoder(settings: EmbedSettings) -> ClipEncoder:
    """The encoder for resolved settings; kept while its files stay the same, so that one process holds one model."""
    return _load_encoder(settings, fingerprint(clip_source(settings.clip)))


@functools.lru_cache(maxsize=1)
def _load_encoder(settings: EmbedSettings, source: str) -> ClipEncoder:
    return ClipEncoder(settings)


class ClipEncoder:
    """An open_clip model with its preprocessing and tokenizer.

    Args:
        settings: resolved settings.

    Raises:
        InputError: the model is unknown, or its weights are not to be had or do not fit.
    """

    def __init__(self, settings: EmbedSettings) -> None:
        self._device = torch.device(settings.device)
        self._dtype = getattr(torch, settings.dtype)
        torch.set_num_threads(settings.threads)
        self._model, self.preprocess, self._tokenizer, config = _load(settings)
        text = self._model if hasattr(self._model, "ln_final") else self._model.text
        self._final_norm = getattr(text, "ln_final", None)
        pooling = getattr(text, "text_pool_type", None) or getattr(text, "pool_type", None)
        causal = getattr(text, "attn_mask", None) is not None
        # only a causal tower that pools at end-of-text has a boundary after which nothing matters
        self._ends_at_eot = causal and pooling in ("argmax", "eos")
        self._eot_id = getattr(text, "text_eos_id", None) if pooling == "eos" else None
        if settings.token_states and self._final_norm is None:
            raise InputError(f"{settings.clip.model}: this text tower has no final norm; set embed.token_states=false")
        self.identity = self._describe(settings, config)

    def _describe(self, settings: EmbedSettings, config: dict[str, Any]) -> dict[str, Any]:
        visual = self._model.visual
        quick = any(type(module).__name__ == "QuickGELU" for module in self._model.modules())
        token_width = self._final_norm.weight.shape[0] if self._final_norm is not None else None
        return {
            "source": clip_source(settings.clip),
            "weights_sha256": _hash_weights(self._model),
            "config_sha256": fingerprint(config),
            "activation": "quick_gelu" if quick else "gelu",
            "preprocess": {name: _plain(value) for name, value in sorted(visual.preprocess_cfg.items())},
            "dtype": settings.dtype,
            "normalised": True,
            "embed_dim": int(config["embed_dim"]),
            "token_width": token_width,
            "context_length": int(self._model.context_length),
        }

    def decode(self, data: bytes) -> torch.Tensor:
        """Decode and preprocess one image: encoded bytes -> `[3, H, W]` float32. Safe in several threads at once."""
        import io

        with Image.open(io.BytesIO(data)) as image:
            pixels: torch.Tensor = self.preprocess(image)
        return pixels

    @torch.inference_mode()
    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """Preprocessed images `[B, 3, H, W]` -> embeddings `[B, D]` float32 on the CPU, not normalised."""
        features = self._model.encode_image(pixels.to(self._device, self._dtype))
        return torch.as_tensor(features).float().cpu()

    @torch.inference_mode()
    def encode_texts(self, captions: list[str], token_states: bool = False) -> TextEmbeds:
        """Captions -> pooled embeddings and, if asked for, the states of their tokens."""
        tokens = self._tokenizer(captions).to(self._device)  # [B, T]
        kept: list[torch.Tensor] = []
        hook = None
        if token_states:
            assert self._final_norm is not None
            hook = self._final_norm.register_forward_hook(lambda module, inputs, output: kept.append(output))
        try:
            features = self._model.encode_text(tokens).float().cpu()  # [B, D]
        finally:
            if hook is not None:
                hook.remove()
        if not token_states:
            return TextEmbeds(features, None, [])
        states = kept[0].float().cpu()  # [B, T, D_text]
        lengths = self._lengths(tokens)
        rows = [row[:length] for row, length in zip(states, lengths, strict=True)]
        return TextEmbeds(features, torch.cat(rows), lengths)

    def _lengths(self, tokens: torch.Tensor) -> list[int]:
        """Begin-of-text through end-of-text for causal towers, all positions for others."""
        if not self._ends_at_eot:
            return [tokens.shape[1]] * tokens.shape[0]
        at_end = tokens == self._eot_id if self._eot_id is not None else tokens
        return [int(position) + 1 for position in at_end.int().argmax(dim=-1)]


def _load(settings: EmbedSettings) -> tuple[Any, Any, Any, dict[str, Any]]:
    import open_clip

    check_clip(settings.clip)
    folder = _local_folder(settings.clip)
    name = f"{_LOCAL_PREFIX}{folder}" if folder is not None else settings.clip.model
    try:
        with warnings.catch_warnings():
            # weights trained with one activation give wrong embeddings under the other
            warnings.filterwarnings("error", message=".*QuickGELU mismatch.*")
            model, _, preprocess = open_clip.create_model_and_transforms(
                name, settings.clip.pretrained, precision=_PRECISIONS[settings.dtype], device=settings.device
            )
            tokenizer = open_clip.get_tokenizer(name)
            config = open_clip.get_model_config(name)
    except Exception as error:  # open_clip raises what torch, the hub and its own parsing raise
        raise InputError(
            f"embed.clip.model={settings.clip.model}, pretrained={settings.clip.pretrained}: cannot be loaded ({error})"
        ) from error
    return model.eval(), preprocess, tokenizer, config


def _hash_weights(model: torch.nn.Module) -> str:
    """SHA-256 over names and values of all weights as loaded, whatever the format of their file."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value

"""The CLIP encoder: images and captions -> raw embeddings and token states. The only file that imports open_clip."""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from .config import ClipSettings, EmbedSettings
from .device import require_device
from .errors import InputError
from .hashing import hash_file
from .packed_block import pack_blocks
from .pixels import Pixels
from .shards import fingerprint
from .text_tower import TextEmbeds, TextTower, probe_captions

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # nothing phones home unless asked to

_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_BUNDLED_PREFIX = "priorkit:"
_LOCAL_PREFIX = "local-dir:"
_WEIGHT_SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".pth"})
_CPU_IMAGES = 32
"""In one pass of the image tower on the CPU, so that activations stay in its caches; 96 take 7% longer an image."""
_CHARACTERS_PER_TOKEN = 64
"""More than any vocabulary's tokens have on average, so that what is cut off would not have been read."""
_RECIPES = Path(__file__).resolve().parent.parent / "recipes"


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
        return {"model": bundled, "files": _hashes(files)}
    if settings.pretrained and Path(settings.pretrained).is_file():
        path = Path(settings.pretrained)
        return {"model": settings.model, "files": _hashes([path])}
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


def _hashes(files: list[Path]) -> dict[str, str]:
    hashes = {}
    for path in sorted(files):
        with path.open("rb") as file:
            hashes[path.name] = hash_file(file)
    return hashes


def load_encoder(settings: EmbedSettings) -> ClipEncoder:
    """The encoder for resolved settings; kept while its files stay the same, so that one process holds one model."""
    return _load_encoder(settings, fingerprint(clip_source(settings.clip)))


@functools.lru_cache(maxsize=1)
def _load_encoder(settings: EmbedSettings, source: str) -> ClipEncoder:
    return ClipEncoder(settings)


def load_text_encoder(settings: EmbedSettings) -> ClipEncoder:
    """The encoder for resolved settings, without its image tower; kept as that of `load_encoder` is."""
    return _load_text_encoder(settings, fingerprint(clip_source(settings.clip)))


@functools.lru_cache(maxsize=1)
def _load_text_encoder(settings: EmbedSettings, source: str) -> ClipEncoder:
    encoder = ClipEncoder(settings)
    encoder.drop_image_tower()
    return encoder


class ClipEncoder:
    """An open_clip model with its preprocessing and tokenizer.

    Args:
        settings: resolved settings.

    Raises:
        InputError: the model is unknown, or its weights are not to be had or do not fit.
    """

    def __init__(self, settings: EmbedSettings) -> None:
        require_device(settings.device)
        device, dtype = torch.device(settings.device), getattr(torch, settings.dtype)
        torch.set_num_threads(settings.threads)
        self._model, preprocess, self._tokenizer, config = _load(settings)
        self._pixels = Pixels(preprocess, _longest(self._model.visual.image_size), device, dtype)
        self._text = TextTower(self._model, device, settings.batch_size)
        self._text.probe(self._tokenizer(probe_captions()))
        if settings.token_states and self._text.token_width is None:
            raise InputError(
                f"{settings.clip.model}: this text tower gives no token states; set embed.token_states=false"
            )
        self.identity = self._describe(settings, config)
        if settings.compile:
            self._model.visual.compile()
        else:
            pack_blocks(self._model.visual)
        if self._text.blocks is not None:
            pack_blocks(self._text.blocks)

    def _describe(self, settings: EmbedSettings, config: dict[str, Any]) -> dict[str, Any]:
        visual = self._model.visual
        quick = any(type(module).__name__ == "QuickGELU" for module in self._model.modules())
        return {
            "source": clip_source(settings.clip),
            "weights_sha256": hash_weights(self._model),
            "config_sha256": fingerprint(config),
            "activation": "quick_gelu" if quick else "gelu",
            "preprocess": {name: _plain(value) for name, value in sorted(visual.preprocess_cfg.items())},
            "dtype": settings.dtype,
            "normalised": True,
            "text_cut": self._text.is_cut,
            "embed_dim": int(config["embed_dim"]),
            "token_width": self._text.token_width,
            "context_length": int(self._model.context_length),
        }

    def drop_image_tower(self) -> None:
        """Free the image tower, where only captions are to be encoded."""
        self._model.visual = None

    def decode(self, data: bytes) -> torch.Tensor:
        """Decode and preprocess one image for `encode_images`. Safe in several threads at once.

        Raises:
            PixelError: the bytes are no image, or one of too many pixels.
        """
        return self._pixels.decode(data)

    def encode_images(self, images: Sequence[torch.Tensor]) -> torch.Tensor:
        """Decoded images -> embeddings `[B, D]` float32, not normalised; where the tower is, not waited for."""
        return self.encode_pixels(self.prepare(images))

    def encode_texts(self, captions: list[str], token_states: bool = False) -> TextEmbeds:
        """Captions -> pooled embeddings and, if asked for, the states of their tokens; on the CPU."""
        return self.encode_tokens(self.tokenize(captions), token_states)

    def prepare(self, images: Sequence[torch.Tensor]) -> torch.Tensor:
        """Decoded images -> what the image tower takes, `[B, 3, H, W]`, where it is."""
        return self._pixels.batch(images)

    @torch.inference_mode()
    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """`[B, 3, H, W]` -> embeddings `[B, D]` float32, not normalised, where the tower is."""
        passes = torch.split(pixels, _CPU_IMAGES) if pixels.is_cpu else [pixels]
        return torch.cat([torch.as_tensor(self._model.encode_image(images)) for images in passes]).float()

    def tokenize(self, captions: list[str]) -> torch.Tensor:
        """Captions -> tokens `[B, T]` int64, T being the context's length."""
        longest = _CHARACTERS_PER_TOKEN * int(self._model.context_length)
        # byte-pair encoding takes minutes for one word of 100,000 letters, of which a few hundred would be used
        shortened = [c if len(c) <= longest else " ".join(c.split())[:longest] for c in captions]
        return torch.as_tensor(self._tokenizer(shortened))

    def encode_tokens(self, tokens: torch.Tensor, token_states: bool = False) -> TextEmbeds:
        """Tokens `[B, T]` -> pooled embeddings and, if asked for, the states of the tokens; on the CPU."""
        return self._text.encode(tokens, token_states)


def _longest(size: int | tuple[int, int]) -> int:
    return size if isinstance(size, int) else max(size)


def _load(settings: EmbedSettings) -> tuple[Any, Any, Any, dict[str, Any]]:
    import open_clip

    check_clip(settings.clip)
    folder = _local_folder(settings.clip)
    if folder is not None and int(open_clip.__version__.partition(".")[0]) < 3:
        raise InputError(
            f"embed.clip.model={settings.clip.model}: folders need open_clip_torch 3 or newer, here is "
            f"{open_clip.__version__}; give a model's name, and the path of its weights as pretrained"
        )
    name = f"{_LOCAL_PREFIX}{folder}" if folder is not None else settings.clip.model
    try:
        with warnings.catch_warnings(), _told_by_errors():
            # weights trained with one activation give wrong embeddings under the other
            warnings.filterwarnings("error", message=".*QuickGELU mismatch.*")
            model, _, preprocess = open_clip.create_model_and_transforms(
                name, settings.clip.pretrained, precision=_PRECISIONS[settings.dtype], device=settings.device
            )
            tokenizer = open_clip.get_tokenizer(name)
            config = open_clip.get_model_config(name)
    except Exception as error:  # open_clip raises what torch, the hub and its own parsing raise
        wanted = f"embed.clip.model={settings.clip.model}, pretrained={settings.clip.pretrained}"
        *_, cause = _causes(error)
        if any(type(link).__name__ == "LocalEntryNotFoundError" for link in _causes(error)):
            raise InputError(
                f"{wanted}: its files are not on this machine, and the hub that has them cannot be reached ({cause}); "
                "connect this machine, or copy the weights here and give their path as pretrained (--pretrained FILE)"
            ) from error
        raise InputError(f"{wanted}: cannot be loaded ({error})") from error
    return model.eval(), preprocess, tokenizer, config


@contextlib.contextmanager
def _told_by_errors() -> Iterator[None]:
    """Keep what open_clip and the hub log of failures out of the terminal: the error that follows says it once."""
    hub, root = logging.getLogger("huggingface_hub"), logging.getLogger()
    level = hub.level

    def is_no_error(record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR

    hub.setLevel(logging.ERROR)
    root.addFilter(is_no_error)
    try:
        yield
    finally:
        hub.setLevel(level)
        root.removeFilter(is_no_error)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on to the first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def hash_weights(model: torch.nn.Module) -> str:
    """SHA-256 over names and values of all weights as loaded, whatever the format of their file."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value

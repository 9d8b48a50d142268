"""The CLIP encoder: images and captions -> raw embeddings and token states. The only file that imports open_clip."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version

from ..compute.device import require_device
from ..contract.manifest import fingerprint
from ..embed.settings import EmbedSettings
from ..errors import InputError, SettingsError
from .errors import explain, told_by_errors
from .files import CONFIG_NAME, LOCAL_PREFIX, clip_location, find_weights, hash_files, local_folder
from .identity import describe_function, has_quick_gelu
from .packed_block import pack_blocks
from .pixels import Pixels
from .plan import by_config, defaults, hub_config, plan_clip
from .positions import require_positions
from .preprocess import PREPROCESS_FIELDS
from .settings import ClipSettings
from .text_tower import TextEmbeds, TextTower, probe_captions

__all__ = ["ClipEncoder", "check_clip", "clip_location", "clip_source", "identify_clip", "load_encoder"]

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # nothing phones home unless asked to

_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_HUB_PREFIX = "hf-hub:"
_CPU_IMAGES = 32
"""In one pass of the image tower on the CPU, so that activations stay in its caches; 96 take 7% longer an image."""
_CHARACTERS_PER_TOKEN = 64
"""More than any vocabulary's tokens have on average, so that what is cut off would not have been read."""


def check_clip(settings: ClipSettings) -> None:
    """Check that a CLIP can be had, without loading it.

    Raises:
        InputError: open_clip knows no such model or tag, a local file is not there, or it is not known what weights by
            path were trained with; names the nearest names, or the choices.
    """
    import open_clip

    clip_source(settings)
    plan_clip(settings, open_clip, _is_by_path(settings))


def clip_source(settings: ClipSettings) -> dict[str, Any]:
    """Name of a CLIP without loading it, with hashes of local files in place of their paths.

    Raises:
        InputError: a local file or folder is not there.
    """
    changed = settings.overrides()
    folder = local_folder(settings)
    if folder is not None:
        bundled = "local-dir" if settings.model.startswith(LOCAL_PREFIX) else settings.model
        return {"model": bundled, "files": hash_files([find_weights(folder), folder / CONFIG_NAME]), **changed}
    if _is_by_path(settings):
        path = Path(str(settings.pretrained))
        beside = [path.parent / CONFIG_NAME] if (path.parent / CONFIG_NAME).is_file() else []
        return {"model": settings.model, "files": hash_files([path, *beside]), **changed}
    if settings.pretrained and os.path.sep in settings.pretrained:
        raise InputError(f"embed.clip.pretrained={settings.pretrained}: no such file")
    return {"model": settings.model, "pretrained": settings.pretrained, **changed}


def _is_by_path(settings: ClipSettings) -> bool:
    """Return whether weights are those of a file; open_clip takes a tag first, also where a file has its name."""
    if not settings.pretrained or not Path(settings.pretrained).is_file():
        return False
    if os.path.sep in settings.pretrained:
        return True
    import open_clip

    return not open_clip.pretrained.get_pretrained_cfg(settings.model, settings.pretrained)


def is_plain(settings: ClipSettings) -> bool:
    """Return whether open_clip by itself gives weights the preprocessing and activation that are asked for."""
    import open_clip

    if settings.preprocess is not None and settings.preprocess.size is not None:
        return False
    trained = plan_clip(settings, open_clip, _is_by_path(settings)).trained
    own = open_clip.get_model_config(settings.model)
    return not trained or trained == defaults(bool(own.get("quick_gelu")), open_clip)


def embedding_size(settings: ClipSettings) -> int | None:
    """Size of a CLIP's embeddings without loading it; None for names of a hub."""
    import open_clip

    folder = local_folder(settings)
    if folder is None and ":" in settings.model:
        return None
    name = settings.model if folder is None else f"{LOCAL_PREFIX}{folder}"
    config = open_clip.get_model_config(name)
    return None if config is None else config.get("embed_dim")


def identify_clip(settings: ClipSettings) -> dict[str, Any]:
    """Parts of a CLIP's identity that do not depend on how it is run; it is loaded to find them.

    Raises:
        InputError: it cannot be had.
    """
    return _identify(settings, fingerprint(clip_source(settings)))


@functools.lru_cache(maxsize=4)
def _identify(settings: ClipSettings, source: str) -> dict[str, Any]:
    import open_clip

    model, _, _, config = _load(settings, "float32", "cpu")
    return describe_function(model, config, open_clip)


def load_encoder(settings: EmbedSettings) -> ClipEncoder:
    """The encoder for resolved settings; kept while its files stay the same, so that one process holds one model."""
    return _load_encoder(settings, fingerprint(clip_source(settings.clip)))


@functools.lru_cache(maxsize=1)
def _load_encoder(settings: EmbedSettings, source: str) -> ClipEncoder:
    return ClipEncoder(settings)


def load_text_encoder(settings: EmbedSettings) -> ClipEncoder:
    """The encoder for resolved settings, without its image tower; cached as that of `load_encoder` is."""
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
        self._model, preprocess, self._tokenizer, config = _load(settings.clip, settings.dtype, settings.device)
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
        import open_clip

        is_cast = settings.dtype != "float32"  # rounded weights would give each dtype a CLIP of its own
        return {
            "source": clip_source(settings.clip),
            **(identify_clip(settings.clip) if is_cast else describe_function(self._model, config, open_clip)),
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


def _load(settings: ClipSettings, dtype: str, device: str) -> tuple[Any, Any, Any, dict[str, Any]]:
    """Model, preprocessing, tokenizer and config; never with weights that were not read.

    Raises:
        InputError: it cannot be had, or does not fit.
        SettingsError: a setting would have no effect.
    """
    import open_clip

    check_clip(settings)
    if local_folder(settings) is not None and Version(open_clip.__version__).major < 3:
        raise InputError(
            f"embed.clip.model={settings.model}: folders need open_clip_torch 3 or newer, here is "
            f"{open_clip.__version__}; give a model's name, and the path of its weights as pretrained"
        )
    try:
        with warnings.catch_warnings(), told_by_errors():
            plan = plan_clip(settings, open_clip, _is_by_path(settings))
            trained = plan.trained
            if plan.name.startswith(_HUB_PREFIX):
                trained = by_config(settings, hub_config(plan.name.removeprefix(_HUB_PREFIX), open_clip), open_clip)
            # weights trained with one activation give wrong embeddings under the other
            if settings.quick_gelu is None:
                warnings.filterwarnings("error", message=".*QuickGELU mismatch.*")
            else:
                warnings.filterwarnings("ignore", message=".*QuickGELU mismatch.*")
            later = plan.weights is not None
            weights = {"load_weights": False, "pretrained_text": False} if later else {"require_pretrained": True}
            model, _, preprocess = open_clip.create_model_and_transforms(
                plan.name, plan.pretrained, precision=_PRECISIONS[dtype], device=device,
                **weights, **_options(settings, trained),
            )  # fmt: skip
            if later:
                open_clip.load_checkpoint(model, str(plan.weights), strict=True)
            require_positions(model, plan, settings)
            tokenizer = open_clip.get_tokenizer(plan.name)
            config = open_clip.get_model_config(plan.name)
    except (InputError, SettingsError):
        raise
    except Exception as error:  # open_clip raises what torch, the hub and its own parsing raise
        raise explain(settings, error) from error
    if settings.quick_gelu is not None and settings.quick_gelu != has_quick_gelu(model):
        raise SettingsError(
            f"embed.clip.quick_gelu={str(settings.quick_gelu).lower()} has no effect on {settings.model}; leave it out"
        )
    return model.eval(), preprocess, tokenizer, config


def _options(settings: ClipSettings, trained: dict[str, Any]) -> dict[str, Any]:
    """open_clip's arguments for what is not left to it."""
    options = {f"image_{name}": trained[name] for name in PREPROCESS_FIELDS if name in trained}
    if settings.preprocess is not None and settings.preprocess.size is not None:
        options["force_image_size"] = settings.preprocess.size
    if "quick_gelu" in trained:
        options |= {"force_quick_gelu": True} if trained["quick_gelu"] else {"quick_gelu": False}
    return options

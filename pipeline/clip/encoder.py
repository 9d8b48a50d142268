"""CLIP encoder for images and captions.

Images are encoded as embeddings. Captions are encoded as embeddings and, if requested, token states (the text tower's
outputs for each token).

This is the only module that imports open_clip.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from packaging.version import Version

from ..compute.device import require_device
from ..contract.manifest import fingerprint
from ..errors import InputError, SettingsError
from .cost import ClipCost, count_cost
from .errors import explain, silence_library_logs
from .identity import describe_function, has_quick_gelu
from .packed_block import pack_blocks
from .pixels import Pixels
from .plan import hub_config, open_clip_defaults, plan_clip, trained_by_config
from .positions import require_positions
from .preprocess import PREPROCESS_FIELDS
from .settings import ClipSettings, EncoderSettings
from .source import HUB_PREFIX, LOCAL_PREFIX, ClipSource, clip_location, parse_source
from .text_tower import TextEmbeds, TextTower, probe_captions

__all__ = ["ClipEncoder", "check_clip", "clip_location", "clip_source", "identify_clip", "load_encoder"]

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # send no usage data unless the user asks for it

_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
"""open_clip precision names, keyed by the name of the torch dtype."""
_CPU_IMAGES = 32
"""Maximum number of images per forward pass of the image tower on the CPU.

At this size, activations fit in the CPU's caches. With 96 images per pass, each image takes 7% longer.
"""
_CHARACTERS_PER_TOKEN = 64
"""Maximum number of caption characters to tokenize, for each token of the context length.

Further characters are cut off before tokenization, because tokenizing a very long word takes minutes. Tokens have far
fewer characters than this on average, so the tokenizer would discard the rest of the caption anyway.
"""


def check_clip(settings: ClipSettings) -> None:
    """Check the settings of a CLIP model without loading the model.

    The names of models on the Hugging Face Hub are not checked.

    Raises:
        InputError: open_clip does not know the model or the tag of its weights; a local file or folder is missing or
            unusable; or it cannot be determined which image preprocessing or activation function (such as QuickGELU)
            the weights in a local file or folder need. The message lists similar names or the possible values.
    """
    import open_clip

    plan_clip(settings, _source(settings), open_clip)


def clip_source(settings: ClipSettings) -> dict[str, Any]:
    """Return a dictionary that describes where a CLIP model's weights come from, without loading the model.

    - `model`: model name. For a local folder, it is `local-dir`, without the path.
    - `pretrained`: open_clip tag of the weights; None for a model on the Hugging Face Hub.
    - `files`: SHA-256 of each weight and config file, keyed by file name. A model with local files has
      this key instead of `pretrained`.
    - `preprocess`, `quick_gelu`: preprocessing and activation settings, present only if they are set.

    Raises:
        InputError: a local file or folder is missing, or a folder has no usable weights.
    """
    return _source(settings).describe(settings)


def _source(settings: ClipSettings) -> ClipSource:
    return parse_source(settings, _is_tag)


def _is_tag(model: str, name: str) -> bool:
    import open_clip

    return bool(open_clip.pretrained.get_pretrained_cfg(model, name))


def is_plain(settings: ClipSettings) -> bool:
    """Return True if open_clip can load a CLIP model correctly from only its name and its weights (a tag or a file).

    Return False if open_clip also needs arguments for the image size, preprocessing or activation.
    """
    import open_clip

    if settings.preprocess is not None and settings.preprocess.size is not None:
        return False
    trained = plan_clip(settings, _source(settings), open_clip).trained
    config = open_clip.get_model_config(settings.model)
    return not trained or trained == open_clip_defaults(bool(config.get("quick_gelu")), open_clip)


def embedding_size(settings: ClipSettings) -> int | None:
    """Return the number of values in each embedding of a CLIP model, without loading the model.

    Return None if open_clip has no config for the model, if the config does not contain the size, or if the model is on
    the Hugging Face Hub.
    """
    import open_clip

    source = _source(settings)
    if source.kind == "hub":
        return None
    name = settings.model if source.folder is None else f"{LOCAL_PREFIX}{source.folder}"
    config = open_clip.get_model_config(name)
    return None if config is None else config.get("embed_dim")


def clip_cost(settings: ClipSettings) -> ClipCost | None:
    """Return the amount of computation that a CLIP model needs, without loading its weights.

    Return None if it cannot be determined, for example because the model's config is on the Hugging Face Hub and there
    is no network.
    """
    import open_clip

    return count_cost(settings, _source(settings), open_clip)


def identify_clip(settings: ClipSettings) -> dict[str, Any]:
    """Load a CLIP model and return its identity: a dictionary of the values that determine its embeddings.

    The values are the activation, the image preprocessing, a hash of the weights, and two hashes of the config. They do
    not depend on the device or the precision, so `clip_difference` can compare the identities of two models.

    Raises:
        InputError: the model cannot be loaded.
    """
    return _identify(settings, fingerprint(clip_source(settings)))


@functools.lru_cache(maxsize=4)
def _identify(settings: ClipSettings, source: str) -> dict[str, Any]:
    import open_clip

    model, _, _, config = _load(settings, "float32", "cpu")
    return describe_function(model, config, open_clip)


def load_encoder(settings: EncoderSettings) -> ClipEncoder:
    """Return an encoder with the given settings, reusing the cached encoder if it matches.

    Only the most recent encoder is cached, to save memory. It matches if it has the same settings and the model's local
    files have not changed since it was loaded.
    """
    return _load_encoder(settings, fingerprint(clip_source(settings.clip)))


@functools.lru_cache(maxsize=1)
def _load_encoder(settings: EncoderSettings, source: str) -> ClipEncoder:
    return ClipEncoder(settings)


def load_text_encoder(settings: EncoderSettings) -> ClipEncoder:
    """Return an encoder without an image tower, which encodes only captions.

    The most recent one is cached and reused as in `load_encoder`, but the two functions have separate caches.
    """
    return _load_text_encoder(settings, fingerprint(clip_source(settings.clip)))


@functools.lru_cache(maxsize=1)
def _load_text_encoder(settings: EncoderSettings, source: str) -> ClipEncoder:
    encoder = ClipEncoder(settings)
    encoder.drop_image_tower()
    return encoder


class ClipEncoder:
    """open_clip model with its preprocessing and tokenizer, which encodes images and captions as embeddings.

    Args:
        settings: CLIP model to load, device and dtype to run it on, and other options.

    Raises:
        InputError: the model is unknown, its weights are unavailable or do not fit the model, or the settings
            require token states, which the text tower does not provide.
    """

    def __init__(self, settings: EncoderSettings) -> None:
        require_device(settings.device)
        device, dtype = torch.device(settings.device), getattr(torch, settings.dtype)
        torch.set_num_threads(settings.threads)
        self._model, preprocess, self._tokenizer, config = _load(settings.clip, settings.dtype, settings.device)
        self._pixels = Pixels(preprocess, _longer_side(self._model.visual.image_size), device, dtype)
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

    def _describe(self, settings: EncoderSettings, config: dict[str, Any]) -> dict[str, Any]:
        import open_clip

        # weights are hashed in float32, because rounding to another dtype would change the hash
        is_cast = settings.dtype != "float32"
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
        """Remove the image tower to free its memory. The encoder can then encode only captions."""
        self._model.visual = None

    def decode(self, data: bytes) -> torch.Tensor:
        """Decode and preprocess one image for `encode_images`. This method is thread-safe.

        Raises:
            PixelError: the bytes are not an image, or the image has too many pixels.
        """
        return self._pixels.decode(data)

    def encode_images(self, images: Sequence[torch.Tensor]) -> torch.Tensor:
        """Encode preprocessed images, as returned by `decode`.

        Returns:
            Embeddings `[B, D]` (D values for each of B images), float32, not normalised, on the encoder's device. On a
            GPU, the call returns before the embeddings have been computed.
        """
        return self.encode_pixels(self.prepare(images))

    def encode_texts(self, captions: list[str], token_states: bool = False) -> TextEmbeds:
        """Encode captions as pooled embeddings. The results are on the CPU, in the order of the captions.

        If `token_states` is True, also return the token states, which are the text tower's outputs for each token.
        """
        return self.encode_tokens(self.tokenize(captions), token_states)

    def prepare(self, images: Sequence[torch.Tensor]) -> torch.Tensor:
        """Combine B decoded images into one batch for `encode_pixels`, on the encoder's device.

        The batch has the shape `[B, 3, H, W]`, where H is the height and W the width of the images.
        """
        return self._pixels.batch(images)

    @torch.inference_mode()
    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode a batch of images that `prepare` returned.

        The embeddings have the same shape, dtype and device as those that `encode_images` returns.
        """
        passes = torch.split(pixels, _CPU_IMAGES) if pixels.is_cpu else [pixels]
        return torch.cat([torch.as_tensor(self._model.encode_image(images)) for images in passes]).float()

    def tokenize(self, captions: list[str]) -> torch.Tensor:
        """Convert B captions to tokens `[B, T]`, int64, where T is the context length.

        Shorter captions are padded to T tokens, and longer captions are cut off.
        """
        longest = _CHARACTERS_PER_TOKEN * int(self._model.context_length)
        # byte-pair encoding a 100,000-letter word takes minutes, although a few hundred letters fill the context
        shortened = [c if len(c) <= longest else " ".join(c.split())[:longest] for c in captions]
        return torch.as_tensor(self._tokenizer(shortened))

    def encode_tokens(self, tokens: torch.Tensor, token_states: bool = False) -> TextEmbeds:
        """Encode tokens `[B, T]` that `tokenize` returned: T tokens for each of B captions.

        The result is the same as if the captions were passed to `encode_texts`.
        """
        return self._text.encode(tokens, token_states)


def _longer_side(size: int | tuple[int, int]) -> int:
    return size if isinstance(size, int) else max(size)


def _load(settings: ClipSettings, dtype: str, device: str) -> tuple[Any, Any, Any, dict[str, Any]]:
    """Load a CLIP model with open_clip.

    If the weights are missing, raise an error. By default, open_clip would return a model with random weights instead.

    Args:
        settings: settings of the model.
        dtype, device: dtype and device of the model's weights.

    Returns:
        The model in evaluation mode, its image transform for inference, its tokenizer, and its open_clip config.

    Raises:
        InputError: the model or its weights are unavailable, or the weights do not fit the model.
        SettingsError: `quick_gelu` is set, but the model ignores it.
    """
    import open_clip

    source = _source(settings)
    plan = plan_clip(settings, source, open_clip)
    if source.folder is not None and Version(open_clip.__version__).major < 3:
        raise InputError(
            f"embed.clip.model={settings.model}: folders need open_clip_torch 3 or newer, here is "
            f"{open_clip.__version__}; give a model's name, and the path of its weights as pretrained"
        )
    try:
        with warnings.catch_warnings(), silence_library_logs():
            trained = plan.trained
            if plan.name.startswith(HUB_PREFIX):
                stored = hub_config(plan.name.removeprefix(HUB_PREFIX), open_clip)
                trained = trained_by_config(settings, stored, open_clip)
            # embeddings are wrong if the activation is not the one that the weights were trained with
            if settings.quick_gelu is None:
                warnings.filterwarnings("error", message=".*QuickGELU mismatch.*")
            else:
                warnings.filterwarnings("ignore", message=".*QuickGELU mismatch.*")
            loads_file = plan.weights is not None
            weights = {"load_weights": False, "pretrained_text": False} if loads_file else {"require_pretrained": True}
            model, _, preprocess = open_clip.create_model_and_transforms(
                plan.name, plan.pretrained, precision=_PRECISIONS[dtype], device=device,
                **weights, **_options(settings, trained),
            )  # fmt: skip
            if loads_file:
                open_clip.load_checkpoint(model, str(plan.weights), strict=True)
            require_positions(model, plan, settings)
            tokenizer = open_clip.get_tokenizer(plan.name)
            config = open_clip.get_model_config(plan.name)
    except (InputError, SettingsError):
        raise
    except Exception as error:  # open_clip lets any exception from torch, the hub or a parser propagate
        raise explain(settings, error) from error
    if settings.quick_gelu is not None and settings.quick_gelu != has_quick_gelu(model):
        raise SettingsError(
            f"embed.clip.quick_gelu={str(settings.quick_gelu).lower()} has no effect on {settings.model}; leave it out"
        )
    return model.eval(), preprocess, tokenizer, config


def _options(settings: ClipSettings, trained: dict[str, Any]) -> dict[str, Any]:
    """Return keyword arguments for open_clip that set the preprocessing, activation and image size of a model.

    Args:
        settings: settings of the model; only the image size is used.
        trained: preprocessing and activation values to pass, keyed by name in `TRAINED_FIELDS`.
    """
    options = {f"image_{name}": trained[name] for name in PREPROCESS_FIELDS if name in trained}
    if settings.preprocess is not None and settings.preprocess.size is not None:
        options["force_image_size"] = settings.preprocess.size
    if "quick_gelu" in trained:
        options |= {"force_quick_gelu": True} if trained["quick_gelu"] else {"quick_gelu": False}
    return options

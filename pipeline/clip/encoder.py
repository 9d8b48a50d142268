"""CLIP encoder for images and captions.

Images are encoded as embeddings. Captions are encoded as embeddings and, if requested, token states (the text tower's
outputs for each token).

This is the only module that imports open_clip.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import torch

from ..compute.device import require_device
from ..contract.empty_inputs import EmptyInputs
from ..contract.manifest import fingerprint
from ..errors import InputError
from .convert.load import LoadedClip
from .convert.transformers_config import read_config
from .cost import ClipCost, count_cost
from .identity import describe_function
from .loading import check_source, load_clip
from .packed_block import pack_blocks
from .pixels import Pixels
from .settings import ClipSettings, EncoderSettings
from .source import LOCAL_PREFIX, ClipSource, clip_location, parse_source
from .text_tower import TextEmbeds, TextTower, probe_captions

__all__ = ["ClipEncoder", "check_clip", "clip_location", "clip_source", "identify_clip", "load_encoder"]

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # send no usage data unless the user asks for it

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

    check_source(settings, _source(settings), open_clip)


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


def load_plain_clip(settings: ClipSettings, device: str) -> LoadedClip:
    """Load a CLIP model in float32, without the optimisations of `ClipEncoder`, to run it with another package.

    Raises:
        InputError: the model cannot be loaded.
    """
    return _load(settings, "float32", device)


def embedding_size(settings: ClipSettings) -> int | None:
    """Return the number of values in each embedding of a CLIP model, without loading the model.

    Return None if open_clip has no config for the model, if the config does not contain the size, or if the config is
    not a local file.
    """
    import open_clip

    source = _source(settings)
    if source.kind == "transformers" and source.folder is not None:
        return int(read_config(source.folder)[1]["embed_dim"])
    if source.kind in ("hub", "transformers", "openai"):
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

    loaded = _load(settings, "float32", "cpu")
    return describe_function(loaded.model, loaded.config, open_clip)


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
        loaded = _load(settings.clip, settings.dtype, settings.device)
        self._model, self._tokenizer = loaded.model, loaded.tokenizer
        self._image_options: dict[str, Any] = {"device": device, "dtype": dtype}
        self._pixels = Pixels(loaded.preprocess, max(self._image_sides()), device, dtype)
        self._text = TextTower(self._model, device, settings.batch_size)
        self._text.probe(self._tokenizer(probe_captions()))
        if settings.token_states and self._text.token_width is None:
            raise InputError(
                f"{settings.clip.model}: this text tower gives no token states; set embed.token_states=false"
            )
        self.identity = self._describe(settings, loaded)
        if settings.compile:
            self._model.visual.compile()
        else:
            pack_blocks(self._model.visual)
        if self._text.blocks is not None:
            pack_blocks(self._text.blocks)

    def _describe(self, settings: EncoderSettings, loaded: LoadedClip) -> dict[str, Any]:
        import open_clip

        # weights are hashed in float32, because rounding to another dtype would change the hash
        is_cast = settings.dtype != "float32"
        return {
            "source": clip_source(settings.clip),
            **(identify_clip(settings.clip) if is_cast else describe_function(self._model, loaded.config, open_clip)),
            "dtype": settings.dtype,
            "normalised": True,
            "text_cut": self._text.is_cut,
            "embed_dim": int(loaded.config["embed_dim"]),
            "token_width": self._text.token_width,
            "context_length": int(self._model.context_length),
            **({} if loaded.processor_sha256 is None else {"processor_sha256": loaded.processor_sha256}),
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

    def check_image(self, data: bytes) -> None:
        """Read the header of an image, and check the size of the image. Its pixels are not decoded.

        Raises:
            PixelError: the bytes are not an image, or the image has too many pixels.
        """
        self._pixels.check(data)

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

    def encode_empty(self) -> EmptyInputs:
        """Encode an image whose pixels are zero after preprocessing, and the empty text.

        Token states are included whenever the text tower provides them. The embeddings are not normalised.

        Raises:
            InputError: the CLIP model gives NaN or infinity.
        """
        pixels = torch.zeros(1, 3, *self._image_sides(), **self._image_options)
        text = self.encode_texts([""], token_states=self._text.token_width is not None)
        encoded = {"image_embed": self.encode_pixels(pixels)[0], "text_embed": text.text_embed[0]}
        if text.token_states is not None:
            encoded["token_states"] = text.token_states
        arrays = {name: value.cpu().numpy() for name, value in encoded.items()}
        return EmptyInputs.from_tensors(arrays, "the CLIP model")

    def _image_sides(self) -> tuple[int, int]:
        """Return the height and the width of the image tower's input in pixels."""
        size: int | tuple[int, int] = self._model.visual.image_size
        return (size, size) if isinstance(size, int) else size

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


def _load(settings: ClipSettings, dtype: str, device: str) -> LoadedClip:
    import open_clip

    return load_clip(settings, _source(settings), dtype, device, open_clip)

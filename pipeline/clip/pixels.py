"""Encoded images -> what a CLIP's image tower takes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torchvision.transforms import Compose, Normalize, ToTensor  # type: ignore[import-untyped]

from ..images.upright import eight_bit_image, orientation, turn_image

# what Pillow would rather be given; the palette's own colours are meant
warnings.filterwarnings("ignore", message="Palette images with Transparency")

_MAX_PIXELS = 89_478_485
"""Of an image, or of what it becomes when its shorter side is resized: Pillow's own bound against bombs, 256 MB."""


class PixelError(Exception):
    """An image that gives no pixels; the message says why."""


class Pixels:
    """The preprocessing of an open_clip model, in two parts.

    `decode` runs in threads beside the model, and resizes and crops. `batch` divides by 255 and normalises all images
    of a batch at once: the same numbers, without a torch thread pool in every decoding thread. Preprocessing that does
    not end in these two steps is left whole.

    Args:
        preprocess: open_clip's transform for inference.
        image_size: side in pixels that it makes.
        device, dtype: what `batch` makes.
    """

    def __init__(self, preprocess: Any, image_size: int, device: torch.device, dtype: torch.dtype) -> None:
        self._preprocess, self._image_size, self._device, self._dtype = preprocess, image_size, device, dtype
        steps = list(getattr(preprocess, "transforms", []))
        self._mean: torch.Tensor | None = None
        if len(steps) >= 2 and isinstance(steps[-2], ToTensor) and isinstance(steps[-1], Normalize):
            self._preprocess = Compose(steps[:-2])
            mean, std = (torch.as_tensor(values, dtype=torch.float32) for values in (steps[-1].mean, steps[-1].std))
            self._mean, self._std = mean.view(3, 1, 1).to(device), std.view(3, 1, 1).to(device)

    def decode(self, data: bytes) -> torch.Tensor:
        """One encoded image -> uint8 `[H, W, 3]`, or float32 `[3, H, W]` where preprocessing is whole.

        The image is turned as its EXIF says, and scaled to 8 bits per channel, before it is preprocessed.

        Safe in several threads at once.

        Raises:
            PixelError: the bytes are no image, or one of too many pixels.
        """
        try:
            with Image.open(io.BytesIO(data)) as image:
                self._check_size(*image.size)
                turned = turn_image(eight_bit_image(image), orientation(image, data))
                pixels = self._preprocess(turned)
                return pixels if self._mean is None else torch.from_numpy(np.array(pixels))
        except PixelError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise PixelError(f"image_too_large: {error}") from None
        except UnidentifiedImageError:  # its message holds an address in memory, which differs from run to run
            raise PixelError("image_decode: no image of a known kind") from None
        except Exception as error:  # a decoder raises anything on hostile bytes
            raise PixelError(f"image_decode: {str(error)[:200]}") from None

    def batch(self, images: Sequence[torch.Tensor]) -> torch.Tensor:
        """Decoded images -> `[B, 3, H, W]` on the device."""
        stacked = torch.stack(list(images))
        if self._device.type == "cuda":
            stacked = stacked.pin_memory()
        stacked = stacked.to(self._device, non_blocking=True)
        if self._mean is not None:
            stacked = stacked.permute(0, 3, 1, 2).float().div_(255).sub_(self._mean).div_(self._std)
        return stacked.to(self._dtype)

    def _check_size(self, width: int, height: int) -> None:
        if width * height > _MAX_PIXELS:
            raise PixelError(f"image_too_large: {width} x {height} pixels, more than {_MAX_PIXELS:,}")
        # a thin image grows when its shorter side becomes that of the model
        if self._image_size**2 * max(width, height) / max(1, min(width, height)) > _MAX_PIXELS:
            raise PixelError(f"image_too_thin: {width} x {height} pixels")

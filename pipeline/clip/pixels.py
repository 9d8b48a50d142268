"""Image decoding and preprocessing for the image tower of a CLIP model."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torchvision.transforms import Compose, Normalize, ToTensor  # type: ignore[import-untyped]

from ..images.upright import eight_bit_image, orientation, turn_image

# Pillow recommends converting palette images with transparency to RGBA, but their colours are correct without it
warnings.filterwarnings("ignore", message="Palette images with Transparency")

_MAX_PIXELS = 89_478_485
"""Maximum number of pixels in an image.

The limit applies to the stored image, and also to the resized image before it is cropped. It is Pillow's default limit
against decompression bombs. An RGB image of this size takes 256 MiB.
"""


class PixelError(Exception):
    """Raised when an image cannot be decoded or has too many pixels.

    The message consists of an error code (`image_decode`, `image_too_large` or `image_too_thin`), a colon and the
    reason, as in `image_decode: no image of a known kind`.
    """


class Pixels:
    """Image preprocessing of an open_clip model, split into two steps, `decode` and `batch`.

    `decode` resizes and crops one image, and is called in worker threads. `batch` divides the pixels of a whole batch
    by 255 and normalises them. The result is the same as calling the model's transform on each image.

    The split keeps torch operations out of the worker threads, because each thread would otherwise start its own torch
    thread pool. If the transform does not end in `ToTensor` and `Normalize`, `decode` applies the whole
    transform, and `batch` does not normalise again.

    Args:
        preprocess: open_clip's inference transform.
        image_size: longer side of the transform's output, in pixels.
        device, dtype: device and dtype of batches.
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
        """Decode and preprocess one image. This method is thread-safe.

        The image is first rotated according to its EXIF orientation and converted to 8 bits per channel.

        Returns:
            Pixels as uint8 `[H, W, 3]`, where H is the height and W the width. If the transform does not end in
            `ToTensor` and `Normalize`, return the output of the transform instead: normalised float32 `[3, H, W]`.

        Raises:
            PixelError: the bytes are not an image, or the image has too many pixels.
        """
        with self._opened(data) as image:
            turned = turn_image(eight_bit_image(image), orientation(image, data))
            pixels = self._preprocess(turned)
            return pixels if self._mean is None else torch.from_numpy(np.array(pixels))

    def check(self, data: bytes) -> None:
        """Read the header of an image, and check the size of the image. Its pixels are not decoded.

        Raises:
            PixelError: the bytes are not an image, or the image has too many pixels.
        """
        with self._opened(data):
            pass

    @contextlib.contextmanager
    def _opened(self, data: bytes) -> Iterator[Image.Image]:
        """Context manager that opens an image and checks its size. Errors in its body also become a `PixelError`."""
        try:
            with Image.open(io.BytesIO(data)) as image:
                self._check_size(*image.size)
                yield image
        except PixelError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise PixelError(f"image_too_large: {error}") from None
        except UnidentifiedImageError:  # Pillow's message contains a memory address, which differs between runs
            raise PixelError("image_decode: no image of a known kind") from None
        except Exception as error:  # decoders can raise any exception on malicious bytes
            raise PixelError(f"image_decode: {str(error)[:200]}") from None

    def batch(self, images: Sequence[torch.Tensor]) -> torch.Tensor:
        """Combine B decoded images into a normalised batch `[B, 3, H, W]`, where H is the height and W the width.

        The batch has the device and dtype given to `Pixels`. Images that `decode` has already normalised are not
        normalised again.

        Args:
            images: images of the same size, as returned by `decode`.
        """
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
        # resizing the shorter side to the model's size can enlarge a thin image
        if self._image_size**2 * max(width, height) / max(1, min(width, height)) > _MAX_PIXELS:
            raise PixelError(f"image_too_thin: {width} x {height} pixels")

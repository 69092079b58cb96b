"""From image files to a model's input: read, turn upright, resize and crop to the model's square, normalize."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """The preprocessing of a model's images. Calling it reads files.

    Attributes:
      image_size: pixels of the square input.
      mean, std: per channel, of values in [0, 1].
      interpolation: "bicubic", "bilinear" or "nearest".
      crop_fraction: share of the resized image that the central crop keeps.
      crop_mode: "center", which keeps the proportions, or "squash": the whole image is resized to a square first.
    """

    image_size: int
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    crop_fraction: float = 0.875
    crop_mode: str = "center"

    def __call__(self, images: Any) -> np.ndarray:
        """Prepares images of any size for the model.

        Args:
          images: one or several, each a path, a ``PIL.Image`` or a uint8 array (height, width) or (height, width,
            channels).

        Returns:
          float32 (count, image_size, image_size, channels).

        Raises:
          ValueError: no images, an array of another form, or a file that is no image.
          OSError: a file can't be read.
        """
        given = [images] if _is_one(images) else list(images)
        if not given:
            raise ValueError("there are no images: give paths, PIL images or uint8 arrays")
        return self.normalize(np.stack([self.fitted(image) for image in given]))

    def fitted(self, image: Any) -> np.ndarray:
        """One image, as :meth:`__call__` takes it, resized and cropped: uint8 (image_size, image_size, channels)."""
        from PIL import Image

        picture = _picture(image)
        channels = len(self.mean)
        if channels == 1 and picture.mode != "L":
            picture = picture.convert("L")
        # The box of the central crop in the original: one resampling, and no larger image in between.
        sides = picture.size if self.crop_mode == "squash" else (min(picture.size),) * 2
        width, height = (side * self.crop_fraction for side in sides)
        left, top = (picture.width - width) / 2, (picture.height - height) / 2
        resampling = Image.Resampling[self.interpolation.upper()]
        picture = picture.resize(
            (self.image_size, self.image_size), resampling, box=(left, top, left + width, top + height)
        )
        array = np.asarray(picture)
        return np.repeat(array[..., None], channels, axis=-1) if array.ndim == 2 else array

    def normalize(self, images: Any) -> np.ndarray:
        """Normalizes uint8 images (..., channels) of the right size: float32, minus the mean, divided by the standard
        deviation.

        Raises:
          ValueError: images of another dtype.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8:
            raise ValueError(f"images to normalize must be uint8, 0 to 255, got {images.dtype}")
        return (
            (images / np.float32(255) - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        ).astype(np.float32)


def _is_one(images: Any) -> bool:
    if isinstance(images, np.ndarray):
        return images.ndim <= 3
    return isinstance(images, str | os.PathLike) or hasattr(images, "convert")  # a path, or a PIL image


def are_files(images: Any) -> bool:
    """Whether ``images`` are paths or PIL images, one or several, which must be preprocessed first."""
    first = next(iter(images), None) if isinstance(images, list | tuple) else images
    return isinstance(first, str | os.PathLike) or hasattr(first, "convert")


def _picture(image: Any) -> Any:
    """An upright PIL image of 8 bits a channel, gray ("L") or "RGB"."""
    from PIL import Image

    import pictures

    if isinstance(image, str | os.PathLike):
        return pictures.read(image)
    if isinstance(image, np.ndarray):
        if (
            image.dtype != np.uint8
            or image.ndim not in (2, 3)
            or (image.ndim == 3 and image.shape[-1] not in (1, 3, 4))
        ):
            raise ValueError(
                f"an image as an array is uint8 (height, width) or (height, width, 1, 3 or 4), got {image.dtype} "
                f"{image.shape}; "
                "normalized floating point images go to the model as they are, with a batch axis in front"
            )
        image = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image)
    elif not isinstance(image, Image.Image):
        raise ValueError(f"an image is a path, a PIL image or a uint8 array, got {type(image).__name__}")
    return pictures.upright(image)

"""Preprocessing and augmentation of images: thin wrappers of PIL, one image at a time.

All random choices use the generator that is passed in, and only augmentations that are switched on draw from it.

- fit "crop": random resized crop to train (C. Szegedy et al., "Going Deeper with Convolutions", 2015); to evaluate, the
  shorter side is resized to size / crop_fraction and the center is cropped; for models with crop_mode "squash", both
  sides are resized.
- fit "whole": the whole image is resized to the square, for sets of small, centered images.
- horizontal flip; random affine maps; color jitter; RandAugment (E. Cubuk et al., arXiv:1909.13719).

Mixup, CutMix and random erasing act on the batch, on the device: :mod:`tasks.mixing`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol

import numpy as np
from PIL import Image, ImageEnhance

from tasks.rand_augment import RandAugment

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


class Preprocess(Protocol):
    """The input format of a model (see ``zoo.preprocess``).

    Attributes:
      image_size: side of the square input, pixels.
      mean: per channel, for images in [0, 1]; its length is the number of channels.
      std: standard deviation per channel, for images in [0, 1].
      interpolation: "nearest", "bilinear" or "bicubic".
      crop_fraction: fraction of the shorter side that evaluation keeps.
      crop_mode: "center", or "squash" to keep the fraction of both sides.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_fraction: float
    crop_mode: str


@dataclasses.dataclass(frozen=True)
class Augment:
    """How images are fitted to the model's input, and augmented in training.

    Attributes:
      fit: "crop" or "whole".
      crop_scale: range of the area of random resized crops, as a fraction of the image's.
      crop_ratio: range of their aspect ratio.
      flip: probability of a horizontal flip.
      rotation: maximum rotation in either direction, degrees.
      translation: maximum shift in either direction, as a fraction of the side.
      zoom: maximum change of scale: a factor from 1 / (1 + zoom) to 1 + zoom.
      shear: maximum horizontal shear in either direction, as a fraction of the side.
      color_jitter: maximum relative change of brightness, contrast and saturation.
      rand_augment: in timm's notation, such as "rand-m9-mstd0.5-inc1"; "" for none.

    Raises:
      ValueError: an unknown ``fit``.
    """

    fit: str = "crop"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    rotation: float = 0.0
    translation: float = 0.0
    zoom: float = 0.0
    shear: float = 0.0
    color_jitter: float = 0.0
    rand_augment: str = ""

    def __post_init__(self) -> None:
        if self.fit not in ("crop", "whole"):
            raise ValueError(f"augment.fit is 'crop' or 'whole', not {self.fit!r}")


def crop_box(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Samples a random resized crop: (left, top, right, bottom), pixels, inside the image.

    After ten tries that do not fit, it is the largest centered box whose aspect ratio is in range.
    """
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


class Transform:
    """Fits and augments images for one model.

    Args:
      augment: the augmentation of training.
      preprocess: the model's input format.
      image_size: side of the square, pixels, which replaces the one in ``preprocess``.

    Raises:
      ValueError: an unknown interpolation or crop mode.
    """

    def __init__(self, augment: Augment, preprocess: Preprocess, image_size: int | None = None):
        if preprocess.interpolation not in RESAMPLING:
            raise ValueError(f"interpolation is one of {', '.join(RESAMPLING)}, not {preprocess.interpolation!r}")
        if preprocess.crop_mode not in ("center", "squash"):
            raise ValueError(f"crop_mode is 'center' or 'squash', not {preprocess.crop_mode!r}")
        self.augment = augment
        self.size = int(image_size or preprocess.image_size)
        self.channels = len(preprocess.mean)
        self.crop_fraction, self.crop_mode = float(preprocess.crop_fraction), preprocess.crop_mode
        self.resampling = RESAMPLING[preprocess.interpolation]
        self.fill = tuple(round(255 * m) for m in preprocess.mean)
        self.gray_fill = round(255 * sum(preprocess.mean) / len(preprocess.mean))
        self.rand_augment = RandAugment.parse(augment.rand_augment) if augment.rand_augment else None
        self.has_affine = any((augment.rotation, augment.translation, augment.zoom, augment.shear))

    def to_mode(self, image: Image.Image) -> Image.Image:
        """Returns the image, converted to gray for a model of one channel; gray images stay gray until
        :meth:`to_array`.
        """
        return image.convert("L") if self.channels == 1 and image.mode != "L" else image

    def fitted(self, image: Image.Image) -> Image.Image:
        """Returns the image preprocessed for evaluation, a square of the model's size."""
        image = self.to_mode(image)
        if self.augment.fit == "whole":
            return (
                image if image.size == (self.size, self.size) else image.resize((self.size, self.size), self.resampling)
            )
        # the center crop's box in the original image: a single resampling, without a larger image in between
        sides = image.size if self.crop_mode == "squash" else (min(image.size),) * 2
        width, height = (side * self.crop_fraction for side in sides)
        left, top = (image.width - width) / 2, (image.height - height) / 2
        return image.resize((self.size, self.size), self.resampling, box=(left, top, left + width, top + height))

    def varied(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Returns a randomly augmented image for training, a square of the model's size."""
        augment = self.augment
        image = self.to_mode(image)
        if augment.fit == "whole":
            image = self.fitted(image)
        else:
            box = crop_box(image.width, image.height, augment.crop_scale, augment.crop_ratio, rng)
            image = image.resize((self.size, self.size), self.resampling, box=box)
        if augment.flip and rng.random() < augment.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.has_affine:
            image = self._affine(image, rng)
        if self.rand_augment is not None:
            image = self.rand_augment(image, rng, self.gray_fill if image.mode == "L" else self.fill)
        if augment.color_jitter:
            for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                image = enhance(image).enhance(
                    rng.uniform(max(0.0, 1 - augment.color_jitter), 1 + augment.color_jitter)
                )
        return image

    def to_array(self, image: Image.Image) -> np.ndarray:
        """Returns (size, size, channels) uint8; a gray image is repeated over the model's channels."""
        array = np.asarray(image)
        return np.broadcast_to(array[..., None], (*array.shape, self.channels)) if array.ndim == 2 else array

    def _affine(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        turn, x, y, zoom, shear = (2 * rng.random(5) - 1).tolist()
        augment = self.augment
        angle, factor = math.radians(turn * augment.rotation), (1 + augment.zoom) ** -zoom
        a, b = math.cos(angle) * factor, math.sin(angle) * factor
        shear *= augment.shear
        matrix = (a, b + a * shear, -b, a - b * shear)  # output to input coordinates, about the center
        center = self.size / 2  # PIL maps pixel centers, which lie at halves
        offset = (
            center - matrix[0] * center - matrix[1] * center + x * augment.translation * self.size,
            center - matrix[2] * center - matrix[3] * center + y * augment.translation * self.size,
        )
        data = (*matrix[:2], offset[0], *matrix[2:], offset[1])
        return image.transform(image.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)

"""Turning an image into a training or an evaluation example: thin calls of PIL, one image at a time.

Every random choice is drawn from the generator that is passed in, and only what is switched on draws.

- fit "crop": random resized crop to train (C. Szegedy et al., "Going Deeper with Convolutions", 2015);
  to evaluate, the shorter side is resized to size / crop_fraction and the center cut out; where the
  model says "squash", both sides are.
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
    """What a model wants of its images (``zoo.preprocess`` gives it).

    Attributes:
      image_size: side of the square input, pixels.
      mean: per channel, of images in [0, 1]; its length is the number of channels.
      std: per channel.
      interpolation: "nearest", "bilinear" or "bicubic".
      crop_fraction: the part of the shorter side that evaluation keeps.
      crop_mode: "center", or "squash": of both sides.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_fraction: float
    crop_mode: str


@dataclasses.dataclass(frozen=True)
class Augment:
    """How images are fitted to the model's input, and varied in training.

    Attributes:
      fit: "crop" or "whole".
      crop_scale: range of the area of random resized crops, as a part of the image's.
      crop_ratio: range of their aspect ratio.
      flip: probability of a horizontal flip.
      rotation: greatest rotation either way, degrees.
      translation: greatest shift either way, as a part of the side.
      zoom: greatest change of scale: a factor from 1 / (1 + zoom) to 1 + zoom.
      shear: greatest horizontal shear either way, as a part of the side.
      color_jitter: greatest change of brightness, contrast and saturation, as a part of 1.
      rand_augment: as timm writes it, "rand-m9-mstd0.5-inc1"; "" is none.
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
    """Draws a random resized crop: (left, top, right, bottom), pixels, inside the image.

    Ten tries; where none fits, the largest centered box whose aspect ratio is in range.
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
    """Fits and varies images for one model.

    Args:
      augment: what is done in training.
      preprocess: what the model wants.
      image_size: side of the square, pixels, in place of the one in ``preprocess``.
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
        """Returns it in gray for a model of one channel; gray images stay gray to the end."""
        return image.convert("L") if self.channels == 1 and image.mode != "L" else image

    def fitted(self, image: Image.Image) -> Image.Image:
        """Returns the evaluation form, a square of the model's size."""
        image = self.to_mode(image)
        if self.augment.fit == "whole":
            return (
                image if image.size == (self.size, self.size) else image.resize((self.size, self.size), self.resampling)
            )
        # the box that the center crop has in the original: one resampling, no larger image in between
        sides = image.size if self.crop_mode == "squash" else (min(image.size),) * 2
        width, height = (side * self.crop_fraction for side in sides)
        left, top = (image.width - width) / 2, (image.height - height) / 2
        return image.resize((self.size, self.size), self.resampling, box=(left, top, left + width, top + height))

    def varied(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Returns a training form, a square of the model's size."""
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

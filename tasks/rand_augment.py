"""RandAugment: a few random distortions of the same magnitude (E. Cubuk et al., arXiv:1909.13719).

The semantics, operations and ranges are those of timm's "increasing" set, with which DeiT and its successors were
trained: each layer samples one of fifteen operations, applies it with probability p, and perturbs its magnitude by a
normal of standard deviation mstd, clipped to [0, 10].
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

Fill = int | tuple[int, ...]
RESAMPLE = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)


@dataclasses.dataclass(frozen=True)
class Settings:
    """One application of an operation.

    Attributes:
      level: magnitude / 10, in [0, 1].
      sign: 1 or -1, for operations with two directions.
      resample: interpolation of geometric operations.
      fill: value of pixels from outside the image.
    """

    level: float
    sign: int
    resample: Image.Resampling
    fill: Fill


def _affine(image: Image.Image, matrix: tuple[float, ...], settings: Settings) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, settings.resample, fillcolor=settings.fill)


def _enhance(enhancer: Any) -> Callable[[Image.Image, Settings], Image.Image]:
    return lambda image, settings: enhancer(image).enhance(max(0.1, 1.0 + settings.sign * 0.9 * settings.level))


def _solarize_add(image: Image.Image, settings: Settings) -> Image.Image:
    add = min(128, int(110 * settings.level))
    table = [min(255, i + add) if i < 128 else i for i in range(256)]
    return image.point(table * len(image.getbands()))


def _posterize(image: Image.Image, settings: Settings) -> Image.Image:
    dropped = 4 + int(4 * settings.level)  # all eight bits at the maximum level, which ImageOps.posterize refuses
    return image.point([i >> dropped << dropped for i in range(256)] * len(image.getbands()))


def _solarize(image: Image.Image, settings: Settings) -> Image.Image:
    return ImageOps.solarize(image, 256 - min(256, int(256 * settings.level)))


OPERATIONS: dict[str, Callable[[Image.Image, Settings], Image.Image]] = {
    "auto_contrast": lambda image, settings: ImageOps.autocontrast(image),
    "equalize": lambda image, settings: ImageOps.equalize(image),
    "invert": lambda image, settings: ImageOps.invert(image),
    "rotate": lambda image, settings: image.rotate(
        30 * settings.sign * settings.level, resample=settings.resample, fillcolor=settings.fill
    ),
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": lambda image, settings: _affine(image, (1, 0.3 * settings.sign * settings.level, 0, 0, 1, 0), settings),
    "shear_y": lambda image, settings: _affine(image, (1, 0, 0, 0.3 * settings.sign * settings.level, 1, 0), settings),
    "translate_x": lambda image, settings: _affine(
        image, (1, 0, 0.45 * settings.sign * settings.level * image.width, 0, 1, 0), settings
    ),
    "translate_y": lambda image, settings: _affine(
        image, (1, 0, 0, 0, 1, 0.45 * settings.sign * settings.level * image.height), settings
    ),
}
_NAMES = tuple(OPERATIONS)


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """The policy.

    Attributes:
      magnitude: strength, 0 to 10.
      layers: number of operations sampled for an image.
      spread: standard deviation of the magnitude.
      probability: probability that a sampled operation is applied.
    """

    magnitude: float = 10.0
    layers: int = 2
    spread: float = 0.0
    probability: float = 0.5

    @classmethod
    def parse(cls, text: str) -> RandAugment:
        """Reads timm's notation: "rand-m9-n2-p0.5-mstd0.5-inc1"; inc1 must be there.

        Raises:
          ValueError: anything else.
        """
        head, *sections = text.split("-")
        found = [re.fullmatch(r"(mstd|inc|m|n|p)(\d+(?:\.\d*)?)", section) for section in sections]
        pairs = {match[1]: match[2] for match in found if match}
        if head != "rand" or None in found or pairs.pop("inc", "0") != "1":
            raise ValueError(
                f"rand_augment is written 'rand-m9-n2-p0.5-mstd0.5-inc1' (inc1 required, the rest optional), not "
                f"{text!r}"
            )
        return cls(
            magnitude=float(pairs.get("m", cls.magnitude)),
            layers=int(float(pairs.get("n", cls.layers))),
            spread=float(pairs.get("mstd", cls.spread)),
            probability=float(pairs.get("p", cls.probability)),
        )

    def __call__(self, image: Image.Image, rng: np.random.Generator, fill: Fill) -> Image.Image:
        """Returns the distorted image, of the same size and mode ("L" or "RGB")."""
        for which in rng.integers(len(_NAMES), size=self.layers):
            if rng.random() >= self.probability:
                continue
            magnitude = min(10.0, max(0.0, rng.normal(self.magnitude, self.spread)))
            sign, resample = (int(bit) for bit in rng.integers(2, size=2))
            image = OPERATIONS[_NAMES[which]](image, Settings(magnitude / 10, 2 * sign - 1, RESAMPLE[resample], fill))
        return image

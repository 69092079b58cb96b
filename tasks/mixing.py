"""Augmentation of a whole batch, on the device: mixup, CutMix and random erasing.

- mixup: H. Zhang et al., arXiv:1710.09412. CutMix: S. Yun et al., arXiv:1905.04899. Each image is mixed with its mirror
  in the batch (the first with the last), as in timm, and targets too.
- Random erasing: Z. Zhong et al., arXiv:1708.04896, filled with normal noise (timm's mode "pixel").
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Mixing:
    """How a batch is mixed.

    Attributes:
      mixup: both parameters of the Beta distribution of mixup's weight; 0 is off.
      cutmix: the same for CutMix; 0 is off.
      probability: probability of mixing.
      switch: probability of CutMix rather than mixup, if both are on.
      mode: "batch" samples once for the batch, "element" for each image.
      erasing: probability of erasing a box of an image.

    Raises:
      ValueError: an unknown ``mode``.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0
    switch: float = 0.5
    mode: str = "batch"
    erasing: float = 0.0

    def __post_init__(self) -> None:
        if self.mode not in ("batch", "element"):
            raise ValueError(f"mix.mode is 'batch' or 'element', not {self.mode!r}")


def smoothed(labels: jax.Array, classes: int, smoothing: float) -> jax.Array:
    """Returns targets (batch, classes) that sum to 1: 1 - smoothing on the label, the rest spread over all classes."""
    return jax.nn.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes


def mix(images: jax.Array, targets: jax.Array, mixing: Mixing, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Applies mixup or CutMix.

    Args:
      images: (batch, height, width, channels), floating.
      targets: (batch, classes), each row summing to 1.
      mixing: the options.
      key: PRNG key.

    Returns:
      Images and targets of the same shapes.
    """
    if not (mixing.mixup or mixing.cutmix):
        return images, targets
    height, width = images.shape[1:3]
    n = 1 if mixing.mode == "batch" else images.shape[0]
    apply_key, switch_key, mixup_key, cutmix_key, y_key, x_key = jax.random.split(key, 6)
    applied = jax.random.bernoulli(apply_key, mixing.probability, (n,))
    cut = jax.random.bernoulli(
        switch_key, mixing.switch if mixing.mixup and mixing.cutmix else float(mixing.cutmix > 0), (n,)
    )
    lam = jnp.ones((n,))  # weight of an image itself
    if mixing.mixup:
        lam = _beta(mixup_key, mixing.mixup, n)
    if mixing.cutmix:
        side = jnp.sqrt(1 - _beta(cutmix_key, mixing.cutmix, n))
        box = _centered_box(
            height, width, side, jax.random.randint(y_key, (n,), 0, height), jax.random.randint(x_key, (n,), 0, width)
        )
        inside = _inside(height, width, *box)
        lam = jnp.where(cut, 1 - inside.mean(axis=(1, 2)), lam)  # the box may have been clipped by the border
        other = (cut & applied)[:, None, None] & inside
        pasted = jnp.where(other[..., None], images[::-1], images)
    else:
        pasted = images
    weight = jnp.where(applied, lam, 1.0)
    image_weight = jnp.where(cut, 1.0, weight).astype(images.dtype)[:, None, None, None]
    mixed = pasted * image_weight + images[::-1] * (1 - image_weight)
    return mixed, targets * weight[:, None] + targets[::-1] * (1 - weight[:, None])


def erase(images: jax.Array, probability: float, key: jax.Array) -> jax.Array:
    """Fills a random box of some images with standard normal noise.

    The box covers 2 % to 33 % of the image, its aspect ratio is 0.3 to 3.3 (uniform in the logarithm); of ten
    candidates the first that fits is taken, or none.

    Args:
      images: (batch, height, width, channels), normalized.
      probability: probability that an image is changed.
      key: PRNG key.
    """
    if not probability:
        return images
    batch, height, width, _ = images.shape
    apply_key, area_key, aspect_key, y_key, x_key, noise_key = jax.random.split(key, 6)
    area = height * width * jax.random.uniform(area_key, (batch, 10), minval=0.02, maxval=1 / 3)
    aspect = jnp.exp(jax.random.uniform(aspect_key, (batch, 10), minval=math.log(0.3), maxval=-math.log(0.3)))
    h, w = jnp.round(jnp.sqrt(area * aspect)).astype(int), jnp.round(jnp.sqrt(area / aspect)).astype(int)
    fits = (h < height) & (w < width)
    first = jnp.argmax(fits, axis=1)[:, None]
    h, w = (jnp.take_along_axis(side, first, axis=1)[:, 0] for side in (h, w))
    top = jnp.floor(jax.random.uniform(y_key, (batch,)) * (height - h + 1)).astype(int)
    left = jnp.floor(jax.random.uniform(x_key, (batch,)) * (width - w + 1)).astype(int)
    applied = jax.random.bernoulli(apply_key, probability, (batch,)) & fits.any(axis=1)
    box = applied[:, None, None] & _inside(height, width, top, left, top + h, left + w)
    return jnp.where(box[..., None], jax.random.normal(noise_key, images.shape, images.dtype), images)


def _beta(key: jax.Array, both: float, n: int) -> jax.Array:
    """Samples Beta(both, both); the usual Beta(1, 1) is uniform, which saves a second of compiling JAX's sampler."""
    return jax.random.uniform(key, (n,)) if both == 1 else jax.random.beta(key, both, both, (n,))


def _centered_box(
    height: int, width: int, side: jax.Array, y: jax.Array, x: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """A box of ``side`` times the image's height and width, centered at (y, x); it may extend beyond the image."""
    half_height, half_width = (height * side).astype(int) // 2, (width * side).astype(int) // 2
    return y - half_height, x - half_width, y + half_height, x + half_width


def _inside(height: int, width: int, top: jax.Array, left: jax.Array, bottom: jax.Array, right: jax.Array) -> jax.Array:
    """Whether each pixel lies in each box: (n, height, width) bool."""
    y, x = jnp.arange(height)[None, :, None], jnp.arange(width)[None, None, :]
    top, left, bottom, right = (edge[:, None, None] for edge in (top, left, bottom, right))
    return (top <= y) & (y < bottom) & (left <= x) & (x < right)

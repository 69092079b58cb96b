"""Class probabilities of many images."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def predict(model: nnx.Module, images: Any, *, batch_size: int = 64) -> np.ndarray:
    """Probabilities of the classes, batch by batch; the last batch is padded, so that one program serves all.

    The model runs in evaluation mode and is left as it was. A second call with batches of the same
    shape compiles nothing.

    Args:
      model: an image classifier.
      images: (count, height, width, channels), or a list of images of one size. Floating point,
        already normalised as ``zoo.preprocess(model)`` says.
      batch_size: images a step.

    Returns:
      float32 (count, classes); each row sums to 1.

    Raises:
      ValueError: images of another form, or of a size that the architecture does not admit, or a model without a head.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    images = _stack(images)
    if getattr(model, "head", None) is None:
        raise ValueError("the model has no head, so no classes: call model.reset_head(num_classes) first")
    copy = nnx.clone(model)
    copy.eval()
    graphdef, state = nnx.split(copy)
    count = len(images)
    size = min(batch_size, count)
    parts = []
    for start in range(0, count, size):
        batch = images[start : start + size]
        padded = np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])
        parts.append(np.asarray(_probabilities(graphdef, state, padded))[: len(batch)])
    return np.concatenate(parts)


@functools.partial(jax.jit, static_argnums=0)
def _probabilities(graphdef: nnx.GraphDef, state: nnx.State, images: jax.Array) -> jax.Array:
    return jax.nn.softmax(nnx.merge(graphdef, state)(images).astype(jnp.float32), axis=-1)


def _stack(images: Any) -> np.ndarray:
    """One float array of all images, or a ValueError that says what is wrong with them."""
    if isinstance(images, Sequence):
        shapes = sorted({np.shape(image) for image in images})
        if len(shapes) > 1:
            raise ValueError(f"images of one call must have one size, got {', '.join(map(str, shapes))}: resize them, or call once for each size")
    images = np.asarray(images)
    if images.ndim != 4 or not len(images):
        raise ValueError(f"images must be (count, height, width, channels) with at least one image, got {images.shape}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be normalised floating point numbers, got {images.dtype}: zoo.preprocess(model) gives mean and std of values in [0, 1]")
    return images

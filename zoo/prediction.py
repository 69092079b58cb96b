"""Class probabilities of many images."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoo.creation import preprocess
from zoo.preprocessing import are_files


@overload
def predict(model: nnx.Module, images: Any, *, batch_size: int = 64, top_k: None = None) -> np.ndarray: ...
@overload
def predict(model: nnx.Module, images: Any, *, batch_size: int = 64, top_k: int) -> list[list[tuple[str, float]]]: ...
def predict(model: nnx.Module, images: Any, *, batch_size: int = 64, top_k: int | None = None) -> Any:
    """Probabilities of the classes, batch by batch; the last batch is padded, so that one program serves all.

    The model runs in evaluation mode and is left as it was. A second call with batches of the same
    shape compiles nothing.

    Args:
      model: an image classifier.
      images: paths or PIL images of any size, one or several, which ``zoo.preprocess(model)`` prepares; or already
        normalized floating point images (count, height, width, channels), or a list of such images of one size.
      batch_size: images per step.
      top_k: how many classes to name for each image; None gives the probabilities of all.

    Returns:
      float32 (count, classes), each row summing to 1; with ``top_k``, for each image (class name, probability) in order
      of decreasing probability. Names are those of the run that trained the model (``model.class_names``), else "class
      0", "class 1", ...

    Raises:
      ValueError: images in another form, or of a size that the architecture does not accept, a model without a head, or
        a ``batch_size`` or ``top_k`` below 1.
      OSError: a file can't be read.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if getattr(model, "head", None) is None:
        raise ValueError("the model has no head, so no classes: call model.reset_head(num_classes) first")
    if are_files(images):
        probabilities = _predict_files(model, images, batch_size)
    else:
        stacked = _stack(images)
        probabilities = _predict_arrays(model, stacked, min(batch_size, len(stacked)))
    return probabilities if top_k is None else _named(model, probabilities, top_k)


def _predict_files(model: nnx.Module, images: Any, batch_size: int) -> np.ndarray:
    """Images are read one batch at a time: a folder of photographs need not fit into memory."""
    prepare = preprocess(model)
    given = list(images) if isinstance(images, list | tuple) else [images]
    size = min(batch_size, len(given))
    return np.concatenate(
        [_predict_arrays(model, prepare(given[start : start + size]), size) for start in range(0, len(given), size)]
    )


def _named(model: Any, probabilities: np.ndarray, top_k: int) -> list[list[tuple[str, float]]]:
    names = getattr(model, "class_names", None) or [f"class {i}" for i in range(probabilities.shape[1])]
    best = np.argsort(-probabilities, axis=-1, kind="stable")[:, :top_k]
    return [[(str(names[i]), float(row[i])) for i in order] for row, order in zip(probabilities, best, strict=True)]


def _predict_arrays(model: nnx.Module, images: np.ndarray, size: int) -> np.ndarray:
    copy = nnx.clone(model)
    copy.eval()
    graphdef, state = nnx.split(copy)
    parts = []
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        padded = np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])
        parts.append(np.asarray(_probabilities(graphdef, state, padded))[: len(batch)])
    return np.concatenate(parts)


@functools.partial(jax.jit, static_argnums=0)
def _probabilities(graphdef: nnx.GraphDef, state: nnx.State, images: jax.Array) -> jax.Array:
    return jax.nn.softmax(nnx.merge(graphdef, state)(images).astype(jnp.float32), axis=-1)


def _stack(images: Any) -> np.ndarray:
    """One float array of all images, or a ValueError that explains what is wrong with them."""
    if isinstance(images, Sequence):
        shapes = sorted({np.shape(image) for image in images})
        if len(shapes) > 1:
            raise ValueError(
                f"images of one call must have one size, got {', '.join(map(str, shapes))}: resize them, or call once "
                f"for each size"
            )
    images = np.asarray(images)
    if images.ndim != 4 or not len(images):
        one = "; one image needs a batch axis in front: image[None]" if images.ndim == 3 else ""
        raise ValueError(
            f"images must be (count, height, width, channels) with at least one image, got {images.shape}{one}"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images must be normalized floating point numbers, got {images.dtype}: zoo.preprocess(model) gives mean "
            f"and std of values in [0, 1]"
        )
    return images

"""How outputs of ours are compared with others, live or recorded. Needs neither PyTorch nor timm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


def ours_and_gradient(call: Callable[[Any], list[Any]], pixels: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Outputs of ours for ``pixels``, and the gradient of ``sum(sin(output))`` of the first with respect to them, as
    one program.
    """

    @jax.jit
    def run(x: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        def loss(x: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
            outputs = call(x)
            return jax.numpy.sin(outputs[0]).sum(), outputs

        gradient, outputs = jax.grad(loss, has_aux=True)(x)
        return gradient, outputs

    gradient, outputs = run(pixels)
    return [np.asarray(output) for output in outputs], np.asarray(gradient)


def relative(ours: Any, theirs: Any) -> float:
    """max|ours - theirs| / max|theirs|."""
    assert np.shape(ours) == np.shape(theirs)
    return float(np.max(np.abs(np.asarray(ours) - np.asarray(theirs))) / np.max(np.abs(np.asarray(theirs))))


def same_bits(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> bool:
    """Whether two state dicts have the same names, shapes, dtypes and bits."""
    return set(ours) == set(theirs) and all(
        ours[name].shape == theirs[name].shape
        and ours[name].dtype == theirs[name].dtype
        and ours[name].tobytes() == theirs[name].tobytes()
        for name in theirs
    )

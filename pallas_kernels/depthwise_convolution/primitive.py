"""Depth-wise convolution as a JAX primitive that is closed under differentiation.

With x padded by zeros, strides s and dilation d, the sum

    sum_{t, u, c} y[t, c] x[t s + u d, c] kernel[u, c]

is linear in each of the input x, the kernel and the output y. Its derivative with respect to one of the three is a
function of the other two: for y the convolution, for x and the kernel its gradients. The primitive computes any one of
the three, so that each of its derivatives, of any order and in either mode, is the primitive again.
(:mod:`primitives.differentiation`, for functions that are not linear, would differentiate the form's own operations,
and map them one by one instead of adding groups.)
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from pallas_kernels.depthwise_convolution.forms import FORMS
from pallas_kernels.depthwise_convolution.geometry import Geometry, Part
from primitives import operations


def convolution(x: jax.Array, kernel: jax.Array, geometry: Geometry, form: str) -> jax.Array:
    """The convolution in one of the forms of :mod:`pallas_kernels.depthwise_convolution.forms`.

    Args:
      x: (groups, n, rows, columns, channels).
      kernel: (groups, kernel_rows, kernel_columns, channels), of the same dtype; each group of n examples has its own
        kernel.
      geometry: the sizes.
      form: the name of the form.

    Returns:
      (groups, n, output_rows, output_columns, channels).
    """
    # With varying mesh axes or explicit sharding in types, JAX's own operations propagate them, with JAX's own
    # gradients.
    if any(getattr(jax.typeof(a), "vma", None) for a in (x, kernel)) or jax.sharding.get_abstract_mesh().explicit_axes:
        return _compute(x, kernel, geometry=geometry, form=form, wanted="y")
    return convolution_p.bind(x, kernel, geometry=geometry, form=form, wanted="y")


# For each result, the two given arrays in the order of the operands.
GIVEN: dict[Part, tuple[Part, Part]] = {"y": ("x", "kernel"), "x": ("y", "kernel"), "kernel": ("x", "y")}


@functools.partial(jax.jit, static_argnames=("geometry", "form", "wanted"), inline=True)
def _compute(a: jax.Array, b: jax.Array, *, geometry: Geometry, form: str, wanted: Part) -> jax.Array:
    return FORMS[form](wanted, a, b, geometry)


def _abstract(a: Any, b: Any, *, geometry: Geometry, form: str, wanted: Part) -> Any:
    many = () if wanted == "kernel" else (a.shape[1],)
    return jax.core.ShapedArray((a.shape[0], *many, *geometry.of(wanted), a.shape[-1]), a.dtype)


def _bind(wanted: Part, arrays: dict[Part, jax.Array], geometry: Geometry, form: str) -> jax.Array:
    first, second = GIVEN[wanted]
    return convolution_p.bind(arrays[first], arrays[second], geometry=geometry, form=form, wanted=wanted)


def _transpose(
    place: int, cotangent: jax.Array, a: Any, b: Any, *, geometry: Geometry, form: str, wanted: Part
) -> jax.Array:
    """The cotangent of the operand at ``place``: the primitive again, with the result's cotangent as an operand."""
    given = GIVEN[wanted]
    return _bind(given[place], {wanted: cotangent, given[1 - place]: (a, b)[1 - place]}, geometry, form)


def _batch(
    operands: tuple[jax.Array, ...], axes: tuple[int | None, ...], *, geometry: Geometry, form: str, wanted: Part
) -> tuple[jax.Array, int]:
    """Batching: further examples of the same kernel where only examples are mapped, further groups where kernels
    are.
    """
    given = GIVEN[wanted]
    count = next(x.shape[axis] for x, axis in zip(operands, axes) if axis is not None)
    kernels = wanted == "kernel" or axes[given.index("kernel")] is not None
    folded: dict[Part, jax.Array] = {}
    for part, x, axis in zip(given, operands, axes):
        if axis is None and not kernels and part == "kernel":
            folded[part] = x
            continue
        x = jnp.broadcast_to(x[None], (count, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        if kernels:
            folded[part] = x.reshape(-1, *x.shape[2:])
        else:
            x = jnp.moveaxis(x, 0, 1)
            folded[part] = x.reshape(x.shape[0], -1, *x.shape[3:])
    y = _bind(wanted, folded, geometry, form)
    if kernels:
        return y.reshape(count, -1, *y.shape[1:]), 0
    return y.reshape(y.shape[0], count, -1, *y.shape[2:]), 1


convolution_p = Primitive("depthwise_convolution")
convolution_p.def_impl(_compute)
convolution_p.def_abstract_eval(_abstract)
ad.defbilinear(convolution_p, functools.partial(_transpose, 0), functools.partial(_transpose, 1))
batching.primitive_batchers[convolution_p] = _batch
mlir.register_lowering(convolution_p, mlir.lower_fun(_compute, multiple_results=False))
operations.count_by(convolution_p.name, _compute)

"""What stays in float32 where parameters or activations are narrower: optimizer state, updates, and the scale of the
loss.

Mixed Precision Training (Micikevicius et al., 2018): a copy of the weights in float32 (section 3.1), and a loss that is
scaled so that its gradients do not vanish in float16 (section 3.2).

Bytes a trained parameter, in AdamW (two moments):

    parameters    moments    copy    in all    held by
    float32       8          -       12
    bfloat16      8          4       14        rounding="master", the default: every update counts, however small
    bfloat16      8          -       10        rounding="stochastic": right on average, with the noise of rounding

The moments are in float32 whatever the parameters are. Lion and SGD with momentum hold one (4 bytes), Adafactor a row
and a column of a matrix, and frozen parameters nothing at all: adapters cost their own few parameters only.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

ROUNDINGS = ("master", "stochastic")

FIRST_SCALE = 2.0**15
_LARGEST_SCALE = 2.0**24
_PATIENCE = 2000  # steps without an overflow after which the scale is doubled

Arrays = Mapping[str, jax.Array]


def _is_narrow(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4


def _wide(arrays: Arrays) -> dict[str, jax.Array]:
    return {name: array.astype(jnp.float32) if _is_narrow(array) else array for name, array in arrays.items()}


def in_float32(base: optax.GradientTransformation, rounding: str) -> optax.GradientTransformation:
    """``base`` with gradients, parameters, state and updates in float32, over flat dictionaries of parameters.

    Args:
      base: made for parameters in float32.
      rounding: how an update reaches a parameter narrower than float32. "master" keeps a float32 copy in the state and
        rounds that; "stochastic" rounds to one of the two neighbors, with the chances that make it right on average.
    """

    def init(params: Arrays) -> Any:
        state, narrow = base.init(_wide(params)), {name: p for name, p in params.items() if _is_narrow(p)}
        if not narrow:
            return state
        return {
            "base": state,
            **({"master": _wide(narrow)} if rounding == "master" else {"count": jnp.zeros((), jnp.int32)}),
        }

    def update(gradients: Arrays, state: Any, params: Arrays | None = None) -> tuple[dict[str, jax.Array], Any]:
        assert params is not None
        narrow = [name for name, p in params.items() if _is_narrow(p)]
        if not narrow:
            return base.update(_wide(gradients), state, params)
        wide = {**_wide(params), **state.get("master", {})}
        updates, inner = base.update(_wide(gradients), state["base"], wide)
        moved = {name: wide[name] + updates[name] for name in narrow}
        if rounding == "master":
            state = {"base": inner, "master": moved}
        else:
            key = jax.random.fold_in(jax.random.key(0), state["count"])
            moved = {
                name: round_stochastically(new, params[name].dtype, _named(key, name)) for name, new in moved.items()
            }
            state = {"base": inner, "count": state["count"] + 1}
        # In float32 the difference from a narrow number is as good as exact: adding it gives the new value.
        return {
            **updates,
            **{name: new.astype(jnp.float32) - params[name].astype(jnp.float32) for name, new in moved.items()},
        }, state

    return optax.GradientTransformation(init, update)


def _named(key: jax.Array, name: str) -> jax.Array:
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def round_stochastically(x: jax.Array, dtype: Any, key: jax.Array) -> jax.Array:
    """Rounds float32 numbers to one of their two neighbors in ``dtype``, so that the expected value is the number
    itself.
    """
    near = x.astype(dtype)
    wide = near.astype(jnp.float32)
    other = jnp.nextafter(near, jnp.where(x > wide, jnp.inf, -jnp.inf).astype(dtype))
    share = jnp.abs(x - wide) / jnp.abs(other.astype(jnp.float32) - wide)
    return jnp.where(jax.random.uniform(key, x.shape) < share, other, near)


def needs_loss_scale(model: nnx.Module) -> bool:
    """Whether a module of ``model`` computes in float16 or holds parameters in it."""

    def half(dtype: Any) -> bool:
        return dtype is not None and not isinstance(dtype, str) and dtype == jnp.float16

    return any(
        half(getattr(m, "dtype", None)) or any(isinstance(v, nnx.Param) and half(v.dtype) for v in vars(m).values())
        for _, m in nnx.iter_modules(model)
    )


def first_loss_scale() -> dict[str, jax.Array]:
    """The state of the loss scale before the first step: its value, and the steps since it changed."""
    return {"value": jnp.float32(FIRST_SCALE), "steps": jnp.zeros((), jnp.int32)}


def next_loss_scale(scale: Arrays, overflow: jax.Array) -> dict[str, jax.Array]:
    """Half after a step whose gradient overflowed, twice after 2000 steps that did not."""
    grows = scale["steps"] + 1 >= _PATIENCE
    value = jnp.where(overflow, scale["value"] / 2, jnp.where(grows, scale["value"] * 2, scale["value"]))
    steps = jnp.where(overflow | grows, 0, scale["steps"] + 1)
    return {"value": jnp.clip(value, 1.0, _LARGEST_SCALE), "steps": steps.astype(jnp.int32)}

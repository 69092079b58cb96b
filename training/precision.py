"""What stays in float32 where parameters or activations have lower precision: optimizer state, updates and the loss
scale.

Mixed Precision Training (Micikevicius et al., ICLR 2018, arXiv:1710.03740): a float32 master copy of the weights
(section 3.1), and loss scaling, so that gradients do not underflow in float16 (section 3.2).

Bytes per trained parameter with AdamW (two moments):

    parameters    moments    copy    total
    float32       8          -       12
    bfloat16      8          4       14       rounding="master", the default: no update is lost, however small
    bfloat16      8          -       10       rounding="stochastic": unbiased, with rounding noise

The moments are always in float32. Lion and SGD with momentum hold one (4 bytes), Adafactor one row and one column for
each matrix. Frozen parameters have no optimizer state, so that adapters cost only their own few parameters.
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
    """``base`` computed with gradients, parameters, state and updates in float32, over flat dictionaries of parameters.

    Args:
      base: made for parameters in float32.
      rounding: how an update is applied to a parameter of lower precision. "master" keeps a float32 copy in the state
        and rounds that; "stochastic" rounds at random to one of the two nearest values, without bias.
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
        # The difference of the new and the old narrow value is nearly exact in float32: adding it gives the new value.
        return {
            **updates,
            **{name: new.astype(jnp.float32) - params[name].astype(jnp.float32) for name, new in moved.items()},
        }, state

    return optax.GradientTransformation(init, update)


def _named(key: jax.Array, name: str) -> jax.Array:
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def round_stochastically(x: jax.Array, dtype: Any, key: jax.Array) -> jax.Array:
    """Rounds float32 numbers ``x`` at random to one of the two nearest values in ``dtype``, so that the expected value
    is x.
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
    """The loss scale's state before the first step: its value, and the number of steps since it changed."""
    return {"value": jnp.float32(FIRST_SCALE), "steps": jnp.zeros((), jnp.int32)}


def next_loss_scale(scale: Arrays, overflow: jax.Array) -> dict[str, jax.Array]:
    """Halves the loss scale after a step whose gradient overflowed, and doubles it after 2000 steps without
    overflow.
    """
    grows = scale["steps"] + 1 >= _PATIENCE
    value = jnp.where(overflow, scale["value"] / 2, jnp.where(grows, scale["value"] * 2, scale["value"]))
    steps = jnp.where(overflow | grows, 0, scale["steps"] + 1)
    return {"value": jnp.clip(value, 1.0, _LARGEST_SCALE), "steps": steps.astype(jnp.int32)}

"""Linear attention with decay: a linear recurrence over time with a matrix-valued state, causal or in both
directions.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import documents
from pallas_kernels.dispatch import Implementation, Later, Op
from pallas_kernels.linear_attention import distributed, reference, xla
from pallas_kernels.linear_attention.call import LinearCall
from pallas_kernels.linear_attention.cases import CASES, SHAPES
from primitives import sequence

tpu, gpu = Later(f"{__name__}.mosaic_tpu"), Later(f"{__name__}.mosaic_gpu")
_op = Op(
    "linear_attention",
    (
        Implementation(
            "state_passing", distributed.linear_attention, objection=distributed.objection, considered=sequence.is_split
        ),
        Implementation("mosaic_tpu", tpu.linear_attention, platforms=("tpu",), objection=tpu.objection, paper=(72,)),
        Implementation("mosaic_gpu", gpu.linear_attention, platforms=("gpu",), objection=gpu.objection, paper=(72,)),
        Implementation("xla", xla.linear_attention),
        Implementation("reference", reference.linear_attention),
    ),
    CASES,
    SHAPES,
)


def linear_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    decay: jax.Array | None = None,
    value_decay: jax.Array | None = None,
    backward_decay: jax.Array | None = None,
    scale: float | None = None,
    causal: bool = True,
    exclusive: bool = False,
    bonus: jax.Array | None = None,
    initial_state: jax.Array | None = None,
    starts: jax.Array | None = None,
    return_state: bool = False,
    chunk_size: int = 64,
    implementation: str | None = None,
) -> Any:
    """Linear attention (arXiv:2006.16236) without decay or with that of RetNet (arXiv:2307.08621), Mamba-2
    (arXiv:2405.21060), GLA (arXiv:2312.06635), or per value dimension, as in the first pass of gated slot attention
    (arXiv:2409.07146).

        S_t = exp(g_t) S_{t-1} + k_t v_t^T        o_t = scale * q_t S_t        g = decay <= 0

    ``exclusive`` reads the state before the token, without this token's decay, and with ``bonus`` u also the token
    itself, with weight u (RWKV-6, arXiv:2404.05892): o_t = scale * q_t (S_{t-1} + diag(u) k_t v_t^T).

    ``causal=False`` runs the recurrence in both directions and counts the diagonal once: token s reaches t with the
    weight exp(g_{s+1} + ... + g_t) from the left and exp(g_t + ... + g_{s-1}) from the right; without decay that is q
    (K^T V). There is no mask: a token with k = 0 and decay 0 does not change the state, which is how a layer skips
    padding. The state and the sums are float32 (float64 for float64 inputs) for every dtype; memory is linear in
    length, for the gradient too.

    Args:
      q: (batch, length, groups, key_dim).
      k: (batch, length, groups, key_dim); groups divides heads, and head h reads group h // (heads // groups).
      v: (batch, length, heads, value_dim).
      decay: the LOGARITHM of the factor on the state, <= 0; -inf forgets everything. (heads,) constant, (batch, length,
        heads) per token, or (batch, length, heads, key_dim) per token and key dimension. Pass float32.
      value_decay: (batch, length, heads, value_dim), the same per token and value dimension, S_t = S_{t-1} diag(exp
        g_t) + k_t v_t^T; excludes ``decay``.
      backward_decay: decay of the direction from the right, with ``causal=False``; of decay's shape, and ``decay`` by
        default.
      scale: a Python number; 1 / sqrt(key_dim) by default. Multiply q by a learned scale.
      causal: token t reads tokens up to t; otherwise all.
      exclusive: token t reads only tokens before t; requires ``causal``.
      bonus: (heads, key_dim), u; requires ``exclusive``.
      initial_state: (batch, heads, key_dim, value_dim), zeros by default; requires ``causal``.
      starts: bool (batch, length), True where a document begins: tokens of different documents don't interact, and
        those from the first start on don't read the initial state. False for padding. None is no start.
      return_state: also return the state after the last token; requires ``causal``.
      chunk_size: tokens that the XLA implementation processes at once, a power of two; affects only the speed.
      implementation: the name of an implementation; None uses the best one that supports the call.

    Returns:
      (batch, length, heads, value_dim) in v's dtype; with ``return_state`` also float32 (batch, heads, key_dim,
      value_dim).

    Raises:
      ValueError: shapes or options that do not fit together.
    """
    _check(q, k, v, decay, causal, initial_state, return_state, chunk_size)
    _check_options(v, q.shape[-1], decay, value_decay, backward_decay, causal, exclusive, bonus)
    documents.check("linear_attention", starts, *q.shape[:2])
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    call = LinearCall(
        # A query moved one token earlier reads the state before its own token.
        q=jnp.concatenate([q[:, 1:], jnp.zeros_like(q[:, :1])], axis=1) if exclusive else q,
        k=k,
        v=v,
        decay=decay,
        value_decay=value_decay,
        backward_decay=backward_decay,
        initial_state=initial_state,
        starts=starts,
        scale=scale,
        chunk_size=chunk_size,
        causal=causal,
    )
    out, state = _op(call, implementation)
    if exclusive:
        out = _exclusive(call, q, bonus, out)
    return (out, state) if return_state else out


def _exclusive(call: LinearCall, q: jax.Array, bonus: jax.Array | None, early: jax.Array) -> jax.Array:
    """The outputs of ``exclusive``, from those ``early`` with the queries ``q`` moved one token earlier."""
    k, v, wide = call.k, call.v, call.wide
    repeats = v.shape[2] // q.shape[2]
    first = jnp.repeat(q[:, 0].astype(wide), repeats, axis=1)
    first = call.scale * jnp.einsum("bhk,bhkv->bhv", first, call.start)
    out = jnp.concatenate([first[:, None].astype(v.dtype), early[:, :-1]], axis=1)
    if call.starts is not None:
        out = jnp.where(call.starts[..., None, None], 0, out)
    if bonus is None:
        return out
    weights = (q.astype(wide) * k.astype(wide)).reshape(*q.shape[:3], 1, -1)
    weights = call.scale * jnp.sum(weights * bonus.astype(wide).reshape(q.shape[2], repeats, -1), axis=-1)
    return (out + weights.reshape(*v.shape[:3], 1) * v).astype(v.dtype)


def _check(
    q: Any, k: Any, v: Any, decay: Any, causal: bool, initial_state: Any, return_state: bool, chunk_size: int
) -> None:
    if q.ndim != 4 or q.shape != k.shape or v.ndim != 4 or v.shape[:2] != q.shape[:2]:
        raise ValueError(
            f"linear_attention: q and k are (batch, length, groups, key_dim), v is (batch, length, heads, value_dim); "
            f"got {q.shape}, {k.shape}, {v.shape}"
        )
    batch, length, groups, key_dim = q.shape
    heads, value_dim = v.shape[2:]
    if length == 0 or heads % groups:
        raise ValueError(
            f"linear_attention: length must be at least 1 and heads a multiple of groups; got length {length}, {heads} "
            f"heads, {groups} groups"
        )
    shapes = ((heads,), (batch, length, heads), (batch, length, heads, key_dim))
    if decay is not None and decay.shape not in shapes:
        raise ValueError(f"linear_attention: decay must have one of the shapes {shapes}; got {decay.shape}")
    state = (batch, heads, key_dim, value_dim)
    if initial_state is not None and initial_state.shape != state:
        raise ValueError(
            f"linear_attention: initial_state must be (batch, heads, key_dim, value_dim) = {state}; got "
            f"{initial_state.shape}"
        )
    if not causal and (initial_state is not None or return_state):
        raise ValueError(
            "linear_attention: with causal=False there is no state to pass in or return; drop initial_state and "
            "return_state"
        )
    if chunk_size < 1 or chunk_size & (chunk_size - 1):
        raise ValueError(f"linear_attention: chunk_size must be a power of two; got {chunk_size}")


def _check_options(
    v: Any, key_dim: int, decay: Any, value_decay: Any, backward_decay: Any, causal: bool, exclusive: bool, bonus: Any
) -> None:
    if value_decay is not None and decay is not None:
        raise ValueError("linear_attention: decay and value_decay are both given; drop one")
    if value_decay is not None and value_decay.shape != v.shape:
        raise ValueError(
            f"linear_attention: value_decay must have v's shape {v.shape}, (batch, length, heads, value_dim); got "
            f"{value_decay.shape}"
        )
    if backward_decay is not None and (causal or decay is None or backward_decay.shape != decay.shape):
        raise ValueError(
            "linear_attention: backward_decay needs causal=False and a decay of the same shape for the direction from "
            f"the left; got causal={causal}, decay {None if decay is None else decay.shape} and backward_decay "
            f"{backward_decay.shape}"
        )
    if exclusive and not causal:
        raise ValueError("linear_attention: exclusive reads only earlier tokens and needs causal=True")
    if bonus is not None and (not exclusive or bonus.shape != (v.shape[2], key_dim)):
        raise ValueError(
            f"linear_attention: bonus must be (heads, key_dim) = {(v.shape[2], key_dim)}, with exclusive=True; got "
            f"{bonus.shape} and exclusive={exclusive}"
        )

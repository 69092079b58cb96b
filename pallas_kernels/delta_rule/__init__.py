"""The delta rule: a linear recurrence over time whose transitions are products of (generalized) Householder
matrices.
"""

from __future__ import annotations

from typing import Any

import jax

from pallas_kernels import documents
from pallas_kernels.delta_rule import distributed, reference, xla
from pallas_kernels.delta_rule.call import DeltaCall
from pallas_kernels.delta_rule.cases import CASES, SHAPES
from pallas_kernels.dispatch import Implementation, Later, Op
from primitives import sequence

tpu, gpu = Later(f"{__name__}.mosaic_tpu"), Later(f"{__name__}.mosaic_gpu")
_op = Op(
    "delta_rule",
    (
        Implementation(
            "state_passing", distributed.delta_rule, objection=distributed.objection, considered=sequence.is_split
        ),
        Implementation("mosaic_tpu", tpu.delta_rule, platforms=("tpu",), objection=tpu.objection, paper=(179,)),
        Implementation("mosaic_gpu", gpu.delta_rule, platforms=("gpu",), objection=gpu.objection, paper=(179,)),
        Implementation("xla", xla.delta_rule),
        Implementation("reference", reference.delta_rule),
    ),
    CASES,
    SHAPES,
)


def delta_rule(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    beta: jax.Array,
    *,
    decay: jax.Array | None = None,
    read_key: jax.Array | None = None,
    scale: float | None = None,
    initial_state: jax.Array | None = None,
    starts: jax.Array | None = None,
    return_state: bool = False,
    chunk_size: int = 64,
    implementation: str | None = None,
) -> Any:
    """The delta rule (arXiv:2406.06484), gated (arXiv:2412.06464), gated per key dimension (arXiv:2510.26692), with any
    number of steps per token (arXiv:2502.10297), each with its own read key p (arXiv:2503.14456).

        S <- exp(g_t) S                                        once per token: g = decay <= 0
        S <- (I - beta_j k_j p_j^T) S + beta_j k_j v_j^T       for each step j of the token; p = read_key, or k
        o_t = scale * q_t S                                    after the last step

    A step moves the value that the memory S stores for the key k toward v: completely with beta = 1 and a key of norm
    1, and beyond v with beta between 1 and 2, where the transition has a negative eigenvalue. The recurrence is stable
    for beta |k|^2 <= 2: keys are not normalized here. With p in another direction than k a single step may increase the
    norm of S; the caller must then ensure stability. There is no mask: a step with beta = 0 of a token with decay 0
    does not change the state, which is how a layer skips padding. The state and the sums are float32 (float64 for
    float64 inputs) for every dtype; memory is linear in length, for the gradient too.

    Args:
      q: (batch, length, groups, key_dim).
      k: (batch, length * steps, groups, key_dim); step j of token t is row t * steps + j. groups divides heads, and
        head h reads group h // (heads // groups).
      v: (batch, length * steps, heads, value_dim).
      beta: (batch, length * steps, heads), the step sizes.
      decay: the LOGARITHM of the factor on the state, <= 0; -inf forgets everything. (batch, length, heads), or (batch,
        length, heads, key_dim) for a factor per key dimension. Pass float32.
      read_key: of k's shape: the key p by which a step reads the value that it replaces; None is k.
      scale: a Python number; 1 / sqrt(key_dim) by default. Multiply q by a learned scale.
      initial_state: (batch, heads, key_dim, value_dim), zeros by default.
      starts: bool (batch, length), True where a document begins: the state, including the initial one, is reset before
        the steps of that token. False for padding. None is no start.
      return_state: also return the state after the last token.
      chunk_size: steps that the XLA implementation processes at once, a power of two; affects only the speed.
      implementation: the name of an implementation; None uses the best one that supports the call.

    Returns:
      (batch, length, heads, value_dim) in v's dtype; with ``return_state`` also float32 (batch, heads, key_dim,
      value_dim).

    Raises:
      ValueError: shapes or options that do not fit together.
    """
    _check(q, k, v, beta, decay, read_key, initial_state, chunk_size)
    documents.check("delta_rule", starts, *q.shape[:2])
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    call = DeltaCall(
        q=q,
        k=k,
        v=v,
        beta=beta,
        decay=decay,
        read_key=read_key,
        initial_state=initial_state,
        starts=starts,
        scale=scale,
        chunk_size=chunk_size,
    )
    out, state = _op(call, implementation)
    return (out, state) if return_state else out


def _check(q: Any, k: Any, v: Any, beta: Any, decay: Any, read_key: Any, initial_state: Any, chunk_size: int) -> None:
    if (
        q.ndim != 4
        or k.ndim != 4
        or v.ndim != 4
        or (k.shape[0], *k.shape[2:]) != (q.shape[0], *q.shape[2:])
        or v.shape[:2] != k.shape[:2]
    ):
        raise ValueError(
            "delta_rule: q is (batch, length, groups, key_dim), k (batch, length * steps, groups, key_dim), v (batch, "
            "length * steps, heads, value_dim); "
            f"got {q.shape}, {k.shape}, {v.shape}"
        )
    batch, length, groups, key_dim = q.shape
    rows, heads, value_dim = v.shape[1:]
    if length == 0 or rows == 0 or rows % length or heads % groups:
        raise ValueError(
            "delta_rule: length must be at least 1, the keys a multiple of it, and heads a multiple of groups; "
            f"got length {length}, {rows} keys, {heads} heads, {groups} groups"
        )
    if beta.shape != v.shape[:3]:
        raise ValueError(f"delta_rule: beta must be (batch, length * steps, heads) = {v.shape[:3]}; got {beta.shape}")
    shapes = ((batch, length, heads), (batch, length, heads, key_dim))
    if decay is not None and decay.shape not in shapes:
        raise ValueError(f"delta_rule: decay must have one of the shapes {shapes}; got {decay.shape}")
    if read_key is not None and read_key.shape != k.shape:
        raise ValueError(f"delta_rule: read_key must have the shape of k, {k.shape}; got {read_key.shape}")
    state = (batch, heads, key_dim, value_dim)
    if initial_state is not None and initial_state.shape != state:
        raise ValueError(
            f"delta_rule: initial_state must be (batch, heads, key_dim, value_dim) = {state}; got {initial_state.shape}"
        )
    if chunk_size < 1 or chunk_size & (chunk_size - 1):
        raise ValueError(f"delta_rule: chunk_size must be a power of two; got {chunk_size}")

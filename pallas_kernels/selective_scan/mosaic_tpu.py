"""The selective scan on TPU: token by token with the state in VMEM, with channels along the lanes and the state
dimension along the sublanes.

The gradient stores the states only at chunk boundaries: its kernel iterates over the chunks in reverse, recomputes a
chunk's states into VMEM and then runs the recurrence of their cotangent. Softplus, skip connection and gate are left to
XLA.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import dispatch, documents
from pallas_kernels.mosaic_tpu import LANES
from pallas_kernels.mosaic_tpu import objection as tpu_objection
from pallas_kernels.selective_scan.call import ScanCall
from primitives.differentiation import differentiable

CHUNK = 128
SHORT_CHUNK = 16  # in interpret mode, so that short sequences have several chunks there
STATES = 2**19  # elements of a chunk's states in VMEM: 2 MiB
STATE_DIM_LIMIT = STATES // (CHUNK * LANES)


def objection(call: ScanCall) -> str | None:
    """Why the kernel does not support the call, or None."""
    if call.A is None:
        return "its transitions are exponentials; this one is implicit"
    if call.starts is not None:
        return documents.OBJECTION
    if call.x.shape[1] == 1:
        return "a single token needs no scan"
    if call.A.shape[1] > STATE_DIM_LIMIT:
        return f"state_dim {call.A.shape[1]} is above {STATE_DIM_LIMIT}"
    return tpu_objection(call.x, call.step, call.A, call.B, call.C)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The division of a scan: ``chunk`` tokens, ``channels`` of a block; each of ``groups`` of channels has its own B
    and C.
    """

    chunk: int
    channels: int
    groups: int
    interpret: Any


def selective_scan(call: ScanCall) -> tuple[jax.Array, jax.Array]:
    """The op."""
    assert call.A is not None  # else refused by objection()
    batch, length, channels = call.x.shape
    state_dim, groups = call.A.shape[1], call.groups
    each = channels // groups
    plan = _plan(length, each, state_dim, groups)
    # Padded tokens and channels have a step of 0, which leaves the state unchanged.
    extra, more = -length % plan.chunk, -each % plan.channels

    def per_channel(a: jax.Array) -> jax.Array:
        """(batch, length, channels) to (batch * groups, length, channels of a group)."""
        a = jnp.moveaxis(a.reshape(batch, length, groups, each), 2, 1).reshape(batch * groups, length, each)
        return jnp.pad(a, ((0, 0), (0, extra), (0, more)))

    def per_state(a: jax.Array) -> jax.Array:
        """B or C to float32 (batch * groups, state_dim, length)."""
        a = jnp.moveaxis(a.astype(jnp.float32).reshape(batch, length, groups, state_dim), 1, 3)
        return jnp.pad(a.reshape(batch * groups, state_dim, length), ((0, 0), (0, 0), (0, extra)))

    def channels_last(a: jax.Array) -> jax.Array:
        """(..., channels, state_dim) to float32 (... * groups, state_dim, channels of a group)."""
        return jnp.pad(
            jnp.swapaxes(a.astype(jnp.float32).reshape(-1, each, state_dim), 1, 2), ((0, 0), (0, 0), (0, more))
        )

    arrays = (
        per_channel(call.x),
        per_channel(call.step),
        per_state(call.B),
        per_state(call.C),
        channels_last(call.A),
        channels_last(call.start),
    )
    out, last = _scan(plan, *arrays)
    out = jnp.moveaxis(out[:, :length, :each].reshape(batch, groups, length, each), 1, 2).reshape(call.x.shape)
    return out, jnp.swapaxes(last[:, :, :each], 1, 2).reshape(batch, channels, state_dim)


def _plan(length: int, channels: int, state_dim: int, groups: int) -> Plan:
    interpret = dispatch.interpreted()
    widest = max(LANES, STATES // (CHUNK * state_dim) // LANES * LANES)
    padded = -(-channels // LANES) * LANES
    block = (
        channels
        if channels <= LANES
        else next(w for w in (4 * LANES, 3 * LANES, 2 * LANES, LANES) if w <= widest and padded % w == 0)
    )
    return Plan(SHORT_CHUNK if interpret else CHUNK, block, groups, interpret)


@differentiable(1, kernel=True)
def _scan(
    plan: Plan, x: jax.Array, delta: jax.Array, b: jax.Array, c: jax.Array, rates: jax.Array, start: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Outputs of x's shape and the last state of the shape of ``start``, both float32."""
    out, last = _run_forward(plan, False, x, delta, b, c, rates, start)
    return out, last


def _forward(plan: Plan, *arrays: jax.Array) -> tuple[Any, Any]:
    out, last, boundaries = _run_forward(plan, True, *arrays)
    return (out, last), (*arrays[:-1], boundaries)


def _backward(plan: Plan, residuals: Any, cotangents: Any) -> tuple[jax.Array, ...]:
    x, delta, b, c, rates, boundaries = residuals
    d_x, d_delta, d_b, d_c, d_rates, d_start = _run_backward(plan, x, delta, b, c, rates, boundaries, *cotangents)
    # Summed over blocks of channels, which read the same B and C, and over rows of the batch, which share the rates.
    return d_x, d_delta, d_b.sum(1), d_c.sum(1), d_rates.reshape(-1, *rates.shape).sum(0), d_start


_scan.define(_forward, _backward)


def _at(matrix: jax.Array, t: Any) -> jax.Array:
    """Column t of (state_dim, chunk): (state_dim, 1). By a selection, because lanes can't be sliced at a dynamic
    index.
    """
    return jnp.sum(jnp.where(lax.broadcasted_iota(jnp.int32, matrix.shape, 1) == t, matrix, 0.0), 1, keepdims=True)


def _put(matrix: jax.Array, t: Any, column: jax.Array) -> jax.Array:
    return jnp.where(lax.broadcasted_iota(jnp.int32, matrix.shape, 1) == t, column, matrix)


def _specs(plan: Plan, state_dim: int, place: Callable[[Any], Any]) -> dict[str, pl.BlockSpec]:
    """The blocks for the grid (row, block of channels, chunk); ``place`` maps the grid's index to that of the chunk."""
    return {
        "token": pl.BlockSpec((None, plan.chunk, plan.channels), lambda r, w, t: (r, place(t), w)),
        "shared": pl.BlockSpec((None, state_dim, plan.chunk), lambda r, w, t: (r, 0, place(t))),
        "shared_by_block": pl.BlockSpec((None, None, state_dim, plan.chunk), lambda r, w, t: (r, w, 0, place(t))),
        "rates": pl.BlockSpec((None, state_dim, plan.channels), lambda r, w, t: (lax.rem(r, plan.groups), 0, w)),
        "state": pl.BlockSpec((None, state_dim, plan.channels), lambda r, w, t: (r, 0, w)),
        "boundary": pl.BlockSpec((None, None, state_dim, plan.channels), lambda r, w, t: (r, place(t), 0, w)),
    }


def _parallel() -> pltpu.CompilerParams:
    return pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary"))


def _cost(per_state: int, elements: int, state_dim: int, *arrays: Any) -> pl.CostEstimate:
    moved = sum(a.size * a.dtype.itemsize for a in arrays)
    return pl.CostEstimate(
        flops=per_state * elements * state_dim, transcendentals=elements * state_dim, bytes_accessed=moved
    )


def _run_forward(plan: Plan, keep: bool, *arrays: jax.Array) -> Any:
    x, start = arrays[0], arrays[-1]
    rows, length, channels = x.shape
    state_dim, chunks = start.shape[1], length // plan.chunk

    def kernel(x: Any, delta: Any, b: Any, c: Any, rates: Any, start: Any, out: Any, last: Any, *rest: Any) -> None:
        entering, state = rest[-2:]

        @pl.when(pl.program_id(2) == 0)
        def _() -> None:
            state[...] = start[...]

        if keep:
            rest[0][...] = state[...]
        entering[...] = delta[...] * x[...].astype(jnp.float32)
        b, c, a = b[...], c[...], rates[...]

        def token(t: Any, h: jax.Array) -> jax.Array:
            here = pl.ds(t, 1)
            h = jnp.exp(delta[here, :] * a) * h + _at(b, t) * entering[here, :]
            out[here, :] = jnp.sum(_at(c, t) * h, 0, keepdims=True)
            return h

        state[...] = lax.fori_loop(0, plan.chunk, token, state[...])
        last[...] = state[...]

    spec = _specs(plan, state_dim, lambda t: t)
    shapes = [jax.ShapeDtypeStruct(x.shape, jnp.float32), jax.ShapeDtypeStruct(start.shape, jnp.float32)]
    specs = [spec["token"], spec["state"]]
    if keep:
        shapes.append(jax.ShapeDtypeStruct((rows, chunks, *start.shape[1:]), jnp.float32))
        specs.append(spec["boundary"])
    return pl.pallas_call(
        kernel,
        grid=(rows, channels // plan.channels, chunks),
        in_specs=[spec[n] for n in ("token", "token", "shared", "shared", "rates", "state")],
        out_specs=specs,
        out_shape=shapes,
        scratch_shapes=[
            pltpu.VMEM((plan.chunk, plan.channels), jnp.float32),
            pltpu.VMEM((state_dim, plan.channels), jnp.float32),
        ],
        compiler_params=_parallel(),
        cost_estimate=_cost(6, x.size, state_dim, *arrays, *shapes),
        interpret=plan.interpret,
        name="selective_scan_forward",
    )(*arrays)


def _run_backward(plan: Plan, *arrays: jax.Array) -> Any:
    x, _, b, _, rates, _, _, d_last = arrays
    rows, length, channels = x.shape
    state_dim, chunks, blocks = d_last.shape[1], length // plan.chunk, channels // plan.channels

    def kernel(
        x: Any, delta: Any, b: Any, c: Any, rates: Any, before: Any, d_out: Any, d_last: Any, *rest: Any
    ) -> None:
        d_x, d_delta, d_b, d_c, d_rates, d_start, wide, entering, decayed, d_state = rest

        @pl.when(pl.program_id(2) == 0)
        def _() -> None:
            d_state[...] = d_last[...]
            d_rates[...] = jnp.zeros_like(d_rates)

        wide[...] = x[...].astype(jnp.float32)
        entering[...] = delta[...] * wide[...]
        b, c, a = b[...], c[...], rates[...]

        def again(t: Any, h: jax.Array) -> jax.Array:
            here = pl.ds(t, 1)
            h = jnp.exp(delta[here, :] * a) * h
            decayed[t] = h
            return h + _at(b, t) * entering[here, :]

        lax.fori_loop(0, plan.chunk, again, before[...])

        def token(n: Any, carry: Any) -> Any:
            d_h, d_a, d_b, d_c = carry
            t = plan.chunk - 1 - n
            here = pl.ds(t, 1)
            step, entry, d_y, b_t, before_t = delta[here, :], entering[here, :], d_out[here, :], _at(b, t), decayed[t]
            d_c = _put(d_c, t, jnp.sum((before_t + b_t * entry) * d_y, 1, keepdims=True))
            d_h = d_h + _at(c, t) * d_y
            d_b = _put(d_b, t, jnp.sum(d_h * entry, 1, keepdims=True))
            d_entry = jnp.sum(d_h * b_t, 0, keepdims=True)
            d_exponent = d_h * before_t
            d_x[here, :] = d_entry * step
            d_delta[here, :] = d_entry * wide[here, :] + jnp.sum(d_exponent * a, 0, keepdims=True)
            return d_h * jnp.exp(step * a), d_a + d_exponent * step, d_b, d_c

        nothing = jnp.zeros((state_dim, plan.chunk), jnp.float32)
        d_h, d_a, d_b[...], d_c[...] = lax.fori_loop(
            0, plan.chunk, token, (d_state[...], d_rates[...], nothing, nothing)
        )
        d_state[...], d_rates[...], d_start[...] = d_h, d_a, d_h

    spec = _specs(plan, state_dim, lambda t: chunks - 1 - t)
    by_block = jax.ShapeDtypeStruct((rows, blocks, *b.shape[1:]), jnp.float32)
    shapes = [
        jax.ShapeDtypeStruct(x.shape, jnp.float32),
        jax.ShapeDtypeStruct(x.shape, jnp.float32),
        by_block,
        by_block,
        jax.ShapeDtypeStruct((rows, *rates.shape[1:]), jnp.float32),
        jax.ShapeDtypeStruct(d_last.shape, jnp.float32),
    ]
    token = (plan.chunk, plan.channels)
    d_x, *others = pl.pallas_call(
        kernel,
        grid=(rows, blocks, chunks),
        in_specs=[spec[n] for n in ("token", "token", "shared", "shared", "rates", "boundary", "token", "state")],
        out_specs=[spec[n] for n in ("token", "token", "shared_by_block", "shared_by_block", "state", "state")],
        out_shape=shapes,
        scratch_shapes=[
            pltpu.VMEM(token, jnp.float32),
            pltpu.VMEM(token, jnp.float32),
            pltpu.VMEM((plan.chunk, state_dim, plan.channels), jnp.float32),
            pltpu.VMEM((state_dim, plan.channels), jnp.float32),
        ],
        compiler_params=_parallel(),
        cost_estimate=_cost(20, x.size, state_dim, *arrays, *shapes),
        interpret=plan.interpret,
        name="selective_scan_backward",
    )(*arrays)
    return d_x.astype(x.dtype), *others

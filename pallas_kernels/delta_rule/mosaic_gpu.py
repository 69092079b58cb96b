"""The delta rule on Hopper GPUs: a linear attention whose values, what each step adds for its key, are computed on the
way.

A program computes 64 columns of one head's values and iterates over the sequence in chunks of 64 tokens. With e_i the
decay from a chunk's start to token i, D_ij that from token j to i, M_ij = D_ij k_i . k_j below the diagonal and S the
state at the start,

    r = T (v - e K S),  T = (I + M beta)^-1      u = beta r      O = (Q K^T * D, at and below the diagonal) u + e Q S

where r is the difference between each value and the memory's, and u what the step adds. T is computed for all chunks at
once by XLA, in float32; the products read 16 bits, and sums and states are float32. Where beta is near 2 and nothing is
forgotten, each step reflects the state, and the norm of the product of all steps, which T represents, is preserved only
to T's precision: T rounded to 16 bits amplifies errors from chunk to chunk. T is therefore read as a sum of two 16-bit
parts, which costs one more product in addition to ten (six for keys of 64) per chunk and 16 KiB more shared memory. The
other roundings, above all those of r, u and the values that T multiplies, accumulate like a random walk: with beta 2
and identical or random keys, the interpreted kernel's error after 512 tokens is 6 or 2 % of the largest output,
compared with float64 (44 and 5 % with T in 16 bits), where the XLA implementation, in float32, is at the 0.2 % of its
results' own rounding; with beta below 1 and random keys it is 0.6 %. Two parts for r, u and the values that T
multiplies as well, four more products per chunk of eleven (keys of 128), would halve the error for identical keys with
beta up to 2 but not that of the gradients of q and the decays, and is not done. Use the XLA implementation for such
inputs.

The steps of a token are treated as tokens of their own, of which the first decays and the last is read.

The gradient with respect to u is again a delta rule, run from the end: with x the cotangent that reaches u from later
outputs and states, d_u = T'^T x with T' = (I + beta M)^-1, d_v = beta d_u and d_beta = d_u . r. The gradients of q, k
and the decays are linear attentions with the values u; where two of them are bounded only in their difference, as the
cotangent of the state, they are computed as one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import hopper
from pallas_kernels.delta_rule.call import DeltaCall, spread, unserved
from pallas_kernels.delta_rule.xla import unit_inverse
from pallas_kernels.linear_attention import mosaic_gpu as linear
from pallas_kernels.linear_attention.hopper_chunks import (
    CHUNK,
    STAGES,
    across,
    as_read,
    by_row,
    columns_of,
    padded_dim,
    tile,
    whole,
)
from pallas_kernels.linear_attention.mosaic_gpu import Direction
from primitives.differentiation import differentiable

# Rows of a chunk's scalars: the sums of decays from linear attention's ``sums_in_chunks``, and beta.
SINCE, UNTIL, AGAIN, BETA = range(4)
LARGEST = 128


def objection(call: DeltaCall) -> str | None:
    """Why the kernel does not support the call, or None."""
    if (reason := unserved(call)) is not None:
        return reason
    q, k, v = call.q, call.k, call.v
    if (reason := hopper.objection()) is not None:
        return reason
    if {q.dtype, k.dtype, v.dtype} != {jnp.dtype(jnp.bfloat16)}:
        return (
            "its products take bfloat16 (the range of float16 is too small for states); "
            f"q, k and v are {q.dtype}, {k.dtype} and {v.dtype}"
        )
    if q.shape[1] == 1:
        return "one token is no chunk"
    if max(q.shape[3], v.shape[3]) > LARGEST:
        return (
            f"key_dim and value_dim can be at most {LARGEST}, for shared memory "
            f"to hold a chunk and the state; got {q.shape[3]} and {v.shape[3]}"
        )
    return None


def delta_rule(call: DeltaCall) -> tuple[jax.Array, jax.Array]:
    """The op."""
    # A chunk always has 64 steps, the rows of one product. The first step of a token decays and the last is read.
    steps = call.steps
    q, logs = (
        spread(call.q, steps, steps - 1),
        None if call.decay is None else spread(call.decay.astype(jnp.float32), steps, 0),
    )
    out, state = _recurrence(call.scale, q, call.k, call.v, call.beta.astype(jnp.float32), logs, call.start)
    return out[:, steps - 1 :: steps], state


@differentiable(1, kernel=True)
def _recurrence(
    scale: float, q: jax.Array, k: jax.Array, v: jax.Array, beta: jax.Array, logs: jax.Array | None, state: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Outputs in v's dtype and the last state; beta and logs (batch, length, heads)."""
    return _forward(scale, q, k, v, beta, logs, state)[0]


def _forward(
    scale: float, q: jax.Array, k: jax.Array, v: jax.Array, beta: jax.Array, logs: jax.Array | None, state: jax.Array
) -> tuple[Any, Any]:
    out, residual, last = _run(scale, q, k, v, None, beta, logs, state)
    return (out, last), (q, k, residual, beta, logs, state)


def _backward(scale: float, arrays: Any, cotangents: Any) -> tuple[Any, ...]:
    q, k, residual, beta, logs, state = arrays
    d_out, d_last = cotangents
    d_v, d_beta, d_state = _run(scale, q, k, d_out, residual, beta, logs, d_last)
    u = (beta[..., None] * residual.astype(jnp.float32)).astype(residual.dtype)
    # Rounded once, so that terms that cancel in the decays' cotangents are identical.
    d_read = (scale * d_out.astype(jnp.float32)).astype(q.dtype)
    read, held, back = (
        Direction(reverse, strict, 1.0, jnp.dtype(jnp.float32))
        for reverse, strict in ((False, False), (False, True), (True, False))
    )
    memory, behind = jnp.swapaxes(state, 2, 3), jnp.swapaxes(d_last, 2, 3)
    probes = (None, None) if logs is None else (q, k)
    d_q, before, late = linear.sweep(read, d_read, u, k, logs, memory, probes[0])
    d_k_held, _, late_held = linear.sweep(held, d_v, u, k, logs, memory, probes[1])
    # A token's u is read by the cotangent of the state: the outputs' contribution minus that of later steps. Without
    # decay each grows with the length, but not their difference: one sweep computes both, with a token's step before
    # its output.
    taken, under = (
        jnp.stack(pair, axis=2).reshape(q.shape[0], -1, *pair[0].shape[2:]) for pair in ((d_v, d_read), (-k, q))
    )
    wide_logs = None if logs is None else spread(logs, 2, 0)
    d_k_read, after, _ = linear.sweep(back, spread(u, 2, 1), taken, under, wide_logs, behind)
    d_k_read = d_k_read[:, 1::2]
    shared = d_out.shape[2] // q.shape[2]
    d_logs = None
    if logs is not None:
        early = jnp.sum(d_k_read * jnp.repeat(k, shared, axis=2), axis=3)
        met = linear.meeting(before, as_read(after[:, :, ::2]), as_read(behind))
        d_logs = linear.decay_cotangent(
            (late - late_held)[:, :, : q.shape[1]] - jnp.moveaxis(early, 1, 2), met, q.shape[1]
        )
    d_q, d_k = (x.reshape(*q.shape[:3], shared, q.shape[3]).sum(3).astype(q.dtype) for x in (d_q, d_k_read - d_k_held))
    return d_q, d_k, d_v, d_beta, d_logs, d_state


_recurrence.define(_forward, _backward)


def _run(
    scale: float,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    residual: jax.Array | None,
    beta: jax.Array,
    logs: jax.Array | None,
    state: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Runs a kernel; XLA does the rest: padding to whole tiles, sums of the decays, and the inverses.

    Without ``residual``, the forward pass: returns outputs and residuals (batch, length, heads, value_dim), and the
    last state. With ``residual``, the backward pass, where ``v`` is the cotangent of the outputs and ``state`` that of
    the last state: returns the cotangents of the values, of beta, and of the first state.
    """
    back, length, dtype = residual is not None, q.shape[1], q.dtype
    heads, key_dim, value_dim = state.shape[1:]
    keys, values = (padded_dim(n) for n in (key_dim, value_dim))
    arrays = {"q": whole(q, keys), "k": whole(k, keys), "v": whole(v, values)}
    batch, padded = arrays["q"].shape[:2]
    width = columns_of(keys)
    chunks, blocks = padded // CHUNK, values // width
    rates = jnp.moveaxis(jnp.pad(beta, ((0, 0), (0, padded - length), (0, 0))), 1, 2).reshape(
        batch, heads, chunks, 1, CHUNK
    )
    sums = (
        jnp.zeros((batch, heads, chunks, 3, CHUNK), jnp.float32)
        if logs is None
        else linear.sums_in_chunks(logs, chunks)
    )
    arrays["scalars"] = jnp.concatenate([sums, rates], axis=3)
    transition = _transition(arrays["k"], None if logs is None else sums[..., SINCE, :], rates, back)
    # Not by a cast and back, which the compiler may remove.
    high = lax.reduce_precision(transition, exponent_bits=8, mantissa_bits=7)
    arrays |= {"transition": high.astype(dtype), "rest": (transition - high).astype(dtype)}
    struct = jax.ShapeDtypeStruct
    out: list[Any] = [struct(arrays["v"].shape, dtype)]
    scratch: dict[str, Any] = {name: tile(width, STAGES, CHUNK, keys) for name in ("q", "k")}
    scratch |= {"v": tile(width, STAGES, CHUNK, width), "state": tile(width, keys, width)}
    scratch |= {name: tile(width, STAGES, CHUNK, CHUNK) for name in ("transition", "rest")}
    scratch |= {name: tile(width, CHUNK, width) for name in ("values", "written", "second" if not back else "first")}
    scratch["scalars"] = plgpu.SMEM((STAGES, 4, CHUNK), jnp.float32)
    # Holds the state while its registers are needed for other values.
    scratch["memory"] = tile(width, keys, width, dtype=jnp.float32)
    if residual is None:
        out.append(out[0])
    else:
        arrays["residual"] = whole(residual, values)
        out.append(struct((batch, heads, blocks, padded), jnp.float32))
        scratch |= {"residual": tile(width, STAGES, CHUNK, width), "dots": plgpu.SMEM((CHUNK,), jnp.float32)}
    scratch["ready"] = plgpu.Barrier(num_arrivals=len(arrays), num_barriers=STAGES)
    arrays["state"] = jnp.pad(state, ((0, 0), (0, 0), (0, keys - key_dim), (0, values - value_dim)))
    out.append(struct(arrays["state"].shape, jnp.float32))

    def delta_rule_forward(*references: Any) -> None:
        given = dict(zip(arrays, references, strict=False))
        _Program(scale, given, references[len(given) : -1], references[-1], reverse=False).run()

    def delta_rule_backward(*references: Any) -> None:
        given = dict(zip(arrays, references, strict=False))
        _Program(scale, given, references[len(given) : -1], references[-1], reverse=True).run()

    pairs = batch * heads * padded * CHUNK
    kernel = hopper.kernel(
        delta_rule_backward if back else delta_rule_forward,
        outputs=out,
        scratch=[scratch],
        grid={"batch": batch, "head": heads, "columns": blocks},
        warpgroups=1,
        cost=pl.CostEstimate(
            flops=2 * pairs * (blocks * keys + 3 * values) + 6 * batch * heads * padded * keys * values,
            transcendentals=pairs * blocks,
            bytes_accessed=sum(math.prod(x.shape) * x.dtype.itemsize for x in [*arrays.values(), *out]),
        ),
    )
    first, second, last = kernel(*arrays.values())
    first, last = first[:, :length, :, :value_dim], last[:, :, :key_dim, :value_dim]
    return first, second[:, :length, :, :value_dim] if not back else jnp.moveaxis(second.sum(2), 1, 2)[:, :length], last


def _transition(k: jax.Array, since: jax.Array | None, beta: jax.Array, back: bool) -> jax.Array:
    """(I + M beta)^-1, or for the backward pass (I + beta M)^-1, for each chunk: (batch, heads, chunks, CHUNK, CHUNK).

    Args:
      k: (batch, length, groups, key_dim), whole chunks.
      since: sums of decays from the chunk's start, (batch, heads, chunks, CHUNK), or None without decays.
      beta: (batch, heads, chunks, 1, CHUNK).
      back: whether it is for the backward pass.
    """
    batch, _, groups, keys = k.shape
    k = jnp.moveaxis(k, 1, 2).reshape(batch, groups, -1, CHUNK, keys)
    alike = jnp.einsum("bgcik,bgcjk->bgcij", k, k, preferred_element_type=jnp.float32)
    alike = jnp.repeat(alike, beta.shape[1] // groups, axis=1)
    below = jnp.tril(jnp.ones((CHUNK, CHUNK), bool), -1)
    if since is not None:
        alike = alike * jnp.exp2(jnp.where(below, since[..., :, None] - since[..., None, :], -jnp.inf))
    return unit_inverse(jnp.where(below, alike, 0.0) * (jnp.swapaxes(beta, 3, 4) if back else beta))


@dataclasses.dataclass(frozen=True)
class _Program:
    """One program: all chunks for 64 columns of one head's values, with its references by name (``given``), the outputs
    ``made`` and the memory ``shared`` of :func:`_run`.
    """

    scale: float
    given: dict[str, Any]
    made: tuple[Any, ...]
    shared: dict[str, Any]
    reverse: bool

    @property
    def chunks(self) -> int:
        return self.given["q"].shape[1] // CHUNK

    @property
    def width(self) -> int:
        return self.shared["v"].shape[2]

    def columns(self) -> Any:
        return pl.ds(lax.axis_index("columns") * self.width, self.width)

    def chunk(self, step: Any) -> Any:
        return self.chunks - 1 - step if self.reverse else step

    def rows(self, ref: Any, step: Any, dims: Any) -> Any:
        """The rows of a step in (batch, length, heads or a divisor, dim)."""
        own = lax.div(lax.axis_index("head"), jnp.int32(self.given["state"].shape[1] // ref.shape[2]))
        return ref.at[lax.axis_index("batch"), pl.ds(self.chunk(step) * CHUNK, CHUNK), own, dims]

    def fetch(self, step: Any, slot: Any) -> None:
        for name in [n for n in self.given if n != "state"]:
            if name in ("scalars", "transition", "rest"):
                source = self.given[name].at[lax.axis_index("batch"), lax.axis_index("head"), self.chunk(step)]
            else:
                source = self.rows(self.given[name], step, slice(None) if name in ("q", "k") else self.columns())
            plgpu.copy_gmem_to_smem(source, self.shared[name].at[slot], self.shared["ready"].at[slot])

    def run(self) -> None:
        for step in range(min(STAGES, self.chunks)):
            self.fetch(jnp.int32(step), step)
        way = Direction(self.reverse, False, self.scale, None)

        def advance(step: Any, _: None) -> None:
            slot = lax.rem(step, jnp.int32(STAGES))
            plgpu.barrier_wait(self.shared["ready"].at[slot])
            self.store("state", hopper.load(memory))
            plgpu.commit_smem()
            memory[...] = (self.back if self.reverse else self.forward)(way, step, slot)

            @pl.when(step + STAGES < self.chunks)
            def _next() -> None:
                self.fetch(step + STAGES, slot)

        memory = self.shared["memory"]
        place = lax.axis_index("batch"), lax.axis_index("head"), slice(None), self.columns()
        memory[...] = hopper.load(self.given["state"].at[place])
        lax.fori_loop(0, self.chunks, advance, None)
        self.made[-1][place] = hopper.load(memory)
        plgpu.wait_smem_to_gmem(0)

    def left(self, slot: Any) -> jax.Array:
        """The decay over the whole chunk, a scalar."""
        return jnp.exp2(self.shared["scalars"][slot, SINCE, CHUNK - 1])

    def store(self, name: str, x: jax.Array) -> None:
        self.shared[name][...] = x.astype(self.given["q"].dtype)

    def store_scores(self, way: Direction, slot: Any, scores: jax.Array) -> Any:
        """Weights the scores by the decays, stores them and returns the reference."""
        into = linear.scores_of(self.shared)
        since, again = (self.shared["scalars"].at[slot, row] for row in (SINCE, AGAIN))
        into[...] = (self.scale * scores * linear.weights(way, since, again)).astype(into.dtype)
        return into

    def number(self, slot: Any, row: int) -> jax.Array:
        """A row of the scalars, one number per row of values, broadcast to all columns. Loaded where it is used, to
        save registers.
        """
        return across(by_row(self.shared["scalars"].at[slot, row]), self.width)

    def moved(self, slot: Any, read: Callable[[Any], Any]) -> jax.Array:
        """The chunk's transition, read by ``read``, times the values."""
        nothing = hopper.arrange(jnp.zeros((CHUNK, self.width), jnp.float32))
        high, low = (read(self.shared[name].at[slot]) for name in ("transition", "rest"))
        (total,) = hopper.add_products((nothing, high, self.shared["values"], low, self.shared["values"]))
        return total

    def forward(self, way: Direction, step: Any, slot: Any) -> jax.Array:
        """Computes the outputs and residuals of a chunk; returns the state after it."""
        shared = self.shared
        q, k = shared["q"].at[slot], shared["k"].at[slot]
        left = self.left(slot)
        scores, carried, held = hopper.products((q, hopper.transposed(k)), (q, shared["state"]), (k, shared["state"]))
        self.store(
            "values", hopper.load(shared["v"].at[slot]).astype(jnp.float32) - jnp.exp2(self.number(slot, SINCE)) * held
        )
        score_tile = self.store_scores(way, slot, scores)
        plgpu.commit_smem()
        residual = self.moved(slot, lambda tile: tile)
        # Rounded as it is stored for the gradient, so that both passes use the same values.
        residual = residual.astype(self.given["q"].dtype)
        added = residual.astype(jnp.float32) * self.number(slot, BETA)
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        shared["second"][...] = residual
        self.store("values", added)
        self.store("written", added * jnp.exp2(self.number(slot, UNTIL)))
        plgpu.commit_smem()
        carried = self.scale * jnp.exp2(self.number(slot, SINCE)) * carried
        state = left * hopper.load(shared["memory"])
        result, state = hopper.add_products(
            (carried, score_tile, shared["values"]), (state, hopper.transposed(k), shared["written"])
        )
        self.store("written", result)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(shared["written"], self.rows(self.made[0], step, self.columns()))
        plgpu.copy_smem_to_gmem(shared["second"], self.rows(self.made[1], step, self.columns()))
        return state

    def back(self, way: Direction, step: Any, slot: Any) -> jax.Array:
        """Computes the cotangents of a chunk's values, and the products of those of u with the residuals; returns the
        cotangent of the state before it.
        """
        shared = self.shared
        q, k, d_out = (shared[name].at[slot] for name in ("q", "k", "v"))
        left = self.left(slot)
        scores, carried = hopper.products((k, hopper.transposed(q)), (k, shared["state"]))
        score_tile = self.store_scores(way, slot, scores)
        plgpu.commit_smem()
        (reached,) = hopper.add_products((jnp.exp2(self.number(slot, UNTIL)) * carried, score_tile, d_out))
        self.store("values", reached)
        plgpu.commit_smem()
        d_u = self.moved(slot, hopper.transposed)
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        shared["dots"][...] = jnp.sum(d_u * hopper.load(shared["residual"].at[slot]).astype(jnp.float32), axis=1)
        d_u = d_u * self.number(slot, BETA)
        self.store("first", d_u)
        self.store("values", -jnp.exp2(self.number(slot, SINCE)) * d_u)
        self.store("written", self.scale * jnp.exp2(self.number(slot, SINCE)) * hopper.load(d_out).astype(jnp.float32))
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(shared["first"], self.rows(self.made[0], step, self.columns()))
        rows = pl.ds(self.chunk(step) * CHUNK, CHUNK)
        dots = self.made[1].at[lax.axis_index("batch"), lax.axis_index("head"), lax.axis_index("columns"), rows]
        plgpu.copy_smem_to_gmem(shared["dots"], dots)
        state = left * hopper.load(shared["memory"])
        (state,) = hopper.add_products(
            (state, hopper.transposed(q), shared["written"], hopper.transposed(k), shared["values"])
        )
        return state

"""The selective scan on Hopper GPUs: token by token, with the states of 64 channels in the registers of one warpgroup.

The cost is dominated by one exponential per channel, state and token (the special function units compute 16 per cycle
and core), so that loads must not take the program's time: x, the step, B and C are copied by the tensor memory
accelerator, a chunk ahead. Everything is float32.

The forward pass stores the states at chunk boundaries if a gradient is needed. The backward pass iterates over the
chunks in reverse, recomputes a chunk's states into shared memory, and goes back through them. Softplus, skip connection
and gate, and the sums of dB and dC over programs, are left to XLA.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import documents, hopper
from pallas_kernels.selective_scan.call import ScanCall
from primitives.differentiation import differentiable

# Channels of a program: the rows of the registers' layout come in 64.
CHANNELS = 64
# Chunks in flight.
STAGES = 2
# Shared memory for a chunk's states in the gradient, bytes, and the longest chunk.
HISTORY, LONGEST = 128 * 1024, 16
LARGEST = 64


def objection(call: ScanCall) -> str | None:
    """Why the kernel does not support the call, or None."""
    if call.A is None:
        return "its transitions are exponentials; this one is implicit"
    if call.starts is not None:
        return documents.OBJECTION
    if (reason := hopper.objection()) is not None:
        return reason
    if call.x.dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
        return f"it computes in float32; x is {call.x.dtype}"
    if call.x.shape[1] == 1:
        return "one token is no sequence"
    if call.A.shape[1] > LARGEST:
        return f"state_dim can be at most {LARGEST}, for the states to stay in registers; got {call.A.shape[1]}"
    return None


def selective_scan(call: ScanCall) -> tuple[jax.Array, jax.Array]:
    """The op."""
    assert call.A is not None  # else refused by objection()
    single = jnp.float32
    batch, length, channels = call.x.shape
    groups, state_dim = call.groups, call.A.shape[1]
    # Padded with zeros to whole chunks, programs and columns of 8: steps and states of 0 change nothing.
    own = channels // groups
    chunk = chunk_length(state_dim)
    more, wider, longer = -own % CHANNELS, -state_dim % 8, -length % chunk

    def tokens(a: jax.Array) -> jax.Array:
        a = jnp.pad(a.reshape(batch, length, groups, own), ((0, 0), (0, longer), (0, 0), (0, more)))
        return a.reshape(batch, length + longer, -1)

    def states(a: jax.Array) -> jax.Array:
        """(..., channels, state_dim)."""
        a = a.astype(single).reshape(-1, groups, own, state_dim)
        a = jnp.pad(a, ((0, 0), (0, 0), (0, more), (0, wider)))
        return a.reshape(a.shape[0], -1, a.shape[3])

    def shared(a: jax.Array) -> jax.Array:
        return jnp.pad(
            a.astype(single).reshape(batch, length, groups, state_dim), ((0, 0), (0, longer), (0, 0), (0, wider))
        )

    out, last = _recurrence(
        chunk, states(call.A)[0], states(call.start), tokens(call.x.astype(single)), tokens(call.step), shared(call.B),
        shared(call.C)
    )  # fmt: skip
    out = out.reshape(batch, length + longer, groups, -1)[:, :length, :, :own].reshape(call.x.shape)
    return out, last.reshape(batch, groups, -1, last.shape[2])[:, :, :own, :state_dim].reshape(
        batch, channels, state_dim
    )


def chunk_length(state_dim: int) -> int:
    """Tokens between two stored states: as many as fit the shared memory of the backward pass."""
    room = HISTORY // (CHANNELS * (state_dim + -state_dim % 8) * 4)
    return min(LONGEST, 1 << (room.bit_length() - 1))


@differentiable(1, kernel=True)
def _recurrence(
    chunk: int, rates: jax.Array, state: jax.Array, x: jax.Array, step: jax.Array, b: jax.Array, c: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Outputs (batch, length, channels) and the last state; sizes are whole chunks and programs.

    Args:
      chunk: number of tokens that are loaded at once.
      rates: (channels, state_dim).
      state: (batch, channels, state_dim).
      x, step: (batch, length, channels).
      b, c: (batch, length, groups, state_dim).
    """
    out, last = _scan(chunk, False, rates, state, x, step, b, c)
    return out, last


def _forward(chunk: int, *arrays: Any) -> tuple[Any, Any]:
    out, last, boundaries = _scan(chunk, True, *arrays)
    rates, _, *tokens = arrays
    return (out, last), (rates, boundaries, *tokens)


def _backward(chunk: int, residuals: Any, cotangents: Any) -> tuple[jax.Array, ...]:
    rates, boundaries, x, step, b, c = residuals
    d_out, d_last = cotangents
    d_x, d_step, d_b, d_c, d_rates, d_state = _scan_back(chunk, rates, boundaries, x, step, b, c, d_out, d_last)
    # A program sums over its own channels; the sums of a group's programs are added here.
    d_b, d_c = (d.reshape(d.shape[0], b.shape[2], -1, *d.shape[2:]).sum(2).swapaxes(1, 2) for d in (d_b, d_c))
    return d_rates.sum(0), d_state, d_x, d_step, d_b, d_c


_recurrence.define(_forward, _backward)


def _struct(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _kernel(
    body: Any, chunk: int, arrays: dict[str, jax.Array], out: dict[str, Any], scratch: dict[str, Any], exponentials: int
) -> list[jax.Array]:
    """Runs ``body(given, made, shared)`` with references by name; arrays along the length, which are copied ahead by
    TMA, have a ring of buffers.
    """
    batch, length, channels = arrays["x"].shape
    state_dim = arrays["rates"].shape[1]
    ahead = {
        n: (STAGES, chunk, state_dim if n in ("b", "c") else CHANNELS)
        for n in arrays
        if n in ("x", "step", "b", "c", "d_out")
    }
    memory: dict[str, Any] = {n: plgpu.SMEM(shape, jnp.float32) for n, shape in (ahead | scratch).items()}
    memory["ready"] = plgpu.Barrier(num_arrivals=len(ahead), num_barriers=STAGES)

    def run(*references: Any) -> None:
        given = dict(zip(arrays, references, strict=False))
        body(given, dict(zip(out, references[len(given) : -1], strict=True)), references[-1])

    run.__name__ = body.__name__.strip("_")
    total = batch * length * channels * state_dim
    kernel = hopper.kernel(
        run,
        outputs=list(out.values()),
        scratch=[memory],
        grid={"batch": batch, "block": channels // CHANNELS},
        warpgroups=1,
        cost=pl.CostEstimate(
            flops=total * (5 if exponentials == 1 else 19),
            transcendentals=total * exponentials,
            bytes_accessed=4 * sum(math.prod(x.shape) for x in [*arrays.values(), *out.values()]),
        ),
    )
    return kernel(*arrays.values())


def _scan(
    chunk: int,
    keep: bool,
    rates: jax.Array,
    state: jax.Array,
    x: jax.Array,
    step: jax.Array,
    b: jax.Array,
    c: jax.Array,
) -> list[jax.Array]:
    """Returns outputs, the last state, and with ``keep`` the state before each chunk, (batch, chunks, channels,
    state_dim).
    """
    batch, length, channels = x.shape
    out = {"out": _struct(*x.shape), "last": _struct(*state.shape)}
    if keep:
        out["kept"] = _struct(batch, length // chunk, channels, rates.shape[1])
    arrays = {"rates": rates, "state": state, "x": x, "step": step, "b": b, "c": c}
    return _kernel(_selective_scan, chunk, arrays, out, {"out": (chunk, CHANNELS)}, 1)


def _scan_back(
    chunk: int,
    rates: jax.Array,
    boundaries: jax.Array,
    x: jax.Array,
    step: jax.Array,
    b: jax.Array,
    c: jax.Array,
    d_out: jax.Array,
    d_last: jax.Array,
) -> list[jax.Array]:
    """Returns the cotangents of x and of the step; of b and c per program, (batch, programs, length, state_dim); of the
    rates per batch element; and of the first state.
    """
    batch, length, channels = x.shape
    state_dim = rates.shape[1]
    by_program = _struct(batch, channels // CHANNELS, length, state_dim)
    out = {"d_x": _struct(*x.shape), "d_step": _struct(*x.shape), "d_b": by_program, "d_c": by_program}
    out |= {"d_rates": _struct(*d_last.shape), "d_state": _struct(*d_last.shape)}
    scratch: dict[str, Any] = {
        "d_x": (chunk, CHANNELS),
        "d_step": (chunk, CHANNELS),
        "d_b": (chunk, state_dim),
        "d_c": (chunk, state_dim),
    }
    arrays = {
        "rates": rates,
        "boundaries": boundaries,
        "x": x,
        "step": step,
        "b": b,
        "c": c,
        "d_out": d_out,
        "d_last": d_last,
    }
    return _kernel(_selective_scan_back, chunk, arrays, out, scratch | {"history": (chunk, CHANNELS, state_dim)}, 2)


def _fetch(given: dict[str, Any], shared: dict[str, Any], index: Any, slot: Any) -> None:
    """Copies a chunk into a slot: this program's channels, and B and C of their group."""
    batch, block = lax.axis_index("batch"), lax.axis_index("block")
    chunk, programs = shared["x"].shape[1], given["x"].shape[2] // CHANNELS
    group = lax.div(block, jnp.int32(programs // given["b"].shape[2]))
    rows = pl.ds(index * chunk, chunk)
    for name in [n for n in given if n in shared]:
        part = group if name in ("b", "c") else pl.ds(block * CHANNELS, CHANNELS)
        plgpu.copy_gmem_to_smem(given[name].at[batch, rows, part], shared[name].at[slot], shared["ready"].at[slot])


def _by_channel(reference: Any, state_dim: int) -> jax.Array:
    """Loads one number per channel, broadcast to all its states."""
    return lax.broadcast_in_dim(hopper.load(reference, plgpu.Layout.WGMMA.reduce(1)), (CHANNELS, state_dim), (0,))


def _by_state(reference: Any) -> jax.Array:
    """Loads one number per state, broadcast to all channels."""
    values = hopper.load(reference, plgpu.Layout.WGMMA.reduce(0))
    return lax.broadcast_in_dim(values, (CHANNELS, values.shape[0]), (1,))


def _after(shared: dict[str, Any], slot: Any, t: Any, binary: jax.Array, h: jax.Array) -> jax.Array:
    """The state after a token; ``binary`` are the rates to base 2."""
    dt, value = (_by_channel(shared[name].at[slot, t], h.shape[1]) for name in ("step", "x"))
    return jnp.exp2(dt * binary) * h + dt * value * _by_state(shared["b"].at[slot, t])


def _selective_scan(given: dict[str, Any], made: dict[str, Any], shared: dict[str, Any]) -> None:
    batch, block = lax.axis_index("batch"), lax.axis_index("block")
    own = pl.ds(block * CHANNELS, CHANNELS)
    size = shared["x"].shape[1]
    chunks = given["x"].shape[1] // size
    for index in range(min(STAGES, chunks)):
        _fetch(given, shared, jnp.int32(index), index)
    binary = hopper.load(given["rates"].at[own]) * math.log2(math.e)

    def chunk(index: Any, h: jax.Array) -> jax.Array:
        slot = lax.rem(index, jnp.int32(STAGES))
        if "kept" in made:
            made["kept"][batch, index, own] = h
        plgpu.barrier_wait(shared["ready"].at[slot])
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)

        def token(t: Any, h: jax.Array) -> jax.Array:
            h = _after(shared, slot, t, binary, h)
            shared["out"][t] = jnp.sum(h * _by_state(shared["c"].at[slot, t]), axis=1)
            return h

        h = lax.fori_loop(0, size, token, h)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(shared["out"], made["out"].at[batch, pl.ds(index * size, size), own])

        @pl.when(index + STAGES < chunks)
        def _next() -> None:
            _fetch(given, shared, index + STAGES, slot)

        return h

    made["last"][batch, own] = lax.fori_loop(0, chunks, chunk, hopper.load(given["state"].at[batch, own]))
    plgpu.wait_smem_to_gmem(0)


def _selective_scan_back(given: dict[str, Any], made: dict[str, Any], shared: dict[str, Any]) -> None:
    batch, block = lax.axis_index("batch"), lax.axis_index("block")
    own = pl.ds(block * CHANNELS, CHANNELS)
    size = shared["x"].shape[1]
    chunks = given["x"].shape[1] // size
    for index in range(min(STAGES, chunks)):
        _fetch(given, shared, jnp.int32(chunks - 1 - index), index)
    natural = hopper.load(given["rates"].at[own])
    binary = natural * math.log2(math.e)
    states = natural.shape[1]

    def chunk(done: Any, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        slot, index = lax.rem(done, jnp.int32(STAGES)), chunks - 1 - done
        before = hopper.load(given["boundaries"].at[batch, index, own])
        plgpu.barrier_wait(shared["ready"].at[slot])
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)

        def again(t: Any, h: jax.Array) -> jax.Array:
            shared["history"][t] = h
            return _after(shared, slot, t, binary, h)

        def token(passed: Any, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            d_h, d_rates, h = carry
            t = size - 1 - passed
            dt, value, d_y = (_by_channel(shared[name].at[slot, t], states) for name in ("step", "x", "d_out"))
            b = _by_state(shared["b"].at[slot, t])
            d_h = d_h + d_y * _by_state(shared["c"].at[slot, t])
            shared["d_c"][t] = jnp.sum(d_y * h, axis=0)
            shared["d_b"][t] = jnp.sum(d_h * dt * value, axis=0)
            shared["d_x"][t] = jnp.sum(d_h * b * dt, axis=1)
            previous = hopper.load(shared["history"].at[t])
            d_before = d_h * jnp.exp2(dt * binary)
            d_exponent = d_before * previous
            shared["d_step"][t] = jnp.sum(d_h * b * value + d_exponent * natural, axis=1)
            return d_before, d_rates + d_exponent * dt, previous

        d_h, d_rates, _ = lax.fori_loop(0, size, token, (*carry, lax.fori_loop(0, size, again, before)))
        plgpu.commit_smem()
        rows = pl.ds(index * size, size)
        for name, place in (
            ("d_x", (batch, rows, own)),
            ("d_step", (batch, rows, own)),
            ("d_b", (batch, block, rows)),
            ("d_c", (batch, block, rows)),
        ):
            plgpu.copy_smem_to_gmem(shared[name], made[name].at[place])

        @pl.when(done + STAGES < chunks)
        def _next() -> None:
            _fetch(given, shared, chunks - 1 - done - STAGES, slot)

        return d_h, d_rates

    start = hopper.load(given["d_last"].at[batch, own]), hopper.arrange(jnp.zeros((CHANNELS, states), jnp.float32))
    made["d_state"][batch, own], made["d_rates"][batch, own] = lax.fori_loop(0, chunks, chunk, start)
    plgpu.wait_smem_to_gmem(0)

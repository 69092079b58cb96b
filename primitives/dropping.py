"""Which entries of an array a layer drops: random bits by a hash of a key, a step and a position.

JAX's own generator (Threefry) is compiled as a loop of its own for each place that draws: 28 places of a MaxViT took a
quarter of the time until its training step was compiled, and on a CPU each number takes longer than most layers spend
on it. Dropping needs bits that look independent, not bits that nobody can predict. So the key is Threefry's, one for
each layer, and what follows from it is a hash, a few integer operations that are fused with what uses them:

    bits(row, i) = h(h(i xor a xor r) xor (b + r)),    r = h(row xor b)
    a = h(... h(step xor key_1) ... xor key_n),    b = h(a + 0x9E3779B9)

with row the index of the first axis, i that of the others, and the finalizer h of MurmurHash3 (Appleby, 2011), a
bijection of 32 bits in which each bit of the input changes each bit of the output with probability 1/2. The bits of an
entry don't depend on how an array is divided over devices.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp


def _mixed(x: jax.Array) -> jax.Array:
    """MurmurHash3's finalizer, of uint32."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def random_bits(key: jax.Array, step: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Random bits, uint32 of ``shape``, of the ``step``-th draw (uint32 scalar) with ``key``.

    Entries of one draw don't repeat below 2^32 of them for each index of the first axis.
    """
    a = step.astype(jnp.uint32)
    for word in jax.random.key_data(key).reshape(-1):
        a = _mixed(a ^ word)
    b = _mixed(a + jnp.uint32(0x9E3779B9))
    rows, inner = shape[:1], shape[1:]
    if rows:
        row = _mixed(jax.lax.iota(jnp.uint32, rows[0]) ^ b).reshape(rows + (1,) * len(inner))
        a, b = a ^ row, b + row
    place = jnp.arange(math.prod(inner), dtype=jnp.uint32).reshape(inner)
    return _mixed(_mixed(place ^ a) ^ b)


@functools.partial(jax.jit, static_argnames="shape")
def kept(key: jax.Array, step: jax.Array, probability: jax.Array | float, shape: tuple[int, ...]) -> jax.Array:
    """Bool of ``shape``, each True with ``probability``: see :func:`random_bits`."""
    return (random_bits(key, step, shape) >> 8).astype(jnp.float32) * 2.0**-24 < probability

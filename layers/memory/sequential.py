"""Slow reference for :mod:`layers.memory.learning`: the memory token by token, with its weights materialized at each.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from layers.memory.choices import Memory
from layers.memory.learning import MemoryInputs, Weights, clip_factor


def sequential(memory: Memory, weights: Weights, tokens: MemoryInputs, chunk: int) -> jax.Array:
    """As :func:`layers.memory.learning.parallel`."""
    read = jax.vmap(jax.vmap(lambda w, x: _apply(memory, w, x)))
    surprise = jax.vmap(jax.vmap(lambda w, k, v, threshold: _gradient(memory, w, k, v, threshold)))
    retention = memory.retention
    batch, heads, length = tokens.step.shape
    ones = jnp.ones((batch, heads, length), tokens.step.dtype)
    keep = ones if tokens.log_keep is None else jnp.exp(tokens.log_keep)
    momentum = 0 * ones if tokens.log_momentum is None else jnp.exp(tokens.log_momentum)
    threshold = ones if tokens.threshold is None else tokens.threshold
    real = jnp.ones((batch, length), bool) if tokens.mask is None else tokens.mask

    def body(carry: Any, now: Any) -> tuple[Any, jax.Array]:
        accumulated, past, start, linear = carry
        i, query, key, value, step, keep, momentum, threshold, real = now
        gradients = surprise(start, key, value, threshold[..., None])

        def factor(x: jax.Array) -> jax.Array:
            return x[..., None, None]

        def where_real(new: Weights, old: Weights) -> Weights:
            return tuple(jnp.where(real[:, None, None, None], a, b) for a, b in zip(new, old))

        past = where_real(tuple(factor(momentum) * s - factor(step) * g for s, g in zip(past, gradients)), past)
        accumulated = where_real(tuple(factor(keep) * a + s for a, s in zip(accumulated, past)), accumulated)
        linear = where_real(tuple(factor(keep) * w + s for w, s in zip(linear, past)), linear)
        mapped = tuple(retention.weights(a) for a in accumulated)
        y = read(mapped if retention.every_token else linear, query)
        ends = (i + 1) % chunk == 0
        start = tuple(jnp.where(ends, a, b) for a, b in zip(mapped, start))
        linear = tuple(jnp.where(ends, a, b) for a, b in zip(mapped, linear))
        return (accumulated, past, start, linear), y

    accumulated = tuple(jnp.broadcast_to(w, (batch, *w.shape)) for w in weights)
    start = tuple(retention.weights(a) for a in accumulated)
    along = [
        jnp.moveaxis(x, 2, 0) for x in (tokens.query, tokens.key, tokens.value, tokens.step, keep, momentum, threshold)
    ]
    carry = (accumulated, tuple(jnp.zeros_like(a) for a in accumulated), start, start)
    _, y = jax.lax.scan(body, carry, (jnp.arange(length), *along, jnp.moveaxis(real, 1, 0)))
    return jnp.moveaxis(y, 0, 2)


def _apply(memory: Memory, weights: Weights, x: jax.Array) -> jax.Array:
    return memory.structure(x, lambda i, h: h @ weights[i])


def _gradient(memory: Memory, weights: Weights, key: jax.Array, value: jax.Array, threshold: jax.Array) -> Weights:
    """The gradient of the attentional bias of one token with respect to the weights."""
    y, pull = jax.vjp(lambda weights: _apply(memory, weights, key), weights)
    (gradients,) = pull(memory.bias(y, value, threshold))
    if memory.algorithm.clip is None:
        return gradients
    return tuple(g * clip_factor(jnp.sum(jnp.square(g)), memory.algorithm.clip) for g in gradients)

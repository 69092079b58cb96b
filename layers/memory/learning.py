"""Learning and reading of a memory, chunk by chunk: Titans (A. Behrouz et al., 2024, arXiv:2501.00663), section 3.2.

Within a chunk all gradients g_j are taken at the weights W at the start of the chunk:

    S_i = eta_i S_(i-1) - theta_i g_i      A_i = keep_i A_(i-1) + S_i      y_i = M(W_i; q_i)      W_i = retention(A_i)

With chunks of one token this is the papers' recurrence; longer chunks are a different algorithm, which consists of
matrix products. A token's gradient of a matrix is the outer product of its input h_j and the error d_j at its output.
So, with C a lower triangular matrix of products of keeps and momenta,

    A_i = a_i A_0 + b_i S_0 - sum_(j <= i) C_ij h_j d_j^T      x A_i = a_i x A_0 + b_i x S_0 - sum_j (C_ij <x, h_j>) d_j

and reading, layer by layer, is a linear attention over the chunk: nothing of the size chunk x weights is stored. A scan
over the chunks keeps only the states between them for the backward pass. :mod:`layers.memory.sequential` computes the
same token by token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from layers.memory.choices import Memory

Weights = tuple[jax.Array, ...]
"""The matrices of a memory, each (batch, heads, in, out)."""


@struct.dataclass
class MemoryInputs:
    """Inputs of a memory for a sequence of tokens, at least float32.

    Attributes:
      query, key, value: (batch, heads, length, size).
      step: theta, (batch, heads, length).
      log_keep: logarithm of keep, at most 0, same shape; None for keep = 1.
      log_momentum: logarithm of eta, same shape; None without momentum.
      threshold: threshold of the attentional bias, same shape; None if it has none.
      mask: bool (batch, length), True = real; padding, which is trailing, leaves the memory unchanged. None if all are
        real.
    """

    query: jax.Array
    key: jax.Array
    value: jax.Array
    step: jax.Array
    log_keep: jax.Array | None = None
    log_momentum: jax.Array | None = None
    threshold: jax.Array | None = None
    mask: jax.Array | None = None

    def map(self, along: Callable[[jax.Array], jax.Array], masks: Callable[[jax.Array], jax.Array]) -> MemoryInputs:
        """Applies ``along`` to every array (length at axis 2), and ``masks`` to the mask (length at axis 1)."""
        fields: dict[str, Any] = {
            name: None if x is None else along(x) for name, x in vars(self).items() if name != "mask"
        }
        return MemoryInputs(**fields, mask=None if self.mask is None else masks(self.mask))


@struct.dataclass
class MemoryState:
    """The state of a memory between two tokens.

    Attributes:
      accumulated: A, from which the retention computes the weights.
      surprise: S, the momentum; None without it.
      start: the weights at the start of the chunk; None at the start of a chunk, where they follow from A.
      reading: weights that are updated linearly from ``start``, if the retention is applied only at boundaries of
        chunks; else None.
    """

    accumulated: Weights
    surprise: Weights | None
    start: Weights | None = None
    reading: Weights | None = None


def initial_state(memory: Memory, weights: Weights, batch: int, *, between_chunks: bool = False) -> MemoryState:
    """The state before the first token.

    Args:
      weights: the initial accumulators, each (heads, in, out).
      batch: number of rows.
      between_chunks: omit the fields that are only needed inside a chunk.
    """
    accumulated = tuple(jnp.broadcast_to(w, (batch, *w.shape)) for w in weights)
    surprise = tuple(jnp.zeros_like(a) for a in accumulated) if memory.algorithm.momentum else None
    if between_chunks:
        return MemoryState(accumulated, surprise)
    # Separate arrays: a state whose leaves share a buffer can't be donated.
    start = tuple(jnp.copy(w) for w in weights_of(memory, accumulated))
    reading = None if memory.retention.linear or memory.retention.every_token else tuple(jnp.copy(w) for w in start)
    return MemoryState(accumulated, surprise, start, reading)


def weights_of(memory: Memory, accumulated: Weights) -> Weights:
    """The weights W that the retention computes from the accumulators A."""
    return tuple(memory.retention.weights(a) for a in accumulated)


def recall(memory: Memory, weights: Weights, x: jax.Array) -> jax.Array:
    """Reads the memory with fixed weights: x (batch, heads, length, size) to the same shape."""
    return memory.structure(x, lambda i, h: h @ weights[i])


def _surprises(memory: Memory, weights: Weights, tokens: MemoryInputs) -> tuple[list[jax.Array], list[jax.Array]]:
    """The input of each matrix (batch, heads, length, in) and the error at its output (..., out), whose outer products
    are the gradients.
    """
    nothing = [jnp.zeros((*tokens.key.shape[:-1], w.shape[-1]), tokens.key.dtype) for w in weights]

    def forward(shifts: list[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
        seen: dict[int, jax.Array] = {}

        def linear(i: int, x: jax.Array) -> jax.Array:
            seen[i] = x
            return x @ weights[i] + shifts[i]

        y = memory.structure(tokens.key, linear)
        return y, [seen[i] for i in range(len(weights))]

    y, pull, inputs = jax.vjp(forward, nothing, has_aux=True)
    threshold = None if tokens.threshold is None else tokens.threshold[..., None]
    (errors,) = pull(memory.bias(y, tokens.value, threshold))
    if memory.algorithm.clip is not None:
        errors = [d * clip_factor(_square(h) * _square(d), memory.algorithm.clip) for h, d in zip(inputs, errors)]
    return inputs, errors


def clip_factor(square: jax.Array, clip: float) -> jax.Array:
    """The factor that clips a gradient of squared norm ``square`` to norm ``clip``."""
    return clip * jax.lax.rsqrt(jnp.maximum(square, clip**2))


def _square(x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(x), axis=-1, keepdims=True)


@struct.dataclass
class _Coefficients:
    """Coefficients of A_i in A_0, S_0 and the gradients, and of the last S in S_0 and the gradients.

    Attributes:
      kept, surprise: a and b, (batch, heads, length).
      gradients: C, (batch, heads, length, length).
      last_kept, last_gradients: (batch, heads) and (batch, heads, length).
    """

    kept: jax.Array
    gradients: jax.Array
    surprise: jax.Array | None = None
    last_kept: jax.Array | None = None
    last_gradients: jax.Array | None = None


def _coefficients(tokens: MemoryInputs, momentum: bool) -> _Coefficients:
    length = tokens.step.shape[-1]
    below = jnp.tril(jnp.ones((length, length), bool))

    def products(logs: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Products of the factors 1 to i, and of the factors j + 1 to i. These are exponentials of differences of sums,
        which are at most 0.
        """
        if logs is None:
            return jnp.ones_like(tokens.step), jnp.broadcast_to(below, (*tokens.step.shape, length)).astype(
                tokens.step.dtype
            )
        total = jnp.cumsum(logs if real is None else jnp.where(real, logs, 0), axis=-1)
        between = jnp.where(below, total[..., :, None] - total[..., None, :], 0)
        return jnp.exp(total), jnp.where(below, jnp.exp(between), 0)

    real = None if tokens.mask is None else tokens.mask[:, None]
    step = tokens.step if real is None else jnp.where(real, tokens.step, 0)
    kept, keeps = products(tokens.log_keep)
    if not momentum:
        return _Coefficients(kept, keeps * step[..., None, :])
    surprise, momenta = products(tokens.log_momentum)
    momenta = momenta * step[..., None, :]
    if real is not None:
        keeps = jnp.where(real[..., None, :], keeps, 0)  # padding adds no surprise
    b = jnp.einsum("bhij,bhj->bhi", keeps, surprise)
    return _Coefficients(kept, keeps @ momenta, b, surprise[..., -1], momenta[..., -1, :])


def learn(
    memory: Memory, state: MemoryState, tokens: MemoryInputs, finished: jax.Array | None = None
) -> tuple[jax.Array, MemoryState]:
    """Reads and learns from tokens of one chunk, or of a part of one.

    Args:
      state: the state before the tokens; without ``start`` they begin a chunk.
      finished: bool (batch,), rows whose chunk ends with these tokens; None if all do, and then the new state has no
        ``start`` either.

    Returns:
      The memory's output for each token, (batch, heads, length, size), and the new state.
    """
    start = weights_of(memory, state.accumulated) if state.start is None else state.start
    reading = state.accumulated if memory.retention.linear or memory.retention.every_token else state.reading or start
    inputs, errors = _surprises(memory, start, tokens)
    c = _coefficients(tokens, memory.algorithm.momentum)

    def added(i: int, gradients: jax.Array) -> jax.Array:
        """The gradients of matrix i weighted by (batch, heads, length) and summed."""
        return jnp.einsum("bhjm,bhjn->bhmn", inputs[i] * gradients[..., None], errors[i])

    def linear(i: int, x: jax.Array) -> jax.Array:
        if not memory.linear:
            return jnp.einsum("bhlm,bhlmn->bhln", x, memory.retention.weights(every(i)))
        y = c.kept[..., None] * (x @ reading[i]) - ((x @ jnp.swapaxes(inputs[i], -1, -2)) * c.gradients) @ errors[i]
        return y if state.surprise is None else y + _column(c.surprise, 1) * (x @ state.surprise[i])

    def every(i: int) -> jax.Array:
        """The accumulator of matrix i at every token: (batch, heads, length, in, out)."""
        weighted = jnp.swapaxes(c.gradients[..., None] * inputs[i][:, :, None], -1, -2)
        a = _column(c.kept, 2) * state.accumulated[i][:, :, None] - weighted @ errors[i][:, :, None]
        return a if state.surprise is None else a + _column(c.surprise, 2) * state.surprise[i][:, :, None]

    y = memory.structure(tokens.query, linear)
    gradients = [added(i, c.gradients[..., -1, :]) for i in range(len(inputs))]

    def advance(weights: Weights) -> Weights:
        new = [_column(c.kept[..., -1], 2) * w - g for w, g in zip(weights, gradients)]
        if state.surprise is not None:
            assert c.surprise is not None
            new = [w + _column(c.surprise[..., -1], 2) * s for w, s in zip(new, state.surprise)]
        return tuple(new)

    accumulated, surprise = advance(state.accumulated), None
    if state.surprise is not None:
        assert c.last_gradients is not None
        surprise = tuple(_column(c.last_kept, 2) * s - added(i, c.last_gradients) for i, s in enumerate(state.surprise))
    if finished is None:
        return y, MemoryState(accumulated, surprise)
    fresh = weights_of(memory, accumulated)
    new_start = choose(finished, fresh, start)
    new_reading = None if state.reading is None else choose(finished, fresh, advance(state.reading))
    return y, MemoryState(accumulated, surprise, new_start, new_reading)


def _column(x: jax.Array | None, axes: int) -> jax.Array:
    assert x is not None
    return x[(..., *[None] * axes)]


def choose(rows: jax.Array, these: Weights, those: Weights) -> Weights:
    """``these`` in the rows where ``rows``, bool (batch,), is True, ``those`` in the others."""
    return tuple(jnp.where(rows[:, None, None, None], a, b) for a, b in zip(these, those, strict=True))


def in_chunks(tokens: MemoryInputs, chunk: int) -> MemoryInputs:
    """Stacks the chunks along a new first axis, padding the last one."""
    length = tokens.step.shape[-1]
    pad = -length % chunk
    if pad and tokens.mask is None:
        tokens = dataclasses.replace(tokens, mask=jnp.ones((tokens.step.shape[0], length), bool))

    def split(x: jax.Array, axis: int) -> jax.Array:
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, pad)
        x = jnp.pad(x, widths)
        return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, chunk, *x.shape[axis + 1 :]), axis, 0)

    return tokens.map(lambda x: split(x, 2), lambda mask: split(mask, 1))


def parallel(memory: Memory, weights: Weights, tokens: MemoryInputs, chunk: int) -> jax.Array:
    """The memory's output for each token of a whole sequence, (batch, heads, length, size).

    Args:
      weights: the initial accumulators, each (heads, in, out).
      tokens: inputs for the whole sequence.
      chunk: number of tokens whose gradients are taken at the same weights.
    """

    def body(state: MemoryState, piece: MemoryInputs) -> tuple[MemoryState, jax.Array]:
        y, state = learn(memory, state, piece)
        return state, y

    state = initial_state(memory, weights, tokens.step.shape[0], between_chunks=True)
    _, y = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), state, in_chunks(tokens, chunk))
    y = jnp.moveaxis(y, 0, 2)
    return y.reshape(*y.shape[:2], -1, y.shape[-1])[:, :, : tokens.step.shape[-1]]

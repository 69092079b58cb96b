"""Self-attention of a sequence that is split over devices.

``all_to_all`` (DeepSpeed Ulysses, arXiv:2309.14509) trades: each device gives up its part of the tokens of all heads for all tokens
of its part of the heads, and back. ``ring`` (Sequence Parallelism: Long Sequence Training from System Perspective, arXiv:2105.13120;
with blocks merged by their log-sum-exp, arXiv:2310.01889) keeps queries where they are and passes keys and values around; it needs
no heads to divide. Causal work is balanced: cut into 2n pieces, device i has pieces i and 2n - 1 - i, so that every exchange
is followed by the same two products on every device, none of them masked.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import sequence
from pallas_kernels.dispatch import OPS


def _objection(q: jax.Array, k: jax.Array, options: dict[str, Any]) -> str | None:
    if (reason := sequence.objection(q.shape[1])) is not None:
        return reason
    if q.shape[1] != k.shape[1]:
        return "queries and keys are not of one sequence"
    given = [name for name in ("bias", "score", "query_positions", "key_positions", "routes") if options.get(name) is not None]
    if given:
        return f"{given[0]} {'is' if given[0] in ('bias', 'score') else 'are'} given"
    mask = options.get("mask")
    if mask is not None and (mask.shape[1] != 1 or mask.shape[2] != 1):
        return "the mask is not one of keys"
    return None


def all_to_all_objection(q: jax.Array, k: jax.Array, v: jax.Array, **options: Any) -> str | None:
    """Why the trade of heads can't serve the call, or None."""
    reason = _objection(q, k, options)
    if reason is None and (q.shape[2] % sequence.parts() or k.shape[2] % sequence.parts()):
        reason = f"{q.shape[2]} and {k.shape[2]} heads can't be shared by {sequence.parts()} devices"
    if reason is None and options.get("sinks") is not None:
        reason = "sinks are given"
    return reason


def ring_objection(q: jax.Array, k: jax.Array, v: jax.Array, **options: Any) -> str | None:
    """Why the ring can't serve the call, or None."""
    reason = _objection(q, k, options)
    if reason is None and (options.get("sinks") is not None or options.get("normalize") != "softmax"):
        reason = "it is for softmax without sinks"
    if reason is None and options.get("window") is not None:
        reason = "a window is given"
    if reason is None and options.get("pattern") is not None:
        reason = "its masks are of keys, or causal"
    if reason is None and options.get("causal") and q.shape[1] % (2 * sequence.parts()):
        reason = f"{q.shape[1]} tokens can't be split into {2 * sequence.parts()} equal pieces"
    return reason


def all_to_all(q: jax.Array, k: jax.Array, v: jax.Array, *, mask: jax.Array | None, return_lse: bool, **options: Any) -> Any:
    """The op, each device with all tokens of some heads."""

    def trade(x: jax.Array, back: bool = False) -> jax.Array:
        give, get = (1, 2) if back else (2, 1)
        return jax.lax.all_to_all(x, sequence.AXIS, give, get, tiled=True)

    split = mask is not None and mask.shape[3] > 1

    def body(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> Any:
        if split:
            mask = jax.lax.all_gather(mask, sequence.AXIS, axis=3, tiled=True)
        found = OPS["attention"].within(trade(q), trade(k), trade(v), mask=mask, return_lse=return_lse, **options)
        return jax.tree.map(functools.partial(trade, back=True), found)

    return sequence.split(body, (q, k, v, mask), (1, 1, 1, 3 if split else None), (1, 1) if return_lse else 1)


def ring(q: jax.Array, k: jax.Array, v: jax.Array, *, mask: jax.Array | None, causal: bool, scale: float, return_lse: bool, **options: Any) -> Any:
    """The op, keys and values passed around."""
    if mask is None:
        mask = jnp.ones((1, 1, 1, 1), bool)
    mask = jnp.broadcast_to(mask, (mask.shape[0], 1, 1, k.shape[1]))

    def attend(q: jax.Array, keys: Any, causal: bool = False) -> Result:
        k, v, mask = keys
        out, lse = OPS["attention"].within(q, k, v, mask=mask, causal=causal, scale=scale, return_lse=True, **options)
        return out.astype(lse.dtype), lse

    def bidirectional(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> Any:
        def step(carry: Any, _: None) -> Any:
            result, keys = carry
            keys = sequence.shift(keys)
            return (_merged(result, attend(q, keys)), keys), None

        keys = (k, v, mask)
        (result, _), _ = jax.lax.scan(step, (attend(q, keys), keys), None, length=jax.lax.axis_size(sequence.AXIS) - 1)
        return result[0].astype(q.dtype), result[1]

    def balanced(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> Any:
        count, here = jax.lax.axis_size(sequence.AXIS), jax.lax.axis_index(sequence.AXIS)
        low_q, high_q = _dealt(q, 1)
        keys = tuple(zip(*(_dealt(x, axis) for x, axis in ((k, 1), (v, 1), (mask, 3))), strict=True))

        def step(carry: Any, number: jax.Array) -> Any:
            low, high, keys = carry
            keys = sequence.shift(keys)
            low_keys, high_keys = keys
            high = _merged(high, attend(high_q, low_keys))
            earlier = (here - number) % count < here  # the keys' own device comes before this one
            some_q = jnp.where(earlier, low_q, high_q)
            found = attend(some_q, jax.tree.map(lambda a, b: jnp.where(earlier, a, b), low_keys, high_keys))
            low, high = _merged(low, _only(found, earlier)), _merged(high, _only(found, ~earlier))
            return (low, high, keys), None

        low_keys, high_keys = keys
        low = attend(low_q, low_keys, causal=True)
        high = _merged(attend(high_q, low_keys), attend(high_q, high_keys, causal=True))
        (low, high, _), _ = jax.lax.scan(step, (low, high, keys), jnp.arange(1, count))
        out, lse = (_returned(a, b) for a, b in zip(low, high, strict=True))
        return out.astype(q.dtype), lse

    out, lse = sequence.split(balanced if causal else bidirectional, (q, k, v, mask), (1, 1, 1, 3), (1, 1))
    return (out, lse) if return_lse else out


Result = tuple[jax.Array, jax.Array]
"""Outputs (batch, length, heads, value_dim) in float32 or wider, and the log-sum-exp of their logits (batch, length, heads)."""


def _only(result: Result, wanted: jax.Array) -> Result:
    return result[0], jnp.where(wanted, result[1], -jnp.inf)


def _merged(a: Result, b: Result) -> Result:
    """The attention to two sets of keys from that to each."""
    top = jnp.maximum(a[1], b[1])
    top = jax.lax.stop_gradient(jnp.where(top == -jnp.inf, 0.0, top))
    weights = [jnp.exp(lse - top) for _, lse in (a, b)]
    total = weights[0] + weights[1]
    empty = total == 0
    safe = jnp.where(empty, 1.0, total)
    out = a[0] * (weights[0] / safe)[..., None] + b[0] * (weights[1] / safe)[..., None]
    return out, jnp.where(empty, -jnp.inf, jnp.log(safe) + top)


def _deal(count: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Who sends its first half to whom, and its second half: piece p of 2n goes to device min(p, 2n - 1 - p)."""
    to = [min(piece, 2 * count - 1 - piece) for piece in range(2 * count)]
    return [(device, to[2 * device]) for device in range(count)], [(device, to[2 * device + 1]) for device in range(count)]


def _dealt(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """This device's early piece and its late one, from contiguous parts."""
    firsts, seconds = _deal(jax.lax.axis_size(sequence.AXIS))
    first, second = jnp.split(x, 2, axis)
    from_first, from_second = jax.lax.ppermute(first, sequence.AXIS, firsts), jax.lax.ppermute(second, sequence.AXIS, seconds)
    # Pieces before the middle keep their parity: even ones are first halves, and so are the odd devices' late pieces.
    even = jax.lax.axis_index(sequence.AXIS) % 2 == 0
    return jnp.where(even, from_first, from_second), jnp.where(even, from_second, from_first)


def _returned(low: jax.Array, high: jax.Array) -> jax.Array:
    """The inverse of :func:`_dealt`, for the length on axis 1."""
    firsts, seconds = _deal(jax.lax.axis_size(sequence.AXIS))
    even = jax.lax.axis_index(sequence.AXIS) % 2 == 0
    to_first, to_second = jnp.where(even, low, high), jnp.where(even, high, low)
    first = jax.lax.ppermute(to_first, sequence.AXIS, [(b, a) for a, b in firsts])
    second = jax.lax.ppermute(to_second, sequence.AXIS, [(b, a) for a, b in seconds])
    return jnp.concatenate([first, second], 1)

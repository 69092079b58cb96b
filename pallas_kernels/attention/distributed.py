"""Self-attention over a sequence that is split over devices.

``all_to_all`` (DeepSpeed Ulysses, arXiv:2309.14509) redistributes the arrays: each device exchanges its part of the
tokens, for all heads, for all tokens of its part of the heads, and back. ``ring`` (Sequence Parallelism: Long Sequence
Training from System Perspective, arXiv:2105.13120; with blocks merged by their log-sum-exp, arXiv:2310.01889) keeps the
queries in place and passes keys and values around a ring; it does not require the number of heads to be divisible.
Causal work is balanced: of 2n pieces of the sequence, device i has pieces i and 2n - 1 - i, so that every exchange is
followed by the same two unmasked products on every device.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import mesh
from pallas_kernels.attention.call import AttentionCall, Reach
from pallas_kernels.attention.merging import Part, merge
from pallas_kernels.dispatch import OPS
from primitives import sequence

EVERYWHERE: Reach = (None, None)
CAUSAL: Reach = (None, 0)


def _objection(call: AttentionCall) -> str | None:
    if (reason := sequence.objection(call.q.shape[1])) is not None:
        return reason
    if call.q.shape[1] != call.k.shape[1]:
        return "queries and keys have different lengths"
    tables = ("relative_bias", "relative_weight", "relative_keys")
    given = [
        name
        for name in ("bias", "score", "query_positions", "key_positions", "routes", *tables)
        if not call.lacks(name)
    ]
    if given:
        singular = ("bias", "score", "relative_bias", "relative_weight")
        return f"{given[0]} {'is' if given[0] in singular else 'are'} given"
    if call.mask is not None and (call.mask.shape[1] != 1 or call.mask.shape[2] != 1):
        return "the mask is not one of keys alone"
    return None


def all_to_all_objection(call: AttentionCall) -> str | None:
    """Why ``all_to_all`` does not support the call, or None."""
    reason, heads, kv_heads = _objection(call), call.q.shape[2], call.k.shape[2]
    if reason is None and (heads % sequence.parts() or kv_heads % sequence.parts()):
        reason = f"{heads} and {kv_heads} heads can't be shared by {sequence.parts()} devices"
    if reason is None and call.sinks is not None:
        reason = "sinks are given"
    return reason


def ring_objection(call: AttentionCall) -> str | None:
    """Why ``ring`` does not support the call, or None."""
    reason = _objection(call)
    if reason is None and (call.sinks is not None or call.normalize != "softmax"):
        reason = "it is for softmax without sinks"
    if reason is None and call.reach not in (EVERYWHERE, CAUSAL):
        reason = "a window is given"
    if reason is None and call.pattern is not None:
        reason = "its masks are of keys, or causal"
    if reason is None and call.reach == CAUSAL and call.q.shape[1] % (2 * sequence.parts()):
        reason = f"{call.q.shape[1]} tokens can't be split into {2 * sequence.parts()} equal pieces"
    return reason


def all_to_all(call: AttentionCall) -> tuple[Any, ...]:
    """The op, with all tokens of some heads on each device."""

    def trade(x: jax.Array, back: bool = False) -> jax.Array:
        give, get = (1, 2) if back else (2, 1)
        return jax.lax.all_to_all(x, sequence.AXIS, give, get, tiled=True)

    split = call.mask is not None and call.mask.shape[3] > 1

    def body(part: AttentionCall) -> Any:
        if split:
            part = part.replace(mask=jax.lax.all_gather(part.mask, sequence.AXIS, axis=3, tiled=True))
        if part.segments is not None:
            ids = (jax.lax.all_gather(x, sequence.AXIS, axis=1, tiled=True) for x in part.segments)
            part = part.replace(**dict(zip(("query_segments", "key_segments"), ids, strict=True)))
        found = OPS["attention"].within(part.replace(q=trade(part.q), k=trade(part.k), v=trade(part.v)))
        return jax.tree.map(functools.partial(trade, back=True), found)

    return mesh.split_call(body, call, mask=3 if split else None)


def ring(call: AttentionCall) -> tuple[Any, ...]:
    """The op, with keys and values passed around the ring."""
    mask = jnp.ones((1, 1, 1, 1), bool) if call.mask is None else call.mask
    call = call.replace(mask=jnp.broadcast_to(mask, (mask.shape[0], 1, 1, call.k.shape[1])), return_lse=True)
    dtype = call.q.dtype

    def attend(queries: Any, keys: Any, causal: bool = False) -> Part:
        (q, query_segments), (k, v, mask, key_segments) = queries, keys
        arrays = {"q": q, "k": k, "v": v, "mask": mask, "query_segments": query_segments, "key_segments": key_segments}
        out, lse = OPS["attention"].within(call.replace(**arrays, reach=CAUSAL if causal else EVERYWHERE))
        return out.astype(lse.dtype), lse

    def bidirectional(part: AttentionCall) -> Part:
        def step(carry: Any, _: None) -> Any:
            result, keys = carry
            keys = sequence.shift(keys)
            return (merge((result, attend(queries, keys))), keys), None

        queries, keys = (part.q, part.query_segments), (part.k, part.v, part.mask, part.key_segments)
        (result, _), _ = jax.lax.scan(
            step, (attend(queries, keys), keys), None, length=jax.lax.axis_size(sequence.AXIS) - 1
        )
        return result[0].astype(dtype), result[1]

    def balanced(part: AttentionCall) -> Part:
        count, here = jax.lax.axis_size(sequence.AXIS), jax.lax.axis_index(sequence.AXIS)
        assert part.mask is not None
        low_q, high_q = _dealt_all((part.q, 1), (part.query_segments, 1))
        keys = _dealt_all((part.k, 1), (part.v, 1), (part.mask, 3), (part.key_segments, 1))

        def step(carry: Any, number: jax.Array) -> Any:
            low, high, keys = carry
            keys = sequence.shift(keys)
            low_keys, high_keys = keys
            high = merge((high, attend(high_q, low_keys)))
            earlier = (here - number) % count < here  # the keys' own device comes before this one
            found = attend(*jax.tree.map(lambda a, b: jnp.where(earlier, a, b), (low_q, low_keys), (high_q, high_keys)))
            low, high = merge((low, _only(found, earlier))), merge((high, _only(found, ~earlier)))
            return (low, high, keys), None

        low_keys, high_keys = keys
        low = attend(low_q, low_keys, causal=True)
        high = merge((attend(high_q, low_keys), attend(high_q, high_keys, causal=True)))
        (low, high, _), _ = jax.lax.scan(step, (low, high, keys), jnp.arange(1, count))
        out, lse = (_returned(a, b) for a, b in zip(low, high, strict=True))
        return out.astype(dtype), lse

    return mesh.split_call(balanced if call.reach == CAUSAL else bidirectional, call, mask=3)


def _only(result: Part, wanted: jax.Array) -> Part:
    return result[0], jnp.where(wanted, result[1], -jnp.inf)


def _deal(count: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The permutations (source, target) of the devices' first halves and of their second halves: piece p of 2n goes to
    device min(p, 2n - 1 - p).
    """
    to = [min(piece, 2 * count - 1 - piece) for piece in range(2 * count)]
    return [(device, to[2 * device]) for device in range(count)], [
        (device, to[2 * device + 1]) for device in range(count)
    ]


def _dealt(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """This device's early and late piece, exchanged from contiguous parts."""
    firsts, seconds = _deal(jax.lax.axis_size(sequence.AXIS))
    first, second = jnp.split(x, 2, axis)
    from_first, from_second = (
        jax.lax.ppermute(first, sequence.AXIS, firsts),
        jax.lax.ppermute(second, sequence.AXIS, seconds),
    )
    # Pieces before the middle keep their parity: even ones are first halves, and so are the odd devices' late pieces.
    even = jax.lax.axis_index(sequence.AXIS) % 2 == 0
    return jnp.where(even, from_first, from_second), jnp.where(even, from_second, from_first)


def _dealt_all(*arrays: tuple[jax.Array | None, int]) -> tuple[Any, Any]:
    """The early pieces and the late pieces of arrays, each given with its token axis; None is passed through."""
    pieces = [(None, None) if x is None else _dealt(x, axis) for x, axis in arrays]
    return tuple(early for early, _ in pieces), tuple(late for _, late in pieces)


def _returned(low: jax.Array, high: jax.Array) -> jax.Array:
    """The inverse of :func:`_dealt`, for the length on axis 1."""
    firsts, seconds = _deal(jax.lax.axis_size(sequence.AXIS))
    even = jax.lax.axis_index(sequence.AXIS) % 2 == 0
    to_first, to_second = jnp.where(even, low, high), jnp.where(even, high, low)
    first = jax.lax.ppermute(to_first, sequence.AXIS, [(b, a) for a, b in firsts])
    second = jax.lax.ppermute(to_second, sequence.AXIS, [(b, a) for a, b in seconds])
    return jnp.concatenate([first, second], 1)

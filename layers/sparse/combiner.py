"""Combiner: Full Attention Transformer with Sparse Computation Cost (Ren et al., NeurIPS 2021, arXiv:2107.05768),
section 4.

A token attends to all tokens before it in one softmax: to some directly, and to spans of the others through summaries.
With logits / sqrt(d),

    q_i . k_j  for direct tokens j, with values v_j
    q_i . max_{j in span} k_j  for spans, with values  sum_j softmax_j(max_{i in span} q_i . k_j) v_j

The sequence is laid out in rows of S tokens. Direct tokens and spans are

    fixed     the token's row up to itself;  each earlier row
    log       itself;  for each 1 bit l of its position, the block of 2^l tokens that ends where bits 0 to l are 0
    axial     its row up to itself;  for each earlier row, the token of its column, which summarizes its row: the value
              is the result of its attention to its row, the key a projection of it, as in a small transformer layer
    mixture   its row up to itself and its column;  each other column in earlier rows, and each earlier row left and
              right of its column
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
from flax import struct

from layers.attention.cache import TokenCache
from layers.attention.projected import HeadOptions, ProjectedAttention, of_projections
from layers.linear import Linear
from layers.mixer import register_mixer
from layers.module import Module, of_layers
from layers.norm import LayerNorm
from layers.tokens import Continuation, Tokens
from pallas_kernels import attention, masks, merge

Part = tuple[jax.Array, jax.Array]
"""Attention outputs of queries over some keys, and the log-sum-exp of their logits."""
Kind = Literal["row", "column", "others", "above"]
PATTERNS = ("fixed", "log", "axial", "mixture")


@dataclasses.dataclass(frozen=True)
class Grid(masks.Pattern):
    """Mask: keys of the query's row up to itself ("row"), of its column in earlier rows ("column"), of its row in other
    columns ("others"), or keys that stand for earlier rows ("above"). Instances compare by value.
    """

    columns: int
    kind: Kind

    def __call__(self, q: Any, k: Any) -> Any:
        row, column = q // self.columns, q % self.columns
        if self.kind == "above":
            return k < row
        if self.kind == "column":
            return (k % self.columns == column) & (k // self.columns < row)
        same = k // self.columns == row
        return same & (k <= q) if self.kind == "row" else same & (k % self.columns != column)


@struct.dataclass
class CombinerCache(TokenCache):
    """Queries, keys and values of the tokens read so far.

    Attributes:
      query, key, value: (batch, capacity, heads, head_dim).
      tokens: (batch, capacity, features), the input of the projections; (..., 0) for patterns other than "axial".
    """

    query: jax.Array
    key: jax.Array
    value: jax.Array
    tokens: jax.Array


class _Whole:
    """Queries are all tokens: rows and columns are folded into the batch."""

    def __init__(self, q: jax.Array, segment: int):
        self.q, self.segment = q, segment
        self.columns = jnp.arange(segment)[:, None]

    def find(self, kind: Kind, k: jax.Array, v: jax.Array) -> Part:
        """Attention to keys and values (batch, rows, columns, heads, head_dim), for "above" (batch, rows, heads,
        head_dim).
        """
        if kind == "above":  # tokens of a row see the same keys, so they are folded into the heads
            y, lse = _strictly(jnp.moveaxis(self.q, 2, 3).reshape(*k.shape[:2], -1, k.shape[-1]), k, v)
            shape = (*k.shape[:3], self.segment)
            return jnp.moveaxis(y.reshape(*shape, -1), 3, 2), jnp.moveaxis(lse.reshape(shape), 3, 2)
        turned = kind == "column"
        q, k, v = (jnp.swapaxes(a, 1, 2) if turned else a for a in (self.q, k, v))
        folded = [a.reshape(-1, *a.shape[2:]) for a in (q, k, v)]
        if turned:
            y, lse = _strictly(*folded)
        elif kind == "row":
            y, lse = attention(*folded, causal=True, return_lse=True)
        else:
            y, lse = attention(*folded, mask=~jnp.eye(self.segment, dtype=bool)[None, None], return_lse=True)
        y, lse = y.reshape(q.shape), lse.reshape(q.shape[:-1])
        if kind == "others":  # the first row has no earlier one
            lse = jnp.where(jnp.arange(lse.shape[1])[:, None, None] > 0, lse, -jnp.inf)
        return (jnp.swapaxes(y, 1, 2), jnp.swapaxes(lse, 1, 2)) if turned else (y, lse)


class _Next:
    """Queries are a few new tokens, (batch, new, heads, head_dim), at positions ``places``."""

    def __init__(self, q: jax.Array, segment: int, places: jax.Array):
        self.q, self.segment, self.places = q, segment, places
        self.columns = places[..., None] % segment

    def find(self, kind: Kind, k: jax.Array, v: jax.Array) -> Part:
        k, v = (a if kind == "above" else _joined(a) for a in (k, v))
        slots = jnp.arange(k.shape[1], dtype=jnp.int32)
        if kind == "others":
            slots = jnp.where(slots < self.segment, -1, slots)
        slots = jnp.broadcast_to(slots, k.shape[:2])
        own: dict[str, Any] = {"query_positions": self.places, "key_positions": slots}
        return attention(self.q, k, v, mask=Grid(self.segment, kind), **own, return_lse=True)


def _strictly(q: jax.Array, k: jax.Array, v: jax.Array) -> Part:
    """Causal attention to earlier tokens, excluding the token itself."""
    y, lse = attention(q[:, 1:], k[:, :-1], v[:, :-1], causal=True, return_lse=True)
    first = ((0, 0), (1, 0), (0, 0))
    return jnp.pad(y, (*first, (0, 0))), jnp.pad(lse, first, constant_values=-jnp.inf)


def _joined(a: jax.Array) -> jax.Array:
    """(batch, rows, columns, ...) as a sequence."""
    return a.reshape(a.shape[0], -1, *a.shape[3:])


class RowSummary(Module):
    """Row keys W' norm(x + W y), where y is the output of each token's attention to its row. Parameters: ``out``,
    ``key`` (linear) and ``norm``.
    """

    def __init__(self, features: int, inner: int, **options: Any):
        common = of_projections(options)  # type: ignore[arg-type]
        self.out = Linear(inner, features, use_bias=False, **common)
        self.norm = LayerNorm(features, epsilon=1e-6, **of_layers(options))  # type: ignore[arg-type]
        self.key = Linear(features, inner, use_bias=False, **common)

    def __call__(self, found: jax.Array, x: jax.Array) -> jax.Array:
        """(batch, rows, columns, heads, head_dim) and (batch, rows, columns, features) to (..., heads * head_dim)."""
        return self.key(self.norm(x + self.out(found.reshape(*x.shape[:-1], -1))))


@register_mixer("combiner_attention")
class CombinerAttention(ProjectedAttention):
    """Causal attention to all earlier tokens, partly through summaries of spans.

    It is causal only, and streaming is exact: the state holds all tokens, and each call recomputes the summaries of
    their spans. A call therefore costs as much as attention to everything read so far. The paper's bidirectional forms
    of "fixed" and "axial" are not included: use ``layers.Bidirectional`` instead.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear), and ``summary.*`` for "axial".
    """

    paper = (145,)
    supports_causal = True
    supports_bidirectional = False
    causal = True

    def __init__(
        self,
        features: int,
        *,
        pattern: Literal["fixed", "log", "axial", "mixture"] = "fixed",
        segment: int = 32,
        head_dim: int | None = None,
        **options: Unpack[HeadOptions],
    ):
        """Args:
          pattern: which tokens a token sees directly, and which spans: see the module's docstring.
          segment: S, tokens per row; the cost is smallest near the square root of the length. "log" does not use it.
          head_dim, options: as in :class:`ProjectedAttention`, without biases by default.

        Raises:
          ValueError: features not divisible by num_heads, an unknown pattern, or a segment below 1.
        """
        if pattern not in PATTERNS or segment < 1:
            raise ValueError(
                f"pattern is one of {', '.join(PATTERNS)} and segment at least 1; got {pattern!r} and {segment}"
            )
        options.setdefault("use_bias", False)
        super().__init__(features, head_dim=head_dim, **options)
        self.pattern, self.segment = pattern, segment
        self.summary = RowSummary(features, self.num_heads * self.head_dim, **options) if pattern == "axial" else None

    @property
    def complexity(self) -> float:
        return 1.0 if self.pattern == "log" else 2.0

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        batch, length, heads, width = q.shape
        if self.pattern == "log":
            return self._by_bits(q, jnp.arange(length)[None], q, k, v)
        if length <= self.segment:
            return attention(q, k, v, causal=True)
        q, k, v, x = (_in_rows(a, self.segment) for a in (q, k, v, x))
        y = self._attend(_Whole(q, self.segment), q, k, v, x)
        return y.reshape(batch, -1, heads, width)[:, :length]

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> CombinerCache:
        """A cache of ``max_length`` tokens.

        Raises:
          ValueError: no capacity given.
        """
        if max_length is None:
            raise ValueError("a cache of all tokens needs max_length: how many it must hold")
        shape = (batch_size, max_length, self.num_heads, self.head_dim)
        held = {name: jnp.zeros(shape, dtype) for name in ("query", "key", "value")}
        width = self.query.in_features if self.pattern == "axial" else 0
        tokens = jnp.zeros((batch_size, max_length, width), dtype)
        return CombinerCache(**CombinerCache.nothing(batch_size, max_length), **held, tokens=tokens)

    def core_next(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        x: jax.Array,
        tokens: Tokens,
        state: CombinerCache,
        after: Continuation,
    ) -> tuple[jax.Array, CombinerCache]:
        """As :meth:`ProjectedAttention.core_next`.

        Raises:
          ValueError: more tokens than the cache holds (outside ``jit``, where the lengths are known).
        """
        kept = x if self.pattern == "axial" else x[..., :0]
        state = state.read({"query": q, "key": k, "value": v, "tokens": kept}, tokens, after)[0]
        held = tuple(a.astype(q.dtype) for a in (state.query, state.key, state.value))
        if self.pattern == "log":
            return self._by_bits(q, after.positions, *held), state
        rows = tuple(_in_rows(a, self.segment) for a in (*held, state.tokens.astype(x.dtype)))
        return self._attend(_Next(q, self.segment, after.positions), *rows), state

    def _attend(self, asking: _Whole | _Next, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array) -> jax.Array:
        """Head outputs of the queries ``asking`` over tokens laid out in rows, (batch, rows, columns, ...)."""
        parts = [asking.find("row", k, v)]
        if self.pattern == "fixed":
            spans = attention(*(a.reshape(-1, *a.shape[2:]) for a in (q.max(2, keepdims=True), k, v)))
            parts.append(asking.find("above", k.max(2), spans.reshape(*k.shape[:2], *k.shape[3:])))
        elif self.summary is not None:
            found = attention(*(a.reshape(-1, *a.shape[2:]) for a in (q, k, v))).reshape(v.shape)
            parts.append(asking.find("column", self.summary(found, x).reshape(k.shape), found))
        else:
            parts.append(asking.find("column", k, v))
            above = _running(q, k, v, axis=1)
            parts.append(asking.find("others", *(_shifted(a, 1, axis=1) for a in above)))
            left = _running(q, k, v, axis=2)
            right = (jnp.flip(a, 2) for a in _running(*(jnp.flip(a, 2) for a in (q, k, v)), axis=2))
            for made, step, end in ((left, 1, 0), (right, -1, self.segment - 1)):
                y, lse = asking.find("column", *(_shifted(a, step, axis=2) for a in made))
                parts.append((y, jnp.where(asking.columns == end, -jnp.inf, lse)))
        return merge(parts)[0]

    def _by_bits(self, q: jax.Array, places: jax.Array, qs: jax.Array, ks: jax.Array, vs: jax.Array) -> jax.Array:
        """The pattern "log": head outputs of queries ``q`` at positions ``places`` (batch or 1, new) over all tokens.

        Args:
          qs, ks, vs: (batch, length, heads, head_dim), queries, keys and values in the order of positions.
        """
        batch, length, heads, width = ks.shape
        wide = jnp.promote_types(q.dtype, jnp.float32)
        rows, places = jnp.arange(batch)[:, None], jnp.broadcast_to(places, q.shape[:2])

        def score(keys: jax.Array) -> jax.Array:
            return jnp.einsum("bnhd,bnhd->bnh", q.astype(wide), keys.astype(wide)) * width**-0.5

        here = jnp.minimum(places, length - 1)  # padding may be out of range
        logits, values = [score(ks[rows, here])], [vs[rows, here]]
        for level in range((length - 1).bit_length()):
            size, count = 2**level, length >> level
            blocks = [a[:, : count * size].reshape(batch * count, size, heads, width) for a in (qs, ks, vs)]
            span = blocks[2] if size == 1 else attention(blocks[0].max(1, keepdims=True), *blocks[1:])
            keys, found = (a.reshape(batch, count, heads, width) for a in (blocks[1].max(1), span))
            block = places >> level
            chosen = jnp.clip(block - 1, 0, count - 1)
            logits.append(jnp.where((block & 1 == 1)[..., None], score(keys[rows, chosen]), -jnp.inf))
            values.append(found[rows, chosen])
        weights = jax.nn.softmax(jnp.stack(logits), 0)
        return sum(w[..., None] * v.astype(wide) for w, v in zip(weights, values, strict=True)).astype(q.dtype)


def _in_rows(a: jax.Array, columns: int) -> jax.Array:
    """Reshapes (batch, length, ...) to (batch, rows, columns, ...), padding with zeros."""
    batch, length, *rest = a.shape
    padded = jnp.pad(a, ((0, 0), (0, -length % columns), *[(0, 0)] * len(rest)))
    return padded.reshape(batch, -(-length // columns), columns, *rest)


def _running(q: jax.Array, k: jax.Array, v: jax.Array, *, axis: int) -> Part:
    """Keys and values of the spans along an axis that end at each position."""
    top, keys = (jax.lax.cummax(a, axis=axis) for a in (q, k))
    parts = [jnp.swapaxes(a, axis, 2) for a in (top, k, v)]
    found = attention(*(a.reshape(-1, *a.shape[2:]) for a in parts), causal=True)
    return keys, jnp.swapaxes(found.reshape(parts[2].shape), axis, 2)


def _shifted(a: jax.Array, step: int, *, axis: int) -> jax.Array:
    """Shifts entries by ``step`` along ``axis``, filling with zeros."""
    moved = jnp.roll(a, step, axis)
    place = jnp.arange(a.shape[axis]).reshape([-1 if i == axis else 1 for i in range(a.ndim)])
    return jnp.where(place == (0 if step > 0 else a.shape[axis] - 1), 0, moved)

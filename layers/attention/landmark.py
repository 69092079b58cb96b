"""Landmark attention: Random-Access Infinite Context Length for Transformers (Mohtashami and Jaggi, NeurIPS 2023,
arXiv:2305.16300), section 3.

A sequence consists of blocks of l tokens, the last of which is the block's landmark. A query in block b has one softmax
over the ordinary tokens of its block up to itself and the landmarks of earlier blocks. The weight of a landmark is
distributed among the ordinary tokens of its block B by a softmax over them:

    y = sum_{j in b} p_j v_j + sum_{B < b} p_B sum_{j in B} softmax_B(q . k / sqrt(d))_j v_j

Landmarks contribute no value, and none attends to itself. A landmark thus represents its block, and at inference a
query can look into only a few blocks. The text is then read in chunks of a few blocks: a query attends to its chunk
and, per head, to the k earlier blocks whose landmarks score highest. Positions are mapped to a prefix of k + 1 blocks
before the chunk (section 3.2.1). For scoring the landmarks, the last k blocks keep their positions and all older ones
are placed at the first block of the prefix; the retrieved blocks are then placed in order, with a gap of one block
between the older ones and those of the last k. Distances therefore stay within those of training for any length of
text. Among landmarks with equal scores the oldest are taken, which is our choice; in the first layer, where landmarks
are one vector, all old ones are equal.

The grouped softmax is computed as one softmax over all ordinary tokens: a token of an earlier block has the logit q . k
+ q . k_B - log Z_B, where Z_B is the sum of exp(q . k) over its block. The authors' code, epfml/landmark-attention, is
limited to a fixed number of blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from layers.attention.cache import AttentionCache
from layers.attention.projected import HeadOptions, ProjectedAttention
from layers.mixer import register_mixer
from layers.position import Rotary
from layers.tokens import Continuation, Tokens, continued
from pallas_kernels import merge

Part = tuple[jax.Array, jax.Array]
"""Outputs (batch, queries, heads, head_dim), and log-sum-exp of their logits (batch, queries, heads)."""
_QUERIES = 128  # number of queries that attend to all keys at once: bounds the memory
# Landmark scores are compared in steps of 1 / _STEPS, so that rounding errors do not separate equal ones.
_STEPS = 2.0**12


def check_period(period: int) -> None:
    """Refuses blocks without ordinary tokens.

    Raises:
      ValueError: a period below 2.
    """
    if period < 2:
        raise ValueError(
            f"a landmark ends every block of period={period} tokens, itself included: give at least 2, of which one is "
            f"not a landmark"
        )


def grouped(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    places: jax.Array,
    *,
    period: int,
    chunk: int | None = None,
    same: jax.Array | None = None,
) -> Part:
    """Attention with the grouped softmax over whole blocks of keys.

    Args:
      q: (batch, queries, heads, head_dim).
      k, v: (batch, keys, heads, head_dim).
      places: int32 (batch or 1, queries), index of each query among the keys.
      period: tokens of a block, landmark included; divides the number of keys.
      chunk: number of consecutive blocks that see each other; None for all.
      same: bool (batch or 1, queries, blocks), True for blocks of the query's document; None for all.
    """
    wide = jnp.promote_types(q.dtype, jnp.float32)
    places = jnp.clip(places, 0, k.shape[1] - 1)  # padding may be anywhere
    keys, values = (a.reshape(a.shape[0], -1, period, *a.shape[2:]) for a in (k, v))
    block, own = jnp.arange(keys.shape[1]), places[..., None] // period
    earlier = block < own
    if chunk is not None:
        earlier &= block // chunk == own // chunk
    if same is not None:
        earlier &= same
    before = (block == own)[..., None] & (jnp.arange(period - 1) <= (places % period)[..., None, None])
    logits = jnp.einsum("bnhd,bkphd->bhnkp", q, keys.astype(q.dtype), preferred_element_type=wide) * q.shape[-1] ** -0.5
    ordinary, landmark = logits[..., :-1], logits[..., -1:]
    shared_out = ordinary + landmark - jax.nn.logsumexp(ordinary, -1, keepdims=True)
    logits = jnp.where(earlier[:, None, ..., None], shared_out, jnp.where(before[:, None], ordinary, -jnp.inf))
    logits = logits.reshape(*logits.shape[:3], -1)
    total = jax.nn.logsumexp(logits, -1)
    values = values[:, :, :-1].reshape(v.shape[0], -1, *v.shape[2:])
    y = jnp.einsum("bhnk,bkhd->bnhd", jnp.exp(logits - total[..., None]), values.astype(wide))
    return y, jnp.swapaxes(total, 1, 2)


@register_mixer("landmark_attention")
class LandmarkAttention(ProjectedAttention):
    """Causal attention in which every ``period``-th token is the landmark of its block, to all blocks or to a few that
    each query and head retrieves.

    Blocks are counted from the start of a document. The "landmark" models insert landmarks among their tokens;
    elsewhere every ``period``-th token of the input is one. The result depends on ``retrieved``, but is the same for
    the whole sequence and piece by piece, because each query retrieves independently. The state holds all tokens; if
    ``segment_ids`` are given, ``extend`` reads token by token.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear).
    """

    paper = (20,)
    supports_causal = True
    supports_bidirectional = False
    weighs_values = True
    honors = frozenset({"mask", "segment_ids"})
    causal = True

    def __init__(
        self,
        features: int,
        *,
        period: int = 64,
        retrieved: int | None = None,
        local: int = 1,
        head_dim: int | None = None,
        rotary: Rotary | Mapping[str, Any] | float | None = 10000.0,
        **options: Unpack[HeadOptions],
    ):
        """Args:
          period: l, tokens of a block, landmark included: 64 in the authors' LLaMA, 51 in their models of books.
          retrieved: k, number of blocks before its chunk that a query sees; None for all, at their true positions: the
            form for training.
          local: blocks of a chunk, if blocks are retrieved: 1 in the authors' LLaMA, 5 in their models of books.
          head_dim, rotary, options: as in :class:`ProjectedAttention`, without biases by default.

        Raises:
          ValueError: features not divisible by num_heads, a period below 2, or ``retrieved`` or ``local`` below 1.
        """
        check_period(period)
        if local < 1 or (retrieved is not None and retrieved < 1):
            raise ValueError(
                f"a chunk has at least one block, and at least one is retrieved: got local={local} and "
                f"retrieved={retrieved}; retrieved=None is attention to all blocks"
            )
        options.setdefault("use_bias", False)
        # The position of a block depends on the query that retrieves it: keys are stored without rotary embedding.
        super().__init__(features, head_dim=head_dim, rotary=rotary if retrieved is None else None, **options)
        self.period, self.retrieved, self.local = period, retrieved, local
        self.chunk = period * local
        self.segment_multiple = period if retrieved is None else self.chunk
        self.of_retrieved = Rotary.of(rotary)

    @property
    def complexity(self) -> float:
        """Quadratic: with retrieval too, each query scores the landmarks of all blocks."""
        return 2.0

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        length, ids = q.shape[1], tokens.segment_ids
        k, v = (_padded(a, self.segment_multiple) for a in (k, v))
        index = jnp.arange(length, dtype=jnp.int32)[None]
        if self.retrieved is not None:
            first = (index - Tokens(segment_ids=ids).places(length)) // self.period
            return self._retrieving(q, k, v, index, first, aligned=True)
        same = None if ids is None else ids[..., None] == ids[:, None, :: self.period]
        return self._looking(q, k, v, index, same)

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> AttentionCache:
        """A cache of ``max_length`` tokens, rounded up to whole chunks.

        Raises:
          ValueError: no capacity given.
        """
        if max_length is None:
            raise ValueError("a cache of all blocks needs max_length: how many tokens it must hold")
        capacity = -(-max_length // self.segment_multiple) * self.segment_multiple
        return AttentionCache.empty(batch_size, capacity, self.num_kv_heads, self.head_dim, dtype)

    def core_next(
        self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens, state: Any, after: Continuation
    ) -> tuple[jax.Array, AttentionCache]:
        """As :meth:`ProjectedAttention.core_next`.

        Raises:
          ValueError: more tokens than the cache holds (outside ``jit``, where the lengths are known).
        """
        if tokens.segment_ids is None:
            return self._read(q, k, v, tokens, state, after)

        def one(state: AttentionCache, token: Any) -> tuple[AttentionCache, jax.Array]:
            q, k, v, mask, ids = jax.tree.map(lambda a: a[:, None], token)
            after = continued(1, state.length, state.segment, mask, ids)
            y, state = self._read(q, k, v, Tokens(mask, segment_ids=ids), state, after)
            return state, y[:, 0]

        # Any token may begin a document, whose blocks overwrite those of the last one.
        along = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), (q, k, v, tokens.mask, tokens.segment_ids))
        state, y = jax.lax.scan(one, state, along)
        return jnp.moveaxis(y, 0, 1), state

    def _read(
        self, q: jax.Array, k: jax.Array, v: jax.Array, tokens: Tokens, state: AttentionCache, after: Continuation
    ) -> tuple[jax.Array, AttentionCache]:
        """The head outputs for tokens of one document, and the new state."""
        state, *_ = state.read({"key": k, "value": v}, tokens, after)
        held = state.key.astype(q.dtype), state.value.astype(q.dtype)
        if self.retrieved is None:
            return self._looking(q, *held, after.positions, None), state
        return self._retrieving(q, *held, after.positions, jnp.zeros_like(after.positions), aligned=False), state

    def _looking(
        self, q: jax.Array, k: jax.Array, v: jax.Array, places: jax.Array, same: jax.Array | None
    ) -> jax.Array:
        """Attention to all blocks, for a limited number of queries at a time."""

        def look(q: jax.Array, places: jax.Array, same: jax.Array | None) -> jax.Array:
            return grouped(q, k, v, places, period=self.period, same=same)[0].astype(q.dtype)

        return _some_at_a_time(look, _QUERIES, q, places, same)

    def _retrieving(
        self, q: jax.Array, k: jax.Array, v: jax.Array, places: jax.Array, first: jax.Array, *, aligned: bool
    ) -> jax.Array:
        """Attention to the chunk and to the retrieved blocks.

        Args:
          k, v: keys and values, padded to whole chunks.
          places, first: (batch or 1, queries), index of each query among the keys, and first block of its document.
          aligned: whether the queries begin at the start of a chunk.
        """
        chunk, capacity = self.chunk, k.shape[1]
        keys, values = (a.reshape(a.shape[0], -1, self.period, *a.shape[2:]) for a in (k, v))

        def find(q: jax.Array, places: jax.Array, first: jax.Array) -> jax.Array:
            touched = 1 if aligned else (q.shape[1] + chunk - 2) // chunk + 1
            width = min(capacity, touched * chunk)
            start = jnp.minimum(places[:, :1] // chunk * chunk, capacity - width)
            index = (start + jnp.arange(width))[..., None, None]
            near_k, near_v = (jnp.take_along_axis(a, index, axis=1) for a in (k, v))
            within = places - start
            q_near, near_k = self._turn(q, within), self._turn(near_k, jnp.arange(width)[None])
            parts = [grouped(q_near, near_k, near_v, within, period=self.period, chunk=self.local)]
            if capacity > chunk:
                parts.append(self._retrieve(q, keys, values, places, first))
            return merge(parts)[0].astype(q.dtype)

        return _some_at_a_time(find, chunk, q, places, first)

    def _retrieve(self, q: jax.Array, keys: jax.Array, values: jax.Array, places: jax.Array, first: jax.Array) -> Part:
        """Attention of queries to the blocks that they retrieve.

        Args:
          keys, values: (batch, blocks, period, heads, head_dim).
          places, first: as in :meth:`_retrieving`.
        """
        most, period, scale = self.retrieved, self.period, q.shape[-1] ** -0.5
        assert most is not None
        wide, blocks = jnp.promote_types(q.dtype, jnp.float32), keys.shape[1]
        block, begin = jnp.arange(blocks), (places // self.chunk * self.local)[..., None]
        there = ((block >= first[..., None]) & (block < begin))[:, None]
        last = (block >= begin - most)[:, None]  # (batch or 1, 1, queries, blocks)
        within = places % self.chunk

        def scores(of_queries: jax.Array, of_landmarks: jax.Array) -> jax.Array:
            asked, landmarks = self._turn(q, of_queries), self._turn(keys[:, :, -1], of_landmarks[None])
            return jnp.einsum("bnhd,bkhd->bhnk", asked, landmarks, preferred_element_type=wide) * scale

        old = scores(within + (most + 1) * period, jnp.full((blocks,), period - 1))
        ranked = jnp.where(there, jnp.where(last, scores(places, (block + 1) * period - 1), old), -jnp.inf)
        best, chosen = jax.lax.top_k(jnp.round(ranked * _STEPS), min(most, blocks))
        chosen = jnp.sort(jnp.where(best > -jnp.inf, chosen, blocks), -1)  # (batch, heads, queries, retrieved)
        real = chosen < blocks
        count = real.sum(-1, keepdims=True)
        # Slots are blocks of the prefix, counted from 0.
        slot = jnp.arange(chosen.shape[-1]) + most - count + (chosen >= begin[:, None] - most)
        at = within[:, None, :, None] + (most + 1 - slot) * period
        asked = jnp.broadcast_to(jnp.moveaxis(q, 1, 2)[:, :, :, None], (*at.shape, q.shape[-1]))
        asked = self._turn(asked.reshape(1, -1, 1, q.shape[-1]), at.reshape(1, -1)).reshape(asked.shape)

        row, head = (jnp.arange(size) for size in chosen.shape[:2])
        index = row[:, None, None, None], jnp.minimum(chosen, blocks - 1), slice(None), head[:, None, None]
        found_k, found_v = (a[index] for a in (keys, values))
        found_k = self._turn(found_k.reshape(-1, period, 1, q.shape[-1]), jnp.arange(period)[None])
        found_k = found_k.reshape(found_v.shape)  # (batch, heads, queries, retrieved, period, head_dim)
        logits = jnp.einsum("bhnjd,bhnjpd->bhnjp", asked, found_k, preferred_element_type=wide) * scale
        shares = jax.nn.softmax(logits[..., :-1], -1)
        none = count == 0  # their logits are left finite, because the gradient of an empty sum is NaN
        landmark = jnp.where(real | none, logits[..., -1], -jnp.inf)
        total = jax.nn.logsumexp(landmark, -1, keepdims=True)
        weights = jnp.where(real, jnp.exp(landmark - total), 0)[..., None] * shares
        y = jnp.einsum("bhnjp,bhnjpd->bnhd", weights, found_v[..., :-1, :].astype(wide))
        return y, jnp.swapaxes(jnp.where(none, -jnp.inf, total)[..., 0], 1, 2)

    def _turn(self, heads: jax.Array, places: jax.Array) -> jax.Array:
        return heads if self.of_retrieved is None else self.of_retrieved(heads, places)


def _padded(a: jax.Array, multiple: int) -> jax.Array:
    """Pads (batch, length, ...) with zeros to a length that ``multiple`` divides."""
    return jnp.pad(a, ((0, 0), (0, -a.shape[1] % multiple), *[(0, 0)] * (a.ndim - 2)))


def _some_at_a_time(function: Callable[..., jax.Array], size: int, *given: jax.Array | None) -> jax.Array:
    """Maps ``function`` over arrays (batch, length, ...) in pieces of ``size`` along the length, recomputing each piece
    in the backward pass.
    """
    length = next(len(a[0]) for a in given if a is not None)
    if length <= size:
        return function(*given)

    def cut(a: jax.Array) -> jax.Array:
        a = _padded(a, size)
        return jnp.moveaxis(a.reshape(a.shape[0], -1, size, *a.shape[2:]), 1, 0)

    found = jax.lax.map(jax.checkpoint(lambda parts: function(*parts)), jax.tree.map(cut, given))
    found = jnp.moveaxis(found, 0, 1)
    return found.reshape(found.shape[0], -1, *found.shape[3:])[:, :length]

"""Dilated attention: LongNet: Scaling Transformers to 1,000,000,000 Tokens (J. Ding et al., 2023, arXiv:2307.02486).

For each pair of a segment length w and a dilation rate r, the sequence is divided into segments of w tokens, of which
each head keeps every r-th, starting at its own offset; the kept tokens attend to each other (section 2.2):

    O_i = Attention(every r_i-th token of a segment of w_i),   O = sum_i s_i / (sum_j s_j) O_i

with s_i the softmax denominator of O_i, as if one softmax ran over the keys of all pairs. Gradients flow through these
weights. If w and r grow by the same factor, the cost is linear in the length, and attention becomes sparser with
distance. Head j of H has the offset j // ceil(H / r), torchscale's order of heads; the paper's j mod r is the same up
to a permutation of heads if r divides H.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from layers.attention.projected import ProjectedAttention, RotaryHeadOptions
from layers.mixer import register_mixer
from layers.module import of_layers
from layers.norm import LayerNorm
from layers.tokens import Continuation, Tokens, numbered
from pallas_kernels import attention, merge
from pallas_kernels.attention.merging import Part
from primitives import sequence


@struct.dataclass
class DilatedCache:
    """Keys and values of the current segments, which later tokens may attend to.

    Attributes:
      keys, values: for each pair, (batch, heads, slots, head_dim); slot = position in the segment // rate.
      length: (batch,) int32, tokens of each row's current document read so far.
      segment: (batch,) int32, id of the document.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    length: jax.Array
    segment: jax.Array


@register_mixer("dilated_attention")
class DilatedAttention(ProjectedAttention):
    """Attention within segments: dense in short segments, and sparser the longer the segment.

    Segments are counted from the first token of the row, or of the document. A sequence shorter than a segment is one
    segment. Documents of a row must begin at multiples of every rate, so that heads keep the same tokens as in a row of
    their own; in :meth:`extend` they may begin anywhere.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear), and ``query_norm``, ``key_norm``, ``inner_norm`` if
    enabled.
    """

    supports_causal = True
    refusals: ClassVar[Mapping[str, str]] = {
        "segment_ids": "its segments are not multiples of their rates, so heads would keep other tokens of a document: "
        "choose multiples, or give each document a row of its own"
    }
    paper = (131,)
    weighs_values = True

    def __init__(
        self,
        features: int,
        *,
        causal: bool = False,
        segments: Sequence[int] = (2048, 4096, 8192, 16384, 32768),
        rates: Sequence[int] = (1, 2, 4, 8, 16),
        inner_norm: bool = False,
        **options: Unpack[RotaryHeadOptions],
    ):
        """Args:
          causal: whether a token sees only earlier ones and itself.
          segments, rates: w and r of each pair.
          inner_norm: whether a layer norm precedes the output projection (Foundation Transformers, arXiv:2210.06423),
            as in torchscale.
          options: as in :class:`ProjectedAttention`.

        Raises:
          ValueError: features not divisible by num_heads, or pairs that don't fit together.
        """
        if (
            len(segments) != len(rates)
            or not segments
            or any(not 1 <= r <= w for w, r in zip(segments, rates, strict=True))
        ):
            raise ValueError(
                f"each segment length needs a rate between 1 and itself: segments {tuple(segments)}, rates "
                f"{tuple(rates)}"
            )
        super().__init__(features, **options)
        width = self.num_heads * self.head_dim
        self.inner_norm = LayerNorm(width, epsilon=1e-5, **of_layers(options)) if inner_norm else None
        self.causal = causal
        self.pairs = tuple((int(w), int(r)) for w, r in zip(segments, rates, strict=True))
        self.segment_multiple = math.lcm(*(rate for _, rate in self.pairs))

    @property
    def honors(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"mask", "positions", "segment_ids"}) - (
            {"segment_ids"} if any(segment % rate for segment, rate in self.pairs) else set()
        )

    @property
    def complexity(self) -> float:
        return 1.0  # beyond the longest segment

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        """As :meth:`ProjectedAttention.core`; positions affect only the rotary embedding."""
        mask, length = tokens.mask, x.shape[1]
        if tokens.segment_ids is None:
            parts = [self._anywhere(q, k, v, mask, *pair) for pair in self.pairs]
        else:
            places = Tokens(segment_ids=tokens.segment_ids).places(length)
            parts = [self._packed_pair(q, k, v, mask, places, *pair) for pair in self.pairs]
        return merge(parts)[0]

    def finish(self, y: jax.Array) -> jax.Array:
        return super().finish(y if self.inner_norm is None else self.inner_norm(y.reshape(*y.shape[:2], -1)))

    def _offsets(self, rate: int) -> np.ndarray:
        """The first token of a segment that each head keeps."""
        return np.arange(self.num_heads) // -(-self.num_heads // rate)

    def _anywhere(
        self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, segment: int, rate: int
    ) -> Part:
        """Attention of one pair, on one device or on several that share the sequence (section 3.1 of the paper).

        Segments within one device's part are computed there; for longer ones only the kept keys and values are
        exchanged, among the devices of the segment.
        """
        length, count = q.shape[1], sequence.parts()
        local, size = length // count, min(segment, length)
        shared = size > local and size % local == 0 and local % rate == 0
        if count == 1 or length % count or length % size or not (shared or local % size == 0):
            return self._pair(q, k, v, mask, segment, rate)
        body = (
            functools.partial(self._shared_pair, size // local, rate)
            if shared
            else functools.partial(self._pair, segment=segment, rate=rate)
        )
        return sequence.split(body, (q, k, v, mask), (1, 1, 1, None if mask is None else 1), (1, 1))

    def _shared_pair(
        self, devices: int, rate: int, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None
    ) -> Part:
        """One device's part of segments that each span ``devices`` devices."""
        batch, length, heads, _ = q.shape
        places, rows, heads_index = length // rate, self._offsets(rate), np.arange(heads)
        first = jax.lax.axis_index(sequence.AXIS) % devices * places

        def keep(a: jax.Array) -> jax.Array:
            return a.reshape(batch, places, rate, *a.shape[2:])[:, :, rows, heads_index]

        def gather(a: jax.Array) -> jax.Array:
            return sequence.gather(keep(a), axis=1, among=devices)

        real = None
        if mask is not None:
            real = jnp.moveaxis(gather(jnp.broadcast_to(mask[..., None], (batch, length, heads))), 1, 2)[:, :, None]
        positions = (first + jnp.arange(places, dtype=jnp.int32))[None]
        y, lse = attention(
            keep(q), gather(k), gather(v), causal=self.causal, mask=real,
            query_positions=positions if self.causal else None,
            return_lse=True,
        )  # fmt: skip

        def join(a: jax.Array, fill: float) -> jax.Array:
            wide = jnp.full((batch, places, rate, *a.shape[2:]), fill, a.dtype)
            return wide.at[:, :, rows, heads_index].set(a, unique_indices=True).reshape(batch, length, *a.shape[2:])

        return join(y, 0.0), join(lse, -jnp.inf)

    def _pair(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, segment: int, rate: int) -> Part:
        """Outputs and log-sum-exp of one pair over the whole sequence; 0 and -inf for the tokens that a head skips."""
        batch, length, heads, _ = q.shape
        size = min(segment, length)
        count, places = -(-length // size), -(-size // rate)
        rows, heads_index = self._offsets(rate), np.arange(heads)

        def cut(a: jax.Array) -> jax.Array:
            a = jnp.pad(a, ((0, 0), (0, count * size - length), *[(0, 0)] * (a.ndim - 2))).reshape(
                batch * count, size, *a.shape[2:]
            )
            a = jnp.pad(a, ((0, 0), (0, places * rate - size), *[(0, 0)] * (a.ndim - 2)))
            return a if rate == 1 else a.reshape(batch * count, places, rate, *a.shape[2:])[:, :, rows, heads_index]

        def join(a: jax.Array, fill: float) -> jax.Array:
            if rate > 1:
                wide = jnp.full((batch * count, places, rate, *a.shape[2:]), fill, a.dtype)
                a = (
                    wide.at[:, :, rows, heads_index]
                    .set(a, unique_indices=True)
                    .reshape(batch * count, places * rate, *a.shape[2:])
                )
            return a[:, :size].reshape(batch, count * size, *a.shape[2:])[:, :length]

        real = None
        # Causal tokens never see padding at the end.
        if not self.causal and (mask is not None or count * size > length or places * rate > size):
            shown = jnp.ones((batch, length), bool) if mask is None else mask
            real = jnp.moveaxis(cut(jnp.broadcast_to(shown[..., None], (batch, length, heads))), 1, 2)[:, :, None]
        with sequence.folded():
            y, lse = attention(cut(q), cut(k), cut(v), causal=self.causal, mask=real, return_lse=True)
        return join(y, 0.0), join(lse, -jnp.inf)

    def _packed_pair(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        mask: jax.Array | None,
        places: jax.Array,
        segment: int,
        rate: int,
    ) -> Part:
        """:meth:`_pair` for rows of several documents, whose segments may begin at any multiple of the rate: banded
        attention of the kept tokens, restricted to their own segment.

        Args:
          places: (batch, length) int32, positions of the tokens in their documents.
        """
        batch, length, heads, _ = q.shape
        rows, heads_index = self._offsets(rate), np.arange(heads)

        def keep(a: jax.Array) -> jax.Array:
            a = jnp.pad(a, ((0, 0), (0, -length % rate), *[(0, 0)] * (a.ndim - 2)))
            return a.reshape(batch, -1, rate, *a.shape[2:])[:, :, rows, heads_index]

        def join(a: jax.Array, fill: float) -> jax.Array:
            wide = jnp.full((batch, a.shape[1], rate, *a.shape[2:]), fill, a.dtype)
            wide = wide.at[:, :, rows, heads_index].set(a, unique_indices=True)
            return wide.reshape(batch, -1, *a.shape[2:])[:, :length]

        # A segment is identified by the index of its first token in the row.
        first = (jnp.arange(length, dtype=jnp.int32) - places % segment)[:, ::rate]
        shown = jnp.ones((batch, length), bool) if mask is None else mask
        reach = segment // rate - 1
        y, lse = attention(
            keep(q), keep(k), keep(v), causal=self.causal, window=(reach, 0 if self.causal else reach),
            mask=jnp.moveaxis(keep(jnp.broadcast_to(shown[..., None], (batch, length, heads))), 1, 2)[:, :, None],
            query_segments=first, key_segments=first, return_lse=True,
        )  # fmt: skip
        return join(y, 0.0), join(lse, -jnp.inf)

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> DilatedCache:
        """An empty state with slots for the current segment of every pair: its length / rate, or fewer if
        ``max_length`` is shorter than the segment.
        """
        if not self.causal:
            return super().init_state(batch_size, max_length, dtype)
        places = [-(-min(w, max_length or w) // r) for w, r in self.pairs]
        keys, values = (
            tuple(jnp.zeros((batch_size, self.num_heads, n, self.head_dim), dtype) for n in places) for _ in range(2)
        )
        return DilatedCache(keys, values, jnp.zeros((batch_size,), jnp.int32), jnp.zeros((batch_size,), jnp.int32))

    def core_next(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        x: jax.Array,
        tokens: Tokens,
        state: DilatedCache,
        after: Continuation,
    ) -> tuple[jax.Array, DilatedCache]:
        """As :meth:`ProjectedAttention.core_next`.

        Raises:
          ValueError: more tokens than ``max_length`` of the state (outside ``jit``, where the lengths are known).
        """
        (batch, new, _), mask = x.shape, tokens.mask
        real = jnp.ones((batch, new), bool) if mask is None else mask
        positions, length, document = after
        begun = None if tokens.segment_ids is None else numbered(tokens.segment_ids, state.segment, mask)
        parts, keys, values = [], [], []
        row, head = jnp.arange(batch)[:, None, None], jnp.arange(self.num_heads)[:, None]
        for (segment, rate), old_k, old_v in zip(self.pairs, state.keys, state.values, strict=True):
            places = old_k.shape[2]
            if places * rate < segment:  # the state was made for fewer tokens than a segment has
                self._check_length(length, places * rate)
                segment = places * rate
            offset = jnp.asarray(self._offsets(rate), jnp.int32)[:, None]
            inside = (positions % segment)[:, None]
            kept = inside % rate == offset  # (batch, heads, new)
            # The position of the token in each slot: the last one read that belongs there, negative if there was none.
            first = offset + rate * jnp.arange(places)
            cached = first + segment * ((state.length[:, None, None] - 1 - first) // segment)
            cached = jnp.where(first < segment, cached, -1)
            shown = jnp.concatenate([cached, jnp.where(kept & real[:, None], positions[:, None], -1)], 2)[:, :, None]
            here = positions[:, None, :, None]
            seen = (shown >= 0) & (shown <= here) & (shown // segment == here // segment) & kept[..., None]
            stays = kept & real[:, None] & (positions >= length[:, None] - segment)[:, None]
            if begun is not None:
                # The cached tokens belong to the document before the first one that begins here.
                own = jnp.concatenate([jnp.zeros((batch, places), jnp.int32), begun], 1)
                seen &= (begun[:, :, None] == own[:, None])[:, None]
                stays &= (begun == begun[:, -1:])[:, None]
            parts.append(
                attention(
                    q,
                    jnp.concatenate([jnp.moveaxis(old_k, 1, 2).astype(q.dtype), k], 1),
                    jnp.concatenate([jnp.moveaxis(old_v, 1, 2).astype(q.dtype), v], 1),
                    mask=seen,
                    return_lse=True,
                )
            )
            # If tokens share a slot, only the last is kept; the others get an index out of bounds and are dropped.
            place = jnp.where(stays, inside // rate, places)
            keys.append(old_k.at[row, head, place].set(jnp.moveaxis(k, 1, 2).astype(old_k.dtype), mode="drop"))
            values.append(old_v.at[row, head, place].set(jnp.moveaxis(v, 1, 2).astype(old_v.dtype), mode="drop"))
        return merge(parts)[0], DilatedCache(tuple(keys), tuple(values), length, document)

    @staticmethod
    def _check_length(length: jax.Array, capacity: int) -> None:
        if not isinstance(length, jax.core.Tracer) and int(length.max()) > capacity:
            raise ValueError(
                f"the state holds {capacity} tokens and {int(length.max())} are needed: give init_state a larger "
                f"max_length"
            )

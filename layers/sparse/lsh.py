"""LSH attention: Reformer: The Efficient Transformer (Kitaev et al., ICLR 2020, arXiv:2001.04451), section 2.

Queries and keys are the same vectors, with keys normalized to length 1, so a token attends to tokens whose vectors have
a similar direction. In each of several rounds, tokens are hashed into buckets by random rotations R,

    q_i = W x_i,   k_j = q_j / |q_j|,   h(i) = argmax [q_i R; -q_i R]

sorted by bucket and then by position, and divided into chunks. A token attends to its own chunk and the previous one,
regardless of their buckets, and to itself only if there is no other token. The outputs of the rounds are weighted by
their sums of e^score, with z their logarithms:

    o_i = sum_r e^(z_r,i) o_r,i / sum_r e^(z_r,i)

The logits have no factor 1/sqrt(head_dim), as in the authors' code and transformers, because keys have length 1.

The paper's other parts, axial position embeddings and reversible layers, save memory and are not included; use
remat=True.
"""

from __future__ import annotations

import functools
import math
from typing import Any, ClassVar, Literal, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from layers.attention.cache import TokenCache
from layers.attention.projected import HeadOptions, of_projections
from layers.drop import Dropout
from layers.linear import Linear
from layers.mixer import Mixer, register_mixer, without_padding
from layers.tokens import Continuation, Tokens, continued

SELF, HIDDEN = -1e5, -1e9
"""Logits of a token with itself, and with a token that it does not see."""


@struct.dataclass
class LSHCache(TokenCache):
    """Cache of the tokens read so far.

    Attributes:
      shared, value: (batch, capacity, heads, head_dim), the shared query-key vectors, and values.
      bucket: (batch, capacity, heads, rounds) int32, bucket of each token.
    """

    shared: jax.Array
    value: jax.Array
    bucket: jax.Array


@register_mixer("lsh_attention")
class LSHAttention(Mixer):
    """Attention among tokens with the same hash.

    It streams by "selection": the chunk boundaries depend on the number of tokens in each bucket, later ones included,
    though a token never attends to a later one. ``extend`` uses the buckets themselves, which the chunks approximate: a
    token attends to all earlier tokens that share its bucket in a round, because past tokens can't be divided into new
    chunks.

    Parameters: ``query_key``, ``value``, ``out`` (linear, without biases by default).
    """

    supports_causal = True
    streaming: Literal["exact", "selection"] = "selection"
    sharding: ClassVar[Any] = {**Mixer.sharding, "query_key.kernel": (None, "tensor")}

    def __init__(
        self,
        features: int,
        *,
        head_dim: int | None = None,
        causal: bool = False,
        chunk: int = 64,
        rounds: int = 2,
        buckets: int | tuple[int, ...] | None = None,
        wrap: bool = False,
        seed: int = 0,
        **options: Unpack[HeadOptions],
    ):
        """Args:
          chunk: tokens of a chunk; in rows of at most ``chunk`` tokens all attend to all.
          rounds: number of hashing rounds.
          buckets: number of buckets, even, or its factors, each even and with its own rotations; None: twice the number
            of chunks of a row (padding included), rounded down to a power of two, as two factors if above 128.
          wrap: the first chunk of a round also attends to the last chunk of the previous round, as in the authors' code
            and transformers, so padding changes what the first tokens see; if False, it has no previous chunk.
          seed: seed of the rotations, which are sampled once; the authors resample them at each call.
          head_dim, options: as in :class:`ProjectedAttention`, without biases by default.

        Raises:
          ValueError: features not divisible by num_heads, a chunk or rounds below 1, or an odd number of buckets.
        """
        heads = options["num_heads"]
        if head_dim is None and features % heads:
            raise ValueError(f"{features} features can't be split over {heads} heads: give head_dim")
        factors = () if buckets is None else (buckets,) if isinstance(buckets, int) else tuple(buckets)
        if chunk < 1 or rounds < 1 or any(factor < 2 or factor % 2 for factor in factors):
            raise ValueError(
                f"chunk and rounds are at least 1 and buckets even; got {chunk}, {rounds} and buckets={buckets}"
            )
        self.head_dim = head_dim or features // heads
        bias, common = options.get("use_bias", False), of_projections(options)
        self.query_key = Linear(features, heads * self.head_dim, use_bias=bias, **common)
        self.value = Linear(features, heads * self.head_dim, use_bias=bias, **common)
        self.out = Linear(heads * self.head_dim, features, use_bias=options.get("out_bias") or bias, **common)
        dropout = options.get("dropout", 0.0)
        self.dropout = Dropout(dropout, rngs=options["rngs"]) if dropout else None
        self.num_heads, self.causal, self.chunk, self.rounds = heads, causal, chunk, rounds
        self.buckets, self.wrap, self.seed = factors, wrap, seed

    @property
    def complexity(self) -> float:
        return 1.0 if self.buckets else 1.5

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        q, v = self._heads(self.query_key, x, tokens), self._heads(self.value, x, tokens)
        length = x.shape[1]
        if length <= self.chunk:
            index = jnp.broadcast_to(jnp.arange(length), (*q.shape[:1], self.num_heads, 1, length))
            q, v = (jnp.moveaxis(a, 2, 1)[:, :, None] for a in (q, v))
            y, _ = self._attend(q, v, index, tokens.mask, near=False)
            return self._finish(jnp.moveaxis(y[:, :, 0], 1, 2), x)
        more = -length % self.chunk
        q, v = (jnp.pad(a, ((0, 0), (0, more), (0, 0), (0, 0))) for a in (q, v))
        mask = jnp.ones(x.shape[:2], bool) if tokens.mask is None else tokens.mask
        mask = jnp.pad(mask, ((0, 0), (0, more)))
        bucket = jnp.moveaxis(self.hash(q, length), 1, 3)  # (batch, heads, rounds, length)
        # Padding is sorted last, so that real tokens are in the same chunks as without padding.
        order = jnp.argsort(jnp.where(mask[:, None, None], bucket, jnp.iinfo(jnp.int32).max), axis=-1, stable=True)
        shape = (*order.shape[:2], -1, self.chunk)
        flat = order.reshape(*order.shape[:2], -1)
        q, v = (
            jnp.take_along_axis(jnp.moveaxis(a, 2, 1), flat[..., None], 2).reshape(*shape, self.head_dim)
            for a in (q, v)
        )
        y, total = self._attend(q, v, flat.reshape(shape), mask, near=True)
        undo = jnp.argsort(order, axis=-1)
        y = jnp.take_along_axis(y.reshape(*order.shape, -1), undo[..., None], 3)
        weight = jax.nn.softmax(jnp.take_along_axis(total.reshape(order.shape), undo, 3), axis=2)
        return self._finish(jnp.moveaxis(jnp.sum(y * weight[..., None], 2), 1, 2)[:, :length], x)

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> LSHCache:
        """A cache of ``max_length`` tokens.

        Raises:
          ValueError: bidirectional attention, or no capacity given.
        """
        if not self.causal:
            return super().init_state(batch_size, max_length, dtype)
        if max_length is None:
            raise ValueError("a cache of all tokens needs max_length: how many it must hold")
        shape = (batch_size, max_length, self.num_heads)
        shared, value = (jnp.zeros((*shape, self.head_dim), dtype) for _ in range(2))
        bucket = jnp.zeros((*shape, self.rounds), jnp.int32)
        return LSHCache(**LSHCache.nothing(*shape[:2]), shared=shared, value=value, bucket=bucket)

    def mix_next(self, x: jax.Array, state: LSHCache, tokens: Tokens) -> tuple[jax.Array, LSHCache]:
        """As :meth:`Mixer.mix_next`.

        Raises:
          ValueError: more tokens than the cache holds (outside ``jit``, where the lengths are known).
        """
        after: Continuation = continued(x.shape[1], state.length, state.segment, tokens.mask)
        q, v = self._heads(self.query_key, x, tokens), self._heads(self.value, x, tokens)
        bucket = self.hash(q, state.positions.shape[1])
        state, seen, _ = state.read({"shared": q, "value": v, "bucket": bucket}, tokens, after)
        places, theirs = after.positions[:, None, :, None], seen.positions[:, None, None]
        scores = self._scores(jnp.moveaxis(q, 2, 1), jnp.moveaxis(seen.shared, 2, 1))
        values = jnp.moveaxis(seen.value, 2, 1).astype(scores.dtype)
        before = (theirs >= 0) & (theirs <= places)

        def of_round(buckets: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            own, other = buckets
            visible = before & (jnp.moveaxis(own, 2, 1)[..., None] == jnp.moveaxis(other, 2, 1)[:, :, None])
            return _weighed(jnp.where(theirs == places, SELF, jnp.where(visible, scores, HIDDEN)), values)

        found, total = jax.lax.map(of_round, (jnp.moveaxis(bucket, 3, 0), jnp.moveaxis(seen.bucket, 3, 0)))
        y = jnp.sum(found * jax.nn.softmax(total, axis=0)[..., None], 0)
        return self._finish(jnp.moveaxis(y, 1, 2), x), state

    def hash(self, shared: jax.Array, length: int) -> jax.Array:
        """Buckets, int32 (batch, length, heads, rounds), of vectors (batch, length, heads, head_dim); ``length`` sets
        the default number of buckets.
        """
        factors = self.buckets or _factors(length, self.chunk)
        rotations = _rotations(self.seed, (self.num_heads, self.head_dim, self.rounds, sum(factors) // 2))
        turned = jnp.einsum(
            "bnhd,hdrk->bnhrk", jax.lax.stop_gradient(shared).astype(jnp.float32), rotations, precision="highest"
        )
        found, size = jnp.int32(0), 1
        for factor, part in zip(
            factors, jnp.split(turned, np.cumsum([f // 2 for f in factors])[:-1], axis=-1), strict=True
        ):
            found = found + size * jnp.argmax(jnp.concatenate([part, -part], -1), -1).astype(jnp.int32)
            size *= factor
        return found

    def _heads(self, projection: Linear, x: jax.Array, tokens: Tokens) -> jax.Array:
        return projection(without_padding(x, tokens.mask)).reshape(*x.shape[:2], self.num_heads, self.head_dim)

    @staticmethod
    def _scores(q: jax.Array, shared: jax.Array) -> jax.Array:
        """Logits, float32 (..., queries, keys), of vectors (..., count, head_dim)."""
        q, k = q.astype(jnp.float32), shared.astype(jnp.float32)
        k = k * jax.lax.rsqrt(jnp.mean(jnp.square(k), -1, keepdims=True) + 1e-6) / math.sqrt(k.shape[-1])
        return jnp.einsum("...id,...jd->...ij", q, k)

    def _attend(
        self, q: jax.Array, v: jax.Array, index: jax.Array, mask: jax.Array | None, *, near: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Attention of tokens to their chunk and, if ``near``, to the previous one.

        Args:
          q, v: (batch, heads, chunks, size, head_dim), the chunks of all rounds.
          index: (batch, heads, chunks, size), positions of the tokens in the row.
          mask: bool (batch, length).

        Returns:
          The outputs, float32 (batch, heads, chunks, size, head_dim), and the log-sum-exp of the logits.
        """

        def both(a: jax.Array) -> jax.Array:
            return jnp.concatenate([jnp.roll(a, 1, axis=2), a], axis=3) if near else a

        theirs, own = both(index)[..., None, :], index[..., None]
        visible = jnp.ones(jnp.broadcast_shapes(own.shape, theirs.shape), bool)
        if mask is not None:
            real = jnp.take_along_axis(mask[:, None], index.reshape(*index.shape[:2], -1), 2).reshape(index.shape)
            visible &= both(real)[..., None, :]
        if self.causal:
            visible &= theirs <= own
        scores = jnp.where(visible, self._scores(q, both(q)), HIDDEN)
        scores = jnp.where(theirs == own, SELF, scores)
        if near and not self.wrap:
            first = np.arange(index.shape[2]) % (index.shape[2] // self.rounds) == 0
            before = np.arange(2 * self.chunk) < self.chunk
            scores = jnp.where(first[:, None, None] & before, 2 * HIDDEN, scores)
        return _weighed(scores, both(v).astype(jnp.float32))

    def _finish(self, y: jax.Array, x: jax.Array) -> jax.Array:
        y = self.out(y.reshape(*x.shape[:2], -1).astype(x.dtype))
        return y if self.dropout is None else self.dropout(y)


def _weighed(scores: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Softmax-weighted means of the values, and the log-sum-exp of the scores.

    The weights are not computed as e^(score - total), because near -1e5 float32 has a resolution of only 0.008.
    """
    return jnp.einsum("...ij,...jd->...id", jax.nn.softmax(scores, -1), values), jax.nn.logsumexp(scores, -1)


def _factors(length: int, chunk: int) -> tuple[int, ...]:
    """Default factors of the number of buckets for rows of ``length`` tokens."""
    power = max((2 * -(-length // chunk)).bit_length() - 1, 1)
    return (2**power,) if power <= 7 else (2 ** (power // 2), 2 ** (power - power // 2))


@functools.cache
def _rotations(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal samples, float32."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)

"""Softmax attention: Attention Is All You Need (Vaswani et al., 2017), eq. 1, and what later models added to it.

    Attention(Q, K, V) = softmax(Q K^T / sqrt(head_dim) + bias) V
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct

from layers.broadcast import broadcast, widened
from layers.initializers import constant, normal, truncated_normal, zeros
from layers.linear import Linear
from layers.mixer import Mixer, finite_padding, register_mixer
from layers.module import Diagnostic
from layers.norm import Norm, create_norm
from layers.position import Rotary, default_positions
from layers.tokens import Tokens, continued, numbered
from pallas_kernels import attention, attention_weights
from pallas_kernels.attention.masks import Score


@functools.cache
def soft_cap(cap: float) -> Callable[..., jax.Array]:
    """The score ``cap tanh(x / cap)`` (Gemma 2, arXiv:2408.00118); one function for each cap, because programs are compiled for a function."""
    return lambda x, *_: cap * jnp.tanh(x / cap)


@struct.dataclass
class AttentionCache:
    """Keys and values read so far of each row's current document.

    Attributes:
      key, value: (batch, capacity, kv_heads, head_dim); slot = position modulo capacity.
      positions: (batch, capacity) int32, position of the token in each slot, -1 if empty.
      length: (batch,) int32, tokens read of the document.
      segment: (batch,) int32, that document.
    """

    key: jax.Array
    value: jax.Array
    positions: jax.Array
    length: jax.Array
    segment: jax.Array

    def write(
        self,
        key: jax.Array,
        value: jax.Array,
        tokens: Tokens,
        positions: jax.Array,
        length: jax.Array,
        segment: jax.Array,
    ) -> AttentionCache:
        """Stores new tokens (batch, new, ...) after the old ones, or instead of those of a document that has ended.

        Masked ones are not stored. ``positions``, ``length`` and ``segment`` are those of
        :func:`layers.tokens.continued`.
        """
        capacity = self.positions.shape[1]
        real = jnp.ones(positions.shape, bool) if tokens.mask is None else tokens.mask
        kept = self.positions
        if tokens.segment_ids is not None:
            document = numbered(tokens.segment_ids, self.segment, tokens.mask)
            real &= document == document[:, -1:]
            kept = jnp.where(document[:, -1:] > 0, -1, kept)
        # Of tokens that share a slot only the last is kept; the rest are sent out of bounds and dropped.
        slot = jnp.where(real & (positions >= length[:, None] - capacity), positions % capacity, capacity)
        row = jnp.arange(key.shape[0])[:, None]
        return AttentionCache(
            key=self.key.at[row, slot].set(key.astype(self.key.dtype), mode="drop"),
            value=self.value.at[row, slot].set(value.astype(self.value.dtype), mode="drop"),
            positions=kept.at[row, slot].set(positions, mode="drop"),
            length=length,
            segment=segment,
        )


@struct.dataclass
class ContextCache:
    """Keys and values of a context that cross attention reads: (batch, context_length, kv_heads, head_dim).

    Attributes:
      mask: bool (batch, context_length), True = real.
    """

    key: jax.Array
    value: jax.Array
    mask: jax.Array


@register_mixer("attention")
class MultiHeadAttention(Mixer):
    """Multi-head softmax (or sigmoid) attention, to the sequence itself or to a context.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear), and ``query_norm``, ``key_norm``,
    ``logit_scale``, ``sinks``, ``persistent``, ``bias.*`` where asked for.
    """

    supports_causal = True
    undecayed = ("persistent",)

    def __init__(
        self,
        features: int,
        *,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        causal: bool = False,
        window: int | None = None,
        rotary: Rotary | Mapping[str, Any] | float | None = None,
        score: Score | None = None,
        bias: Callable[..., nnx.Module] | None = None,
        qk_norm: Norm | None = None,
        logit_scale: float | None = None,
        sinks: bool = False,
        persistent: int = 0,
        normalize: str = "softmax",
        scale: float | None = None,
        use_bias: bool = True,
        key_bias: bool | None = None,
        out_bias: bool | None = None,
        context_features: int | None = None,
        dropout: float = 0.0,
        kernel_init: Any = truncated_normal(0.02),
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          num_heads, num_kv_heads, head_dim: query heads; key and value heads, which divide them
            (grouped-query attention); features of a head (default features / num_heads).
          window: attend to tokens less than ``window`` away (causal: the last ``window``, this one included).
          rotary: base of a rotary position embedding, or the options of :class:`layers.position.Rotary`; None for none. 1-D or
            2-D as the positions are.
          score: of :func:`pallas_kernels.attention`, a function of the scaled logits, as ``soft_cap(50.0)``.
          bias: makes a module ``(query_positions, key_positions) -> scores`` from ``num_heads`` and ``rngs``.
          qk_norm: norm of each query and key head.
          logit_scale: initial value of a learned scale of the scores for each head, at most 100, in place of ``scale``: with
            ``qk_norm="unit"`` cosine attention (Swin Transformer V2, Liu et al., 2022, eq. 2).
          sinks: a learned extra logit a head in the softmax's denominator.
          persistent: learned tokens that every query attends to, whatever the window; they have no position.
          normalize: "softmax" or "sigmoid".
          scale: of the scores; default head_dim ** -0.5.
          use_bias, key_bias, out_bias: biases of all projections, and of those of keys and of the output where they differ.
          context_features: features of the context; makes this cross attention.
          dropout: of the output.

        Raises:
          ValueError: features not divisible by num_heads, or num_heads by num_kv_heads, or two scales, or persistent tokens with a score,
            or for sigmoid or cross attention.
        """
        if scale is not None and logit_scale is not None:
            raise ValueError("scale= is the scale of the scores, and logit_scale= a learned one: give one of them")
        if persistent and (normalize != "softmax" or context_features is not None or score is not None):
            raise ValueError("persistent tokens need plain softmax attention to the sequence itself: leave them out, or the sigmoid, score or context")
        if head_dim is None and features % num_heads:
            raise ValueError(f"{features} features can't be split over {num_heads} heads: give head_dim, or a number of heads that divides it")
        num_kv_heads = num_kv_heads or num_heads
        if num_heads % num_kv_heads:
            raise ValueError(f"num_kv_heads {num_kv_heads} must divide num_heads {num_heads}")
        head_dim = head_dim or features // num_heads
        source = features if context_features is None else context_features
        common = {"kernel_init": kernel_init, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.query = Linear(features, num_heads * head_dim, use_bias=use_bias, **common)
        self.key = Linear(source, num_kv_heads * head_dim, use_bias=use_bias if key_bias is None else key_bias, **common)
        self.value = Linear(source, num_kv_heads * head_dim, use_bias=use_bias, **common)
        self.out = Linear(num_heads * head_dim, features, use_bias=use_bias if out_bias is None else out_bias, **common)
        norm = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.query_norm = create_norm(qk_norm, head_dim, **norm) if qk_norm else None
        self.key_norm = create_norm(qk_norm, head_dim, **norm) if qk_norm else None
        init = None if logit_scale is None else constant(math.log(logit_scale))
        self.logit_scale = None if init is None else nnx.Param(init(None, (num_heads,), param_dtype))
        self.sinks = nnx.Param(zeros(rngs.params(), (num_heads,), param_dtype)) if sinks else None
        self.persistent = nnx.Param(normal(1.0)(rngs.params(), (persistent, features), param_dtype)) if persistent else None
        self.bias = bias(num_heads=num_heads, rngs=rngs) if bias else None
        self.dropout = nnx.Dropout(dropout, rngs=rngs) if dropout else None
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.causal, self.window, self.rotary = causal, window, Rotary.of(rotary)
        self.normalize, self.scale, self.score, self.cross = normalize, scale if init is None else 1.0, score, context_features is not None

    @property
    def complexity(self) -> float:
        return 1.0 if self.window is not None else 2.0

    @property
    def honors(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"mask", "context", "context_mask"} if self.cross else {"mask", "positions", "segment_ids"})

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        x = finite_padding(x, tokens.mask)
        places = self._places(tokens, x.shape[1])
        q = self._project_query(x, places)
        if self.cross:
            if tokens.context is None:
                raise ValueError("cross attention needs a context: tokens=layers.Tokens(context=...)")
            k, v = self._project_key_value(finite_padding(tokens.context, tokens.context_mask), None)
            return self._attend(q, k, v, None if tokens.context_mask is None else tokens.context_mask[:, None, None], None, None)
        k, v = self._project_key_value(x, places)
        # Sequences count from 0 unless positions are given; grid positions have no order, so they mask nothing.
        ordered = tokens.positions if tokens.positions is not None and tokens.positions.ndim == 2 else None
        ids = tokens.segment_ids
        sees_places = self.bias is not None or self.score is not None
        if ids is not None and sees_places and tokens.positions is None and tokens.grid is None:
            ordered = places  # a bias sees where in its document a token is; masks of one document see no difference
        mask = None if tokens.mask is None else tokens.mask[:, None, None]
        return self._attend(q, k, v, mask, ordered, ordered, x, None if ids is None else (ids, ids))

    def _places(self, tokens: Tokens, length: int) -> jax.Array:
        """Where tokens are for a rotary embedding: rows and columns in a grid whose positions are not given."""
        stretched = None if self.rotary is None else self.rotary.grid
        places = tokens.grid_places(length, stretched) if tokens.positions is None else None
        return tokens.places(length) if places is None else places

    def init_state(
        self,
        batch_size: int,
        max_length: int | None = None,
        dtype: Any = jnp.float32,
        context: jax.Array | None = None,
        context_mask: jax.Array | None = None,
    ) -> AttentionCache | ContextCache:
        """A cache of ``max_length`` tokens, or of the window if that is shorter.

        Raises:
          ValueError: bidirectional attention, or no capacity given, or cross attention without context.
        """
        if self.cross:
            if context is None:
                raise ValueError("the state of cross attention needs context=")
            k, v = self._project_key_value(finite_padding(context, context_mask), None)
            real = jnp.ones(context.shape[:2], bool) if context_mask is None else context_mask
            return ContextCache(k.astype(dtype), v.astype(dtype), real)
        if not self.causal:
            return super().init_state(batch_size, max_length, dtype)
        sizes = [size for size in (max_length, self.window) if size is not None]
        if not sizes:
            raise ValueError("a cache of unwindowed attention needs max_length: how many tokens it must hold")
        shape = (batch_size, min(sizes), self.num_kv_heads, self.head_dim)
        return AttentionCache(
            key=jnp.zeros(shape, dtype),
            value=jnp.zeros(shape, dtype),
            positions=jnp.full(shape[:2], -1, jnp.int32),
            length=jnp.zeros((batch_size,), jnp.int32),
            segment=jnp.zeros((batch_size,), jnp.int32),
        )

    def mix_next(
        self, x: jax.Array, state: AttentionCache | ContextCache, tokens: Tokens
    ) -> tuple[jax.Array, AttentionCache | ContextCache]:
        """As :meth:`Mixer.mix_next`.

        Raises:
          ValueError: more tokens than the cache holds (outside ``jit``, where the lengths are known).
        """
        mask = tokens.mask
        x = finite_padding(x, mask)
        if isinstance(state, ContextCache):
            return self._attend(self._project_query(x, None), state.key, state.value, state.mask[:, None, None], None, None), state
        new, ids, segments = x.shape[1], tokens.segment_ids, None
        positions, length, segment = continued(new, state.length, state.segment, mask, ids)
        self._check_room(state, length)
        q = self._project_query(x, positions)
        k, v = self._project_key_value(x, positions)
        written = state.write(k, v, tokens, positions, length, segment)
        if new == 1 or (self.window is None and ids is None):
            # All that is attended to is in the cache after the write.
            keys, values, key_positions = written.key, written.value, written.positions
        else:
            # A write may evict what the first of these tokens still see.
            if ids is not None:
                document = numbered(ids, state.segment, mask)
                segments = document, jnp.concatenate([jnp.zeros_like(state.positions), document], 1)
            seen = positions if mask is None else jnp.where(mask, positions, -1)
            keys = jnp.concatenate([state.key, k.astype(state.key.dtype)], 1)
            values = jnp.concatenate([state.value, v.astype(state.value.dtype)], 1)
            key_positions = jnp.concatenate([state.positions, seen], 1)
        return self._attend(q, keys, values, None, positions, key_positions, x, segments), written

    def _check_room(self, state: AttentionCache, length: jax.Array) -> None:
        """Refuses tokens that a cache has no room for, where lengths are known: under ``jit`` they are not, and the caller counts."""
        capacity = state.positions.shape[1]
        if capacity == self.window or isinstance(length, jax.core.Tracer):
            return
        if (needed := int(jnp.max(length))) > capacity:
            raise ValueError(f"the cache holds {capacity} tokens and {needed} are needed: give init_state a larger max_length")

    def _project_query(self, x: jax.Array, positions: jax.Array | None) -> jax.Array:
        return self._place(self._query_heads(x), positions)

    def _query_heads(self, x: jax.Array) -> jax.Array:
        q = self.query(x).reshape(*x.shape[:2], self.num_heads, self.head_dim)
        q = q if self.query_norm is None else self.query_norm(q)
        if self.logit_scale is None:
            return q
        factor = jnp.exp(jnp.minimum(widened(self.logit_scale[...]), math.log(100.0)))
        return q * factor[:, None].astype(q.dtype)

    def _project_key_value(self, x: jax.Array, positions: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        k, v = self._key_value_heads(x)
        return self._place(k, positions), v

    def _key_value_heads(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        shape = (*x.shape[:2], self.num_kv_heads, self.head_dim)
        k = self.key(x).reshape(shape)
        return k if self.key_norm is None else self.key_norm(k), self.value(x).reshape(shape)

    def _place(self, x: jax.Array, positions: jax.Array | None) -> jax.Array:
        if self.rotary is None:
            return x
        return self.rotary(x, default_positions(x.shape[1]) if positions is None else positions)

    def _attend(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        mask: jax.Array | None,
        query_positions: jax.Array | None,
        key_positions: jax.Array | None,
        x: jax.Array | None = None,
        segments: tuple[jax.Array, jax.Array] | None = None,
    ) -> jax.Array:
        window = None
        if self.window is not None:
            window = (self.window - 1, 0 if self.causal else self.window - 1)
        bias = None
        if self.bias is not None:
            places = [default_positions(t.shape[1]) if p is None else p for t, p in ((q, query_positions), (k, key_positions))]
            bias = self.bias(*places)
        batch = q.shape[0]
        options: dict[str, Any] = {
            "bias": bias,
            "mask": mask,
            "score": self.score,
            "causal": self.causal and not self.cross,
            "window": window,
            "scale": self.scale,
            "normalize": self.normalize,
            "sinks": None if self.sinks is None else self.sinks[...],
            "query_positions": None if query_positions is None else jnp.broadcast_to(query_positions, (batch, q.shape[1])),
            "key_positions": None if key_positions is None else jnp.broadcast_to(key_positions, (batch, k.shape[1])),
        }
        if segments is not None:
            options |= dict(zip(("query_segments", "key_segments"), segments, strict=True))
        if self.sowing(Diagnostic, "attention"):
            self.sow(Diagnostic, "attention", attention_weights(q, k, **options))
        k, v = k.astype(q.dtype), v.astype(q.dtype)
        if self.persistent is None:
            y = attention(q, k, v, **options)
        else:
            assert x is not None
            y, lse = attention(q, k, v, **options, return_lse=True)
            pk, pv = self._key_value_heads(broadcast(self.persistent[...], (batch, *self.persistent.shape), x.dtype))
            seen, more = attention(self._query_heads(x), pk, pv, scale=self.scale, return_lse=True)
            # One softmax over both: each part by its share of the denominator.
            y = y + jax.nn.sigmoid(more - lse)[..., None].astype(y.dtype) * (seen - y)
        return self._project_out(y)

    def _project_out(self, y: jax.Array) -> jax.Array:
        """From what the heads found, (batch, length, heads, features of each), to the output."""
        y = self.out(y.reshape(*y.shape[:2], -1))
        return y if self.dropout is None else self.dropout(y)

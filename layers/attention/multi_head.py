"""Softmax attention: Attention Is All You Need (Vaswani et al., 2017, arXiv:1706.03762), eq. 1, with later additions.

Attention(Q, K, V) = softmax(Q K^T / sqrt(head_dim) + bias) V
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from layers.attention.cache import AttentionCache, ContextCache
from layers.attention.projected import GroupedHeadOptions, ProjectedAttention
from layers.attention.relative import RelativeSpec, create_relative
from layers.broadcast import broadcast, widened
from layers.initializers import constant, normal, zeros
from layers.mixer import finite_padding, register_mixer
from layers.module import Diagnostic, parameter
from layers.position import default_positions
from layers.tokens import Continuation, Tokens, continued
from pallas_kernels import attention, attention_weights, merge
from pallas_kernels.attention.masks import Mask, Score

Pair = tuple[jax.Array | None, jax.Array | None]
"""A value for the queries and one for the keys."""


@functools.cache
def soft_cap(cap: float) -> Callable[..., jax.Array]:
    """The score function ``cap tanh(x / cap)`` (Gemma 2, arXiv:2408.00118). It is cached, because programs are compiled
    per function object.
    """
    return lambda x, *_: cap * jnp.tanh(x / cap)


def _places(q: jax.Array, k: jax.Array, positions: Pair) -> tuple[jax.Array, jax.Array]:
    """Positions of queries and keys; 0, 1, ... if not given."""
    of_q, of_k = (default_positions(t.shape[1]) if p is None else p for t, p in zip((q, k), positions, strict=True))
    return of_q, of_k


class AttentionOptions(GroupedHeadOptions, total=False):
    """Options of :class:`MultiHeadAttention` for subclasses that change only queries, keys, values or head outputs."""

    causal: bool
    window: int | None
    visible: Mask | None
    score: Score | None
    relative: RelativeSpec | None
    sinks: bool


@register_mixer("attention")
class MultiHeadAttention(ProjectedAttention):
    """Multi-head softmax (or sigmoid) attention: self-attention, or cross-attention to a context.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear), and ``query_norm``, ``key_norm``, ``logit_scale``,
    ``sinks``, ``persistent``, ``bias.*``, ``relative.*`` if enabled.
    """

    supports_causal = True
    takes_positions = True
    undecayed: ClassVar[tuple[str, ...]] = ("persistent",)

    def __init__(
        self,
        features: int,
        *,
        causal: bool = False,
        window: int | None = None,
        visible: Mask | None = None,
        score: Score | None = None,
        relative: RelativeSpec | None = None,
        bias: Callable[..., nnx.Module] | None = None,
        logit_scale: float | None = None,
        sinks: bool = False,
        persistent: int = 0,
        normalize: str = "softmax",
        logit_bias: float | None = None,
        scale: float | None = None,
        value_dim: int | None = None,
        context_features: int | None = None,
        **options: Unpack[GroupedHeadOptions],
    ):
        """Args:
          window: attend to tokens less than ``window`` away (causal: the last ``window``, this one included).
          visible: mask over positions in addition to ``window``: one of :mod:`pallas_kernels.masks` such as
            ``masks.segments(64)``. Only its visible blocks are computed.
          score: score function of :func:`pallas_kernels.attention`, applied to the scaled logits, such as
            ``soft_cap(50.0)``.
          relative: relative position bias: "alibi", "buckets" (T5), "fire", "kerple", "keys" (Shaw et al.), "learned",
            "universal", ``{"name": ..., **options}``, or a callable (:mod:`layers.attention.relative`).
          bias: callable that takes ``num_heads`` and ``rngs`` and returns a module ``(query_positions, key_positions)
            -> bias`` of the logits.
          logit_scale: initial value of a learned scale of the logits per head, at most 100, that replaces ``scale``;
            with ``qk_norm="unit"`` this is cosine attention (Swin Transformer V2, Liu et al., 2022, eq. 2).
          sinks: whether the softmax's denominator has an extra learned logit per head.
          persistent: number of learned tokens that every query attends to, regardless of the window; they have no
            position.
          normalize: "softmax", "sigmoid" or "none".
          logit_bias: constant added to all logits of sigmoid attention: -log(n) for training at length n, so that the
            weights of a query initially sum to about 1 (Ramapuram et al., 2024, arXiv:2409.04431, section 3.1). It
            would not change a softmax.
          scale: factor of the logits q . k; default head_dim ** -0.5.
          value_dim: features of a value head; default ``head_dim``.
          context_features: features of the context; makes this cross-attention.
          options: as in :class:`ProjectedAttention`.

        Raises:
          ValueError: features not divisible by num_heads, or num_heads by num_kv_heads; both ``scale`` and
            ``logit_scale``; two score functions; persistent tokens with ``score``, ``relative``, cross-attention or
            weights other than softmax; ``sinks`` with such weights; ``logit_bias`` with a softmax.
        """
        if scale is not None and logit_scale is not None:
            raise ValueError("scale= is a fixed scale of the logits and logit_scale= a learned one: give one of them")
        if logit_bias is not None and normalize == "softmax":
            raise ValueError(f"logit_bias={logit_bias} changes no softmax: leave it out, or give normalize='sigmoid'")
        if sinks and normalize != "softmax":
            raise ValueError(
                f"sinks=True adds a term to a softmax's denominator, and {normalize} weights have none: leave it out"
            )
        if persistent and (
            normalize != "softmax" or any(given is not None for given in (context_features, score, relative))
        ):
            raise ValueError(
                "persistent tokens need plain softmax attention to the sequence itself: leave them out, or normalize=, "
                "score=,"
                " relative= or context_features="
            )
        super().__init__(features, context_features=context_features, value_dim=value_dim, **options)
        num_heads, rngs = self.num_heads, options["rngs"]
        init = None if logit_scale is None else constant(math.log(logit_scale))
        self.logit_scale = None if init is None else parameter(init, (num_heads,), options)
        self.sinks = parameter(zeros, (num_heads,), options) if sinks else None
        self.persistent = parameter(normal(1.0), (persistent, features), options) if persistent else None
        self.bias = bias(num_heads=num_heads, rngs=rngs) if bias else None
        made: dict[str, Any] = {"num_heads": num_heads, "head_dim": self.head_dim, "causal": causal}
        made |= {"param_dtype": options.get("param_dtype", jnp.float32), "rngs": rngs}
        self.relative = None if relative is None else create_relative(relative, **made)
        if score is not None and self.relative is not None and self.relative.scores:
            raise ValueError(f"score= and relative={relative!r} both change the scores by a function: give one of them")
        self.causal, self.window, self.visible, self.cross = causal, window, visible, context_features is not None
        self.normalize, self.scale, self.score = normalize, scale if init is None else 1.0, score
        self.logit_bias = logit_bias

    @property
    def complexity(self) -> float:
        return 1.0 if self.window is not None else 2.0

    @property
    def honors(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"mask", "context", "context_mask"} if self.cross else {"mask", "positions", "segment_ids"})

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        if not self.cross:
            return super().mix(x, tokens)
        if tokens.context is None:
            raise ValueError("cross attention needs a context: tokens=layers.Tokens(context=...)")
        x = finite_padding(x, tokens.mask)
        q = self.queries(x, self.places(tokens, x.shape[1]))
        k, v = self.keys_and_values(finite_padding(tokens.context, tokens.context_mask), None)
        return self.finish(self.attend(q, k, v, x, mask=tokens.context_mask))

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        # Positions start at 0 unless given; grid positions have no order, so masks ignore them.
        ordered = tokens.ordered_positions
        ids = tokens.segment_ids
        sees_places = any(part is not None for part in (self.bias, self.score, self.visible))
        sees_places |= self.relative is not None and self.relative.sees_places
        if ids is not None and sees_places and tokens.positions is None and tokens.grid is None:
            ordered = tokens.places(
                x.shape[1]
            )  # a bias depends on the position within the document, which makes no difference to masks
        return self.attend(q, k, v, x, mask=tokens.mask, positions=(ordered, ordered), segments=(ids, ids))

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
          ValueError: bidirectional attention, no capacity given, or cross-attention without a context.
        """
        if self.cross:
            if context is None:
                raise ValueError("the state of cross attention needs context=")
            k, v = self.keys_and_values(finite_padding(context, context_mask), None)
            real = jnp.ones(context.shape[:2], bool) if context_mask is None else context_mask
            return ContextCache.of(k.astype(dtype), v.astype(dtype), real)
        if not self.causal:
            return super().init_state(batch_size, max_length, dtype)
        sizes = [size for size in (max_length, self.window) if size is not None]
        if not sizes:
            raise ValueError("a cache of unwindowed attention needs max_length: how many tokens it must hold")
        return AttentionCache.empty(batch_size, min(sizes), self.num_kv_heads, self.head_dim, dtype, self.value_dim)

    def mix_next(
        self, x: jax.Array, state: AttentionCache | ContextCache, tokens: Tokens
    ) -> tuple[jax.Array, AttentionCache | ContextCache]:
        """As :meth:`Mixer.mix_next`.

        Raises:
          ValueError: more tokens than the cache holds (outside ``jit``, where the lengths are known).
        """
        if not isinstance(state, ContextCache):
            return super().mix_next(x, state, tokens)
        x, k, v = finite_padding(x, tokens.mask), state.key, state.value
        after = continued(x.shape[1], state.length, jnp.zeros_like(state.length), tokens.mask)
        changing = (self.bias, self.relative, self.score, self.visible, self.window)
        of_keys = default_positions(k.shape[1])
        # Few models need positions here, and without them the op has more implementations.
        places = (None, None) if all(part is None for part in changing) else (after.positions, of_keys)
        y = self.attend(self.queries(x, after.positions), k, v, x, mask=state.mask, positions=places)
        return self.finish(y), dataclasses.replace(state, length=after.length)

    def core_next(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        x: jax.Array,
        tokens: Tokens,
        state: AttentionCache,
        after: Continuation,
    ) -> tuple[jax.Array, AttentionCache]:
        written, seen, segments = self.read({"key": k, "value": v}, tokens, state, after)
        places = tokens.positions_or(after.positions), seen.positions
        return self.attend(q, seen.key, seen.value, x, positions=places, segments=segments), written

    def read(
        self, new: Mapping[str, jax.Array], tokens: Tokens, state: Any, after: Continuation
    ) -> tuple[Any, Any, Pair]:
        """Stores entries of new tokens, (batch, new, ...) by field of the cache ``state``.

        Returns:
          The new state; a cache of all tokens that the new ones attend to; the documents of the new tokens and of the
          cached ones, if known.
        """
        return state.read(new, tokens, after, self.window)

    def query_heads(self, x: jax.Array) -> jax.Array:
        q = super().query_heads(x)
        if self.logit_scale is None:
            return q
        factor = jnp.exp(jnp.minimum(widened(self.logit_scale[...]), math.log(100.0)))
        return q * broadcast(factor[:, None], q.shape, q.dtype)

    def attend(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        positions: Pair = (None, None),
        segments: Pair = (None, None),
        added: jax.Array | None = None,
        **further: Any,
    ) -> jax.Array:
        """The head outputs (batch, queries, num_heads, value_dim) for queries ``q``, keys ``k`` and values ``v``.

        Args:
          x: the tokens of the queries, (batch, queries, features).
          mask, positions, segments, added: as in :meth:`asked`.
          further: further options of :func:`pallas_kernels.attention`.
        """
        options = self.asked(q, k, mask=mask, positions=positions, segments=segments, added=added) | further
        if self.sowing(Diagnostic, "attention"):
            self.sow(Diagnostic, "attention", attention_weights(q, k, **options))
        k, v = k.astype(q.dtype), v.astype(q.dtype)
        if self.persistent is None:
            return attention(q, k, v, **options)
        y, lse = attention(q, k, v, **options, return_lse=True)
        pk, pv = self.key_value_heads(broadcast(self.persistent[...], (len(q), *self.persistent.shape), x.dtype))
        seen, more = attention(self.query_heads(x), pk, pv, scale=self.scale, return_lse=True)
        return merge([(y, lse), (seen, more)])[0]

    def asked(
        self,
        q: jax.Array,
        k: jax.Array,
        *,
        mask: jax.Array | None = None,
        positions: Pair = (None, None),
        segments: Pair = (None, None),
        added: jax.Array | None = None,
    ) -> dict[str, Any]:
        """Options for :func:`pallas_kernels.attention`.

        Args:
          mask: bool (batch, keys), True = real.
          positions, segments: those of queries and of keys, int32 (batch or 1, queries) and (batch or 1, keys).
          added: (batch, keys, num_heads), added to the logits of each key.
        """
        batch, window, bias = q.shape[0], None, None
        if self.window is not None:
            window = (self.window - 1, 0 if self.causal else self.window - 1)
        if self.bias is not None:
            bias = self.bias(*_places(q, k, positions))
        if self.logit_bias is not None:
            bias = jnp.full((1, 1, 1, 1), self.logit_bias, jnp.float32) + (0 if bias is None else bias)
        if added is not None:
            added = jnp.swapaxes(added, 1, 2)[:, :, None]
            bias = added if bias is None else bias + added
        places = [
            None if p is None else jnp.broadcast_to(p, (batch, t.shape[1]))
            for t, p in zip((q, k), positions, strict=True)
        ]
        if self.visible is not None and mask is not None:
            # The op takes only one of the two masks: padding becomes a document of its own.
            own, theirs = (
                jnp.zeros((1, t.shape[1]), jnp.int32) if ids is None else ids
                for t, ids in zip((q, k), segments, strict=True)
            )
            segments, mask = (own, jnp.where(mask, theirs, jnp.iinfo(jnp.int32).min)), None
        options: dict[str, Any] = {
            "bias": bias,
            "mask": self.visible if mask is None else mask[:, None, None],
            "score": self.score,
            "causal": self.causal and not self.cross,
            "window": window,
            "scale": self.scale,
            "normalize": self.normalize,
            "sinks": None if self.sinks is None else self.sinks[...],
            "query_positions": places[0],
            "key_positions": places[1],
            "query_segments": segments[0],
            "key_segments": segments[1],
            # Padding is finite after finite_padding, and so is what states hold of it.
            "finite": True,
        }
        if self.relative is None:
            return options
        changes = self.relative.changes(*_places(q, k, positions))
        if bias is not None and "bias" in changes:
            changes["bias"] += bias
        return options | changes

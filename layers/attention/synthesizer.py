"""Synthesizer: Rethinking Self-Attention in Transformer Models (Tay et al., ICML 2021, arXiv:2005.00743), section 3.

    y_i = sum_j softmax_j(s_ij) v_j

    dense        s_i = W_2 relu(W_1 x_i + b_1) + b_2          from the token alone, a logit for each position
    random       s = R                                        learned, independent of the tokens
    factorized   s = A B^T                                    the same, of low rank
    dot          s_ij = q_i . k_j / sqrt(d)                   as in attention
    several      s = sum_n a_n s_n                            with a = softmax of learned logits

All kinds but "random" are expressed by queries and keys, of the tokens or learned per position, which are concatenated
if there are several kinds: no matrix of all pairs is materialized.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx, struct

from layers.attention.cache import TokenCache
from layers.initializers import truncated_normal, zeros
from layers.linear import Linear
from layers.mixer import Mixer, finite_padding, register_mixer
from layers.module import parameter
from layers.tokens import Tokens, continued
from pallas_kernels import attention

SCORES = ("dense", "random", "factorized", "dot")


@struct.dataclass
class SynthesizerCache(TokenCache):
    """Keys and values of the tokens read so far.

    Attributes:
      key: (batch, capacity, heads, head_dim) for "dot", else (..., 0).
      value: (batch, capacity, heads, head_dim).
    """

    key: jax.Array
    value: jax.Array


@register_mixer("synthesizer_attention")
class SynthesizerAttention(Mixer):
    """Attention with synthetic logits that do not compare tokens. The tables have rows for ``max_length`` tokens.

    The paper's "factorized dense", which tiles two short rows of logits, is left out: it needs all pairs.

    Parameters: ``value``, ``out`` (linear); ``hidden`` (linear), ``places`` (heads, max_length, head_dim) and
    ``place_bias`` (heads, max_length) for "dense"; ``table`` (heads, max_length, max_length) for "random"; ``left``,
    ``right`` (heads, max_length, rank) for "factorized"; ``query``, ``key`` (linear, no biases) for "dot"; ``mixture``
    (kinds,) for several kinds.
    """

    supports_causal = True
    undecayed: ClassVar[tuple[str, ...]] = ("places", "table", "left", "right", "mixture")
    refusals: ClassVar[Mapping[str, str]] = {
        "positions": "its tables have a row for each place of the sequence: leave positions out",
        "segment_ids": "its tables count places of the row: give each document a row of its own",
    }

    def __init__(
        self,
        features: int,
        *,
        num_heads: int,
        causal: bool = False,
        scores: str | Sequence[str] = "dense",
        max_length: int = 512,
        rank: int = 8,
        use_bias: bool = True,
        kernel_init: Any = truncated_normal(0.02),
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          scores: "dense", "random", "factorized" or "dot", or a sequence of several.
          max_length: maximum number of tokens.
          rank: rank of "factorized"; the paper uses 8.

        Raises:
          ValueError: features not divisible by num_heads, or unknown scores.
        """
        kinds = (scores,) if isinstance(scores, str) else tuple(scores)
        if features % num_heads or not kinds or set(kinds) - set(SCORES) or len(set(kinds)) < len(kinds):
            raise ValueError(
                f"scores are some of {', '.join(SCORES)}, and heads divide the features; got {scores!r}, {features} "
                f"features and {num_heads} heads"
            )
        width = features // num_heads
        made: Any = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        common = {**made, "kernel_init": kernel_init}
        self.value = Linear(features, features, use_bias=use_bias, **common)
        self.out = Linear(features, features, use_bias=use_bias, **common)
        self.hidden = Linear(features, features, **common) if "dense" in kinds else None

        def table(kind: str, *shape: int, init: Any = kernel_init) -> nnx.Param | None:
            return parameter(init, (num_heads, max_length, *shape), made) if kind in kinds else None

        self.places, self.place_bias = table("dense", width), table("dense", init=zeros)
        self.table = table("random", max_length)
        self.left, self.right = table("factorized", rank), table("factorized", rank)
        self.query, self.key = (
            Linear(features, features, use_bias=False, **common) if "dot" in kinds else None for _ in range(2)
        )
        self.mixture = parameter(zeros, (len(kinds),), made) if len(kinds) > 1 else None
        self.kinds, self.num_heads, self.causal, self.max_length = kinds, num_heads, causal, max_length

    @property
    def complexity(self) -> float:
        return 2.0

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        """As :meth:`Mixer.mix`.

        Raises:
          ValueError: more tokens than ``max_length``.
        """
        self._check(x.shape[1])
        x = finite_padding(x, tokens.mask)
        places = jnp.arange(x.shape[1], dtype=jnp.int32)[None]
        mask = None if tokens.mask is None else tokens.mask[:, None, None]
        return self._find(x, places, self._keys(x), self._heads(self.value(x)), mask=mask, causal=self.causal)

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> SynthesizerCache:
        """A cache of ``max_length`` tokens.

        Raises:
          ValueError: a bidirectional mixer, no ``max_length``, or one greater than the mixer's.
        """
        if not self.causal:
            return super().init_state(batch_size, max_length, dtype)
        if max_length is None:
            raise ValueError("a cache of all tokens needs max_length: how many it must hold")
        self._check(max_length)
        shape = (batch_size, max_length, self.num_heads, self.value.in_features // self.num_heads)
        key = jnp.zeros(shape if self.key is not None else (*shape[:3], 0), dtype)
        return SynthesizerCache(
            **SynthesizerCache.nothing(batch_size, max_length), key=key, value=jnp.zeros(shape, dtype)
        )

    def mix_next(self, x: jax.Array, state: SynthesizerCache, tokens: Tokens) -> tuple[jax.Array, SynthesizerCache]:
        """As :meth:`Mixer.mix_next`.

        Raises:
          ValueError: more tokens than the cache holds (outside ``jit``, where the lengths are known).
        """
        x = finite_padding(x, tokens.mask)
        after = continued(x.shape[1], state.length, state.segment, tokens.mask)
        state = state.read({"key": self._keys(x), "value": self._heads(self.value(x))}, tokens, after)[0]
        key, value = state.key.astype(x.dtype), state.value.astype(x.dtype)
        seen: dict[str, Any] = {"query_positions": after.positions, "key_positions": state.positions}
        places = jnp.minimum(after.positions, self.max_length - 1)  # padding may exceed the table
        return self._find(x, places, key, value, causal=True, **seen), state

    def _check(self, length: int) -> None:
        if length > self.max_length:
            raise ValueError(
                f"Synthesizer's tables have rows for {self.max_length} tokens, got {length}: make the mixer with a "
                f"larger max_length"
            )

    def _heads(self, a: jax.Array) -> jax.Array:
        return a.reshape(*a.shape[:2], self.num_heads, -1)

    def _keys(self, x: jax.Array) -> jax.Array:
        """Keys for "dot", else of 0 features."""
        return self._heads(x[..., :0] if self.key is None else self.key(x))

    def _find(self, x: jax.Array, places: jax.Array, keys: jax.Array, values: jax.Array, **options: Any) -> jax.Array:
        """The output for tokens ``x`` at positions ``places`` (batch or 1, new); keys and values are those of the first
        positions.
        """
        shape, length = (*x.shape[:2], self.num_heads), values.shape[1]
        share = jnp.ones(1) if self.mixture is None else jax.nn.softmax(self.mixture[...].astype(jnp.float32))
        asks, answers, bias = list[jax.Array](), list[jax.Array](), None

        def of_places(table: Any) -> jax.Array:
            found = jnp.swapaxes(table[...][:, :length], 0, 1)[None]
            return jnp.broadcast_to(found, (len(x), *found.shape[1:]))

        for a, kind in zip(share, self.kinds, strict=True):
            if kind == "dense":
                assert self.hidden is not None
                asks += [a * jax.nn.relu(self._heads(self.hidden(x))), jnp.broadcast_to(a, (*shape, 1))]
                answers += [of_places(self.places), of_places(self.place_bias)[..., None]]
            elif kind == "factorized":
                assert self.left is not None
                asks.append(
                    jnp.broadcast_to(a * jnp.moveaxis(self.left[...][:, places], 0, 2), (*shape, self.left.shape[-1]))
                )
                answers.append(of_places(self.right))
            elif kind == "dot":
                assert self.query is not None
                q = self._heads(self.query(x))
                asks.append(a * q.shape[-1] ** -0.5 * q)
                answers.append(keys)
            else:
                assert self.table is not None
                bias = a * jnp.moveaxis(self.table[...][:, places, :length], 0, 1)
        if not asks:
            asks, answers = [jnp.zeros((*shape, 1))], [jnp.zeros((len(x), length, self.num_heads, 1))]
        q, k = (jnp.concatenate([part.astype(x.dtype) for part in parts], -1) for parts in (asks, answers))
        y = attention(q, k, values.astype(x.dtype), scale=1.0, bias=bias, **options)
        return self.out(y.reshape(*x.shape[:2], -1))

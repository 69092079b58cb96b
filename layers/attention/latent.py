"""Multi-head latent attention: DeepSeek-V2 (DeepSeek-AI, 2024, arXiv:2405.04434), section 2.1.

    c_t = RMSNorm(W_c x_t)        r_t = rotary(W_r x_t)                a low-rank latent, and a key that all heads share
    q_t = W_q x_t, or W_u RMSNorm(W_d x_t)        [q_C, q_R] = q, q_R = rotary(q_R)
    k_i = [W_k c_t, r_t]        v_i = W_v c_t                                for each head i
    y_t = W_o [softmax(q_i k_i^T / sqrt(head_dim + rotary_dim)) v_i]

The cache holds only c and r: latent_dim + rotary_dim numbers per token. Because q_C . (W_k c) = (W_k^T q_C) . c, the
latents can serve directly as the keys and values of a single head that all queries attend to. This "absorbed" form has
longer dot products but never materializes the keys and values of each head. DeepSeek-V2 has 128 heads of 128 features
with values of the same size, latents of 512 features (1536 for queries) and a rotary key of 64.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx, struct

from layers.attention.cache import TokenCache
from layers.attention.projected import KERNEL_INIT
from layers.drop import Dropout
from layers.linear import Linear
from layers.low_rank import LowRank
from layers.mixer import Mixer, finite_padding, register_mixer
from layers.module import Diagnostic
from layers.norm import create_norm
from layers.position import Rotary
from layers.tokens import Tokens, continued
from pallas_kernels import attention, attention_weights

Form = Literal["expanded", "absorbed"]


@struct.dataclass
class LatentCache(TokenCache):
    """Latents and rotary keys of the tokens read so far in each row's current document.

    Attributes:
      latent: (batch, capacity, latent_dim).
      key: (batch, capacity, rotary_dim), already rotated.
    """

    latent: jax.Array
    key: jax.Array


@register_mixer("multi_head_latent_attention")
class MultiHeadLatentAttention(Mixer):
    """Softmax attention whose keys and values are projected from a small latent, the only thing that is cached.

    Parameters: ``query`` (linear, or low rank with a norm as its ``activation``), ``latent`` (linear, to c and r),
    ``latent_norm``, ``key_value`` (linear, to the key and value of each head), ``out`` (linear).
    """

    supports_causal = True
    takes_positions = True
    honors = frozenset({"mask", "positions", "segment_ids"})
    sharding: ClassVar[Mapping[str, tuple[str | None, ...]]] = {
        **Mixer.sharding,
        "key_value.kernel": (None, "tensor"),
    }

    def __init__(
        self,
        features: int,
        *,
        num_heads: int,
        head_dim: int | None = None,
        value_dim: int | None = None,
        latent_dim: int | None = None,
        rotary_dim: int | None = None,
        query_latent_dim: int | None = None,
        rotary: Rotary | Mapping[str, Any] | float | None = 10000.0,
        use_bias: bool = False,
        norm_epsilon: float = 1e-6,
        form: Form | None = None,
        causal: bool = False,
        dropout: float = 0.0,
        kernel_init: Any = KERNEL_INIT,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          num_heads: number of query, key and value heads.
          head_dim, value_dim: features per head of the key part that is projected from the latent, and of the value;
            default features / num_heads, and head_dim.
          latent_dim, rotary_dim: features of c and of r; default 4 and 1/2 times head_dim, the paper's ratios.
          query_latent_dim: features of the latent that queries are projected from; None projects them from the tokens.
          rotary: base or options of the rotary embedding of r and q_R; released models rotate neighboring pairs
            (``interleaved``). None: no rotation, and r is an ordinary key shared by all heads (Kimi Linear).
          use_bias: biases of ``latent`` and ``out``.
          norm_epsilon: epsilon of the latents' norms.
          form: "expanded" materializes each head's keys and values, "absorbed" does not; None chooses, for each call,
            the form with fewer multiplications. The result is the same.
          dropout: dropout rate of the output.

        Raises:
          ValueError: features not divisible by num_heads if head_dim is not given, or an unknown form.
        """
        if head_dim is None and features % num_heads:
            raise ValueError(
                f"{features} features can't be split over {num_heads} heads: give head_dim, or a number of heads that "
                f"divides it"
            )
        if form not in (None, "expanded", "absorbed"):
            raise ValueError(f'form is "expanded", "absorbed" or None; got {form!r}')
        self.num_heads, self.head_dim = num_heads, head_dim or features // num_heads
        self.value_dim = value_dim or self.head_dim
        self.latent_dim = latent_dim or 4 * self.head_dim
        self.rotary_dim = self.head_dim // 2 if rotary_dim is None else rotary_dim
        self.rotary, self.form, self.causal = Rotary.of(rotary), form, causal
        made: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        linear: dict[str, Any] = {"kernel_init": kernel_init, **made}
        norm: dict[str, Any] = {"epsilon": norm_epsilon, **made}
        queries = num_heads * (self.head_dim + self.rotary_dim)
        self.query: Linear | LowRank
        if query_latent_dim is None:
            self.query = Linear(features, queries, use_bias=False, **linear)
        else:
            normed = create_norm("rms", query_latent_dim, **norm)
            self.query = LowRank(features, query_latent_dim, queries, activation=normed, use_bias=False, **linear)
        self.latent = Linear(features, self.latent_dim + self.rotary_dim, use_bias=use_bias, **linear)
        self.latent_norm = create_norm("rms", self.latent_dim, **norm)
        self.key_value = Linear(self.latent_dim, num_heads * (self.head_dim + self.value_dim), use_bias=False, **linear)
        self.out = Linear(num_heads * self.value_dim, features, use_bias=use_bias, **linear)
        self.dropout = Dropout(dropout, rngs=rngs) if dropout else None

    @property
    def complexity(self) -> float:
        return 2.0

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        x = finite_padding(x, tokens.mask)
        places, ids = tokens.places(x.shape[1]), tokens.segment_ids
        # Positions in a grid have no order: they mask nothing.
        ordered = tokens.positions if tokens.positions is not None and tokens.positions.ndim == 2 else None
        ordered = None if ordered is None else jnp.broadcast_to(ordered, x.shape[:2])
        q, latent, key = self.queries(x, places), *self.latents(x, places)
        mask = None if tokens.mask is None else tokens.mask[:, None, None]
        known = {"query_positions": ordered, "key_positions": ordered, "query_segments": ids, "key_segments": ids}
        return self.attend(q, latent, key, mask=mask, **known)

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> LatentCache:
        """A cache of ``max_length`` tokens, latent_dim + rotary_dim numbers each.

        Raises:
          ValueError: bidirectional attention, or no capacity given.
        """
        if not self.causal:
            return super().init_state(batch_size, max_length, dtype)
        if max_length is None:
            raise ValueError("a cache of latents needs max_length: how many tokens it must hold")
        latent, key = (jnp.zeros((batch_size, max_length, size), dtype) for size in (self.latent_dim, self.rotary_dim))
        return LatentCache(**LatentCache.nothing(batch_size, max_length), latent=latent, key=key)

    def mix_next(self, x: jax.Array, state: LatentCache, tokens: Tokens) -> tuple[jax.Array, LatentCache]:
        """As :meth:`Mixer.mix_next`.

        Raises:
          ValueError: more tokens than the cache holds (outside ``jit``, where the lengths are known).
        """
        x = finite_padding(x, tokens.mask)
        after = continued(x.shape[1], state.length, state.segment, tokens.mask, tokens.segment_ids)
        places = tokens.positions_or(after.positions)
        q, latent, key = self.queries(x, places), *self.latents(x, places)
        written, seen, segments = state.read({"latent": latent, "key": key}, tokens, after)
        known: dict[str, Any] = {"query_positions": places, "key_positions": seen.positions}
        known |= {"query_segments": segments[0], "key_segments": segments[1]}
        return self.attend(q, seen.latent.astype(q.dtype), seen.key.astype(q.dtype), **known), written

    def queries(self, x: jax.Array, places: jax.Array) -> jax.Array:
        """Queries (batch, length, num_heads, head_dim + rotary_dim), the last rotary_dim features rotated."""
        q = self.query(x).reshape(*x.shape[:2], self.num_heads, -1)
        if self.rotary is None:
            return q
        plain, turned = jnp.split(q, [self.head_dim], axis=-1)
        return jnp.concatenate([plain, self.rotary(turned, places)], axis=-1)

    def latents(self, x: jax.Array, places: jax.Array) -> tuple[jax.Array, jax.Array]:
        """c (batch, length, latent_dim) and r (batch, length, rotary_dim)."""
        latent, key = jnp.split(self.latent(x), [self.latent_dim], axis=-1)
        key = key if self.rotary is None else self.rotary(key[:, :, None], places)[:, :, 0]
        return self.latent_norm(latent), key

    def attend(self, q: jax.Array, latent: jax.Array, key: jax.Array, **known: Any) -> jax.Array:
        """The output (batch, length, features) of queries attending to tokens given by their latents and rotary keys.

        Args:
          q: (batch, queries, num_heads, head_dim + rotary_dim), from :meth:`queries`.
          latent, key: (batch, keys, latent_dim) and (batch, keys, rotary_dim), from :meth:`latents`.
          known: further options of :func:`pallas_kernels.attention`, such as its mask and positions.
        """
        options = {**known, "causal": self.causal, "scale": (self.head_dim + self.rotary_dim) ** -0.5}
        absorbs = self._absorbs(q.shape[1]) if self.form is None else self.form == "absorbed"
        if absorbs:
            matrix = self.key_value.matrix(q.dtype).reshape(self.latent_dim, self.num_heads, -1)
            to_key, to_value = jnp.split(matrix, [self.head_dim], axis=-1)
            plain, turned = jnp.split(q, [self.head_dim], axis=-1)
            q = jnp.concatenate([jnp.einsum("blhk,rhk->blhr", plain, to_key), turned], axis=-1)
            k, v = jnp.concatenate([latent, key], axis=-1)[:, :, None], latent[:, :, None]
        else:
            heads = self.key_value(latent).reshape(*latent.shape[:2], self.num_heads, -1)
            k, v = jnp.split(heads, [self.head_dim], axis=-1)
            shared = jnp.broadcast_to(key[:, :, None], (*k.shape[:-1], self.rotary_dim))
            k = jnp.concatenate([k, shared], axis=-1)
        if self.sowing(Diagnostic, "attention"):
            self.sow(Diagnostic, "attention", attention_weights(q, k, **options))
        y = attention(q, k, v, **options)
        if absorbs:
            y = jnp.einsum("blhr,rhv->blhv", y, to_value)
        y = self.out(y.reshape(*y.shape[:2], -1))
        return y if self.dropout is None else self.dropout(y)

    def _absorbs(self, queries: int) -> bool:
        """Whether the absorbed form needs fewer multiplications for this number of queries per key."""
        made = self.head_dim + self.value_dim
        return queries * (2 * self.latent_dim - made) < self.latent_dim * made

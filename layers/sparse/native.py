"""Native Sparse Attention: Hardware-Aligned and Natively Trainable Sparse Attention (Yuan et al., ACL 2025,
arXiv:2502.11089), section 3.

    y = g_c softmax(q K_c^T) V_c + g_s softmax(q K_s^T) V_s + g_w softmax(q K_w^T) V_w          logits / sqrt(d)

K_c and V_c hold one key and value per block of tokens that ends at the query or earlier. K_s and V_s are those of the
tokens, up to the query, of a few whole blocks: the first, the query's own, the previous one, and those with the largest
weights in the first term, averaged over the query heads that share a key head. K_w and V_w are those of a sliding
window. The gates g are sigmoids per head. As in flash-linear-attention, the key and value of a block are means, not the
output of an MLP over overlapping blocks.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from layers.attention.cache import AttentionCache
from layers.attention.projected import GroupedHeadOptions, ProjectedAttention, of_projections
from layers.linear import Linear
from layers.mixer import register_mixer
from layers.module import Diagnostic
from layers.tokens import Continuation, Tokens
from pallas_kernels import attention, masks

CHUNK = 128
"""Number of queries whose selected keys are gathered at once."""


@dataclasses.dataclass(frozen=True)
class WholeBlocks(masks.Pattern):
    """Mask over block indices: blocks that end at the query or earlier are visible. Instances compare by value."""

    block: int

    def __call__(self, q: Any, k: Any) -> Any:
        return (k + 1) * self.block - 1 <= q


@register_mixer("native_sparse_attention")
class NativeSparseAttention(ProjectedAttention):
    """Gated sum of attention to summaries of all blocks, to a few selected blocks, and to a sliding window.

    It is causal only, and the selection depends on nothing after the query, so streaming is exact. The state holds all
    tokens; the block means are recomputed at each call. The logits of queries and blocks, and the gathered keys of
    selected blocks, are held for ``CHUNK`` queries at a time.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear), ``gate`` (features, 3 heads), and ``query_norm``,
    ``key_norm`` if enabled.
    """

    supports_causal = True
    supports_bidirectional = False
    causal = True

    def __init__(
        self,
        features: int,
        *,
        block: int = 64,
        selected: int = 16,
        window: int = 512,
        **options: Unpack[GroupedHeadOptions],
    ):
        """Args:
          block: tokens of a block.
          selected: number of blocks that a query attends to in full, including the three that are always selected.
          window: size of the sliding window, the query included.
          options: as in :class:`ProjectedAttention`, without biases by default.

        Raises:
          ValueError: features not divisible by num_heads, or num_heads by num_kv_heads, or a size that is too small.
        """
        if block < 1 or selected < 3 or window < 1:
            raise ValueError(
                f"block and window are at least 1, and selected at least 3; got {block}, {window} and {selected}"
            )
        options.setdefault("use_bias", False)
        super().__init__(features, **options)
        self.gate = Linear(features, 3 * self.num_heads, use_bias=False, **of_projections(options))
        self.block, self.selected, self.window = block, selected, window

    @property
    def complexity(self) -> float:
        return 2.0

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        near = attention(q, k, v, causal=True, window=(self.window - 1, 0))
        return self._attend(q, k, v, x, jnp.arange(x.shape[1], dtype=jnp.int32)[None], {}, near)

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> AttentionCache:
        """A cache of ``max_length`` tokens.

        Raises:
          ValueError: no capacity given.
        """
        if max_length is None:
            raise ValueError("a cache of all tokens needs max_length: how many it must hold")
        return AttentionCache.empty(batch_size, max_length, self.num_kv_heads, self.head_dim, dtype)

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
        """As :meth:`ProjectedAttention.core_next`.

        Raises:
          ValueError: more tokens than the cache holds (outside ``jit``, where the lengths are known).
        """
        state = state.read({"key": k, "value": v}, tokens, after)[0]
        k, v = (a.astype(q.dtype) for a in (state.key, state.value))
        asking: dict[str, Any] = {"query_positions": after.positions}
        seen: dict[str, Any] = {**asking, "key_positions": state.positions}
        near = attention(q, k, v, causal=True, window=(self.window - 1, 0), **seen)
        return self._attend(q, k, v, x, after.positions, asking, near), state

    def _attend(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        x: jax.Array,
        places: jax.Array,
        asking: dict[str, Any],
        near: jax.Array,
    ) -> jax.Array:
        """Head outputs of queries ``q`` at positions ``places`` (batch or 1, new); keys and values are in order of
        positions.

        Args:
          asking: ``query_positions`` of the op if the queries are not all tokens.
          near: outputs of the sliding window.
        """
        batch, blocks = len(k), [_in_blocks(a, self.block) for a in (k, v)]
        whole = [a.astype(jnp.promote_types(a.dtype, jnp.float32)).mean(2).astype(a.dtype) for a in blocks]
        if asking:
            slots = jnp.broadcast_to(jnp.arange(whole[0].shape[1], dtype=jnp.int32), (batch, whole[0].shape[1]))
            asking = {**asking, "key_positions": slots}
        far = attention(q, *whole, mask=WholeBlocks(self.block), **asking)
        places = jnp.broadcast_to(places, q.shape[:2])
        found, chosen = self._selected(q, whole[0], blocks, places)
        if self.sowing(Diagnostic, "routes"):
            self.sow(Diagnostic, "routes", chosen)
        gates = jax.nn.sigmoid(self.gate(x).astype(jnp.promote_types(x.dtype, jnp.float32)))
        gates = gates.reshape(*x.shape[:2], self.num_heads, 3, 1)
        return sum(gates[..., i, :].astype(y.dtype) * y for i, y in enumerate((far, found, near)))  # type: ignore[return-value]

    def _selected(
        self, q: jax.Array, means: jax.Array, blocks: list[jax.Array], places: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Outputs over selected blocks, and their indices (batch, new, kv_heads, selected), -1 for none."""
        batch, new, heads, width = q.shape
        size = min(CHUNK, new)
        parts = -(-new // size)

        def cut(a: jax.Array) -> jax.Array:
            padded = jnp.pad(a, ((0, 0), (0, parts * size - new), *[(0, 0)] * (a.ndim - 2)))
            return jnp.moveaxis(padded.reshape(batch, parts, size, *a.shape[2:]), 1, 0)

        @jax.checkpoint
        def some(_: None, part: tuple[jax.Array, jax.Array]) -> tuple[None, tuple[jax.Array, jax.Array]]:
            asked, at = part
            chosen = self._choose(jax.lax.stop_gradient(asked), jax.lax.stop_gradient(means), at)
            return None, (self._in_chosen(asked, blocks, chosen, at), chosen)

        found = jax.lax.scan(some, None, (cut(q), cut(places)))[1]
        y, chosen = (jnp.moveaxis(a, 0, 1).reshape(batch, parts * size, *a.shape[3:])[:, :new] for a in found)
        return y.reshape(batch, new, heads, width), chosen

    def _choose(self, q: jax.Array, means: jax.Array, places: jax.Array) -> jax.Array:
        """The selected blocks of each query, int32 (batch, new, kv_heads, selected), -1 for none."""
        wide, count = jnp.promote_types(q.dtype, jnp.float32), means.shape[1]
        asked = self._grouped(q).astype(wide)
        logits = jnp.einsum("bnkgd,bckd->bnkgc", asked, means.astype(wide)) * self.head_dim**-0.5
        block, own = jnp.arange(count, dtype=jnp.int32), (places // self.block)[..., None]
        past = ((block + 1) * self.block - 1 <= places[..., None])[:, :, None]
        logits = jnp.where(past[:, :, :, None], logits, -jnp.inf)
        top = jnp.max(logits, -1, keepdims=True)
        weights = jnp.exp(logits - jnp.where(top == -jnp.inf, 0, top))
        share = (weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-30)).mean(3)
        always = ((block == 0) | (block == own) | (block == own - 1))[:, :, None]
        scores, chosen = jax.lax.top_k(jnp.where(always, 2.0, jnp.where(past, share, -1.0)), min(self.selected, count))
        return jnp.where(scores < 0, -1, chosen.astype(jnp.int32))

    def _in_chosen(self, q: jax.Array, blocks: list[jax.Array], chosen: jax.Array, places: jax.Array) -> jax.Array:
        """Outputs over the tokens of the chosen blocks up to the query, (batch, new, kv_heads, group, head_dim)."""
        batch, new, kv_heads, _ = chosen.shape
        rows, heads = jnp.arange(batch)[:, None, None, None], jnp.arange(kv_heads)[:, None]
        index = jnp.maximum(chosen, 0)
        k, v = (
            jnp.moveaxis(a, 3, 2)[rows, index, heads].reshape(batch, new, kv_heads, -1, a.shape[-1]) for a in blocks
        )
        token = index[..., None] * self.block + jnp.arange(self.block, dtype=jnp.int32)
        seen = (token <= places[:, :, None, None, None]) & (chosen >= 0)[..., None]
        seen = seen.reshape(batch, new, kv_heads, 1, -1)
        wide = jnp.promote_types(q.dtype, jnp.float32)
        asked = self._grouped(q).astype(wide)
        logits = jnp.einsum("bnkgd,bnktd->bnkgt", asked, k.astype(wide)) * self.head_dim**-0.5
        weights = jax.nn.softmax(jnp.where(seen, logits, jnp.finfo(wide).min), -1)
        return jnp.einsum("bnkgt,bnktd->bnkgd", weights, v.astype(wide)).astype(q.dtype)

    def _grouped(self, q: jax.Array) -> jax.Array:
        """Query heads grouped by their key head: (batch, new, kv_heads, group, head_dim)."""
        return q.reshape(*q.shape[:2], self.num_kv_heads, -1, self.head_dim)


def _in_blocks(a: jax.Array, block: int) -> jax.Array:
    """Reshapes (batch, length, ...) to (batch, blocks, block, ...), padding with zeros."""
    batch, length, *rest = a.shape
    padded = jnp.pad(a, ((0, 0), (0, -length % block), *[(0, 0)] * len(rest)))
    return padded.reshape(batch, -(-length // block), block, *rest)

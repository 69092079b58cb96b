"""Native Hybrid Attention for Efficient Sequence Modeling (Du et al., 2025, arXiv:2510.07019), section 3.

    p = softmax([scale K_t q_t, scale R(k_{t-w+1}) . R(q_t), ..., scale R(k_t) . R(q_t)])
    o_t = p_slots V_t + p_window [v_{t-w+1}, ..., v_t]        y = W_o RMSNorm(silu(o))

One softmax runs over the M slots K_t, V_t of gated slot attention
(:mod:`layers.linear_attention.gated_slot_attention`), which have read the tokens 0 to t - w, and over the w tokens of a
sliding window. R is a rotary embedding, used only in the window; queries and keys of the slots have a feature map. With
a window over the whole sequence this is softmax attention, with a window of few tokens nearly gated slot attention. As
in the authors' definition (JusenD/NHA, tests/test_ops_parity.py), an empty slot has a logit of 0 and takes its share of
the softmax. Their released layer writes each token to the slots immediately, so tokens in the window count twice, and
its window is one token longer: use ``delay=0`` and ``window=w + 1`` for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct

from layers.attention.cache import TokenCache
from layers.linear_attention.gated_slot_attention import GatedSlotAttention, SlotState
from layers.mixer import register_mixer
from layers.position import Rotary
from layers.tokens import Tokens, continued
from pallas_kernels import attention, merge


@struct.dataclass
class WindowCache(TokenCache):
    """Cache of the last tokens of each row's current document.

    Attributes:
      key, value: (batch, capacity, heads, key_dim) and (batch, capacity, heads, value_dim), without rotary embedding.
      decay: (batch, capacity, heads, slots), log decays, at least float32.
    """

    key: jax.Array
    value: jax.Array
    decay: jax.Array


@struct.dataclass
class HybridState(SlotState):
    """The state of native hybrid attention.

    Attributes:
      window: tokens that the slots have not read yet or that the next token sees in its window.
    """

    window: WindowCache


@register_mixer("native_hybrid_attention")
class NativeHybridAttention(GatedSlotAttention):
    """Softmax attention to a sliding window and to slots that summarize all earlier tokens, in constant memory.

    Parameters: those of :class:`GatedSlotAttention`.
    """

    paper = (204,)

    def __init__(
        self,
        features: int,
        *,
        num_heads: int,
        num_slots: int = 64,
        window: int = 32,
        delay: int | None = None,
        rotary: Rotary | Mapping[str, Any] | float | None = 10000.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        """Args:
          num_heads, num_slots: number of heads, and of slots per head.
          window: w, tokens of the sliding window, the query included.
          delay: number of tokens after which a token is written to the slots; None for w, when it leaves the window.
          rotary: embedding of queries and keys in the window, as of
            :class:`layers.attention.projected.ProjectedAttention`.
          options: as in :class:`GatedSlotAttention`.

        Raises:
          ValueError: heads that do not divide the features, a window below 1, or a delay below 0.
        """
        made = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        super().__init__(features, num_heads=num_heads, num_slots=num_slots, **options, **made)
        if window < 1 or (delay is not None and delay < 0):
            raise ValueError(
                f"native hybrid attention needs a window of at least one token and a delay of at least 0, got "
                f"window={window} and delay={delay}; gated_slot_attention has no window"
            )
        self.window, self.delay = window, window if delay is None else delay
        self.rotary = Rotary.of(rotary)

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> HybridState:
        state = super().init_state(batch_size, max_length, dtype)
        shape = (batch_size, max(self.window, self.delay), self.num_heads)
        window = WindowCache(
            **WindowCache.nothing(*shape[:2]),
            key=jnp.zeros((*shape, self.key_dim), dtype),
            value=jnp.zeros((*shape, self.value_dim), dtype),
            decay=jnp.zeros((*shape, self.num_slots), jnp.promote_types(dtype, jnp.float32)),
        )
        return HybridState(state.convolutions, state.memory, state.segment, keys=state.keys, window=window)

    def recur(  # type: ignore[override]
        self, x: jax.Array, tokens: Tokens, state: HybridState | None
    ) -> tuple[jax.Array, HybridState | None]:
        q, k, v, decay, seen = self.heads(x, tokens, state)
        new = {"key": k, "value": v, "decay": decay}
        if state is None:
            ids, window = tokens.segment_ids, None
            late = self._late(new, Tokens(segment_ids=ids).places(x.shape[1]), tokens.mask, None)
            local = self._local(q, k, v, None, None, ids, ids)
        else:
            last = state.window
            after = continued(x.shape[1], last.length, last.segment, tokens.mask, tokens.segment_ids)
            late = self._late(new, after.positions, tokens.mask, last)
            window, known, segments = last.read(new, tokens, after, last.positions.shape[1])
            local = self._local(q, known.key, known.value, after.positions, known.positions, *segments)
        y, slots, memories = self.slots(q, late["key"], late["value"], late["decay"], tokens, state)
        y = self.read_out(merge([(y, slots), local])[0])
        return y, state and state.after(tokens, convolutions=seen, window=window, **memories)

    def _late(
        self, new: Mapping[str, jax.Array], places: jax.Array, mask: jax.Array | None, last: WindowCache | None
    ) -> dict[str, jax.Array]:
        """For each token, the entries of the token ``delay`` positions earlier, which is written to the slots at that
        time; with a decay of 0 if there is none.

        Args:
          places: (batch or 1, length), positions of the tokens in their documents.
        """
        length = places.shape[1]
        late = {}
        for name, a in new.items():
            late[name] = jnp.pad(a, ((0, 0), (self.delay, 0), (0, 0), (0, 0)))[:, :length]
            if last is not None and self.delay:
                slot = (places - self.delay)[..., None, None] % last.positions.shape[1]
                old = jnp.take_along_axis(getattr(last, name), slot, axis=1).astype(a.dtype)
                late[name] = jnp.where(jnp.arange(length)[:, None, None] < self.delay, old, late[name])
        exists = places >= self.delay
        exists = exists if mask is None else exists & mask
        return {**late, "decay": jnp.where(exists[..., None, None], late["decay"], 0)}

    def _local(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        of_queries: jax.Array | None,
        of_keys: jax.Array | None,
        query_segments: jax.Array | None,
        key_segments: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array]:
        """Outputs of the sliding window, and the log-sum-exp of their logits; positions of None mean 0, 1, 2, ...
        """
        if self.rotary is not None:
            index = jnp.arange(k.shape[1], dtype=jnp.int32)[None]
            q = self.rotary(q, index if of_queries is None else of_queries)
            k = self.rotary(k, index if of_keys is None else of_keys)
        found: tuple[jax.Array, jax.Array] = attention(
            q, k.astype(q.dtype), v.astype(q.dtype), causal=True, window=(self.window - 1, 0), scale=self.scale,
            query_positions=of_queries, key_positions=of_keys, query_segments=query_segments,
            key_segments=key_segments, return_lse=True,
        )  # fmt: skip
        return found

"""Flowformer: Linearizing Transformers with Conservation Flows (Wu et al., ICML 2022, arXiv:2202.06258), section 3.

With phi = sigmoid, Q_i = phi(q_i) and K_j = phi(k_j), queries are sinks and keys are sources of a flow:

    I_i = Q_i . sum_j K_j           O_j = K_j . sum_i Q_i              what flows into a sink, and out of a source
    I'_i = Q_i . sum_j K_j / O_j    O'_j = K_j . sum_i Q_i / I_i       the same where each source, or each sink, has one unit
    y_i = sigmoid(I'_i) Q_i / I_i  sum_j K_j softmax_j(O'_j) n v_j^T

Sources compete for the sinks, so that attention does not become uniform, and no softmax of scores is needed. In the
causal form all sums are those up to the token: sources have n = 1, 2, ... competitors, and 1 / O and 1 / I are multiplied
and I' and O' divided by it. As in the authors' code 1e-6 is added to both factors of each product, and O' stays in
[-1, 1].
"""

from __future__ import annotations

from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import struct

from layers.attention.projected import HeadOptions, ProjectedAttention
from layers.mixer import register_mixer, without_padding
from layers.tokens import Continuation, Tokens
from pallas_kernels import linear_attention

EPSILON = 1e-6


@struct.dataclass
class FlowState:
    """What is kept of a row's current document, at least float32.

    Attributes:
      flows, conserved: (batch, 2 heads, head_dim, 1), the sums of K, then of Q; and of K / O, then of Q / I.
      competition: (batch, heads, 1, 1), the sum of exp(O').
      memory: (batch, heads, head_dim, head_dim), the sum of K v^T, competition included.
      length: (batch,) int32, tokens read of the document.
      segment: (batch,) int32, that document.
    """

    flows: jax.Array
    conserved: jax.Array
    competition: jax.Array
    memory: jax.Array
    length: jax.Array
    segment: jax.Array


SUMS = ("flows", "conserved", "competition", "memory")


@register_mixer("flow_attention")
class FlowAttention(ProjectedAttention):
    """Attention whose flow is conserved, in linear time; causal, with a state of fixed size.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear).
    """

    supports_causal = True
    weighs_values = True
    honors = frozenset({"mask", "segment_ids"})
    paper = (22,)

    def __init__(
        self, features: int, *, causal: bool = False, head_dim: int | None = None, **options: Unpack[HeadOptions]
    ):
        """Args:
        head_dim, options: as of :class:`ProjectedAttention`; the authors drop 0.05 of the output in training.
        """
        super().__init__(features, head_dim=head_dim, **options)
        self.causal = causal

    @property
    def complexity(self) -> float:
        return 1.0

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        count = tokens.count(x.shape[1], causal=self.causal)
        return self._flow(q, k, v, count, tokens.mask, None, causal=self.causal, starts=tokens.starts())[0]

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> FlowState:
        """An empty state; its size does not depend on the length, and it is never narrower than float32."""
        if not self.causal:
            return super().init_state(batch_size, max_length, dtype)
        heads, width = self.num_heads, self.head_dim
        shapes = (2 * heads, width, 1), (2 * heads, width, 1), (heads, 1, 1), (heads, width, width)
        sums = (jnp.zeros((batch_size, *shape), jnp.promote_types(dtype, jnp.float32)) for shape in shapes)
        length, segment = jnp.zeros((batch_size,), jnp.int32), jnp.zeros((batch_size,), jnp.int32)
        return FlowState(**dict(zip(SUMS, sums, strict=True)), length=length, segment=segment)

    def core_next(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        x: jax.Array,
        tokens: Tokens,
        state: FlowState,
        after: Continuation,
    ) -> tuple[jax.Array, FlowState]:
        starts = tokens.starts(state.segment)
        y, sums = self._flow(q, k, v, after.positions + 1, tokens.mask, state, starts=starts)
        return y, FlowState(**sums, length=after.length, segment=after.segment)

    def _flow(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        count: jax.Array,
        mask: jax.Array | None,
        state: FlowState | None,
        **options: Any,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """What heads find, and the sums after the tokens where those before are given.

        Args:
          count: n, (batch or 1, length).
          **options: of the op.
        """
        after: dict[str, jax.Array] = {}

        def summed(name: str, asks: jax.Array, gives: jax.Array, values: jax.Array) -> jax.Array:
            """asks . sum of gives values^T, the values being (batch, length, heads, width)."""
            if state is None:
                return linear_attention(asks, gives, values, scale=1.0, **options)
            before = getattr(state, name)
            found, sums = linear_attention(
                asks, gives, values, scale=1.0, initial_state=before, return_state=True, **options
            )
            after[name] = sums.astype(before.dtype)
            return found

        wide = jnp.promote_types(v.dtype, jnp.float32)
        n, heads = count.astype(wide)[..., None], None if mask is None else mask[..., None]
        queries, keys = (without_padding(jax.nn.sigmoid(a.astype(wide)), heads) for a in (q, k))
        # Sinks ask the sources, and sources the sinks: twice as many heads.
        asks, gives = jnp.concatenate([queries, keys], 2) + EPSILON, jnp.concatenate([keys, queries], 2)
        least = EPSILON * jnp.sum(asks, -1)
        step = n if self.causal else 1.0
        flows = summed("flows", asks, gives, jnp.ones_like(asks[..., :1]))[..., 0] + least
        outgoing_and_incoming = jnp.roll(step / flows, self.num_heads, axis=2)
        conserved = summed("conserved", asks, gives, outgoing_and_incoming[..., None])[..., 0] + least
        sinks, sources = jnp.split(conserved / step, 2, axis=2)
        strength = without_padding(jnp.exp(jnp.clip(sources, -1, 1))[..., None], heads)
        one = jnp.ones_like(strength)
        total = summed("competition", one, one, strength)
        share = n * (strength / jnp.where(total > 0, total, 1))[..., 0]  # before a first token there is no sum
        incoming = flows[:, :, : self.num_heads, None]
        y = summed("memory", queries / incoming, keys, share[..., None] * v.astype(wide))
        return (y * jax.nn.sigmoid(sinks)[..., None]).astype(v.dtype), after

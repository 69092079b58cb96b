"""Flowformer: Linearizing Transformers with Conservation Flows (Wu et al., ICML 2022, arXiv:2202.06258), section 3.

With phi = sigmoid, Q_i = phi(q_i) and K_j = phi(k_j), queries are sinks and keys are sources of a flow:

    I_i = Q_i . sum_j K_j           O_j = K_j . sum_i Q_i              flow into a sink, and out of a source
    I'_i = Q_i . sum_j K_j / O_j   O'_j = K_j . sum_i Q_i / I_i   the same if each source, or each sink, has one unit
    y_i = sigmoid(I'_i) Q_i / I_i  sum_j K_j softmax_j(O'_j) n v_j^T

The competition of sources keeps attention from becoming uniform without a softmax of logits. In the causal form all
sums end at the token itself, the number of sources is n = 1, 2, ..., 1 / O and 1 / I are multiplied by n, and I' and O'
divided by it. As in the authors' code, 1e-6 is added to both factors of each product, and O' is clipped to [-1, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Unpack

import jax
import jax.numpy as jnp

from layers.attention.projected import HeadOptions
from layers.attention.summed import Reading, SummedAttention
from layers.mixer import register_mixer, without_padding

EPSILON = 1e-6


@register_mixer("flow_attention")
class FlowAttention(SummedAttention):
    """Linear-time attention with flow conservation; the causal form has a state of fixed size.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear).
    """

    paper = (22,)

    def __init__(
        self, features: int, *, causal: bool = False, head_dim: int | None = None, **options: Unpack[HeadOptions]
    ):
        """Args:
        head_dim, options: as in :class:`ProjectedAttention`; the authors use an output dropout of 0.05.
        """
        super().__init__(features, causal=causal, head_dim=head_dim, **options)

    def sum_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Sums of K and of Q; of K / O and of Q / I; of exp(O'); and of K v^T weighted by the competition."""
        heads, width = self.num_heads, self.head_dim
        twice = (2 * heads, width, 1)
        return {"flows": twice, "conserved": twice, "competition": (heads, 1, 1), "memory": (heads, width, width)}

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, reading: Reading) -> jax.Array:
        wide, heads = jnp.promote_types(v.dtype, jnp.float32), reading.heads_mask()
        n = reading.count().astype(wide)[..., None]
        queries, keys = (without_padding(jax.nn.sigmoid(a.astype(wide)), heads) for a in (q, k))
        # Sinks read the sources and sources read the sinks: twice as many heads.
        asks, gives = jnp.concatenate([queries, keys], 2) + EPSILON, jnp.concatenate([keys, queries], 2)
        least = EPSILON * jnp.sum(asks, -1)
        step = n if self.causal else 1.0
        flows = reading.sum("flows", asks, gives, jnp.ones_like(asks[..., :1]))[..., 0] + least
        outgoing_and_incoming = jnp.roll(step / flows, self.num_heads, axis=2)
        conserved = reading.sum("conserved", asks, gives, outgoing_and_incoming[..., None])[..., 0] + least
        sinks, sources = jnp.split(conserved / step, 2, axis=2)
        strength = without_padding(jnp.exp(jnp.clip(sources, -1, 1))[..., None], heads)
        one = jnp.ones_like(strength)
        total = reading.sum("competition", one, one, strength)
        share = n * (strength / jnp.where(total > 0, total, 1))[..., 0]  # the sum is 0 before the first token
        incoming = flows[:, :, : self.num_heads, None]
        y = reading.sum("memory", queries / incoming, keys, share[..., None] * v.astype(wide))
        return (y * jax.nn.sigmoid(sinks)[..., None]).astype(v.dtype)

"""MoH: Multi-Head Attention as Mixture-of-Head Attention (Jin et al., ICML 2025, arXiv:2410.11842), section 3.

    y = W_o [g_1 head_1, ..., g_h head_h]
    g = a_1 S softmax(W_s x)             the S shared heads, used by all tokens
    g = a_2 K top_K(softmax(W_r x))      the routed heads, of which a token uses the K best; sums to K
    a = 2 softmax(W_a x)                 if there are both

As in the authors' code, a single shared head has the weight a_1, and without routed heads the shared ones have S
softmax(W_s x). All heads are computed; those that a token does not choose are multiplied by 0. In training, a
load-balancing loss, the product of how often a head is chosen and of its mean weight, encourages the use of all heads;
it is averaged over the layers of a model.
"""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

import jax
import jax.numpy as jnp

from layers.attention.multi_head import AttentionOptions, MultiHeadAttention
from layers.attention.projected import HeadOptions, ProjectedAttention, of_projections
from layers.linear import Linear
from layers.mixer import register_mixer
from layers.module import AuxLoss
from layers.tokens import Tokens


class HeadMixture(ProjectedAttention):
    """Base class of attention in which each token weights the heads and uses only some of them.

    The constructor of a subclass calls :meth:`mix_heads`, and its core :meth:`weighed` and :meth:`report_load`.

    Parameters: ``shared_gate``, ``routed_gate``, ``balance`` (linear, no bias), W_s, W_r and W_a, if there are several
    shared heads, routed heads, and both, respectively.
    """

    aux_losses: ClassVar[dict[str, float]] = {"load_balance": 0.01}

    def mix_heads(
        self, features: int, shared: int | None, chosen: int | None, depth: int, options: HeadOptions
    ) -> None:
        """Creates the gates for ``shared`` heads, which all tokens use, and for ``chosen`` of the routed ones; if
        neither is given, all heads are used unweighted. ``depth`` is the number of layers over which the loss is
        averaged.

        Raises:
          ValueError: more heads than ``num_heads``, or none.
        """
        heads, self.depth = self.num_heads, depth
        self.mixed = shared is not None or chosen is not None
        self.shared, self.chosen = shared, chosen = shared or 0, chosen or 0
        if self.mixed and not (0 <= shared <= heads and 0 <= chosen <= heads - shared and shared + chosen > 0):
            raise ValueError(
                f"{shared} shared and {chosen} routed heads can't be chosen from {heads} heads: give shared= up to "
                f"{heads}, and chosen= up to the rest"
            )
        made = {"use_bias": False, **of_projections(options)}
        self.shared_gate = Linear(features, shared, **made) if shared > 1 else None
        self.routed_gate = Linear(features, heads - shared, **made) if chosen else None
        self.balance = Linear(features, 2, **made) if shared and chosen else None

    def weighed(self, found: jax.Array, x: jax.Array) -> jax.Array:
        """Head outputs ``found`` (batch, length, num_heads, head_dim) of tokens ``x``, times the weights of the heads.
        """
        return found * self.gates(x)[..., None].astype(found.dtype) if self.mixed else found

    def report_load(self, x: jax.Array, mask: jax.Array | None) -> None:
        """Sows the load-balancing loss, if there are routed heads and the loss is being collected."""
        if self.routed_gate is not None and self.sowing(AuxLoss, "load_balance"):
            self.sow(AuxLoss, "load_balance", self._load(x, mask) / self.depth)

    def gates(self, x: jax.Array) -> jax.Array:
        """Weights g of the heads, float32 (batch, length, num_heads), for tokens ``x`` (batch, length, features)."""
        shape, rest = (*x.shape[:2], self.shared), self.num_heads - self.shared - self.chosen
        of_shared = jnp.ones(shape, jnp.float32)
        if self.shared_gate is not None:
            of_shared = self.shared * jax.nn.softmax(self.shared_gate(x).astype(jnp.float32))
        if self.routed_gate is None:
            return jnp.concatenate([of_shared, jnp.zeros((*shape[:2], rest), jnp.float32)], -1)
        logits = self.routed_gate(x).astype(jnp.float32)
        kept = jnp.where(self._best(logits), jax.nn.softmax(logits), 0)
        total = jnp.maximum(jnp.sum(kept, -1, keepdims=True), jnp.finfo(jnp.float32).eps)
        of_routed = self.chosen * kept / total
        if self.balance is not None:
            shares = 2 * jax.nn.softmax(self.balance(x).astype(jnp.float32))
            of_shared, of_routed = shares[..., :1] * of_shared, shares[..., 1:] * of_routed
        return jnp.concatenate([of_shared, of_routed], -1)

    def _best(self, logits: jax.Array) -> jax.Array:
        """Bool of the shape of ``logits``, (..., heads): True for the ``chosen`` largest, ties broken by order. Their
        softmax has the same order, but may round to equal numbers."""
        chosen = jax.lax.top_k(logits, self.chosen)[1]
        return jnp.any(jax.nn.one_hot(chosen, logits.shape[-1], dtype=bool), axis=-2)

    def _load(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        """R sum_h (mean weight) (fraction of tokens that choose h) over the R routed heads; K if balanced."""
        assert self.routed_gate is not None
        logits = self.routed_gate(x).astype(jnp.float32)
        real = jnp.ones(x.shape[:2], jnp.float32) if mask is None else mask.astype(jnp.float32)
        share = real / jnp.maximum(jnp.sum(real), 1)
        both = jax.nn.softmax(logits), self._best(logits).astype(jnp.float32)
        mean, used = (jnp.einsum("bl,blh->h", share, a) for a in both)
        return logits.shape[-1] * jnp.sum(mean * used)


@register_mixer("mixture_of_heads")
class MixtureOfHeads(HeadMixture, MultiHeadAttention):
    """Softmax attention in which each token weights the heads and uses only some of them.

    Parameters: those of :class:`MultiHeadAttention` and of :class:`HeadMixture`.
    """

    paper = (44,)

    def __init__(
        self,
        features: int,
        *,
        shared: int | None = None,
        chosen: int | None = None,
        depth: int = 1,
        **options: Unpack[AttentionOptions],
    ):
        """Args:
          shared: S, number of heads that all tokens use, the first ones; default a quarter of all.
          chosen: K, number of the other heads that a token uses; default half of them, rounded up.
          depth: number of layers of the model, over which the loss is averaged.
          options: as in :class:`MultiHeadAttention`.

        Raises:
          ValueError: more heads than ``num_heads``, or none.
        """
        super().__init__(features, **options)
        shared = self.num_heads // 4 if shared is None else shared
        chosen = (self.num_heads - shared + 1) // 2 if chosen is None else chosen
        self.mix_heads(features, shared, chosen, depth, options)

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        self.report_load(x, tokens.mask)
        return super().core(q, k, v, x, tokens)

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, **known: Any) -> jax.Array:
        return self.weighed(super().attend(q, k, v, x, **known), x)

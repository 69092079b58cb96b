"""Linformer: Self-Attention with Linear Complexity (Wang et al., 2020, arXiv:2006.04768), eq. 7.

    y = softmax(Q (E^T K)^T / sqrt(d)) F^T V

Learned matrices E and F (n, k) project the keys and values of n tokens along the sequence to k rows. The cost is n k.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Unpack

import jax
import jax.numpy as jnp

from layers.attention.projected import GroupedHeadOptions, ProjectedAttention
from layers.broadcast import widened
from layers.initializers import normal
from layers.mixer import register_mixer, without_padding
from layers.module import parameter
from layers.tokens import Tokens
from pallas_kernels import attention


@register_mixer("linformer_attention")
class LinformerAttention(ProjectedAttention):
    """Softmax attention to a fixed number of learned linear combinations of all tokens.

    The matrices have rows for ``max_length`` tokens; a shorter sequence uses the first ones, and masked tokens count as
    zeros. The mixer is bidirectional only: each combination contains later tokens. The third kind of sharing in the
    paper, between layers, is not offered.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear), ``key_length``, E, and, unless F is E,
    ``value_length``, F, each (kv heads or 1, max_length, rank).
    """

    weighs_values = True
    undecayed: ClassVar[tuple[str, ...]] = ("key_length", "value_length")
    refusals: ClassVar[Mapping[str, str]] = {
        "positions": "its matrices have a row for each place of the sequence: leave positions out"
    }

    def __init__(
        self,
        features: int,
        *,
        max_length: int = 512,
        rank: int = 256,
        sharing: Literal["none", "heads", "key_value"] = "heads",
        **options: Unpack[GroupedHeadOptions],
    ):
        """Args:
          max_length: maximum number of tokens.
          rank: k, number of rows to which keys and values are projected.
          sharing: "none" gives each head its own matrices, "heads" shares E and F between heads, and "key_value" uses
            one matrix for both keys and values too.
          options: as in :class:`ProjectedAttention`.

        Raises:
          ValueError: features not divisible by num_heads, a size below 1, or an unknown kind of sharing.
        """
        if max_length < 1 or rank < 1 or sharing not in ("none", "heads", "key_value"):
            raise ValueError(
                f'max_length and rank are at least 1, sharing "none", "heads" or "key_value"; got {max_length}, {rank} '
                f"and {sharing!r}"
            )
        super().__init__(features, **options)
        shape = (self.num_kv_heads if sharing == "none" else 1, max_length, rank)
        self.key_length = parameter(normal(rank**-0.5), shape, options)
        self.value_length = None if sharing == "key_value" else parameter(normal(rank**-0.5), shape, options)
        self.max_length = max_length

    @property
    def complexity(self) -> float:
        return 1.0

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        """As :meth:`ProjectedAttention.core`.

        Raises:
          ValueError: more tokens than ``max_length``.
        """
        length, heads = x.shape[1], None if tokens.mask is None else tokens.mask[..., None]
        if length > self.max_length:
            raise ValueError(
                f"Linformer's matrices have rows for {self.max_length} tokens, got {length}: make the mixer with a "
                f"larger max_length"
            )

        def shortened(a: jax.Array, matrix: jax.Array) -> jax.Array:
            wide, of_heads = jnp.promote_types(a.dtype, jnp.float32), (a.shape[2], length, matrix.shape[-1])
            rows = jnp.broadcast_to(widened(matrix[:, :length]).astype(wide), of_heads)
            return jnp.einsum("bnhd,hnr->brhd", without_padding(a, heads).astype(wide), rows).astype(a.dtype)

        of_keys = self.key_length[...]
        of_values = of_keys if self.value_length is None else self.value_length[...]
        return attention(q, shortened(k, of_keys), shortened(v, of_values))

"""Differential Mamba (Schneider, Zimerman and Nachmani, 2025, arXiv:2507.06204).

    y = (1 - l) RMSNorm(m_1(x) - lambda m_2(x))        l = 0.8 - 0.6 exp(-0.3 index)

with two mixers m_1 and m_2, each half as large as a single one would be: what both retain of irrelevant tokens cancels.
lambda is computed from one learned vector, or from four:

    lambda = sigmoid(sum q_1) + l                                  "sigmoid", of Diff-Mamba-2
    lambda = exp(q_1 . k_1) - exp(q_2 . k_2) + l      "exponential", of Diff-Mamba, as in Differential Transformer
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from layers.broadcast import widened
from layers.combinators import Parallel
from layers.initializers import constant, normal
from layers.mixer import MixerSpec, Place, register_mixer
from layers.module import Constant
from layers.norm import RMSNorm


@register_mixer("differential_mamba")
class DifferentialMamba(Parallel):
    """The normalized difference of two state space models.

    Parameters: ``branches.0`` and ``branches.1``, the mixers; ``norm``; ``lambda_q1`` (features,), or ``lambda_q1``,
    ``lambda_k1``, ``lambda_q2`` and ``lambda_k2`` (vector,).
    """

    supports_bidirectional = False
    paper = (168,)
    undecayed = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")

    def __init__(
        self,
        features: int,
        *,
        inner: MixerSpec | None = None,
        strength: Literal["sigmoid", "exponential"] = "sigmoid",
        vector: int = 16,
        index: int = 0,
        place: Place | None = None,
        rngs: nnx.Rngs,
    ):
        """Args:
          inner: spec of both mixers, which must be causal; the default is ``mamba2`` with ``expand=1``, or ``mamba``
            with ``expand=1`` if the strength is exponential.
          strength: the form of lambda, "sigmoid" or "exponential".
          vector: size of each of the four vectors; the authors use the size of a state.
          index: index of the block.

        Raises:
          ValueError: an unknown strength.
        """
        if strength not in ("sigmoid", "exponential"):
            raise ValueError(f'strength is "sigmoid" or "exponential", got {strength!r}')
        inner = inner or {"name": "mamba2" if strength == "sigmoid" else "mamba", "expand": 1}
        super().__init__(features, branches=(inner, inner), causal=True, place=place, rngs=rngs)
        made = Place() if place is None else place
        self.norm = RMSNorm(features, epsilon=1e-5, **made.dtypes, rngs=rngs)

        def drawn(size: int) -> nnx.Param:
            return nnx.Param(normal(1.0)(rngs.params(), (size,), made.param_dtype))

        self.lambda_q1 = drawn(features if strength == "sigmoid" else vector)
        if strength == "exponential":
            self.lambda_k1, self.lambda_q2, self.lambda_k2 = drawn(vector), drawn(vector), drawn(vector)
        self.strength = strength
        # An array, so that the blocks of a stack stay one program.
        self.initial = Constant(constant(0.8 - 0.6 * math.exp(-0.3 * index))(None, ()))

    def join(self, outputs: Sequence[jax.Array]) -> jax.Array:
        """(1 - l) RMSNorm(first - lambda second) of two outputs (batch, length, features)."""
        initial = self.initial[...]
        if self.strength == "sigmoid":
            factor = jax.nn.sigmoid(jnp.sum(widened(self.lambda_q1[...])))
        else:
            q1, k1, q2, k2 = (widened(x[...]) for x in (self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2))
            factor = jnp.exp(jnp.sum(q1 * k1)) - jnp.exp(jnp.sum(q2 * k2))
        first, second = outputs
        y = self.norm(widened(first) - (factor + initial) * widened(second))
        return ((1 - initial) * y).astype(first.dtype)

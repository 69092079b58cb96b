"""The gate of NiNformer: A Network in Network Transformer with Token Mixing Generated Gating Function (Abdullah
and Aydin, 2024, arXiv:2403.02411).

    y = (W x + b) * z,    t = x + mixer(LN(x)),    z = t + MLP(LN(t))

In place of attention, a whole MLP-Mixer block computes a gate z that multiplies a linear map of each token: the mixing
weights are static, but the gate depends on the input. There is no output projection.
"""

from __future__ import annotations

import jax
from flax import nnx

from layers.block import Block
from layers.combinators import bidirectional, on_grid
from layers.linear import Linear
from layers.mixer import Mixer, MixerSpec, Place, finite_padding, register_mixer
from layers.mlp import MLP
from layers.tokens import Tokens


@register_mixer("mixer_gate")
class MixerGatingUnit(Mixer):
    """A linear layer whose output is multiplied by a gate: the output of a block of another mixer and an MLP.

    Parameters: ``proj`` (linear), ``gate`` (a :class:`layers.Block` of ``mixer`` and ``channel``).
    """

    layouts = ("grid",)
    paper = (0,)

    def __init__(
        self,
        features: int,
        *,
        hidden: int = 256,
        inner: MixerSpec | None = None,
        norm_epsilon: float = 1e-5,
        place: Place | None = None,
        rngs: nnx.Rngs,
    ):
        """Args:
        hidden: hidden features of the MLP, and hidden tokens of the token MLP.
        inner: a mixer to use instead of the token MLP.
        norm_epsilon: epsilon of both norms.
        """
        place = Place() if place is None else place
        spec = {"name": "token_mlp", "hidden": hidden} if inner is None else inner
        mixer = on_grid(bidirectional(spec, features, place=place, rngs=rngs), features, rngs=rngs)
        channel = MLP(features, hidden, dropout=place.dropout, **place.dtypes, rngs=rngs)
        self.proj = Linear(features, features, **place.dtypes, rngs=rngs)
        self.gate = Block(
            {"mixer": mixer, "channel": channel},
            features=features,
            norm_epsilon=norm_epsilon,
            **place.dtypes,
            rngs=rngs,
        )

    @property
    def honors(self) -> frozenset[str]:  # type: ignore[override]
        return self._mixer.honors

    @property
    def complexity(self) -> float:
        return self._mixer.complexity

    @property
    def _mixer(self) -> Mixer:
        return self.gate.mixer  # type: ignore[attr-defined]

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        x = finite_padding(x, tokens.mask)
        return self.proj(x) * self.gate(x, tokens)

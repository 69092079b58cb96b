"""T5 with wider tokens: Alternating Updates for Efficient Transformers (Baykal et al., NeurIPS 2023, arXiv:2301.13310).

    x = [x_1, ..., x_K] = embedding of K features;  N x [x = AltUp(block_a)(x)], a = 0, 1, ..., K - 1, 0, ...
    logits = W RMSNorm(x)

T5 1.1 (:mod:`zoo.language.t5`) whose token representation is K times as wide as its blocks (:mod:`layers.altup`): the
embedding, the final norms, the head and the key and value projections of the context become wider, the blocks do not.
With ``recycled`` the embedding keeps its width and is repeated for each stream, and the streams are summed before the
final norm (Recycled-AltUp). With ``sequence_stride`` all encoder blocks but the first and the last work on every k-th
token only (Sequence-AltUp). The paper widens T5's own sizes, as ``altup_small``, ``altup_base`` and ``altup_large`` do
here; the size of ``altup_nano`` and the placement of the norms are our choice.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from layers.altup import AltUp, SequenceAltUp
from layers.mixer import Place
from zoo.backbones.causal import Mlp
from zoo.backbones.encoder_decoder import ENCODER
from zoo.language.t5 import T5, T5Config
from zoo.registry import register_family


@dataclasses.dataclass(frozen=True)
class AltUpConfig(T5Config):
    """Hyper-parameters of T5 with AltUp.

    Attributes:
      streams: K, the number of streams of ``features`` each.
      turns: "alternating": block i of a side works on stream i modulo K; "same": all blocks work on the first stream.
      recycled: whether one embedding of ``features`` is repeated for all streams, and the head reads the streams' sum.
      sequence_stride: k, the stride over tokens in the encoder's inner blocks; 1 processes every token.
    """

    mlp: Mlp | None = "geglu_tanh"
    tied: bool = False
    streams: int = 2
    turns: Literal["alternating", "same"] = "alternating"
    recycled: bool = False
    sequence_stride: int = 1


class AltUpT5(T5):
    """T5 with AltUp; parameter names as in :class:`T5`, with those of a block under ``blocks.N.block``."""

    config: AltUpConfig

    @property
    def outer_features(self) -> int:
        c = self.config
        return c.features * (1 if c.recycled else c.streams)

    def make_block(self, place: Place, *, rngs: nnx.Rngs) -> nnx.Module:
        """T5's block, wrapped by AltUp and, where it applies, Sequence-AltUp.

        Raises:
          ValueError: an unknown ``turns``.
        """
        c, index = self.config, place.index or 0
        if c.turns not in ("alternating", "same"):
            raise ValueError(f'turns is "alternating" or "same", got {c.turns!r}')
        active = index % c.streams if c.turns == "alternating" else 0
        made: dict[str, Any] = {"param_dtype": c.param_dtype, "rngs": rngs}
        block = AltUp(super().make_block(place, rngs=rngs), c.features, streams=c.streams, active=active, **made)
        if c.sequence_stride == 1 or place.stage != ENCODER or not 0 < index < self.depths[ENCODER] - 1:
            return block
        return SequenceAltUp(block, c.streams * c.features, stride=c.sequence_stride, **made)

    def words(self, tokens: jax.Array) -> jax.Array:
        """Embeddings of tokens: (batch, length, streams * features)."""
        x = super().words(tokens)
        return jnp.tile(x, (1, 1, self.config.streams)) if self.config.recycled else x

    def joined(self, x: jax.Array) -> jax.Array:
        """The input of the final norm: all streams, or their sum with ``recycled``."""
        c = self.config
        return x.reshape(*x.shape[:-1], c.streams, c.features).sum(-2) if c.recycled else x


VARIANTS: dict[str, dict[str, Any]] = {
    "altup_nano": {"vocab_size": 256, "features": 64, "depth": 2, "num_heads": 4, "head_dim": None, "max_length": 256},
    "altup_small": {"hidden": 1024, "depth": 8, "num_heads": 6},
    "altup_base": {"features": 768, "hidden": 2048, "depth": 12, "num_heads": 12},
    "altup_large": {"features": 1024, "hidden": 2816, "depth": 24, "num_heads": 16},
}

register_family("altup", AltUpT5, AltUpConfig, VARIANTS, our_choice=tuple(VARIANTS), paper=(137,))

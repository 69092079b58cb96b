"""Block-Recurrent Transformers (Hutchins et al., NeurIPS 2022, arXiv:2203.07852).

    x = 16 word;  N x [x = x + Attention(RMSNorm(x));  x = x + W_2 relu(W_1 RMSNorm(x))];  logits = words RMSNorm(x)

Attention is to the W tokens before each, with unit queries and keys, learned scales and T5's buckets of distances; in
the third layer from the end also to a recurrent state (:mod:`layers.attention.block_recurrent`).

Of the authors' configurations (google-research/meliad) 12 layers of 1024 features have 151M parameters without words
and the recurrent state's, with MLPs and heads of twice the size 302M. By the abstract they outperform a Transformer-XL
of long range and run twice as fast.

The factor is the root of the 256 bytes: a token does not see itself, and must not be lost among what attention adds.
(The authors divide logits by it instead, and their words begin at 1, not at 1 / 16.) What differs: the other layers add
``bias`` to scaled scores, and start without a window of zeros. ``block_recurrent_transformer_nano`` is our choice.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from layers.attention.block_recurrent import Cell, Gate
from layers.mixer import MixerSpec, Place
from pallas_kernels import masks
from zoo.backbones.causal import Causal, CausalConfig, Mlp
from zoo.registry import register_family


@dataclasses.dataclass(frozen=True)
class BlockRecurrentTransformerConfig(CausalConfig):
    """Hyper-parameters of the Block-Recurrent Transformer.

    Attributes:
      head_dim: of all heads; None is features / num_heads.
      window, states: W, and vectors of the recurrent state.
      gate, cell: of the state: "fixed" or "lstm"; "skip", "dual" or "single".
      recurrent_layers: those with a state, from the end where negative.
    """

    features: int = 1024
    num_heads: int = 8
    mlp: Mlp | None = "relu"
    norm_epsilon: float = 1e-6
    embedding_std: float = 1 / 16
    embedding_scale: float | Literal["sqrt"] = 16.0
    head_dim: int | None = None
    window: int = 512
    states: int = 512
    gate: Gate = "fixed"
    cell: Cell = "skip"
    recurrent_layers: tuple[int, ...] = (-3,)


class BlockRecurrentTransformer(Causal):
    """The Block-Recurrent Transformer; names as in :class:`Causal`."""

    config: BlockRecurrentTransformerConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        if place.index in {layer % c.depth for layer in c.recurrent_layers}:
            return {
                "name": "block_recurrent_attention", "head_dim": c.head_dim, "window": c.window, "states": c.states,
                "gate": c.gate, "cell": c.cell, "hidden": c.hidden,
            }  # fmt: skip
        return {
            "name": "attention", "head_dim": c.head_dim, "window": c.window + 1,
            "visible": masks.window(c.window, -1), "relative": "buckets", "qk_norm": "unit", "logit_scale": 1.0,
            "use_bias": False,
        }  # fmt: skip


VARIANTS: dict[str, dict[str, Any]] = {
    "block_recurrent_transformer_nano": {"features": 128, "depth": 4, "num_heads": 4, "window": 64, "states": 32},
    "block_recurrent_transformer_151m": {},
    "block_recurrent_transformer_302m": {"num_heads": 16, "head_dim": 128, "hidden": 8192},
}

register_family(
    "block_recurrent_transformer",
    BlockRecurrentTransformer,
    BlockRecurrentTransformerConfig,
    VARIANTS,
    our_choice=("block_recurrent_transformer_nano",),
    paper=(122,),
)

"""Block-Recurrent Transformers (Hutchins et al., NeurIPS 2022, arXiv:2203.07852).

    x = 16 word;  N x [x = x + Attention(RMSNorm(x));  x = x + W_2 relu(W_1 RMSNorm(x))];  logits = words RMSNorm(x)

Each token attends to the W tokens before it, with queries and keys of unit length, learned scales and T5's relative
position buckets; the third layer from the end also attends to a recurrent state
(:mod:`layers.attention.block_recurrent`).

Among the authors' configurations (google-research/meliad), 12 layers of 1024 features have 151M parameters, not
counting the embedding and those of the recurrent state; with MLPs and heads of twice the size, 302M. According to the
abstract they outperform a long-range Transformer-XL and run twice as fast.

The factor 16 is the square root of 256, the number of byte values: a token does not attend to itself, and its embedding
must not be drowned out by what attention adds to the residual stream. (The authors divide the logits by it instead, and
their embeddings start with a standard deviation of 1, not 1 / 16.) Differences: the other layers add the relative
position bias to the scaled scores, and start without a window of zeros. The size of
``block_recurrent_transformer_nano`` is our choice.
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
      head_dim: features of each head; None is features / num_heads.
      window, states: W, and the number of vectors in the recurrent state.
      gate, cell: the kind of the state's gate, "fixed" or "lstm", and of its cell, "skip", "dual" or "single".
      recurrent_layers: indices of the layers with a recurrent state; negative ones count from the end.
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

"""The encoders of Long Range Arena (Y. Tay et al., ICLR 2021, arXiv:2011.04006).

    x = word + position;  N x [x = x + Attention(norm(x));  x = x + MLP(norm(x))];  head(pool(norm(x)))

with fixed sinusoids or learned positions, projections without biases, the tanh form of GELU, and a head with one hidden
layer as wide as the MLP's, with ReLU. Retrieval encodes each text separately and passes [a, b, a b, a - b] through two
hidden layers. Pixels are tokens, one for each gray level. ``mixer=`` replaces the attention; the benchmark allows at
most a tenth more parameters than the Transformer has.

Sizes are those of the configurations in github.com/google-research/long-range-arena, each with the length and number of
classes of its task. Two behaviors of that code are not reproduced: its padding mask is ``token > 0``, which masks black
pixels in images; and it applies dropout to the attention weights, where here it is applied only to outputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from layers.mixer import MixerSpec, Place
from zoo.backbones.encoder import Encoder, EncoderConfig
from zoo.backbones.pooling import Pool
from zoo.registry import register_family


@dataclasses.dataclass(frozen=True)
class LongRangeArenaConfig(EncoderConfig):
    """Hyper-parameters of these encoders.

    Attributes:
      qkv_features: width of queries, keys and values over all heads; None is ``features``.
    """

    vocab_size: int = 258
    num_classes: int = 2
    mlp: Literal["gelu", "gelu_tanh"] = "gelu_tanh"
    types: int = 0
    embedding_std: float = 1.0
    embedding_norm: bool = False
    position: Literal["learned", "sinusoid"] | None = "sinusoid"
    max_length: int = 4096
    norm_order: Literal["pre", "post"] = "pre"
    norm_epsilon: float = 1e-6
    pool: str | Pool = "token"
    pooler: bool | None = False
    head: Literal["linear", "mlp", "dual"] = "mlp"
    qkv_features: int | None = None


class LongRangeArena(Encoder):
    """An encoder; names as in :class:`Encoder`."""

    config: LongRangeArenaConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        """Attention whose heads share ``qkv_features``.

        Raises:
          ValueError: ``qkv_features`` is not divisible by ``num_heads``.
        """
        c = self.config
        width = c.qkv_features or c.features
        if width % c.num_heads:
            raise ValueError(f"qkv_features={width} can't be split over {c.num_heads} heads")
        return {"name": "attention", "head_dim": width // c.num_heads, "use_bias": False}


LONG: Mapping[str, Any] = {"features": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 1.0, "position": "learned"}
VARIANTS: dict[str, dict[str, Any]] = {
    "lra_nano": {"features": 64, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0},
    "lra_listops": {
        "features": 512, "depth": 4, "num_heads": 8, "mlp_ratio": 2.0,
        "vocab_size": 17, "num_classes": 10, "max_length": 2000,
    },
    "lra_text": {"features": 256, "depth": 4, "num_heads": 4, "max_length": 1001},
    "lra_retrieval": {
        "features": 128, "depth": 4, "num_heads": 4, "vocab_size": 257, "max_length": 4000, "head": "dual",
    },
    "lra_image": {
        "features": 128, "depth": 1, "num_heads": 8, "mlp_ratio": 1.0, "qkv_features": 64,
        "position": "learned", "num_classes": 10, "max_length": 1025,
    },
    "lra_pathfinder": {
        "features": 32, "depth": 4, "num_heads": 4, "mlp_ratio": 1.0, "qkv_features": 16, "pool": "average",
        "vocab_size": 257, "max_length": 1024,
    },
    "lra_pathfinder_64": {**LONG, "max_length": 64**2 + 1},
    "lra_pathfinder_128": {
        **LONG, "depth": 1, "num_heads": 2, "qkv_features": 16, "pool": "average", "vocab_size": 257,
        "max_length": 128**2,
    },
    "lra_pathfinder_256": {**LONG, "max_length": 256**2 + 1},
}  # fmt: skip

register_family("lra", LongRangeArena, LongRangeArenaConfig, VARIANTS, our_choice=("lra_nano",), paper=(132,))

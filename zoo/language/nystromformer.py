"""Nyströmformer: A Nyström-Based Algorithm for Approximating Self-Attention (Xiong et al., AAAI 2021,
arXiv:2102.03902).

    x = norm(word + position + type);  N x [x = norm(x + NystromAttention(x));  x = norm(x + MLP(x))]

BERT with Nyström attention through 64 landmarks and a convolution of the values over 65 tokens. The vocabulary is
ALBERT's of 30000; the first position is row 2 of the table. A classifier reads a linear map of the first token, passed
through the MLP's activation.

The released configurations state means over 64 tokens for 64 landmarks; transformers then computes plain softmax
attention and the convolution. A model loaded from such a folder is made with ``landmarks=0``, which does the same;
``landmarks=64`` is the paper's model. The authors' code, and transformers where it uses landmarks, initializes all
pseudo-inverses by the largest column sum in the batch, so that rows depend on each other: ``inverse="batch"``.

Published: base, 109 M parameters, as good as BERT on GLUE.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax

from layers.mixer import MixerSpec, Place
from zoo.backbones.encoder import ACTIVATIONS, Encoder, EncoderConfig
from zoo.language.bert import names
from zoo.naming import Naming
from zoo.registry import Release, one_of, register_family


@dataclasses.dataclass(frozen=True)
class NystromformerConfig(EncoderConfig):
    """Hyper-parameters of Nyströmformer.

    Attributes:
      landmarks, kernel_size, inverse: as in :class:`layers.NystromAttention`.
    """

    vocab_size: int = 30000
    max_length: int = 510
    position_offset: int = 2
    norm_epsilon: float = 1e-5
    mlp: Literal["gelu", "gelu_tanh"] = "gelu_tanh"
    landmarks: int = 64
    kernel_size: int | None = 65
    inverse: Literal["matrix", "batch"] = "matrix"


class Nystromformer(Encoder):
    """Nyströmformer; names as in :class:`Encoder`."""

    config: NystromformerConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        return {
            "name": "nystrom_attention",
            "landmarks": c.landmarks,
            "kernel_size": c.kernel_size,
            "inverse": c.inverse,
        }

    def first(self, hidden: jax.Array) -> jax.Array:
        return hidden[:, 0] if self.pooler is None else ACTIVATIONS[self.config.mlp](self.pooler(hidden[:, 0]))


VARIANTS: dict[str, dict[str, Any]] = {"nystromformer_512": {}, "nystromformer_4096": {"max_length": 4096}}


def _names(prefix: str) -> Naming:
    heads = {"pooler": "classifier.dense", "head": "classifier.out_proj"}
    return names(prefix, body={"pooler": None}, block={"mixer.conv": "attention.self.conv"}, heads=heads)


RULES: dict[str, Naming] = {"transformers": _names("nystromformer."), "bare": _names("")}


def _epsilon(config: Mapping[str, Any]) -> Any:
    """The norms' epsilon; refuses activations that this family does not have."""
    one_of(config, "hidden_act", {"gelu_new": "gelu_tanh"})
    return config.get("layer_norm_eps")


def _landmarks(config: Mapping[str, Any]) -> Any:
    landmarks = config.get("num_landmarks")
    return 0 if landmarks == config.get("segment_means_seq_len", 64) else landmarks


DESCRIBED: dict[str, Any] = {
    "norm_epsilon": _epsilon,
    "num_heads": lambda config: config.get("num_attention_heads"),
    "landmarks": _landmarks,
}

RELEASES: dict[str, dict[str, Release]] = {
    "nystromformer_512": {"uw_madison": Release("hf://uw-madison/nystromformer-512", 0)},
    "nystromformer_4096": {"uw_madison": Release("hf://uw-madison/nystromformer-4096", 0)},
}

# Counted in transformers' NystromformerForMaskedLM.
PARAMETERS = {"nystromformer_512": 109_122_240, "nystromformer_4096": 111_876_288}

register_family(
    "nystromformer",
    Nystromformer,
    NystromformerConfig,
    VARIANTS,
    parameters=PARAMETERS,
    rules=RULES,
    releases=RELEASES,
    described=DESCRIBED,
)

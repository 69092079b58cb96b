"""ALBERT: A Lite BERT for Self-supervised Learning of Language Representations (Lan et al., ICLR 2020,
arXiv:1909.11942).

    x = W norm(word + position + type);  N x [x = norm(x + Attention(x));  x = norm(x + MLP(x))]

BERT (:mod:`zoo.language.bert`) with one set of parameters shared by all blocks (section 3.1), embeddings of 128
features at every width (W projects them), and sentence-order prediction as the second task (``next_sentence`` here).
Sizes and the tanh form of GELU are those of the second released version; the size of ``albert_nano`` is our choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from zoo.backbones.encoder import Encoder, EncoderConfig
from zoo.language.bert import names
from zoo.naming import Naming
from zoo.registry import Release, one_of, register_family


@dataclasses.dataclass(frozen=True)
class AlbertConfig(EncoderConfig):
    """Hyper-parameters of ALBERT: those of :class:`EncoderConfig` with its defaults."""

    vocab_size: int = 30000
    shared: bool = True
    embedding_features: int | None = 128
    mlp: Literal["gelu", "gelu_tanh"] = "gelu_tanh"


VARIANTS: dict[str, dict[str, Any]] = {
    "albert_nano": {"features": 128, "depth": 4, "num_heads": 4, "embedding_features": 32},
    "albert_base": {},
    "albert_large": {"features": 1024, "depth": 24, "num_heads": 16},
    "albert_xlarge": {"features": 2048, "depth": 24, "num_heads": 16},
    "albert_xxlarge": {"features": 4096, "depth": 12, "num_heads": 64},
}


def _names(prefix: str) -> Naming:
    """The parameter names of the transformers library; ``prefix`` precedes all names but the heads'."""
    block = {
        **{f"mixer.{part}": f"attention.{part}" for part in ("query", "key", "value")},
        "mixer.out": "attention.dense",
        "mixer_norm": "attention.LayerNorm",
        "channel.up": "ffn",
        "channel.down": "ffn_output",
        "channel_norm": "full_layer_layer_norm",
    }
    heads = {
        "decoder": "predictions.decoder",
        "masked_lm.transform": "predictions.dense",
        "masked_lm.norm": "predictions.LayerNorm",
        "masked_lm.bias": "predictions.bias",
        "next_sentence": "sop_classifier.classifier",
    }
    body = {"projection": "encoder.embedding_hidden_mapping_in", "pooler": "pooler"}
    place = ("encoder.albert_layer_groups.0.albert_layers.0", "blocks.0")
    return names(prefix, body=body, block=block, heads=heads, at=place)


RULES: dict[str, Naming] = {"transformers": _names("albert."), "bare": _names("")}


def _depth(config: Mapping[str, Any]) -> Any:
    """The number of blocks of a model whose blocks all share one set of parameters."""
    one_of(config, "num_hidden_groups", {1: 1})
    one_of(config, "inner_group_num", {1: 1})
    return config.get("num_hidden_layers")


DESCRIBED: dict[str, Any] = {
    "depth": _depth,
    "norm_epsilon": lambda config: config.get("layer_norm_eps"),
    "num_heads": lambda config: config.get("num_attention_heads"),
    "mlp": lambda config: one_of(
        config, "hidden_act", {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
    ),
}

_RELEASED = [name for name in VARIANTS if name != "albert_nano"]
RELEASES = {name: {"v2": Release(f"hf://albert/{name.replace('_', '-')}-v2", 0)} for name in _RELEASED}

# Counted in transformers' AlbertForMaskedLM.
PARAMETERS = {
    "albert_base": 11_221_680,
    "albert_large": 16_795_824,
    "albert_xlarge": 54_821_040,
    "albert_xxlarge": 206_368_944,
}

register_family(
    "albert",
    Encoder,
    AlbertConfig,
    VARIANTS,
    our_choice=("albert_nano",),
    parameters=PARAMETERS,
    rules=RULES,
    releases=RELEASES,
    described=DESCRIBED,
)

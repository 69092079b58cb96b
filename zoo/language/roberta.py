"""RoBERTa: A Robustly Optimized BERT Pretraining Approach (Liu et al., 2019, arXiv:1907.11692), and XLM-R (Conneau et
al., ACL 2020).

    x = norm(word + position + type);  N x [x = norm(x + Attention(x));  x = norm(x + MLP(x))]

BERT trained longer on more text, without next-sentence prediction and with one token type. The first position is row 2
of the table: rows 0 and 1 are reserved for padding. XLM-R (arXiv:1911.02116) is the same model with a vocabulary of 100
languages. A classifier reads tanh of a linear map of the first token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo.backbones.encoder import Encoder, EncoderConfig
from zoo.language import bert
from zoo.naming import Naming
from zoo.registry import Release, one_of, register_family

COMMON: dict[str, Any] = {
    "vocab_size": 50265,
    "max_length": 512,
    "position_offset": 2,
    "types": 1,
    "norm_epsilon": 1e-5,
}
LARGE: dict[str, Any] = {"features": 1024, "depth": 24, "num_heads": 16}
XLM: dict[str, Any] = {"vocab_size": 250_002}

VARIANTS: dict[str, dict[str, Any]] = {
    "roberta_base": COMMON,
    "roberta_large": {**COMMON, **LARGE},
    "xlm_roberta_base": {**COMMON, **XLM},
    "xlm_roberta_large": {**COMMON, **LARGE, **XLM},
}


HEADS: dict[str, str | None] = {
    "decoder": "lm_head.decoder",
    "masked_lm.transform": "lm_head.dense",
    "masked_lm.norm": "lm_head.layer_norm",
    "masked_lm.bias": "lm_head.bias",
    "next_sentence": None,
    "head": "classifier.out_proj",
}


def names(prefix: str, block: bert.Differences | None = None, *, pooler: str = "classifier.dense") -> Naming:
    """The parameter names of the transformers library.

    Args:
      prefix: precedes all names but the heads'.
      block: as in :func:`zoo.language.bert.names`.
      pooler: their name of the linear layer on the first token, which models with a head keep in their classifier.
    """
    return bert.names(prefix, body={"pooler": None}, block=block, heads={**HEADS, "pooler": pooler})


def _epsilon(config: Mapping[str, Any]) -> Any:
    """The norms' epsilon; refuses activations and position embeddings that this family does not have."""
    one_of(config, "hidden_act", {"gelu": "gelu"})
    one_of(config, "position_embedding_type", {"absolute": "learned"})
    return config.get("layer_norm_eps")


DESCRIBED: dict[str, Any] = {"norm_epsilon": _epsilon, "num_heads": lambda config: config.get("num_attention_heads")}
RULES: dict[str, Naming] = {"transformers": names("roberta."), "bare": names("", pooler="pooler.dense")}
RELEASES: dict[str, dict[str, Release]] = {
    "roberta_base": {"facebook": Release("hf://FacebookAI/roberta-base", 0, "mit")},
    "roberta_large": {"facebook": Release("hf://FacebookAI/roberta-large", 0, "mit")},
    "xlm_roberta_base": {"facebook": Release("hf://FacebookAI/xlm-roberta-base", 0, "mit")},
    "xlm_roberta_large": {"facebook": Release("hf://FacebookAI/xlm-roberta-large", 0, "mit")},
}

# Counted in transformers' RobertaForMaskedLM and XLMRobertaForMaskedLM.
PARAMETERS = {
    "roberta_base": 124_697_433,
    "roberta_large": 355_412_057,
    "xlm_roberta_base": 278_295_186,
    "xlm_roberta_large": 560_142_482,
}

register_family(
    "roberta",
    Encoder,
    EncoderConfig,
    VARIANTS,
    parameters=PARAMETERS,
    rules=RULES,
    releases=RELEASES,
    described=DESCRIBED,
)

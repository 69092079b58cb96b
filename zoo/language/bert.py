"""BERT: Pre-training of Deep Bidirectional Transformers (Devlin et al., NAACL 2019, arXiv:1810.04805).

    x = norm(word + position + type);  N x [x = norm(x + Attention(x));  x = norm(x + MLP(x))]

with exact GELU. ``model(tokens, mask, types)`` returns logits over the vocabulary for every token, or, with
``output="pooled"``, one vector per sequence: tanh of a linear map of the first token. ``num_classes=N`` adds a
classifier on that vector.

``bert_tiny`` and ``bert_small`` are two of the miniatures of Well-Read Students Learn Better (Turc et al., 2019,
arXiv:1908.08962). ``minilm_l6`` is the sentence encoder all-MiniLM-L6-v2 (from MiniLM, Wang et al., 2020,
arXiv:2002.10957): the mean over the real tokens, scaled to unit length, so that a dot product is a cosine similarity.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo.backbones.encoder import Encoder, EncoderConfig
from zoo.naming import Naming, Tie
from zoo.registry import Release, one_of, register_family

VARIANTS: dict[str, dict[str, Any]] = {
    "bert_tiny": {"features": 128, "depth": 2, "num_heads": 2},
    "bert_small": {"features": 512, "depth": 4, "num_heads": 8},
    "bert_base": {},
    "bert_large": {"features": 1024, "depth": 24, "num_heads": 16},
}
SENTENCE_VARIANTS: dict[str, dict[str, Any]] = {
    "minilm_l6": {
        "features": 384,
        "depth": 6,
        "num_heads": 12,
        "output": "pooled",
        "pool": "average",
        "normalize": True,
    },
}


BODY: Mapping[str, str] = {
    "embedding": "embeddings.word_embeddings",
    "position": "embeddings.position_embeddings.weight",
    "types": "embeddings.token_type_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
    "pooler": "pooler.dense",
}
BLOCK: Mapping[str, str] = {
    **{f"mixer.{part}": f"attention.self.{part}" for part in ("query", "key", "value")},
    "mixer.out": "attention.output.dense",
    "mixer_norm": "attention.output.LayerNorm",
    "channel.up": "intermediate.dense",
    "channel.down": "output.dense",
    "channel_norm": "output.LayerNorm",
}
HEADS: Mapping[str, str] = {
    "decoder": "cls.predictions.decoder",
    "masked_lm.transform": "cls.predictions.transform.dense",
    "masked_lm.norm": "cls.predictions.transform.LayerNorm",
    "masked_lm.bias": "cls.predictions.bias",
    "next_sentence": "cls.seq_relationship",
    "head": "classifier",
}
"""Our names of BERT's parts, mapped to those of the transformers library; other encoders keep most of them."""

Differences = Mapping[str, str | None]
"""Our names, mapped to theirs where these differ from BERT's; None for a part that a model lacks."""


def names(
    prefix: str,
    *,
    body: Differences | None = None,
    block: Differences | None = None,
    heads: Differences | None = None,
    at: tuple[str, str] = ("encoder.layer.{i}", "blocks.{i}"),
    leaves: tuple[str, str] | None = None,
) -> Naming:
    """The parameter names of the transformers library.

    Args:
      prefix: precedes all names but the heads'.
      body, block, heads: differences from :data:`BODY`, :data:`BLOCK` and :data:`HEADS`.
      at: the path of a block, theirs and ours.
      leaves: their names of a norm's scale and bias, where these are not "weight" and "bias".
    """
    theirs: dict[str, str | None] = {
        **{ours: name and f"{prefix}{name}" for ours, name in {**BODY, **(body or {})}.items()},
        **{f"{at[1]}.{ours}": name and f"{prefix}{at[0]}.{name}" for ours, name in {**BLOCK, **(block or {})}.items()},
        **HEADS,
        **(heads or {}),
    }
    decoder = theirs.pop("decoder")
    # safetensors files hold no array twice; PyTorch's own files do.
    again = {"embedding": decoder, "masked_lm.bias": f"{decoder}.bias"}
    rules: list[tuple[Any, ...]] = []
    for ours, name in theirs.items():
        if ours in again:
            rules.append(((name, again[ours]), ours, Tie(written=False)))
        elif leaves is not None and ours.endswith("norm"):
            rules += [(f"{name}.{leaf}", f"{ours}.{own}") for leaf, own in zip(leaves, ("scale", "bias"), strict=True)]
        elif name is not None:
            rules.append((name, ours))
    return Naming(rules, prefix=prefix, ignore=(f"{prefix}embeddings.position_ids",))


# "original" reads the first released files, bert-base-uncased and bert-large-uncased.
RULES: dict[str, Naming] = {
    "transformers": names("bert."),
    "bare": names(""),
    "original": names("bert.", leaves=("gamma", "beta")),
}
SENTENCE_RULES: dict[str, Naming] = {"bare": RULES["bare"], "transformers": RULES["transformers"]}


def _epsilon(config: Mapping[str, Any]) -> Any:
    """The norms' epsilon; refuses activations and position embeddings that this family does not have."""
    one_of(config, "hidden_act", {"gelu": "gelu"})
    one_of(config, "position_embedding_type", {"absolute": "learned"})
    return config.get("layer_norm_eps")


DESCRIBED: dict[str, Any] = {"norm_epsilon": _epsilon, "num_heads": lambda config: config.get("num_attention_heads")}

RELEASES: dict[str, dict[str, Release]] = {
    "bert_tiny": {"google": Release("hf://google/bert_uncased_L-2_H-128_A-2", 0)},
    "bert_small": {"google": Release("hf://google/bert_uncased_L-4_H-512_A-8", 0)},
    "bert_base": {"uncased": Release("hf://google-bert/bert-base-uncased", 0)},
    "bert_large": {"uncased": Release("hf://google-bert/bert-large-uncased", 0)},
    "minilm_l6": {"all_v2": Release("hf://sentence-transformers/all-MiniLM-L6-v2", 0)},
}

# Counted in transformers' BertForMaskedLM and, for the sentence encoder, in BertModel without its pooler.
PARAMETERS = {
    "bert_tiny": 4_416_698,
    "bert_small": 28_795_194,
    "bert_base": 109_514_298,
    "bert_large": 335_174_458,
    "minilm_l6": 22_565_376,
}

register_family(
    "bert", Encoder, EncoderConfig, VARIANTS, parameters=PARAMETERS, rules=RULES, releases=RELEASES, described=DESCRIBED
)
register_family(
    "bert",
    Encoder,
    EncoderConfig,
    SENTENCE_VARIANTS,
    parameters=PARAMETERS,
    rules=SENTENCE_RULES,
    releases=RELEASES,
    described=DESCRIBED,
)

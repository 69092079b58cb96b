"""Big Bird: Transformers for Longer Sequences (Zaheer et al., NeurIPS 2020, arXiv:2007.14062), the form that adds no
tokens (ITC).

    x = norm(word + position + type);  N x [x = norm(x + BigBirdAttention(x));  x = norm(x + MLP(x))]

BERT with 4096 positions, in which each block of 64 tokens attends to its neighbor blocks, the first and the last block
and 3 random ones. The MLP uses the tanh form of GELU. In sequences of at most 704 tokens (11 blocks) every token
attends to all.

In evaluation, transformers runs the released models with the first block in place of each random one, so that it counts
four times: ``choice="first"``, the default. ``choice="random"`` samples the blocks, as in training and in the paper. In
transformers the last block is that of the padded row; here it is the block of the last real token, so that padding does
not change the result.

Clinical-BigBird (Li et al., 2022, arXiv:2201.11838) is the base model, trained further on MIMIC-III notes.

Published: base, 128 M parameters, and large, 360 M.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from layers.mixer import MixerSpec, Place
from zoo.backbones.encoder import Encoder, EncoderConfig
from zoo.language.bert import names
from zoo.naming import Naming
from zoo.registry import Release, one_of, register_family


@dataclasses.dataclass(frozen=True)
class BigBirdConfig(EncoderConfig):
    """Hyper-parameters of BigBird.

    Attributes:
      pooler: whether the model has a pooler; released models do, including those with the masked language modeling
        head.
      block, random, choice: as in :class:`layers.BigBirdAttention`; ``block=None`` is full attention.
    """

    vocab_size: int = 50358
    max_length: int = 4096
    mlp: Literal["gelu", "gelu_tanh"] = "gelu_tanh"
    pooler: bool | None = True
    block: int | None = 64
    random: int = 3
    choice: Literal["random", "first"] = "first"


class BigBird(Encoder):
    """BigBird; names as in :class:`Encoder`."""

    config: BigBirdConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        if c.block is None:
            return "attention"
        # Each block of the model samples its own random blocks.
        own = {"block": c.block, "random": c.random, "choice": c.choice, "seed": place.index or 0}
        return {"name": "bigbird", **own}


VARIANTS: dict[str, dict[str, Any]] = {
    "bigbird_roberta_base": {},
    "bigbird_roberta_large": {"features": 1024, "depth": 24, "num_heads": 16},
}

RULES: dict[str, Naming] = {
    kind: names(prefix, body={"pooler": "pooler"}) for kind, prefix in (("transformers", "bert."), ("bare", ""))
}


def _epsilon(config: Mapping[str, Any]) -> Any:
    """The norms' epsilon; refuses options that this family does not have."""
    one_of(config, "hidden_act", {"gelu_new": "gelu_tanh"})
    one_of(config, "rescale_embeddings", {False: "no"})
    one_of(config, "use_bias", {True: "yes"})
    return config.get("layer_norm_eps")


def _block(config: Mapping[str, Any]) -> Any:
    sparse = config.get("attention_type", "block_sparse") == "block_sparse"
    return config.get("block_size") if sparse else None


DESCRIBED: dict[str, Any] = {
    "norm_epsilon": _epsilon,
    "num_heads": lambda config: config.get("num_attention_heads"),
    "block": _block,
    "random": lambda config: config.get("num_random_blocks"),
}

RELEASES: dict[str, dict[str, Release]] = {
    "bigbird_roberta_base": {
        "google": Release("hf://google/bigbird-roberta-base", 0),
        "clinical": Release("hf://yikuan8/Clinical-BigBird", 0),
    },
    "bigbird_roberta_large": {"google": Release("hf://google/bigbird-roberta-large", 0)},
}

# Counted in transformers' BigBirdForMaskedLM.
PARAMETERS = {"bigbird_roberta_base": 128_111_286, "bigbird_roberta_large": 360_225_974}

register_family(
    "bigbird",
    BigBird,
    BigBirdConfig,
    VARIANTS,
    parameters=PARAMETERS,
    rules=RULES,
    releases=RELEASES,
    described=DESCRIBED,
    paper=(126, 166),
)

"""Longformer: The Long-Document Transformer (Beltagy et al., 2020, arXiv:2004.05150).

    x = norm(word + position + type);  N x [x = norm(x + LongformerAttention(x));  x = norm(x + MLP(x))]

RoBERTa with 4096 positions, whose tokens attend to a window of 512 and to the global tokens; global tokens attend to
all. In ``model(tokens, mask, roles=roles)`` role 1 marks the global tokens: those of the question, in question
answering. Without roles no token is global, except the first one where the output is one vector per sequence, as in
classification.

Published: base, 148.7 M parameters, and large, 434.7 M.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from layers.mixer import MixerSpec, Place
from layers.sparse.longformer import GLOBAL
from layers.tokens import Tokens
from zoo.backbones.encoder import Encoder, EncoderConfig
from zoo.backbones.model import mixers
from zoo.language import roberta
from zoo.naming import Naming
from zoo.registry import Release, register_family


@dataclasses.dataclass(frozen=True)
class LongformerConfig(EncoderConfig):
    """Hyper-parameters of Longformer.

    Attributes:
      window: w, one for all blocks or one per block; a token attends to w // 2 tokens on each side.
      max_global: the largest number of global tokens in a row.
    """

    vocab_size: int = 50265
    max_length: int = 4096
    position_offset: int = 2
    types: int = 1
    norm_epsilon: float = 1e-5
    window: int | tuple[int, ...] = 512
    max_global: int = 64


class Longformer(Encoder):
    """Longformer; names as in :class:`Encoder`."""

    config: LongformerConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        window = self.config.window
        own = window if isinstance(window, int) else window[place.index or 0]
        return {"name": "longformer_attention", "window": own, "max_global": self.config.max_global}

    def known(self, tokens: jax.Array, given: Tokens) -> Tokens:
        """Makes the first token global where the output is one vector per sequence and no roles are given."""
        asked = all("roles" in mixer.honors for mixer in mixers(self.blocks))
        if given.roles is not None or self.config.output != "pooled" or not asked:
            return given
        return given.replace(roles=jnp.zeros(tokens.shape[:2], jnp.int32).at[:, 0].set(GLOBAL))


VARIANTS: dict[str, dict[str, Any]] = {"longformer_base_4096": {}, "longformer_large_4096": roberta.LARGE}

_PROJECTIONS = {f"mixer.global_{part}": f"attention.self.{part}_global" for part in ("query", "key", "value")}
RULES: dict[str, Naming] = {
    "transformers": roberta.names("longformer.", _PROJECTIONS),
    "bare": roberta.names("", _PROJECTIONS, pooler="pooler.dense"),
}


def _window(config: Mapping[str, Any]) -> Any:
    window = config.get("attention_window")
    return tuple(window) if isinstance(window, list) else window


DESCRIBED: dict[str, Any] = {**roberta.DESCRIBED, "window": _window}

RELEASES: dict[str, dict[str, Release]] = {
    "longformer_base_4096": {
        "allenai": Release("hf://allenai/longformer-base-4096", 0),
        "clinical": Release("hf://yikuan8/Clinical-Longformer", 0),
    },
    "longformer_large_4096": {"allenai": Release("hf://allenai/longformer-large-4096", 0)},
}

# Counted in transformers' LongformerForMaskedLM.
PARAMETERS = {"longformer_base_4096": 148_711_257, "longformer_large_4096": 434_653_273}

register_family(
    "longformer",
    Longformer,
    LongformerConfig,
    VARIANTS,
    parameters=PARAMETERS,
    rules=RULES,
    releases=RELEASES,
    described=DESCRIBED,
    paper=(126,),
)

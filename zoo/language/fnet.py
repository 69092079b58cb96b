"""FNet: Mixing Tokens with Fourier Transforms (Lee-Thorp et al., NAACL 2022, arXiv:2105.03824).

    x = W norm(word + position + type);  N x [x = norm(x + Re F(x));  x = norm(x + MLP(x))]

BERT with the Fourier transform over tokens and features in place of attention, and four token types. The MLP uses the
tanh form of GELU.

The released models use no mask: they transform padding with the rest, so that their output for a text depends on how
much padding follows it. Without a mask ours do the same. With one, each row is transformed at its own length, as if it
were alone.

Published: base, 83 M parameters, and large, 238 M; 92 % and 97 % of BERT's GLUE scores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from flax import nnx

from layers.mixer import MixerSpec, Place
from zoo.backbones.encoder import Encoder, EncoderConfig
from zoo.language.bert import names
from zoo.naming import Naming
from zoo.registry import Release, one_of, register_family


@dataclasses.dataclass(frozen=True)
class FNetConfig(EncoderConfig):
    """Hyper-parameters of FNet.

    Attributes:
      embedding_features: width of the embeddings; None is ``features``. The linear layer after them exists in either
        case.
      pooler: whether the model has a pooler; released models do, including those with the masked language modeling
        head.
    """

    vocab_size: int = 32000
    types: int = 4
    mlp: Literal["gelu", "gelu_tanh"] = "gelu_tanh"
    pooler: bool | None = True


class FNet(Encoder):
    """FNet; names as in :class:`Encoder`."""

    config: FNetConfig

    def __init__(self, config: FNetConfig, *, rngs: nnx.Rngs):
        """As :class:`Encoder`."""
        width = config.embedding_features or config.features
        super().__init__(dataclasses.replace(config, embedding_features=width), rngs=rngs)

    def own_mixer(self, place: Place) -> MixerSpec:
        return "fourier_mixing"


VARIANTS: dict[str, dict[str, Any]] = {
    "fnet_base": {},
    "fnet_large": {"features": 1024, "depth": 24, "num_heads": 16},
}


def _names(prefix: str) -> Naming:
    """The parameter names of the transformers library; ``prefix`` precedes all names but the heads'."""
    attention = dict.fromkeys(f"mixer.{part}" for part in ("query", "key", "value", "out"))
    block = {**attention, "mixer_norm": "fourier.output.LayerNorm"}
    return names(prefix, body={"projection": "embeddings.projection"}, block=block)


RULES: dict[str, Naming] = {"transformers": _names("fnet."), "bare": _names("")}


def _epsilon(config: Mapping[str, Any]) -> Any:
    """The norms' epsilon; refuses activations that this family does not have."""
    one_of(config, "hidden_act", {"gelu_new": "gelu_tanh"})
    return config.get("layer_norm_eps")


DESCRIBED: dict[str, Any] = {"norm_epsilon": _epsilon}

RELEASES: dict[str, dict[str, Release]] = {
    "fnet_base": {"google": Release("hf://google/fnet-base", 0)},
    "fnet_large": {"google": Release("hf://google/fnet-large", 0)},
}

# Counted in transformers' FNetForMaskedLM.
PARAMETERS = {"fnet_base": 83_485_184, "fnet_large": 238_029_056}

register_family(
    "fnet", FNet, FNetConfig, VARIANTS, parameters=PARAMETERS, rules=RULES, releases=RELEASES, described=DESCRIBED
)

"""GPT-J: a 6 billion parameter autoregressive language model (Wang and Komatsuzaki, 2021, Mesh Transformer JAX).

    h = LayerNorm(x);  x = x + Attention(h) + MLP(h)

Both branches read x through the same norm. The rotary embedding rotates pairs of adjacent features, of the first 64 of
each head. Attention has no biases; the MLP (tanh form of GELU) and the head do. The size of ``gptj_nano`` is our
choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import nnx

from layers.block import Branch
from layers.mixer import MixerSpec, Place
from zoo.backbones.causal import Causal, CausalConfig, Mlp
from zoo.naming import Naming, Tie
from zoo.registry import Release, one_of, register_family


@dataclasses.dataclass(frozen=True)
class GPTJConfig(CausalConfig):
    """Hyper-parameters of GPT-J.

    Attributes:
      rotary_dimensions: features of each head that the rotary embedding rotates; None for all.
    """

    mlp: Mlp | None = "gelu_tanh"
    mlp_bias: bool = True
    norm: str = "layer"
    tied: bool = False
    head_bias: bool = True
    rotary_dimensions: int | None = 64


class GPTJ(Causal):
    """GPT-J; names as in :class:`Causal`."""

    config: GPTJConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        return {
            "name": "attention",
            "rotary": {"dimensions": self.config.rotary_dimensions, "interleaved": True},
            "use_bias": False,
        }

    def make_branches(self, place: Place, *, rngs: nnx.Rngs) -> dict[str, nnx.Module | Branch]:
        branches = super().make_branches(place, rngs=rngs)
        if isinstance(channel := branches.get("channel"), nnx.Module):
            branches["channel"] = Branch(channel, norm=None, order="parallel")
        return branches


VARIANTS: dict[str, dict[str, Any]] = {
    "gptj_nano": {"features": 128, "depth": 4, "num_heads": 4, "rotary_dimensions": 8},
    "gptj_6b": {"vocab_size": 50400, "features": 4096, "depth": 28, "num_heads": 16},
}

_BLOCK, _OURS = "transformer.h.{i}", "blocks.{i}"
_LINEAR = {"q": "query", "k": "key", "v": "value", "out": "out"}

RULES: dict[str, Naming] = {
    "transformers": Naming(
        [
            (("transformer.wte", "lm_head"), "embedding", Tie(written=False)),
            ("lm_head", "head"),
            (f"{_BLOCK}.ln_1", f"{_OURS}.mixer_norm"),
            *((f"{_BLOCK}.attn.{theirs}_proj", f"{_OURS}.mixer.{ours}") for theirs, ours in _LINEAR.items()),
            (f"{_BLOCK}.mlp.fc_in", f"{_OURS}.channel.up"),
            (f"{_BLOCK}.mlp.fc_out", f"{_OURS}.channel.down"),
            ("transformer.ln_f", "norm"),
        ],
        prefix="transformer.",
        # Old files also hold the masks.
        ignore=(f"{_BLOCK}.attn.bias", f"{_BLOCK}.attn.masked_bias"),
    )
}


def _activation(config: Mapping[str, Any]) -> Any:
    return one_of(
        config, "activation_function", {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
    )


DESCRIBED: dict[str, Any] = {
    "norm_epsilon": lambda config: config.get("layer_norm_epsilon"),
    "num_heads": lambda config: config.get("n_head"),
    "rotary_dimensions": lambda config: config.get("rotary_dim"),
    "mlp": _activation,
    "tied": lambda config: config.get("tie_word_embeddings"),
}

RELEASES = {"gptj_6b": {"eleuther": Release("hf://EleutherAI/gpt-j-6b", 0)}}

# Counted in transformers' model of this size.
PARAMETERS = {"gptj_6b": 6_050_882_784}

register_family(
    "gptj",
    GPTJ,
    GPTJConfig,
    VARIANTS,
    our_choice=("gptj_nano",),
    parameters=PARAMETERS,
    rules=RULES,
    releases=RELEASES,
    described=DESCRIBED,
)

"""GPT-2: Language Models are Unsupervised Multitask Learners (Radford et al., 2019).

    x = word + position;  N x [x = x + Attention(LayerNorm(x));  x = x + MLP(LayerNorm(x))]
    logits = LayerNorm(x) E^T, E the word embedding

with the tanh form of GELU, biases everywhere and 1024 learned positions. Sizes are those of the four released models;
the size of ``gpt2_nano`` is our choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from layers.mixer import MixerSpec, Place
from zoo.backbones.causal import Causal, CausalConfig, Mlp
from zoo.naming import Naming, Split, Tie
from zoo.registry import Release, one_of, register_family


@dataclasses.dataclass(frozen=True)
class GPT2Config(CausalConfig):
    """Hyper-parameters of GPT-2: those of :class:`CausalConfig` with its defaults."""

    mlp: Mlp | None = "gelu_tanh"
    mlp_bias: bool = True
    norm: str = "layer"
    position: Literal["learned"] | None = "learned"
    max_length: int = 1024


class GPT2(Causal):
    """GPT-2; names as in :class:`Causal`."""

    def own_mixer(self, place: Place) -> MixerSpec:
        return "attention"


VARIANTS: dict[str, dict[str, Any]] = {
    "gpt2_nano": {"features": 128, "depth": 4, "num_heads": 4, "max_length": 256},
    "gpt2": {"vocab_size": 50257},
    "gpt2_medium": {"vocab_size": 50257, "features": 1024, "depth": 24, "num_heads": 16},
    "gpt2_large": {"vocab_size": 50257, "features": 1280, "depth": 36, "num_heads": 20},
    "gpt2_xl": {"vocab_size": 50257, "features": 1600, "depth": 48, "num_heads": 25},
}


def _names(prefix: str) -> Naming:
    """The parameter names of the transformers library; ``prefix`` precedes all names but the head's, and is missing in
    the released files.
    """
    block, ours = f"{prefix}h.{{i}}", "blocks.{i}"
    linear = {"attn.c_proj": "mixer.out", "mlp.c_fc": "channel.up", "mlp.c_proj": "channel.down"}
    fused = tuple(f"{ours}.mixer.{part}" for part in ("query", "key", "value"))
    return Naming(
        [
            ((f"{prefix}wte", "lm_head"), "embedding", Tie(written=False)),
            ("lm_head", "head"),
            (f"{prefix}wpe.weight", "position"),
            (f"{block}.ln_1", f"{ours}.mixer_norm"),
            (f"{block}.ln_2", f"{ours}.channel_norm"),
            # Their linear weights are (in, out), as ours.
            (f"{block}.attn.c_attn.weight", tuple(f"{name}.kernel" for name in fused), Split(axis=1)),
            (f"{block}.attn.c_attn.bias", tuple(f"{name}.bias" for name in fused), Split()),
            *((f"{block}.{theirs}.weight", f"{ours}.{name}.kernel") for theirs, name in linear.items()),
            *((f"{block}.{theirs}.bias", f"{ours}.{name}.bias") for theirs, name in linear.items()),
            (f"{prefix}ln_f", "norm"),
        ],
        prefix=prefix,
        # Old files also hold the masks.
        ignore=(f"{block}.attn.bias", f"{block}.attn.masked_bias"),
    )


RULES: dict[str, Naming] = {"transformers": _names("transformer."), "bare": _names("")}


def _epsilon(config: Mapping[str, Any]) -> Any:
    """The norms' epsilon; refuses models that scale their scores differently."""
    one_of(config, "scale_attn_weights", {True: True})
    one_of(config, "scale_attn_by_inverse_layer_idx", {False: False})
    return config.get("layer_norm_epsilon")


DESCRIBED: dict[str, Any] = {
    "norm_epsilon": _epsilon,
    "num_heads": lambda config: config.get("n_head"),
    "mlp": lambda config: one_of(
        config, "activation_function", {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
    ),
    "tied": lambda config: config.get("tie_word_embeddings"),
}

_SIZES = {"gpt2": "gpt2", "gpt2_medium": "gpt2-medium", "gpt2_large": "gpt2-large", "gpt2_xl": "gpt2-xl"}
RELEASES = {
    name: {"openai": Release(f"hf://openai-community/{theirs}", 0, license="mit")} for name, theirs in _SIZES.items()
}

# Counted in the released files; the tied head counts once.
PARAMETERS = {"gpt2": 124_439_808, "gpt2_medium": 354_823_168, "gpt2_large": 774_030_080, "gpt2_xl": 1_557_611_200}

register_family(
    "gpt2",
    GPT2,
    GPT2Config,
    VARIANTS,
    our_choice=("gpt2_nano",),
    parameters=PARAMETERS,
    rules=RULES,
    releases=RELEASES,
    described=DESCRIBED,
)

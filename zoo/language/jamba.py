"""Jamba: A Hybrid Transformer-Mamba Language Model (Lieber et al., 2024, arXiv:2403.19887).

    N x [x = x + Mixer(RMSNorm(x));  x = x + Channel(RMSNorm(x))]

In each group of eight blocks the fifth mixer is attention, with four query heads per key head; the others are Mamba
(:mod:`layers.state_space.mamba`), with norms on dt, B and C. Every second channel mixer is a mixture of 16 experts, of
which each token uses the top 2, weighted by softmax probabilities that are not renormalized (:mod:`layers.experts`);
the others are SwiGLUs of the width of one expert. There are no position encodings: the Mamba blocks carry the order.

Sizes and names are those of the released models: Jamba with 52B parameters, of which 12B are active per token, and
Jamba 1.5 (arXiv:2408.12570), of the same size (mini) and with 398B, 94B active (large). The size of ``jamba_nano`` is
our choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from layers.mixer import MixerSpec, Place
from zoo.backbones.causal import Causal, CausalConfig
from zoo.language.llama import refuse_other_forms
from zoo.naming import Join, Naming, Rearrange
from zoo.registry import FrozenOptions, Release, register_family


def _experts(**sizes: Any) -> FrozenOptions:
    return FrozenOptions({"name": "experts", **sizes})


@dataclasses.dataclass(frozen=True)
class JambaConfig(CausalConfig):
    """Hyper-parameters of Jamba.

    Attributes:
      attention_every, attention_at: size of a group of blocks, and the index in it of the block with attention;
        ``attention_every=None`` is a model without attention.
      num_kv_heads: as in :class:`layers.MultiHeadAttention`; None is num_heads.
      state_dim, expand, conv_size, step_rank, conv_bias, use_bias: as in :class:`layers.Mamba`.
    """

    norm_epsilon: float = 1e-6
    tied: bool = False
    mlp_pattern: Any = ("swiglu", _experts(num_experts=16, chosen=2))
    attention_every: int | None = 8
    attention_at: int = 4
    num_kv_heads: int | None = None
    state_dim: int = 16
    expand: int = 2
    conv_size: int = 4
    step_rank: int | None = None
    conv_bias: bool = True
    use_bias: bool = False


class Jamba(Causal):
    """Jamba; names as in :class:`Causal`."""

    config: JambaConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        if c.attention_every is not None and (place.index or 0) % c.attention_every == c.attention_at:
            return {"name": "attention", "num_kv_heads": c.num_kv_heads, "rotary": None, "use_bias": False}
        names = ("state_dim", "expand", "conv_size", "step_rank", "conv_bias", "use_bias", "norm_epsilon")
        return {"name": "mamba", "inner_norm": True, **{name: getattr(c, name) for name in names}}


_MINI: dict[str, Any] = {
    "vocab_size": 65536, "features": 4096, "depth": 32, "num_heads": 32, "num_kv_heads": 8, "hidden": 14336
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "jamba_v0.1": _MINI,
    "jamba_1.5_mini": _MINI,
    "jamba_1.5_large": {
        "vocab_size": 65536, "features": 8192, "depth": 72, "num_heads": 64, "num_kv_heads": 8, "hidden": 24576
    },
    "jamba_nano": {
        "features": 128, "depth": 4, "num_heads": 4, "num_kv_heads": 2, "hidden": 256, "tied": True,
        "attention_every": 4, "attention_at": 0, "mlp_pattern": ("swiglu", _experts(num_experts=4, chosen=2)),
    },
}  # fmt: skip

# Counted in transformers' models of the released sizes.
PARAMETERS = {
    "jamba_v0.1": 51_570_323_328,
    "jamba_1.5_mini": 51_570_323_328,
    "jamba_1.5_large": 398_555_145_696,
}

_OPEN = "jamba-open-model-license"
RELEASES = {
    "jamba_v0.1": {"base": Release("hf://ai21labs/Jamba-v0.1", 0)},
    "jamba_1.5_mini": {"instruct": Release("hf://ai21labs/AI21-Jamba-1.5-Mini", 0, license=_OPEN)},
    "jamba_1.5_large": {"instruct": Release("hf://ai21labs/AI21-Jamba-1.5-Large", 0, license=_OPEN)},
}

_BLOCK, _OURS = "model.layers.{i}", "blocks.{i}"
_MODULES = {
    **{f"mamba.{name}": f"mixer.{name}" for name in ("in_proj", "x_proj", "dt_proj", "out_proj", "A_log", "D")},
    "mamba.conv1d": "mixer.conv",
    "mamba.dt_layernorm": "mixer.step_norm", "mamba.b_layernorm": "mixer.b_norm", "mamba.c_layernorm": "mixer.c_norm",
    "self_attn.q_proj": "mixer.query", "self_attn.k_proj": "mixer.key", "self_attn.v_proj": "mixer.value",
    "self_attn.o_proj": "mixer.out",
    "feed_forward.router": "channel.router",
    "input_layernorm": "mixer_norm", "pre_ff_layernorm": "channel_norm",
}  # fmt: skip
_FORWARD, _EACH = f"{_BLOCK}.feed_forward", (Join(), Rearrange("e o i -> e i o"))

RULES = {
    "transformers": Naming(
        [
            ("model.embed_tokens", "embedding"),
            ("lm_head", "head"),
            (f"{_BLOCK}.mamba.dt_proj.bias", f"{_OURS}.mixer.dt_bias"),
            *((f"{_FORWARD}.{name}_proj", f"{_OURS}.channel.{name}") for name in ("gate", "up", "down")),
            *(
                (f"{_FORWARD}.experts.{{each}}.{name}_proj.weight", f"{_OURS}.channel.experts.{name}.kernel", *_EACH)
                for name in ("gate", "up", "down")
            ),
            *((f"{_BLOCK}.{theirs}", f"{_OURS}.{ours}") for theirs, ours in _MODULES.items()),
            ("model.final_layernorm", "norm"),
        ],
        prefix="model.",
    )
}


def _epsilon(config: Mapping[str, Any]) -> Any:
    refuse_other_forms(config, "hidden_act", "silu")
    return config.get("rms_norm_eps")


def _pattern(config: Mapping[str, Any]) -> Any:
    """The channel mixers of one period of blocks."""
    count, period, at = (config.get(name) for name in ("num_experts", "expert_layer_period", "expert_layer_offset"))
    if count is None or period is None or at is None:
        return None
    if count == 1:
        return ("swiglu",)
    experts = _experts(num_experts=count, chosen=config.get("num_experts_per_tok", 2))
    return tuple(experts if i == at else "swiglu" for i in range(period))


DESCRIBED: dict[str, Any] = {
    "norm_epsilon": _epsilon,
    "mlp_pattern": _pattern,
    "num_heads": lambda config: config.get("num_attention_heads"),
    "num_kv_heads": lambda config: config.get("num_key_value_heads"),
    "attention_every": lambda config: config.get("attn_layer_period"),
    "attention_at": lambda config: config.get("attn_layer_offset"),
    "tied": lambda config: config.get("tie_word_embeddings"),
}

register_family(
    "jamba",
    Jamba,
    JambaConfig,
    VARIANTS,
    our_choice=("jamba_nano",),
    parameters=PARAMETERS,
    releases=RELEASES,
    rules=RULES,
    described=DESCRIBED,
)

"""Kimi Linear: An Expressive, Efficient Attention Architecture (Kimi Team, 2025, arXiv:2510.26692).

    x = x + Mixer(RMSNorm(x));  x = x + SwiGLU(RMSNorm(x))

The mixer of three blocks in four is Kimi Delta Attention (:mod:`layers.delta.kimi_delta_attention`); that of every
fourth block, and of the last one, is multi-head latent attention (:mod:`layers.attention.latent`) without position
encodings: the KDA blocks carry the order. Heads have 128 features, latents 512, and the key shared by the heads 64.

In the released models (48B parameters, 3B active per token) all channel mixers but the first are mixtures of experts
(:mod:`layers.experts`): each token uses 8 of 256 experts and one shared expert. The sizes of the other models are our
choice. Two namings are read: that of the released files, and that of models created in transformers 5.23, which names
the SwiGLU of a block without experts like the experts of the other blocks.
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


@dataclasses.dataclass(frozen=True)
class KimiLinearConfig(CausalConfig):
    """Hyper-parameters of Kimi Linear.

    Attributes:
      attention_layers: indices of the blocks with latent attention, from 0; None is every fourth block and the last
        one.
      head_dim: features of a head, in both mixers; None is features / num_heads.
      value_dim, latent_dim, rotary_dim: as in :class:`layers.MultiHeadLatentAttention`.
      conv_size: as in :class:`layers.KimiDeltaAttention`.
    """

    tied: bool = False
    attention_layers: tuple[int, ...] | None = None
    head_dim: int | None = None
    value_dim: int | None = None
    latent_dim: int | None = None
    rotary_dim: int | None = None
    conv_size: int = 4


class KimiLinear(Causal):
    """Kimi Linear; names as in :class:`Causal`."""

    config: KimiLinearConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        c, index = self.config, place.index or 0
        attends = index % 4 == 3 or index == c.depth - 1
        if attends if c.attention_layers is None else index in c.attention_layers:
            options = {name: getattr(c, name) for name in ("head_dim", "value_dim", "latent_dim", "rotary_dim")}
            return {"name": "multi_head_latent_attention", "rotary": None, **options}
        options = {name: getattr(c, name) for name in ("head_dim", "conv_size", "norm_epsilon")}
        return {"name": "kimi_delta_attention", "gate_bias": False, **options}


def _experts(**sizes: Any) -> dict[str, Any]:
    """The fields of a model whose channel mixers, all but the first, are experts."""
    routing = {"scores": "sigmoid", "normalized": True, "corrected": True, "scale": 2.446, "shared": 1}
    return {
        "mlp": FrozenOptions({"name": "experts", **routing, **sizes}),
        "mlp_pattern": FrozenOptions({"0": "swiglu"}),
    }


_LATENT: dict[str, Any] = {"head_dim": 128, "latent_dim": 512, "rotary_dim": 64}
VARIANTS: dict[str, dict[str, Any]] = {
    "kimi_linear_48b": {
        "vocab_size": 163840, "features": 2304, "depth": 27, "num_heads": 32, "hidden": 9216, **_LATENT,
        **_experts(num_experts=256, chosen=8, hidden=1024),
    },
    "kimi_linear_1.3b": {
        "vocab_size": 32000, "features": 2048, "depth": 24, "num_heads": 16, "hidden": 5632, **_LATENT
    },
    "kimi_linear_experts_nano": {
        "features": 128, "depth": 4, "num_heads": 4, "tied": True, **_experts(num_experts=8, chosen=2, hidden=128),
    },
    "kimi_linear_nano": {"features": 128, "depth": 4, "num_heads": 4, "tied": True},
}  # fmt: skip

# Counted in transformers' model with the released configuration; the correction biases of the router's scores are
# buffers, not parameters.
PARAMETERS = {"kimi_linear_48b": 49_122_675_072}

RELEASES = {
    "kimi_linear_48b": {
        kind: Release(f"hf://moonshotai/Kimi-Linear-48B-A3B-{kind.capitalize()}", 0, license="mit")
        for kind in ("instruct", "base")
    }
}

_BLOCK, _OURS = "model.layers.{i}", "blocks.{i}"
_DELTA = {
    "k_proj": "key", "v_proj": "value", "q_conv1d": "query_conv", "k_conv1d": "key_conv", "v_conv1d": "value_conv",
    "dt_bias": "dt_bias", "f_a_proj": "decay.down", "f_b_proj": "decay.up", "b_proj": "beta", "g_a_proj": "gate.down",
    "g_b_proj": "gate.up", "o_norm": "norm",
}  # fmt: skip
_ATTENTION = {"kv_a_proj_with_mqa": "latent", "kv_a_layernorm": "latent_norm", "kv_b_proj": "key_value"}
_BOTH = {"q_proj": "query", "o_proj": "out"}
_EXPERTS, _EACH = f"{_BLOCK}.block_sparse_moe", (Join(), Rearrange("e o i -> e i o"))


def _naming(channel: str) -> Naming:
    """The naming rules, with ``channel`` their name of the dense channel mixer."""
    mixers = {**_DELTA, **_ATTENTION, **_BOTH}
    return Naming(
        [
            ("model.embed_tokens", "embedding"),
            (f"{_BLOCK}.self_attn.A_log", f"{_OURS}.mixer.A_log", Rearrange("1 1 h 1 -> h")),
            *((f"{_BLOCK}.self_attn.{theirs}", f"{_OURS}.mixer.{own}") for theirs, own in mixers.items()),
            *(
                (f"{_EXPERTS}.experts.{{each}}.{theirs}.weight", f"{_OURS}.channel.experts.{name}.kernel", *_EACH)
                for theirs, name in (("w1", "gate"), ("w3", "up"), ("w2", "down"))
            ),
            (f"{_EXPERTS}.gate", f"{_OURS}.channel.router"),
            (f"{_EXPERTS}.gate.e_score_correction_bias", f"{_OURS}.channel.correction"),
            *(
                (f"{part}.{name}_proj", f"{_OURS}.{ours}.{name}")
                for part, ours in ((f"{_BLOCK}.{channel}", "channel"), (f"{_EXPERTS}.shared_experts", "channel.shared"))
                for name in ("gate", "up", "down")
            ),
            (f"{_BLOCK}.input_layernorm", f"{_OURS}.mixer_norm"),
            (f"{_BLOCK}.post_attention_layernorm", f"{_OURS}.channel_norm"),
            ("model.norm", "norm"),
            ("lm_head", "head"),
        ],
        prefix="model.",
    )


RULES = {"transformers": _naming("block_sparse_moe"), "released": _naming("mlp")}


def _epsilon(config: Mapping[str, Any]) -> Any:
    refuse_other_forms(config, "hidden_act", "silu")
    if config.get("q_lora_rank") is not None:
        raise ValueError(f"q_lora_rank={config['q_lora_rank']!r}: here queries are projected from the tokens directly")
    return config.get("rms_norm_eps")


def _attention_layers(config: Mapping[str, Any]) -> tuple[int, ...] | None:
    kinds = config.get("layer_types")
    if kinds:
        return tuple(i for i, kind in enumerate(kinds) if kind == "full_attention")
    counted = (config.get("linear_attn_config") or {}).get("full_attn_layers")
    return None if counted is None else tuple(i - 1 for i in counted)


def _sparse(config: Mapping[str, Any]) -> list[bool]:
    """For each block, whether it has experts."""
    kinds = config.get("mlp_layer_types")
    if kinds:
        return [kind == "sparse" for kind in kinds]
    first = config.get("first_k_dense_replace", 0) if config.get("num_experts") else config.get("num_hidden_layers", 0)
    return [i >= first for i in range(config.get("num_hidden_layers", 0))]


def _mlp(config: Mapping[str, Any]) -> Any:
    """The channel mixer of the blocks with experts, or of all blocks where none has experts."""
    if not any(_sparse(config)):
        return "swiglu"
    refuse_other_forms(config, "moe_router_activation_func", "sigmoid")
    found = {ours: config[theirs] for theirs, ours in _ROUTING.items() if config.get(theirs) is not None}
    return FrozenOptions({"name": "experts", "scores": "sigmoid", "corrected": True, **found})


_ROUTING = {
    "num_experts": "num_experts", "num_experts_per_token": "chosen", "moe_intermediate_size": "hidden",
    "num_shared_experts": "shared", "routed_scaling_factor": "scale", "moe_renormalize": "normalized",
}  # fmt: skip


def _pattern(config: Mapping[str, Any]) -> Any:
    sparse = _sparse(config)
    dense = [i for i, experts in enumerate(sparse) if not experts]
    return FrozenOptions({str(i): "swiglu" for i in dense}) if any(sparse) and dense else None


DESCRIBED: dict[str, Any] = {
    "norm_epsilon": _epsilon,
    "mlp": _mlp,
    "mlp_pattern": _pattern,
    "attention_layers": _attention_layers,
    "num_heads": lambda config: config.get("num_attention_heads"),
    "head_dim": lambda config: config.get("qk_nope_head_dim"),
    "value_dim": lambda config: config.get("v_head_dim"),
    "latent_dim": lambda config: config.get("kv_lora_rank"),
    "rotary_dim": lambda config: config.get("qk_rope_head_dim"),
    "conv_size": lambda config: (config.get("linear_attn_config") or {}).get("short_conv_kernel_size"),
    "tied": lambda config: config.get("tie_word_embeddings"),
}

register_family(
    "kimi_linear",
    KimiLinear,
    KimiLinearConfig,
    VARIANTS,
    our_choice=tuple(name for name in VARIANTS if name not in PARAMETERS),
    parameters=PARAMETERS,
    releases=RELEASES,
    rules=RULES,
    described=DESCRIBED,
)

"""Kimi Linear: An Expressive, Efficient Attention Architecture (Kimi Team, 2025, arXiv:2510.26692).

    x = x + Mixer(RMSNorm(x));  x = x + SwiGLU(RMSNorm(x))

The mixer of three blocks in four is Kimi Delta Attention (:mod:`layers.delta.kimi_delta_attention`), and that of the
fourth, and of the last of all, multi-head latent attention (:mod:`layers.attention.latent`) in which nothing turns:
blocks of KDA tell the order. Heads have 128 features, latents 512, and the key that heads share 64.

The released models (48B, of which a token uses 3B) have a mixture of 256 experts in place of the SwiGLU in all blocks
but the first, which is not here: the sizes are our choice. Names are those of the released files, and those of files of
transformers 5.23 whose models were made there, which call the SwiGLU what other files call the experts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from layers.mixer import MixerSpec, Place
from zoo.backbones.causal import Causal, CausalConfig
from zoo.language.llama import refuse_other_forms
from zoo.naming import Naming, Rearrange
from zoo.registry import register_family


@dataclasses.dataclass(frozen=True)
class KimiLinearConfig(CausalConfig):
    """Hyper-parameters of Kimi Linear.

    Attributes:
      attention_layers: blocks with latent attention, counted from 0; None: every fourth, and the last.
      head_dim: features of a head, of both kinds; None is features / num_heads.
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
    """Kimi Linear with plain channel mixers; names as in :class:`Causal`."""

    config: KimiLinearConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        c, index = self.config, place.index or 0
        attends = index % 4 == 3 or index == c.depth - 1
        if attends if c.attention_layers is None else index in c.attention_layers:
            options = {name: getattr(c, name) for name in ("head_dim", "value_dim", "latent_dim", "rotary_dim")}
            return {"name": "multi_head_latent_attention", "rotary": None, **options}
        options = {name: getattr(c, name) for name in ("head_dim", "conv_size", "norm_epsilon")}
        return {"name": "kimi_delta_attention", "gate_bias": False, **options}


_LATENT: dict[str, Any] = {"head_dim": 128, "latent_dim": 512, "rotary_dim": 64}
VARIANTS: dict[str, dict[str, Any]] = {
    "kimi_linear_1.3b": {
        "vocab_size": 32000, "features": 2048, "depth": 24, "num_heads": 16, "hidden": 5632, **_LATENT
    },
    "kimi_linear_nano": {"features": 128, "depth": 4, "num_heads": 4, "tied": True},
}  # fmt: skip

_BLOCK, _OURS = "model.layers.{i}", "blocks.{i}"
_DELTA = {
    "k_proj": "key", "v_proj": "value", "q_conv1d": "query_conv", "k_conv1d": "key_conv", "v_conv1d": "value_conv",
    "dt_bias": "dt_bias", "f_a_proj": "decay.down", "f_b_proj": "decay.up", "b_proj": "beta", "g_a_proj": "gate.down",
    "g_b_proj": "gate.up", "o_norm": "norm",
}  # fmt: skip
_ATTENTION = {"kv_a_proj_with_mqa": "latent", "kv_a_layernorm": "latent_norm", "kv_b_proj": "key_value"}
_BOTH = {"q_proj": "query", "o_proj": "out"}


def _naming(channel: str) -> Naming:
    """The rules where the parts of the channel mixer are called so."""
    mixers = {**_DELTA, **_ATTENTION, **_BOTH}
    return Naming(
        [
            ("model.embed_tokens", "embedding"),
            (f"{_BLOCK}.self_attn.A_log", f"{_OURS}.mixer.A_log", Rearrange("1 1 h 1 -> h")),
            *((f"{_BLOCK}.self_attn.{theirs}", f"{_OURS}.mixer.{own}") for theirs, own in mixers.items()),
            *((f"{_BLOCK}.{channel}.{name}_proj", f"{_OURS}.channel.{name}") for name in ("gate", "up", "down")),
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
    if "sparse" in (config.get("mlp_layer_types") or ()):
        raise ValueError("mlp_layer_types has 'sparse': mixtures of experts are not here")
    if config.get("q_lora_rank") is not None:
        raise ValueError(f"q_lora_rank={config['q_lora_rank']!r}: queries are made of the tokens here")
    return config.get("rms_norm_eps")


def _attention_layers(config: Mapping[str, Any]) -> tuple[int, ...] | None:
    kinds = config.get("layer_types")
    if kinds:
        return tuple(i for i, kind in enumerate(kinds) if kind == "full_attention")
    counted = (config.get("linear_attn_config") or {}).get("full_attn_layers")
    return None if counted is None else tuple(i - 1 for i in counted)


DESCRIBED: dict[str, Any] = {
    "norm_epsilon": _epsilon,
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
    our_choice=tuple(VARIANTS),
    rules=RULES,
    described=DESCRIBED,
)

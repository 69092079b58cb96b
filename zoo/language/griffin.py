"""Griffin: Mixing Gated Linear Recurrences with Local Attention for Efficient Language Models (De et al., 2024,
arXiv:2402.19427), in the form of RecurrentGemma (2024, arXiv:2404.07839).

    x = s word;  N x [x = x + Mixer(norm(x));  x = x + GeGLU(norm(x))]

In each group of three blocks two mixers are RG-LRUs (:mod:`layers.state_space.rg_lru`) and the third is sliding-window
attention, with rotary positions on half of each head's features and one key and value head. Norms are
``x / rms(x) * (1 + scale)``, logits are capped, and s is the square root of the width, rounded to bfloat16. Sizes and
names are those of the released models; the size of ``recurrentgemma_nano`` is our choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp

from layers.mixer import MixerSpec, Place
from zoo.backbones.causal import Causal, CausalConfig, Mlp
from zoo.language.llama import refuse_other_forms, rotary_of
from zoo.naming import Naming, Rearrange, Tie
from zoo.registry import Release, register_family


@dataclasses.dataclass(frozen=True)
class GriffinConfig(CausalConfig):
    """Hyper-parameters of Griffin.

    Attributes:
      attention_every: size of a group of blocks, of which the last has attention; None for no attention (Hawk).
      num_kv_heads, window: as in :class:`layers.MultiHeadAttention`.
      rotary, rotary_fraction: base of the rotary embedding, and the fraction of each head's features that it rotates.
      channels, conv_size: as in :class:`layers.RGLRU`.
    """

    mlp: Mlp | None = "geglu_tanh"
    mlp_bias: bool = True
    norm: str = "zero_centered_rms"
    norm_epsilon: float = 1e-6
    embedding_scale: float | Literal["sqrt"] = "sqrt"
    logit_cap: float | None = 30.0
    attention_every: int | None = 3
    num_kv_heads: int | None = 1
    window: int = 2048
    rotary: float = 10000.0
    rotary_fraction: float = 0.5
    channels: int | None = None
    conv_size: int = 4


class Griffin(Causal):
    """Griffin; names as in :class:`Causal`."""

    config: GriffinConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        if c.attention_every is None or ((place.index or 0) + 1) % c.attention_every:
            return {"name": "rg_lru", "channels": c.channels, "conv_size": c.conv_size}
        turning = int(c.features // c.num_heads * c.rotary_fraction)
        return {
            "name": "attention",
            "num_kv_heads": c.num_kv_heads,
            "window": c.window,
            "rotary": {"base": c.rotary, "dimensions": turning},
            "use_bias": False,
            "out_bias": True,
        }


_GEMMA: dict[str, Any] = {"vocab_size": 256000}
VARIANTS: dict[str, dict[str, Any]] = {
    # The square root of 2560 in bfloat16.
    "recurrentgemma_2b": {
        **_GEMMA, "features": 2560, "depth": 26, "num_heads": 10, "hidden": 7680, "embedding_scale": 50.5
    },
    "recurrentgemma_9b": {**_GEMMA, "features": 4096, "depth": 38, "num_heads": 16, "hidden": 12288},
    "recurrentgemma_nano": {"features": 128, "depth": 3, "num_heads": 4, "hidden": 384, "window": 64},
}  # fmt: skip

# Counted in transformers' models of the released sizes; the tied head counts once.
PARAMETERS = {"recurrentgemma_2b": 2_682_862_080, "recurrentgemma_9b": 8_579_977_216}

RELEASES = {
    f"recurrentgemma_{size}": {"google": Release(f"hf://google/recurrentgemma-{size}", 0, license="gemma")}
    for size in ("2b", "9b")
}

_BLOCK, _OURS = "model.layers.{i}", "blocks.{i}"
_MODULES = {
    "temporal_block.linear_x": "mixer.input", "temporal_block.linear_y": "mixer.gate",
    "temporal_block.linear_out": "mixer.out_proj",
    "temporal_block.conv_1d": "mixer.conv",
    "temporal_block.q_proj": "mixer.query", "temporal_block.k_proj": "mixer.key",
    "temporal_block.v_proj": "mixer.value",
    "temporal_block.o_proj": "mixer.out",
    "mlp_block.gate_proj": "channel.gate", "mlp_block.up_proj": "channel.up", "mlp_block.down_proj": "channel.down",
    "temporal_pre_norm": "mixer_norm", "channel_pre_norm": "channel_norm",
}  # fmt: skip
_LRU = f"{_BLOCK}.temporal_block.rg_lru"


def _gate(theirs: str, ours: str) -> list[tuple[Any, ...]]:
    joined = Rearrange("h w -> (h w)", h="num_heads")
    return [
        (f"{_LRU}.{theirs}_weight", f"{_OURS}.mixer.{ours}.kernel"),
        (f"{_LRU}.{theirs}_bias", f"{_OURS}.mixer.{ours}.bias", joined),
    ]


RULES = {
    "transformers": Naming(
        [
            (("model.embed_tokens", "lm_head"), "embedding", Tie(written=False)),
            ("lm_head", "head"),
            (f"{_LRU}.recurrent_param", f"{_OURS}.mixer.rates"),
            *_gate("input_gate", "input_gate"),
            *_gate("recurrent_gate", "recurrence_gate"),
            *((f"{_BLOCK}.{theirs}", f"{_OURS}.{ours}") for theirs, ours in _MODULES.items()),
            ("model.final_norm", "norm"),
        ],
        prefix="model.",
    )
}


def _epsilon(config: Mapping[str, Any]) -> Any:
    refuse_other_forms(config, "hidden_activation", "gelu_pytorch_tanh")
    return config.get("rms_norm_eps")


def _scale(config: Mapping[str, Any]) -> float | None:
    width = config.get("hidden_size")
    return None if width is None else float(jnp.bfloat16(width**0.5))


def _attention_every(config: Mapping[str, Any]) -> int | None:
    """The period of the blocks with attention.

    Raises:
      ValueError: a pattern other than RG-LRUs followed by one attention.
    """
    kinds = list(config.get("block_types") or ())
    if kinds and kinds != ["recurrent"] * (len(kinds) - 1) + ["attention"]:
        raise ValueError(f"block_types={kinds!r}: make such a model with pattern={{...}}")
    return len(kinds) or None


def _fraction(config: Mapping[str, Any]) -> Any:
    given = config.get("rope_parameters") or {}
    return given.get("partial_rotary_factor", config.get("partial_rotary_factor"))


DESCRIBED: dict[str, Any] = {
    "norm_epsilon": _epsilon,
    "embedding_scale": _scale,
    "attention_every": _attention_every,
    "num_heads": lambda config: config.get("num_attention_heads"),
    "num_kv_heads": lambda config: config.get("num_key_value_heads"),
    "window": lambda config: config.get("attention_window_size"),
    "rotary": rotary_of,
    "rotary_fraction": _fraction,
    "logit_cap": lambda config: config.get("logits_soft_cap"),
    "tied": lambda config: config.get("tie_word_embeddings"),
}

register_family(
    "griffin",
    Griffin,
    GriffinConfig,
    VARIANTS,
    our_choice=("recurrentgemma_nano",),
    parameters=PARAMETERS,
    releases=RELEASES,
    rules=RULES,
    described=DESCRIBED,
)

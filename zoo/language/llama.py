"""Llama and similar decoders: LLaMA (Touvron et al., 2023, arXiv:2302.13971) and its successors.

    x = x + Attention(RMSNorm(x));  x = x + SwiGLU(RMSNorm(x))

with rotary positions and no biases: the baseline decoder (:mod:`zoo.language.transformer`) with the options in which
released models differ. Llama 3 (arXiv:2407.21783) divides the low frequencies of the rotary embedding; TinyLlama
(arXiv:2401.02385) and SmolLM2 (arXiv:2502.02737) are small models; Mistral (arXiv:2310.06825) uses sliding-window
attention in its first version, which is read from the configuration beside its weights; Qwen2.5 (arXiv:2412.15115) has
biases of queries, keys and values; Qwen3 (arXiv:2505.09388) normalizes the query and key heads. The size of
``llama_nano`` is our choice.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from layers.mixer import MixerSpec, Place
from layers.norm import NORMS
from zoo.language.transformer import Transformer, TransformerConfig
from zoo.naming import Naming, Tie
from zoo.registry import FrozenOptions, Release, one_of, register_family


@dataclasses.dataclass(frozen=True)
class LlamaConfig(TransformerConfig):
    """Hyper-parameters of Llama and similar decoders.

    Attributes:
      head_dim: features of a head; None is features / num_heads.
      qkv_bias: whether the query, key and value projections have biases.
      qk_norm: whether each query and key head is normalized, by the kind of norm that the blocks use.
    """

    head_dim: int | None = None
    qkv_bias: bool = False
    qk_norm: bool = False


class Llama(Transformer):
    """Llama or a similar decoder; names as in :class:`Causal`."""

    config: LlamaConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        norm = functools.partial(NORMS[c.norm], epsilon=c.norm_epsilon) if c.qk_norm else None
        return {
            **super().own_mixer(place),
            "head_dim": c.head_dim,
            "use_bias": c.qkv_bias,
            "out_bias": False,
            "qk_norm": norm,
        }


def _slowed(factor: float) -> Mapping[str, Any]:
    """Llama 3's rotary embedding: trained on 8192 tokens, with the low frequencies divided by ``factor``."""
    return FrozenOptions(
        {"base": 500000.0, "factor": factor, "original_length": 8192, "low_turns": 1.0, "high_turns": 4.0}
    )


_LLAMA3: dict[str, Any] = {"vocab_size": 128256, "num_kv_heads": 8}
_QWEN25: dict[str, Any] = {"vocab_size": 151936, "rotary": 1e6, "norm_epsilon": 1e-6, "qkv_bias": True}
_QWEN3: dict[str, Any] = {
    "vocab_size": 151936, "num_kv_heads": 8, "head_dim": 128, "rotary": 1e6, "norm_epsilon": 1e-6, "qk_norm": True
}  # fmt: skip
_SMOLLM2: dict[str, Any] = {"vocab_size": 49152, "rotary": 1e5}

VARIANTS: dict[str, dict[str, Any]] = {
    "llama_nano": {"features": 128, "depth": 4, "num_heads": 4, "num_kv_heads": 2},
    "llama2_7b": {"vocab_size": 32000, "features": 4096, "depth": 32, "num_heads": 32, "hidden": 11008, "tied": False},
    "llama3.1_8b": {**_LLAMA3, "features": 4096, "depth": 32, "num_heads": 32, "hidden": 14336, "rotary": _slowed(8.0),
        "tied": False},
    "llama3.2_1b": {**_LLAMA3, "features": 2048, "depth": 16, "num_heads": 32, "hidden": 8192, "rotary": _slowed(32.0)},
    "llama3.2_3b": {**_LLAMA3, "features": 3072, "depth": 28, "num_heads": 24, "hidden": 8192, "rotary": _slowed(32.0)},
    "tinyllama_1.1b": {
        "vocab_size": 32000, "features": 2048, "depth": 22, "num_heads": 32, "num_kv_heads": 4, "hidden": 5632,
        "tied": False
    },
    "mistral_7b": {
        "vocab_size": 32768, "features": 4096, "depth": 32, "num_heads": 32, "num_kv_heads": 8, "hidden": 14336,
        "rotary": 1e6, "tied": False
    },
    "qwen2.5_0.5b": {**_QWEN25, "features": 896, "depth": 24, "num_heads": 14, "num_kv_heads": 2, "hidden": 4864},
    "qwen2.5_1.5b": {**_QWEN25, "features": 1536, "depth": 28, "num_heads": 12, "num_kv_heads": 2, "hidden": 8960},
    "qwen2.5_7b": {
        **_QWEN25, "vocab_size": 152064, "features": 3584, "depth": 28, "num_heads": 28, "num_kv_heads": 4,
        "hidden": 18944, "tied": False
    },
    "qwen3_0.6b": {**_QWEN3, "features": 1024, "depth": 28, "num_heads": 16, "hidden": 3072},
    "qwen3_1.7b": {**_QWEN3, "features": 2048, "depth": 28, "num_heads": 16, "hidden": 6144},
    "qwen3_4b": {**_QWEN3, "features": 2560, "depth": 36, "num_heads": 32, "hidden": 9728},
    "qwen3_8b": {**_QWEN3, "features": 4096, "depth": 36, "num_heads": 32, "hidden": 12288, "tied": False},
    "smollm2_135m": {**_SMOLLM2, "features": 576, "depth": 30, "num_heads": 9, "num_kv_heads": 3, "hidden": 1536},
    "smollm2_360m": {**_SMOLLM2, "features": 960, "depth": 32, "num_heads": 15, "num_kv_heads": 5, "hidden": 2560},
    "smollm2_1.7b": {**_SMOLLM2, "rotary": 130000.0, "features": 2048, "depth": 24, "num_heads": 32, "hidden": 8192},
}  # fmt: skip


def released_names(norms: Mapping[str, str]) -> Naming:
    """The parameter names of the transformers library; ``norms`` maps its names of a block's norms to ours."""
    theirs, ours = "model.layers.{i}", "blocks.{i}"
    mixer = {
        "q_proj": "query",
        "k_proj": "key",
        "v_proj": "value",
        "o_proj": "out",
        "q_norm": "query_norm",
        "k_norm": "key_norm",
    }
    return Naming(
        [
            (("model.embed_tokens", "lm_head"), "embedding", Tie(written=False)),
            ("lm_head", "head"),
            *((f"{theirs}.self_attn.{name}", f"{ours}.mixer.{own}") for name, own in mixer.items()),
            *((f"{theirs}.mlp.{name}_proj", f"{ours}.channel.{name}") for name in ("gate", "up", "down")),
            *((f"{theirs}.{name}", f"{ours}.{own}") for name, own in norms.items()),
            ("model.norm", "norm"),
        ],
        prefix="model.",
        # Old files also hold the rotary frequencies.
        ignore=(f"{theirs}.self_attn.rotary_emb.inv_freq",),
    )


RULES = {"transformers": released_names({"input_layernorm": "mixer_norm", "post_attention_layernorm": "channel_norm"})}


def rotary_of(config: Mapping[str, Any], layers: str | None = None) -> Any:
    """The rotary embedding in a configuration of transformers, of version 5 or earlier; None where there is no entry
    for it.

    Args:
      layers: the kind of layer, where their rotary embeddings differ: "full_attention" or "sliding_attention".

    Raises:
      ValueError: a frequency scaling that is not supported.
    """
    given = config.get("rope_parameters") or {}
    given = given.get(layers, given) or {}
    given = given or {name: config[name] for name in ("rope_theta",) if config.get(name)} | dict(
        config.get("rope_scaling") or {}
    )
    if not given:
        return None
    kind = given.get("rope_type") or given.get("type") or "default"
    names = one_of(
        {"rope_type": kind}, "rope_type", {"default": {}, "linear": {"factor": "factor"}, "llama3": _LLAMA3_ROTARY}
    )
    options = {"base": given.get("rope_theta", 10000.0), **{own: given[name] for own, name in names.items()}}
    return FrozenOptions(options) if names else options["base"]


_LLAMA3_ROTARY = {
    "factor": "factor", "original_length": "original_max_position_embeddings", "low_turns": "low_freq_factor",
    "high_turns": "high_freq_factor"
}  # fmt: skip


def refuse_other_forms(config: Mapping[str, Any], activation: str, spelled: str) -> None:
    """Refuses models with biases other than ``qkv_bias``, or with another activation.

    Raises:
      ValueError: the model has either of them.
    """
    for name in ("attention_bias", "mlp_bias"):
        one_of(config, name, {False: False})
    one_of(config, activation, {spelled: spelled})


def _epsilon(config: Mapping[str, Any]) -> Any:
    refuse_other_forms(config, "hidden_act", "silu")
    return config.get("rms_norm_eps")


def _window(config: Mapping[str, Any]) -> Any:
    """The window of all blocks; Qwen's configurations state one that is not used.

    Raises:
      ValueError: only some blocks have a window.
    """
    window, first = config.get("sliding_window"), config.get("max_window_layers", 0)
    if (
        window is None
        or not config.get("use_sliding_window", True)
        or first >= config.get("num_hidden_layers", first + 1)
    ):
        return None
    if first:
        raise ValueError(f"max_window_layers={first!r}: here all blocks have the window, or none")
    return window


def _heads(config: Mapping[str, Any]) -> Any:
    return config.get("num_key_value_heads") or config.get("num_attention_heads")


# Whether attention has norms and biases follows from the model type alone.
_BIASED = {"llama": False, "mistral": False, "qwen2": True, "qwen3": False}
_NORMED = {"llama": False, "mistral": False, "qwen2": False, "qwen3": True}

DESCRIBED: dict[str, Any] = {
    "norm_epsilon": _epsilon,
    "num_heads": lambda config: config.get("num_attention_heads"),
    "num_kv_heads": _heads,
    "rotary": rotary_of,
    "window": _window,
    "qkv_bias": lambda config: one_of(config, "model_type", _BIASED),
    "qk_norm": lambda config: one_of(config, "model_type", _NORMED),
    "tied": lambda config: config.get("tie_word_embeddings"),
}

# Meta's files require accepting a license first; the others are open.
RELEASES: dict[str, dict[str, Release]] = {
    "llama2_7b": {"meta": Release("hf://meta-llama/Llama-2-7b-hf", 0, license="llama2")},
    "llama3.1_8b": {"meta": Release("hf://meta-llama/Llama-3.1-8B", 0, license="llama3.1")},
    "llama3.2_1b": {"meta": Release("hf://meta-llama/Llama-3.2-1B", 0, license="llama3.2")},
    "llama3.2_3b": {"meta": Release("hf://meta-llama/Llama-3.2-3B", 0, license="llama3.2")},
    "tinyllama_1.1b": {"chat": Release("hf://TinyLlama/TinyLlama-1.1B-Chat-v1.0", 0)},
    "mistral_7b": {"v3": Release("hf://mistralai/Mistral-7B-v0.3", 0)},
    **{f"qwen2.5_{size}": {"base": Release(f"hf://Qwen/Qwen2.5-{size.upper()}", 0)} for size in ("0.5b", "1.5b", "7b")},
    **{
        f"qwen3_{size}": {"base": Release(f"hf://Qwen/Qwen3-{size.upper()}-Base", 0)}
        for size in ("0.6b", "1.7b", "4b", "8b")
    },
    **{
        f"smollm2_{size}": {"base": Release(f"hf://HuggingFaceTB/SmolLM2-{size.upper()}", 0)}
        for size in ("135m", "360m", "1.7b")
    },
}

# Counted in transformers' models of the released sizes; a tied head counts once.
PARAMETERS = {
    "llama2_7b": 6_738_415_616,
    "llama3.1_8b": 8_030_261_248,
    "llama3.2_1b": 1_235_814_400,
    "llama3.2_3b": 3_212_749_824,
    "tinyllama_1.1b": 1_100_048_384,
    "mistral_7b": 7_248_023_552,
    "qwen2.5_0.5b": 494_032_768,
    "qwen2.5_1.5b": 1_543_714_304,
    "qwen2.5_7b": 7_615_616_512,
    "qwen3_0.6b": 596_049_920,
    "qwen3_1.7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1.7b": 1_711_376_384,
}

register_family(
    "llama",
    Llama,
    LlamaConfig,
    VARIANTS,
    our_choice=("llama_nano",),
    parameters=PARAMETERS,
    rules=RULES,
    releases=RELEASES,
    described=DESCRIBED,
)

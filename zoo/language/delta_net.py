"""Language models on the delta rule: DeltaNet, Gated DeltaNet, DeltaProduct, Comba, KDA and MoM
(:mod:`layers.delta.delta_net`, :mod:`layers.delta.kimi_delta_attention` and :mod:`layers.delta.mixture_of_memories`
have the papers).

    x = x + DeltaRule(RMSNorm(x));  x = x + SwiGLU(RMSNorm(x))

Sizes of DeltaNet and Gated DeltaNet are those of flash-linear-attention's training configurations (1.3b is its "1B"),
and those of Comba, KDA and MoM are its defaults; mom_340m is the paper's, which counts only the parameters that are
active for a token, of 512,351,424 in all. (:mod:`zoo.language.kimi_linear` has KDA in three blocks of four.) The sizes
of DeltaProduct, each within 3 % of its name, and the nano sizes are our choice. Names in released files are
flash-linear-attention's.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from layers.mixer import MixerSpec, Place
from zoo.backbones.causal import Causal, CausalConfig
from zoo.flash_linear_attention import entry, fla_described, fla_names, unless
from zoo.registry import register_family


@dataclasses.dataclass(frozen=True)
class DeltaNetConfig(CausalConfig):
    """Hyper-parameters of a language model on the delta rule.

    Attributes:
      rule: the name of the mixer; its own defaults apply where the options below are None.
      num_value_heads, head_dim, value_expansion, steps, use_decay, use_gate, negative, lower_bound, normalize_read,
        memories, chosen, shared_memory, conv_size: as in :class:`layers.DeltaNet`, :class:`layers.Comba`,
        :class:`layers.KimiDeltaAttention` or :class:`layers.MixtureOfMemories`, for the mixers that have the option.
    """

    rule: str = "delta_net"
    num_value_heads: int | None = None
    head_dim: int | None = None
    value_expansion: float | None = None
    steps: int | None = None
    use_decay: bool | None = None
    use_gate: bool | None = None
    negative: bool | None = None
    lower_bound: float | None = None
    normalize_read: bool | None = None
    memories: int | None = None
    chosen: int | None = None
    shared_memory: bool | None = None
    conv_size: int | None = 4
    depth: int = 24
    norm_epsilon: float = 1e-6
    tied: bool = False


_OPTIONS = (
    "num_value_heads", "head_dim", "value_expansion", "steps", "use_decay", "use_gate", "negative", "lower_bound",
    "normalize_read", "memories", "chosen", "shared_memory",
)  # fmt: skip


class DeltaNetLM(Causal):
    """A language model on the delta rule; names as in :class:`Causal`."""

    config: DeltaNetConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        given = {name: getattr(c, name) for name in _OPTIONS if getattr(c, name) is not None}
        return {"name": c.rule, "conv_size": c.conv_size, "norm_epsilon": c.norm_epsilon, **given}


_340M = {"vocab_size": 32000, "features": 1024, "hidden": 2816}
_1B = {"vocab_size": 32000, "features": 2048, "hidden": 5632}
_NANO = {"features": 128, "depth": 4, "num_heads": 4, "tied": True}
_GATED = {"depth": 21, "num_heads": 6, "head_dim": 256, "rule": "gated_delta_net"}
_COMBA = {"rule": "comba", "normalize_read": True}
_MOM: dict[str, Any] = {"rule": "mixture_of_memories", "num_heads": 4, "tied": True}
_PRODUCT = {"value_expansion": 1.0, "rule": "delta_product"}

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "delta_net": {
        "delta_net_340m": {**_340M, "num_heads": 8},
        "delta_net_1.3b": {**_1B, "num_heads": 16},
        "delta_net_nano": _NANO,
    },
    "gated_delta_net": {
        "gated_delta_net_340m": {**_340M, **_GATED},
        "gated_delta_net_1.3b": {**_1B, **_GATED},
        "gated_delta_net_nano": {**_NANO, "value_expansion": 1.0, "rule": "gated_delta_net"},
    },
    "delta_product": {
        "delta_product_340m": {**_340M, **_PRODUCT, "depth": 17, "num_heads": 8},
        "delta_product_1.3b": {**_1B, **_PRODUCT, "depth": 18, "num_heads": 16},
        "delta_product_nano": {**_NANO, **_PRODUCT},
    },
    "comba": {
        "comba_1.3b": {**_1B, "depth": 21, "num_heads": 6, "head_dim": 256, **_COMBA},
        "comba_nano": {**_NANO, "depth": 6, "value_expansion": 1.0, **_COMBA},
    },
    "kda": {
        "kda_1.3b": {**_1B, "num_heads": 16, "rule": "kimi_delta_attention"},
        "kda_nano": {**_NANO, "depth": 6, "rule": "kimi_delta_attention"},
    },
    "mom": {
        "mom_340m": {**_340M, "hidden": 2048, "head_dim": 256, **_MOM},
        "mom_1.3b": {**_1B, "head_dim": 256, **_MOM},
        "mom_nano": {**_NANO, **_MOM},
    },
}

_PARTS = {"k": "key", "v": "value", "b": "beta", "a": "decay"}
_MIXER = {
    "q_proj": "query", "k_proj": "key", "v_proj": "value", "b_proj": "beta", "a_proj": "decay", "g_proj": "gate",
    "o_proj": "out", "o_norm": "norm",
    "q_conv1d": "query_conv", "k_conv1d": "key_conv", "v_conv1d": "value_conv", "A_log": "A_log", "dt_bias": "dt_bias",
    "f_proj.0": "decay.down", "f_proj.1": "decay.up", "g_proj.0": "gate.down", "g_proj.1": "gate.up",
    "decay": "feedback", "D": "correction",
    "gate": "router", **{f"shared_{letter}": f"shared_{name}" for letter, name in _PARTS.items()},
    **{f"{letter}_proj.{{m}}": f"{name}.{{m}}" for letter, name in _PARTS.items()},
}  # fmt: skip

# Counted in flash-linear-attention's models of these configurations.
PARAMETERS = {
    "comba_1.3b": 1_387_348_984,
    "kda_1.3b": 1_390_941_568,
    "mom_340m": 512_351_424,
    "mom_1.3b": 1_552_883_904,
}

RULES = {"fla": fla_names(_MIXER)}

_ONLY = {"qk_activation": ("silu",), "qk_norm": ("l2",), "use_beta": (True,), "use_output_norm": (True,)}
DESCRIBED = {
    "delta_net": fla_described(_ONLY),
    "gated_delta_net": fla_described(_ONLY, negative=unless("allow_neg_eigval", False)),
    "delta_product": fla_described(
        _ONLY, negative=unless("allow_neg_eigval", True), steps=unless("num_householder", 2)
    ),
    "comba": fla_described(
        {
            "use_output_gate": (True,),
            "use_output_correction": (True,),
            "use_inner_decay": (True,),
            "num_v_heads": (None,),
        }
    ),
    "mom": fla_described(
        {"use_output_gate": (True,), "use_short_conv": (True,), "single_kv_proj": (False,)},
        memories=entry("num_memories"),
        chosen=entry("topk"),
        shared_memory=entry("shared_mem"),
        head_dim=entry("head_dim"),
        value_expansion=entry("expand_v"),
    ),
    "kda": fla_described(negative=unless("allow_neg_eigval", False), lower_bound=entry("lower_bound")),
}

_PAPER: dict[str, tuple[int, ...]] = {"delta_net": (179,), "delta_product": (148,), "mom": (193,)}
for _family, _variants in VARIANTS.items():
    _ours = tuple(name for name in _variants if _family == "delta_product" or name.endswith("_nano"))
    register_family(
        "delta_net",
        DeltaNetLM,
        DeltaNetConfig,
        _variants,
        our_choice=_ours,
        parameters=PARAMETERS,
        rules=RULES,
        described=DESCRIBED[_family],
        paper=_PAPER.get(_family, ()),
    )

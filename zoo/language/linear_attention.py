"""Language models with linear attention and decay: RetNet (Sun et al., 2023, arXiv:2307.08621), GLA (Yang et al., 2023,
arXiv:2312.06635), HGRN and HGRN2 (Qin et al., 2023, arXiv:2311.04823; 2024, arXiv:2404.07904), GSA (Zhang et al., 2024,
arXiv:2409.07146), TransNormerLLM (Qin et al., 2023, arXiv:2307.14995) and xLSTM 7B (Beck et al., 2025,
arXiv:2503.13427); with softmax attention, the Forgetting Transformer (Lin et al., 2025, arXiv:2503.02130); and causal
relation networks (Cui et al., 2024, arXiv:2406.16168), whose blocks have no MLP.

    x = x + Mixer(RMSNorm(x));  x = x + SwiGLU(RMSNorm(x))

Sizes and names are those of flash-linear-attention's models; for xLSTM 7B, whose logits are capped, those of
transformers; and for TransNormerLLM and causal relation networks those of their authors' code. The nano sizes are our
choice. In HGRN and HGRN2 the forget gate of block i of L has a learned lower bound for each key, which rises with
depth: b_i = p_1 + ... + p_i, with p the softmax of ``lower_bounds`` (L, keys) over the blocks 0 to L - 1, and b_0 = 0.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from layers.initializers import zeros
from layers.mixer import MixerSpec, Place
from zoo.backbones.causal import Causal, CausalConfig
from zoo.backbones.model import mixers
from zoo.flash_linear_attention import Reader, entry, fla_described, fla_names
from zoo.naming import Naming, Rearrange, Split, Tie
from zoo.registry import Release, one_of, register_family


@dataclasses.dataclass(frozen=True)
class LinearAttentionConfig(CausalConfig):
    """Hyper-parameters of a language model with linear attention.

    Attributes:
      kind: the name of the mixer; its own defaults apply where the options below are None.
      key_expansion, value_expansion, head_dim, decay_divisor, num_slots, feature_map, conv_size: as in
        :class:`layers.Retention`, :class:`layers.GatedLinearAttention`, :class:`layers.HGRN`, :class:`layers.HGRN2`,
        :class:`layers.GatedSlotAttention` or :class:`layers.MLSTM`, for the mixers that have the option.
      cap: soft cap of the gates of :class:`layers.MLSTM`.
      form: as in :class:`layers.CausalRelation`.
      turning: whether the first block's :class:`layers.LightningAttention` rotates queries and keys with position, by
        learned angles.
      gated, num_kv_heads: as in :class:`layers.ForgettingAttention`.
    """

    kind: str = "gated_linear_attention"
    key_expansion: float | None = None
    value_expansion: float | None = None
    head_dim: int | None = None
    decay_divisor: float | None = None
    num_slots: int | None = None
    feature_map: str | None = None
    conv_size: int | None = None
    cap: float | None = None
    form: str | None = None
    turning: bool = False
    gated: bool | None = None
    num_kv_heads: int | None = None
    depth: int = 24
    norm_epsilon: float = 1e-6
    tied: bool = False


_OPTIONS = (
    "key_expansion",
    "value_expansion",
    "head_dim",
    "decay_divisor",
    "num_slots",
    "feature_map",
    "conv_size",
    "cap",
    "form",
    "gated",
    "num_kv_heads",
)
# Mixers whose norm uses the model's epsilon. In flash-linear-attention the norms of HGRN2 and GSA always use 1e-5.
_MODELS_EPSILON = ("gated_linear_attention", "retention", "hgrn", "mlstm", "lightning_attention")
# Mixers whose forget gates have a lower bound that the model holds.
_BOUNDED = ("hgrn", "hgrn2")


class LinearAttentionLM(Causal):
    """A language model with linear attention; names as in :class:`Causal`, and for HGRN and HGRN2 ``lower_bounds``."""

    config: LinearAttentionConfig
    stem = (*Causal.stem, "lower_bounds")
    undecayed = (*Causal.undecayed, "lower_bounds")

    def __init__(self, config: LinearAttentionConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        keys = config.num_heads * (config.head_dim or config.features // config.num_heads)
        bounded = any(mixer.shares for mixer in mixers(self.blocks))
        self.lower_bounds = (
            nnx.Param(zeros(rngs.params(), (config.depth, keys), config.param_dtype)) if bounded else None
        )

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        given = {name: getattr(c, name) for name in _OPTIONS if getattr(c, name) is not None}
        if c.kind in _MODELS_EPSILON:
            given["norm_epsilon"] = c.norm_epsilon
        if c.kind in _BOUNDED:
            given["lower_bound"] = None
        if c.turning:
            given["turning"] = not place.index
        return {"name": c.kind, **given}

    def per_block(self) -> jax.Array | None:
        """The lower bounds of the forget gates of HGRN (depth, channels) or HGRN2 (depth, keys of all heads), float32;
        None for other mixers.
        """
        if self.lower_bounds is None:
            return None
        shares = jax.nn.softmax(self.lower_bounds[...].astype(jnp.float32), axis=0)
        return jnp.cumsum(shares, axis=0) - shares[0]


_340M: dict[str, Any] = {"vocab_size": 32000, "features": 1024, "hidden": 2816, "tied": True}
_1B: dict[str, Any] = {"vocab_size": 32000, "features": 2048, "hidden": 5632}
_TRANSNORMER: dict[str, Any] = {"mlp": "glu", "norm": "simple_rms", "embedding_scale": "sqrt", "turning": True}
_RELATION: dict[str, Any] = {
    "mlp": None, "norm": "plain_layer", "norm_epsilon": 1e-12, "position": "learned", "num_heads": 1, "tied": False
}  # fmt: skip
_NANO: dict[str, Any] = {"features": 128, "depth": 4, "num_heads": 4, "tied": True}

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "gla": {
        "gla_340m": {**_340M, "num_heads": 4},
        "gla_1.3b": {**_1B, "num_heads": 4},
        "gla_nano": _NANO,
    },
    "retnet": {
        "retnet_1.3b": {**_1B, "hidden": 2816, "num_heads": 8},
        "retnet_nano": _NANO,
    },
    "hgrn": {
        "hgrn_1.3b": {**_1B, "num_heads": 16},
        "hgrn_2.7b": {"vocab_size": 32000, "features": 2560, "hidden": 6912, "depth": 32, "num_heads": 20},
        "hgrn_nano": _NANO,
    },
    # Fewer blocks in the nano size, because they are the costliest.
    "hgrn2": {
        "hgrn2_1.3b": {**_1B, "num_heads": 16},
        "hgrn2_nano": {**_NANO, "depth": 3},
    },
    "gsa": {
        "gsa_1.3b": {**_1B, "num_heads": 4},
        "gsa_nano": {**_NANO, "num_slots": 16},
    },
    "forgetting_transformer": {
        "forgetting_transformer_1.3b": {**_1B, "num_heads": 32},
        "forgetting_transformer_nano": _NANO,
    },
    "causal_relation": {
        # The paper's models for copying strings of 16 symbols.
        "causalrn_copying": {"vocab_size": 29, "features": 192, "depth": 12, "max_length": 34, **_RELATION},
        "causalrn_linear_copying": {
            "vocab_size": 29,
            "features": 192,
            "depth": 12,
            "max_length": 34,
            **_RELATION,
            "form": "linear",
        },
        "causalrn_nano": {**_NANO, **_RELATION},
    },
    "transnormer": {
        "transnormer_385m": {**_340M, "vocab_size": 64000, "num_heads": 8, **_TRANSNORMER},
        "transnormer_nano": {**_NANO, **_TRANSNORMER},
    },
    "xlstm": {
        "xlstm_7b": {
            "vocab_size": 50304,
            "features": 4096,
            "hidden": 10944,
            "depth": 32,
            "num_heads": 8,
            "logit_cap": 30.0,
        },
        "xlstm_nano": {**_NANO, "logit_cap": 30.0},
    },
}
KINDS = {
    "gla": "gated_linear_attention",
    "retnet": "retention",
    "hgrn": "hgrn",
    "hgrn2": "hgrn2",
    "gsa": "gated_slot_attention",
    "transnormer": "lightning_attention",
    "causal_relation": "causal_relation",
    "xlstm": "mlstm",
    "forgetting_transformer": "forgetting_attention",
}

# Counted in flash-linear-attention's models of these configurations, in the code of TransNormerLLM and causal relation
# networks, and in transformers' xLSTM.
PARAMETERS = {
    "gla_340m": 341_707_776,
    "gla_1.3b": 1_365_514_240,
    "retnet_1.3b": 1_351_727_104,
    "hgrn_1.3b": 1_364_396_032,
    "hgrn_2.7b": 2_701_724_160,
    "hgrn2_1.3b": 1_364_396_032,
    "gsa_1.3b": 1_376_929_792,
    "forgetting_transformer_1.3b": 1_365_871_360,
    "causalrn_copying": 1_349_376,
    "causalrn_linear_copying": 1_349_376,
    "transnormer_385m": 398_984_192,
    "xlstm_7b": 6_865_424_896,
}

RELEASES = {"xlstm_7b": {"nx_ai": Release("hf://NX-AI/xLSTM-7b", 0, license="other")}}

_PROJECTIONS = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "out"}
_CONVOLUTIONS = {"q_conv1d": "query_conv", "k_conv1d": "key_conv", "v_conv1d": "value_conv"}
_GATED = {**_PROJECTIONS, "g_proj": "gate"}
_GLA = {**_GATED, "gk_proj.0": "decay.down", "gk_proj.1": "decay.up", **_CONVOLUTIONS}
# Their name of the norm depends on whether it is fused with the gate.
_BOUNDS = ("model.lower_bounds", "lower_bounds")
_FUSED, _ALONE = {"g_norm_swish_gate": "norm"}, {"g_norm": "norm"}

_XLSTM, _BLOCK = "backbone.blocks.{i}", "blocks.{i}"
_MLSTM = {
    "q": "query", "k": "key", "v": "value", "ogate_preact": "gate", "igate_preact": "input_gate",
    "fgate_preact": "forget_gate",
    "multihead_norm": "norm", "out_proj": "out",
}  # fmt: skip
_XLSTM_RULES = Naming(
    [
        ("backbone.embeddings", "embedding"),
        (f"{_XLSTM}.norm_mlstm", f"{_BLOCK}.mixer_norm"),
        *((f"{_XLSTM}.mlstm_layer.{theirs}", f"{_BLOCK}.mixer.{ours}") for theirs, ours in _MLSTM.items()),
        (f"{_XLSTM}.norm_ffn", f"{_BLOCK}.channel_norm"),
        (f"{_XLSTM}.ffn.proj_up_gate", f"{_BLOCK}.channel.gate"),
        (f"{_XLSTM}.ffn.proj_up", f"{_BLOCK}.channel.up"),
        (f"{_XLSTM}.ffn.proj_down", f"{_BLOCK}.channel.down"),
        ("backbone.out_norm", "norm"),
        ("lm_head", "head"),
    ],
    prefix="backbone.",
)

_TNL = "model.layers.{i}"
_TNL_RULES = Naming(
    [
        (("model.embed_tokens", "lm_head"), "embedding", Tie()),
        ("lm_head", "head"),
        (
            f"{_TNL}.token_mixer.qkvu_proj",
            tuple(f"{_BLOCK}.mixer.{name}" for name in ("query", "key", "value", "gate")),
            Split(),
        ),
        (f"{_TNL}.token_mixer.out_proj", f"{_BLOCK}.mixer.out"),
        (f"{_TNL}.token_mixer.lrpe.theta", f"{_BLOCK}.mixer.angles", Rearrange("h 1 d -> (h d)", h="num_heads")),
        *(
            (f"{_TNL}.channel_mixer.{theirs}", f"{_BLOCK}.channel.{ours}")
            for theirs, ours in {"l1": "gate", "l2": "up", "l3": "down"}.items()
        ),
    ],
    prefix="model.",
)

_RELATION_RULES = Naming(
    [
        ("pre_block.wte", "embedding"),
        ("pre_block.wpe.weight", "position"),
        *(
            (f"block_all.{{i}}.fc_{number}", f"{_BLOCK}.mixer.{name}")
            for number, name in enumerate(("query", "key", "out"), 1)
        ),
        ("post_block.fc_cls", "head"),
    ],
    buffers={"pre_block.pos": lambda config, where: np.arange(config.max_length)[None]},
)

RULES = {
    "causal_relation": {"authors": _RELATION_RULES},
    "transnormer": {"authors": _TNL_RULES},
    "xlstm": {"transformers": _XLSTM_RULES},
    "forgetting_transformer": {"fla": fla_names({**_GATED, "f_proj": "forget"})},
    "gla": {"fla": fla_names(_GLA | _FUSED), "fla_unfused": fla_names(_GLA | _ALONE)},
    "retnet": {"fla": fla_names(_GATED | _FUSED), "fla_unfused": fla_names(_GATED | _ALONE)},
    "hgrn": {
        "fla": fla_names(
            {"i_proj": "input", "f_proj": "forget", "g_proj": "gate", "o_proj": "out", **_ALONE}
            | {"i_conv1d": "input_conv", "f_conv1d": "forget_conv"},
            _BOUNDS,
        )
    },
    "hgrn2": {
        "fla": fla_names({"q_proj": "query", "f_proj": "forget", "i_proj": "value", "o_proj": "out", **_ALONE}, _BOUNDS)
    },
    "gsa": {"fla": fla_names({**_PROJECTIONS, "f_proj": "forget", **_CONVOLUTIONS, **_ALONE})},
}


def _heads(config: Any) -> int | None:
    """The number of heads.

    Raises:
      ValueError: heads share keys and values.
    """
    heads = config.get("num_heads")
    if config.get("num_kv_heads") not in (None, heads):
        raise ValueError(f"num_kv_heads={config['num_kv_heads']!r}: heads that share keys and values are not supported")
    return heads


def _convolution(config: Any) -> int | None:
    return config.get("conv_size") if config.get("use_short_conv") else None


_EXPANSIONS: dict[str, Reader] = {
    "num_heads": _heads,
    "key_expansion": entry("expand_k"),
    "value_expansion": entry("expand_v"),
}
_NO_CONVOLUTION = {"use_short_conv": (False,)}
_GATE = {"use_output_gate": (True,), "feature_map": (None,)}
DESCRIBED = {
    "gla": fla_described(
        {**_GATE, "use_gk": (True,), "use_gv": (False,), "clamp_min": (None,)}, conv_size=_convolution, **_EXPANSIONS
    ),
    "retnet": fla_described({**_GATE, **_NO_CONVOLUTION}, **_EXPANSIONS),
    "hgrn": fla_described({"expand_ratio": (1,), "use_lower_bound": (True,)}, conv_size=_convolution),
    "hgrn2": fla_described({**_NO_CONVOLUTION, "use_lower_bound": (True,)}, head_dim=entry("expand_ratio")),
    "gsa": fla_described(
        {"use_norm": (True,), "elementwise_affine": (True,)},
        conv_size=_convolution,
        num_slots=entry("num_slots"),
        decay_divisor=entry("gate_logit_normalizer"),
        feature_map=lambda config: one_of(config, "feature_map", {"swish": "silu", "relu": "relu"}),
        **_EXPANSIONS,
    ),
}


def _xlstm_epsilon(config: Any) -> float | None:
    for key, only in {"use_bias": False, "weight_mode": "single", "add_out_norm": True}.items():
        one_of(config, key, {only: only})
    return config.get("norm_eps")


DESCRIBED["forgetting_transformer"] = fla_described(
    {"qkv_bias": (False,), "qk_norm": (False,), "window_size": (None,), "attnres_block_size": (None,)},
    num_kv_heads=entry("num_kv_heads"),
    gated=entry("use_output_gate"),
)


def _tnl_heads(config: Any) -> int | None:
    only = {"norm_type": "simplermsnorm", "linear_act_fun": "silu", "no_scale_embedding": False, "bias": False}
    for key, value in only.items():
        one_of(config, key, {value: value})
    return config.get("decoder_attention_heads")


def _turning(config: Any) -> bool | None:
    """Whether the first block rotates queries and keys by position.

    Raises:
      ValueError: another block does, too.
    """
    which = config.get("linear_use_lrpe_list") or []
    if any(which[1:]):
        raise ValueError(f"linear_use_lrpe_list={which!r}: here only the first block may rotate queries and keys")
    return bool(which[0]) if which else None


DESCRIBED["transnormer"] = {"num_heads": _tnl_heads, "turning": _turning, "tied": entry("tie_word_embeddings")}
DESCRIBED["xlstm"] = {
    "norm_epsilon": _xlstm_epsilon,
    "num_heads": entry("num_heads"),
    "key_expansion": entry("qk_dim_factor"),
    "value_expansion": entry("v_dim_factor"),
    "cap": entry("gate_soft_cap"),
    "logit_cap": entry("output_logit_soft_cap"),
    "tied": entry("tie_word_embeddings"),
}

_PAPER = {"gsa": (197,), "hgrn": (185,), "hgrn2": (185,), "transnormer": (71,), "causal_relation": (182,)}
for _family, _variants in VARIANTS.items():
    register_family(
        "linear_attention",
        LinearAttentionLM,
        LinearAttentionConfig,
        {name: {"kind": KINDS[_family], **options} for name, options in _variants.items()},
        our_choice=tuple(name for name in _variants if name.endswith("_nano")),
        parameters=PARAMETERS,
        releases=RELEASES,
        rules=RULES[_family],
        described=DESCRIBED.get(_family, {}),
        paper=_PAPER.get(_family, ()),
    )

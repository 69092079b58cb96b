"""RWKV-6 "Finch": Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence (Peng et al., 2024,
arXiv:2404.05892).

    x = norm(word);  N x [x = x + TimeMix(norm(x));  x = x + W_v relu(W_k x_k)^2 * sigmoid(W_r x_r)]

(:mod:`layers.linear_attention.rwkv6`, :class:`layers.ShiftedMLP`.) The sizes are those of the models released as RWKV-6
World; the size of ``rwkv6_nano`` is our choice. The authors' names and those of flash-linear-attention are read. Models
of the latter have keys of half the width unless they were converted, and by default another epsilon in the heads' norm.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import nnx

from layers.mixer import MixerSpec, Place
from layers.token_shift import ShiftedMLP
from zoo.backbones.causal import Causal, CausalConfig
from zoo.flash_linear_attention import entry, fla_described, fla_names
from zoo.naming import Naming, Rearrange, Split, Unstack
from zoo.registry import register_family


@dataclasses.dataclass(frozen=True)
class RWKV6Config(CausalConfig):
    """Hyper-parameters of RWKV-6.

    Attributes:
      hidden: width of the channel mixer; None is 3.5 features, rounded down to a multiple of 32.
      heads_epsilon: epsilon of the norm of each head's output.
      key_expansion, value_expansion, shift_rank, decay_rank, zero_init: as in :class:`layers.RWKV6`.
    """

    mlp: None = None
    norm: str = "layer"
    embedding_norm: bool = True
    tied: bool = False
    heads_epsilon: float = 64e-5
    key_expansion: float = 1.0
    value_expansion: float = 1.0
    shift_rank: int | None = None
    decay_rank: int | None = None
    zero_init: bool = True


class RWKV6LM(Causal):
    """RWKV-6; names as in :class:`Causal`."""

    config: RWKV6Config

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        options = ("key_expansion", "value_expansion", "shift_rank", "decay_rank", "zero_init")
        return {"name": "rwkv6", "norm_epsilon": c.heads_epsilon, **{name: getattr(c, name) for name in options}}

    def make_channel(self, place: Place, *, rngs: nnx.Rngs) -> nnx.Module:
        c = self.config
        where: dict[str, Any] = {"index": place.index or 0, "depth": place.depth or 1}
        hidden = c.hidden or max(int(c.features * 3.5) // 32, 1) * 32
        return ShiftedMLP(c.features, hidden, **where, gated=True, zero_init=c.zero_init, **place.dtypes, rngs=rngs)


def _world(features: int, depth: int) -> dict[str, Any]:
    return {"vocab_size": 65536, "features": features, "depth": depth, "num_heads": features // 64}


VARIANTS: dict[str, dict[str, Any]] = {
    "rwkv6_1.6b": _world(2048, 24),
    "rwkv6_3b": _world(2560, 32),
    "rwkv6_7b": _world(4096, 32),
    "rwkv6_14b": _world(4096, 61),
    "rwkv6_nano": {"features": 128, "depth": 4, "num_heads": 4},
}

# Counted in the authors' code at these sizes.
PARAMETERS = {
    "rwkv6_1.6b": 1_599_873_024,
    "rwkv6_3b": 3_099_863_040,
    "rwkv6_7b": 7_635_746_816,
    "rwkv6_14b": 14_069_088_256,
}

_BLOCK = "blocks.{i}"
_VECTOR = Rearrange("1 1 d -> d")
_ATT, _MIXER = f"{_BLOCK}.att", f"{_BLOCK}.mixer"
# In the order in which released files concatenate the low-rank maps.
_AUTHORS = {"w": "decay_shift", "k": "key_shift", "v": "value_shift", "r": "query_shift", "g": "gate_shift"}
_FLA = ("query_shift", "decay_shift", "key_shift", "value_shift", "gate_shift")


def _shifts(names: Any, leaf: str) -> tuple[str, ...]:
    return tuple(f"{_MIXER}.{name}.{leaf}" for name in names)


_LINEAR = {"receptance": "query", "key": "key", "value": "value", "gate": "gate", "output": "out"}
_NORM = {"weight": "norm", "bias": "norm_bias"}
_AUTHORS_RULES = Naming(
    [
        ("emb", "embedding"),
        ("blocks.0.ln0", "embedding_norm"),
        (f"{_BLOCK}.ln1", f"{_BLOCK}.mixer_norm"),
        (f"{_BLOCK}.ln2", f"{_BLOCK}.channel_norm"),
        (f"{_ATT}.time_maa_x", f"{_MIXER}.shift", _VECTOR),
        *((f"{_ATT}.time_maa_{name}", f"{_MIXER}.{ours}.up.bias", _VECTOR) for name, ours in _AUTHORS.items()),
        (f"{_ATT}.time_maa_w1", _shifts(_AUTHORS.values(), "down.kernel"), Split(1)),
        (f"{_ATT}.time_maa_w2", _shifts(_AUTHORS.values(), "up.kernel"), Unstack()),
        (f"{_ATT}.time_decay", f"{_MIXER}.decay.up.bias", _VECTOR),
        (f"{_ATT}.time_decay_w1", f"{_MIXER}.decay.down.kernel"),
        (f"{_ATT}.time_decay_w2", f"{_MIXER}.decay.up.kernel"),
        (f"{_ATT}.time_faaaa", f"{_MIXER}.bonus"),
        *((f"{_ATT}.{theirs}", f"{_MIXER}.{ours}") for theirs, ours in _LINEAR.items()),
        *((f"{_ATT}.ln_x.{theirs}", f"{_MIXER}.{ours}") for theirs, ours in _NORM.items()),
        (f"{_BLOCK}.ffn.time_maa_k", f"{_BLOCK}.channel.shift", _VECTOR),
        (f"{_BLOCK}.ffn.time_maa_r", f"{_BLOCK}.channel.gate_shift", _VECTOR),
        (f"{_BLOCK}.ffn.key", f"{_BLOCK}.channel.up"),
        (f"{_BLOCK}.ffn.receptance", f"{_BLOCK}.channel.gate"),
        (f"{_BLOCK}.ffn.value", f"{_BLOCK}.channel.down"),
        ("ln_out", "norm"),
        ("head", "head"),
    ]
)

_ATTN = "model.layers.{i}.attn"
_FLA_RULES = fla_names(
    {
        "x_proj.0.mu": "shift",
        **{
            f"{letter}_proj.linear": name
            for letter, name in zip("rkvg", ("query", "key", "value", "gate"), strict=True)
        },
        "w_proj.linear.lora.0": "decay.down",
        "w_proj.linear.lora.2": "decay.up",
        "bonus": "bonus",
        "o_proj": "out",
        **{f"g_norm.{theirs}": ours for theirs, ours in _NORM.items()},
    },
    ("model.layers.0.pre_norm", "embedding_norm"),
    (f"{_ATTN}.x_bias", _shifts(_FLA, "up.bias"), Unstack()),
    (f"{_ATTN}.x_proj.0.linear", _shifts(_FLA, "down"), Split()),
    (f"{_ATTN}.x_proj.2.weight", _shifts(_FLA, "up.kernel"), Split(1), Rearrange("d r -> r d")),
    channel_norm="ffn_norm",
    channel={
        "ffn.key.mu": "shift",
        "ffn.key.linear": "up",
        "ffn.receptance.mu": "gate_shift",
        "ffn.receptance.linear": "gate",
        "ffn.value": "down",
    },
)

RULES = {"authors": _AUTHORS_RULES, "fla": _FLA_RULES}


def _half_unless_said(config: Mapping[str, Any]) -> Any:
    return config.get("expand_k", 0.5)


DESCRIBED = fla_described(
    {"hidden_act": ("sqrelu",), "norm_first": (True,), "norm_bias": (True,)},
    key_expansion=_half_unless_said,
    value_expansion=entry("expand_v"),
    heads_epsilon=entry("norm_eps"),
)

register_family(
    "rwkv6",
    RWKV6LM,
    RWKV6Config,
    VARIANTS,
    our_choice=("rwkv6_nano",),
    parameters=PARAMETERS,
    rules=RULES,
    described=DESCRIBED,
)

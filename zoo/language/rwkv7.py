"""RWKV-7 "Goose" with Expressive Dynamic State Evolution (Peng et al., 2025, arXiv:2503.14456).

    x = norm(word);  N x [x = x + TimeMix(norm(x));  x = x + W_v relu(W_k shift(norm(x)))^2]

(:mod:`layers.delta.rwkv7`, :class:`layers.ShiftedMLP`.) Later blocks interpolate their values toward those of the first
block. The sizes are those of the models released as RWKV-7 World, and the parameter counts those of the paper's
appendix; the size of ``rwkv7_nano`` is our choice. The authors' names and those of flash-linear-attention are read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.mixer import MixerSpec, Place
from layers.token_shift import ShiftedMLP
from zoo.backbones.causal import Causal, CausalConfig
from zoo.flash_linear_attention import fla_described, fla_names
from zoo.naming import Join, Naming, Rearrange
from zoo.registry import register_family


@dataclasses.dataclass(frozen=True)
class RWKV7Config(CausalConfig):
    """Hyper-parameters of RWKV-7.

    Attributes:
      hidden: width of the channel mixer; None is 4 features.
      decay_rank, rate_rank, residual_rank, gate_rank, zero_init: as in :class:`layers.RWKV7`.
    """

    mlp: None = None
    norm: str = "layer"
    embedding_norm: bool = True
    tied: bool = False
    decay_rank: int | None = None
    rate_rank: int | None = None
    residual_rank: int | None = None
    gate_rank: int | None = None
    zero_init: bool = True


class RWKV7LM(Causal):
    """RWKV-7; names as in :class:`Causal`."""

    config: RWKV7Config

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        options = ("decay_rank", "rate_rank", "residual_rank", "gate_rank", "zero_init", "norm_epsilon")
        return {"name": "rwkv7", "value_residual": True, **{name: getattr(c, name) for name in options}}

    def make_channel(self, place: Place, *, rngs: nnx.Rngs) -> nnx.Module:
        c = self.config
        where: dict[str, Any] = {"index": place.index or 0, "depth": place.depth or 1}
        hidden = c.hidden or 4 * c.features
        return ShiftedMLP(c.features, hidden, **where, zero_init=c.zero_init, **place.dtypes, rngs=rngs)

    def handed_on(self, x: jax.Array) -> jax.Array:
        """Zeros, (batch, length, features), for the values that the first block passes on to later blocks."""
        return jnp.zeros_like(x)


def _world(features: int, depth: int, decay: int, residual: int, gate: int) -> dict[str, Any]:
    ranks = {"decay_rank": decay, "rate_rank": decay, "residual_rank": residual, "gate_rank": gate}
    return {"vocab_size": 65536, "features": features, "depth": depth, "num_heads": features // 64, **ranks}


VARIANTS: dict[str, dict[str, Any]] = {
    "rwkv7_0.1b": _world(768, 12, 64, 32, 128),
    "rwkv7_0.4b": _world(1024, 24, 64, 32, 128),
    "rwkv7_1.5b": _world(2048, 24, 96, 64, 256),
    "rwkv7_2.9b": _world(2560, 32, 96, 64, 320),
    "rwkv7_nano": {"features": 128, "depth": 4, "num_heads": 4},
}

# From the paper's appendix.
PARAMETERS = {
    "rwkv7_0.1b": 191_034_624,
    "rwkv7_0.4b": 450_767_872,
    "rwkv7_1.5b": 1_527_404_544,
    "rwkv7_2.9b": 2_947_735_040,
}

_LOW_RANK = {"decay": "w", "rate": "a", "residual": "v", "gate": "g"}
_SHIFTS = tuple(f"x_{name}" for name in "rwkvag")
_OURS, _VECTOR, _HEADS = "blocks.{i}", Rearrange("1 1 d -> d"), Rearrange("h d -> (h d)", h="num_heads")


def _mixer(theirs: str, **names: str) -> list[tuple[Any, ...]]:
    """The rules for the token mixer that both namings share; ``names`` maps our linear layers and norm to theirs."""
    ours = f"{_OURS}.mixer"
    return [
        (tuple(f"{theirs}.{name}" for name in _SHIFTS), f"{ours}.shift", Rearrange("1 1 d -> d"), Join()),
        (f"{theirs}.r_k", f"{ours}.bonus", _HEADS),
        *((f"{theirs}.{name}", f"{ours}.{own}") for own, name in names.items() if own != "norm"),
        (f"{theirs}.{names['norm']}.weight", f"{ours}.norm"),
        (f"{theirs}.{names['norm']}.bias", f"{ours}.norm_bias"),
    ]


def _authors() -> Naming:
    att, mixer = f"{_OURS}.att", f"{_OURS}.mixer"
    linear = {"query": "receptance", "key": "key", "value": "value", "out": "output", "norm": "ln_x"}
    low_rank = [
        (f"{att}.{letter}{number}", f"{mixer}.{name}.{leaf}", *operations)
        for name, letter in _LOW_RANK.items()
        for number, leaf, *operations in ((0, "up.bias", _VECTOR), (1, "down.kernel"), (2, "up.kernel"))
    ]
    return Naming(
        [
            ("emb", "embedding"),
            ("blocks.0.ln0", "embedding_norm"),
            (f"{_OURS}.ln1", f"{_OURS}.mixer_norm"),
            (f"{_OURS}.ln2", f"{_OURS}.channel_norm"),
            *_mixer(att, **linear),
            *low_rank,
            (f"{att}.k_k", f"{mixer}.removal", _VECTOR),
            (f"{att}.k_a", f"{mixer}.replacement", _VECTOR),
            (f"{_OURS}.ffn.x_k", f"{_OURS}.channel.shift", _VECTOR),
            (f"{_OURS}.ffn.key", f"{_OURS}.channel.up"),
            (f"{_OURS}.ffn.value", f"{_OURS}.channel.down"),
            ("ln_out", "norm"),
            ("head", "head"),
        ],
        # The first block does not use them.
        ignore=("blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2"),
    )


def _fla() -> Naming:
    attn = "model.layers.{i}.attn"
    linear = {"query": "r_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj", "norm": "g_norm"}
    low_rank = {
        f"{letter}_lora.lora.{number}": f"{name}.{leaf}"
        for name, letter in _LOW_RANK.items()
        for number, leaf in ((0, "down"), (2, "up"))
    }
    return fla_names(
        {**low_rank, "k_k": "removal", "k_a": "replacement"},
        ("model.layers.0.pre_norm", "embedding_norm"),
        *_mixer(attn, **linear),
        channel_norm="ffn_norm",
        channel={"ffn.x_k": "shift", "ffn.key": "up", "ffn.value": "down"},
    )


RULES = {"authors": _authors(), "fla": _fla()}


def _heads(config: Mapping[str, Any]) -> int | None:
    size = config.get("head_dim")
    return config.get("num_heads") or (config["hidden_size"] // size if size else None)


_ONLY = {"hidden_act": ("sqrelu",), "norm_first": (True,), "norm_bias": (True,)}
DESCRIBED: dict[str, Callable[[Mapping[str, Any]], Any]] = fla_described(_ONLY, num_heads=_heads)

register_family(
    "rwkv7",
    RWKV7LM,
    RWKV7Config,
    VARIANTS,
    our_choice=("rwkv7_nano",),
    parameters=PARAMETERS,
    rules=RULES,
    described=DESCRIBED,
)

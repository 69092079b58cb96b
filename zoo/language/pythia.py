"""Pythia: A Suite for Analyzing Large Language Models (Biderman et al., ICML 2023, arXiv:2304.01373).

    x = x + Attention(LayerNorm(x)) + MLP(LayerNorm'(x))

The blocks of GPT-NeoX-20B (Black et al., 2022, arXiv:2204.06745): both branches read the same x, each through its own
norm; rotary positions on a quarter of each head's features; exact GELU; biases everywhere but in the untied head. The
size of ``pythia_nano`` is our choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import nnx

from layers.block import Branch
from layers.mixer import MixerSpec, Place
from zoo.backbones.causal import Causal, CausalConfig, Mlp
from zoo.naming import Naming, Rearrange, Split, Tie
from zoo.registry import Release, one_of, register_family


@dataclasses.dataclass(frozen=True)
class PythiaConfig(CausalConfig):
    """Hyper-parameters of Pythia.

    Attributes:
      parallel: whether both branches read the same x; otherwise the MLP reads the sum of x and the attention's output.
      rotary: base of the rotary embedding.
      rotary_fraction: fraction of each head's features that the rotary embedding rotates.
    """

    mlp: Mlp | None = "gelu"
    mlp_bias: bool = True
    norm: str = "layer"
    tied: bool = False
    parallel: bool = True
    rotary: float = 10000.0
    rotary_fraction: float = 0.25


class Pythia(Causal):
    """Pythia; names as in :class:`Causal`."""

    config: PythiaConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        return {
            "name": "attention",
            "rotary": {"base": c.rotary, "dimensions": int(c.features // c.num_heads * c.rotary_fraction)},
        }

    def make_branches(self, place: Place, *, rngs: nnx.Rngs) -> dict[str, nnx.Module | Branch]:
        branches = super().make_branches(place, rngs=rngs)
        if self.config.parallel and isinstance(channel := branches.get("channel"), nnx.Module):
            branches["channel"] = Branch(channel, order="parallel")
        return branches


VARIANTS: dict[str, dict[str, Any]] = {
    "pythia_nano": {"features": 128, "depth": 4, "num_heads": 4},
    "pythia_70m": {"vocab_size": 50304, "features": 512, "depth": 6, "num_heads": 8},
    "pythia_160m": {"vocab_size": 50304, "features": 768, "depth": 12, "num_heads": 12},
    "pythia_410m": {"vocab_size": 50304, "features": 1024, "depth": 24, "num_heads": 16},
    "pythia_1b": {"vocab_size": 50304, "features": 2048, "depth": 16, "num_heads": 8},
    "pythia_1.4b": {"vocab_size": 50304, "features": 2048, "depth": 24, "num_heads": 16},
    "pythia_2.8b": {"vocab_size": 50304, "features": 2560, "depth": 32, "num_heads": 32},
    "pythia_6.9b": {"vocab_size": 50432, "features": 4096, "depth": 32, "num_heads": 32},
    "pythia_12b": {"vocab_size": 50688, "features": 5120, "depth": 36, "num_heads": 40},
}

_BLOCK, _OURS = "gpt_neox.layers.{i}", "blocks.{i}"
_FUSED = tuple(f"{_OURS}.mixer.{part}" for part in ("query", "key", "value"))
_HEADS: dict[str, Any] = {"h": "num_heads", "p": 3}

RULES: dict[str, Naming] = {
    "transformers": Naming(
        [
            (("gpt_neox.embed_in", "embed_out"), "embedding", Tie(written=False)),
            ("embed_out", "head"),
            # The rows are grouped by head, and within a head by query, key and value.
            (f"{_BLOCK}.attention.query_key_value.weight", tuple(f"{name}.kernel" for name in _FUSED),
             Rearrange("(h p d) i -> i (p h d)", **_HEADS), Split(axis=1)),
            (f"{_BLOCK}.attention.query_key_value.bias", tuple(f"{name}.bias" for name in _FUSED),
                Rearrange("(h p d) -> (p h d)", **_HEADS), Split()),
            (f"{_BLOCK}.attention.dense", f"{_OURS}.mixer.out"),
            (f"{_BLOCK}.input_layernorm", f"{_OURS}.mixer_norm"),
            (f"{_BLOCK}.post_attention_layernorm", f"{_OURS}.channel_norm"),
            (f"{_BLOCK}.mlp.dense_h_to_4h", f"{_OURS}.channel.up"),
            (f"{_BLOCK}.mlp.dense_4h_to_h", f"{_OURS}.channel.down"),
            ("gpt_neox.final_layer_norm", "norm"),
        ],
        prefix="gpt_neox.",
        # Old files also hold masks and rotary frequencies.
        ignore=tuple(f"{_BLOCK}.attention.{name}" for name in ("bias", "masked_bias", "rotary_emb.inv_freq")),
    )
}  # fmt: skip


def _rope(config: Mapping[str, Any], name: str, before: str) -> Any:
    """An entry of the rotary embedding: ``name``, or ``before``, its name in transformers before version 5.

    Raises:
      ValueError: the embedding's frequencies are scaled.
    """
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    one_of(given, "rope_type", {"default": "default"})
    return given.get(name, config.get(before))


DESCRIBED: dict[str, Any] = {
    "norm_epsilon": lambda config: config.get("layer_norm_eps"),
    "num_heads": lambda config: config.get("num_attention_heads"),
    "parallel": lambda config: config.get("use_parallel_residual"),
    "rotary": lambda config: _rope(config, "rope_theta", "rotary_emb_base"),
    "rotary_fraction": lambda config: _rope(config, "partial_rotary_factor", "rotary_pct"),
    "mlp": lambda config: one_of(
        config, "hidden_act", {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh"}
    ),
    "tied": lambda config: config.get("tie_word_embeddings"),
}

RELEASES = {
    name: {"eleuther": Release(f"hf://EleutherAI/{name.replace('_', '-')}", 0)}
    for name in VARIANTS
    if name != "pythia_nano"
}

# Counted in transformers' models of the released sizes.
PARAMETERS = {
    "pythia_70m": 70_426_624,
    "pythia_160m": 162_322_944,
    "pythia_410m": 405_334_016,
    "pythia_1b": 1_011_781_632,
    "pythia_1.4b": 1_414_647_808,
    "pythia_2.8b": 2_775_208_960,
    "pythia_6.9b": 6_857_302_016,
    "pythia_12b": 11_846_072_320,
}

register_family(
    "pythia",
    Pythia,
    PythiaConfig,
    VARIANTS,
    our_choice=("pythia_nano",),
    parameters=PARAMETERS,
    rules=RULES,
    releases=RELEASES,
    described=DESCRIBED,
)

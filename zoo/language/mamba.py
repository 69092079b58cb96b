"""Mamba: Linear-Time Sequence Modeling with Selective State Spaces (Gu and Dao, 2023, arXiv:2312.00752).

    x = x + Mamba(RMSNorm(x))

without a channel mixer: the gate inside the mixer takes its place, and two such blocks replace one transformer block.
The residual stream is float32 for every compute dtype. Sizes are those of the models released as state-spaces/mamba-*;
the size of ``mamba_nano`` is our choice. Longhorn (Liu et al., 2024, arXiv:2407.14207) is the same with another state
space model as its mixer; the widths and depths of its sizes are Mamba's. Hybrids are made by pattern, as in
``zoo.create("mamba_nano", pattern=("mamba", "mamba", "attention"))``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from layers.mixer import MixerSpec, Place
from layers.state_space.initialization import STEP_RANGE, Initialization, StepRange
from zoo.backbones.causal import Causal, CausalConfig
from zoo.naming import Naming, Tie
from zoo.registry import one_of, register_family


@dataclasses.dataclass(frozen=True)
class MambaConfig(CausalConfig):
    """Hyper-parameters of Mamba.

    Attributes:
      kind: the mixer, "mamba" or "longhorn".
      state_dim, expand, conv_size, step_rank, initialization, step_range: as in :class:`layers.Mamba`.
    """

    depth: int = 24
    mlp: None = None
    kind: Literal["mamba", "longhorn"] = "mamba"
    state_dim: int = 16
    expand: int = 2
    conv_size: int = 4
    step_rank: int | None = None
    initialization: Initialization = "standard"
    step_range: StepRange = STEP_RANGE


class StateSpaceLM(Causal):
    """A causal language model whose residual stream is float32; names as in :class:`Causal`."""

    def _embed(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        x = super()._embed(tokens, positions)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class MambaLM(StateSpaceLM):
    """Mamba; names as in :class:`Causal`."""

    config: MambaConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        sizes = {"state_dim": c.state_dim, "expand": c.expand, "conv_size": c.conv_size, "step_rank": c.step_rank}
        start = {} if c.kind == "longhorn" else {"initialization": c.initialization, "step_range": c.step_range}
        return {"name": c.kind, **sizes, **start}


VARIANTS: dict[str, dict[str, Any]] = {
    "mamba_130m": {"vocab_size": 50280, "features": 768, "depth": 24},
    "mamba_370m": {"vocab_size": 50280, "features": 1024, "depth": 48},
    "mamba_790m": {"vocab_size": 50280, "features": 1536, "depth": 48},
    "mamba_1.4b": {"vocab_size": 50280, "features": 2048, "depth": 48},
    "mamba_2.8b": {"vocab_size": 50280, "features": 2560, "depth": 64},
    "mamba_nano": {"features": 128, "depth": 4, "num_heads": 4},
}
LONGHORN_VARIANTS: dict[str, dict[str, Any]] = {
    "longhorn_130m": {**VARIANTS["mamba_130m"], "kind": "longhorn"},
    "longhorn_370m": {**VARIANTS["mamba_370m"], "kind": "longhorn"},
    "longhorn_nano": {**VARIANTS["mamba_nano"], "kind": "longhorn", "depth": 6},
}

_MIXER = "backbone.layers.{i}.mixer"


def released_names(embedding: str, *mixer: tuple[Any, ...]) -> Naming:
    """The parameter names of a released state space language model: ``embedding`` is the embedding's, ``mixer`` are the
    rules of the mixer.
    """
    return Naming(
        rules=(
            ((f"backbone.{embedding}", "lm_head"), "embedding", Tie()),
            ("lm_head", "head"),
            ("backbone.layers.{i}.norm", "blocks.{i}.mixer_norm"),
            ("backbone.norm_f", "norm"),
            *mixer,
        ),
        prefix="backbone.",
    )


def _epsilon(config: Mapping[str, Any]) -> Any:
    """The norms' epsilon; refuses activations that this family does not have."""
    one_of(config, "hidden_act", {"silu": "silu"})
    return config.get("layer_norm_epsilon")


DESCRIBED: dict[str, Any] = {"norm_epsilon": _epsilon, "tied": lambda config: config.get("tie_word_embeddings")}

_RULES = (
    *(
        (f"{_MIXER}.{name}", f"blocks.{{i}}.mixer.{name}")
        for name in ("in_proj", "x_proj", "dt_proj", "out_proj", "A_log", "D")
    ),
    (f"{_MIXER}.conv1d", "blocks.{i}.mixer.conv"),
    (f"{_MIXER}.dt_proj.bias", "blocks.{i}.mixer.dt_bias"),
)

_LONGHORN = (
    *((f"{_MIXER}.{name}", f"blocks.{{i}}.mixer.{name}") for name in ("in_proj", "x_proj", "out_proj", "D")),
    (f"{_MIXER}.conv1d", "blocks.{i}.mixer.conv"),
    (f"{_MIXER}.dt_head", "blocks.{i}.mixer.dt_proj"),
    (f"{_MIXER}.dt_head.bias", "blocks.{i}.mixer.dt_bias"),
)
LONGHORN_RULES = {"authors": released_names("embedding", *_LONGHORN)}

RULES = {"hf": released_names("embeddings", *_RULES), "state_spaces": released_names("embedding", *_RULES)}

# Counted in transformers' models of these sizes, and equal in the released files; the tied head counts once.
PARAMETERS = {
    "mamba_130m": 129_135_360,
    "mamba_370m": 371_516_416,
    "mamba_790m": 793_204_224,
    "mamba_1.4b": 1_372_178_432,
    "mamba_2.8b": 2_768_345_600,
}

register_family(
    "mamba",
    MambaLM,
    MambaConfig,
    VARIANTS,
    our_choice=("mamba_nano",),
    parameters=PARAMETERS,
    rules=RULES,
    described=DESCRIBED,
    paper=(194,),
)
register_family(
    "mamba",
    MambaLM,
    MambaConfig,
    LONGHORN_VARIANTS,
    our_choice=tuple(LONGHORN_VARIANTS),
    rules=LONGHORN_RULES,
    paper=(125,),
)

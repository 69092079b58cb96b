"""Mamba-2: Transformers are SSMs (Dao and Gu, 2024, arXiv:2405.21060).

    x = x + Mamba2(RMSNorm(x))

as :mod:`zoo.language.mamba`, with the multi-head state space model of :mod:`layers.state_space.mamba2`. Sizes are those
of the models released as state-spaces/mamba2-*, whose vocabulary of 50277 is padded to 50288; the size of
``mamba2_nano`` is our choice.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from layers.mixer import MixerSpec, Place
from layers.state_space.initialization import STEP_RANGE, Initialization, StepRange
from zoo.backbones.causal import CausalConfig
from zoo.language.mamba import DESCRIBED as MAMBA_DESCRIBED
from zoo.language.mamba import StateSpaceLM, released_names
from zoo.registry import register_family


@dataclasses.dataclass(frozen=True)
class Mamba2Config(CausalConfig):
    """Hyper-parameters of Mamba-2.

    Attributes:
      state_dim, expand, head_dim, groups, conv_size, initialization, step_range: as in :class:`layers.Mamba2`.
    """

    depth: int = 24
    mlp: None = None
    state_dim: int = 128
    expand: int = 2
    head_dim: int = 64
    groups: int = 1
    conv_size: int = 4
    initialization: Initialization = "standard"
    step_range: StepRange = STEP_RANGE


class Mamba2LM(StateSpaceLM):
    """Mamba-2; names as in :class:`Causal`."""

    config: Mamba2Config

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        return {
            "name": "mamba2",
            "state_dim": c.state_dim,
            "expand": c.expand,
            "head_dim": c.head_dim,
            "groups": c.groups,
            "conv_size": c.conv_size,
            "initialization": c.initialization,
            "step_range": c.step_range,
            "norm_epsilon": c.norm_epsilon,
        }


VARIANTS: dict[str, dict[str, Any]] = {
    "mamba2_130m": {"vocab_size": 50288, "features": 768, "depth": 24},
    "mamba2_370m": {"vocab_size": 50288, "features": 1024, "depth": 48},
    "mamba2_780m": {"vocab_size": 50288, "features": 1536, "depth": 48},
    "mamba2_1.3b": {"vocab_size": 50288, "features": 2048, "depth": 48},
    "mamba2_2.7b": {"vocab_size": 50288, "features": 2560, "depth": 64},
    "mamba2_nano": {"features": 128, "depth": 4, "num_heads": 4, "state_dim": 64, "head_dim": 32},
}

_MIXER = "backbone.layers.{i}.mixer"
_RULES = (
    *(
        (f"{_MIXER}.{name}", f"blocks.{{i}}.mixer.{name}")
        for name in ("in_proj", "out_proj", "norm", "A_log", "D", "dt_bias")
    ),
    (f"{_MIXER}.conv1d", "blocks.{i}.mixer.conv"),
)

RULES = {"hf": released_names("embeddings", *_RULES), "state_spaces": released_names("embedding", *_RULES)}

DESCRIBED: dict[str, Any] = {
    **MAMBA_DESCRIBED,
    # Must be read: eight groups with a state of 16 have the same shapes as one group with a state of 128.
    "groups": lambda config: config.get("n_groups"),
    "state_dim": lambda config: config.get("state_size"),
    "head_dim": lambda config: config.get("head_dim"),
}

# Counted in transformers' models of these sizes, and equal in the released files; the tied head counts once.
PARAMETERS = {
    "mamba2_130m": 128_989_632,
    "mamba2_370m": 368_346_624,
    "mamba2_780m": 780_161_280,
    "mamba2_1.3b": 1_343_757_312,
    "mamba2_2.7b": 2_702_599_680,
}

register_family(
    "mamba2",
    Mamba2LM,
    Mamba2Config,
    VARIANTS,
    our_choice=("mamba2_nano",),
    parameters=PARAMETERS,
    rules=RULES,
    described=DESCRIBED,
)

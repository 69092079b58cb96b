"""S4D as a language model: On the Parameterization and Initialization of Diagonal State Space Models (Gu et al., 2022,
arXiv:2206.11893).

    x = x + S4D(RMSNorm(x))

The output map of the layer, linear with a GLU, is the only channel mixer. S4D is time-invariant: the baseline against
which selection is measured (Mamba's paper, section 4.1). Sizes are our choice.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from layers.mixer import MixerSpec, Place
from layers.state_space.s4d import Discretization, Poles
from zoo.backbones.causal import CausalConfig
from zoo.language.mamba import StateSpaceLM
from zoo.registry import register_family


@dataclasses.dataclass(frozen=True)
class S4DConfig(CausalConfig):
    """Hyper-parameters of S4D.

    Attributes:
      state_dim, initialization, discretization: as in :class:`layers.S4D`.
    """

    mlp: None = None
    state_dim: int = 64
    initialization: Poles = "legs"
    discretization: Discretization = "zoh"


class S4DLM(StateSpaceLM):
    """S4D; names as in :class:`Causal`."""

    config: S4DConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        return {
            "name": "s4d",
            "state_dim": c.state_dim,
            "initialization": c.initialization,
            "discretization": c.discretization,
        }


VARIANTS: dict[str, dict[str, Any]] = {"s4d_nano": {"features": 192, "depth": 6, "num_heads": 4}}

register_family("s4d", S4DLM, S4DConfig, VARIANTS, our_choice=tuple(VARIANTS), paper=(123,))

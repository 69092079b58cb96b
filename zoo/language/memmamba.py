"""MemMamba: Rethinking Memory Patterns in State Space Model (Wang et al., 2025, arXiv:2510.03279).

    x = x + MemMamba(RMSNorm(x))

Mamba whose layers store notes, summaries of what they read, and attend to them; every few layers also attend to the
notes of the layers below (:mod:`layers.state_space.memory_mamba`, which states which details are our choice). Published
are 24 layers, pools of 50 notes of 64 features, "200M" parameters, and a perplexity on PG-19 that falls from 19.35 at
1,000 tokens to 17.35 at 60,000, where the perplexity of a 130M Mamba, 21.00 at 1,000 tokens, has diverged. Neither code
nor files are published: the width, w, p and g are our choice, and the vocabulary is that of Mamba's released models;
``memmamba_200m`` is within 3 % of its name.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from layers.mixer import MixerSpec, Place
from layers.state_space.memory_mamba import Fusion, MemoryMamba, Replacement, Summaries
from zoo.backbones.model import mixers
from zoo.language.mamba import MambaConfig, StateSpaceLM
from zoo.registry import register_family


@dataclasses.dataclass(frozen=True)
class MemMambaConfig(MambaConfig):
    """Hyper-parameters of MemMamba.

    Attributes:
      notes, note_dim, window, note_threshold, recall_threshold, fusion, replacement: as in
        :class:`layers.MemoryMamba`.
      layers, every: g and p: every p-th layer attends to the notes of the g layers below it; ``layers=0`` for none.
    """

    notes: int = 50
    note_dim: int = 64
    window: int = 16
    note_threshold: float = 0.5
    recall_threshold: float = 0.5
    fusion: Fusion = "weighted"
    replacement: Replacement = "oldest"
    layers: int = 4
    every: int = 4

    def __post_init__(self) -> None:
        """Refuses the other kinds of Mamba's family.

        Raises:
          ValueError: ``kind`` is not "mamba".
        """
        if self.kind != "mamba":
            raise ValueError(f"MemMamba is made of Mamba: leave out kind={self.kind!r}")


class MemMambaLM(StateSpaceLM):
    """MemMamba; names as in :class:`Causal`."""

    config: MemMambaConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        options = (
            "notes", "note_dim", "window", "note_threshold", "recall_threshold", "fusion", "replacement", "layers",
            "every", "state_dim", "expand", "conv_size", "step_rank", "initialization", "step_range",
        )  # fmt: skip
        return {"name": "memory_mamba", **{name: getattr(c, name) for name in options}}

    def handed_on(self, x: jax.Array) -> Summaries | None:
        """Zeros for the summaries that layers pass on to those above; None where no layer reads them."""
        c = self.config
        if not any(isinstance(mixer, MemoryMamba) and mixer.shares for mixer in mixers(self.blocks)):
            return None
        batch, length, _ = x.shape
        return Summaries.none(batch, length, c.layers, c.note_dim, x.dtype)


VARIANTS: dict[str, dict[str, Any]] = {
    "memmamba_200m": {"vocab_size": 50280, "features": 960, "depth": 24},
    "memmamba_nano": {"features": 128, "depth": 4, "num_heads": 4, "note_dim": 32, "layers": 2, "every": 2},
}

register_family("memmamba", MemMambaLM, MemMambaConfig, VARIANTS, our_choice=tuple(VARIANTS), paper=(174,))

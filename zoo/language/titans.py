"""Titans: Learning to Memorize at Test Time (A. Behrouz et al., 2024, arXiv:2501.00663): language models with a memory
that learns as it reads.

    x = x + Titans(RMSNorm(x));  x = x + SwiGLU(RMSNorm(x))

    MAC  memory as context  x -+-> M reads -> [persistent; recalled; x] -> attention in the segment -> y -+-> y (x) M(y)
                                                                                            M learns y  <-+
    MAG  memory as gate     x -+-> attention in a window --(x)-->
                               +-> M reads and learns -----+
    MAL  memory as layer    x -> M reads and learns -> attention in a window ->
    LMM  memory alone       x -> M reads and learns ->

:mod:`layers.memory.titans` has the equations. The paper states only sizes (170M, 340M, 400M, 760M) and the vocabulary
of 32,000: widths, depths, heads, segments and windows are our choice, each model within 3 % of its name. The state has
a constant size.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from layers.memory.choices import Memory
from layers.memory.neural_memory import memory_of
from layers.mixer import MixerSpec, Place
from zoo.backbones.causal import Causal, CausalConfig
from zoo.registry import register_family


@dataclasses.dataclass(frozen=True)
class TitansConfig(CausalConfig):
    """Hyper-parameters of Titans.

    Attributes:
      joined: how memory and attention are combined: "mac", "mag" or "mal"; "lmm" is the memory without attention.
      memory: a name in ``layers.MEMORIES`` or a ``layers.Memory``.
      memory_depth, momentum, forget: number of matrices of the memory (1 is a linear memory), whether past surprise is
        accumulated, and whether the memory decays; None keeps the setting of ``memory``.
      segment: tokens of a segment; MAC only.
      window: tokens that a token attends to, itself included; MAG and MAL only.
      chunk: tokens whose gradients are taken at the same memory weights; None is 16, or the segment for MAC.
      persistent: number of learned tokens that attention and memory read before the sequence.
      conv_size: as in :class:`layers.NeuralMemory`.
    """

    joined: str = "mac"
    memory: str | Memory = "titans"
    memory_depth: int | None = None
    momentum: bool | None = None
    forget: bool | None = None
    segment: int = 64
    window: int = 256
    chunk: int | None = None
    persistent: int = 4
    conv_size: int | None = 4
    tied: bool = False

    def __post_init__(self) -> None:
        """Checks the options.

        Raises:
          ValueError: an unknown ``joined``.
        """
        if self.joined not in ("mac", "mag", "mal", "lmm"):
            raise ValueError(f'Titans: joined is "mac", "mag", "mal" or "lmm", got {self.joined!r}')


class Titans(Causal):
    """Titans; names as in :class:`Causal`."""

    config: TitansConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        common = {"memory": self._memory(), "persistent": c.persistent, "conv_size": c.conv_size}
        if c.chunk is not None:
            common["chunk"] = c.chunk
        if c.joined == "mac":
            return {"name": "titans_mac", "segment": c.segment, **common}
        if c.joined == "lmm":
            return {"name": "neural_memory", **common}
        return {"name": f"titans_{c.joined}", "window": c.window, **common}

    def _memory(self) -> Memory:
        c, memory = self.config, memory_of(self.config.memory)
        changes = (
            ("structure", "depth", c.memory_depth),
            ("algorithm", "momentum", c.momentum),
            ("retention", "forget", c.forget),
        )
        for choice, option, value in changes:
            if value is not None:
                memory = dataclasses.replace(
                    memory, **{choice: dataclasses.replace(getattr(memory, choice), **{option: value})}
                )
        return memory


# The depths with which the widths give the sizes of the names.
_DEPTHS = {"mac": (11, 14, 17, 15), "mag": (12, 15, 18, 16), "mal": (12, 15, 18, 16), "lmm": (15, 20, 24, 21)}
_SIZES: dict[str, dict[str, Any]] = {
    "170m": {"vocab_size": 32000, "features": 768, "num_heads": 12},
    "340m": {"vocab_size": 32000, "features": 1024, "num_heads": 16},
    "400m": {"vocab_size": 32000, "features": 1024, "num_heads": 16},
    "760m": {"vocab_size": 32000, "features": 1536, "num_heads": 16},
}
_NANO: dict[str, Any] = {"features": 128, "depth": 3, "num_heads": 4, "segment": 16, "window": 32, "tied": True}

VARIANTS: dict[str, dict[str, Any]] = {
    f"titans_{joined}_{size}": {"joined": joined, "depth": depth, **options}
    for joined, depths in _DEPTHS.items()
    for (size, options), depth in zip(_SIZES.items(), depths, strict=True)
} | {f"titans_{joined}_nano": {"joined": joined, **_NANO} for joined in _DEPTHS}

register_family("titans", Titans, TitansConfig, VARIANTS, our_choice=tuple(VARIANTS), paper=(51,))

"""Miras: It's All Connected (A. Behrouz et al., 2025, arXiv:2504.13173): Moneta, Yaad and Memora, three memories of one
framework, as language models.

    x = x + NeuralMemory(RMSNorm(x));  x = x + SwiGLU(RMSNorm(x))

    Moneta  l3 attentional bias, l4 retention    Yaad  Huber bias, l2 retention
    Memora  l2 bias, Kullback-Leibler retention

:mod:`layers.memory.choices` has the four choices that define a memory. A new memory is composed of them and works in
any model or backbone:

    from layers.memory.choices import Elastic, GradientDescent, Huber, Memory, MLPMemory
    memory = Memory(
        MLPMemory(depth=1), bias=Huber("coordinate"), retention=Elastic(0.01), algorithm=GradientDescent(momentum=True)
    )
    model = zoo.create("yaad_nano", memory=memory)

A new choice is a small frozen dataclass with one method, which ``Bias`` and ``Retention`` there define. Widths, depths
and heads are our choice, each model within 3 % of its name; the paper's sizes are 340M, 760M and 1.3B.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from layers.memory.choices import Memory
from layers.mixer import MixerSpec, Place
from zoo.backbones.causal import Causal, CausalConfig
from zoo.registry import register_family


@dataclasses.dataclass(frozen=True)
class MirasConfig(CausalConfig):
    """Hyper-parameters of Miras.

    Attributes:
      memory: a name in ``layers.MEMORIES`` or a ``layers.Memory``.
      chunk, conv_size: as in :class:`layers.NeuralMemory`.
    """

    memory: str | Memory = "moneta"
    chunk: int = 16
    conv_size: int | None = 4
    tied: bool = False


class Miras(Causal):
    """A language model whose only token mixer is a memory; names as in :class:`Causal`."""

    config: MirasConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        return {"name": "neural_memory", "memory": c.memory, "chunk": c.chunk, "conv_size": c.conv_size}


_SIZES: dict[str, dict[str, Any]] = {
    "340m": {"vocab_size": 32000, "features": 1024, "depth": 19, "num_heads": 16},
    "760m": {"vocab_size": 32000, "features": 1536, "depth": 21, "num_heads": 16},
    "1.3b": {"vocab_size": 32000, "features": 2048, "depth": 21, "num_heads": 32},
    "nano": {"features": 128, "depth": 3, "num_heads": 4, "tied": True},
}
VARIANTS: dict[str, dict[str, Any]] = {
    f"{memory}_{size}": {"memory": memory, **options}
    for memory in ("moneta", "yaad", "memora")
    for size, options in _SIZES.items()
}

register_family("miras", Miras, MirasConfig, VARIANTS, our_choice=tuple(VARIANTS), paper=(214,))

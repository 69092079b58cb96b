"""What every image backbone shares: the head, and what a training recipe asks of the names of its parameters."""

from __future__ import annotations

import jax
from flax import nnx

from layers.initializers import truncated_normal
from layers.module import Module
from layers.state import flatten
from zoo.registry import ModelConfig


class Classifier(Module):
    """Base of image backbones: ``model(images)`` gives logits; subclasses give ``pooled`` and ``features``."""

    num_features: int
    head: nnx.Linear | None

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images (batch, height, width, channels) to logits (batch, classes), or to pooled features without a head."""
        x = self.pooled(images)
        return x if self.head is None else self.head(x)

    def pooled(self, images: jax.Array) -> jax.Array:
        """What the head sees: (batch, features)."""
        raise NotImplementedError

    def reset_head(self, num_classes: int, *, rngs: nnx.Rngs | None = None) -> None:
        """Replaces the head by a fresh one for ``num_classes``; 0 removes it."""
        config = self.config  # type: ignore[attr-defined]
        rngs = nnx.Rngs(0) if rngs is None else rngs
        self.head = make_head(self.num_features, num_classes, config, rngs)

    def layer_ids(self) -> dict[str, int]:
        """Depth of every parameter, by name: 0 for the stem, 1 for the first block, ...; the head is deepest."""
        names = list(flatten(self, nnx.Param))
        return dict(zip(names, self._depths(names), strict=True))

    def no_decay(self) -> set[str]:
        """Names of the parameters that weight decay spares: vectors (biases, norms, scales), position tables and special tokens."""
        spared = ("position", "class_token", "register_tokens", "table")
        return {name for name, leaf in flatten(self, nnx.Param).items() if leaf.ndim <= 1 or name.rsplit(".", 1)[-1] in spared or name.split(".")[0] in spared}

    def _depths(self, names: list[str]) -> list[int]:
        raise NotImplementedError


def make_head(features: int, num_classes: int, config: ModelConfig, rngs: nnx.Rngs) -> nnx.Linear | None:
    """The linear classifier, or None for 0 classes."""
    if not num_classes:
        return None
    return nnx.Linear(features, num_classes, kernel_init=truncated_normal(0.02), dtype=config.dtype, param_dtype=config.param_dtype, rngs=rngs)

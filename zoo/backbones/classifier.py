"""What all classifiers of images and of text share: the head."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from layers.initializers import truncated_normal
from layers.linear import Linear
from layers.module import Module
from zoo.backbones.model import Model
from zoo.registry import ModelConfig


class Classifier(Model):
    """Base of the backbones that classify a whole input: ``model(x)`` returns logits; subclasses implement ``pooled``
    and ``features``.

    ``before_head`` names the parts that belong to the head that they were trained with: if a checkpoint's head is not
    loaded, they are not loaded either, and the model may have ones that the checkpoint lacks.
    """

    head: Linear | MLPHead | None
    before_head: ClassVar[tuple[str, ...]] = ()
    without: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("head", "distilled_head"), 'no classifier: load it with head="reset", or make the model with num_classes=0'
    )
    undecayed: ClassVar[tuple[str, ...]] = (
        "position",
        "prefix_position",
        "class_token",
        "distillation_token",
        "register_tokens",
        "mask_token",
    )

    def __call__(self, x: jax.Array, *more: Any, **known: Any) -> jax.Array:
        """Maps images (batch, height, width, channels), or other input that ``pooled`` takes, to logits (batch,
        classes), or to pooled features without a head."""
        x = self.pooled(x, *more, **known)
        return x if self.head is None else self.head(x)

    def pooled(self, x: jax.Array, *more: Any, **known: Any) -> jax.Array:
        """The input of the head: (batch, features)."""
        raise NotImplementedError

    def make_head(self, *, rngs: nnx.Rngs) -> Any:
        """The classifier of the output of ``pooled``; None for 0 classes."""
        return make_head(self.num_features, self.config.num_classes, self.config, rngs)

    def reset_head(self, num_classes: int, *, rngs: nnx.Rngs | None = None) -> None:
        """Replaces the head by a fresh one for ``num_classes``; 0 removes it."""
        self.config = dataclasses.replace(self.config, num_classes=num_classes)
        # nnx.data: lets a model that was made without a head get one.
        self.head = nnx.data(self.make_head(rngs=nnx.Rngs(0) if rngs is None else rngs))


class MLPHead(Module):
    """A classifier with hidden layers: ``out(relu(hidden(x)))``, or ``out(relu(narrow(relu(hidden(x)))))``."""

    def __init__(
        self,
        features: int,
        num_classes: int,
        hidden: int,
        narrow: int | None = None,
        *,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        common = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.hidden = Linear(features, hidden, **common)
        self.narrow = None if narrow is None else Linear(hidden, narrow, **common)
        self.out = Linear(hidden if narrow is None else narrow, num_classes, **common)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, features) to logits (batch, classes)."""
        x = nnx.relu(self.hidden(x))
        return self.out(x if self.narrow is None else nnx.relu(self.narrow(x)))


def check_images(images: jax.Array, channels: int) -> None:
    """Checks that the input is a batch of normalized images.

    Raises:
      ValueError: no batch axis or nothing along it, whole numbers (0 to 255, not yet normalized), or another number of
        channels.
    """
    if images.ndim != 4:
        one = "; one image needs a batch axis in front: image[None]" if images.ndim == 3 else ""
        raise ValueError(f"the model takes images (batch, height, width, channels), got the shape {images.shape}{one}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        remedy = "zoo.preprocess(model)(images) makes them of uint8 images and of files"
        raise ValueError(f"the model takes normalized floating point images, got {images.dtype}: {remedy}")
    if 0 in images.shape:
        raise ValueError(f"there are no images: their shape is {images.shape}")
    if images.shape[-1] != channels:
        raise ValueError(f"the model takes images of {channels} channels, got {images.shape[-1]}")


def make_head(features: int, num_classes: int, config: ModelConfig, rngs: nnx.Rngs) -> Linear | None:
    """The linear classifier, or None for 0 classes."""
    if not num_classes:
        return None
    options = {"use_bias": getattr(config, "head_bias", True), "dtype": config.dtype, "param_dtype": config.param_dtype}
    return Linear(features, num_classes, kernel_init=truncated_normal(0.02), **options, rngs=rngs)

"""Making models by name."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from layers.mixer import MixerSpec
from zoo.registry import Preprocess, configure, variant


def create(
    name: str,
    *,
    num_classes: int | None = None,
    mixer: MixerSpec | None = None,
    rngs: nnx.Rngs | None = None,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    **overrides: Any,
) -> nnx.Module:
    """Makes a model.

    Args:
      name: one of ``zoo.list_models()``.
      num_classes: classes of the head; None keeps the released number, 0 leaves the head out.
      mixer: another token mixer: a name of ``layers.list_mixers()``, a dict with its options, or a callable.
      rngs: for the parameters; default ``nnx.Rngs(0)``.
      dtype: of the computation ("bfloat16" or a jnp dtype); parameters stay in ``param_dtype``.
      **overrides: any hyper-parameter of the architecture.

    Raises:
      ValueError: an unknown name, hyper-parameter or mixer (near ones are given).
    """
    entry = variant(name)
    given = {"num_classes": num_classes, "mixer": mixer, "dtype": None if dtype is None else jnp.dtype(dtype)}
    overrides = {**overrides, **{k: v for k, v in given.items() if v is not None}, "param_dtype": jnp.dtype(param_dtype)}
    config = configure(entry, overrides)
    model = entry.build(config, rngs=nnx.Rngs(0) if rngs is None else rngs)
    model.variant = name
    return model


def preprocess(model: str | nnx.Module) -> Preprocess:
    """How a model (or the model of a name) wants its images."""
    entry = variant(model if isinstance(model, str) else model.variant)
    config = entry.config if isinstance(model, str) else model.config
    return Preprocess(**{"image_size": config.image_size, **entry.preprocess})

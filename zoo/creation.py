"""Making models by name."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from layers.making import Unfinished
from layers.mixer import MixerSpec
from zoo.descriptions import describe
from zoo.registry import ModelConfig, Preprocess, Variant, abstract, configure, variant
from zoo.sources import on_hub, open_source, run_record
from zoo.weights import classes_of, load_keeping


def create(
    name: str | None = None,
    *,
    weights: str | Path | Mapping[str, Any] | None = None,
    num_classes: int | None = None,
    mixer: MixerSpec | None = None,
    rngs: nnx.Rngs | None = None,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    shardings: Callable[[nnx.Module], Mapping[str, Any]] | None = None,
    **overrides: Any,
) -> nnx.Module:
    """Makes a model in evaluation mode; ``model.train()`` switches dropout, stochastic depth and batch statistics to
    training.

    Args:
      name: one of ``zoo.list_models()``; may be None if ``weights`` is the working directory of a training run, or was
        written by ``zoo.save_folder`` or ``zoo.push_to_hub``, which record the model.
      weights: what to load, as in ``zoo.load``: a file, a folder, ``hf://owner/name``, or the name of a released
        checkpoint ("in1k"); None leaves the parameters random. If the checkpoint has another number of classes than
        ``num_classes``, the head stays random, with a warning.
      num_classes: classes of the head; None keeps the released number, or the run's; 0 leaves the head out.
      mixer: another token mixer: a name of ``layers.list_mixers()``, a dict with its options, or a callable.
      rngs: for the parameters; default ``nnx.Rngs(0)``.
      dtype: of the computation ("bfloat16" or a jnp dtype); parameters stay in ``param_dtype``.
      param_dtype: of the parameters; "file" keeps that of the weights.
      shardings: a function of the abstract model that returns the sharding of each parameter, by name; with it a model
        too large for one device is made, and loaded, in parts.
      **overrides: any hyper-parameter of the architecture.

    Raises:
      ValueError: an unknown name, hyper-parameter or mixer (similar ones are suggested), or weights that don't fit.
    """
    if on_hub(weights):
        open_source(str(weights))  # first, so that an unreachable source is tried once and reported as weights
    record = run_record(weights)
    if name is None:
        if record is None:
            given = weights if isinstance(weights, str | Path) else None
            if given is not None and not on_hub(given) and not Path(given).exists():
                raise ValueError(
                    f"there are no weights at {given}; the name of a released checkpoint needs that of a model too"
                )
            raise ValueError(
                "zoo.create needs the name of a model, or weights= the working directory of a training run or what "
                f"zoo.save_folder or zoo.push_to_hub wrote{'' if given is None else f', and {given} is none of them'}; "
                "zoo.list_models() lists the names"
            )
        name = record["model"]
    entry = variant(name)
    if record is not None and entry.name == variant(record["model"]).name:
        overrides = {**record["options"], **overrides}
        stored = {name: overrides.pop(name, None) for name in ("num_classes", "mixer")}
        num_classes = stored["num_classes"] if num_classes is None else num_classes
        mixer = stored["mixer"] if mixer is None else mixer
    asked = tuple(overrides)
    overrides = {**_described(entry, weights, asked), **overrides}
    keep = isinstance(param_dtype, str) and param_dtype == "file"
    if keep and weights is None:
        raise ValueError('param_dtype="file" is the type of weights: give weights=, or a type')
    chosen = jnp.float32 if keep else param_dtype
    config = _configured(entry, num_classes=num_classes, mixer=mixer, dtype=dtype, param_dtype=chosen, **overrides)
    rngs = nnx.Rngs(0) if rngs is None else rngs
    unfinished = Unfinished(lambda rngs: entry.build(config, rngs=rngs), rngs, shardings)
    unfinished.model.variant = entry.name
    unfinished.model.eval()
    if weights is None:
        return unfinished.finish()
    theirs = classes_of(name, weights, config) if num_classes else None
    fresh = bool(num_classes) and theirs != num_classes
    head = "reset" if fresh else None
    load_keeping(unfinished.model, weights, asked, head=head, dtype="file" if keep else None)
    if fresh:
        source = weights if isinstance(weights, str | Path) else "the checkpoint"
        had = "no classifier" if theirs is None else f"{theirs} classes"
        warnings.warn(f"{source} has {had}: the head for {num_classes} classes stays random", stacklevel=2)
    return unfinished.finish()


def _described(entry: Variant, weights: Any, asked: Collection[str]) -> dict[str, Any]:
    """Configuration fields in which the weights' model differs from the variant, by the description next to them or the
    image size of a release, except those in ``asked``."""
    if not isinstance(weights, str | Path):
        return {}
    if (release := entry.release(str(weights))) is not None:
        return {} if release.image_size is None else {"image_size": release.image_size}
    described = describe(entry, weights).fields
    fields = {
        field: value
        for field, value in described.items()
        if field not in asked and value != getattr(entry.config, field)
    }
    if fields:
        warnings.warn(
            f"config.json of {weights} has {', '.join(f'{field}={value!r}' for field, value in fields.items())}: the "
            "model follows it",
            stacklevel=3,
        )
    return fields


def _dtype(field: str, value: Any) -> Any:
    try:
        return jnp.dtype(value)
    except TypeError:
        raise ValueError(
            f'{field} is the name of a floating point type, as "float32", "bfloat16" or "float16"; got {value!r}'
        ) from None


def create_abstract(name: str, **overrides: Any) -> Any:
    """The model that :func:`create` makes from the same arguments, with ``jax.ShapeDtypeStruct`` for arrays.

    Raises:
      ValueError: an unknown name, hyper-parameter or mixer.
    """
    entry = variant(name)
    model: Any = abstract(entry, _configured(entry, **overrides))
    model.variant = entry.name
    return model


def _configured(
    entry: Variant,
    *,
    num_classes: Any = None,
    mixer: Any = None,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    **overrides: Any,
) -> ModelConfig:
    given = {"num_classes": num_classes, "mixer": mixer, "dtype": None if dtype is None else _dtype("dtype", dtype)}
    return configure(
        entry,
        {
            **overrides,
            **{k: v for k, v in given.items() if v is not None},
            "param_dtype": _dtype("param_dtype", param_dtype),
        },
    )


def preprocess(model: str | nnx.Module) -> Preprocess:
    """The preprocessing of a model (or of a model's name): that of the released checkpoint that it holds, else of the
    architecture's preferred one. For a model of gray images, ``mean`` and ``std`` are averaged over the colors.

    Raises:
      ValueError: the model takes no images.
    """
    made: Any = model
    entry = variant(made if isinstance(made, str) else made.variant)
    config: Any = entry.config if isinstance(made, str) else made.config
    if not hasattr(config, "image_size"):
        raise ValueError(f"{entry.name} takes no images, so there is no preprocessing: zoo.list_models() lists others")
    released = {} if isinstance(made, str) else getattr(made, "released", None) or {}
    found = Preprocess(**{"image_size": config.image_size, **entry.preferred_preprocess, **released})
    if getattr(config, "in_channels", None) == 1 < len(found.mean):
        mean, std = (float(np.mean(values)) for values in (found.mean, found.std))
        return dataclasses.replace(found, mean=(mean,), std=(std,))
    return found

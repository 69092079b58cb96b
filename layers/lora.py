"""LoRA: Low-Rank Adaptation of Large Language Models (Hu et al., 2021, arXiv:2106.09685), section 4.1.

    y = x W + b + (alpha / rank) (x A) B        A random, B zero: initially no change

:func:`add_lora` adds A and B to linear layers anywhere in any model; the layers keep their places and the names of
their parameters. :func:`merge_lora` adds the products to the kernels and restores the plain model.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype

from layers.initializers import normal, zeros
from layers.linear import Linear, multiplied
from layers.quantized import format_of
from layers.state import flatten
from suggestions import near

LAYERS = ("*blocks.*",)
"""Patterns of all linear layers inside blocks, in any backbone."""


class AdaptedLinear(Linear):
    """A linear layer with ``lora_a`` (in_features, rank) and ``lora_b`` (rank, out_features) next to its kernel; made
    by :func:`add_lora`.

    Attributes:
      lora_scale: alpha / rank.
    """

    lora_a: nnx.LoRAParam
    lora_b: nnx.LoRAParam
    lora_scale: float

    def __call__(self, inputs: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        """Maps (..., in_features) to (..., out_features)."""
        y = super().__call__(inputs, *args, **kwargs)
        x, a, b = promote_dtype((inputs, self.lora_a[...], self.lora_b[...]), dtype=self.dtype)
        return y + self.lora_scale * multiplied(multiplied(x, a), b)

    def matrix(self, dtype: Any) -> jax.Array:
        return merged(self.kernel[...], self.lora_a[...], self.lora_b[...], self.lora_scale).astype(dtype)


def add_lora(
    model: nnx.Module,
    *,
    rank: int = 8,
    alpha: float | None = None,
    patterns: Iterable[str] = LAYERS,
    rngs: nnx.Rngs | None = None,
) -> nnx.Module:
    """Adds adapters to linear layers of ``model``, in place, and returns it; its outputs are unchanged.

    Args:
      model: any model; load its pretrained weights first.
      rank: rank of the change to each kernel.
      alpha: the change is scaled by alpha / rank; default ``rank``.
      patterns: globs over dotted names of layers, such as ``*.mixer.query``; every linear layer that matches one is
        adapted.
      rngs: random keys of A, which is normal with variance 1 / in_features (our choice); default ``nnx.Rngs(0)``.

    Raises:
      ValueError: a rank below 1, a pattern that matches no linear layer, or a model that already has adapters or is
        quantized.
    """
    if rank < 1:
        raise ValueError(f"the rank of adapters is at least 1, got {rank}")
    if adapters(model):
        raise ValueError("the model has adapters already: merge_lora(model) first")
    if (kept := format_of(model)) is not None:
        raise ValueError(f"the model's weights are {kept}: add adapters to a float model, and quantize it last")
    linear = linear_layers(model)
    chosen: set[str] = set()
    for pattern in patterns:
        hits = fnmatch.filter(linear, pattern)
        if not hits:
            raise ValueError(
                f"no linear layer matches {pattern!r}{near(pattern, linear)}; there are: "
                f"{', '.join(list(linear)[:8]) or 'none'}, ..."
            )
        chosen.update(hits)
    rngs = nnx.Rngs(0) if rngs is None else rngs
    for name in sorted(chosen):
        adapt(linear[name], rank, rank if alpha is None else alpha, rngs)
    return model


def linear_layers(model: nnx.Module) -> dict[str, Any]:
    """The linear layers of a model that can be adapted, by dotted name."""
    return {
        ".".join(map(str, path)): module
        for path, module in nnx.iter_modules(model)
        if type(module) in (Linear, nnx.Linear)
    }


def adapt(layer: Any, rank: int, alpha: float, rngs: nnx.Rngs) -> None:
    """Makes one linear layer an :class:`AdaptedLinear`, in place: references to it stay valid."""
    dtype = layer.kernel[...].dtype
    object.__setattr__(layer, "__class__", AdaptedLinear)  # bypasses nnx, which would record an attribute
    layer.lora_a = nnx.LoRAParam(normal(layer.in_features**-0.5)(rngs.params(), (layer.in_features, rank), dtype))
    layer.lora_b = nnx.LoRAParam(zeros(rngs.params(), (rank, layer.out_features), dtype))
    layer.lora_scale = alpha / rank


def adapters(model: nnx.Module) -> dict[str, AdaptedLinear]:
    """The adapted layers of a model, by dotted name."""
    return {
        ".".join(map(str, path)): module
        for path, module in nnx.iter_modules(model)
        if isinstance(module, AdaptedLinear)
    }


def merge_lora(model: nnx.Module) -> nnx.Module:
    """Adds every adapter to its kernel and removes the adapter, in place; returns the model."""
    layer: Any
    for layer in adapters(model).values():
        layer.kernel[...] = merged(layer.kernel[...], layer.lora_a[...], layer.lora_b[...], layer.lora_scale)
        for part in ("lora_a", "lora_b", "lora_scale"):
            delattr(layer, part)
        object.__setattr__(layer, "__class__", Linear)
    return model


def merged(kernel: Any, a: Any, b: Any, scale: float) -> jax.Array:
    """``W + scale A B`` computed in float32, returned in the dtype of W."""
    change = jnp.matmul(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32), precision="highest")
    return (jnp.asarray(kernel, jnp.float32) + scale * change).astype(kernel.dtype)


def kept(model: nnx.Module) -> set[str]:
    """Names of the parameters that stay frozen when an adapted model is trained, all but adapters and heads; none
    without adapters.
    """
    if not adapters(model):
        return set()
    heads = getattr(model, "heads", ("head",))
    trained = flatten(model, nnx.LoRAParam)
    return {name for name in flatten(model, nnx.Param) if name not in trained and name.split(".")[0] not in heads}

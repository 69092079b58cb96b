"""Optimisers by name over a flat dictionary of parameters: thin calls of optax, with decay, factors and freezing by name pattern.

Patterns are globs over whole dotted names: ``*.bias``, ``blocks.0.*``, ``head.*``.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import optax
from flax import nnx

from layers import lora
from tasks.registry import unknown

Rate = jax.Array | float
Mask = dict[str, bool]


def _coupled(base: Callable[..., optax.GradientTransformation]) -> Callable[..., optax.GradientTransformation]:
    """Weight decay as an L2 penalty: added to the gradient before the optimiser sees it."""

    def make(rate: Rate, decay: float, mask: Mask, **options: Any) -> optax.GradientTransformation:
        return optax.chain(optax.add_decayed_weights(decay, mask) if decay else optax.identity(), base(rate, **options))

    make.__signature__ = inspect.signature(base)  # type: ignore[attr-defined]
    return make


def _decoupled(base: Callable[..., optax.GradientTransformation], decay_name: str = "weight_decay", mask_name: str = "mask") -> Callable[..., Any]:
    def make(rate: Rate, decay: float, mask: Mask, **options: Any) -> optax.GradientTransformation:
        return base(rate, **{decay_name: decay, mask_name: mask}, **options)

    make.__signature__ = inspect.signature(base)  # type: ignore[attr-defined]
    return make


def _muon(rate: Rate, decay: float, mask: Mask, *, adam: Iterable[str] = (), **options: Any) -> optax.GradientTransformation:
    """Muon for matrices, Adam for the rest, for embeddings and for what the patterns ``adam`` name; decay decoupled for both."""
    kept = matching(adam, mask, "optimizer.options.adam")

    def dimensions(params: Mapping[str, Any]) -> dict[str, Any]:
        matrix = optax.contrib.MuonDimensionNumbers()
        by_muon = {n: getattr(p, "ndim", 0) == 2 and not n.endswith("embedding") and n not in kept for n, p in params.items()}
        return {n: matrix if chosen else None for n, chosen in by_muon.items()}

    # At rate 1 the update is the negated direction; decay and rate follow, alike for both halves.
    direction = optax.contrib.muon(1.0, muon_weight_dimension_numbers=dimensions, **options)
    return optax.chain(direction, optax.add_decayed_weights(-decay, mask), optax.scale(rate))


_MUON_OPTIONS = [p for n, p in inspect.signature(optax.contrib.muon).parameters.items() if n not in ("learning_rate", "muon_weight_dimension_numbers")]
_muon.__signature__ = inspect.Signature([*_MUON_OPTIONS, inspect.Parameter("adam", inspect.Parameter.KEYWORD_ONLY)])  # type: ignore[attr-defined]

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": _decoupled(optax.adamw),
    "adam": _coupled(optax.adam),
    "sgd": _coupled(optax.sgd),
    "lion": _decoupled(optax.lion),
    "lamb": _decoupled(optax.lamb),
    "adafactor": _decoupled(optax.adafactor, "weight_decay_rate", "weight_decay_mask"),
    "muon": _muon,
}
_OURS = frozenset({"learning_rate", "weight_decay", "mask", "weight_decay_rate", "weight_decay_mask", "adam_learning_rate", "adam_weight_decay"})


def matching(patterns: Iterable[str], names: Iterable[str], field: str) -> frozenset[str]:
    """Names that match any of ``patterns``.

    Raises:
      ValueError: a pattern that matches nothing.
    """
    names = list(names)
    found: set[str] = set()
    for pattern in patterns:
        hits = fnmatch.filter(names, pattern)
        if not hits:
            raise ValueError(f"{field}: no parameter matches {pattern!r}; {unknown('pattern', pattern, names)}")
        found.update(hits)
    return frozenset(found)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """What to do with each parameter of one model.

    Attributes:
      trainable: names of the parameters that are trained; the others have no gradient and no optimiser state.
      decayed: those of them that weight decay pulls on.
      factors: learning-rate factor of each, where it is not 1.
      peak: learning rate at the end of the warm-up.
    """

    name: str
    peak: float
    weight_decay: float
    clip_norm: float
    options: dict[str, Any]
    trainable: tuple[str, ...]
    decayed: frozenset[str]
    factors: dict[str, float]

    def transformation(self, rate: Rate) -> optax.GradientTransformation:
        """The optax transformation at learning rate ``rate`` (may be traced: the state does not depend on it)."""
        mask = {name: name in self.decayed for name in self.trainable}
        base = OPTIMIZERS[self.name](rate, self.weight_decay, mask, **self.options)
        parts = [optax.clip_by_global_norm(self.clip_norm)] if self.clip_norm else []
        return optax.chain(*parts, base, optax.stateless(self._scaled))

    def _scaled(self, updates: Mapping[str, jax.Array], _: Any) -> dict[str, jax.Array]:
        return {name: update * self.factors[name] if name in self.factors else update for name, update in updates.items()}


def create(model: nnx.Module, params: Mapping[str, Any], config: Mapping[str, Any]) -> Optimizer:
    """Makes the optimiser of ``model``.

    Args:
      model: asked for ``no_decay() -> names`` and ``layer_ids() -> {name: int}`` where it has them.
      params: its parameters by dotted name.
      config: ``name, learning_rate`` and, each optional, ``weight_decay, clip_norm, layer_decay (0 or 1 = off),
        multipliers ({pattern: factor} or pairs), freeze, no_decay (patterns), options`` (of the optax function).
        A pattern of ``freeze`` that begins with "!" frees again: ``("*", "!head.*")`` trains the head alone. Of a
        model with adapters (``zoo.add_lora``) all but adapters and heads is frozen before the first pattern.
        Parameters of one dimension and those the model names are never decayed.

    Raises:
      ValueError: unknown names, options or patterns; nothing left to train; layer decay the model can't serve.
    """
    name = config["name"]
    if name not in OPTIMIZERS:
        raise ValueError(unknown("optimiser", name, OPTIMIZERS))
    options = dict(config.get("options") or {})
    taken = set(inspect.signature(OPTIMIZERS[name]).parameters) - _OURS
    for option in options:
        if option not in taken:
            raise ValueError(unknown(f"option of optimiser {name}", option, taken))
    frozen = _frozen(model, config.get("freeze") or (), params)
    trainable = tuple(n for n in params if n not in frozen)
    if not trainable:
        raise ValueError("optimizer.freeze leaves no parameter to train")
    spared = matching(config.get("no_decay") or (), params, "optimizer.no_decay") | set(model.no_decay() if hasattr(model, "no_decay") else ())
    factors = _layer_factors(model, trainable, config.get("layer_decay") or 1.0)
    for pattern, factor in dict(config.get("multipliers") or {}).items():
        for hit in matching((pattern,), params, "optimizer.multipliers"):
            factors[hit] = factors.get(hit, 1.0) * factor
    return Optimizer(
        name=name,
        peak=config["learning_rate"],
        weight_decay=config.get("weight_decay") or 0.0,
        clip_norm=config.get("clip_norm") or 0.0,
        options=options,
        trainable=trainable,
        decayed=frozenset(n for n in trainable if params[n].ndim > 1 and n not in spared),
        factors={n: f for n, f in factors.items() if f != 1.0},
    )


def _frozen(model: nnx.Module, patterns: Iterable[str], names: Iterable[str]) -> frozenset[str]:
    """What is not trained: what an adapted model keeps, then what the patterns add or, with a leading "!", take away, in their order."""
    frozen = frozenset(lora.kept(model))
    for pattern in patterns:
        hits = matching((pattern.removeprefix("!"),), names, "optimizer.freeze")
        frozen = frozen - hits if pattern.startswith("!") else frozen | hits
    return frozen


def _layer_factors(model: nnx.Module, names: Iterable[str], decay: float) -> dict[str, float]:
    """``decay`` to the power of a parameter's distance from the last layer."""
    if decay == 1.0:
        return {}
    if not hasattr(model, "layer_ids"):
        raise ValueError(f"optimizer.layer_decay={decay}: {type(model).__name__} does not say which layer its parameters belong to (no layer_ids())")
    layers = model.layer_ids()
    lacking = [name for name in names if name not in layers]
    if lacking:
        raise ValueError(f"optimizer.layer_decay={decay}: {type(model).__name__}.layer_ids() lacks {', '.join(lacking[:5])}")
    last = max(layers.values())
    return {name: decay ** (last - layers[name]) for name in names}

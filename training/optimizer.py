"""Optimizers by name over a flat dictionary of parameters: thin wrappers of optax, with weight decay, learning-rate
factors and freezing by name pattern.

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
from layers.linear import linear_matrices
from layers.quantized import format_of
from suggestions import unknown
from training.precision import ROUNDINGS, in_float32

Rate = jax.Array | float
Mask = dict[str, bool]


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Which parameters an optimizer treats how: weight decay ``decay`` for those in ``decayed``, orthogonalized updates
    (Muon) for ``matrices``.
    """

    decay: float
    decayed: Mask
    matrices: frozenset[str]


def _signed(like: Callable[..., Any], *more: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Gives a function the signature of ``like``, which lists the options that a user may set."""

    def sign(make: Callable[..., Any]) -> Callable[..., Any]:
        taken = [p for p in inspect.signature(like).parameters.values() if p.kind is not p.VAR_KEYWORD]
        extra = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in more]
        make.__signature__ = inspect.Signature([*taken, *extra])  # type: ignore[attr-defined]
        return make

    return sign


def _coupled(base: Callable[..., optax.GradientTransformation]) -> Callable[..., optax.GradientTransformation]:
    """Weight decay as an L2 penalty: added to the gradient before the optimizer sees it."""

    @_signed(base)
    def make(rate: Rate, plan: _Plan, **options: Any) -> optax.GradientTransformation:
        penalty = optax.add_decayed_weights(plan.decay, plan.decayed) if plan.decay else optax.identity()
        return optax.chain(penalty, base(rate, **options))

    return make


def _decoupled(base: Callable[..., optax.GradientTransformation]) -> Callable[..., optax.GradientTransformation]:
    """Decoupled weight decay: a step subtracts rate * decay * weight, apart from the gradient's statistics."""

    @_signed(base)
    def make(rate: Rate, plan: _Plan, **options: Any) -> optax.GradientTransformation:
        return base(rate, weight_decay=plan.decay, mask=plan.decayed, **options)

    return make


@_signed(optax.adafactor)
def _adafactor(rate: Rate, plan: _Plan, **options: Any) -> optax.GradientTransformation:
    # optax subtracts this fraction of the weights at any rate; the decay of all other optimizers is multiplied by the
    # rate.
    return optax.adafactor(rate, weight_decay_rate=rate * plan.decay, weight_decay_mask=plan.decayed, **options)


@_signed(optax.contrib.muon, "adam")
def _muon(rate: Rate, plan: _Plan, *, adam: Iterable[str] = (), **options: Any) -> optax.GradientTransformation:
    """Muon for the matrices of blocks, Adam for the rest and for parameters that match the patterns ``adam``; decoupled
    decay for both.
    """
    kept = matching(adam, plan.decayed, "optimizer.options.adam")

    def dimensions(params: Mapping[str, Any]) -> dict[str, Any]:
        matrix = optax.contrib.MuonDimensionNumbers()
        return {name: matrix if name in plan.matrices - kept else None for name in params}

    # At rate 1 the update is the negated direction; decay and rate are applied after it, in the same way to both parts.
    direction = optax.contrib.muon(1.0, muon_weight_dimension_numbers=dimensions, **options)
    return optax.chain(direction, optax.add_decayed_weights(-plan.decay, plan.decayed), optax.scale(rate))


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": _decoupled(optax.adamw),
    "adam": _coupled(optax.adam),
    "sgd": _coupled(optax.sgd),
    "lion": _decoupled(optax.lion),
    "lamb": _decoupled(optax.lamb),
    "adafactor": _adafactor,
    "muon": _muon,
}
# Arguments that are set by config fields other than "options".
_OURS = frozenset(
    {
        "learning_rate",
        "weight_decay",
        "mask",
        "weight_decay_rate",
        "weight_decay_mask",
        "adam_learning_rate",
        "adam_weight_decay",
    }
    | {"muon_weight_dimension_numbers"}
)


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
    """How each parameter of one model is updated.

    Attributes:
      trainable: names of the parameters that are trained; the others have no gradient and no optimizer state.
      decayed: the trainable parameters with weight decay.
      factors: learning-rate factors by parameter name, where not 1; they scale the weight decay too.
      matrices: names of the matrices of linear layers inside blocks, which Muon updates.
      peak: learning rate at the end of the warm-up.
      name, weight_decay, clip_norm, options: as in :func:`create`.
      rounding: how updates reach parameters narrower than float32 (:mod:`training.precision`).
    """

    name: str
    peak: float
    weight_decay: float
    clip_norm: float
    options: dict[str, Any]
    trainable: tuple[str, ...]
    decayed: frozenset[str]
    factors: dict[str, float]
    matrices: frozenset[str] = frozenset()
    rounding: str = "master"

    def transformation(self, rate: Rate) -> optax.GradientTransformation:
        """The optax transformation at learning rate ``rate``, which may be traced: the state does not depend on it."""
        mask = {name: name in self.decayed for name in self.trainable}
        base = OPTIMIZERS[self.name](rate, _Plan(self.weight_decay, mask, self.matrices), **self.options)
        parts = [optax.clip_by_global_norm(self.clip_norm)] if self.clip_norm else []
        return in_float32(optax.chain(*parts, base, optax.stateless(self._scaled)), self.rounding)

    def _scaled(self, updates: Mapping[str, jax.Array], _: Any) -> dict[str, jax.Array]:
        return {
            name: update * self.factors[name] if name in self.factors else update for name, update in updates.items()
        }


def create(model: nnx.Module, params: Mapping[str, Any], config: Mapping[str, Any]) -> Optimizer:
    """Makes the optimizer of ``model``.

    Args:
      model: the model; its ``no_decay() -> names`` and ``layer_ids() -> {name: int}`` are used where it has them.
      params: its parameters by dotted name.
      config: ``name, learning_rate`` and, each optional, ``weight_decay, clip_norm, layer_decay (0 or 1 = off),
        multipliers (pairs of a pattern and a factor, or a mapping), freeze, no_decay (patterns), options (of the optax
        function), rounding ("master" or "stochastic", of parameters narrower than float32)``. A pattern of ``freeze``
        that begins with "!" unfreezes: ``("*", "!head.*")`` trains only the head. In a model with adapters
        (``zoo.add_lora``) everything except adapters and heads is frozen before the first pattern. Parameters with one
        dimension and those that the model's ``no_decay`` names are never decayed.

    Raises:
      ValueError: unknown names, options or patterns; nothing left to train; layer decay that the model does not
        support; a quantized model.
    """
    if (kept := format_of(model)) is not None:
        raise ValueError(
            f"the model's weights are {kept} and can't be trained: train it with float weights, then zoo.quantize it"
        )
    name = config["name"]
    if name not in OPTIMIZERS:
        raise ValueError(unknown("optimizer", name, OPTIMIZERS))
    options = dict(config.get("options") or {})
    taken = set(inspect.signature(OPTIMIZERS[name]).parameters) - _OURS
    for option in options:
        if option not in taken:
            raise ValueError(unknown(f"option of optimizer {name}", option, taken))
    rounding = config.get("rounding") or "master"
    if rounding not in ROUNDINGS:
        raise ValueError(unknown("optimizer.rounding", rounding, ROUNDINGS))
    frozen = _frozen(model, config.get("freeze") or (), params)
    trainable = tuple(n for n in params if n not in frozen)
    if not trainable:
        raise ValueError("optimizer.freeze leaves no parameter to train")
    spared = matching(config.get("no_decay") or (), params, "optimizer.no_decay") | set(
        model.no_decay() if hasattr(model, "no_decay") else ()
    )
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
        matrices=_block_matrices(model) & set(trainable),
        rounding=rounding,
    )


def _block_matrices(model: nnx.Module) -> frozenset[str]:
    """Names of the matrices of linear layers inside blocks, or of all linear layers in a model without blocks.

    Muon (Jordan et al., 2024) is for hidden layers: its authors use Adam for embeddings, heads and all parameters that
    are not matrices. A table of tokens, positions or decays also has two axes, but is not such a matrix.
    """
    matrices = linear_matrices(model)
    return frozenset(name for name in matrices if "blocks" in name.split(".")) or frozenset(matrices)


def _frozen(model: nnx.Module, patterns: Iterable[str], names: Iterable[str]) -> frozenset[str]:
    """Names of frozen parameters: the base weights of a model with adapters, then those that the patterns add or, with
    a leading "!", remove, in order.
    """
    frozen = frozenset(lora.kept(model))
    for pattern in patterns:
        hits = matching((pattern.removeprefix("!"),), names, "optimizer.freeze")
        frozen = frozen - hits if pattern.startswith("!") else frozen | hits
    return frozen


def _layer_factors(model: nnx.Module, names: Iterable[str], decay: float) -> dict[str, float]:
    """Learning-rate factors by name: ``decay`` to the power of the parameter's distance from the last layer.

    Raises:
      ValueError: the model does not assign its parameters to layers.
    """
    if decay == 1.0:
        return {}
    if not hasattr(model, "layer_ids"):
        raise ValueError(
            f"optimizer.layer_decay={decay}: {type(model).__name__} does not say which layer its parameters belong to "
            f"(no layer_ids())"
        )
    layers = model.layer_ids()
    lacking = [name for name in names if name not in layers]
    if lacking:
        raise ValueError(
            f"optimizer.layer_decay={decay}: {type(model).__name__}.layer_ids() lacks {', '.join(lacking[:5])}"
        )
    last = max(layers.values())
    return {name: decay ** (last - layers[name]) for name in names}

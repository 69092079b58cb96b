"""The one interface of token mixing, and the register of everything that implements it.

A mixer maps ``(batch, length, features)`` to the same shape, or ``(batch, height, width, features)``
for grids. A causal mixer also reads a sequence piece by piece: ``init_state`` makes an empty state
and ``extend`` takes any number of new tokens (a prompt, a chunk, one token), with results equal to
those of the whole sequence wherever it is split.

Rules of a state: every leaf has batch as its first axis; positions are per row and live in the
state; a masked token (padding, always trailing) leaves its row's state unchanged and does not
advance its position; windows, chunks and segments are counted from position 0 of the row.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from layers.module import Module

Layout = Literal["sequence", "grid"]
State = Any
MixerSpec = Any
"""How a user names a mixer: a registered name, ``{"name": ..., **options}``, a callable that makes one, or one already made."""


class Mixer(Module):
    """Base class of token mixers. Constructor arguments of every registered mixer: ``features, *, ..., dtype, param_dtype, rngs``.

    Attributes:
      supports_causal, supports_bidirectional: what ``causal=`` accepts.
      layouts: "sequence" for (batch, length, features), "grid" for (batch, height, width, features).
      streaming: "exact", or "selection" where the set a token attends to is chosen with knowledge of
        later tokens (the class docstring says why). An instance whose options make it exact says so.
      paper: rows of the zoo's roster that the class implements.
      causal: this instance looks back only.
    """

    supports_causal: ClassVar[bool] = False
    supports_bidirectional: ClassVar[bool] = True
    layouts: ClassVar[tuple[Layout, ...]] = ("sequence",)
    streaming: Literal["exact", "selection"] = "exact"
    paper: ClassVar[tuple[int, ...]] = ()
    causal: bool = False

    def __call__(self, x: jax.Array, mask: jax.Array | None = None, positions: jax.Array | None = None) -> jax.Array:
        """Mixes whole sequences.

        Args:
          x: (batch, length, features) or (batch, height, width, features).
          mask: bool, (batch, length) or (batch, height, width), True = real token.
          positions: int32, (batch, length), or (batch, length, axes) for tokens of a grid; default 0, 1, 2, ...
        """
        raise NotImplementedError

    @property
    def complexity(self) -> float:
        """Exponent of the cost in length for this instance's options (1.0 linear, 2.0 quadratic)."""
        raise NotImplementedError(f"{type(self).__name__} does not declare its complexity")

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32, context: jax.Array | None = None) -> State:
        """An empty state for ``batch_size`` rows; ``max_length`` is the capacity of a cache that needs one."""
        raise NotImplementedError(f"{type(self).__name__} can't be read piece by piece: it is not causal")

    def extend(self, x: jax.Array, state: State, mask: jax.Array | None = None) -> tuple[jax.Array, State]:
        """Mixes new tokens ``x`` (batch, new, features) given the state of those before; returns (y, state)."""
        raise NotImplementedError(f"{type(self).__name__} can't be read piece by piece: it is not causal")


def without_padding(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """``x`` (..., features) with zeros where ``mask`` (...) is False: padding may hold anything, and 0 * NaN is NaN in a gradient."""
    return x if mask is None else jnp.where(mask[..., None], x, 0)


def finite_padding(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """``x`` (..., features) with zeros for what is not finite where ``mask`` (...) is False; finite padding is unchanged, as in released models."""
    return x if mask is None else jnp.where(mask[..., None] | jnp.isfinite(x), x, 0)


M = TypeVar("M", bound=type[Mixer])
_REGISTRY: dict[str, type[Mixer]] = {}


def register_mixer(name: str) -> Callable[[M], M]:
    """Class decorator: makes a mixer available by ``name``."""

    def register(cls: M) -> M:
        if name in _REGISTRY:
            raise ValueError(f"mixer {name!r} is registered twice ({_REGISTRY[name].__name__}, {cls.__name__})")
        _REGISTRY[name] = cls
        return cls

    return register


def list_mixers() -> list[str]:
    """Names of all registered mixers."""
    return sorted(_REGISTRY)


def mixer_class(name: str) -> type[Mixer]:
    """The class registered under ``name``.

    Raises:
      ValueError: unknown name; near ones are given.
    """
    if name not in _REGISTRY:
        raise ValueError(f"unknown mixer {name!r}{near(name, _REGISTRY)}; layers.list_mixers() lists all")
    return _REGISTRY[name]


def near(name: str, known: Iterable[str]) -> str:
    """": did you mean ...?" with the near matches of ``name`` among ``known``, or an empty string."""
    matches = difflib.get_close_matches(name, list(known), n=4, cutoff=0.5)
    return f": did you mean {' or '.join(matches)}?" if matches else ""


def create_mixer(spec: MixerSpec, features: int, *, causal: bool = False, rngs: nnx.Rngs, hints: Mapping[str, Any] | None = None, **options: Any) -> Mixer:
    """Makes a mixer of ``features`` channels.

    Args:
      spec: a registered name, ``{"name": ..., **options}``, a callable ``(features, *, rngs, ...) -> Mixer``,
        or a mixer, which is returned as it is.
      causal: the mixer must look back only.
      rngs: for the parameters.
      hints: what the surrounding model suggests (``num_heads``, ``grid``, ``dropout``, ...): passed on
        where the constructor takes it, ignored where not.
      **options: the mixer's own options: each must be one that it takes.

    Raises:
      ValueError: unknown name or option, or a mixer that can't be causal.
    """
    if isinstance(spec, Mixer):
        return spec
    if isinstance(spec, Mapping):
        if "name" not in spec:
            raise ValueError(f'a mixer given as a dict needs "name"; it has {sorted(spec)}')
        options = {**{k: v for k, v in spec.items() if k != "name"}, **options}
        spec = spec["name"]
    make: Callable[..., Mixer] = mixer_class(spec) if isinstance(spec, str) else spec
    taken, any_option = accepted(make)
    unknown = [] if any_option else sorted(set(options) - taken)
    if unknown:
        label = spec if isinstance(spec, str) else getattr(make, "__name__", repr(make))
        raise ValueError(f"mixer {label!r} has no option {unknown[0]!r}{near(unknown[0], taken)}; it takes: {', '.join(sorted(taken - {'features', 'rngs'}))}")
    # A combinator takes the hints themselves, for the mixers inside it.
    offered = {**(hints or {}), "hints": hints, "causal": causal}
    fitting = {k: v for k, v in offered.items() if k in taken and k not in options}
    mixer = make(features, rngs=rngs, **fitting, **options)
    if causal and not mixer.causal:
        raise ValueError(f"{type(mixer).__name__} is bidirectional only: it can't stand where tokens may not see later ones")
    return mixer


@functools.cache
def _signature(make: Callable[..., Any]) -> inspect.Signature:
    # The metaclass of nnx modules replaces the constructor's signature by (*args, **kwargs).
    constructor: Callable[..., Any] = getattr(make, "__init__") if isinstance(make, type) else make  # noqa: B009
    return inspect.signature(constructor)


def accepted(make: Callable[..., Any]) -> tuple[frozenset[str], bool]:
    """Names of the keyword arguments that ``make`` takes, and whether it takes any (``**kwargs``)."""
    parameters = _signature(make).parameters.values()
    names = frozenset(p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD))
    return names, any(p.kind is p.VAR_KEYWORD for p in parameters)

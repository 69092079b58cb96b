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

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from layers.module import Module
from layers.tokens import Known, Tokens, starts
from suggestions import near

Layout = Literal["sequence", "grid", "image"]
State = Any
MixerSpec = Any
"""How a user names a mixer: a registered name, ``{"name": ..., **options}``, a callable that makes one, or one already
made.
"""

# Why a mixer may have no use for a field, and what to do about it.
_UNUSED = {
    "positions": "it orders tokens by their place in the sequence: leave positions out",
    "segment_ids": "it can't keep the documents of a row apart: give each document a row of its own",
    "roles": "its tokens have no roles: leave roles out",
    "context": "it reads no context: cross attention does (context_features=)",
    "context_mask": "it reads no context: cross attention does (context_features=)",
}


@dataclasses.dataclass(frozen=True)
class Place:
    """Where in a model a mixer is, and what the model suggests to it; None and 0.0 suggest nothing.

    Attributes:
      stage, index: the stage of a pyramid, and the block within it.
      depth: blocks of the model.
      features, num_heads: of the stage.
      grid: rows and columns of the tokens at the model's usual input size.
      drop_path: probability of dropping a branch of the block; None for no dropping at all.
      dropout: of the outputs.
      dtype, param_dtype: of the computation and of the parameters.
    """

    stage: int | None = None
    index: int | None = None
    depth: int | None = None
    features: int | None = None
    num_heads: int | None = None
    grid: tuple[int, int] | None = None
    drop_path: float | None = None
    dropout: float = 0.0
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @property
    def dtypes(self) -> dict[str, Any]:
        """The options that every layer takes."""
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}

    def suggestions(self) -> dict[str, Any]:
        """What it suggests to a constructor, by the name of the argument."""
        skipped = ("features", "drop_path")
        fields = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in skipped
        }
        nothing = {"dropout": 0.0}
        return {name: value for name, value in fields.items() if value is not None and value != nothing.get(name)} | {
            "place": self
        }


class Mixer(Module):
    """Base class of token mixers. Constructor arguments of every registered mixer: ``features, *, ..., dtype,
    param_dtype, rngs``.

    A subclass gives :meth:`mix` and, where it is causal, :meth:`init_state` and :meth:`mix_next`.

    Attributes:
      supports_causal, supports_bidirectional: what ``causal=`` accepts.
      layouts: "sequence" for (batch, length, features), "grid" for (batch, height, width, features), "image" for a
        sequence of prefix tokens and those of a grid, whose rows and columns ``tokens.grid`` must say.
      strides: a map of (height, width) comes out as one of (height / strides, width / strides), rounded up.
      honors: fields of :class:`Tokens` that it uses. One that is given and not honored is refused.
      refusals: reasons of its own for refusing a field.
      segment_multiple: documents of a row must start at multiples of it, because chunks are counted from the row's
        start.
      streaming: "exact", or "selection" where the set a token attends to is chosen with knowledge of
        later tokens (the class docstring says why). An instance whose options make it exact says so.
      takes_positions: ``extend`` takes positions, in place of those that its state counts. They ascend in each
        document, and once given are given of all its tokens.
      shares: it takes and returns what blocks hand on beside x (:class:`layers.stack.Stack`).
      paper: rows of the zoo's roster that the class implements.
      causal: this instance looks back only.
      ignored: options that the model suggested and that this mixer does not take; set by :func:`create_mixer`.
    """

    supports_causal: ClassVar[bool] = False
    supports_bidirectional: ClassVar[bool] = True
    layouts: ClassVar[tuple[Layout, ...]] = ("sequence",)
    strides: int = 1
    honors: frozenset[str] = frozenset({"mask"})
    refusals: ClassVar[Mapping[str, str]] = {}
    segment_multiple: int = 1
    streaming: Literal["exact", "selection"] = "exact"
    takes_positions: bool = False
    shares: bool = False
    paper: ClassVar[tuple[int, ...]] = ()
    # What makes heads is split by columns, what sums them up by rows: one exchange a mixer.
    sharding: ClassVar[Mapping[str, tuple[str | None, ...]]] = {
        **dict.fromkeys(("query.kernel", "key.kernel", "value.kernel", "gate.kernel"), (None, "tensor")),
        "out.kernel": ("tensor", None),
    }
    causal: bool = False
    ignored: tuple[str, ...] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuses a class that gives what callers call, in which fields are checked, instead of what it calls.

        Raises:
          TypeError: the class has ``__call__`` or ``extend`` of its own.
        """
        super().__init_subclass__(**options)
        for theirs, ours in {"__call__": "mix(x, tokens)", "extend": "mix_next(x, state, tokens)"}.items():
            if theirs in vars(cls):
                raise TypeError(f"{cls.__name__} overrides {theirs} of Mixer: override {ours} instead")

    def __call__(self, x: jax.Array, tokens: Known = None, *beside: Any) -> Any:
        """Mixes whole sequences.

        Args:
          x: (batch, length, features) or (batch, height, width, features).
          tokens: what is known of them, or their mask alone.
          *beside: for a mixer that ``shares``, what blocks hand on and what this block alone is given; it returns
            (y, what it hands on), others y alone.

        Raises:
          ValueError: a field is known that the mixer does not honor, or, where that can be seen (outside ``jit``),
            documents do not begin at multiples of ``segment_multiple``.
        """
        tokens = self.checked(tokens)
        self._check_aligned(tokens.segment_ids)
        return self.mix(x, tokens, *beside)

    def _check_aligned(self, segment_ids: jax.Array | None) -> None:
        multiple = self.segment_multiple
        if segment_ids is None or multiple == 1 or isinstance(segment_ids, jax.core.Tracer):
            return
        begins = np.flatnonzero(np.asarray(starts(segment_ids)).any(0))
        if len(off := begins[begins % multiple != 0]):
            raise ValueError(
                f"{type(self).__name__} counts tokens from the start of the row: documents must begin at multiples of"
                f" {multiple}, not at {off[0]}"
            )

    def mix(self, x: jax.Array, tokens: Tokens, /, *beside: Any) -> Any:
        """:meth:`__call__`, given only fields that the mixer honors."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it mixes")

    @property
    def complexity(self) -> float:
        """Exponent of the cost in length for this instance's options (1.0 linear, 2.0 quadratic)."""
        raise NotImplementedError(f"{type(self).__name__} does not declare its complexity")

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> State:
        """An empty state for ``batch_size`` rows; ``max_length`` is the capacity of a cache that needs one. A mixer
        that reads a context also takes ``context`` and ``context_mask``."""
        raise NotImplementedError(f"{type(self).__name__} can't be read piece by piece: it is not causal")

    def extend(self, x: jax.Array, state: State, tokens: Known = None, *beside: Any) -> Any:
        """Mixes new tokens ``x`` (batch, new, features) given the state of those before; returns (y, state), or (y,
        state, what it hands on) where it ``shares``.

        The state knows the context, and positions but for a mixer with ``takes_positions``. Without ``segment_ids``
        the new tokens belong to the document of the last one.

        Raises:
          ValueError: a field is known that the mixer does not honor, or that is the state's to know.
        """
        tokens = self.checked(tokens)
        of_state = {"context", "context_mask"} | (set() if self.takes_positions else {"positions"})
        if known := tokens.given() & of_state:
            raise ValueError(
                f"extend takes no {min(known)}: the state knows it, from init_state and the tokens read so far"
            )
        return self.mix_next(x, state, tokens, *beside)

    def mix_next(self, x: jax.Array, state: State, tokens: Tokens, /, *beside: Any) -> Any:
        """:meth:`extend`, given only fields that the mixer honors."""
        raise NotImplementedError(f"{type(self).__name__} can't be read piece by piece: it is not causal")

    def checked(self, tokens: Known) -> Tokens:
        """``tokens`` as an object.

        Raises:
          ValueError: a field is known that the mixer does not honor.
        """
        tokens = Tokens.of(tokens)
        for field in sorted(tokens.given() - self.honors):
            reason = self.refusals.get(field, _UNUSED.get(field, "it has no use for it"))
            raise ValueError(f"{type(self).__name__} does not honor {field}: {reason}")
        return tokens


def without_padding(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """``x`` (..., features) with zeros where ``mask`` (...) is False: padding may hold anything, and 0 * NaN is NaN in
    a gradient.
    """
    return x if mask is None else jnp.where(mask[..., None], x, 0)


def finite_padding(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """``x`` (..., features) with zeros for what is not finite where ``mask`` (...) is False; finite padding is
    unchanged, as in released models.
    """
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


def create_mixer(
    spec: MixerSpec, features: int, *, causal: bool = False, rngs: nnx.Rngs, place: Place | None = None, **options: Any
) -> Mixer:
    """Makes a mixer of ``features`` channels.

    Args:
      spec: a registered name, ``{"name": ..., **options}``, a callable ``(features, *, rngs, ...) -> Mixer``,
        or a mixer, which is returned as it is.
      causal: the mixer must look back only.
      rngs: for the parameters.
      place: what the surrounding model suggests (``num_heads``, ``grid``, ``dropout``, ...): passed on where the
        constructor takes it. ``mixer.ignored`` names what was suggested and not taken.
      **options: the mixer's own options: each must be one that it takes. A mixer made of others hands on what only
        they take and a place can suggest (``dtype``, ``num_heads``, ...).

    Raises:
      ValueError: unknown name or option, what is no mixer, or one that can't be causal.
    """
    if isinstance(spec, Mixer):
        return spec
    if isinstance(spec, Mapping):
        if "name" not in spec:
            raise ValueError(f'a mixer given as a dict needs "name"; it has {sorted(spec)}')
        options = {**{k: v for k, v in spec.items() if k != "name"}, **options}
        spec = spec["name"]
    make: Callable[..., Mixer] = mixer_class(spec) if isinstance(spec, str) else spec
    if not callable(make):
        raise ValueError(f'a mixer is a name, a dict with "name", a callable or a Mixer, not {spec!r}')
    taken, any_option = accepted(make)
    place = Place() if place is None else place
    if "place" in taken:
        handed_on = {name: options.pop(name) for name in list(options) if name in _SUGGESTED - taken}
        place = dataclasses.replace(place, **handed_on)
    unknown = [] if any_option else sorted(set(options) - taken)
    if unknown:
        label = spec if isinstance(spec, str) else getattr(make, "__name__", repr(make))
        listed = ", ".join(sorted(taken - {"self", "features", "rngs", "place"}))
        raise ValueError(f"mixer {label!r} has no option {unknown[0]!r}{near(unknown[0], taken)}; it takes: {listed}")
    offered = {**place.suggestions(), "causal": causal}
    mixer = make(
        features, rngs=rngs, **{k: v for k, v in offered.items() if k in taken and k not in options}, **options
    )
    if causal and not mixer.causal:
        raise ValueError(
            f"{type(mixer).__name__} is bidirectional only: it can't stand where tokens may not see later ones"
        )
    if place.dropout and "dropout" not in taken and "place" not in taken and not any_option:
        mixer.ignored = ("dropout",)
    return mixer


_SUGGESTED = {field.name for field in dataclasses.fields(Place)} - {"features", "drop_path"}


@functools.cache
def _signature(make: Callable[..., Any]) -> inspect.Signature:
    # The metaclass of nnx modules replaces the constructor's signature by (*args, **kwargs).
    constructor: Callable[..., Any] = getattr(make, "__init__") if isinstance(make, type) else make  # noqa: B009
    try:
        return inspect.signature(constructor, eval_str=True)
    except NameError:  # an annotation that only type checkers can read
        return inspect.signature(constructor)


def accepted(make: Callable[..., Any]) -> tuple[frozenset[str], bool]:
    """Names of the keyword arguments that ``make`` takes, those of ``**options: Unpack[...]`` among them, and whether
    it takes any (other ``**options``). What a ``functools.partial`` has given, it does not take.
    """
    if isinstance(make, functools.partial):
        taken, any_option = accepted(make.func)
        return taken - set(make.keywords), any_option
    parameters = _signature(make).parameters.values()
    names = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    more = next((p.annotation for p in parameters if p.kind is p.VAR_KEYWORD), None)
    if typing.get_origin(more) is typing.Unpack:
        return frozenset(names | set(typing.get_args(more)[0].__annotations__)), False
    return frozenset(names), more is not None

"""The interface of token mixers, and the registry of its implementations.

A mixer maps ``(batch, length, features)`` to the same shape, or ``(batch, height, width, features)`` for grids. A
causal mixer can also read a sequence in pieces: ``init_state`` makes an empty state and ``extend`` takes any number of
new tokens (a prompt, a chunk, one token), with the same results as on the whole sequence, wherever it is split.

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
"""How a user specifies a mixer: a registered name, ``{"name": ..., **options}``, a callable that makes one, or an
instance.
"""

# Default reasons why a mixer does not honor a field, and what to do about it.
_UNUSED = {
    "positions": "it orders tokens by their place in the sequence: leave positions out",
    "segment_ids": "it can't keep the documents of a row apart: give each document a row of its own",
    "roles": "its tokens have no roles: leave roles out",
    "context": "it reads no context: cross attention does (context_features=)",
    "context_mask": "it reads no context: cross attention does (context_features=)",
}


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of a mixer in a model, and the model's suggestions for its options; None and 0.0 suggest nothing.

    Attributes:
      stage, index: the stage of a pyramid, and the block within it.
      depth: number of blocks of the model.
      features, num_heads: width and number of heads of the stage.
      grid: rows and columns of the tokens at the model's usual input size.
      drop_path: probability of dropping a branch of the block; None for no stochastic depth.
      dropout: dropout rate of the outputs.
      dtype, param_dtype: dtypes of the computation and of the parameters.
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
        """The dtype options that every layer takes."""
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}

    def suggestions(self) -> dict[str, Any]:
        """The suggestions for a constructor, by argument name."""
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

    A subclass implements :meth:`mix` and, if it can be causal, :meth:`init_state` and :meth:`mix_next`.

    Attributes:
      supports_causal, supports_bidirectional: what ``causal=`` accepts.
      layouts: "sequence" for (batch, length, features), "grid" for (batch, height, width, features), "image" for a
        sequence of prefix tokens followed by those of a grid, whose rows and columns ``tokens.grid`` gives.
      strides: a map of (height, width) is mapped to one of (height / strides, width / strides), rounded up.
      honors: fields of :class:`Tokens` that it uses; any other field raises an error if given.
      refusals: error messages for fields that it does not honor, in place of the default ones.
      segment_multiple: documents of a row must start at multiples of it, because chunks are counted from the row's
        start.
      streaming: "exact", or "selection" where the set of tokens that a token attends to depends on later tokens (the
        class docstring says why). Instances whose options make them exact override it.
      takes_positions: ``extend`` accepts positions, which replace those counted by its state. They must increase within
        a document, and be given for all of its tokens or none.
      shares: it takes and returns the values that blocks pass on beside x (:class:`layers.stack.Stack`).
      paper: rows of the zoo's roster that the class implements.
      causal: whether tokens of this instance see earlier tokens only.
      ignored: options that the model suggested and this mixer does not take; set by :func:`create_mixer`.
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
    # Kernels that produce heads are split by columns, the one that combines them by rows: one all-reduce per mixer.
    sharding: ClassVar[Mapping[str, tuple[str | None, ...]]] = {
        **dict.fromkeys(("query.kernel", "key.kernel", "value.kernel", "gate.kernel"), (None, "tensor")),
        "out.kernel": ("tensor", None),
    }
    causal: bool = False
    ignored: tuple[str, ...] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        """Raises if a subclass overrides the public methods, which check the fields, rather than the internal ones.

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
          tokens: what is known of the tokens, or their mask alone.
          *beside: for a mixer that ``shares``: the values that blocks pass on, and those given to this block only. Such
            a mixer returns (y, values to pass on), any other mixer y alone.

        Raises:
          ValueError: a field is given that the mixer does not honor, or, checked outside ``jit`` only, documents do not
            begin at multiples of ``segment_multiple``.
        """
        tokens = self.checked(tokens)
        self.check_aligned(tokens.segment_ids)
        return self.mix(x, tokens, *beside)

    def check_aligned(self, segment_ids: jax.Array | None) -> None:
        """Refuses documents that begin elsewhere than at multiples of ``segment_multiple``, where that can be seen.

        Raises:
          ValueError: they do.
        """
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
        """Implements :meth:`__call__`; ``tokens`` has only fields that the mixer honors."""
        raise NotImplementedError(f"{type(self).__name__} does not implement mix")

    @property
    def complexity(self) -> float:
        """Exponent of the cost in length for this instance's options (1.0 linear, 2.0 quadratic)."""
        raise NotImplementedError(f"{type(self).__name__} does not declare its complexity")

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> State:
        """An empty state for ``batch_size`` rows; ``max_length`` is the capacity of a cache that needs one. A mixer
        that reads a context also takes ``context`` and ``context_mask``."""
        raise NotImplementedError(f"{type(self).__name__} can't be read piece by piece: it is not causal")

    def extend(self, x: jax.Array, state: State, tokens: Known = None, *beside: Any) -> Any:
        """Mixes new tokens ``x`` (batch, new, features) given the state of the earlier ones; returns (y, state), or (y,
        state, values to pass on) if it ``shares``.

        The state holds the context, and the positions unless the mixer ``takes_positions``. Without ``segment_ids`` the
        new tokens belong to the document of the last token read.

        Raises:
          ValueError: a field is given that the mixer does not honor, or that the state holds.
        """
        tokens = self.checked(tokens)
        of_state = {"context", "context_mask"} | (set() if self.takes_positions else {"positions"})
        if known := tokens.given() & of_state:
            raise ValueError(
                f"extend takes no {min(known)}: the state knows it, from init_state and the tokens read so far"
            )
        return self.mix_next(x, state, tokens, *beside)

    def mix_next(self, x: jax.Array, state: State, tokens: Tokens, /, *beside: Any) -> Any:
        """Implements :meth:`extend`; ``tokens`` has only fields that the mixer honors."""
        raise NotImplementedError(f"{type(self).__name__} can't be read piece by piece: it is not causal")

    def checked(self, tokens: Known) -> Tokens:
        """``tokens`` as a :class:`Tokens`.

        Raises:
          ValueError: a field is given that the mixer does not honor.
        """
        tokens = Tokens.of(tokens)
        for field in sorted(tokens.given() - self.honors):
            reason = self.refusals.get(field, _UNUSED.get(field, "it has no use for it"))
            raise ValueError(f"{type(self).__name__} does not honor {field}: {reason}")
        return tokens


def without_padding(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """``x`` (..., features) with zeros where ``mask`` (...) is False. Padding may hold any value, and 0 * NaN is NaN in
    a gradient.
    """
    return x if mask is None else jnp.where(mask[..., None], x, 0)


LARGE = 1e6
"""No hidden state of a model is as large, and products of a few values below it are finite in float32."""


def finite_padding(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """``x`` (..., features) with zeros for non-finite values, and those of at least ``LARGE``, where ``mask`` (...) is
    False; other padding is unchanged, as in released models.
    """
    return x if mask is None else jnp.where(mask[..., None] | (jnp.abs(x) < LARGE), x, 0)


M = TypeVar("M", bound=type[Mixer])
_REGISTRY: dict[str, type[Mixer]] = {}


def register_mixer(name: str) -> Callable[[M], M]:
    """Class decorator: registers a mixer under ``name``.

    Raises:
      ValueError: the name is taken.
    """

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
      ValueError: an unknown name; the message suggests similar ones.
    """
    if name not in _REGISTRY:
        raise ValueError(f"unknown mixer {name!r}{near(name, _REGISTRY)}; layers.list_mixers() lists all")
    return _REGISTRY[name]


def create_mixer(
    spec: MixerSpec, features: int, *, causal: bool = False, rngs: nnx.Rngs, place: Place | None = None, **options: Any
) -> Mixer:
    """Makes a mixer of ``features`` channels.

    Args:
      spec: a registered name, ``{"name": ..., **options}``, a callable ``(features, *, rngs, ...) -> Mixer``, or a
        mixer, which is returned unchanged.
      causal: tokens of the mixer may see earlier tokens only.
      rngs: random keys of the parameters.
      place: suggestions of the surrounding model (``num_heads``, ``grid``, ``dropout``, ...), passed to the constructor
        if it takes them. ``mixer.ignored`` names those that were suggested and not taken.
      **options: options of the mixer, each of which it must take. A mixer made of others passes on to them those that a
        place can suggest (``dtype``, ``num_heads``, ...) and it does not take itself.

    Raises:
      ValueError: an unknown name or option, a spec of no known kind, or a mixer that can't be causal.
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
            f"{type(mixer).__name__} is bidirectional only: it can't be used where tokens may not see later ones, as "
            f"attention or mamba2 can"
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
    """Names of the keyword arguments that ``make`` takes, including those of ``**options: Unpack[...]``, and whether it
    takes arbitrary ones (other ``**options``). Arguments bound by a ``functools.partial`` are left out.
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

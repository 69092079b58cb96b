"""The register of architectures: a file under zoo/vision, zoo/language or zoo/series registers its variants.

A variant is a set of hyper-parameters of a frozen dataclass; a model class is built from one such
configuration. Nothing here knows an architecture by name.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from layers import making
from layers.mixer import MixerSpec
from suggestions import near
from zoo.naming import Naming
from zoo.preprocessing import Preprocess as Preprocess


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Hyper-parameters that every architecture has.

    Attributes:
      mixer: replaces the architecture's own token mixer; None keeps it.
      pattern: mixers of successive blocks, repeated over the depth, or a mapping of blocks to mixers as
        ``{"every": "mamba", 5: "attention"}`` (:func:`zoo.backbones.model.choose`); None is one mixer for all.
      shared: all blocks of a stage are one block, whose parameters are used at every depth (ALBERT).
      drop_path: stochastic depth of the last block; the rate grows linearly from 0 at the first. A shared block has it
        at every depth.
      dropout: of tokens and branch outputs.
      remat: what is recomputed of each block in the backward pass: "nothing", "dots", "block" or "offload"
        (:mod:`layers.rematerialization`); True is "block".
      scan: compile consecutive equal blocks once.
      dtype: of the computation; None follows the parameters and inputs.
      param_dtype: of the parameters.
    """

    mixer: MixerSpec | None = None
    pattern: tuple[MixerSpec, ...] | Mapping[Any, MixerSpec] | None = None
    shared: bool = False
    drop_path: float = 0.0
    dropout: float = 0.0
    remat: str | bool = "nothing"
    scan: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32


@dataclasses.dataclass(frozen=True)
class Release:
    """A released checkpoint.

    Attributes:
      source: ``hf://owner/name[/file]``.
      classes: of its head; 0 for none.
      license: SPDX name, as stated where it was released.
      mean, std, interpolation, crop_fraction, crop_mode: as in :class:`Preprocess`.
      image_size: side in pixels of the square images that it was made for; None: the variant's.
    """

    source: str
    classes: int = 1000
    license: str = "apache-2.0"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    crop_fraction: float = 0.875
    crop_mode: str = "center"
    image_size: int | None = None

    @property
    def preprocess(self) -> dict[str, Any]:
        """The fields of :class:`Preprocess` that the release states."""
        return {field: getattr(self, field) for field in ("mean", "std", "interpolation", "crop_fraction", "crop_mode")}


@dataclasses.dataclass(frozen=True)
class Variant:
    """One named model.

    Attributes:
      name: as in ``zoo.create(name)``.
      build: makes the model from a configuration and ``rngs``.
      config: its configuration.
      family: the architecture ("vit"), name of its file.
      rules: tables of released parameter names, by naming (see zoo/naming.py); ``save`` writes the first.
      releases: released checkpoints by tag ("augreg_in21k_ft_in1k"), the preferred ones first.
      preprocess: fields of :class:`Preprocess` that differ from those of the preferred release, or from the defaults
        where there is none.
      parameters: published parameter count, or None.
      published: whether the sizes are published; False: they are our choice.
      described: fields of the configuration that weights don't show, and how each is read from transformers'
        ``config.json``.
      paper: rows of the roster.
    """

    name: str
    build: Callable[..., nnx.Module]
    config: ModelConfig
    family: str
    rules: Mapping[str, Naming] = dataclasses.field(default_factory=dict)
    releases: Mapping[str, Release] = dataclasses.field(default_factory=dict)
    preprocess: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    parameters: int | None = None
    published: bool = True
    described: Mapping[str, Callable[[Mapping[str, Any]], Any]] = dataclasses.field(default_factory=dict)
    paper: tuple[int, ...] = ()

    def release(self, tag: str) -> Release | None:
        """The released checkpoint of this tag, or the first whose tag ends with it: "in1k" is the preferred one with
        ImageNet-1k classes.
        """
        return self.releases.get(tag) or next(
            (release for name, release in self.releases.items() if name.endswith(f"_{tag}")), None
        )

    def how_to_load(self, tag: str = "") -> str:
        """How to request released weights: those of ``tag``, or, where there are none, the preferred ones."""
        if not self.releases:
            return (
                f"no released checkpoint of {self.name} is listed: "
                f'zoo.create("{self.name}", weights=...) takes a file, a folder or hf://owner/name'
            )
        guess = tag if self.release(tag) else next(iter(self.releases))
        listed = "" if guess == tag else f"; its released checkpoints are: {', '.join(self.releases)}"
        return f'released weights are named by weights=, as zoo.create("{self.name}", weights="{guess}"){listed}'

    @property
    def preferred_preprocess(self) -> dict[str, Any]:
        """Fields of :class:`Preprocess` for a model whose weights are unknown."""
        preferred = next((release.preprocess for release in self.releases.values()), {})
        return {**preferred, **self.preprocess}


_VARIANTS: dict[str, Variant] = {}
_ALIASES: dict[str, str] = {}


def register(variant: Variant, *, aliases: Sequence[str] = ()) -> Variant:
    """Adds a variant, and other names for it.

    Raises:
      ValueError: a name that is registered already.
    """
    for name in (variant.name, *aliases):
        if name in _VARIANTS or name in _ALIASES:
            raise ValueError(f"model {name!r} is registered twice")
    _VARIANTS[variant.name] = variant
    _ALIASES.update(dict.fromkeys(aliases, variant.name))
    return variant


def register_family(
    family: str,
    build: Callable[..., nnx.Module],
    config: type[ModelConfig],
    variants: Mapping[str, Mapping[str, Any]],
    *,
    our_choice: Sequence[str] = (),
    parameters: Mapping[str, int] | None = None,
    releases: Mapping[str, Mapping[str, Release]] | None = None,
    aliases: Mapping[str, Sequence[str]] | None = None,
    **common: Any,
) -> None:
    """Registers all ``variants`` (name: overrides of ``config``'s fields) of one architecture.

    ``our_choice`` names the variants of unpublished sizes; ``parameters``, ``releases`` and ``aliases`` are by variant
    name, for those that have some. ``common`` holds further fields of every :class:`Variant`.
    """
    for name, overrides in variants.items():
        own: dict[str, Any] = {
            "parameters": (parameters or {}).get(name),
            "releases": (releases or {}).get(name, {}),
            "published": name not in our_choice,
        }
        register(
            Variant(name, build, config(**overrides), family, **own, **common), aliases=(aliases or {}).get(name, ())
        )


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models that match a shell pattern ("vit_*")."""
    return sorted(fnmatch.filter(_VARIANTS, pattern))


def variant(name: str) -> Variant:
    """The variant registered under a name or alias.

    Raises:
      ValueError: an unknown name; similar ones are suggested.
    """
    name = _ALIASES.get(name, name)
    if name not in _VARIANTS:
        model, _, tag = name.rpartition(".")
        if (known := _VARIANTS.get(_ALIASES.get(model, model))) is not None:
            raise ValueError(f"unknown model {name!r}: {known.how_to_load(tag)}")
        raise ValueError(f"unknown model {name!r}{near(name, [*_VARIANTS, *_ALIASES])}; zoo.list_models() lists all")
    return _VARIANTS[name]


def configure(entry: Variant, overrides: Mapping[str, Any]) -> ModelConfig:
    """The variant's configuration with some fields replaced.

    Raises:
      ValueError: a field that the architecture does not have (similar ones are suggested), or a value that the field
        can't hold.
    """
    fields = {field.name: field for field in dataclasses.fields(entry.config)}
    known = set(fields)
    if "pretrained" in overrides:
        raise ValueError(f"there is no pretrained=: {entry.how_to_load()}; without weights= the parameters are random")
    unknown = sorted(set(overrides) - known)
    if unknown:
        raise ValueError(
            f"{entry.family} has no hyper-parameter {unknown[0]!r}{near(unknown[0], known)}; it has: "
            f"{', '.join(sorted(known))}"
        )
    for name, value in overrides.items():
        _check(fields[name], value)
    return dataclasses.replace(entry.config, **{name: freeze(value) for name, value in overrides.items()})


_POSITIVE = frozenset({"features", "image_size", "in_channels", "num_heads", "patch_size", "vocab_size"})
_PARTS = frozenset({"drop_path", "dropout"})


def _check(field: dataclasses.Field[Any], value: Any) -> None:
    """Checks the value of a field that is a plain number or a truth value.

    Raises:
      ValueError: it has another type or is out of range. A command line passes on as text whatever is not a Python
        value, such as "false".
    """
    kind = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", "")
    is_truth = isinstance(value, bool | np.bool_)
    if kind == "bool":
        good, wanted = is_truth or (isinstance(value, numbers.Integral) and value in (0, 1)), "True or False"
    elif kind == "int":
        least = 1 if field.name in _POSITIVE else 0
        good = isinstance(value, numbers.Integral) and not is_truth and int(value) >= least
        wanted = f"a whole number of at least {least}"
    elif kind == "float":
        good, wanted = isinstance(value, numbers.Real) and not is_truth, "a number"
        if field.name in _PARTS:
            good, wanted = good and 0 <= value < 1, "a number in [0, 1)"
    else:
        return
    if not good:
        raise ValueError(f"{field.name} is {wanted}, not {value!r}")


def abstract(entry: Variant, config: ModelConfig) -> nnx.Module:
    """The model of a configuration with ``jax.ShapeDtypeStruct`` for arrays: names and shapes, nothing allocated."""
    return making.abstract(lambda rngs: entry.build(config, rngs=rngs))


def one_of(config: Mapping[str, Any], key: str, values: Mapping[Any, Any]) -> Any:
    """The value of ``key`` in ``config``, translated by ``values`` (theirs to ours); None if it is missing or null.

    Raises:
      ValueError: it is none of ``values``.
    """
    given = config.get(key)
    if given is not None and given not in values:
        raise ValueError(f"{key}={given!r}, which is none of {', '.join(map(repr, values))}")
    return None if given is None else values[given]


class FrozenOptions(Mapping[str, Any]):
    """A hashable mapping: a model's static structure must be hashable to be compiled."""

    def __init__(self, options: Mapping[str, Any]):
        self._items = tuple(
            (name, freeze(value)) for name, value in sorted(options.items(), key=lambda item: str(item[0]))
        )

    def __getitem__(self, name: str) -> Any:
        return dict(self._items)[name]

    def __iter__(self) -> Any:
        return iter(dict(self._items))

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(self._items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and dict(self) == dict(other)

    def __repr__(self) -> str:
        return repr(dict(self._items))


def freeze(value: Any) -> Any:
    """A hashable equivalent of nested mappings and lists."""
    if isinstance(value, Mapping):
        return FrozenOptions(value)
    return tuple(freeze(v) for v in value) if isinstance(value, list | tuple) else value

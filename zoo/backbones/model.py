"""What every model of the zoo has, whatever its inputs and outputs."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from flax import nnx

from layers.block import Block, Branch
from layers.mixer import Mixer, MixerSpec, Place, create_mixer
from layers.module import Module
from layers.randomized_positions import RandomizedPlaces
from layers.reduction import TokenReduction
from layers.stack import Stack, drop_path_rates
from layers.state import flatten
from zoo.registry import FrozenOptions


class Model(Module):
    """Base of the backbones.

    A backbone calls the hooks below; an architecture overrides those in which it differs. Each takes the
    :class:`layers.Place` of what it makes:

        own_mixer(place)        the architecture's mixer, as a spec
        make_mixer(place)       the user's mixer if given, else the architecture's, made and adapted to the backbone
        make_channel(place)     the channel mixer; None for none
        make_branches(place)    the residual branches of a block, by name: these two
        make_block(place)       a :class:`layers.Block` of them, with ``block_options``
        make_stack(stage)       all blocks of a stage

    Attributes:
      config: the hyper-parameters it was made from.
      variant: the name it was made under; set by ``zoo.create``.
      released: preprocessing of the released weights it holds, if any; set by ``zoo.load``.
      class_names: names of the head's classes, if the run that trained it recorded them; set by ``zoo.load``.
      tokenizer: options of ``tokenization.create`` for the texts that a run trained it on, if any; set by ``zoo.load``.
      num_features: features of the head's input.
      inputs: the arrays that a call needs, in their order, all of the shape of one input.
      stem: first parts of the names of the parameters before the first block.
      extras: parts that files may hold beyond what the model uses; loaded, and saved again. Each is also a field of the
        configuration.
      neutral: parts that have no effect if all their parameters are zero; written as zeros if files of a naming hold
        them and the model does not.
      without: parts that a model can be made without; for each, a message about a file that lacks it: what it lacks and
        what to do.
      undecayed: as for every module; here first parts of names.
    """

    config: Any
    variant: str | None = None
    released: FrozenOptions | None = None
    class_names: tuple[str, ...] | None = None
    tokenizer: FrozenOptions | None = None
    num_features: int
    inputs: ClassVar[tuple[str, ...]] = ("x",)
    stem: ClassVar[tuple[str, ...]] = ()
    extras: ClassVar[tuple[str, ...]] = ()
    neutral: ClassVar[tuple[str, ...]] = ()
    without: ClassVar[Mapping[str, str]] = {}

    @property
    def segment_multiple(self) -> int:
        """Documents that share a row must begin at multiples of this many tokens: the least common multiple over all
        mixers."""
        return math.lcm(*(mixer.segment_multiple for mixer in mixers(self)))

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks of each stage."""
        return (self.config.depth,)

    def place(self, stage: int, index: int) -> Place:
        """Where block ``index`` of a stage is; widths and heads of a pyramid are those of the stage."""
        c = self.config
        features, heads = (
            value[stage] if isinstance(value, Sequence) else value for value in (c.features, c.num_heads)
        )
        rate = drop_path_rates(c.drop_path, sum(self.depths))[sum(self.depths[:stage]) + index]
        sizes = {"depth": sum(self.depths), "features": features, "num_heads": heads, "grid": self.grid_of(stage)}
        return Place(stage, index, drop_path=rate, dropout=c.dropout, dtype=c.dtype, param_dtype=c.param_dtype, **sizes)

    def grid_of(self, stage: int) -> tuple[int, int] | None:
        """Rows and columns of a stage's tokens at the usual input size; None where the model does not say."""
        return None

    def own_mixer(self, place: Place) -> MixerSpec:
        """The architecture's own mixer of a block."""
        raise NotImplementedError(f"{type(self).__name__} has no mixer of its own")

    def mixer_spec(self, place: Place) -> MixerSpec:
        """The mixer of a block: what the configuration's ``pattern`` or ``mixer`` says, else the architecture's own.

        Raises:
          ValueError: a mixer that is already made, which all blocks would share, without ``shared=True``.
        """
        c = self.config
        stage, index = place.stage or 0, place.index or 0
        spec = choose(c.pattern, stage, index, self.depths[stage]) if c.pattern else c.mixer
        if not c.shared and _is_made(spec):
            raise ValueError(
                "mixer= is a mixer already made, whose parameters all blocks would share: give its name, a dict or a "
                "callable, "
                "or shared=True for one block at all depths"
            )
        return self.own_mixer(place) if spec is None else spec

    def make_mixer(self, place: Place, *, rngs: nnx.Rngs) -> Mixer:
        """The mixer of a block, adapted to the backbone."""
        return create_mixer(self.mixer_spec(place), self._width(place), place=place, rngs=rngs)

    def make_channel(self, place: Place, *, rngs: nnx.Rngs) -> nnx.Module | None:
        """The channel mixer of a block."""
        return None

    def make_branches(self, place: Place, *, rngs: nnx.Rngs) -> dict[str, nnx.Module | Branch]:
        """The residual branches of a block, in their order."""
        mixer, channel = self.make_mixer(place, rngs=rngs), self.make_channel(place, rngs=rngs)
        return {"mixer": mixer} if channel is None else {"mixer": mixer, "channel": channel}

    def block_options(self, place: Place) -> dict[str, Any]:
        """Options of :class:`layers.Block` in which the architecture's differ from the defaults."""
        return {}

    def make_block(self, place: Place, *, rngs: nnx.Rngs) -> nnx.Module:
        """A block: a :class:`layers.Block`, or a module that is called like one."""
        branches = self.make_branches(place, rngs=rngs)
        options = {
            "features": self._width(place),
            "drop_path": place.drop_path,
            **place.dtypes,
            **self.block_options(place),
        }
        return Block(branches, **options, rngs=rngs)

    def make_stack(
        self, stage: int = 0, *, reductions: Mapping[int, TokenReduction] | None = None, rngs: nnx.Rngs
    ) -> Stack:
        """The blocks of a stage, with the ``reductions`` between them; with ``shared``, one block repeated.

        Raises:
          ValueError: ``shared`` with a pattern of mixers.
        """
        c, depth = self.config, self.depths[stage]
        options: dict[str, Any] = {"reductions": reductions, "remat": c.remat, "scan": c.scan}
        if c.shared and c.pattern:
            raise ValueError("shared=True makes all blocks one: give mixer= instead of pattern=")
        if c.shared:
            block = self.make_block(dataclasses.replace(self.place(stage, 0), drop_path=c.drop_path or None), rngs=rngs)
            return Stack([block] * depth, **options)
        return Stack([self.make_block(self.place(stage, i), rngs=rngs) for i in range(depth)], **options)

    @staticmethod
    def _width(place: Place) -> int:
        assert place.features is not None
        return place.features

    def remedy(self, missing: Sequence[str], unexpected: Sequence[str]) -> str:
        """What to do about a file that lacks some released names and has unexpected ones; "" if no remedy is known."""
        return ""

    def layer_ids(self) -> dict[str, int]:
        """Depth of every parameter, by name: 0 for the stem, 1 for the first block, ...; norm and head are deepest."""
        return {name: self.depth_of(name.split(".")) for name in flatten(self, nnx.Param)}

    def depth_of(self, path: list[str]) -> int:
        """Depth of the parameter at ``path``."""
        if path[0] == "blocks":
            return int(path[2] if path[1] == "reductions" else path[1]) + 1
        return 0 if path[0] in self.stem else (1 if self.config.shared else self.config.depth) + 1

    def sharding_rules(self) -> dict[str, tuple[str | None, ...]]:
        """The mesh axis along which each axis of a parameter is split, by the parameter's name, as its module
        states."""
        rules: dict[str, tuple[str | None, ...]] = {}
        for path, module in nnx.iter_modules(self):
            own = module.sharding if isinstance(module, Module) else {}
            rules |= {".".join((*map(str, path), name)): axes for name, axes in own.items()}
        return rules

    def no_decay(self) -> set[str]:
        """Names of the parameters without weight decay: vectors (biases, norms, scales), and those that modules name in
        ``undecayed`` (tables, special tokens).
        """
        spared = set().union(*(module.undecayed for _, module in nnx.iter_modules(self) if isinstance(module, Module)))
        return {
            name for name, leaf in flatten(self, nnx.Param).items() if leaf.ndim <= 1 or spared & set(name.split("."))
        }


def input_count(model: nnx.Module) -> int:
    """How many arrays a call of a model needs; 1 for modules that are not of the zoo."""
    return len(model.inputs) if isinstance(model, Model) else 1


def check_length(length: int, rows: int) -> None:
    """Checks that a sequence has no more tokens than a table of positions has rows.

    Raises:
      ValueError: it has more.
    """
    if length > rows:
        raise ValueError(
            f"a sequence of {length} tokens is longer than the position table: max_length is {rows}; give at most so "
            f"many tokens, or make the model with max_length={length}"
        )


def drawn_places(config: Any, rngs: nnx.Rngs, *, longest: int | None = None) -> RandomizedPlaces | None:
    """The module that samples the positions of a model whose configuration has ``randomized`` and ``max_length``; None
    if ``randomized`` is None.
    """
    return None if config.randomized is None else RandomizedPlaces(config.max_length, longest=longest, rngs=rngs)


def last_of_quarters(depth: int) -> list[int]:
    """The last block of each quarter of ``depth`` blocks, whose outputs ``features`` returns by default."""
    return [max(depth * (i + 1) // 4 - 1, 0) for i in range(4)]


def choose(
    pattern: Sequence[MixerSpec] | Mapping[Any, MixerSpec], stage: int, index: int, depth: int
) -> MixerSpec | None:
    """What a pattern says about block ``index`` of a stage of ``depth`` blocks; None leaves it to the architecture.

    Args:
      pattern: mixers of successive blocks of a stage, repeated; or a mapping whose keys are an index ("5", or "-1" for
        the last), a stage and an index ("2.5"), a stage ("2.every") or "every". The most specific one holds.

    Raises:
      ValueError: a key that is none of these.
    """
    if not isinstance(pattern, Mapping):
        return pattern[index % len(pattern)]
    specs = {str(key): spec for key, spec in pattern.items()}
    for key in specs:
        if not re.fullmatch(r"(\d+\.)?(-?\d+|every)", key):
            raise ValueError(f'a pattern has keys as "5", "-1", "2.5", "2.every" or "every"; got {key!r}')
    near = (f"{stage}.{index}", f"{stage}.{index - depth}", f"{index}", f"{index - depth}", f"{stage}.every", "every")
    return next((specs[key] for key in near if key in specs), None)


def _is_made(spec: Any) -> bool:
    """Whether a spec is, or contains, a mixer that is already made."""
    if isinstance(spec, Mapping):
        return any(map(_is_made, spec.values()))
    return isinstance(spec, Mixer) or (isinstance(spec, tuple | list) and any(map(_is_made, spec)))


def mixers(module: nnx.Module) -> list[Mixer]:
    """The outermost mixers below a module."""
    if isinstance(module, Mixer):
        return [module]
    below = (child for child in vars(module).values() if isinstance(child, nnx.Module))
    return [mixer for child in below for mixer in mixers(child)]

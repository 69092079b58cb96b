"""What every model of the zoo has, whatever its inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from flax import nnx

from layers.module import Module
from layers.state import flatten
from zoo.registry import FrozenOptions


class Model(Module):
    """Base of the backbones.

    Attributes:
      config: the hyper-parameters it was made from.
      variant: the name it was made under; set by ``zoo.create``.
      released: preprocessing of the released weights it holds, if any; set by ``zoo.load``.
      class_names: of the head's classes, where it was trained by a run that knows them; set by ``zoo.load``.
      tokenizer: options of ``tokenization.create`` for the texts that a run trained it on, if any; set by ``zoo.load``.
      num_features: features that the head sees.
      stem: first parts of the names of the parameters before the first block.
      extras: parts that files may hold beyond what the model uses; loaded, and saved again. Each is also a field of the configuration.
      neutral: parts that change nothing where all they hold is zero: written so where files of a naming hold them and the model does not.
      without: parts that a model may be made without, and, for a file that lacks one, what it lacks and what to do.
      sharding: patterns of parameter names, and the mesh axis along which each of their axes is split; others follow the general rule of
        ``training.sharding``.
      undecayed: as of every module; the first parts of names, here.
    """

    config: Any
    variant: str | None = None
    released: FrozenOptions | None = None
    class_names: tuple[str, ...] | None = None
    tokenizer: FrozenOptions | None = None
    num_features: int
    stem: ClassVar[tuple[str, ...]] = ()
    extras: ClassVar[tuple[str, ...]] = ()
    neutral: ClassVar[tuple[str, ...]] = ()
    without: ClassVar[Mapping[str, str]] = {}
    sharding: ClassVar[Mapping[str, tuple[str | None, ...]]] = {
        # What makes heads and hidden features is split by columns, what sums them up by rows: one exchange for a mixer, one for an MLP.
        **dict.fromkeys(("*.query.kernel", "*.key.kernel", "*.value.kernel", "*.gate.kernel", "*.up.kernel"), (None, "tensor")),
        **dict.fromkeys(("*.out.kernel", "*.down.kernel"), ("tensor", None)),
    }

    def layer_ids(self) -> dict[str, int]:
        """Depth of every parameter, by name: 0 for the stem, 1 for the first block, ...; norm and head are deepest."""
        return {name: self.depth_of(name.split(".")) for name in flatten(self, nnx.Param)}

    def depth_of(self, path: list[str]) -> int:
        """Depth of the parameter at ``path``."""
        if path[0] == "blocks":
            return int(path[1]) + 1
        return 0 if path[0] in self.stem else self.config.depth + 1

    def no_decay(self) -> set[str]:
        """Names of the parameters that weight decay spares: vectors (biases, norms, scales), and what its modules name (tables, special tokens)."""
        spared = set().union(*(module.undecayed for _, module in nnx.iter_modules(self) if isinstance(module, Module)))
        return {name for name, leaf in flatten(self, nnx.Param).items() if leaf.ndim <= 1 or spared & set(name.split("."))}



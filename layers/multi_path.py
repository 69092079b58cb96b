"""Several orders of reading with one set of parameters: RSMamba: Remote Sensing Image Classification With State Space
Model (Chen et al., 2024, arXiv:2403.19654), section II-C.

    y_p = P_p^-1 inner(P_p x)    for each path p: forward, reverse, shuffle
    y = sum_p w_p y_p,    w = softmax(W [mean y_1; mean y_2; ...])        or w_p = 1 / paths, without the gate

P_p permutes the tokens into the order of path p: unchanged, reversed, or random.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from layers.combinators import reverse
from layers.drop import next_key
from layers.initializers import constant
from layers.linear import Linear
from layers.mixer import Mixer, MixerSpec, Place, create_mixer, register_mixer, without_padding
from layers.module import Constant, Diagnostic
from layers.tokens import Tokens

Path = Literal["forward", "reverse", "shuffle"]
PATHS: tuple[Path, ...] = ("forward", "reverse", "shuffle")


@register_mixer("multi_path")
class MultiPath(Mixer):
    """A causal mixer applied to the tokens in several orders, with shared parameters and a gate for each order.

    In training the shuffled order is sampled anew at each call, the same for all rows of a batch. In evaluation each
    block has a fixed order, so that the result is deterministic (the authors' code samples in evaluation too).

    Parameters: ``inner``; ``gate`` (linear, paths * features to paths, no bias).
    """

    paper = (38,)
    honors = frozenset({"mask"})

    def __init__(
        self,
        features: int,
        *,
        inner: MixerSpec = "mamba",
        paths: Sequence[Path] = PATHS,
        gate: bool = True,
        index: int = 0,
        place: Place | None = None,
        rngs: nnx.Rngs,
    ):
        """Args:
          inner: the mixer of all paths.
          paths: the orders of reading.
          gate: whether the outputs are weighted by a softmax gate; otherwise they are averaged.
          index: index of the block, which seeds its shuffled order in evaluation.

        Raises:
          ValueError: no path, or an unknown one.
        """
        if not paths or (unknown := [path for path in paths if path not in PATHS]):
            raise ValueError(f"paths are some of {', '.join(PATHS)}, got {unknown[0] if paths else 'none'!r}")
        self.inner = create_mixer(inner, features, causal=True, rngs=rngs, place=place)
        dtypes = (Place() if place is None else place).dtypes
        size = len(paths)
        self.gate = Linear(size * features, size, use_bias=False, **dtypes, rngs=rngs) if gate else None
        self.paths = tuple(paths)
        self.seed = Constant(constant(index)(None, (), jnp.int32))
        self.deterministic = False
        self.rngs = rngs.dropout.fork()

    @property
    def complexity(self) -> float:
        return self.inner.complexity

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        batch, length = x.shape[:2]
        x, mask = without_padding(x, tokens.mask), tokens.mask
        order = self._shuffled(batch, length, mask) if "shuffle" in self.paths else None
        moved = jnp.concatenate([self._moved(x, path, order, mask) for path in self.paths])
        y = self.inner(moved, None if mask is None else jnp.tile(mask, (len(self.paths), 1)))
        back = None if order is None else jnp.argsort(order, axis=1)
        outputs = [
            self._moved(part, path, back, mask)
            for part, path in zip(jnp.split(y, len(self.paths)), self.paths, strict=True)
        ]
        if self.gate is None:
            return sum(outputs[1:], outputs[0]) / len(outputs)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        count = length if mask is None else jnp.maximum(mask.sum(1, keepdims=True), 1)
        means = [without_padding(output, mask).astype(wide).sum(1) / count for output in outputs]
        gates = jax.nn.softmax(self.gate(jnp.concatenate(means, -1).astype(x.dtype)).astype(wide), -1)
        self.sow(Diagnostic, "gates", gates)
        weighted = [gates[:, i, None, None] * output for i, output in enumerate(outputs)]
        return sum(weighted[1:], weighted[0]).astype(y.dtype)

    def _moved(self, x: jax.Array, path: Path, order: jax.Array | None, mask: jax.Array | None) -> jax.Array:
        """Tokens (batch, length, features) permuted to the order of a path, or back; reversal is its own inverse."""
        if path == "forward":
            return x
        if path == "reverse":
            return reverse(x, mask)
        assert order is not None
        return jnp.take_along_axis(x, order[..., None], axis=1)

    def _shuffled(self, batch: int, length: int, mask: jax.Array | None) -> jax.Array:
        """The shuffled order (batch, length), in which padding stays last."""
        numbers = random_numbers(jax.random.key(self.seed[...]) if self.deterministic else next_key(self.rngs), length)
        numbers = jnp.broadcast_to(numbers, (batch, length))
        return jnp.argsort(numbers if mask is None else jnp.where(mask, numbers, jnp.inf), axis=1)


def random_numbers(key: jax.Array, length: int) -> jax.Array:
    """A random number for each place (length,), independent of ``length``; sorting them gives the shuffled order."""
    return jax.vmap(lambda place: jax.random.uniform(jax.random.fold_in(key, place)))(jnp.arange(length))

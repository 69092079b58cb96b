"""Token reductions: layers between two blocks that reduce the number of tokens.

A reduction maps (x, what is known of the tokens) to the same for the remaining tokens. The prefix before the tokens of
a grid (class token, registers) is kept. If the remaining tokens form a grid, ``tokens.grid`` is the new grid; otherwise
``tokens.kept`` holds their cells on the last grid, so that positions stay correct.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from layers.broadcast import broadcast, widened
from layers.initializers import truncated_normal
from layers.linear import Conv, Linear
from layers.module import Module
from layers.norm import Norm, create_norm
from layers.pool import average_pool
from layers.position import LearnedPositions
from layers.tokens import PER_TOKEN, Known, Tokens
from suggestions import unknown

Extent = tuple[int, int] | int
"""Rows and columns of the tokens of an image, or their number if they form no grid."""
ReductionSpec = Any
"""How a user specifies a reduction: a registered name, ``{"name": ..., **options}``, or a callable that makes one."""


class TokenReduction(Module):
    """Base class. Constructor arguments of every registered reduction: ``features, *, extent, prefix, ..., dtype,
    param_dtype, rngs``.

    A subclass implements :meth:`extent_after` and :meth:`reduce`, and :meth:`carry_prefix` if it changes the prefix.

    Attributes:
      honors: fields of :class:`layers.Tokens`, besides the context, that it reduces; any other field raises an error if
        given.
      shares: it also reduces the values that blocks pass on beside x (:class:`layers.stack.Stack`): ``reduce(x, tokens,
        shared)`` returns all three. Tokens must then have no prefix.
      paper: rows of the zoo's roster that the class implements.
    """

    honors: ClassVar[frozenset[str]] = frozenset({"mask", "positions"})
    shares: ClassVar[bool] = False
    paper: ClassVar[tuple[int, ...]] = ()

    def extent_after(self, extent: Extent) -> Extent:
        """The extent of the remaining tokens.

        Raises:
          ValueError: it can't be reduced.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement extent_after")

    def reduce(self, x: jax.Array, tokens: Tokens, /, *shared: Any) -> Any:
        """Maps tokens (batch, length, features), without prefix and with honored fields only, to the remaining ones."""
        raise NotImplementedError(f"{type(self).__name__} does not implement reduce")

    def carry_prefix(self, x: jax.Array) -> jax.Array:
        """Maps the tokens of the prefix, (batch, prefix, features), to the same number."""
        return x

    def __call__(self, x: jax.Array, tokens: Known = None, *shared: Any) -> Any:
        """Reduces the number of tokens.

        Args:
          x: (batch, length, features), or (batch, rows, columns, features).
          tokens: what is known of the tokens, or their mask alone.
          *shared: for a reduction that ``shares``, the values that blocks pass on.

        Returns:
          The remaining tokens, with as many axes, what is known of them, and for a reduction that ``shares`` the
          reduced values.

        Raises:
          ValueError: a field is given that is not honored, x is (batch, rows, columns, features) and the remaining
            tokens form no grid, or a reduction that ``shares`` gets a prefix or such an x.
        """
        tokens = Tokens.of(tokens)
        for field in sorted(tokens.given() - self.honors - {"context", "context_mask"}):
            raise ValueError(f"{type(self).__name__} does not honor {field}: leave {field} out, or the reduction")
        prefix = 0 if x.ndim == 4 else tokens.prefix(x.shape[1])
        if self.shares:
            if prefix or x.ndim == 4:
                raise ValueError(f"{type(self).__name__} takes sequences without class token or other prefix")
            return self.reduce(x, tokens, *shared)
        if x.ndim == 4:
            return self._reduce_grid(x, tokens)
        if not prefix:
            return self.reduce(x, tokens)
        y, known = self.reduce(x[:, prefix:], _without_prefix(tokens, prefix))
        return jnp.concatenate([self.carry_prefix(x[:, :prefix]), y], 1), _with_prefix(known, tokens, prefix)

    def _reduce_grid(self, x: jax.Array, tokens: Tokens) -> tuple[jax.Array, Tokens]:
        batch, rows, columns, features = x.shape
        flat = tokens.rearranged(lambda a: a.reshape(a.shape[0], rows * columns, *a.shape[3:]), (rows, columns))
        y, known = self.reduce(x.reshape(batch, rows * columns, features), flat)
        if (grid := known.grid) is None:
            raise ValueError(f"{type(self).__name__} leaves no grid, and what follows takes grids only")

        def put_back(a: jax.Array) -> jax.Array:
            return a.reshape(a.shape[0], *grid, *a.shape[2:])

        return put_back(y), known.rearranged(put_back)


def _without_prefix(tokens: Tokens, prefix: int) -> Tokens:
    known = tokens.rearranged(lambda a: a[:, prefix:], tokens.grid)
    return known if known.kept is None else known.replace(kept=dataclasses.replace(known.kept, prefix=0))


def _with_prefix(known: Tokens, before: Tokens, prefix: int) -> Tokens:
    """``known`` of the remaining tokens, with the first ``prefix`` entries of ``before`` in front."""

    def joined(first: jax.Array, rest: jax.Array) -> jax.Array:
        batch = max(len(first), len(rest))
        first, rest = (jnp.broadcast_to(part, (batch, *part.shape[1:])) for part in (first, rest))
        return jnp.concatenate([first, rest], 1)

    fields: dict[str, Any] = {
        name: joined(getattr(before, name)[:, :prefix], value)
        for name in PER_TOKEN
        if (value := getattr(known, name)) is not None
    }
    if known.kept is not None:
        cells = joined(jnp.zeros((1, prefix, 2), jnp.int32), known.kept.cells)
        fields["kept"] = dataclasses.replace(known.kept, cells=cells, prefix=prefix)
    return known.replace(**fields)


R = TypeVar("R", bound=type[TokenReduction])
_REGISTRY: dict[str, type[TokenReduction]] = {}


def register_reduction(name: str) -> Callable[[R], R]:
    """Class decorator: registers a reduction under ``name``.

    Raises:
      ValueError: the name is taken.
    """

    def register(cls: R) -> R:
        if name in _REGISTRY:
            raise ValueError(f"reduction {name!r} is registered twice ({_REGISTRY[name].__name__}, {cls.__name__})")
        _REGISTRY[name] = cls
        return cls

    return register


def list_reductions() -> list[str]:
    """Names of all registered reductions."""
    return sorted(_REGISTRY)


def reduction_class(name: str) -> type[TokenReduction]:
    """The class registered under ``name``.

    Raises:
      ValueError: an unknown name; the message suggests similar ones.
    """
    if name not in _REGISTRY:
        raise ValueError(unknown("reduction", name, _REGISTRY))
    return _REGISTRY[name]


def create_reduction(
    spec: ReductionSpec, features: int, *, extent: Extent, prefix: int = 0, rngs: nnx.Rngs, **options: Any
) -> TokenReduction:
    """Makes a reduction of tokens of ``features`` channels.

    Args:
      spec: a registered name, ``{"name": ..., **options}``, or a callable with the constructor arguments of
        :class:`TokenReduction`.
      extent: extent of its input tokens at the usual input size.
      prefix: number of prefix tokens before them.
      **options: options of the reduction, ``dtype`` and ``param_dtype``.

    Raises:
      ValueError: an unknown name, or tokens that can't be reduced.
    """
    if isinstance(spec, Mapping):
        if "name" not in spec:
            raise ValueError(f'a reduction given as a dict needs "name"; it has {sorted(spec)}')
        options, spec = {**options, **{k: v for k, v in spec.items() if k != "name"}}, spec["name"]
    make: Callable[..., TokenReduction] = reduction_class(spec) if isinstance(spec, str) else spec
    return make(features, extent=extent, prefix=prefix, rngs=rngs, **options)


def _count(extent: Extent) -> int:
    return extent if isinstance(extent, int) else extent[0] * extent[1]


@register_reduction("max_pool")
class MaxPoolReduction(TokenReduction):
    """Max pooling over windows of the sequence, with a new position table (HVT).

    Scalable Vision Transformers with Hierarchical Pooling (Pan et al., 2021, arXiv:2103.10619), section 3.2. The tokens
    of an image are pooled in row-major order, across the ends of rows, so that no grid is left. A remaining token has
    the position of the middle of its window.

    Parameters: ``position.table`` (1, length, features), added to the remaining tokens; resampled for another length.
    """

    paper = (157,)

    def __init__(
        self,
        features: int,
        *,
        extent: Extent,
        prefix: int = 0,
        size: int = 3,
        strides: int = 2,
        position: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
        size, strides: size and stride of the windows.
        position: whether there is a position table.
        """
        self.size, self.strides = size, strides
        grid = 1, _count(self.extent_after(extent))
        self.position = LearnedPositions(grid, features, param_dtype=param_dtype, rngs=rngs) if position else None

    def extent_after(self, extent: Extent) -> int:
        count = _count(extent)
        if count < self.size:
            raise ValueError(
                f"{count} tokens can't be pooled over windows of {self.size}: reduce them less often, or give larger "
                f"images"
            )
        return (count - self.size) // self.strides + 1

    def reduce(self, x: jax.Array, tokens: Tokens) -> tuple[jax.Array, Tokens]:
        length = x.shape[1]
        left = self.extent_after(length)
        reach = (left - 1) * self.strides + 1

        def views(a: jax.Array) -> list[jax.Array]:
            return [a[:, i : i + reach : self.strides] for i in range(self.size)]

        known = tokens.off_grid(length).rearranged(lambda a: views(a)[self.size // 2])
        if tokens.mask is not None:
            real = functools.reduce(jnp.logical_or, views(tokens.mask))
            known, x = known.replace(mask=real), jnp.where(tokens.mask[..., None], x, -jnp.inf)
        y = functools.reduce(jnp.maximum, views(x))
        if known.mask is not None:
            y = jnp.where(known.mask[..., None], y, 0)
        if self.position is not None:
            y = y + broadcast(self.position((1, left)), y.shape, y.dtype)
        return y, known


@register_reduction("residual_reduction")
class ResidualReduction(TokenReduction):
    """A convolution of stride 2 with a residual connection over 2x2 means (ViT-ResNAS).

    Searching for Efficient Multi-Stage Vision Transformers (Liao et al., 2021, arXiv:2109.00642), section 3.2.

        tokens = conv(norm(x)) + positions + mean_2x2(x);  prefix = linear(norm(x)) + x

    If the number of features grows, x is padded with zeros. Odd sides of a grid are rounded up. Parameters: ``norm``,
    ``conv``, ``position.table`` (rows, columns, features), and ``prefix_linear`` where there is a prefix.
    """

    paper = (136,)

    def __init__(
        self,
        features: int,
        *,
        extent: Extent,
        prefix: int = 0,
        out_features: int | None = None,
        norm: Norm = "layer",
        norm_epsilon: float = 1e-6,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          out_features: features of the remaining tokens; the default is ``features``.

        Raises:
          ValueError: ``out_features`` below ``features``, or tokens that form no grid.
        """
        out = features if out_features is None else out_features
        if out < features:
            raise ValueError(f"residual_reduction adds its input to its output: {out} features can't hold {features}")
        common = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.norm = create_norm(norm, features, epsilon=norm_epsilon, **common)
        self.conv = Conv(features, out, (3, 3), strides=2, padding=1, kernel_init=truncated_normal(0.02), **common)
        self.position = LearnedPositions(self.extent_after(extent), out, param_dtype=param_dtype, rngs=rngs)
        linear = functools.partial(Linear, features, out, kernel_init=truncated_normal(0.02), **common)
        self.prefix_linear = linear() if prefix else None
        self.added = out - features

    def extent_after(self, extent: Extent) -> tuple[int, int]:
        if isinstance(extent, int):
            raise ValueError(
                "tokens that form no grid can't be convolved: put this reduction before those that leave none"
            )
        return -(-extent[0] // 2), -(-extent[1] // 2)

    def reduce(self, x: jax.Array, tokens: Tokens) -> tuple[jax.Array, Tokens]:
        rows, columns = left = self.extent_after(x.shape[1] if tokens.grid is None else tokens.grid)

        def on_grid(a: jax.Array) -> jax.Array:
            assert tokens.grid is not None  # else extent_after has raised
            return a.reshape(a.shape[0], *tokens.grid, *a.shape[2:])

        def flat(a: jax.Array) -> jax.Array:
            return a.reshape(a.shape[0], rows * columns, *a.shape[3:])

        known = tokens.rearranged(lambda a: flat(on_grid(a)[:, ::2, ::2]), left)
        maps, normed = on_grid(x), on_grid(self.norm(x))
        if tokens.mask is None:
            means = average_pool(maps, 2)
        else:
            real = on_grid(tokens.mask)[..., None]
            share = average_pool(real.astype(jnp.float32), 2)
            maps, normed = (jnp.where(real, a, 0) for a in (maps, normed))
            means = (average_pool(maps, 2) / jnp.where(share > 0, share, 1)).astype(x.dtype)
            known = known.replace(mask=flat(share[..., 0] > 0))
        y = self.conv(normed) + self._widened(means)
        y = y + broadcast(self.position(left), y.shape, y.dtype)
        return flat(y).astype(x.dtype), known

    def carry_prefix(self, x: jax.Array) -> jax.Array:
        if self.prefix_linear is None:
            return x
        return self._widened(x) + self.prefix_linear(self.norm(x)).astype(x.dtype)

    def _widened(self, x: jax.Array) -> jax.Array:
        return jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, self.added),)) if self.added else x


@register_reduction("top_k")
class TopKReduction(TokenReduction):
    """Keeps the tokens with the largest projections on a learned direction.

    Graph U-Nets (Gao and Ji, 2019, arXiv:1905.05178), eq. 2, with the direction p:

        y = x p / |p|;  the k largest are kept, in their order, as x sigmoid(y)

    Positions, roles and other fields of a kept token are kept; no grid is left. Parameters: ``direction`` (features,).
    """

    honors = frozenset(PER_TOKEN)

    def __init__(
        self,
        features: int,
        *,
        extent: Extent,
        prefix: int = 0,
        keep: float = 0.5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          keep: fraction of the tokens that are kept; their number is rounded up.

        Raises:
          ValueError: ``keep`` is not in (0, 1].
        """
        if not 0 < keep <= 1:
            raise ValueError(f"keep is a share of the tokens, above 0 and at most 1, got {keep}")
        self.keep = keep
        self.direction = nnx.Param(truncated_normal(features**-0.5)(rngs.params(), (features,), param_dtype))

    def extent_after(self, extent: Extent) -> int:
        return math.ceil(self.keep * _count(extent))

    def reduce(self, x: jax.Array, tokens: Tokens) -> tuple[jax.Array, Tokens]:
        batch, length, _ = x.shape
        p = widened(self.direction[...])
        score = jnp.einsum("bnd,d->bn", x.astype(jnp.float32), p * jax.lax.rsqrt(jnp.sum(p * p)), precision="highest")
        # If a row has fewer real tokens than are kept, padding, which is trailing, stays after them.
        ranked = score if tokens.mask is None else jnp.where(tokens.mask, score, -jnp.inf)
        index = jnp.sort(jax.lax.top_k(ranked, self.extent_after(length))[1], axis=1)

        def take(a: jax.Array) -> jax.Array:
            a = jnp.broadcast_to(a, (batch, *a.shape[1:]))
            return jnp.take_along_axis(a, index.reshape(*index.shape, *[1] * (a.ndim - 2)), axis=1)

        gate = jax.nn.sigmoid(take(score))[..., None]
        return take(x) * gate.astype(x.dtype), tokens.off_grid(length).rearranged(take)

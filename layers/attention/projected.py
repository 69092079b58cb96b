"""The common part of all attention: query, key and value heads, a core that mixes them, and the output projection.

    q, k, v = heads(W_q x), heads(W_k x), heads(W_v x)        y = W_o core(q, k, v)

A new kind of attention is a subclass that implements its equation in ``core``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Required

import jax
import jax.numpy as jnp
from flax import nnx

from layers.drop import Dropout
from layers.initializers import truncated_normal
from layers.linear import Linear
from layers.mixer import Mixer, finite_padding
from layers.module import Diagnostic, LayerOptions, of_layers
from layers.norm import Norm, create_norm
from layers.position import Rotary, default_positions
from layers.tokens import Continuation, Tokens, continued

KERNEL_INIT = truncated_normal(0.02)


class HeadOptions(LayerOptions, total=False):
    """Options of :class:`ProjectedAttention` that every core supports; subclasses pass them on."""

    num_heads: Required[int]
    use_bias: bool
    key_bias: bool | None
    out_bias: bool | None
    dropout: float
    kernel_init: Any
    query_init: Any


class RotaryHeadOptions(HeadOptions, total=False):
    """Options for cores that support any head size, rotary embeddings, and normalized queries and keys."""

    head_dim: int | None
    rotary: Rotary | Mapping[str, Any] | float | None
    qk_norm: Norm | None


class GroupedHeadOptions(RotaryHeadOptions, total=False):
    """Options for cores that also support fewer key and value heads than query heads."""

    num_kv_heads: int | None


def of_projections(options: HeadOptions) -> dict[str, Any]:
    """The subset of a mixer's options for further layers with the same initializer and dtypes as its projections."""
    return {"kernel_init": options.get("kernel_init", KERNEL_INIT), **of_layers(options)}


class ProjectedAttention(Mixer):
    """Base class of mixers that project tokens to query, key and value heads.

    A subclass passes on the options that its core supports (:class:`HeadOptions` or an extension of it) as
    ``**options``. It implements :meth:`core` and, if it is causal, :meth:`core_next` and ``init_state``, whose state
    has the fields ``length`` and ``segment`` of :func:`layers.tokens.continued`. Like every mixer it declares the
    fields that it honors, its layouts and its complexity; its own parameters stand beside those of the projections. A
    core for grids (layouts "grid" and "image") receives their tokens in row-major order, with ``tokens.grid`` set.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear), and ``query_norm``, ``key_norm`` with ``qk_norm``.

    Attributes:
      projects_values: whether values are projected from the tokens; if not, they are the tokens themselves, split into
        heads, and there is no ``value``.
      weighs_values: whether ``core`` multiplies the values of each head by a matrix of weights. Such a class need not
        report the diagnostic "attention" itself: if it is collected, the weights are found by passing unit vectors as
        values.
    """

    projects_values: ClassVar[bool] = True
    weighs_values: ClassVar[bool] = False

    def __init__(
        self,
        features: int,
        *,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        value_dim: int | None = None,
        rotary: Rotary | Mapping[str, Any] | float | None = None,
        qk_norm: Norm | None = None,
        use_bias: bool = True,
        key_bias: bool | None = None,
        out_bias: bool | None = None,
        context_features: int | None = None,
        dropout: float = 0.0,
        kernel_init: Any = KERNEL_INIT,
        query_init: Any = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          num_heads, num_kv_heads, head_dim: number of query heads; number of key and value heads, which divides it
            (grouped-query attention; default num_heads); features of a head (default features / num_heads).
          value_dim: features of a value head (default head_dim).
          rotary: base of a rotary position embedding, or the options of :class:`layers.position.Rotary`; None for none.
            It is 1-D or 2-D like the positions.
          qk_norm: norm applied to each query and key head.
          use_bias, key_bias, out_bias: whether the projections have biases; ``key_bias`` and ``out_bias`` override
            ``use_bias`` for the key and output projections.
          context_features: features of the context from which keys and values are projected, if that is not x itself.
          dropout: dropout rate of the output.
          kernel_init, query_init: initializer of all projections, and one that overrides it for the query projection.

        Raises:
          ValueError: features not divisible by num_heads, or num_heads by num_kv_heads.
        """
        if head_dim is None and features % num_heads:
            raise ValueError(
                f"{features} features can't be split over {num_heads} heads: give head_dim, or a number of heads that "
                f"divides it"
            )
        num_kv_heads = num_kv_heads or num_heads
        if num_heads % num_kv_heads:
            raise ValueError(f"num_kv_heads {num_kv_heads} must divide num_heads {num_heads}")
        head_dim = head_dim or features // num_heads
        value_dim = value_dim or head_dim
        source = features if context_features is None else context_features
        common: dict[str, Any] = {"kernel_init": kernel_init, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        of_queries = common if query_init is None else {**common, "kernel_init": query_init}
        self.query = Linear(features, num_heads * head_dim, use_bias=use_bias, **of_queries)
        self.key = Linear(
            source, num_kv_heads * head_dim, use_bias=use_bias if key_bias is None else key_bias, **common
        )
        if self.projects_values:
            self.value = Linear(source, num_kv_heads * value_dim, use_bias=use_bias, **common)
        self.out = Linear(
            num_heads * value_dim, features, use_bias=use_bias if out_bias is None else out_bias, **common
        )
        norm: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.query_norm = create_norm(qk_norm, head_dim, **norm) if qk_norm else None
        self.key_norm = create_norm(qk_norm, head_dim, **norm) if qk_norm else None
        self.dropout = Dropout(dropout, rngs=rngs) if dropout else None
        self.num_heads, self.num_kv_heads, self.head_dim, self.value_dim = num_heads, num_kv_heads, head_dim, value_dim
        self.rotary = Rotary.of(rotary)

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        """The mixer's equation.

        Args:
          q: (batch, length, num_heads, head_dim).
          k, v: (batch, length, num_kv_heads, head_dim), v with value_dim features if the mixer has that option.
          x: (batch, length, features), the input of the projections; padding is finite.
          tokens: mask, positions and segments of the tokens.

        Returns:
          The head outputs, (batch, length, num_heads * value_dim) or (batch, length, num_heads, value_dim).
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement core")

    def core_next(
        self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens, state: Any, after: Continuation
    ) -> tuple[jax.Array, Any]:
        """:meth:`core` for tokens that follow those in ``state``; returns the head outputs and the new state.

        Args:
          after: the positions of the new tokens, and the state's ``length`` and ``segment`` after them.
        """
        raise NotImplementedError(f"{type(self).__name__} can't be read piece by piece: it is not causal")

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        shape = x.shape
        if len(shape) == 4:
            batch, height, width, features = shape
            x = x.reshape(batch, height * width, features)
            tokens = tokens.rearranged(lambda a: a.reshape(a.shape[0], height * width, *a.shape[3:]), (height, width))
        x = finite_padding(x, tokens.mask)
        places = self.places(tokens, x.shape[1])
        q, (k, v) = self.queries(x, places), self.keys_and_values(x, places)
        self.sow(Diagnostic, "value", v)
        if self.weighs_values and self.sowing(Diagnostic, "attention"):
            self.sow(Diagnostic, "attention", self._weights_of_units(q, k, x, tokens))
        return self.finish(self.core(q, k, v, x, tokens)).reshape(shape)

    def _weights_of_units(self, q: jax.Array, k: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        """Attention weights, float32 (batch, heads, length, length), found by passing unit vectors as values."""
        (batch, length, heads, width), kv_heads = q.shape, k.shape[2]
        pieces = -(-length // width)
        units = jnp.eye(length, pieces * width, dtype=jnp.float32).reshape(length, pieces, width)

        def of_some(unit: jax.Array) -> jax.Array:
            values = jnp.broadcast_to(unit[None, :, None], (batch, length, kv_heads, width))
            return self.core(q, k, values, x, tokens).reshape(batch, length, heads, width)

        found = jax.lax.map(of_some, jnp.moveaxis(units, 1, 0))
        return jnp.moveaxis(found, (0, 2, 3), (3, 2, 1)).reshape(batch, heads, length, -1)[..., :length]

    def mix_next(self, x: jax.Array, state: Any, tokens: Tokens) -> tuple[jax.Array, Any]:
        x = finite_padding(x, tokens.mask)
        after = continued(x.shape[1], state.length, state.segment, tokens.mask, tokens.segment_ids)
        places = tokens.positions_or(after.positions)
        q, (k, v) = self.queries(x, places), self.keys_and_values(x, places)
        y, state = self.core_next(q, k, v, x, tokens, state, after)
        return self.finish(y), state

    def places(self, tokens: Tokens, length: int) -> jax.Array:
        """Positions for the rotary embedding: those given, else rows and columns in a grid, else indices in documents.
        """
        stretched = None if self.rotary is None else self.rotary.grid
        places = tokens.grid_places(length, stretched) if tokens.positions is None else None
        return tokens.places(length) if places is None else places

    def queries(self, x: jax.Array, places: jax.Array | None) -> jax.Array:
        """Query heads (batch, length, num_heads, head_dim) of tokens at positions ``places``; None: 0, 1, 2, ..."""
        return self._turned(self.query_heads(x), places)

    def keys_and_values(self, x: jax.Array, places: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Key and value heads (batch, length, num_kv_heads, head_dim) of tokens at positions ``places``."""
        k, v = self.key_value_heads(x)
        return self._turned(k, places), v

    def query_heads(self, x: jax.Array) -> jax.Array:
        """Query heads before their rotary embedding."""
        q = self.query(x).reshape(*x.shape[:2], self.num_heads, self.head_dim)
        return q if self.query_norm is None else self.query_norm(q)

    def key_value_heads(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Key and value heads before the keys' rotary embedding."""
        shape = (*x.shape[:2], self.num_kv_heads, -1)
        k = self.key(x).reshape(shape)
        v = self.value(x) if self.projects_values else x
        return k if self.key_norm is None else self.key_norm(k), v.reshape(shape)

    def _turned(self, heads: jax.Array, places: jax.Array | None) -> jax.Array:
        if self.rotary is None:
            return heads
        return self.rotary(heads, default_positions(heads.shape[1]) if places is None else places)

    def finish(self, y: jax.Array) -> jax.Array:
        """The output (batch, length, features), given the head outputs."""
        y = self.out(y.reshape(*y.shape[:2], -1))
        return y if self.dropout is None else self.dropout(y)

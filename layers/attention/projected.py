"""What all attention has in common: heads of queries, keys and values, a core that mixes them, and the output
projection.

    q, k, v = heads(W_q x), heads(W_k x), heads(W_v x)        y = W_o core(q, k, v)

A new kind of attention is a subclass whose method ``core`` is its equation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Required

import jax
import jax.numpy as jnp
from flax import nnx

from layers.initializers import truncated_normal
from layers.linear import Linear
from layers.mixer import Mixer, finite_padding
from layers.module import Diagnostic, LayerOptions, of_layers
from layers.norm import Norm, create_norm
from layers.position import Rotary, default_positions
from layers.tokens import Continuation, Tokens, continued

KERNEL_INIT = truncated_normal(0.02)


class HeadOptions(LayerOptions, total=False):
    """Options of :class:`ProjectedAttention` that any core can do with: subclasses hand them on."""

    num_heads: Required[int]
    use_bias: bool
    key_bias: bool | None
    out_bias: bool | None
    dropout: float
    kernel_init: Any
    query_init: Any


class RotaryHeadOptions(HeadOptions, total=False):
    """Those that a core can do with whose heads may have any size, be turned and be normalized."""

    head_dim: int | None
    rotary: Rotary | Mapping[str, Any] | float | None
    qk_norm: Norm | None


class GroupedHeadOptions(RotaryHeadOptions, total=False):
    """Those that a core can do with whose keys and values may also have fewer heads than queries."""

    num_kv_heads: int | None


def of_projections(options: HeadOptions) -> dict[str, Any]:
    """Of the options of a mixer, those of the layers beside its projections that begin as they do."""
    return {"kernel_init": options.get("kernel_init", KERNEL_INIT), **of_layers(options)}


class ProjectedAttention(Mixer):
    """Base of mixers that project tokens to heads of queries, keys and values.

    A subclass hands on the options that its core can do with (:class:`HeadOptions` and what extends it) as
    ``**options``. It gives :meth:`core`, and where it is causal ``init_state``, whose state has the fields
    ``length`` and ``segment`` of :func:`layers.tokens.continued`, and :meth:`core_next`. As a mixer it declares what it
    honors, its layouts and its cost, and its parameters lie beside those of the projections. A core of grids (layouts
    "grid" and "image") is given their tokens in row-major order, with ``tokens.grid`` known.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear), and ``query_norm``, ``key_norm`` where asked for.

    Attributes:
      projects_values: values are linear in the tokens; else heads of the tokens themselves, and there is no ``value``.
      weighs_values: ``core`` is a matrix of weights for each head, times the values. Such a class need not report its
        weights ("attention"): where somebody collects them, they are what becomes of unit vectors in place of values.
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
          num_heads, num_kv_heads, head_dim: query heads; key and value heads, which divide them
            (grouped-query attention); features of a head (default features / num_heads).
          value_dim: features of a head of values (default head_dim).
          rotary: base of a rotary position embedding, or the options of :class:`layers.position.Rotary`; None for none.
            1-D or 2-D as the positions are.
          qk_norm: norm of each query and key head.
          use_bias, key_bias, out_bias: biases of all projections, and of those of keys and of the output where they
            differ.
          context_features: features of what keys and values are projected from, where that is not x itself.
          dropout: of the output.
          kernel_init, query_init: of all projections, and of that of queries where it differs.

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
        self.dropout = nnx.Dropout(dropout, rngs=rngs) if dropout else None
        self.num_heads, self.num_kv_heads, self.head_dim, self.value_dim = num_heads, num_kv_heads, head_dim, value_dim
        self.rotary = Rotary.of(rotary)

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        """The mixer's equation.

        Args:
          q: (batch, length, num_heads, head_dim).
          k, v: (batch, length, num_kv_heads, head_dim), v with value_dim features where the mixer takes that option.
          x: (batch, length, features), what they are projections of; what is padding is finite.
          tokens: what is known of them.

        Returns:
          What the heads found, (batch, length, num_heads * value_dim) or with the heads apart.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what it makes of queries, keys and values")

    def core_next(
        self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens, state: Any, after: Continuation
    ) -> tuple[jax.Array, Any]:
        """:meth:`core` for tokens that are read after those in ``state``, and the state after them.

        Args:
          after: the positions of the tokens, and the state's ``length`` and ``segment`` after them.
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
        if self.weighs_values and self.sowing(Diagnostic, "attention"):
            self.sow(Diagnostic, "attention", self._weights_of_units(q, k, x, tokens))
        return self.finish(self.core(q, k, v, x, tokens)).reshape(shape)

    def _weights_of_units(self, q: jax.Array, k: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        """Float32 (batch, heads, length, length): the weights of the values in what heads find."""
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
        """Where tokens are for a rotary embedding: rows and columns in a grid whose positions are not given."""
        stretched = None if self.rotary is None else self.rotary.grid
        places = tokens.grid_places(length, stretched) if tokens.positions is None else None
        return tokens.places(length) if places is None else places

    def queries(self, x: jax.Array, places: jax.Array | None) -> jax.Array:
        """Query heads (batch, length, num_heads, head_dim) of tokens that are at ``places``; None: 0, 1, 2, ..."""
        return self._turned(self.query_heads(x), places)

    def keys_and_values(self, x: jax.Array, places: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Key and value heads (batch, length, num_kv_heads, head_dim) of tokens that are at ``places``."""
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
        """The output (batch, length, features) for what the heads found."""
        y = self.out(y.reshape(*y.shape[:2], -1))
        return y if self.dropout is None else self.dropout(y)

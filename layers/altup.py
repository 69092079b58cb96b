"""Wider tokens at the cost of narrow ones: Alternating Updates for Efficient Transformers (Baykal et al., NeurIPS 2023,
arXiv:2301.13310).

:class:`AltUp` keeps K streams of features for each token. A block transforms only the active stream a:

    predict   p_i = sum_k P_ik x_k
    compute   y = block(x_a)
    correct   x_i = p_i + g_i (y - p_a)

with K^2 + K learned scalars P and g. The active stream alternates (a = layer modulo K) or is the same in all blocks. In
Gemma 3n the scalars depend on the token: with r(x) = tanh(W norm(x) / features), P is the identity plus a linear map of
r(x_a), g is 1 plus a linear map of r(y), and the block reads p_a.

:class:`SequenceAltUp` applies a block to every k-th token only, the anchors. Token i has the anchor c = k floor(i / k):

    predict   p_i = a x_i + b x_c
    compute   y = block(anchors)
    correct   x_i = p_i + g (y_c - p_c)

Initial values are our choice: P is the identity, a and g are 1 and b is 0, so that initially every stream (or token)
receives the same update as the active stream (or anchor).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct

from layers.initializers import constant, ones, zeros
from layers.linear import Linear
from layers.module import Module
from layers.norm import create_norm
from layers.tokens import Known, Tokens, continued


class AltUp(Module):
    """A block for tokens of several streams, with the call interface and state of a :class:`layers.block.Block`.

    Parameters: those of ``block``, and ``prediction`` (streams, streams) and ``correction`` (streams,), which are added
    to the identity and to 1. With ``routed``, ``prediction`` and ``correction`` are linear layers, beside ``router``
    (linear) and ``router_norm``.
    """

    undecayed = ("prediction", "correction")
    prediction: Any
    correction: Any

    def __init__(
        self,
        block: Any,
        features: int,
        *,
        streams: int = 2,
        active: int = 0,
        routed: bool = False,
        norm_epsilon: float = 1e-6,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          block: a module of ``features`` with the interface of a :class:`layers.block.Block`.
          features: width of one stream.
          streams: number of streams K.
          active: index of the stream that the block transforms.
          routed: the scalars depend on the token, and the block reads the predicted stream, as in Gemma 3n.
          norm_epsilon: epsilon of the router's norm.

        Raises:
          ValueError: ``active`` is not the index of a stream.
        """
        if not 0 <= active < streams:
            raise ValueError(f"active={active} is not one of the {streams} streams, which are counted from 0")
        self.block, self.streams, self.active, self.routed = block, streams, active, routed
        if routed:
            common: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
            self.router = Linear(features, streams, use_bias=False, **common)
            self.router_norm = create_norm("rms", features, epsilon=norm_epsilon, **common)
            self.prediction = Linear(streams, streams * streams, use_bias=False, kernel_init=zeros, **common)
            self.correction = Linear(streams, streams, use_bias=False, kernel_init=zeros, **common)
        else:
            self.prediction = nnx.Param(zeros(rngs.params(), (streams, streams), param_dtype))
            self.correction = nnx.Param(zeros(rngs.params(), (streams,), param_dtype))

    def __call__(self, x: jax.Array, tokens: Known = None, shared: Any = None, own: Any = None) -> Any:
        """Maps (batch, length, streams * features), the streams concatenated, to the same shape; ``shared`` is passed
        on as by a :class:`layers.block.Block`.
        """
        wide, predicted = self._predicted(x)
        out = self.block(self._read(wide, predicted, x), tokens, shared, own)
        y, handed = out if shared is not None else (out, None)
        found = self._corrected(predicted, y, x)
        return found if shared is None else (found, handed)

    def init_state(self, *args: Any, **options: Any) -> Any:
        """The state of the block."""
        return self.block.init_state(*args, **options)

    def extend(self, x: jax.Array, state: Any, tokens: Known = None, shared: Any = None, own: Any = None) -> Any:
        """As :meth:`layers.block.Block.extend`, on tokens of all streams."""
        wide, predicted = self._predicted(x)
        y, state, *handed = self.block.extend(self._read(wide, predicted, x), state, tokens, shared, own)
        return (self._corrected(predicted, y, x), state, *handed)

    def _predicted(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The streams and their predictions, each (batch, length, streams, features), at least float32."""
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        wide = x.reshape(*x.shape[:-1], self.streams, -1).astype(dtype)
        if self.routed:
            numbers = self.prediction(self._route(wide[..., self.active, :], x.dtype)).astype(dtype)
            numbers = numbers.reshape(*numbers.shape[:-1], self.streams, self.streams)
            return wide, wide + jnp.einsum("...ik,...kd->...id", numbers, wide, precision="highest")
        numbers = self.prediction[...].astype(dtype)
        return wide, wide + jnp.einsum("ik,...kd->...id", numbers, wide, precision="highest")

    def _read(self, wide: jax.Array, predicted: jax.Array, x: jax.Array) -> jax.Array:
        return (predicted if self.routed else wide)[..., self.active, :].astype(x.dtype)

    def _corrected(self, predicted: jax.Array, y: jax.Array, x: jax.Array) -> jax.Array:
        dtype = predicted.dtype
        numbers = self.correction(self._route(y, x.dtype)) if self.routed else self.correction[...]
        news = y.astype(dtype) - predicted[..., self.active, :]
        found = predicted + (1 + numbers.astype(dtype))[..., None] * news[..., None, :]
        return found.reshape(x.shape).astype(x.dtype)

    def _route(self, x: jax.Array, dtype: Any) -> jax.Array:
        return jnp.tanh(self.router(self.router_norm(x.astype(dtype)) / x.shape[-1]))


@struct.dataclass
class AnchorState:
    """The state of a row.

    Attributes:
      block: the state of the block, which has read the anchors.
      length: (batch,) int32, tokens read.
      anchor, news: (batch, features), the last anchor, and the block's output minus the prediction for it.
    """

    block: Any
    length: jax.Array
    anchor: jax.Array
    news: jax.Array


class SequenceAltUp(Module):
    """A block applied to every ``stride``-th token, starting with the first, with the interface of a
    :class:`layers.block.Block`. The block sees the anchors as a sequence of their own.

    Parameters: those of ``block``, and ``own``, ``anchor`` and ``correction``, a, b and g, each (1,).
    """

    undecayed = ("own", "anchor", "correction")
    own: nnx.Param
    anchor: nnx.Param
    correction: nnx.Param

    def __init__(self, block: Any, features: int, *, stride: int = 4, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        """Args:
          block: a module of ``features`` with the interface of a :class:`layers.block.Block`.
          features: width of a token.
          stride: k.

        Raises:
          ValueError: a stride below 1.
        """
        if stride < 1:
            raise ValueError(f"stride is at least 1, not {stride}")
        self.block, self.features, self.stride = block, features, stride
        first = {"own": ones, "anchor": zeros, "correction": constant(1.0)}
        for name, init in first.items():
            setattr(self, name, nnx.Param(init(rngs.params(), (1,), param_dtype)))

    def __call__(self, x: jax.Array, tokens: Known = None, shared: Any = None, own: Any = None) -> Any:
        """Maps (batch, length, features) to the same shape; ``shared`` as in :class:`layers.block.Block`.

        Raises:
          ValueError: segment ids or positions are given.
        """
        known = self._checked(tokens)
        anchors = x[:, :: self.stride]
        mask = None if known.mask is None else known.mask[:, :: self.stride]
        out = self.block(anchors, known.replace(mask=mask), shared, own)
        y, handed = out if shared is not None else (out, None)
        at = jnp.arange(x.shape[1])[None] // self.stride
        found = self._corrected(x, anchors, self._news(anchors, y), jnp.broadcast_to(at, x.shape[:2]))
        return found if shared is None else (found, handed)

    def init_state(
        self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32, *context: Any
    ) -> AnchorState:
        """The state before the first token."""
        room = None if max_length is None else -(-max_length // self.stride)
        width = (batch_size, self.features)
        inner = self.block.init_state(batch_size, room, dtype, *context)
        return AnchorState(inner, jnp.zeros((batch_size,), jnp.int32), jnp.zeros(width, dtype), jnp.zeros(width, dtype))

    def extend(
        self, x: jax.Array, state: AnchorState, tokens: Known = None, shared: Any = None, own: Any = None
    ) -> Any:
        """As :meth:`layers.block.Block.extend`; the block reads those of the new tokens that are anchors."""
        known = self._checked(tokens)
        new = x.shape[1]
        places, length, _ = continued(new, state.length, jnp.zeros_like(state.length), known.mask)
        is_anchor = places % self.stride == 0
        if known.mask is not None:
            is_anchor &= known.mask
        # The anchors of each row come first, in order, followed by padding.
        room = -(-new // self.stride)
        order = jnp.argsort(~is_anchor, axis=1, stable=True)[:, :room]
        count = is_anchor.sum(1, dtype=jnp.int32)
        anchors = jnp.take_along_axis(x, order[..., None], 1)
        mask = jnp.arange(room) < count[:, None]
        y, inner, *handed = self.block.extend(anchors, state.block, known.replace(mask=mask), shared, own)
        news = jnp.concatenate([state.news[:, None].astype(x.dtype), self._news(anchors, y)], 1)
        anchors = jnp.concatenate([state.anchor[:, None].astype(x.dtype), anchors], 1)
        at = jnp.cumsum(is_anchor, axis=1, dtype=jnp.int32)
        found = self._corrected(x, anchors, news, at)
        last = [jnp.take_along_axis(kept, count[:, None, None], 1)[:, 0] for kept in (anchors, news)]
        kept = AnchorState(inner, length, last[0].astype(state.anchor.dtype), last[1].astype(state.news.dtype))
        return (found, kept, *handed)

    def _checked(self, tokens: Known) -> Tokens:
        known = Tokens.of(tokens)
        if known.segment_ids is not None or known.positions is not None:
            raise ValueError(
                "SequenceAltUp counts anchors from the start of the row: it honors neither segment_ids nor positions"
            )
        return known

    def _news(self, anchors: jax.Array, y: jax.Array) -> jax.Array:
        """``y`` minus the prediction for the anchors."""
        return (y - self._scaled(anchors, self.own[...] + self.anchor[...])).astype(anchors.dtype)

    def _corrected(self, x: jax.Array, anchors: jax.Array, news: jax.Array, at: jax.Array) -> jax.Array:
        """The output; ``at`` (batch, length) is the index of each token's anchor."""
        anchor, new = (jnp.take_along_axis(kept, at[..., None], 1) for kept in (anchors, news))
        parts = ((x, self.own), (anchor, self.anchor), (new, self.correction))
        return sum((self._scaled(part, number[...]) for part, number in parts), jnp.float32(0)).astype(x.dtype)

    @staticmethod
    def _scaled(x: jax.Array, number: jax.Array) -> jax.Array:
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        return x.astype(dtype) * number.astype(dtype)

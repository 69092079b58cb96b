"""The gated recurrent networks that preceded attention, as mixers. The next state is not linear in the previous one, so
tokens must be read one after another.

    LSTM    i, f, g, o = W x_t + U h_{t-1} + b
            c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g)        h_t = sigmoid(o) tanh(c_t)
    GRU     r, z = sigmoid(W x_t + U h_{t-1} + b)                n = tanh(W_n x_t + b_n + r (U_n h_{t-1} + b'_n))
            h_t = (1 - z) n + z h_{t-1}

Long Short-Term Memory (Hochreiter and Schmidhuber, Neural Computation 1997) with the forget gate of Learning to Forget
(Gers et al., Neural Computation 2000), and Learning Phrase Representations using RNN Encoder-Decoder (Cho et al., 2014,
arXiv:1406.1078) in the form of PyTorch and cuDNN, whose reset gate comes after the product with U_n. The order of
gates, both biases and initial values are PyTorch's: its ``weight_ih_l0`` is ``input.kernel``, transposed, and its
``weight_hh_l0`` is ``recurrent.kernel``.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from layers.initializers import Uniform
from layers.linear import Linear
from layers.mixer import register_mixer
from layers.recurrent import Recurrent, RecurrentState, empty
from layers.tokens import Tokens


class GatedRecurrent(Recurrent):
    """Base of both: a subclass defines :meth:`step`, the update of the state by one token."""

    gates: ClassVar[int]
    """Number of gates."""
    kept: ClassVar[int]
    """Number of state values for each hidden feature."""

    def __init__(
        self,
        features: int,
        *,
        hidden: int | None = None,
        use_bias: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
        hidden: features of the state; None uses ``features``. Where the two differ, a linear layer maps the output
          back.
        use_bias: the biases of both products, with the token and with the state.
        """
        self.hidden = hidden or features
        made = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        first = Uniform(-(self.hidden**-0.5), self.hidden**-0.5)
        common = {"use_bias": use_bias, "kernel_init": first, "bias_init": first, **made}
        self.input = Linear(features, self.gates * self.hidden, **common)
        self.recurrent = Linear(self.hidden, self.gates * self.hidden, **{**common, "dtype": None})
        self.out = None if self.hidden == features else Linear(self.hidden, features, use_bias=use_bias, **made)

    @property
    def memory_shape(self) -> tuple[int, ...]:
        return (self.kept, self.hidden)

    def step(self, given: jax.Array, known: jax.Array, memory: jax.Array) -> jax.Array:
        """The next state.

        Args:
          given, known: (batch, gates, hidden), products with the token and with the last h, biases included.
          memory: (batch, kept, hidden), of which the first is h.
        """
        raise NotImplementedError

    def recur(
        self, x: jax.Array, tokens: Tokens, state: RecurrentState | None, /, *own: Any
    ) -> tuple[jax.Array, RecurrentState | None]:
        given = self.input(x)
        # The recurrence is float32: rounding errors of the state and of the kernel's gradient would accumulate along
        # the row.
        wide = jnp.promote_types(given.dtype, jnp.float32)
        graph, weights = nnx.split(self.recurrent)
        weights = jax.tree.map(lambda a: a.astype(wide), weights)
        memory = empty((x.shape[0], *self.memory_shape), wide) if state is None else state.memory.astype(wide)
        starts = self.starts(tokens, state)
        real = tokens.mask if state is not None else None  # without a state to return, trailing padding is harmless

        def read(memory: jax.Array, token: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
            given, begins, exists = token
            before = memory if begins is None else jnp.where(begins[:, None, None], 0, memory)
            known = nnx.merge(graph, weights)(before[:, 0])
            shape = (-1, self.gates, self.hidden)
            after = self.step(given.astype(wide).reshape(shape), known.reshape(shape), before)
            after = after if exists is None else jnp.where(exists[:, None, None], after, memory)
            return after, after[:, 0].astype(given.dtype)

        first = [None if a is None else jnp.moveaxis(a, 1, 0) for a in (given, starts, real)]
        memory, hidden = lax.scan(read, memory, tuple(first))
        y = jnp.moveaxis(hidden, 0, 1)
        y = y if self.out is None else self.out(y)
        return y, state and state.after(tokens, memory=memory)


@register_mixer("lstm")
class LSTM(GatedRecurrent):
    """Long short-term memory: gates control what is written to the state, kept in it and output from it.

    Parameters: ``input``, ``recurrent`` (linear, of the gates i, f, g, o), ``out`` (linear) where the state has another
    number of features.
    """

    gates, kept = 4, 2

    def step(self, given: jax.Array, known: jax.Array, memory: jax.Array) -> jax.Array:
        write, keep, value, show = jnp.moveaxis(given + known, 1, 0)
        cell = jax.nn.sigmoid(keep) * memory[:, 1] + jax.nn.sigmoid(write) * jnp.tanh(value)
        return jnp.stack([jax.nn.sigmoid(show) * jnp.tanh(cell), cell], axis=1)


@register_mixer("gru")
class GRU(GatedRecurrent):
    """Gated recurrent unit: the new state is a weighted average of the old one and a candidate.

    Parameters: ``input``, ``recurrent`` (linear, of r, z, n), ``out`` (linear) where the state has another number of
    features.
    """

    gates, kept = 3, 1

    def step(self, given: jax.Array, known: jax.Array, memory: jax.Array) -> jax.Array:
        reset, keep = jnp.moveaxis(jax.nn.sigmoid(given[:, :2] + known[:, :2]), 1, 0)
        candidate = jnp.tanh(given[:, 2] + reset * known[:, 2])
        return ((1 - keep) * candidate + keep * memory[:, 0])[:, None]

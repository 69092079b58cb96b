"""Causal relation networks: Learning to Copy with Relations (Cui et al., 2024, arXiv:2406.16168). A block of the paper
is this mixer and a norm.

    a, b = W_1 x + b_1, W_2 x        c_t = mean_{s <= t} exp(N(a_t + b_s))        y = W_3 N(c) + b_3

N is layer norm without parameters, over the features of a head; for c over all features. Because N is applied to the
sum, the tokens can't be summed up before the query is known: the cost is quadratic, and b of all tokens is kept. The
linear form uses N(a_t) + N(b_s) instead, which is exp(N(a_t)) times a running mean of exp(N(b_s)). N(c) does not change
when the c of a token is divided by a scalar, so it is computed from log c after subtracting the maximum.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx, struct

from layers.attention.cache import TokenCache
from layers.initializers import normal
from layers.linear import Linear
from layers.linear_attention.memory import WeightedState, exponential_weights, per_head
from layers.mixer import Mixer, State, finite_padding, register_mixer
from layers.recurrent import accumulate, empty
from layers.tokens import Tokens, continued, numbered

QUERIES = 8
"""Queries whose pairs with all keys are in memory at once."""


@struct.dataclass
class Pool(TokenCache):
    """Cache of b for the tokens read so far.

    Attributes:
      offer: (batch, capacity, hidden), b.
    """

    offer: jax.Array


@register_mixer("causal_relation")
class CausalRelation(Mixer):
    """Causal relation network: for each token, the mean over the tokens so far of a function of the pair.

    Parameters: ``query`` (linear, a), ``key`` (linear without bias, b), ``out`` (linear).
    """

    supports_causal = True
    supports_bidirectional = False
    honors = frozenset({"mask", "segment_ids"})
    paper = (182,)
    causal = True

    def __init__(
        self,
        features: int,
        *,
        num_heads: int = 1,
        form: Literal["quadratic", "linear"] = "quadratic",
        hidden: int | None = None,
        depth: int = 1,
        norm_epsilon: float = 1e-12,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          num_heads: groups of hidden features with separate norms in the quadratic form.
          form: "quadratic", or "linear" with constant time and memory per token.
          hidden: features of a and b; default those of x.
          depth: number of blocks of the model; the initial output weights are divided by its square root.
          norm_epsilon: added to the variances.

        Raises:
          ValueError: an unknown form, or heads that do not divide the hidden features.
        """
        if form not in ("quadratic", "linear"):
            raise ValueError(f"CausalRelation: form is quadratic or linear; got {form!r}")
        hidden = hidden or features
        self.form, self.hidden, self.epsilon = form, hidden, norm_epsilon
        self.size = per_head(hidden, num_heads)
        made: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.query = Linear(features, hidden, kernel_init=normal(0.02), **made)
        self.key = Linear(features, hidden, use_bias=False, kernel_init=normal(0.02), **made)
        self.out = Linear(hidden, features, kernel_init=normal(0.02 / depth**0.5), **made)

    @property
    def complexity(self) -> float:
        return 1.0 if self.form == "linear" else 2.0

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> State:
        """An empty state.

        Raises:
          ValueError: the quadratic form without ``max_length``.
        """
        if self.form == "linear":
            memory, segment = empty((batch_size, self.hidden), dtype), jnp.zeros((batch_size,), jnp.int32)
            return WeightedState((), memory, segment, largest=jnp.full_like(memory, -jnp.inf))
        if max_length is None:
            raise ValueError("a causal relation network keeps all tokens: give max_length")
        offer = jnp.zeros((batch_size, max_length, self.hidden), dtype)
        return Pool(**Pool.nothing(batch_size, max_length), offer=offer)

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        asked, offered = self._projected(x, tokens)
        if self.form == "linear":
            return self._finish(self._running(asked, offered, tokens, None)[0], x)
        place = jnp.arange(x.shape[1])
        visible = (place <= place[:, None])[None]
        if tokens.segment_ids is not None:
            visible = visible & (tokens.segment_ids[:, None] == tokens.segment_ids[:, :, None])
        return self._finish(self._related(asked, offered, visible), x)

    def mix_next(self, x: jax.Array, state: State, tokens: Tokens) -> tuple[jax.Array, State]:
        asked, offered = self._projected(x, tokens)
        if self.form == "linear":
            found, new = self._running(asked, offered, tokens, state)
            return self._finish(found, x), new
        after = continued(x.shape[1], state.length, state.segment, tokens.mask, tokens.segment_ids)
        # The cached tokens belong to the document that the first new tokens may continue.
        real = after.positions if tokens.mask is None else jnp.where(tokens.mask, after.positions, -1)
        places = jnp.concatenate([state.positions, real], axis=1)
        visible = (places[:, None] >= 0) & (places[:, None] <= after.positions[:, :, None])
        if tokens.segment_ids is not None:
            document = numbered(tokens.segment_ids, state.segment, tokens.mask)
            known = jnp.concatenate([jnp.zeros_like(state.positions), document], axis=1)
            visible = visible & (known[:, None] == document[:, :, None])
        pool = jnp.concatenate([state.offer.astype(offered.dtype), offered], axis=1)
        found = self._related(asked, pool, visible)
        return self._finish(found, x), state.write({"offer": offered}, tokens, after)

    def _projected(self, x: jax.Array, tokens: Tokens) -> tuple[jax.Array, jax.Array]:
        """a and b (batch, length, hidden), at least float32."""
        x = finite_padding(x, tokens.mask)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return self.query(x).astype(wide), self.key(x).astype(wide)

    def _finish(self, logs: jax.Array, x: jax.Array) -> jax.Array:
        """The output, given log c (batch, length, hidden) up to an additive constant per token."""
        largest = jax.lax.stop_gradient(jnp.max(logs, axis=-1, keepdims=True))
        return self.out(self._normed(jnp.exp(logs - largest)).astype(x.dtype))

    def _normed(self, x: jax.Array) -> jax.Array:
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)

    def _running(
        self, asked: jax.Array, offered: jax.Array, tokens: Tokens, state: WeightedState | None
    ) -> tuple[jax.Array, WeightedState | None]:
        """The linear form's log c, and the new state."""
        weight, decay, largest = exponential_weights(self._normed(offered), None, -jnp.inf, tokens, state)
        total, memory = accumulate(weight, decay, tokens, state)
        # Padding of a row without real tokens follows no logit.
        shift = jnp.where(jnp.isneginf(largest), 0, largest)
        logs = self._normed(asked) + shift + jnp.log(jnp.maximum(total, jnp.finfo(total.dtype).tiny))
        if state is None:
            return logs, None
        return logs, state.after(tokens, memory=memory, largest=largest[:, -1])

    def _related(self, asked: jax.Array, offered: jax.Array, visible: jax.Array) -> jax.Array:
        """The quadratic form's log c (batch, length, hidden), up to a constant per token, for queries ``asked`` and
        keys ``offered`` (batch, keys, hidden); ``visible`` is bool (batch or 1, length, keys).
        """
        batch, length, hidden = asked.shape
        count = min(QUERIES, length)
        more = -length % count
        asked = jnp.pad(asked, ((0, 0), (0, more), (0, 0)))
        visible = jnp.pad(visible, ((0, 0), (0, more), (0, 0)), constant_values=True)
        heads = offered.reshape(batch, 1, offered.shape[1], -1, self.size)

        @jax.checkpoint
        def related(given: tuple[jax.Array, jax.Array]) -> jax.Array:
            a, seen = given
            z = self._normed(a.reshape(batch, count, 1, -1, self.size) + heads).reshape(batch, count, -1, hidden)
            return jax.nn.logsumexp(z, axis=2, where=seen[..., None])

        parts = (jnp.moveaxis(a.reshape(a.shape[0], -1, count, *a.shape[2:]), 1, 0) for a in (asked, visible))
        found = jnp.moveaxis(jax.lax.map(related, tuple(parts)), 0, 1)
        return found.reshape(batch, -1, hidden)[:, :length]

"""Gated Slot Attention for Efficient Linear-Time Sequence Modeling (Zhang et al., 2024, arXiv:2409.07146), section 3.

    K_t = diag(f_t) K_{t-1} + (1 - f_t) k_t^T        f = sigmoid(W_f x)^(1/8)
    V_t = diag(f_t) V_{t-1} + (1 - f_t) v_t^T        o_t = V_t^T softmax(scale K_t q_t)        y = W_o RMSNorm(silu(o))

with q, k and v each silu of a projection; each row of K and V is the key or value of a slot. Both recurrences are
linear attentions: the memory of the first decays per value channel, which is the slot, that of the second per key
channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx, struct

from layers.convolution import CausalConvolution
from layers.feature_maps import FeatureMapSpec, create_feature_map
from layers.linear import Linear
from layers.linear_attention.memory import per_head
from layers.mixer import Mixer, register_mixer
from layers.norm import create_norm
from layers.recurrent import Recurrent, RecurrentState, empty
from layers.state_space.initialization import fan_in_uniform
from layers.tokens import Tokens
from pallas_kernels import linear_attention
from primitives.exponential import silu, softplus


@struct.dataclass
class SlotState(RecurrentState):
    """The state of gated slot attention; ``memory`` is the slots' values (batch, heads, slots, value_dim).

    Attributes:
      keys: (batch, heads, key_dim, slots), keys of the slots.
    """

    keys: jax.Array


@register_mixer("gated_slot_attention")
class GatedSlotAttention(Recurrent):
    """Softmax attention to a fixed number of slots, each a decaying average of tokens with its own rate.

    The rates depend on the token. An empty slot has a key and a value of zeros and takes its share of the softmax.

    Parameters: ``query``, ``key``, ``value``, ``forget``, ``out`` (linear), ``norm`` over all heads; ``query_conv``,
    ``key_conv``, ``value_conv`` with convolutions.
    """

    paper = (197,)
    sharding: ClassVar[Mapping[str, tuple[str | None, ...]]] = {**Mixer.sharding, "forget.kernel": (None, "tensor")}

    def __init__(
        self,
        features: int,
        *,
        num_heads: int,
        num_slots: int = 64,
        key_expansion: float = 1.0,
        value_expansion: float = 1.0,
        decay_divisor: float = 8.0,
        feature_map: FeatureMapSpec = "silu",
        scale: float = 1.0,
        conv_size: int | None = None,
        norm_epsilon: float = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          num_heads: number of heads, each with its own slots.
          num_slots: number of slots per head.
          key_expansion, value_expansion: features of the keys and of the values of all heads, / features.
          decay_divisor: divisor of the log decays, by which slots remember longer.
          feature_map: feature map of queries and keys (:mod:`layers.feature_maps`).
          scale: factor of the slots' logits; 1 as in released models, not 1 / sqrt(key_dim).
          conv_size: kernel size of the convolutions of queries, keys and values, each followed by silu; None for
            neither.
          norm_epsilon: epsilon of the output norm.

        Raises:
          ValueError: heads that do not divide the features, or fewer than one slot.
        """
        if num_slots < 1:
            raise ValueError(f"gated slot attention needs at least one slot, got num_slots={num_slots}")
        self.num_heads, self.num_slots, self.decay_divisor, self.scale = num_heads, num_slots, decay_divisor, scale
        self.key_dim, self.value_dim = (
            per_head(key_expansion * features, num_heads),
            per_head(value_expansion * features, num_heads),
        )
        keys, values = num_heads * self.key_dim, num_heads * self.value_dim
        made = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        common = {"use_bias": False, "kernel_init": fan_in_uniform(), **made}
        self.query, self.key = Linear(features, keys, **common), Linear(features, keys, **common)
        self.value = Linear(features, values, **common)
        self.forget = Linear(features, num_heads * num_slots, **common)
        self.query_conv = CausalConvolution(keys, conv_size, use_bias=False, **made) if conv_size else None
        self.key_conv = CausalConvolution(keys, conv_size, use_bias=False, **made) if conv_size else None
        self.value_conv = CausalConvolution(values, conv_size, use_bias=False, **made) if conv_size else None
        self.feature_map = create_feature_map(feature_map, self.key_dim, rngs=rngs)
        self.norm = create_norm("rms", values, epsilon=norm_epsilon, **made)
        self.out = Linear(values, features, **common)

    @property
    def memory_shape(self) -> tuple[int, ...]:
        return self.num_heads, self.num_slots, self.value_dim

    @property
    def convolutions(self) -> tuple[CausalConvolution, ...]:
        return tuple(conv for conv in (self.query_conv, self.key_conv, self.value_conv) if conv is not None)

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> SlotState:
        state = super().init_state(batch_size, max_length, dtype)
        keys = empty((batch_size, self.num_heads, self.key_dim, self.num_slots), dtype)
        return SlotState(state.convolutions, state.memory, state.segment, keys=keys)

    def recur(self, x: jax.Array, tokens: Tokens, state: SlotState | None) -> tuple[jax.Array, SlotState | None]:
        q, k, v, decay, seen = self.heads(x, tokens, state)
        y, _, memories = self.slots(q, k, v, decay, tokens, state)
        return self.read_out(y), state and state.after(tokens, convolutions=seen, **memories)

    def heads(self, x: jax.Array, tokens: Tokens, state: SlotState | None) -> tuple[Any, ...]:
        """Queries, keys, values and log decays (batch, length, heads, ...) of tokens, and the new convolution states.

        Queries and keys are before the feature map. The log decays of the slots are at least float32, and 0 at padding.
        """
        read, seen = self.convolve([linear(x) for linear in (self.query, self.key, self.value)], tokens, state)
        read = [silu(a) for a in read] if self.convolutions else read
        decay = -softplus(-self.forget(x).astype(jnp.promote_types(x.dtype, jnp.float32))) / self.decay_divisor
        if tokens.mask is not None:
            decay = jnp.where(tokens.mask[..., None], decay, 0)  # then nothing is written either
        q, k, v, decay = (a.reshape(*x.shape[:2], self.num_heads, -1) for a in (*read, decay))
        return q, k, silu(v), decay, seen

    def slots(
        self, q: jax.Array, k: jax.Array, v: jax.Array, decay: jax.Array, tokens: Tokens, state: SlotState | None
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """Reads the slots after each token has been written to them.

        Args:
          q, k, v, decay: as in :meth:`heads`; a token with a log decay of 0 is not written.

        Returns:
          The outputs (batch, length, heads, value_dim), the log-sum-exp of their float32 logits (batch, length, heads),
          and the fields ``keys`` and ``memory`` of the new state.
        """
        q, k, write = self.feature_map(q), self.feature_map(k), -jnp.expm1(decay)
        keys, memory = (None, None) if state is None else (state.keys, state.memory)
        common: dict[str, Any] = {"starts": self.starts(tokens, state), "return_state": True}
        # The logits are float32, like ``write``.
        logits, keys = linear_attention(q, k, write, value_decay=decay, scale=self.scale, initial_state=keys, **common)
        shares, write = jax.nn.softmax(logits, axis=-1).astype(v.dtype), write.astype(v.dtype)
        y, memory = linear_attention(shares, write, v, decay=decay, scale=1.0, initial_state=memory, **common)
        return y, jax.nn.logsumexp(logits, axis=-1), {"keys": keys, "memory": memory}

    def read_out(self, y: jax.Array) -> jax.Array:
        """The layer's output (batch, length, features), given the head outputs."""
        return self.out(self.norm(silu(y).reshape(*y.shape[:2], -1)))

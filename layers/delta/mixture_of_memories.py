"""MoM: Linear Sequence Modeling with Mixture-of-Memories (Du et al., 2025, arXiv:2502.13685), section 3, on the gated
delta rule (:mod:`layers.delta.delta_net`).

    p = softmax(W_r x)        a token is routed to the k memories with the largest p, weights p_m / (sum of these)
    S_m <- gated delta rule of S_m and silu(conv(W_q x)), silu(conv(W_k^m x)), silu(conv(W_v^m x)), W_b^m x, W_a^m x
    o = sum_m (weight of m) q S_m + q S_0                  S_0: a memory shared by all tokens
    y = W_o (RMSNorm(o) * silu(W_g x))

A memory and its convolutions see only the tokens routed to it, as if there were no others. In training, a
load-balancing loss per block keeps all memories in use: M times the sum over memories of (fraction of tokens routed to
it) * (mean p) (Switch Transformer, arXiv:2101.03961).

A whole sequence is sorted by memory, so that k times its length is processed, not M times. Keys and values are computed
for all M memories before the selection. In ``extend``, every memory processes a piece of full length.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx, struct

from layers.convolution import CausalConvolution
from layers.delta.memory import correct, normalized
from layers.linear import Linear
from layers.linear_attention.memory import per_head
from layers.mixer import register_mixer
from layers.module import AuxLoss
from layers.norm import GatedRMSNorm
from layers.recurrent import Recurrent, RecurrentState
from layers.state_space.initialization import A_LOG, fan_in_uniform, step_bias
from layers.tokens import Tokens
from primitives.exponential import silu, softplus


@struct.dataclass
class MixtureState:
    """The state of a mixture of memories.

    Attributes:
      routed: states of the routed memories, (batch, memories, ...).
      shared: state of the shared memory, or None.
      document: (batch,) int32, number of documents of the row that have ended.
      segment: (batch,) int32, id of the current document.
    """

    routed: RecurrentState
    shared: RecurrentState | None
    document: jax.Array
    segment: jax.Array


@register_mixer("mixture_of_memories")
class MixtureOfMemories(Recurrent):
    """The gated delta rule over several memories, with top-k routing of tokens.

    Parameters: ``router``, ``query``, ``gate``, ``out`` (linear); ``key.m``, ``value.m``, ``beta.m``, ``decay.m``
    (linear) for each memory m, and ``shared_key``, ``shared_value``, ``shared_beta``, ``shared_decay``; ``query_conv``,
    ``key_conv``, ``value_conv``; ``A_log`` and ``dt_bias`` (heads,); ``norm`` per head.
    """

    paper = (193,)
    aux_losses: ClassVar[dict[str, float]] = {"load_balance": 0.01}

    def __init__(
        self,
        features: int,
        *,
        num_heads: int,
        head_dim: int | None = None,
        value_expansion: float = 1.0,
        memories: int = 4,
        chosen: int = 2,
        shared_memory: bool = True,
        conv_size: int = 4,
        norm_epsilon: float = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          num_heads, head_dim: number of heads of each memory, and features of their keys; default features / num_heads.
          value_expansion: features of a value head / head_dim.
          memories, chosen: M, not counting the shared one, and k.
          shared_memory: whether there is also a memory shared by all tokens.
          conv_size: kernel size of the convolutions.
          norm_epsilon: epsilon of the norm of each head's output.

        Raises:
          ValueError: heads that do not divide the features, a head size that is not a whole number, or ``chosen``
            outside 1 to ``memories``.
        """
        if not 1 <= chosen <= memories:
            raise ValueError(f"MixtureOfMemories: a token goes to 1 to {memories} of {memories} memories, not {chosen}")
        self.num_heads, self.head_dim = num_heads, head_dim or per_head(features, num_heads)
        self.value_dim = per_head(value_expansion * self.head_dim, 1)
        self.memories, self.chosen = memories, chosen
        keys, values = num_heads * self.head_dim, num_heads * self.value_dim
        made: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        linear: dict[str, Any] = {"use_bias": False, "kernel_init": fan_in_uniform(), **made}
        self.router = Linear(features, memories, **linear)
        self.query = Linear(features, keys, **linear)
        self.key = nnx.List([Linear(features, keys, **linear) for _ in range(memories)])
        self.value = nnx.List([Linear(features, values, **linear) for _ in range(memories)])
        self.beta = nnx.List([Linear(features, num_heads, **linear) for _ in range(memories)])
        self.decay = nnx.List([Linear(features, num_heads, **linear) for _ in range(memories)])
        self.shared_key = Linear(features, keys, **linear) if shared_memory else None
        self.shared_value = Linear(features, values, **linear) if shared_memory else None
        self.shared_beta = Linear(features, num_heads, **linear) if shared_memory else None
        self.shared_decay = Linear(features, num_heads, **linear) if shared_memory else None
        self.query_conv = CausalConvolution(keys, conv_size, use_bias=False, **made)
        self.key_conv = CausalConvolution(keys, conv_size, use_bias=False, **made)
        self.value_conv = CausalConvolution(values, conv_size, use_bias=False, **made)
        self.A_log = nnx.Param(A_LOG(rngs.params(), (num_heads,), param_dtype))
        self.dt_bias = nnx.Param(step_bias()(rngs.params(), (num_heads,), param_dtype))
        self.gate = Linear(features, values, **linear)
        norm: dict[str, Any] = {"epsilon": norm_epsilon, "param_dtype": param_dtype, "rngs": rngs}
        self.norm = GatedRMSNorm(self.value_dim, gated="after", **norm)
        self.out = Linear(values, features, **linear)

    @property
    def memory_shape(self) -> tuple[int, ...]:
        return self.num_heads, self.head_dim, self.value_dim

    @property
    def convolutions(self) -> tuple[CausalConvolution, ...]:
        return self.query_conv, self.key_conv, self.value_conv

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> MixtureState:
        routed = super().init_state(batch_size * self.memories, max_length, dtype)
        shared = None if self.shared_key is None else super().init_state(batch_size, max_length, dtype)
        document, segment = jnp.zeros((batch_size,), jnp.int32), jnp.zeros((batch_size,), jnp.int32)
        return MixtureState(_apart(routed, batch_size), shared, document, segment)

    def recur(self, x: jax.Array, tokens: Tokens, state: MixtureState | None) -> tuple[jax.Array, MixtureState | None]:
        logits = self.router(x).astype(jnp.promote_types(x.dtype, jnp.float32))
        # The order of the scores, which may round to equal numbers.
        best, chosen = jax.lax.top_k(logits, self.chosen)
        weights = jax.nn.softmax(best, axis=-1)
        if self.sowing(AuxLoss, "load_balance"):
            self.sow(AuxLoss, "load_balance", self._load(jax.nn.softmax(logits, axis=-1), chosen, tokens.mask))
        begins, document = self.starts(tokens, state), jnp.zeros(x.shape[:2], jnp.int32)
        document = document if begins is None else jnp.cumsum(begins, axis=1, dtype=jnp.int32)
        q, lists = self.query(x), (self.key, self.value, self.beta, self.decay)
        own = [jnp.stack([layer(x) for layer in layers], axis=2) for layers in lists]
        routed = shared = None
        if state is None:
            y = self._sorted(q, own, chosen, weights, document, tokens.mask)
        else:
            document = document + state.document[:, None]
            y, routed = self._side_by_side(q, own, chosen, weights, document, tokens.mask, state.routed)
        layers = (self.shared_key, self.shared_value, self.shared_beta, self.shared_decay)
        projected = [layer(x) for layer in layers if layer is not None]
        if projected:
            k, v, beta, decay = projected
            more, shared = self._read(q, k, v, beta, decay, tokens, None if state is None else state.shared)
            y = y + more.astype(y.dtype)
        y = self.norm(y.astype(q.dtype), self.gate(x).reshape(y.shape))
        y = self.out(y.reshape(*x.shape[:2], -1))
        if state is None or routed is None:
            return y, None
        return y, MixtureState(routed, shared, document[:, -1], tokens.segment_after(state.segment))

    def _read(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        beta: jax.Array,
        decay: jax.Array,
        tokens: Tokens,
        state: RecurrentState | None,
    ) -> tuple[jax.Array, RecurrentState | None]:
        """Output of a memory for projections (batch, length, ...) of tokens, (batch, length, heads, value_dim), and its
        state.
        """
        read, seen = self.convolve([q, k, v], tokens, state)
        q, k, v = (silu(a).reshape(*a.shape[:2], self.num_heads, -1) for a in read)
        wide = jnp.promote_types(decay.dtype, jnp.float32)
        rate = jnp.exp(self.A_log[...].astype(wide))
        decay = -rate * softplus(decay.astype(wide) + self.dt_bias[...].astype(wide))
        beta = jax.nn.sigmoid(beta.astype(wide))
        y, memory = correct(normalized(q), normalized(k), v, beta, decay, tokens, state)
        return y, state and state.after(tokens, memory=memory, convolutions=seen)

    def _sorted(
        self,
        q: jax.Array,
        own: list[jax.Array],
        chosen: jax.Array,
        weights: jax.Array,
        document: jax.Array,
        mask: jax.Array | None,
    ) -> jax.Array:
        """The weighted sum of the outputs of each token's memories, (batch, length, heads, value_dim), for whole rows.
        The tokens of each memory are processed as a separate document.

        Args:
          own: projections for each memory, (batch, length, memories, ...).
          chosen, weights: (batch, length, chosen).
          document: (batch, length), index of each token's document.
        """
        batch, length, count = chosen.shape
        memory = chosen if mask is None else jnp.where(mask[..., None], chosen, self.memories)
        memory = memory.reshape(batch, -1)
        order = jnp.argsort(memory, axis=1, stable=True)
        token, memory = order // count, jnp.take_along_axis(memory, order, axis=1)
        picked = [jnp.take_along_axis(a, chosen[..., None], axis=2).reshape(batch, length * count, -1) for a in own]
        picked = [_rows(a, order) for a in picked]
        ids = memory * (length + 1) + jnp.take_along_axis(document, token, axis=1)
        tokens = Tokens(mask=None if mask is None else memory < self.memories, segment_ids=ids)
        k, v, beta, decay = picked
        y, _ = self._read(_rows(q, token), k, v, beta, decay, tokens, None)
        y = _rows(y, jnp.argsort(order, axis=1)).reshape(batch, length, count, *y.shape[2:])
        return jnp.einsum("blchv,blc->blhv", y.astype(weights.dtype), weights)

    def _side_by_side(
        self,
        q: jax.Array,
        own: list[jax.Array],
        chosen: jax.Array,
        weights: jax.Array,
        document: jax.Array,
        mask: jax.Array | None,
        state: RecurrentState,
    ) -> tuple[jax.Array, RecurrentState]:
        """:meth:`_sorted` continued from ``state``: each memory is a row in which its tokens come first."""
        batch, length, _ = chosen.shape
        picks = jax.nn.one_hot(chosen, self.memories, dtype=weights.dtype)
        picks = picks if mask is None else jnp.where(mask[..., None, None], picks, 0)
        share = jnp.einsum("blcm,blc->bml", picks, weights)
        goes = jnp.moveaxis(jnp.sum(picks, axis=2) > 0, 2, 1).reshape(-1, length)
        order = jnp.argsort(~goes, axis=1, stable=True)

        def of_memories(a: jax.Array) -> jax.Array:
            """Reorders (batch, length, memories or 1, ...) to rows of memories, each memory's tokens first."""
            a = jnp.broadcast_to(a, (*a.shape[:2], self.memories, *a.shape[3:]))
            return _rows(jnp.moveaxis(a, 2, 1).reshape(batch * self.memories, length, *a.shape[3:]), order)

        count = jnp.sum(goes, axis=1, keepdims=True)
        tokens = Tokens(mask=jnp.arange(length) < count, segment_ids=of_memories(document[..., None]))
        k, v, beta, decay = map(of_memories, own)
        together = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), state)
        y, new = self._read(of_memories(q[:, :, None]), k, v, beta, decay, tokens, together)
        assert new is not None
        y = _rows(y, jnp.argsort(order, axis=1)).reshape(batch, self.memories, *y.shape[1:])
        return jnp.einsum("bmlhv,bml->blhv", y.astype(share.dtype), share), _apart(new, batch)

    def _load(self, scores: jax.Array, chosen: jax.Array, mask: jax.Array | None) -> jax.Array:
        """M sum_m (fraction of tokens that choose m) (mean score of m); k if balanced."""
        real = jnp.ones(scores.shape[:2], scores.dtype) if mask is None else mask.astype(scores.dtype)
        part = real / jnp.maximum(jnp.sum(real), 1)
        used = jnp.einsum("bl,blcm->m", part, jax.nn.one_hot(chosen, self.memories, dtype=scores.dtype))
        return self.memories * jnp.sum(used * jnp.einsum("bl,blm->m", part, scores))


def _rows(a: jax.Array, index: jax.Array) -> jax.Array:
    """Rows ``index`` (batch, new) of ``a`` (batch, length, ...)."""
    return jnp.take_along_axis(a, index.reshape(*index.shape, *(1,) * (a.ndim - 2)), axis=1)


def _apart(state: RecurrentState, batch: int) -> RecurrentState:
    """Reshapes a state (batch * memories, ...) to (batch, memories, ...)."""
    return jax.tree.map(lambda a: a.reshape(batch, -1, *a.shape[1:]), state)

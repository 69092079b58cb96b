"""Block-Recurrent Transformers (Hutchins et al., NeurIPS 2022, arXiv:2203.07852), section 3.

A text is read in windows of W tokens. The state, N vectors s, is updated at the end of each window; the tokens of a
window see the state left by the previous one. With unit-norm queries and keys per head, and learned scales,

    y = W_o [softmax(a q_x K_x^T + bias) V_x, softmax(b q'_x K_s^T) V_s]       tokens attend to W tokens and the state
    h =     [softmax(c q_s K_s^T) V_s, softmax(d q'_s K_x^T) V_x]              the state attends to itself and tokens
    K_s, V_s, q_s, q'_s = projections of RMSNorm(s) + e                        e: learned, one for each of the N
    K_x in h: keys of this window and the previous one

    skip    s = gate(s, W h)
    dual    s = gate(s, W h);  s = gate'(s, W_2 relu(W_1 RMSNorm(s)))
    single  s = gate(s, tanh(W_2 relu(W_1 h)))

    fixed   gate(s, z) = g s + (1 - g) z                              g = sigmoid(b)
    lstm    gate(s, z) = sigmoid(W_f u + b_f + 1) s + sigmoid(W_i u + b_i - 1) z      u: input of the last matrix

The paper's best is the fixed gate with "skip". As in the authors' code (google-research/meliad), a token sees the
tokens before it but not itself, and ``bias`` is T5's bucketed relative position bias. The first window of a document
has no previous window; in the authors' code it has one of zeros, which takes a share of the softmax
(``hidden_start=False``).

The state's keys and values are stored with it. The gradient passes through all windows of a call.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, Unpack

import jax
import jax.numpy as jnp
from flax import nnx, struct

from layers.attention.relative import create_relative
from layers.broadcast import broadcast
from layers.initializers import VarianceScaling, lecun_normal, normal, ones
from layers.linear import Linear
from layers.mixer import Mixer, finite_padding, register_mixer
from layers.module import LayerOptions, Module, parameter
from layers.norm import RMSNorm, unit
from layers.segmented import Piece, read_on, read_whole
from layers.tokens import Tokens, continued
from pallas_kernels import attention

Gate = Literal["fixed", "lstm"]
Cell = Literal["skip", "dual", "single"]


@struct.dataclass
class BlockRecurrentState:
    """State of each row's current document.

    Attributes:
      key, value: (batch, 2 W, heads, head_dim): previous window and unfinished one.
      states: (batch, N, features), s, at least float32.
      state_key, state_value: (batch, N, heads, head_dim), keys and values of s.
      length: (batch,) int32, tokens of the document read so far.
      segment: (batch,) int32, id of the document.
    """

    key: jax.Array
    value: jax.Array
    states: jax.Array
    state_key: jax.Array
    state_value: jax.Array
    length: jax.Array
    segment: jax.Array


class StateGate(Module):
    """The gate that mixes the old state with its update.

    Parameters: ``bias`` (features,) for "fixed"; ``forget`` and ``take`` (linear) for "lstm".
    """

    def __init__(self, features: int, inputs: int, kind: Gate, **made: Unpack[LayerOptions]):
        """Args:
        features: features of the state.
        inputs: features of u, the input of an "lstm" gate.
        kind: "fixed" or "lstm".
        """
        self.bias = parameter(normal(0.1), (features,), made) if kind == "fixed" else None
        lstm: dict[str, Any] = {
            "kernel_init": VarianceScaling(0.1, "fan_in", "truncated_normal"),
            "bias_init": normal(0.1),
            **made,
        }
        self.forget = Linear(inputs, features, **lstm) if kind == "lstm" else None
        self.take = Linear(inputs, features, **lstm) if kind == "lstm" else None

    def __call__(self, states: jax.Array, new: jax.Array, read: jax.Array) -> jax.Array:
        """The new state, given ``states`` and the update ``new`` (batch, N, features), and ``read``, u (batch, N,
        inputs).
        """
        new = new.astype(states.dtype)
        if self.forget is None or self.take is None:
            assert self.bias is not None
            kept = jax.nn.sigmoid(self.bias[...].astype(states.dtype))
            return kept * states + (1 - kept) * new
        kept = jax.nn.sigmoid(self.forget(read).astype(states.dtype) + 1)
        return kept * states + jax.nn.sigmoid(self.take(read).astype(states.dtype) - 1) * new


@register_mixer("block_recurrent_attention")
class BlockRecurrentAttention(Mixer):
    """Attention to the last W tokens and to a recurrent state, which attends to each window in turn.

    Parameters: ``query``, ``key``, ``value``, ``state_query``, ``out`` (linear, no biases), ``scale`` and
    ``state_scale`` (heads,) and ``relative.table`` for tokens; for the state ``initial`` and ``place`` (N, features),
    ``norm``, ``own_query``, ``own_key``, ``own_value``, ``token_query`` (linear), ``own_scale`` and ``token_scale``
    (heads,); and, depending on the cell, ``project``, ``gate``, ``channel_norm``, ``up``, ``down``, ``channel_gate``.
    """

    paper = (122,)
    supports_causal = True
    supports_bidirectional = False
    causal = True
    honors = frozenset({"mask", "segment_ids"})
    undecayed: ClassVar[tuple[str, ...]] = ("initial", "place")

    def __init__(
        self,
        features: int,
        *,
        num_heads: int,
        head_dim: int | None = None,
        window: int = 512,
        states: int = 512,
        gate: Gate = "fixed",
        cell: Cell = "skip",
        hidden: int | None = None,
        hidden_start: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          num_heads, head_dim: number of heads, of tokens and of the state, and features of a head; default features /
            num_heads.
          window, states: W and N.
          gate: "fixed" or "lstm".
          cell: "skip", "dual" or "single".
          hidden: hidden features of the state's MLP; default 4 * features.
          hidden_start: mask the missing window before a document; if False, it consists of visible zeros.

        Raises:
          ValueError: features not divisible by num_heads, a window or state below 1, or an unknown gate or cell.
        """
        if head_dim is None and features % num_heads:
            raise ValueError(f"{features} features can't be divided among {num_heads} heads: give head_dim=")
        if window < 1 or states < 1:
            raise ValueError(f"a window and a state have at least 1 vector each; got window={window}, states={states}")
        if gate not in ("fixed", "lstm") or cell not in ("skip", "dual", "single"):
            raise ValueError(f'gate={gate!r}, cell={cell!r}: "fixed" or "lstm"; "skip", "dual" or "single"')
        self.features, self.num_heads, self.head_dim = features, num_heads, head_dim or features // num_heads
        self.window, self.states, self.cell, self.hidden_start = window, states, cell, hidden_start
        self.segment_multiple = window
        inner, hidden = num_heads * self.head_dim, hidden or 4 * features
        made: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        linear: dict[str, Any] = {"use_bias": False, "kernel_init": lecun_normal, **made}
        self.query, self.key, self.value, self.state_query = (Linear(features, inner, **linear) for _ in range(4))
        self.out = Linear(2 * inner, features, **linear)
        self.scale, self.state_scale, self.own_scale, self.token_scale = (
            parameter(ones, (num_heads,), made) for _ in range(4)
        )
        places: dict[str, Any] = {"num_heads": num_heads, "head_dim": self.head_dim, "causal": True}
        self.relative = create_relative("buckets", **places, param_dtype=param_dtype, rngs=rngs)
        self.initial = parameter(normal(0.1), (states, features), made)
        self.place = parameter(normal(1.0), (states, features), made)
        self.norm = RMSNorm(features, epsilon=1e-6, **made)
        self.own_query, self.own_key, self.own_value, self.token_query = (
            Linear(features, inner, **linear) for _ in range(4)
        )
        single = cell == "single"
        self.project = None if single else Linear(2 * inner, features, **linear)
        self.gate = None if single else StateGate(features, 2 * inner, gate, **made)
        deep = cell != "skip"
        self.channel_norm = RMSNorm(features, epsilon=1e-6, **made) if cell == "dual" else None
        self.up = Linear(2 * inner if single else features, hidden, **linear) if deep else None
        self.down = Linear(hidden, features, **linear) if deep else None
        self.channel_gate = StateGate(features, hidden, gate, **made) if deep else None

    @property
    def complexity(self) -> float:
        return 1.0

    def init_state(
        self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32
    ) -> BlockRecurrentState:
        """The learned initial state without tokens; its size does not depend on the length."""
        shape = (batch_size, 2 * self.window, self.num_heads, self.head_dim)
        states = self._initial(batch_size, jnp.promote_types(dtype, jnp.float32))
        own_key, own_value = (a.astype(dtype) for a in self._own(states))
        return BlockRecurrentState(
            key=jnp.zeros(shape, dtype),
            value=jnp.zeros(shape, dtype),
            states=states,
            state_key=own_key,
            state_value=own_value,
            length=jnp.zeros((batch_size,), jnp.int32),
            segment=jnp.zeros((batch_size,), jnp.int32),
        )

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        x = finite_padding(x, tokens.mask)
        heads = self._heads(x)
        state = self.init_state(x.shape[0], dtype=heads[0].dtype)
        found, _ = read_whole(self._step, state, heads, tokens, self.window)
        return self.out(found.reshape(*x.shape[:2], -1))

    def mix_next(
        self, x: jax.Array, state: BlockRecurrentState, tokens: Tokens
    ) -> tuple[jax.Array, BlockRecurrentState]:
        x = finite_padding(x, tokens.mask)
        after = continued(x.shape[1], state.length, state.segment, tokens.mask, tokens.segment_ids)
        where = {"positions": after.positions, "document": state.segment}
        found, new, _ = read_on(self._step, state, self._heads(x), tokens, self.window, **where)
        new = dataclasses.replace(new, length=after.length, segment=after.segment)
        return self.out(found.reshape(*x.shape[:2], -1)), new

    def _heads(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Queries for tokens and for the state, keys and values of tokens, (batch, length, heads, head_dim)."""
        q, state_q, k, v = (
            layer(x).reshape(*x.shape[:2], self.num_heads, -1)
            for layer in (self.query, self.state_query, self.key, self.value)
        )
        return _scaled(q, self.scale), _scaled(state_q, self.state_scale), unit(k), v

    def _initial(self, batch: int, dtype: Any) -> jax.Array:
        return broadcast(self.initial[...], (batch, self.states, self.features), dtype)

    def _placed(self, states: jax.Array) -> jax.Array:
        """RMSNorm(s) + e, the input of the state's projections."""
        h = self.norm(states.astype(self.norm.dtype or states.dtype))
        return h + broadcast(self.place[...], h.shape, h.dtype)

    def _own(self, states: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values of the state."""
        h = self._placed(states)
        k, v = (layer(h).reshape(*h.shape[:2], self.num_heads, -1) for layer in (self.own_key, self.own_value))
        return unit(k), v

    def _step(self, state: BlockRecurrentState, piece: Piece) -> tuple[BlockRecurrentState, jax.Array, tuple[()]]:
        """Reads tokens of one window; returns the new state and the outputs of the heads over tokens, then over the
        state, (batch, width, 2 heads, head_dim).
        """
        q, state_q, k, v = piece.arrays
        if piece.fresh is not None:
            state = self._begun(state, piece.fresh)
        inside, offset = state.length % self.window, jnp.arange(q.shape[1])
        row = jnp.arange(q.shape[0])[:, None]
        place = jnp.where(piece.real, self.window + inside[:, None] + offset, 2 * self.window)
        key, value = (
            old.at[row, place].set(new.astype(old.dtype), mode="drop")
            for old, new in ((state.key, k), (state.value, v))
        )
        first = jnp.where(state.length < self.window, self.window if self.hidden_start else 0, 0)
        known = jnp.arange(2 * self.window) >= first[:, None]
        # A query is placed at the previous token, because a token does not see itself.
        before = self.window + inside[:, None] + offset - 1
        bias = self.relative.changes(before, before)
        table = bias["relative_bias"] * self.scale[...].astype(jnp.float32)[:, None]
        among = attention(
            q, key.astype(q.dtype), value.astype(q.dtype), mask=known[:, None, None], causal=True, scale=1.0,
            window=(self.window - 1, 0), query_positions=before, relative_bias=table,
            relative_origin=bias["relative_origin"] + 1,
        )  # fmt: skip
        of_state = attention(state_q, state.state_key.astype(q.dtype), state.state_value.astype(q.dtype), scale=1.0)
        count = jnp.sum(piece.real, axis=1, dtype=jnp.int32)
        full = (count > 0) & ((state.length + count) % self.window == 0)
        state = dataclasses.replace(state, key=key, value=value, length=state.length + count)
        state = jax.lax.cond(jnp.any(full), lambda: self._moved(state, known, full), lambda: state)
        return state, jnp.concatenate([among, of_state.astype(among.dtype)], axis=2), ()

    def _begun(self, state: BlockRecurrentState, fresh: jax.Array) -> BlockRecurrentState:
        """The state with the rows ``fresh``, bool (batch,), reset."""
        empty = self.init_state(fresh.shape[0], dtype=state.key.dtype)
        empty = dataclasses.replace(empty, segment=state.segment)
        return _chosen(fresh, empty, state)

    def _moved(self, state: BlockRecurrentState, known: jax.Array, full: jax.Array) -> BlockRecurrentState:
        """The state after rows ``full``, bool (batch,), have reached the end of a window."""
        h = self._placed(state.states)
        own_q, token_q = (
            layer(h).reshape(*h.shape[:2], self.num_heads, -1) for layer in (self.own_query, self.token_query)
        )
        of_own, of_tokens = (
            attention(_scaled(q, scale), k.astype(q.dtype), v.astype(q.dtype), mask=mask, scale=1.0)
            for q, scale, k, v, mask in (
                (own_q, self.own_scale, state.state_key, state.state_value, None),
                (token_q, self.token_scale, state.key, state.value, known[:, None, None]),
            )
        )
        found = jnp.concatenate([of_own, of_tokens], axis=2).reshape(*h.shape[:2], -1)
        states = self._next(state.states, found)
        own_key, own_value = self._own(states)
        moved = dataclasses.replace(
            state,
            key=jnp.concatenate([state.key[:, self.window :], jnp.zeros_like(state.key[:, self.window :])], axis=1),
            value=jnp.concatenate([state.value[:, self.window :], jnp.zeros_like(state.value[:, self.window :])], 1),
            states=states,
            state_key=own_key.astype(state.state_key.dtype),
            state_value=own_value.astype(state.state_value.dtype),
        )
        return _chosen(full, moved, state)

    def _next(self, states: jax.Array, found: jax.Array) -> jax.Array:
        """The cell: the next state, given h, ``found`` (batch, N, 2 heads * head_dim)."""
        read = found
        if self.project is not None and self.gate is not None:
            states = self.gate(states, self.project(found), found)
            if self.channel_norm is None:
                return states
            read = self.channel_norm(states).astype(found.dtype)
        assert self.up is not None
        assert self.down is not None
        assert self.channel_gate is not None
        hidden = jax.nn.relu(self.up(read))
        new = self.down(hidden)
        return self.channel_gate(states, jnp.tanh(new) if self.cell == "single" else new, hidden)


def _scaled(q: jax.Array, scale: nnx.Param) -> jax.Array:
    """Unit-norm queries times the scale of their head."""
    return unit(q) * broadcast(scale[...][:, None], q.shape, q.dtype)


def _chosen(rows: jax.Array, new: BlockRecurrentState, old: BlockRecurrentState) -> BlockRecurrentState:
    """``new`` in ``rows``, bool (batch,), ``old`` in the others."""
    return jax.tree.map(lambda a, b: jnp.where(rows.reshape(-1, *(1,) * (b.ndim - 1)), a, b), new, old)

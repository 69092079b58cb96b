"""Titans' combinations of a neural memory with attention (A. Behrouz et al., 2024, arXiv:2501.00663), section 4.

    as context  h = M(q);  y = Attention([persistent; h; x]) in segments;  M learns y;  o = y (x) M(y)     eq. 21 to 25
    as gate     o = SlidingWindowAttention(x) (x) M(x)                                                     eq. 26 to 28
    as layer    o = SlidingWindowAttention(M(x)), each with a residual connection                          eq. 29 to 31

a (x) b is norm(a) * sigmoid(norm(b)). Attention and memory have separate persistent tokens.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct

from layers.attention.cache import AttentionCache, ContextCache
from layers.attention.multi_head import MultiHeadAttention
from layers.extra_tokens import repeated
from layers.initializers import normal, variance_scaling
from layers.linear import Linear
from layers.memory.choices import Memory
from layers.memory.learning import Weights, choose, learn, recall, weights_of
from layers.memory.neural_memory import NeuralMemory, NeuralMemoryState, Opened, Pieces
from layers.mixer import Mixer, register_mixer
from layers.norm import RMSNorm
from layers.position import rotate
from layers.tokens import Tokens, continued
from pallas_kernels import attention
from primitives import sequence
from primitives.exponential import gated

_INIT = variance_scaling(1 / 3, "fan_in", "uniform")


@struct.dataclass
class WindowState:
    """The states of the attention and of the memory."""

    attention: AttentionCache | ContextCache
    memory: NeuralMemoryState


class _WithWindow(Mixer):
    """A sliding-window attention and a neural memory; parameters ``attention``, ``memory``, ``attention_norm``,
    ``memory_norm``.
    """

    supports_causal = True
    supports_bidirectional = False
    honors = frozenset({"mask", "segment_ids"})
    paper = (51,)
    causal = True

    def __init__(
        self,
        features: int,
        *,
        num_heads: int,
        window: int = 256,
        persistent: int = 4,
        memory: str | Memory = "titans",
        chunk: int = 16,
        conv_size: int | None = 4,
        rotary: float | None = 10000.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
        num_heads: number of heads of the attention and of the memory.
        window: size of the sliding window in tokens, the query included.
        persistent: number of learned tokens that attention always sees, and of those that the memory reads first.
        memory, chunk, conv_size: as in :class:`NeuralMemory`.
        rotary: base of the attention's position embedding; None for none.
        """
        common = {
            "num_heads": num_heads,
            "persistent": persistent,
            "kernel_init": _INIT,
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        self.attention = MultiHeadAttention(
            features, causal=True, window=window, rotary=rotary, use_bias=False, **common
        )
        self.memory = NeuralMemory(features, memory=memory, chunk=chunk, conv_size=conv_size, **common)
        self.segment_multiple = self.memory.segment_multiple
        self.attention_norm = RMSNorm(features, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.memory_norm = RMSNorm(features, dtype=dtype, param_dtype=param_dtype, rngs=rngs) if self._gates else None

    _gates = True

    @property
    def complexity(self) -> float:
        return 1.0

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> WindowState:
        """A state of constant size: the window and the memory."""
        return WindowState(
            self.attention.init_state(batch_size, None, dtype), self.memory.init_state(batch_size, None, dtype)
        )


@register_mixer("titans_mag")
class MemoryAsGate(_WithWindow):
    """Memory as gate: the output of sliding-window attention, gated by the memory's output."""

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        mask = tokens.mask
        x = x if mask is None else jnp.where(mask[..., None], x, 0)
        return self._join(self.attention(x, tokens), self.memory(x, tokens.without("positions")))

    def mix_next(self, x: jax.Array, state: WindowState, tokens: Tokens) -> tuple[jax.Array, WindowState]:
        mask = tokens.mask
        x = x if mask is None else jnp.where(mask[..., None], x, 0)
        y, attention = self.attention.extend(x, state.attention, tokens)
        m, memory = self.memory.extend(x, state.memory, tokens)
        return self._join(y, m), WindowState(attention, memory)

    def _join(self, y: jax.Array, m: jax.Array) -> jax.Array:
        assert self.memory_norm is not None
        return gated(self.attention_norm(y), self.memory_norm(m))


@register_mixer("titans_mal")
class MemoryAsLayer(_WithWindow):
    """Memory as layer: m = M(x), then m + SlidingWindowAttention(norm(x + m)), so that with the block's own residual
    connection each part has one.
    """

    _gates = False

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        mask = tokens.mask
        x = x if mask is None else jnp.where(mask[..., None], x, 0)
        m = self.memory(x, tokens.without("positions"))
        return m + self.attention(self.attention_norm(x + m), tokens)

    def mix_next(self, x: jax.Array, state: WindowState, tokens: Tokens) -> tuple[jax.Array, WindowState]:
        mask = tokens.mask
        x = x if mask is None else jnp.where(mask[..., None], x, 0)
        m, memory = self.memory.extend(x, state.memory, tokens)
        y, attention = self.attention.extend(self.attention_norm(x + m), state.attention, tokens)
        return m + y, WindowState(attention, memory)


@struct.dataclass
class ContextState:
    """The state of memory as context.

    Attributes:
      key, value: (batch, 2 * segment, heads, head_dim), first for what the memory recalled in the segment, then for its
        tokens.
      memory: state of the memory; its ``length`` counts the tokens of the row's current document.
      start: the memory's weights at the start of the segment, which the whole segment reads.
    """

    key: jax.Array
    value: jax.Array
    memory: NeuralMemoryState
    start: Weights


@register_mixer("titans_mac")
class MemoryAsContext(Mixer):
    """Memory as context: each segment attends to itself, to persistent tokens, and to the output of a memory of all
    earlier segments.

    The memory's output h_t is visible only to its own token and later ones, because it depends on the token. Segments
    are counted from the start of the row, so documents must begin at multiples of ``segment``; in :meth:`extend` they
    may begin anywhere, and calls with ``segment_ids`` read token by token.

    Parameters: ``query``, ``key``, ``value``, ``out``, ``retrieve`` (linear), ``persistent``, ``recall_norm``,
    ``attention_norm``, ``memory_norm``, ``memory``.
    """

    supports_causal = True
    undecayed = ("persistent",)
    honors = frozenset({"mask", "segment_ids"})
    supports_bidirectional = False
    paper = (51,)
    causal = True

    def __init__(
        self,
        features: int,
        *,
        num_heads: int,
        segment: int = 32,
        chunk: int | None = None,
        persistent: int = 4,
        memory: str | Memory = "titans",
        conv_size: int | None = 4,
        rotary: float | None = 10000.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          num_heads: number of heads of the attention and of the memory.
          segment: tokens of a segment.
          chunk: as in :class:`NeuralMemory`; None for ``segment``.
          persistent: number of learned tokens that every segment attends to.
          memory, conv_size: as in :class:`NeuralMemory`.
          rotary: base of the position embedding within a segment; None for none.

        Raises:
          ValueError: a chunk that does not divide the segment.
        """
        chunk = segment if chunk is None else chunk
        if chunk < 1 or segment % chunk:
            raise ValueError(f"the memory's chunk of {chunk} tokens must divide the segment of {segment}")
        common = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        weights = {"use_bias": False, "kernel_init": _INIT, **common}
        self.memory = NeuralMemory(
            features, num_heads=num_heads, memory=memory, chunk=chunk, conv_size=conv_size, kernel_init=_INIT, **common
        )
        self.query = Linear(features, features, **weights)
        self.key = Linear(features, features, **weights)
        self.value = Linear(features, features, **weights)
        self.out = Linear(features, features, **weights)
        self.retrieve = Linear(features, features, **weights)
        self.persistent = (
            nnx.Param(normal(1.0)(rngs.params(), (persistent, features), param_dtype)) if persistent else None
        )
        self.recall_norm = RMSNorm(features, **common)
        self.attention_norm = RMSNorm(features, **common)
        self.memory_norm = RMSNorm(features, **common)
        self.heads, self.segment, self.rotary = num_heads, segment, rotary
        self.segment_multiple = segment

    @property
    def complexity(self) -> float:
        return 1.0

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        mask = tokens.mask
        state = self._state(x.shape[0], x.dtype)
        if sequence.objection(x.shape[1]) is not None or tokens.segment_ids is not None:
            return self._mix(x, state, tokens, self.segment)[0]
        graph, params = nnx.split(self)

        def step(
            params: Any, state: ContextState, part: tuple[jax.Array, jax.Array | None]
        ) -> tuple[ContextState, jax.Array]:
            y, state = nnx.merge(graph, params)._mix(part[0], state, Tokens(part[1]), self.segment)
            return state, y

        return sequence.serially(step, params, state, (x, mask), (1, 1))

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> ContextState:
        """A state of constant size: a segment and the memory."""
        return self._state(batch_size, dtype)

    def mix_next(self, x: jax.Array, state: ContextState, tokens: Tokens) -> tuple[jax.Array, ContextState]:
        # Documents, and so their segments, may begin anywhere: read token by token.
        return self._mix(x, state, tokens, self.segment if tokens.segment_ids is None else 1)

    def _state(self, batch: int, dtype: Any) -> ContextState:
        shape = (batch, 2 * self.segment, self.heads, self.query.in_features // self.heads)
        memory = self.memory.init_state(batch, None, dtype)
        # A copy: a state whose leaves share a buffer can't be donated.
        start = tuple(jnp.copy(w) for w in weights_of(self.memory.memory, memory.memory.accumulated))
        return ContextState(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), memory, start)

    def _mix(self, x: jax.Array, state: ContextState, tokens: Tokens, size: int) -> tuple[jax.Array, ContextState]:
        """Reads tokens in pieces of ``size``, which end where segments do and where documents begin."""
        mask, memory = tokens.mask, state.memory
        x = x if mask is None else jnp.where(mask[..., None], x, 0)
        pieces, opened = Pieces.cut(memory.length, x.shape[1], size, mask), None
        finished, begin = jnp.swapaxes(pieces.finished, 0, 1), None
        if (starts := tokens.starts(memory.segment)) is not None:
            places, _, _ = continued(x.shape[1], memory.length, memory.segment, mask, tokens.segment_ids)
            opened = Opened(starts, places + 1, self._state(1, state.key.dtype))
            finished, begin = opened.of_pieces(pieces, self.segment)

        def body(state: ContextState, piece: tuple[Any, Any]) -> tuple[ContextState, jax.Array]:
            own, begin = piece
            if opened is not None:
                state = opened.reset(begin, state)
            return self._piece(state, own)

        along = (pieces.split(x, 1), jnp.swapaxes(pieces.mask, 0, 1), finished)
        state, y = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), state, (along, begin))
        segment = tokens.segment_after(memory.segment)
        return pieces.join(y, 1), dataclasses.replace(state, memory=dataclasses.replace(state.memory, segment=segment))

    def _piece(
        self, state: ContextState, piece: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[ContextState, jax.Array]:
        """Reads one segment, or a part of one that continues the segment in the state."""
        x, mask, finished = piece
        x = jnp.where(mask[..., None], x, 0)
        memory = state.memory
        said = recall(self.memory.memory, state.start, self.memory.normalized(self.retrieve(x)))
        said = self.recall_norm(jnp.swapaxes(said, 1, 2).reshape(x.shape).astype(x.dtype))
        places = memory.length[:, None] % self.segment + jnp.arange(x.shape[1], dtype=jnp.int32)
        keys, values = self._write(state, said, x, jnp.where(mask, places, self.segment))
        slots = jnp.broadcast_to(jnp.tile(jnp.arange(self.segment, dtype=jnp.int32), 2), keys.shape[:2])
        k, v = keys.astype(x.dtype), values.astype(x.dtype)
        if self.persistent is not None:
            p = repeated(self.persistent[...], x.shape[0], x.dtype)
            k = jnp.concatenate([self._heads(self.key(p)).astype(k.dtype), k], axis=1)
            v = jnp.concatenate([self._heads(self.value(p)).astype(v.dtype), v], axis=1)
            slots = jnp.pad(slots, ((0, 0), (p.shape[1], 0)))
        q = self._place(self._heads(self.query(x)), places)
        # Slots after the query may hold an earlier segment; they count as the future, which is masked.
        y = attention(q, k.astype(q.dtype), v.astype(q.dtype), causal=True, query_positions=places, key_positions=slots)
        y = self.attention_norm(self.out(y.reshape(x.shape)))
        y = jnp.where(mask[..., None], y, 0)
        m, memory = self._learn(y, memory, mask, finished)
        start = choose(finished, weights_of(self.memory.memory, memory.memory.accumulated), state.start)
        return ContextState(keys, values, memory, start), gated(y, self.memory_norm(m))

    def _learn(
        self, y: jax.Array, state: NeuralMemoryState, mask: jax.Array, finished: jax.Array
    ) -> tuple[jax.Array, NeuralMemoryState]:
        """Updates the memory with the attention outputs ``y`` of one segment, and reads it."""
        layer = self.memory
        qkv, seen = layer.project(y), state.convolution
        if layer.conv is not None:
            qkv, seen = layer.conv.extend(qkv, seen, mask)
        tokens, length = layer.tokens(y, qkv, mask), state.length + mask.sum(1, dtype=jnp.int32)
        if layer.chunk == self.segment:
            m, memory = learn(layer.memory, state.memory, tokens, finished)
        else:
            m, memory = layer.read(state.memory, state.length, tokens, layer.chunk)
        return layer.answer(m, y), NeuralMemoryState(seen, memory, length, state.segment)

    def _write(
        self, state: ContextState, said: jax.Array, x: jax.Array, slots: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Stores keys and values of the recalled vectors ``said`` and of the tokens in the slots of their segment; a
        slot beyond the segment stores nothing.
        """
        length, source = x.shape[1], jnp.concatenate([said, x], axis=1)
        slots = jnp.tile(slots, 2)
        # Unique indices make the gradient of the scatter simple: entries not stored get distinct indices out of bounds.
        indices = jnp.arange(2 * length, dtype=jnp.int32)
        places = slots + jnp.where(indices < length, 0, self.segment)
        at = jnp.arange(x.shape[0])[:, None], jnp.where(slots < self.segment, places, 2 * self.segment + indices)
        keys, values = self._place(self._heads(self.key(source)), slots), self._heads(self.value(source))
        return (
            state.key.at[at].set(keys.astype(state.key.dtype), mode="drop", unique_indices=True),
            state.value.at[at].set(values.astype(state.value.dtype), mode="drop", unique_indices=True),
        )

    def _heads(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], self.heads, -1)

    def _place(self, x: jax.Array, positions: jax.Array) -> jax.Array:
        return x if self.rotary is None else rotate(x, positions, base=self.rotary)

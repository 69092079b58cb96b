"""The neural memory as a token mixer: Titans: Learning to Memorize at Test Time (A. Behrouz et al., 2024,
arXiv:2501.00663), sections 3 and 4.4.

    q, k, v = silu(conv(W x));  q, k = q / |q|, k / |k|      theta C, eta, keep = sigmoid(W x): one each per head
    y = W_out (RMSNorm(M_t(q_t) * silu(W_gate x)))           M_t: the memory after token t (layers/memory/learning.py)

The gradients of a chunk of C tokens are taken at the same weights and add up: a key that occurs n times in it is
written n times, and with steps above 2 / C its memory could overshoot further each time. Therefore the tokens of a
chunk share a total step of at most 1.

With other choices of structure, bias, retention and algorithm (layers/memory/choices.py) this is the Miras layer
(arXiv:2504.13173), except that its step sizes and decays are per channel; ours are per head.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct

from layers.convolution import CausalConvolution, ConvolutionState
from layers.extra_tokens import ExtraTokens, repeated
from layers.initializers import constant, normal, variance_scaling
from layers.linear import Linear
from layers.memory.choices import MEMORIES, Memory
from layers.memory.learning import MemoryInputs, MemoryState, initial_state, learn, parallel
from layers.mixer import Mixer, register_mixer
from layers.norm import GatedRMSNorm
from layers.tokens import Tokens, continued
from primitives import sequence
from primitives.exponential import silu, softplus
from suggestions import near

# Initial gates, our choice. Momentum prolongs a step; forgetting at each token limits how far back the memory reaches.
STEP, MOMENTUM, FORGET = 0.25, 0.12, 0.0025


@struct.dataclass
class NeuralMemoryState:
    """State of the layer for each row's current document.

    Attributes:
      convolution: state of the convolution; an array of size 0 without one.
      memory: state of the memory.
      length: (batch,) int32, tokens of the document read so far, persistent ones included.
      segment: (batch,) int32, id of the document.
    """

    convolution: ConvolutionState | jax.Array
    memory: MemoryState
    length: jax.Array
    segment: jax.Array


@struct.dataclass
class Opened:
    """Documents that begin among the tokens that a mixer reads in pieces.

    Attributes:
      starts: bool (batch, new), True where a document begins.
      count: (batch, new) int32, tokens of the document up to and including each token, persistent ones included.
      state: the state of one row before the first token of a document; batch first.
    """

    starts: jax.Array
    count: jax.Array
    state: Any

    def of_pieces(self, pieces: Pieces, chunk: int) -> tuple[jax.Array, jax.Array]:
        """Bool (pieces, batch) each: pieces that end a document's chunk, and those that begin a document.

        Both are boundaries of pieces by construction.
        """
        first = pieces.index[..., 0]
        last = jnp.maximum(first + pieces.mask.sum(-1, dtype=jnp.int32) - 1, 0)
        whole = jnp.take_along_axis(self.count, last, axis=1) % chunk == 0
        begin = jnp.take_along_axis(self.starts, first, axis=1) & pieces.mask[..., 0]
        return jnp.swapaxes(whole & pieces.finished, 0, 1), jnp.swapaxes(begin, 0, 1)

    def reset(self, begin: jax.Array, state: Any) -> Any:
        """``state``, replaced by the initial state in rows ``begin`` (batch,), where a document begins."""
        return jax.tree.map(
            lambda fresh, old: jnp.where(begin.reshape(-1, *(1,) * (old.ndim - 1)), fresh, old), self.state, state
        )


@struct.dataclass
class Pieces:
    """Splits new tokens at the ends of the chunks of their rows; a row's first chunk may already have begun.

    Attributes:
      index: (batch, pieces, size) int32, the token in each slot of each piece.
      mask: bool of the same shape, slots that hold a real token; they come first.
      finished: bool (batch, pieces), pieces that end a chunk.
      place: (batch, new) int32, the slot of each token, counted through all pieces.
    """

    index: jax.Array
    mask: jax.Array
    finished: jax.Array
    place: jax.Array

    @classmethod
    def cut(cls, length: jax.Array, new: int, size: int, mask: jax.Array | None) -> Pieces:
        """Splits ``new`` tokens per row, after ``length`` (batch,) earlier ones, at multiples of ``size``; ``mask``
        (batch, new) is True for real tokens.
        """
        count = jnp.full_like(length, new) if mask is None else mask.sum(1, dtype=jnp.int32)
        first = size - length % size  # tokens missing in the unfinished chunk
        if new == 1:
            index = jnp.zeros((length.shape[0], 1, 1), jnp.int32)
            return cls(index, (count > 0)[:, None, None], ((first == 1) & (count > 0))[:, None], index[:, 0])
        number = 1 + -(-(new - 1) // size)
        later = jnp.arange(number - 1, dtype=jnp.int32) * size
        begin = jnp.concatenate([jnp.zeros_like(first)[:, None], first[:, None] + later], axis=1)
        end = jnp.concatenate([begin[:, 1:], begin[:, -1:] + jnp.where(number == 1, first[:, None], size)], axis=1)
        index = begin[..., None] + jnp.arange(size, dtype=jnp.int32)
        token = jnp.arange(new, dtype=jnp.int32)
        after = token - first[:, None]
        place = jnp.where(after < 0, token, size * (1 + after // size) + after % size)
        real = (index < end[..., None]) & (index < count[:, None, None])
        return cls(jnp.minimum(index, new - 1), real, end <= count[:, None], place)

    def split(self, x: jax.Array, axis: int) -> jax.Array:
        """Stacks the pieces of x (batch, ..., new at ``axis``, ...) along a new first axis."""
        x = jnp.moveaxis(x, axis, 1)
        out = jax.vmap(lambda row, index: row[index])(x, self.index)
        return jnp.moveaxis(jnp.moveaxis(out, 1, 0), 2, axis + 1)

    def join(self, x: jax.Array, axis: int) -> jax.Array:
        """Inverse of ``split``: (pieces, batch, ..., size at ``axis`` + 1, ...) to (batch, ..., new at ``axis``, ...).
        """
        x = jnp.moveaxis(x, (axis + 1, 0), (2, 1)) if axis else x
        rows = x.reshape(x.shape[0], -1, *x.shape[3:])
        return jnp.moveaxis(jax.vmap(lambda row, place: row[place])(rows, self.place), 1, axis)


def memory_of(memory: str | Memory) -> Memory:
    """The memory with this name in ``MEMORIES``, or ``memory`` itself if it is not a name.

    Raises:
      ValueError: an unknown name; the message suggests similar ones.
    """
    if not isinstance(memory, str):
        return memory
    if memory not in MEMORIES:
        raise ValueError(
            f"unknown memory {memory!r}{near(memory, MEMORIES)}; there are {', '.join(MEMORIES)}, or give a "
            f"layers.Memory"
        )
    return MEMORIES[memory]


@register_mixer("neural_memory")
class NeuralMemory(Mixer):
    """A memory whose weights are trained by gradient steps while it reads, at inference too.

    Parameters: ``query``, ``key``, ``value``, ``gate``, ``out`` (linear), ``conv`` (of queries, keys and values),
    ``step``, ``momentum``, ``keep``, ``threshold`` (linear, one output per head, as far as the memory needs them),
    ``initial.N`` (heads, in, out): the memory's initial weights (or accumulators, if its retention maps them),
    ``norm``, and ``persistent`` (tokens, features) if enabled.

    At the start of each document the memory has read only the persistent tokens. Chunks are counted from the start of
    the row, so documents must begin at multiples of ``chunk``; in :meth:`extend` they may begin anywhere, and calls
    with ``segment_ids`` read token by token.
    """

    supports_causal = True
    undecayed = ("persistent",)
    honors = frozenset({"mask", "segment_ids"})
    supports_bidirectional = False
    paper = (51, 214)
    causal = True

    def __init__(
        self,
        features: int,
        *,
        num_heads: int,
        head_dim: int | None = None,
        memory: str | Memory = "titans",
        chunk: int = 16,
        conv_size: int | None = 4,
        persistent: int = 0,
        kernel_init: Any = variance_scaling(1 / 3, "fan_in", "uniform"),
        norm_epsilon: float = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          num_heads, head_dim: number of heads, each with its own memory, and features of their keys and values; default
            features / num_heads.
          memory: a name in ``layers.MEMORIES`` or a ``layers.Memory``.
          chunk: number of tokens whose gradients are taken at the same weights; 1 is the papers' recurrence.
          conv_size: kernel size of the convolution; None for no convolution.
          persistent: number of learned tokens that are read before every document.
          kernel_init: initializer of the linear layers.
          norm_epsilon: epsilon of the norm of each head's output.

        Raises:
          ValueError: an unknown memory, a chunk below 1, or features not divisible by num_heads.
        """
        if head_dim is None and features % num_heads:
            raise ValueError(
                f"{features} features can't be split over {num_heads} heads: give head_dim, or a number of heads that "
                f"divides it"
            )
        if chunk < 1:
            raise ValueError(f"NeuralMemory: chunk must be at least 1; got {chunk}")
        self.memory = memory_of(memory)
        self.segment_multiple = chunk
        self.heads, self.head_dim, self.chunk = num_heads, head_dim or features // num_heads, chunk
        inner = num_heads * self.head_dim
        common = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        weights = {"use_bias": False, "kernel_init": kernel_init, **common}
        self.query = Linear(features, inner, **weights)
        self.key = Linear(features, inner, **weights)
        self.value = Linear(features, inner, **weights)
        self.gate = Linear(features, inner, **weights)
        self.out = Linear(inner, features, **weights)
        self.conv = CausalConvolution(3 * inner, conv_size, use_bias=False, **common) if conv_size else None

        def gate(share: float) -> Linear:
            bias = math.log(share / (1 - share))
            return Linear(features, num_heads, kernel_init=kernel_init, bias_init=constant(bias), **common)

        self.step = gate(STEP)
        self.momentum = gate(MOMENTUM) if self.memory.algorithm.momentum else None
        self.keep = gate(1 - FORGET) if self.memory.retention.forget else None
        self.threshold = gate(0.5) if self.memory.bias.thresholded else None
        self.initial = nnx.List(
            [
                nnx.Param(
                    normal(self.memory.retention.initial_scale(shape))(rngs.params(), (num_heads, *shape), param_dtype)
                )
                for shape in self.memory.structure.shapes(self.head_dim)
            ]
        )
        self.norm = GatedRMSNorm(inner, groups=num_heads, epsilon=norm_epsilon, param_dtype=param_dtype, rngs=rngs)
        self.persistent = (
            nnx.Param(normal(1.0)(rngs.params(), (persistent, features), param_dtype)) if persistent else None
        )

    @property
    def complexity(self) -> float:
        return 1.0

    @property
    def _opening(self) -> int:
        """Number of persistent tokens, which are read before every document."""
        return 0 if self.persistent is None else self.persistent.shape[0]

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        mask = tokens.mask
        if tokens.segment_ids is not None:
            # Chunks end, and documents begin, at multiples of this.
            size = math.gcd(self.chunk, self._opening)
            return self._read_rows(x, self.init_state(x.shape[0], dtype=x.dtype), tokens, size)[0]
        if sequence.objection(x.shape[1]) is None:
            return self._split(x, mask)
        extra = ExtraTokens(self._opening)
        if self.persistent is not None:
            x, known = extra.put(x, self.persistent[...], mask)
            mask = known.mask
        x = x if mask is None else jnp.where(mask[..., None], x, 0)
        qkv = self.project(x)
        qkv = qkv if self.conv is None else self.conv(qkv)
        y = parallel(self.memory, self.initial_weights(qkv.dtype), self.tokens(x, qkv, mask), self.chunk)
        return extra.take(self.answer(y, x))[0]

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> NeuralMemoryState:
        """A state of constant size that has read the persistent tokens; the memory is at least float32."""
        state = NeuralMemoryState(
            convolution=jnp.zeros((batch_size, 0, 0), dtype)
            if self.conv is None
            else self.conv.init_state(batch_size, dtype=dtype),
            memory=initial_state(self.memory, self.initial_weights(dtype), batch_size),
            length=jnp.zeros((batch_size,), jnp.int32),
            segment=jnp.zeros((batch_size,), jnp.int32),
        )
        if self.persistent is None:
            return state
        return self.extend(repeated(self.persistent[...], batch_size, dtype), state)[1]

    def mix_next(self, x: jax.Array, state: NeuralMemoryState, tokens: Tokens) -> tuple[jax.Array, NeuralMemoryState]:
        # Documents, and so their chunks, may begin anywhere: read token by token.
        return self._read_rows(x, state, tokens, self.chunk if tokens.segment_ids is None else 1)

    def _read_rows(
        self, x: jax.Array, state: NeuralMemoryState, tokens: Tokens, size: int
    ) -> tuple[jax.Array, NeuralMemoryState]:
        """:meth:`extend` in pieces of ``size`` tokens, which end where chunks do and where documents begin."""
        mask = tokens.mask
        x = x if mask is None else jnp.where(mask[..., None], x, 0)
        qkv, seen = self.project(x), state.convolution
        opened = before = None
        places, length, segment = continued(
            x.shape[1], state.length - self._opening, state.segment, mask, tokens.segment_ids
        )
        if (starts := tokens.starts(state.segment)) is not None:
            opening = self.init_state(1, dtype=state.memory.accumulated[0].dtype)
            opened = Opened(starts, places + self._opening + 1, opening.memory)
            if self._opening and isinstance(opening.convolution, ConvolutionState):
                before = opening.convolution.inputs[0]
        if self.conv is not None:
            assert isinstance(seen, ConvolutionState)
            qkv, seen = self.conv.read(qkv, seen, tokens, before)
        y, memory = self.read(state.memory, state.length, self.tokens(x, qkv, mask), size, opened)
        return self.answer(y, x), NeuralMemoryState(seen, memory, length + self._opening, segment)

    def read(
        self, memory: MemoryState, length: jax.Array, tokens: MemoryInputs, size: int, opened: Opened | None = None
    ) -> tuple[jax.Array, MemoryState]:
        """The memory's output for tokens that follow ``length`` (batch,) earlier ones, (batch, heads, new, head_dim),
        and the new memory. Pieces of ``size`` tokens are read in parallel.
        """
        new = tokens.step.shape[-1]
        pieces = Pieces.cut(length, new, size, tokens.mask)
        finished, begin = jnp.swapaxes(pieces.finished, 0, 1), None
        if opened is not None:
            finished, begin = opened.of_pieces(pieces, self.chunk)

        def body(memory: MemoryState, piece: tuple[MemoryInputs, jax.Array, Any]) -> tuple[MemoryState, jax.Array]:
            inputs, finished, begin = piece
            if opened is not None:
                memory = opened.reset(begin, memory)
            y, memory = learn(self.memory, memory, inputs, finished)
            return memory, y

        split = dataclasses.replace(
            tokens.map(lambda a: pieces.split(a, 2), lambda a: a), mask=jnp.swapaxes(pieces.mask, 0, 1)
        )
        memory, y = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), memory, (split, finished, begin))
        return pieces.join(y, 2), memory

    def _split(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        """:meth:`mix` for a sequence that is split over devices: only reading the memory waits for the previous device.
        """
        x = x if mask is None else jnp.where(mask[..., None], x, 0)
        state = self.init_state(x.shape[0], dtype=x.dtype)
        qkv = self.project(x)
        qkv = qkv if self.conv is None else self.conv.extend(qkv, state.convolution)[0]

        def step(_: None, state: tuple[MemoryState, jax.Array], part: tuple[MemoryInputs, jax.Array | None]) -> Any:
            (memory, length), (tokens, mask) = state, part
            y, memory = self.read(memory, length, dataclasses.replace(tokens, mask=mask), self.chunk)
            new = tokens.step.shape[-1] if mask is None else mask.sum(1, dtype=jnp.int32)
            return (memory, length + new), y

        start = state.memory, state.length
        y = sequence.serially(step, None, start, (self.tokens(x, qkv, None), mask), (2, 1))
        return self.answer(y, x)

    def project(self, x: jax.Array) -> jax.Array:
        """Queries, keys and values before the convolution: (batch, length, 3 * inner)."""
        return jnp.concatenate([self.query(x), self.key(x), self.value(x)], axis=-1)

    def normalized(self, x: jax.Array) -> jax.Array:
        """Queries or keys (batch, length, inner) as inputs of the memory: (batch, heads, length, head_dim), after silu,
        with norm 1.
        """
        x = self._in_heads(silu(x))
        return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-6)

    def tokens(self, x: jax.Array, qkv: jax.Array, mask: jax.Array | None) -> MemoryInputs:
        """The memory's inputs for tokens x (batch, length, features); ``qkv`` (batch, length, 3 * inner) is after the
        convolution.
        """
        q, k, v = jnp.split(qkv, 3, axis=-1)

        def gate(linear: Linear | None, function: Any) -> jax.Array | None:
            if linear is None:
                return None
            z = linear(x)
            return function(jnp.swapaxes(z.astype(jnp.promote_types(z.dtype, jnp.float32)), 1, 2))

        step = gate(self.step, jax.nn.sigmoid)
        assert step is not None
        step = step / self.chunk
        return MemoryInputs(
            query=self.normalized(q),
            key=self.normalized(k),
            value=self._in_heads(silu(v)),
            step=step,
            log_keep=gate(self.keep, jax.nn.log_sigmoid),
            log_momentum=gate(self.momentum, jax.nn.log_sigmoid),
            threshold=gate(self.threshold, softplus),
            mask=mask,
        )

    def answer(self, y: jax.Array, x: jax.Array) -> jax.Array:
        """The layer's output, given the memory's output y (batch, heads, length, head_dim) for the tokens x."""
        gate = self.gate(x)
        y = jnp.swapaxes(y, 1, 2).reshape(gate.shape)
        return self.out(self.norm(y.astype(gate.dtype), gate))

    def initial_weights(self, dtype: Any) -> tuple[jax.Array, ...]:
        """The initial accumulators, each (heads, in, out), at least float32."""
        return tuple(w[...].astype(jnp.promote_types(dtype, jnp.float32)) for w in self.initial)

    def _in_heads(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return jnp.swapaxes(x.reshape(*x.shape[:2], self.heads, self.head_dim), 1, 2)

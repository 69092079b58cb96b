"""MemMamba: Rethinking Memory Patterns in State Space Model (Wang et al., 2025, arXiv:2510.03279), section 4.

A state space model that stores notes, and attends to its own notes and to those of the layers below:

    if I_token(x_t) > tau_1      S_t = Insert(S_{t-1}, N(x_t))                          a pool of k notes (equation 5)
    if I_state(z_{t-1}) > tau_2  c_t = Attention(x_t, S_{t-1}), else 0         in every layer              (6 and 10)
    if l mod p = 0               d_t = Attention(x_t, notes of the last g layers), else 0                  (7 and 11)
    y = Mamba(x + F(c) + F'(d))                                                                                  (12)

    N: a note is W_n x, of 64 numbers, max-pooled over a window of w tokens (equations 26 and 40)
    Attention: softmax((W_q x) (W_s s)^T / 8) W_v s, with one head
    F: x + a c with a learned scalar a for each layer, the best of table 4; initially a = 0.8, as in section A.3.5

The paper gives k = 50 and a note size of 64, but no code and few other details. Our choices:

- I is sigmoid(w x + b), and tau is 0.5. A gate is open above tau, as in the paper, and its gradient is that of the
  sigmoid (straight-through).
- z_{t-1} is the output of the layer below for the previous token (as in section A.2.2), not the state h_{t-1}. With
  h_{t-1}, the recalled notes would depend on the state and the state on them, so tokens could not be processed in
  parallel.
- A window stores one note at its end, pooled over its tokens whose gate is open, and none if no gate is open: w = 1 is
  equation 5. Windows are counted from the start of a document.
- Of the two ways to replace notes in a full pool that the paper names, first in, first out is the default. By priority,
  a new note replaces the one of lowest priority, if its own is higher. The priority is I_token, of a window the highest
  of its noted tokens.
- From a layer below, a token gets what it recalled from that layer's pool, before the gate: a mean of notes, (64,). So
  layers pass on g summaries of each token, but no pools.
- "gated" multiplies c by a sigmoid of x, "product" by x, "residual" adds c unchanged; the paper gives no formulas. Its
  fifth variant, a convolution, is not implemented.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Unpack

import jax
import jax.numpy as jnp
from flax import struct

from layers.broadcast import broadcast
from layers.convolution import ConvolutionState
from layers.initializers import constant
from layers.linear import Linear
from layers.mixer import State, register_mixer, without_padding
from layers.module import Diagnostic, LayerOptions, Module, of_layers, parameter
from layers.state_space.mamba import Mamba, MambaOptions, SelectiveState
from layers.state_space.notes import Notes, read, write
from layers.token_shift import TokenShift
from layers.tokens import Tokens

Fusion = Literal["weighted", "residual", "gated", "product"]
Replacement = Literal["oldest", "priority"]


@struct.dataclass
class MemoryState(SelectiveState):
    """The state of MemMamba.

    Attributes:
      before: the last token read.
      notes: the pool of notes.
    """

    before: ConvolutionState
    notes: Notes


@struct.dataclass
class Summaries:
    """What each token recalled in the layers below, the latest layer last.

    Attributes:
      found: (batch, length, g, size), at least float32.
      known: bool (batch, length, g), whether there were any notes.
    """

    found: jax.Array
    known: jax.Array

    @classmethod
    def none(cls, batch: int, length: int, layers: int, size: int, dtype: Any = jnp.float32) -> Summaries:
        """The input of the first layer: no summaries."""
        shape = (batch, length, layers)
        return cls(jnp.zeros((*shape, size), dtype), jnp.zeros(shape, bool))

    def and_of(self, found: jax.Array, known: jax.Array) -> Summaries:
        """A copy with the summaries of another layer in place of the oldest."""
        found = jnp.concatenate([self.found[:, :, 1:], found.astype(self.found.dtype)[:, :, None]], axis=2)
        return Summaries(found, jnp.concatenate([self.known[:, :, 1:], known[..., None]], axis=2))


class Gate(Module):
    """1 if sigmoid(w x + b) is above a threshold, else 0, with the gradient of the sigmoid.

    Parameters: ``score`` (linear).
    """

    def __init__(self, features: int, threshold: float, **made: Any):
        self.score = Linear(features, 1, **made)
        # Scores are compared, for a sigmoid is rounded to 0 or 1 where they are large.
        edge = math.inf if threshold > 0 else -math.inf
        self.least = math.log(threshold / (1 - threshold)) if 0 < threshold < 1 else edge

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps (batch, length, features) to the gate and to sigmoid(w x + b), both (batch, length, 1), at least
        float32.
        """
        score = self.score(x)
        score = score.astype(jnp.promote_types(score.dtype, jnp.float32))
        soft = jax.nn.sigmoid(score)
        return (score > self.least).astype(soft.dtype) + (soft - jax.lax.stop_gradient(soft)), soft


class Fused(Module):
    """F: fuses recalled notes with the tokens.

    Parameters: ``value`` (linear, no bias), W_v; ``weight`` (), a, if "weighted"; ``gate`` (linear), if "gated".
    """

    def __init__(self, features: int, size: int, fusion: Fusion, **made: Any):
        """Args:
          size: size of a note.

        Raises:
          ValueError: an unknown fusion.
        """
        if fusion not in ("weighted", "residual", "gated", "product"):
            raise ValueError(f'fusion is "weighted", "residual", "gated" or "product", got {fusion!r}')
        self.value, self.fusion = Linear(size, features, use_bias=False, **made), fusion
        options: LayerOptions = {"param_dtype": made["param_dtype"], "rngs": made["rngs"]}
        self.weight = parameter(constant(0.8), (), options) if fusion == "weighted" else None
        self.gate = Linear(features, 1, **made) if fusion == "gated" else None

    def __call__(self, x: jax.Array, found: jax.Array, is_open: jax.Array | None = None) -> jax.Array:
        """The term to add to ``x`` (batch, length, features) for ``found`` (batch, length, size); 0 where ``is_open``
        (batch, length, 1) is 0.
        """
        c = self.value(found if is_open is None else found * is_open.astype(found.dtype)).astype(x.dtype)
        if self.weight is not None:
            return broadcast(self.weight[...], c.shape, c.dtype) * c
        if self.gate is not None:
            return jax.nn.sigmoid(self.gate(x)).astype(c.dtype) * c
        return x * c if self.fusion == "product" else c


@register_mixer("memory_mamba")
class MemoryMamba(Mamba):
    """Mamba whose input includes recalled notes of earlier tokens, with a state of constant size.

    Parameters: those of :class:`Mamba`; ``note``, ``query`` and ``key`` (linear, no biases), ``note_gate.score`` and
    ``recall_gate.score`` (linear), ``fused``; in layers that attend to those below also ``layer_query`` and
    ``layer_key`` (linear, no biases) and ``layer_fused``.
    """

    paper = (174,)
    undecayed: ClassVar[tuple[str, ...]] = (*Mamba.undecayed, "fused.weight", "layer_fused.weight")

    def __init__(
        self,
        features: int,
        *,
        notes: int = 50,
        note_dim: int = 64,
        window: int = 16,
        note_threshold: float = 0.5,
        recall_threshold: float = 0.5,
        fusion: Fusion = "weighted",
        replacement: Replacement = "oldest",
        layers: int = 0,
        every: int = 4,
        index: int = 0,
        **options: Unpack[MambaOptions],
    ):
        """Args:
          notes: k, capacity of the pool; with 0 it is Mamba.
          note_dim: size of a note.
          window: w, number of tokens that are pooled to one note.
          note_threshold: tau_1: with 0 every token is noted, with 1 none.
          recall_threshold: tau_2: with 0 every token recalls notes, with 1 none.
          fusion: the form of F.
          replacement: which note of a full pool a new one replaces: the oldest, or that of lowest priority.
          layers: g, number of layers below whose summaries it gets; 0 for none. The model must pass on
            :class:`Summaries`.
          every: p: every p-th layer, counted from 1, attends to the layers below.
          index: index of the block.
          options: options of :class:`Mamba`.

        Raises:
          ValueError: negative ``notes`` or ``layers``, ``note_dim``, ``window`` or ``every`` below 1, or an unknown
            fusion, replacement or initialization.
        """
        if min(notes, layers) < 0 or min(note_dim, window, every) < 1:
            raise ValueError(
                f"notes and layers are at least 0, note_dim, window and every at least 1: got notes={notes}, "
                f"layers={layers}, note_dim={note_dim}, window={window}, every={every}"
            )
        if replacement not in ("oldest", "priority"):
            raise ValueError(f'replacement is "oldest" or "priority", got {replacement!r}')
        super().__init__(features, **options)
        self.by_priority = replacement == "priority"
        common = of_layers(options)
        linear = {"use_bias": False, **common}
        self.capacity, self.note_dim, self.window, self.shares = notes, note_dim, window, layers > 0
        self.note = Linear(features, note_dim, **linear)
        self.query = Linear(features, note_dim, **linear)
        self.key = Linear(note_dim, note_dim, **linear)
        self.note_gate = Gate(features, note_threshold, **common)
        self.recall_gate = Gate(features, recall_threshold, **common)
        self.before = TokenShift(features, dtype=common["dtype"])
        self.fused = Fused(features, note_dim, fusion, **common)
        looks_down = layers > 0 and index > 0 and (index + 1) % every == 0
        self.layer_query = Linear(features, note_dim, **linear) if looks_down else None
        self.layer_key = Linear(note_dim, note_dim, **linear) if looks_down else None
        self.layer_fused = Fused(features, note_dim, fusion, **common) if looks_down else None

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> MemoryState:
        own = super().init_state(batch_size, max_length, dtype)
        return MemoryState(
            own.convolution,
            own.hidden,
            self.before.init_state(batch_size, dtype=dtype),
            self._no_notes(batch_size, jnp.promote_types(dtype, jnp.float32)),
        )

    def mix(self, x: jax.Array, tokens: Tokens, /, *beside: Any) -> Any:
        y, _, handed = self._read(without_padding(x, tokens.mask), tokens, None, *beside[:1])
        return (y, handed) if self.shares else y

    def mix_next(self, x: jax.Array, state: State, tokens: Tokens, /, *beside: Any) -> Any:
        y, new, handed = self._read(without_padding(x, tokens.mask), tokens, state, *beside[:1])
        new = jax.tree.map(lambda new, old: new.astype(old.dtype), new, state)
        return (y, new, handed) if self.shares else (y, new)

    def _no_notes(self, batch: int, dtype: Any) -> Notes:
        return Notes.none(batch, self.capacity, self.note_dim + self.by_priority, dtype)

    def _read(
        self, x: jax.Array, tokens: Tokens, state: MemoryState | None, below: Summaries | None = None
    ) -> tuple[jax.Array, MemoryState | None, Summaries | None]:
        """The output, the new state, and the summaries to pass on."""
        if self.shares and below is None:
            raise ValueError("MemoryMamba with layers= reads what blocks hand on: give its layers.Stack shared=")
        worth, score = self.note_gate(x)
        said = self.note(x).astype(worth.dtype) * worth
        if self.by_priority:
            said = jnp.concatenate([said, score], axis=-1)
        last = self._no_notes(x.shape[0], worth.dtype) if state is None else state.notes
        found, notes = write(said, worth[..., 0] > 0.5, last, tokens, self.window, by_priority=self.by_priority)
        query = self.query(x)
        key = self.key(found.summaries.astype(query.dtype))
        recalled = read(query, key, found, self.capacity, self.window)
        before, seen = self.before.recur(x, tokens, None if state is None else state.before)
        forgotten, _ = self.recall_gate(before)
        self.sow(Diagnostic, "noted", worth[..., 0])
        self.sow(Diagnostic, "recalled", forgotten[..., 0])
        joined = x + self.fused(x, recalled, forgotten).astype(x.dtype)
        if below is not None:
            if self.layer_fused is not None:
                joined = joined + self.layer_fused(x, self._from_layers(x, below)).astype(x.dtype)
            below = below.and_of(recalled, found.end > found.first)
        y, own = super().recur(joined, tokens, state)
        if own is None or seen is None:
            return y, None, below
        return y, MemoryState(own.convolution, own.hidden, seen, notes), below

    def _from_layers(self, x: jax.Array, below: Summaries) -> jax.Array:
        """Attention of each token over the summaries of the layers below: (batch, length, size); zeros where there are
        none.
        """
        assert self.layer_query is not None
        assert self.layer_key is not None
        query, key = self.layer_query(x), self.layer_key(below.found.astype(x.dtype))
        logits = jnp.einsum("bln,blgn->blg", query, key, preferred_element_type=below.found.dtype)
        weights = jax.nn.softmax(jnp.where(below.known, logits * self.note_dim**-0.5, -1e30), axis=-1)
        weights = jnp.where(below.known, weights, 0)
        return jnp.einsum("blg,blgn->bln", weights, below.found).astype(x.dtype)

"""Compressive Transformers for Long-Range Sequence Modelling (Rae et al., ICLR 2020, arXiv:1911.05507), algorithms 1
and 2, on Transformer-XL's attention (:mod:`layers.attention.transformer_xl`).

    y = W_o attention(x, [compressed, memory, x])       distances are in entries of this list
    after each segment of S tokens
        old, memory = the first S of [memory, x], the other P
        compressed  = the last N of [compressed, f(old)]         f: c tokens to one

A token sees its own segment, the P tokens before the segment, and before these N slots that stand for c tokens each: P
+ c N + S tokens at the cost of P + N + S. f is a convolution with kernel size and stride c, a mean or maximum of c
tokens, or it keeps the S / c tokens with the greatest mean attention weight, summed over heads, while they were
visible. (The paper's dilated convolutions are not described well enough to be offered.)

A convolution learns only from a loss of its own. Content-based attention of the segment to the slots f(old) should
reconstruct its attention to the old tokens,

    || sigma(q K_old^T) V_old - sigma(q K_f^T) V_f ||^2        mean over features and queries; gradients to f alone

or a linear map of the slots should reconstruct the old tokens ("autoencoding"). Without such a loss the gradient of the
model's loss passes through f and its inputs ("BPTT"). On enwik8 the paper reports 0.973 bits with a convolution and the
first loss, 0.980 with the most used tokens, 0.982 with means, 0.984 with autoencoding, 0.986 with maxima, and 0.996
with the model's loss (table 5); on PG-19 a perplexity of 33.6 against Transformer-XL's 36.3, with 36 layers, S = P = N
= 512 and c = 2.

Here slots and memory that are still empty are masked; in the paper they start as zeros, which take a share of the
softmax. The state stores keys and values, not the hidden states they are projected from, and the gradient passes
through the memory within a call.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Unpack

import jax
import jax.numpy as jnp
from flax import nnx, struct

from layers.attention.projected import HeadOptions, of_projections
from layers.attention.transformer_xl import TransformerXLAttention
from layers.linear import Linear
from layers.mixer import register_mixer
from layers.module import AuxLoss, Diagnostic
from layers.segmented import Piece, Step, read_on, read_whole
from layers.tokens import Continuation, Tokens
from pallas_kernels import attention, attention_weights

Compression = Literal["convolution", "mean", "max", "most_used"]
POOLS: dict[str, Callable[..., jax.Array]] = {"mean": jnp.mean, "max": jnp.max}
LOSS = "compression"


@struct.dataclass
class CompressiveState:
    """State of each row's current document, in the order of the text.

    Attributes:
      key, value: (batch, N + P + S, heads, head_dim): slots, memory and unfinished segment.
      hidden: (batch, P + S, features), the inputs x of the memory and the segment; None if f does not read them.
      usage: (batch, P + S) float32, attention weight that each token has received, summed over heads and queries; None
        if f does not read it.
      length: (batch,) int32, tokens of the document read so far.
      segment: (batch,) int32, id of the document.
    """

    key: jax.Array
    value: jax.Array
    hidden: jax.Array | None
    usage: jax.Array | None
    length: jax.Array
    segment: jax.Array


@register_mixer("compressive_attention")
class CompressiveAttention(TransformerXLAttention):
    """Transformer-XL's attention whose old memory is compressed instead of dropped.

    Parameters: those of :class:`TransformerXLAttention`; ``compress`` (linear) for a convolution, and ``restore``
    (linear) for the loss "autoencoding".
    """

    paper = (178,)
    aux_losses: ClassVar[dict[str, float]] = {LOSS: 1.0}
    refusals: ClassVar[dict[str, str]] = {"positions": "segments are counted from the start of a document"}

    def __init__(
        self,
        features: int,
        *,
        segment: int = 512,
        memory: int = 512,
        compressed: int = 512,
        rate: int = 2,
        compression: Compression = "convolution",
        loss: Literal["attention", "autoencoding"] | None = None,
        end_to_end: bool = False,
        clamp: int | None = None,
        head_dim: int | None = None,
        **options: Unpack[HeadOptions],
    ):
        """Args:
          segment, memory, compressed: S, P and N. The paper uses 512 each on PG-19 and WikiText-103, and 768, 768 and
            1152 on enwik8.
          rate: c, tokens per slot; 2 on PG-19, 3 on enwik8.
          compression: f.
          loss: the only loss whose gradient reaches f; None means "attention" for a convolution, and no loss if f has
            no parameters or learns end to end.
          end_to_end: the gradient of the model's loss passes through f and its inputs instead.
          clamp, head_dim, options: as in :class:`TransformerXLAttention`.

        Raises:
          ValueError: sizes that c does not divide or that leave no slot, an unknown compression, "most_used" with a
            memory that is not a multiple of the segment, or a loss for an f that does not need one.
        """
        if rate < 1 or compressed < 1 or segment % max(rate, 1) or memory % max(rate, 1):
            raise ValueError(
                f"slots of rate={rate} tokens need a segment and a memory that {rate} divides, and compressed= at least"
                f" 1; got segment={segment}, memory={memory}, compressed={compressed}. transformer_xl has no slots"
            )
        if compression not in ("convolution", "most_used", *POOLS):
            raise ValueError(f"compression={compression!r}: convolution, mean, max or most_used")
        if compression == "most_used" and memory % segment:
            raise ValueError(
                f"the most used tokens are chosen of a whole segment at a time: memory={memory} must be a multiple of "
                f"segment={segment}"
            )
        learned = compression == "convolution" and not end_to_end
        if loss not in (None, "attention", "autoencoding") or (loss is not None and not learned):
            raise ValueError(
                f"loss={loss!r} is for a convolution that does not learn end to end: 'attention' or 'autoencoding'; "
                "leave it out otherwise"
            )
        super().__init__(features, segment=segment, memory=memory, clamp=clamp, head_dim=head_dim, **options)
        self.visible, self.window = None, compressed + memory + segment
        self.segment, self.memory, self.compressed, self.rate = segment, memory, compressed, rate
        self.compression, self.loss = compression, (loss or "attention") if learned else None
        self.end_to_end, self.segment_multiple = end_to_end, segment
        made = of_projections(options)
        convolved = compression == "convolution"
        self.compress = Linear(rate * features, features, **made) if convolved else None
        self.restore = Linear(features, rate * features, **made) if self.loss == "autoencoding" else None

    @property
    def honors(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"mask", "segment_ids"})

    def init_state(  # type: ignore[override]
        self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32
    ) -> CompressiveState:
        """An empty state, whose size does not depend on the length."""
        assert self.window is not None
        recent = batch_size, self.memory + self.segment
        shape = (batch_size, self.window, self.num_heads, self.head_dim)
        by_use = self.compression == "most_used"
        return CompressiveState(
            key=jnp.zeros(shape, dtype),
            value=jnp.zeros(shape, dtype),
            hidden=None if by_use else jnp.zeros((*recent, self.features), dtype),
            usage=jnp.zeros(recent, jnp.promote_types(dtype, jnp.float32)) if by_use else None,
            length=jnp.zeros((batch_size,), jnp.int32),
            segment=jnp.zeros((batch_size,), jnp.int32),
        )

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        state = self.init_state(x.shape[0], dtype=q.dtype)
        (y, weights), loss = read_whole(self._step(), state, (q, k, v, x), tokens, self.segment)
        self._report(loss, weights)
        return jnp.asarray(y)

    def core_next(  # type: ignore[override]
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        x: jax.Array,
        tokens: Tokens,
        state: CompressiveState,
        after: Continuation,
    ) -> tuple[jax.Array, CompressiveState]:
        where = {"positions": after.positions, "document": state.segment}
        (y, weights), state, loss = read_on(self._step(), state, (q, k, v, x), tokens, self.segment, **where)
        self._report(loss, weights)
        return y, dataclasses.replace(state, length=after.length, segment=after.segment)

    @property
    def _learns(self) -> bool:
        """Whether f has its own loss and it is being collected."""
        return self.loss is not None and self.sowing(AuxLoss, LOSS)

    def _step(self) -> Step:
        learns, explained = self._learns, self.sowing(Diagnostic, "attention")
        return functools.partial(self._segment, learns=learns, explained=explained)

    def _report(self, loss: tuple[jax.Array, jax.Array], weights: jax.Array | None) -> None:
        """Sows the mean loss, given its sum and count, and the weights (batch, length, heads, N + P + S)."""
        if self._learns:
            self.sow(AuxLoss, LOSS, loss[0] / jnp.maximum(loss[1], 1))
        if weights is not None:
            self.sow(Diagnostic, "attention", jnp.moveaxis(weights, 2, 1))

    def _segment(
        self, state: CompressiveState, piece: Piece, *, learns: bool, explained: bool
    ) -> tuple[CompressiveState, Any, Any]:
        """Reads tokens of one segment. Returns the new state, the head outputs with the weights (batch, width, heads, N
        + P + S) if requested, and the sum and count of the loss.
        """
        query, key, value, x = piece.arrays
        length = state.length if piece.fresh is None else jnp.where(piece.fresh, 0, state.length)
        inside, width = length % self.segment, x.shape[1]
        oldest = self.compressed + self.memory
        place = jnp.where(piece.real, inside[:, None] + jnp.arange(width), self.segment)
        row = jnp.arange(length.shape[0])[:, None]

        def stored(old: jax.Array, at: int, new: jax.Array) -> jax.Array:
            return old.at[row, at + place].set(new.astype(old.dtype), mode="drop")

        state = dataclasses.replace(
            state,
            key=stored(state.key, oldest, key),
            value=stored(state.value, oldest, value),
            hidden=None if state.hidden is None else stored(state.hidden, self.memory, x),
            usage=state.usage
            if piece.fresh is None or state.usage is None
            else jnp.where(piece.fresh[:, None], 0, state.usage),
        )
        visible = jnp.arange(self.window) >= self._first(length)[:, None]
        where = oldest + inside[:, None] + jnp.arange(width), None
        q, options = self.placed(query, state.key, mask=visible, positions=where)
        options["window"] = None
        y = attention(q, state.key.astype(q.dtype), state.value.astype(q.dtype), **options)
        weights: Any = None
        if explained or state.usage is not None:
            weights = attention_weights(q, state.key.astype(q.dtype), **options)
        if state.usage is not None:
            got = jnp.einsum("bhqk,bq->bk", weights[..., self.compressed :], piece.real.astype(weights.dtype))
            state = dataclasses.replace(state, usage=state.usage + jax.lax.stop_gradient(got).astype(state.usage.dtype))
        count = jnp.sum(piece.real, axis=1, dtype=jnp.int32)
        full = (count > 0) & ((length + count) % self.segment == 0)
        loss = jnp.zeros(()), jnp.zeros(())
        if learns:
            nothing = loss
            loss = jax.lax.cond(jnp.any(full), lambda: self._loss(state, piece, full, length), lambda: nothing)
        state = jax.lax.cond(jnp.any(full), lambda: self._moved(state, full), lambda: state)
        explanation = jnp.moveaxis(weights, 1, 2) if explained else None
        return dataclasses.replace(state, length=length + count), (y, explanation), loss

    def _first(self, length: jax.Array) -> jax.Array:
        """Index of the first key that is visible in the current segment, given ``length`` (batch,), the tokens read so
        far.
        """
        before = length // self.segment * self.segment
        slots = jnp.clip((before - self.memory) // self.rate, 0, self.compressed)
        return self.compressed - slots + self.memory - jnp.minimum(before, self.memory)

    def _moved(self, state: CompressiveState, full: jax.Array) -> CompressiveState:
        """The state after rows ``full``, bool (batch,), have reached the end of a segment."""
        found = self._compressed(state)

        def moved(old: jax.Array, slots: jax.Array | None = None) -> jax.Array:
            kept = old[:, :0]
            if slots is not None:
                kept, old = old[:, : self.compressed], old[:, self.compressed :]
                kept = jnp.concatenate([kept, slots.astype(old.dtype)], axis=1)[:, -self.compressed :]
            return jnp.concatenate([kept, old[:, self.segment :], jnp.zeros_like(old[:, : self.segment])], axis=1)

        new = dataclasses.replace(
            state,
            key=moved(state.key, found[0]),
            value=moved(state.value, found[1]),
            hidden=None if state.hidden is None else moved(state.hidden),
            usage=None if state.usage is None else moved(state.usage),
        )
        return jax.tree.map(lambda new, old: jnp.where(full.reshape(-1, *(1,) * (old.ndim - 1)), new, old), new, state)

    def _compressed(self, state: CompressiveState) -> tuple[jax.Array, jax.Array]:
        """Keys and values (batch, S / c, heads, head_dim) of the slots made from the S oldest tokens."""
        if state.hidden is not None:
            slots = self._slots(state.hidden[:, : self.segment])
            slots = slots if self.end_to_end else jax.lax.stop_gradient(slots)
            return self.key_value_heads(slots)
        assert state.usage is not None
        seen_by = self.memory + self.segment - jnp.arange(self.segment)
        best = jax.lax.top_k(state.usage[:, : self.segment] / seen_by, self.segment // self.rate)[1]
        chosen = self.compressed + jnp.sort(best, axis=1)[..., None, None]
        k, v = (jnp.take_along_axis(a, chosen, axis=1) for a in (state.key, state.value))
        return (k, v) if self.end_to_end else (jax.lax.stop_gradient(k), jax.lax.stop_gradient(v))

    def _slots(self, hidden: jax.Array) -> jax.Array:
        """f: (batch, S, features) to (batch, S / c, features)."""
        if self.compress is not None:
            return self.compress(hidden.reshape(hidden.shape[0], -1, self.rate * self.features))
        return POOLS[self.compression](hidden.reshape(hidden.shape[0], -1, self.rate, self.features), axis=2)

    def _loss(
        self, state: CompressiveState, piece: Piece, full: jax.Array, length: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Sum of the mean squared errors over queries (for "autoencoding": over old tokens) in the rows ``full`` whose
        oldest tokens exist, and their count.
        """
        assert state.hidden is not None
        stop = jax.lax.stop_gradient
        old = stop(state.hidden[:, : self.segment])
        slots = self._slots(old)
        there = jnp.arange(self.segment) + length[:, None] // self.segment * self.segment >= self.memory
        there &= full[:, None]
        if self.restore is not None:
            error, counted = self.restore(slots).reshape(old.shape) - old, there
        else:
            graph, weights = nnx.split((self.key, self.value))
            layers = nnx.merge(graph, jax.tree.map(stop, weights))
            q = stop(piece.arrays[0])
            found = []
            for tokens, known in ((old, there), (slots, there[:, :: self.rate])):
                shape = *tokens.shape[:2], *q.shape[2:]
                k, v = (layer(tokens).reshape(shape).astype(q.dtype) for layer in layers)
                found.append(attention(q, k, v, mask=known[:, None, None]))
            error = (found[1] - stop(found[0])).reshape(*q.shape[:2], -1)
            counted = piece.real & there.any(1, keepdims=True)
        squared = jnp.mean(jnp.square(error.astype(jnp.float32)), axis=-1)
        return jnp.sum(jnp.where(counted, squared, 0)), jnp.sum(counted, dtype=jnp.float32)

"""Text from a causal language model: batched prompts of different lengths, a state of fixed size, one compiled loop.

    prompt --extend, a piece at a time--> state, logits of each row's last token
    repeat: draw a token from the logits --extend--> state, logits

The tokens are those that re-running the whole sequence at each step would give. Recurrent models
keep a state of constant size, windows a ring; a cache of full attention has a fixed capacity, rounded
up so that prompts of many lengths share a few compiled programs.

``python -m zoo.generation --help`` generates from a shell.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

PAST_END = -1
"""Stands in the result where a row had already met its stop token; no token has this number."""

_PREFILL = 512  # tokens of the prompt read at once: bounds the memory, and the number of programs
_CAPACITY = 128  # caches hold a multiple of this
_SMALLEST = 16  # shorter prompts are padded to this


class LanguageModel(Protocol):
    """What is asked of a model; :class:`zoo.backbones.causal.Causal` has it."""

    config: Any
    position: Any

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = ...) -> Any: ...
    def extend_hidden(self, tokens: jax.Array, state: Any, mask: jax.Array | None = None) -> tuple[jax.Array, Any]: ...
    def logits(self, hidden: jax.Array) -> jax.Array: ...


@dataclasses.dataclass(frozen=True)
class Generation:
    """What was generated.

    Attributes:
      tokens: (batch, new) int32, the new tokens, a row's stop token the last; ``PAST_END`` behind it.
      lengths: (batch,) int32, tokens of each row, the stop token counted.
    """

    tokens: np.ndarray
    lengths: np.ndarray

    def rows(self) -> list[list[int]]:
        """The tokens of each row, without what is past its end."""
        return [row[:length].tolist() for row, length in zip(self.tokens, self.lengths, strict=True)]


@dataclasses.dataclass(frozen=True)
class _Sampling:
    """How a token is drawn: what is part of the compiled program."""

    greedy: bool
    top_k: int | None
    nucleus: bool

    def draw(self, logits: jax.Array, key: jax.Array, temperature: jax.Array, top_p: jax.Array) -> jax.Array:
        """Tokens (batch,) from logits (batch, vocab_size); a row's draw does not depend on the other rows."""
        logits = logits.astype(jnp.float32)
        if self.greedy:
            return jnp.argmax(logits, -1).astype(jnp.int32)
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(logits.shape[0]))
        logits = logits / temperature
        if self.top_k is None and not self.nucleus:
            return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
        ranked, tokens = jax.lax.top_k(logits, min(self.top_k or logits.shape[-1], logits.shape[-1]))
        if self.nucleus:
            probability = jax.nn.softmax(ranked, -1)
            before = jnp.cumsum(probability, -1) - probability
            ranked = jnp.where((before < top_p) | (jnp.arange(ranked.shape[-1]) == 0), ranked, -jnp.inf)
        rank = jax.vmap(jax.random.categorical)(keys, ranked)
        return jnp.take_along_axis(tokens, rank[:, None], -1)[:, 0].astype(jnp.int32)


def generate(
    model: LanguageModel,
    prompt: Sequence[Sequence[int]] | Sequence[int] | np.ndarray | jax.Array,
    max_new_tokens: int,
    *,
    mask: np.ndarray | jax.Array | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: int | Sequence[int] | None = None,
    rngs: nnx.Rngs | jax.Array | None = None,
    max_length: int | None = None,
    dtype: Any = jnp.float32,
) -> Generation:
    """Generates up to ``max_new_tokens`` tokens after each prompt.

    Args:
      model: a causal language model; used in evaluation mode and left as it is.
      prompt: a list of token lists, one for each row and of any lengths; one flat list; or an array (batch, length).
      max_new_tokens: tokens to generate in each row, fewer where it meets a stop token.
      mask: (batch, length) bool for an array, True = real token; padding trails.
      temperature: divides the logits; 0 takes the likeliest token.
      top_k: draw from the k likeliest tokens only.
      top_p: draw from the likeliest tokens that together have this probability, in (0, 1].
      stop: a token, or several, that ends its row.
      rngs: for the draws: ``nnx.Rngs`` (its stream "sample") or a key; None is ``jax.random.key(0)``.
      max_length: capacity of caches of full attention, tokens; None fits prompt and new tokens.
      dtype: of caches and states.

    Raises:
      ValueError: an empty prompt, a token outside the vocabulary, leading padding, an option out of range, or more tokens than
        the caches or the position table hold.
    """
    pieces = list(
        stream(
            model, prompt, max_new_tokens, mask=mask, temperature=temperature, top_k=top_k, top_p=top_p,
            stop=stop, rngs=rngs, max_length=max_length, dtype=dtype, piece=max(max_new_tokens, 1),
        )
    )  # fmt: skip
    tokens = np.concatenate(pieces, 1)
    return Generation(tokens, (tokens != PAST_END).sum(1).astype(np.int32))


def stream(
    model: LanguageModel,
    prompt: Sequence[Sequence[int]] | Sequence[int] | np.ndarray | jax.Array,
    max_new_tokens: int,
    *,
    mask: np.ndarray | jax.Array | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: int | Sequence[int] | None = None,
    rngs: nnx.Rngs | jax.Array | None = None,
    max_length: int | None = None,
    dtype: Any = jnp.float32,
    piece: int = 8,
) -> Iterator[np.ndarray]:
    """As :func:`generate`, yielding (batch, up to ``piece``) int32 arrays of new tokens as they come; how they are cut changes no token."""
    if not hasattr(model, "extend_hidden"):
        raise ValueError(f"{getattr(model, 'variant', type(model).__name__)} is not a causal language model: it can't generate")
    _check(max_new_tokens, temperature, top_k, top_p, piece)
    rows = _rows(prompt, mask, model.config.vocab_size)
    capacity = _capacity(model, max(row.size for row in rows), max_new_tokens, max_length)
    tokens, real = _padded(rows, model.config.max_length if model.position is not None else None)
    stops = np.unique(np.asarray([] if stop is None else stop, np.int32).reshape(-1))
    sampling = _Sampling(temperature == 0, None if temperature == 0 else top_k, temperature != 0 and top_p is not None and top_p < 1)
    key = jax.random.key(0) if rngs is None else rngs.sample() if isinstance(rngs, nnx.Rngs) else rngs
    return _stream(model, tokens, real, capacity, max_new_tokens, sampling, float(temperature or 1.0), float(top_p or 1.0), stops, key, dtype, piece)


def _stream(
    model: Any, tokens: np.ndarray, real: np.ndarray, capacity: int, new: int, sampling: _Sampling,
    temperature: float, top_p: float, stops: np.ndarray, key: jax.Array, dtype: Any, piece: int,
) -> Iterator[np.ndarray]:  # fmt: skip
    graph, arrays = nnx.split(model)
    batch, room = tokens.shape[0], 1 << (piece - 1).bit_length()
    state, logits = _empty(graph, arrays, batch, capacity, dtype), None
    for start in range(0, tokens.shape[1], _PREFILL):
        part = slice(start, start + _PREFILL)
        logits, state = _prefill(graph, arrays, tokens[:, part], real[:, part], state, logits)
    running = jnp.ones((batch,), bool)
    for start in range(0, new, piece):
        limit = min(piece, new - start)
        settings = (jnp.float32(temperature), jnp.float32(top_p), jnp.asarray(stops))
        out, logits, state, running = _decode(graph, sampling, room, arrays, logits, state, running, key, start, limit, settings)
        out, still = np.asarray(out)[:, :limit], np.asarray(running)
        used = int((out != PAST_END).any(0).sum())
        yield out[:, :used]
        if not still.any():
            return


@functools.partial(jax.jit, static_argnums=(0, 2, 3, 4))
def _empty(graph: Any, arrays: Any, batch: int, capacity: int, dtype: Any) -> Any:
    return _model(graph, arrays).init_state(batch, capacity, dtype)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=4)
def _prefill(graph: Any, arrays: Any, tokens: jax.Array, real: jax.Array, state: Any, logits: jax.Array | None) -> tuple[jax.Array, Any]:
    """Reads a piece of the prompts; the logits are those of each row's last real token so far."""
    model = _model(graph, arrays)
    hidden, state = model.extend_hidden(tokens, state, real)
    count = real.sum(1)
    last = jnp.take_along_axis(hidden, jnp.maximum(count - 1, 0)[:, None, None], 1)[:, 0]
    new = model.logits(last).astype(jnp.float32)
    return new if logits is None else jnp.where((count > 0)[:, None], new, logits), state


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(4, 5))
def _decode(
    graph: Any, sampling: _Sampling, room: int, arrays: Any, logits: jax.Array, state: Any, running: jax.Array,
    key: jax.Array, start: jax.Array, limit: jax.Array, settings: tuple[jax.Array, jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array, Any, jax.Array]:  # fmt: skip
    """Up to ``limit`` (at most ``room``) more tokens of the rows that are running; ends early when none is."""
    model = _model(graph, arrays)
    temperature, top_p, stops = settings

    def unfinished(carry: tuple[Any, ...]) -> jax.Array:
        step, _, _, _, running = carry
        return (step < limit) & running.any()

    def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        step, out, logits, state, running = carry
        token = sampling.draw(logits, jax.random.fold_in(key, start + step), temperature, top_p)
        out = out.at[:, step].set(jnp.where(running, token, PAST_END))
        # A row that has ended is padding: its state stands still.
        running = running & ~(token[:, None] == stops).any(1)
        hidden, state = model.extend_hidden(jnp.where(running, token, 0)[:, None], state, running[:, None])
        return step + 1, out, model.logits(hidden[:, 0]).astype(jnp.float32), state, running

    out = jnp.full((running.shape[0], room), PAST_END, jnp.int32)
    _, out, logits, state, running = jax.lax.while_loop(unfinished, body, (jnp.int32(0), out, logits, state, running))
    return out, logits, state, running


def _model(graph: Any, arrays: Any) -> Any:
    model = nnx.merge(graph, arrays, copy=True)
    model.eval()
    return model


def _rows(prompt: Any, mask: Any, vocab_size: int) -> list[np.ndarray]:
    """The tokens of each prompt."""
    rows: list[np.ndarray]
    if mask is not None:
        tokens, real = np.asarray(prompt), np.asarray(mask, bool)
        if tokens.ndim != 2 or tokens.shape != real.shape:
            raise ValueError(f"with a mask the prompt is an array (batch, length) of the mask's shape: prompt {tokens.shape}, mask {real.shape}")
        if (real[:, 1:] & ~real[:, :-1]).any():
            raise ValueError("padding must trail: the mask of a row is True for its first tokens and False behind them")
        rows = [row[keep] for row, keep in zip(tokens, real, strict=True)]
    else:
        flat = len(prompt) > 0 and np.ndim(prompt[0]) == 0
        rows = [np.asarray(row) for row in ([prompt] if flat else prompt)]
    if not rows or any(row.size == 0 for row in rows):
        raise ValueError("each prompt needs at least one token: begin with the token that stands between documents")
    for number, row in enumerate(rows):
        if not np.issubdtype(row.dtype, np.integer):
            raise ValueError(f"prompt {number} holds {row.dtype} values: tokens are integers (encode text first)")
        if row.min() < 0 or row.max() >= vocab_size:
            wrong = row[(row < 0) | (row >= vocab_size)][0]
            raise ValueError(f"prompt {number} holds the token {wrong}: the model's vocabulary is 0 to {vocab_size - 1}")
    return rows


def _padded(rows: list[np.ndarray], table: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as (tokens, real), both (batch, width); a piece of them is no longer than the position ``table``."""
    lengths = np.asarray([row.size for row in rows])
    longest = int(lengths.max())
    # Few shapes, few programs: powers of two up to a piece, then whole pieces.
    width = -(-longest // _PREFILL) * _PREFILL if longest > _PREFILL else max(_SMALLEST, 1 << (longest - 1).bit_length())
    if table is not None and longest <= _PREFILL:
        width = min(width, table)
    tokens = np.zeros((len(rows), width), np.int32)
    for number, row in enumerate(rows):
        tokens[number, : row.size] = row
    return tokens, np.arange(width) < lengths[:, None]


def _capacity(model: Any, longest: int, new: int, given: int | None) -> int:
    """Tokens that caches must hold."""
    needed = longest + new
    if model.position is not None and needed > model.config.max_length:
        raise ValueError(
            f"{longest} tokens of prompt and {new} new ones are {needed}, but the model has positions for {model.config.max_length}: "
            "shorten the prompt or ask for fewer new tokens"
        )
    if given is not None and needed > given:
        raise ValueError(f"{longest} tokens of prompt and {new} new ones are {needed}, but max_length={given}: shorten the prompt or raise max_length")
    return given or -(-needed // _CAPACITY) * _CAPACITY


def _check(new: int, temperature: float, top_k: int | None, top_p: float | None, piece: int) -> None:
    if new < 1:
        raise ValueError(f"max_new_tokens is at least 1, not {new}")
    if not temperature >= 0:
        raise ValueError(f"temperature is 0 (the likeliest token) or more, not {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is at least 1, not {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is in (0, 1], not {top_p}")
    if piece < 1:
        raise ValueError(f"piece is at least 1, not {piece}")


if __name__ == "__main__":
    # A command stands above all floors; the module below does not import them.
    from training.sampling import main

    main()

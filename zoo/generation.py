"""Text generation: batched prompts of different lengths, a state of fixed size, one compiled loop.

    source --encode--> empty state of an encoder-decoder, which holds the context
    prompt --extend, a piece at a time--> state, logits of each row's last token
    repeat: sample a token from the logits --extend--> state, logits

The tokens are the same as if the whole sequence were run again at each step. Recurrent models keep a state of constant
size and windowed attention a ring buffer; the cache of full attention has a fixed capacity, rounded up so that prompts
of many lengths share a few compiled programs.

``python generate.py --help`` generates from a shell.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import tokenization
from tokenization import Tokenizer
from zoo import prompts
from zoo.prompts import Given, Prompt, Rows, Stop
from zoo.token_sampling import Sampling, Settings, check

PAST_END = -1
"""Fills a row of the result after its stop token; no token has this id."""

_PREFILL = 512  # tokens of the prompt read at once: bounds the memory and the number of programs
_CAPACITY = 128  # caches hold a multiple of this
_SMALLEST = 16  # shorter prompts are padded to this
_LOOK = 16  # tokens between two checks for a stop string


class LanguageModel(Protocol):
    """What generation needs of a model: implemented by :class:`zoo.backbones.causal.Causal` and by
    :class:`zoo.backbones.encoder_decoder.EncoderDecoder`, whose states also need a context.
    """

    config: Any
    inputs: ClassVar[tuple[str, ...]]

    @property
    def most_tokens(self) -> int | None: ...

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = ...) -> Any: ...
    def extend_hidden(self, tokens: jax.Array, state: Any, mask: jax.Array | None = None) -> tuple[jax.Array, Any]: ...
    def logits(self, hidden: jax.Array) -> jax.Array: ...


@dataclasses.dataclass(frozen=True)
class Generation:
    """The result of generation.

    Attributes:
      tokens: (batch, new) int32, the new tokens up to and including a row's stop token; ``PAST_END`` after it.
      lengths: (batch,) int32, new tokens of each row, including the stop token.
      texts: the new tokens of each row as text, without the stop token and up to a stop string; None unless the prompts
        were texts.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    texts: list[str] | None = None

    def rows(self) -> list[list[int]]:
        """The tokens of each row, without ``PAST_END``."""
        return [row[:length].tolist() for row, length in zip(self.tokens, self.lengths, strict=True)]


def generate(
    model: LanguageModel,
    prompt: Prompt | None = None,
    max_new_tokens: int | None = None,
    *,
    source: Prompt | None = None,
    mask: np.ndarray | jax.Array | None = None,
    source_mask: np.ndarray | jax.Array | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    stop: Stop | None = None,
    tokenizer: str | Path | Tokenizer | None = None,
    rngs: nnx.Rngs | jax.Array | int | None = None,
    max_length: int | None = None,
    dtype: Any = jnp.float32,
) -> Generation:
    """Generates up to ``max_new_tokens`` tokens after each prompt, or of each source's target.

    Args:
      model: a causal language model or an encoder-decoder; used in evaluation mode and left unchanged.
      prompt: a text or several, each the beginning of a document; a list of token lists of any lengths, one for each
        row; one flat list of tokens; or an array (batch, length). For an encoder-decoder, the beginning of the target;
        tokens must include the start token, and None is the start token alone.
      max_new_tokens: how many tokens to generate in each row; a row that meets a stop ends earlier.
      source: the input of an encoder-decoder, in the same forms as a prompt. A text is placed between the model's start
        and end tokens, as in training; tokens are taken as they are.
      mask, source_mask: (batch, length) bool for an array, True = real token; padding trails.
      temperature: divides the logits; 0 takes the most likely token.
      top_k: sample only from the k most likely tokens.
      top_p: sample only from the most likely tokens that together have this probability, in (0, 1].
      min_p: sample only from tokens whose probability is at least this fraction of the highest one, in (0, 1] (Nguyen
        et al., 2024, arXiv:2407.01082).
      repetition_penalty: divides the positive logits, and multiplies the negative ones, of tokens that the row already
        contains, prompt included; values above 1 make them less likely (Keskar et al., 2019, arXiv:1909.05858).
      stop: a token or a string, or several, each of which ends its row. None: the tokenizer's separator of documents
        for texts, the model's end token for targets, and no stop for other tokens. (): no stop.
      tokenizer: for texts and stop strings: a tokenizer.json, or a tokenizer made by :mod:`tokenization`. None: the one
        of the run that trained the model, or bytes if the model has 256 tokens.
      rngs: for sampling: ``nnx.Rngs`` (its stream "sample"), a key or a seed; None is the seed 0.
      max_length: capacity of full-attention caches in tokens; None: enough for prompt and new tokens.
      dtype: of caches and states.

    Raises:
      ValueError: an empty prompt, a token outside the vocabulary, leading padding, an option out of range, text without
        a tokenizer that fits the model, more tokens than the caches or the position table hold, an encoder-decoder
        without a source, or a source for a model that reads none.
    """
    asked = prompts.given(model, prompt, mask, source, source_mask, stop, tokenizer)
    new = max_new_tokens or 0
    pieces = _pieces(
        model, asked, max_new_tokens, min(new, _LOOK) if asked.stop_strings else max(new, 1), max_length, rngs, dtype,
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty,
    )  # fmt: skip
    tokens = np.concatenate(list(pieces), 1)
    found = Generation(tokens, (tokens != PAST_END).sum(1).astype(np.int32))
    return dataclasses.replace(found, texts=asked.texts(found.rows())) if asked.as_text else found


def stream(
    model: LanguageModel,
    prompt: Prompt | None = None,
    max_new_tokens: int | None = None,
    *,
    source: Prompt | None = None,
    mask: np.ndarray | jax.Array | None = None,
    source_mask: np.ndarray | jax.Array | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    stop: Stop | None = None,
    tokenizer: str | Path | Tokenizer | None = None,
    rngs: nnx.Rngs | jax.Array | int | None = None,
    max_length: int | None = None,
    dtype: Any = jnp.float32,
    piece: int = 8,
) -> Iterator[np.ndarray]:
    """As :func:`generate`, but yields the new tokens as they come, in int32 arrays (batch, up to ``piece``); ``piece``
    does not change the tokens.
    """
    asked = prompts.given(model, prompt, mask, source, source_mask, stop, tokenizer)
    return _pieces(
        model, asked, max_new_tokens, piece, max_length, rngs, dtype,
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty,
    )  # fmt: skip


def _pieces(
    model: Any, asked: Given, new: int | None, piece: int, max_length: int | None, rngs: Any, dtype: Any,
    *, temperature: float, **options: Any,
) -> Iterator[np.ndarray]:  # fmt: skip
    """The new tokens in pieces; ``options`` are those of sampling."""
    new = checked_count(new)
    check(piece, temperature=temperature, **options)
    capacity = _capacity(model, asked, new, max_length)
    drawn, penalty = temperature != 0, options["repetition_penalty"]
    sampling = Sampling(
        greedy=not drawn,
        top_k=options["top_k"] if drawn else None,
        nucleus=drawn and options["top_p"] is not None and options["top_p"] < 1,
        relative=drawn and options["min_p"] is not None,
        penalized=penalty not in (None, 1),
    )
    numbers = {"temperature": temperature, **{name: options[name] for name in ("top_p", "min_p", "repetition_penalty")}}
    settings = Settings(
        **{name: jnp.float32(value or 1.0) for name, value in numbers.items()}, stops=jnp.asarray(asked.stops)
    )
    key = (
        jax.random.key(rngs or 0)
        if rngs is None or isinstance(rngs, int | np.integer)
        else rngs.sample()
        if isinstance(rngs, nnx.Rngs)
        else rngs
    )
    ends = None if asked.reader is None or not asked.stop_strings else _Ends(asked)
    return _stream(model, asked, capacity, new, sampling, settings, key, dtype, piece, ends)


class _Ends:
    """Finds stop strings. They may begin and end inside tokens, so the decoded text is searched after each piece of
    tokens.
    """

    def __init__(self, asked: Given):
        assert asked.reader is not None
        self._tokenizer, self._strings = asked.reader, asked.stop_strings
        self._prompts: list[list[int]] = [row.tolist() for row in asked.prompts]
        self._tokens: list[list[int]] = [[] for _ in self._prompts]

    def cut(self, out: np.ndarray) -> np.ndarray:
        """The rows of ``out`` (batch, new) that now hold a stop string, (batch,) bool; what follows the token that
        completed it is overwritten.
        """
        ended = np.zeros(len(out), bool)
        for number, row in enumerate(out):
            known, new = self._tokens[number], [int(token) for token in row if token != PAST_END]
            if new and self._holds(number, known + new):
                last = next(count for count in range(1, len(new) + 1) if self._holds(number, known + new[:count]))
                row[last:], ended[number] = PAST_END, True
            self._tokens[number] = known + new
        return ended

    def _holds(self, number: int, tokens: list[int]) -> bool:
        text = tokenization.continuation(self._tokenizer, self._prompts[number], tokens)
        return any(string in text for string in self._strings)


def _stream(
    model: Any, asked: Given, capacity: int, new: int, sampling: Sampling, settings: Settings,
    key: jax.Array, dtype: Any, piece: int, ends: _Ends | None,
) -> Iterator[np.ndarray]:  # fmt: skip
    rows = asked.prompts
    graph, arrays, state, logits = read(model, rows, capacity, dtype, asked.sources)
    batch, room = len(rows), 1 << (piece - 1).bit_length()
    running, seen = jnp.ones((batch,), bool), None
    if sampling.penalized:
        held = np.zeros((batch, model.config.vocab_size), bool)
        for row, prompt in zip(held, rows, strict=True):
            row[prompt] = True
        seen = jnp.asarray(held)
    for start in range(0, new, piece):
        limit = min(piece, new - start)
        out, logits, state, running, seen = _decode(
            graph, sampling, room, arrays, logits, state, running, seen, key, start, limit, settings
        )
        out, still = np.array(out)[:, :limit], np.array(running)
        if ends is not None:
            still &= ~ends.cut(out)
            running = jnp.asarray(still)
        used = int((out != PAST_END).any(0).sum())
        yield out[:, :used]
        if not still.any():
            return


def encoded(model: Any, text: str, *, tokenizer: str | Path | Tokenizer | None = None) -> list[int]:
    """The tokens of a text that begins a document, by the model's tokenizer.

    Raises:
      ValueError: no tokenizer that fits the model.
    """
    (tokens,) = prompts.encoded(text, prompts.tokenizer_of(model, tokenizer))
    return list(tokens)


def next_tokens(
    model: LanguageModel, prompt: str, top_k: int, *, tokenizer: str | Path | Tokenizer | None = None
) -> list[tuple[str, float]]:
    """The most likely tokens after a text: (token as text, probability), in order of decreasing probability.

    Args:
      model: a causal language model; used in evaluation mode and left unchanged.
      prompt: a text, the beginning of a document.
      top_k: how many tokens.
      tokenizer: as of :func:`generate`.

    Raises:
      ValueError: no tokenizer that fits the model, or a ``top_k`` below 1.
    """
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    asked = prompts.given(model, prompt, None, None, None, None, tokenizer)
    assert asked.reader is not None
    *_, logits = read(model, asked.prompts, _capacity(model, asked, 1, None), jnp.float32)
    probabilities = np.asarray(jax.nn.softmax(logits[0]))
    best = np.argsort(-probabilities, kind="stable")[:top_k]
    return [(asked.reader.decode([int(token)]), float(probabilities[token])) for token in best]


def read(model: Any, rows: Rows, capacity: int, dtype: Any, sources: Rows | None = None) -> tuple[Any, Any, Any, Any]:
    """Reads prompts piece by piece; returns the model's graph definition and arrays, the states, and the logits of the
    next tokens (batch, vocab_size).
    """
    table = model.most_tokens
    tokens, real = _padded(rows, table)
    graph, arrays = nnx.split(model)
    if sources is None:
        state = _empty(graph, arrays, tokens.shape[0], capacity, dtype)
    else:
        state = _empty_after(graph, arrays, *(part[:, :table] for part in _padded(sources, table)), capacity, dtype)
    logits = None
    for start in range(0, tokens.shape[1], _PREFILL):
        part = slice(start, start + _PREFILL)
        logits, state = _prefill(graph, arrays, tokens[:, part], real[:, part], state, logits)
    return graph, arrays, state, logits


@functools.partial(jax.jit, static_argnums=(0, 2, 3, 4))
def _empty(graph: Any, arrays: Any, batch: int, capacity: int, dtype: Any) -> Any:
    return _model(graph, arrays).init_state(batch, capacity, dtype)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _empty_after(graph: Any, arrays: Any, source: jax.Array, real: jax.Array, capacity: int, dtype: Any) -> Any:
    """The state of an encoder-decoder that has read its sources and nothing of the targets."""
    model = _model(graph, arrays)
    return model.init_state(len(source), capacity, dtype, context=model.encode(source, real), context_mask=real)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=4)
def _prefill(
    graph: Any, arrays: Any, tokens: jax.Array, real: jax.Array, state: Any, logits: jax.Array | None
) -> tuple[jax.Array, Any]:
    """Reads a piece of the prompts; the logits are those of each row's last real token so far."""
    model = _model(graph, arrays)
    hidden, state = model.extend_hidden(tokens, state, real)
    count = real.sum(1)
    last = jnp.take_along_axis(hidden, jnp.maximum(count - 1, 0)[:, None, None], 1)[:, 0]
    new = model.logits(last).astype(jnp.float32)
    return new if logits is None else jnp.where((count > 0)[:, None], new, logits), state


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(4, 5))
def _decode(
    graph: Any, sampling: Sampling, room: int, arrays: Any, logits: jax.Array, state: Any, running: jax.Array,
    seen: jax.Array | None, key: jax.Array, start: jax.Array, limit: jax.Array, settings: Settings,
) -> tuple[jax.Array, jax.Array, Any, jax.Array, jax.Array | None]:  # fmt: skip
    """Up to ``limit`` (at most ``room``) more tokens of the rows that are running; ends early when none is."""
    return _drawn(
        _model(graph, arrays), sampling, room, logits, state, running, seen, key, start, limit, settings
    )  # fmt: skip


def _drawn(
    model: Any, sampling: Sampling, room: int, logits: jax.Array, state: Any, running: jax.Array,
    seen: jax.Array | None, key: jax.Array, start: Any, limit: Any, settings: Settings,
) -> tuple[jax.Array, jax.Array, Any, jax.Array, jax.Array | None]:  # fmt: skip
    """As :func:`_decode`, for a model."""

    def unfinished(carry: tuple[Any, ...]) -> jax.Array:
        step, _, _, _, running, _ = carry
        return (step < limit) & running.any()

    def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        step, out, logits, state, running, seen = carry
        token = sampling.draw(logits, jax.random.fold_in(key, start + step), settings, seen)
        out = out.at[:, step].set(jnp.where(running, token, PAST_END))
        seen = None if seen is None else seen.at[jnp.arange(token.size), token].set(True)
        # A row that has ended is padding: its state does not change.
        running = running & ~(token[:, None] == settings.stops).any(1)
        hidden, state = model.extend_hidden(jnp.where(running, token, 0)[:, None], state, running[:, None])
        return step + 1, out, model.logits(hidden[:, 0]).astype(jnp.float32), state, running, seen

    out = jnp.full((running.shape[0], room), PAST_END, jnp.int32)
    _, out, logits, state, running, seen = jax.lax.while_loop(
        unfinished, body, (jnp.int32(0), out, logits, state, running, seen)
    )
    return out, logits, state, running, seen


def written(model: Any, source: jax.Array, mask: jax.Array, new: int) -> jax.Array:
    """The targets that an encoder-decoder writes for sources by greedy decoding; can be called inside a compiled
    program.

    Args:
      model: in evaluation mode.
      source, mask: (batch, source_length), the tokens and which are real.
      new: the most tokens of a target.

    Returns:
      (batch, new) int32, up to and including the end token; ``PAST_END`` after it.
    """
    batch, c = len(source), model.config
    state = model.init_state(batch, new + 1, context=model.encode(source, mask), context_mask=mask)
    logits, state = model.extend(jnp.full((batch, 1), c.start_token, jnp.int32), state)
    ends = jnp.asarray([] if c.end_token is None else [c.end_token], jnp.int32)
    settings = Settings(temperature=1.0, top_p=1.0, min_p=1.0, repetition_penalty=1.0, stops=ends)
    running, key = jnp.ones((batch,), bool), jax.random.key(0)
    greedy, first = Sampling(greedy=True), logits[:, 0].astype(jnp.float32)
    return _drawn(model, greedy, new, first, state, running, None, key, 0, new, settings)[0]


def _model(graph: Any, arrays: Any) -> Any:
    model = nnx.merge(graph, arrays, copy=True)
    model.eval()
    return model


def _padded(rows: list[np.ndarray], table: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as (tokens, real), both (batch, width); a piece of them is no longer than the position ``table``."""
    lengths = np.asarray([row.size for row in rows])
    longest = int(lengths.max())
    # Few shapes, few programs: powers of two up to a piece, then whole pieces.
    width = (
        -(-longest // _PREFILL) * _PREFILL if longest > _PREFILL else max(_SMALLEST, 1 << (longest - 1).bit_length())
    )
    if table is not None and longest <= _PREFILL:
        width = min(width, table)
    tokens = np.zeros((len(rows), width), np.int32)
    for number, row in enumerate(rows):
        tokens[number, : row.size] = row
    return tokens, np.arange(width) < lengths[:, None]


def _capacity(model: Any, asked: Given, new: int, given: int | None) -> int:
    """Tokens that caches must hold."""
    longest = max(row.size for row in asked.prompts)
    needed, table = longest + new, model.most_tokens
    if table is not None and needed > table:
        raise ValueError(
            f"{longest} tokens of prompt and {new} new ones are {needed}, but the model has positions for {table}: "
            "shorten the prompt or ask for fewer new tokens"
        )
    if table is not None and (size := max((row.size for row in asked.sources or ()), default=0)) > table:
        raise ValueError(f"a source of {size} tokens, but the model has positions for {table}: shorten it")
    if given is not None and needed > given:
        raise ValueError(
            f"{longest} tokens of prompt and {new} new ones are {needed}, but max_length={given}: shorten the prompt "
            "or raise max_length"
        )
    rounded = -(-needed // _CAPACITY) * _CAPACITY
    return given or (rounded if table is None else min(rounded, table))


def checked_count(new: int | None) -> int:
    """How many tokens to generate.

    Raises:
      ValueError: fewer than one, or None.
    """
    if new is None:
        raise ValueError("how many tokens? give max_new_tokens=")
    if new < 1:
        raise ValueError(f"max_new_tokens is at least 1, not {new}")
    return new

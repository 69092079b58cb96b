"""Beam search: the likeliest continuations, kept a few at a time.

    live beams --extend--> log-probabilities of all their next tokens -> those that end join the finished, the best
    others live on

The score of a continuation y of n tokens is log p(y) / n^length_penalty (Wu et al., Google's Neural Machine Translation
System, 2016, section 7, without its constants, as transformers has it). The search ends where no live beam can still
come among the finished, so that ending early changes no result.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tokenization import Tokenizer
from zoo import generation, prompts
from zoo.generation import PAST_END, LanguageModel
from zoo.prompts import Prompt, Stop


@dataclasses.dataclass(frozen=True)
class Beams:
    """What a beam search found, the best first.

    Attributes:
      tokens: (batch, beams, new) int32, the stop token the last; ``PAST_END`` after it.
      lengths: (batch, beams) int32, the stop token counted.
      scores: (batch, beams) float32, the log-probability over a power of the length; -inf where there were fewer
        continuations.
      texts: of the new tokens, where the prompts were texts, without the stop token.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    scores: np.ndarray
    texts: list[list[str]] | None = None


def beam_search(
    model: LanguageModel,
    prompt: Prompt | None = None,
    max_new_tokens: int | None = None,
    *,
    source: Prompt | None = None,
    beams: int = 4,
    length_penalty: float = 1.0,
    mask: np.ndarray | jax.Array | None = None,
    source_mask: np.ndarray | jax.Array | None = None,
    stop: Stop | None = None,
    tokenizer: str | Path | Tokenizer | None = None,
    max_length: int | None = None,
    dtype: Any = jnp.float32,
) -> Beams:
    """Searches for the likeliest continuations of up to ``max_new_tokens`` tokens.

    Args:
      beams: continuations kept at each step, and returned; 1 is the likeliest token each time.
      length_penalty: the power of the length by which scores are divided: above 0 it favors long ones.
      stop: a token, or several, that ends a continuation. None: as :func:`zoo.generate`.
      model, prompt, max_new_tokens, source, mask, source_mask, tokenizer, max_length, dtype: as :func:`zoo.generate`.

    Raises:
      ValueError: as :func:`zoo.generate`, fewer than one beam, or a stop string.
    """
    if beams < 1:
        raise ValueError(f"beams is at least 1, not {beams}")
    if prompts.strings_of(stop):
        raise ValueError("a beam search ends at tokens: give stop= the number of a token")
    asked = prompts.given(model, prompt, mask, source, source_mask, stop, tokenizer)
    new = generation.checked_count(max_new_tokens)
    capacity = generation._capacity(model, asked, new, max_length)
    graph, arrays, state, logits = generation.read(model, asked.prompts, capacity, dtype, asked.sources)
    found = _search(graph, beams, new, arrays, state, logits, jnp.asarray(asked.stops), jnp.float32(length_penalty))
    tokens, scores = np.asarray(found[0]), np.asarray(found[1])
    lengths = (tokens != PAST_END).sum(-1).astype(np.int32)
    if not asked.as_text:
        return Beams(tokens, lengths, scores)
    # The continuations of one prompt, beam by beam.
    by_beam = [
        asked.texts([row[:length].tolist() for row, length in zip(tokens[:, beam], lengths[:, beam], strict=True)])
        for beam in range(beams)
    ]
    texts = [list(of_prompt) for of_prompt in zip(*by_beam, strict=True)]
    return Beams(tokens, lengths, scores, texts)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _search(
    graph: Any, beams: int, new: int, arrays: Any, state: Any, logits: jax.Array, stops: jax.Array, penalty: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Tokens (batch, beams, new) and scores (batch, beams) after prompts whose states and next logits (batch,
    vocab_size) are given.
    """
    model = generation._model(graph, arrays)
    batch, vocabulary = logits.shape
    row = jnp.arange(batch)[:, None]
    candidates = min((1 + len(stops)) * beams, beams * vocabulary)  # as many as may end, and beams more

    def normalized(log_probability: jax.Array, length: Any) -> jax.Array:
        return log_probability / jnp.asarray(length, jnp.float32) ** penalty

    def best(scores: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        scores, index = jax.lax.top_k(scores, beams)
        return scores, tokens[row, index]

    def unfinished(carry: tuple[Any, ...]) -> jax.Array:
        step, _, live, _, _, _, ended = carry
        # Probabilities only fall: the most that a live beam may score, at the length that is best for it.
        most = jnp.maximum(normalized(live[:, 0], new), normalized(live[:, 0], step + 1))
        return (step < new) & jnp.any(most > ended[:, -1])

    def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        step, tokens, live, logits, state, done, ended = carry
        total = live[..., None] + jax.nn.log_softmax(logits.reshape(batch, beams, vocabulary).astype(jnp.float32))
        scores, index = jax.lax.top_k(total.reshape(batch, -1), candidates)
        beam, token = index // vocabulary, (index % vocabulary).astype(jnp.int32)
        grown = tokens[row, beam].at[:, :, step].set(token)
        ends = (token[..., None] == stops).any(-1)
        finished = jnp.where(ends, normalized(scores, step + 1), -jnp.inf)
        ended, done = best(jnp.concatenate([ended, finished], 1), jnp.concatenate([done, grown], 1))
        live, chosen = jax.lax.top_k(jnp.where(ends, -jnp.inf, scores), beams)
        tokens, source, last = grown[row, chosen], beam[row, chosen], token[row, chosen]
        rows = (row * beams + source).reshape(-1)
        state = jax.tree.map(lambda leaf: leaf[rows], state)
        hidden, state = model.extend_hidden(last.reshape(-1, 1), state)
        return step + 1, tokens, live, model.logits(hidden[:, 0]), state, done, ended

    # At first all beams are the prompt, of which one counts.
    live = jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf) * jnp.ones((batch, 1))
    empty, none = jnp.full((batch, beams, new), PAST_END, jnp.int32), jnp.full((batch, beams), -jnp.inf)
    state, logits = jax.tree.map(lambda leaf: jnp.repeat(leaf, beams, axis=0), (state, logits))
    carry = (jnp.int32(0), empty, live, logits, state, empty, none)
    step, tokens, live, _, _, done, ended = jax.lax.while_loop(unfinished, body, carry)
    # What has not met a stop counts with the length that there is; an early end has only worse ones left.
    whole = jnp.where(step == new, normalized(live, new), -jnp.inf)
    ended, done = best(jnp.concatenate([ended, whole], 1), jnp.concatenate([done, tokens], 1))
    return done, ended

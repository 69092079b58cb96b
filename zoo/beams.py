"""Beam search: keeps the few most likely continuations at each step.

    live beams --extend--> log-probabilities of all their next tokens -> those that end join the finished, the best
    others live on

The score of a continuation y of n tokens is log p(y) / n^length_penalty (Wu et al., Google's Neural Machine Translation
System, 2016, arXiv:1609.08144, section 7, without its constants, as in transformers). The search stops when no live
beam can still rank among the finished ones, so stopping early does not change the result.
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
    """The results of a beam search, the best first.

    Attributes:
      tokens: (batch, beams, new) int32, up to and including the stop token; ``PAST_END`` after it.
      lengths: (batch, beams) int32, including the stop token.
      scores: (batch, beams) float32, log-probability / length ** length_penalty; -inf where fewer continuations were
        found.
      texts: the new tokens of each prompt and beam as text, without the stop token; None unless the prompts were texts.
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
    """Searches for the most likely continuations of up to ``max_new_tokens`` tokens.

    Args:
      beams: how many continuations are kept at each step and returned for each prompt.
      length_penalty: the exponent of the length in the score's denominator; values above 0 favor longer continuations.
      stop: a token or several, each of which ends a continuation. None: as :func:`zoo.generate`.
      model, prompt, max_new_tokens, source, mask, source_mask, tokenizer, max_length, dtype: as :func:`zoo.generate`.

    Raises:
      ValueError: as :func:`zoo.generate`; also fewer than one beam, or a stop string.
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
    """Tokens (batch, beams, new) and scores (batch, beams) of the continuations of prompts whose states and next-token
    logits (batch, vocab_size) are given.
    """
    model = generation._model(graph, arrays)
    batch, vocabulary = logits.shape
    row = jnp.arange(batch)[:, None]
    candidates = min((1 + len(stops)) * beams, beams * vocabulary)  # at most len(stops) * beams of them end

    def normalized(log_probability: jax.Array, length: Any) -> jax.Array:
        return log_probability / jnp.asarray(length, jnp.float32) ** penalty

    def best(scores: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        scores, index = jax.lax.top_k(scores, beams)
        return scores, tokens[row, index]

    def unfinished(carry: tuple[Any, ...]) -> jax.Array:
        step, _, live, _, _, _, ended = carry
        # Log-probabilities only decrease, so no live beam can score more than its present one at the shortest or
        # longest length, whichever is better.
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

    # All beams start as copies of the prompt, of which only the first counts.
    live = jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf) * jnp.ones((batch, 1))
    empty, none = jnp.full((batch, beams, new), PAST_END, jnp.int32), jnp.full((batch, beams), -jnp.inf)
    state, logits = jax.tree.map(lambda leaf: jnp.repeat(leaf, beams, axis=0), (state, logits))
    carry = (jnp.int32(0), empty, live, logits, state, empty, none)
    step, tokens, live, _, _, done, ended = jax.lax.while_loop(unfinished, body, carry)
    # Beams that met no stop token count at full length; after an early stop all live beams are worse than the results.
    whole = jnp.where(step == new, normalized(live, new), -jnp.inf)
    ended, done = best(jnp.concatenate([ended, whole], 1), jnp.concatenate([done, tokens], 1))
    return done, ended

"""Sampling a token from logits: temperature, top-k, top-p, min-p and a repetition penalty."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The options of sampling that are part of the compiled program."""

    greedy: bool
    top_k: int | None = None
    nucleus: bool = False
    relative: bool = False  # min_p
    penalized: bool = False

    def scores(self, logits: jax.Array, settings: Settings, seen: jax.Array | None = None) -> jax.Array:
        """Logits (batch, vocab_size) after the repetition penalty, temperature and ``min_p``, before ``top_k`` and
        ``top_p``.

        ``seen`` (batch, vocab_size) bool: the tokens that each row contains so far, for the repetition penalty.
        """
        logits = logits.astype(jnp.float32)
        if self.penalized and seen is not None:
            # Keskar et al., CTRL, 2019, section 4.1; a negative logit is multiplied, so that it decreases too, as in
            # transformers.
            less = jnp.where(logits < 0, logits * settings.repetition_penalty, logits / settings.repetition_penalty)
            logits = jnp.where(seen, less, logits)
        if self.greedy:
            return logits
        logits = logits / settings.temperature
        return (
            jnp.where(logits >= logits.max(-1, keepdims=True) + jnp.log(settings.min_p), logits, -jnp.inf)
            if self.relative
            else logits
        )

    def draw(self, logits: jax.Array, key: jax.Array, settings: Settings, seen: jax.Array | None = None) -> jax.Array:
        """Samples tokens (batch,) from logits (batch, vocab_size); a row's sample does not depend on the other rows.
        ``seen`` as in :meth:`scores`.
        """
        logits = self.scores(logits, settings, seen)
        if self.greedy:
            return jnp.argmax(logits, -1).astype(jnp.int32)
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(logits.shape[0]))
        if self.top_k is None and not self.nucleus:
            return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
        ranked, tokens = jax.lax.top_k(logits, min(self.top_k or logits.shape[-1], logits.shape[-1]))
        if self.nucleus:
            probability = jax.nn.softmax(ranked, -1)
            before = jnp.cumsum(probability, -1) - probability
            ranked = jnp.where((before < settings.top_p) | (jnp.arange(ranked.shape[-1]) == 0), ranked, -jnp.inf)
        rank = jax.vmap(jax.random.categorical)(keys, ranked)
        return jnp.take_along_axis(tokens, rank[:, None], -1)[:, 0].astype(jnp.int32)


@struct.dataclass
class Settings:
    """The options of sampling that are inputs of the compiled program, and the tokens that end a row."""

    temperature: Any
    top_p: Any
    min_p: Any
    repetition_penalty: Any
    stops: Any


def check(piece: int, **options: float | None) -> None:
    """Checks the options of sampling.

    Raises:
      ValueError: one is out of range.
    """
    if piece < 1:
        raise ValueError(f"piece is at least 1, not {piece}")
    for name, (holds, limits) in _RANGES.items():
        if (value := options[name]) is not None and not holds(value):
            raise ValueError(f"{name} is {limits}, not {value}")


_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (lambda value: value >= 0, "0 (the likeliest token) or more"),
    "top_k": (lambda value: value >= 1, "at least 1"),
    "top_p": (lambda value: 0 < value <= 1, "in (0, 1]"),
    "min_p": (lambda value: 0 < value <= 1, "in (0, 1]"),
    "repetition_penalty": (lambda value: value > 0, "above 0"),
}

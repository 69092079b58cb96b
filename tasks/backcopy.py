"""Bigrams with backward copies, which make dormant attention heads attend to the first token."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from tasks.procedural import Procedural, measure
from tasks.registry import register
from tasks.task import Batch, Metrics, Model


@register("bigram_backcopy")
class BigramBackcopy(Procedural):
    """Bigram-Backcopy (T. Guo et al., arXiv:2410.13835, section 2).

        S a c T c b d T d a
                 [c]   [d]

    A start token is followed by a Markov chain of symbols. Some frequent symbols are triggers: the token after a
    trigger is a copy of the token before it. The training loss is over all tokens; the accuracy is over tokens after
    triggers, the only ones that depend on more than the last token. The authors' chain has the frequencies of
    characters in Shakespeare; here the successors of each symbol follow Zipf's law in a random order. Chance is 1 /
    symbols.

    Args:
      length: number of symbols of training and validation sequences.
      test_length: number of symbols of test sequences.
      symbols: number of different symbols besides the start token; the paper has 64 characters.
      triggers: number of triggers, the most frequent symbols.
      num_eval: number of examples of validation, and of test.
      seed: seed of the chain and of all examples.

    Raises:
      ValueError: ``triggers`` not from 1 to ``symbols`` / 2.
    """

    paper = (48,)
    shortest = 4

    def __init__(
        self,
        length: int = 256,
        test_length: int = 512,
        symbols: int = 64,
        triggers: int = 3,
        num_eval: int = 512,
        seed: int = 0,
    ):
        if not 1 <= triggers <= symbols // 2:
            raise ValueError(f"triggers are from 1 to half of the {symbols} symbols, not {triggers}")
        self.symbols, self.vocab_size, self.chance = symbols, symbols + 1, 1 / symbols
        super().__init__(length, test_length, num_eval, seed)
        rng = np.random.default_rng(seed)
        likely = 1 / np.arange(1, symbols + 1)
        self.bigrams = np.stack([likely[np.argsort(rng.permutation(symbols))] for _ in range(symbols)])
        self.bigrams /= self.bigrams.sum(1, keepdims=True)
        # The most frequent symbols of the chain without copies.
        frequency = np.linalg.matrix_power(self.bigrams, 64)[0]
        self.triggers = np.sort(np.argsort(-frequency, kind="stable")[:triggers])
        self._sums = np.cumsum(self.bigrams, axis=1)

    def make(self, rng: np.random.Generator, length: int, training: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        del training
        triggers, draws = set(self.triggers.tolist()), rng.random(length + 1)
        first = int(rng.choice(np.setdiff1d(np.arange(self.symbols), self.triggers)))
        whole = [self.symbols, first]
        while len(whole) < length + 2:
            last, sums = whole[-1], self._sums[whole[-1]]
            drawn = min(int(np.searchsorted(sums, draws[len(whole) - 2] * sums[-1], side="right")), self.symbols - 1)
            whole.append(whole[-2] if last in triggers else drawn)
        tokens, targets = np.asarray(whole[:-1], np.int32), np.asarray(whole[1:], np.int32)
        return tokens, targets, np.isin(tokens, self.triggers)

    def loss(self, model: Model, batch: Batch, rngs: jax.Array) -> tuple[jax.Array, Metrics]:
        """Returns the mean cross entropy of the next token, nats."""
        del rngs
        logits = model(batch["tokens"])
        everywhere = {**batch, "answers": jnp.ones_like(batch["answers"])}
        weight = jnp.ones(batch["tokens"].shape[0], jnp.float32)
        total, count = measure(logits, everywhere, weight)["loss"]
        return total / count, measure(logits, batch, weight)

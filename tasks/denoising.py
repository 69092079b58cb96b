"""Denoising: self-supervised pre-training on the sequences of a task, from the task's own examples.

    masked    some tokens are hidden and predicted from all others        BERT (arXiv:1810.04805)
    causal    each token is predicted from those before it                     for causal models

Never Train from Scratch (I. Amos et al., arXiv:2310.02980): after such pre-training on the data of Long Range Arena
itself, most of the difference between a Transformer and S4 is gone. The loss is cross entropy over the vocabulary, or
for numbers (``inputs="linear"``) the absolute difference.

It wraps any task whose examples have "tokens" or "values". The model is that of the task without its classifier. A run
of the task itself takes the pre-trained body with ``weights=``, the directory of this task's run, and a newly
initialized head::

    python train.py --config=configs/long_range_arena.py:listops,variant=nano,denoise=masked --workdir=runs/masked
    python train.py --config=configs/long_range_arena.py:listops,variant=nano --config.weights=runs/masked
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from tasks.registry import create, register
from tasks.task import Batch, Examples, Metrics, Model

_OF_HEAD = ("num_classes", "head")


class NoisyExamples:
    """The examples of a split with some tokens hidden.

    "tokens" (length,) int32 or "values" (length, features) float32, the input; "targets", the original tokens, or for
    the causal kind the next ones; "places" (length,) float32, 1 where the loss counts; "mask" and "types" of the task.
    """

    def __init__(self, task: Denoising, examples: Examples):
        self._task, self._examples = task, examples

    def __len__(self) -> int:
        return len(self._examples)

    def get(self, index: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """Returns one example; without ``rng`` the hidden tokens depend on ``index`` only."""
        own = np.random.Generator(np.random.Philox(key=[self._task.seed, 0], counter=[0, 0, 0, index]))
        return self._task.hide(self._examples.get(index, rng), own if rng is None else rng)


def _noise(tokens: np.ndarray, vocab_size: int, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, vocab_size, tokens.shape).astype(tokens.dtype)


@register("denoising")
class Denoising:
    """Denoising of the sequences of a task.

    Args:
      of: the task: a mapping with "name" and its options.
      kind: "masked" or "causal".
      rate: fraction of the real tokens that are hidden, for the masked kind.
      span: number of consecutive tokens that are hidden together.
      replace: the input at hidden tokens: "mask", always the mask token (0 for numbers), or "bert", the mask token with
        probability 0.8, a random token with 0.1 and the token itself with 0.1.
      seed: seed of the hidden tokens of evaluation.

    Raises:
      ValueError: a task without sequences, or options out of range.
    """

    paper = (202,)
    needs: tuple[str, ...] = ()
    monitor = "loss"
    higher_is_better = False

    def __init__(
        self,
        of: Mapping[str, Any],
        kind: Literal["masked", "causal"] = "masked",
        rate: float = 0.15,
        span: int = 1,
        replace: Literal["mask", "bert"] = "bert",
        seed: int = 0,
    ):
        if kind not in ("masked", "causal") or replace not in ("mask", "bert"):
            raise ValueError(f'kind is "masked" or "causal", replace "mask" or "bert"; got {kind!r} and {replace!r}')
        if not 0 < rate < 1 or span < 1:
            raise ValueError(f"rate is between 0 and 1, span at least 1; got {rate} and {span}")
        options = dict(of)
        if "name" not in options:
            raise ValueError("of needs name=, the task whose sequences are denoised, and its options")
        name = str(options.pop("name"))
        self._task: Any = create(name, **options)
        self.dataset_name, self.splits = getattr(self._task, "dataset_name", name), self._task.splits
        self.report = getattr(self._task, "report", "")
        known = self._task.model_options()
        if "vocab_size" not in known and known.get("inputs") != "linear":
            raise ValueError(f"the task {name} has no sequences of tokens or numbers to denoise")
        if "dual" in str(known.get("head", "")):
            raise ValueError('denoising reads one sequence: set pair="joint", or denoise a set of single sequences')
        self._vocab_size: int = known.get("vocab_size", 0)
        # A task may offer one of its unused tokens; else there is one more.
        self._mask_token: int = getattr(self._task, "mask_token", self._vocab_size)
        self._special = np.asarray(getattr(self._task, "special_tokens", ()), np.int32)
        self._kind, self._rate, self._span, self._replace, self.seed = kind, rate, span, replace, seed

    def model_options(self) -> dict[str, Any]:
        """Returns the options of the task except its classifier's, and those for output at every token."""
        known = {name: value for name, value in self._task.model_options().items() if name not in _OF_HEAD}
        if self._vocab_size:
            known["vocab_size"] = max(self._vocab_size, self._mask_token + (self._kind == "masked"))
        causal = {"causal": True} if self._kind == "causal" else {}
        return {**known, "num_classes": 0, "output": "vocabulary", **causal}

    def examples(self, split: str) -> NoisyExamples:
        """Returns the examples of a split of the task.

        Raises:
          ValueError: there is no such split.
        """
        return NoisyExamples(self, self._task.examples(split))

    def describe(self, split: str) -> str:
        """Returns the task's description of its data."""
        task = self._task
        return task.describe(split) if hasattr(task, "describe") else f"{len(task.examples(split)):,} examples"

    def hide(self, example: Mapping[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Converts an example of the task to one of this task."""
        linear = "values" in example
        seen = example["values" if linear else "tokens"]
        real = np.asarray(example.get("mask", example.get("real", np.ones(len(seen)))), bool)
        known = {name: example[name] for name in ("mask", "types") if name in example}
        if self._kind == "causal":
            following = np.concatenate([seen[1:], seen[:1]])
            places = np.concatenate([real[1:], [False]])
            return self._made(linear, seen, following, places, known)
        able = real if linear else real & ~np.isin(seen, self._special)
        hidden = self._chosen(np.flatnonzero(able), len(seen), rng) & able
        noisy, stays = seen.copy(), np.zeros(len(seen), bool)
        if self._replace == "bert":
            draw = rng.random(len(seen))
            stays, random = hidden & (draw < 0.1), hidden & (draw >= 0.1) & (draw < 0.2)
            drawn = rng.uniform(-1, 1, seen.shape).astype(seen.dtype) if linear else _noise(seen, self._vocab_size, rng)
            noisy[random] = drawn[random]
            stays = stays | random
        noisy[hidden & ~stays] = 0 if linear else self._mask_token
        return self._made(linear, noisy, seen, hidden, known)

    def _chosen(self, able: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
        """The hidden places, bool (length,): at least one span, and as many as give the rate."""
        chosen = np.zeros(length, bool)
        count = min(max(round(self._rate * len(able) / self._span), 1), len(able))
        for start in rng.choice(able, count, replace=False) if len(able) else ():
            chosen[start : start + self._span] = True
        return chosen

    @staticmethod
    def _made(
        linear: bool, seen: np.ndarray, targets: np.ndarray, places: np.ndarray, known: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        name = "values" if linear else "tokens"
        return {name: seen, "targets": targets, "places": places.astype(np.float32), **known}

    def loss(self, model: Model, batch: Batch, rngs: jax.Array) -> tuple[jax.Array, Metrics]:
        """Returns the mean cross entropy, nats, or mean absolute difference over the places that count."""
        del rngs
        metrics = self._metrics(model, batch, jnp.ones(batch["places"].shape[0], jnp.float32))
        total, count = metrics["loss"]
        return total / jnp.maximum(count, 1), metrics

    def evaluate(self, model: Model, batch: Batch) -> Metrics:
        """Returns "loss" and, for tokens, "accuracy" of the most probable one."""
        return self._metrics(model, batch, batch["weight"])

    def _metrics(self, model: Model, batch: Batch, weight: jax.Array) -> Metrics:
        linear = "values" in batch
        known = {name: batch[name] for name in ("mask", "types") if name in batch}
        found = model(batch["values" if linear else "tokens"], **known).astype(jnp.float32)
        places = batch["places"] * weight[:, None]
        count = jnp.sum(places)
        if linear:
            return {"loss": (jnp.sum(jnp.mean(jnp.abs(found - batch["targets"]), -1) * places), count)}
        own = jnp.take_along_axis(found, batch["targets"][..., None], -1)[..., 0]
        losses = jax.nn.logsumexp(found, -1) - own
        right = jnp.argmax(found, -1) == batch["targets"]
        return {"loss": (jnp.sum(losses * places), count), "accuracy": (jnp.sum(right * places), count)}

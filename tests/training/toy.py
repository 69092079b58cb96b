"""A small model and a small task, with everything that the loop must carry: dropout, batch statistics, an auxiliary
loss, augmentation.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from layers import Dropout
from layers.module import AuxLoss, Module

FEATURES, CLASSES = 6, 3


class ToyModel(Module):
    """Two linear layers around a batch norm and a dropout."""

    def __init__(
        self, width: int = 16, *, dropout: float = 0.0, norm: bool = True, aux: bool = False, seed: int = 0
    ) -> None:
        rngs = nnx.Rngs(seed)
        self.first = nnx.Linear(FEATURES, width, use_bias=not norm, rngs=rngs)  # the norm would take a bias away again
        self.norm = nnx.BatchNorm(width, rngs=rngs) if norm else None
        self.dropout = Dropout(dropout, rngs=rngs) if dropout else None
        self.head = nnx.Linear(width, CLASSES, rngs=rngs)
        self.aux = aux

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.first(x)
        if self.norm is not None:
            x = self.norm(x)
        x = nnx.gelu(x)
        if self.dropout is not None:
            x = self.dropout(x)
        if self.aux:
            self.sow(AuxLoss, "activity", jnp.mean(jnp.square(x)))
        return self.head(x)

    def no_decay(self) -> set[str]:
        return {"head.kernel"}

    def layer_ids(self) -> dict[str, int]:
        return {"first.kernel": 0, "first.bias": 0, "norm.scale": 1, "norm.bias": 1, "head.kernel": 2, "head.bias": 2}


class ToyExamples:
    """Points around class means; ``poison`` is the index of an example with a not-a-number in it."""

    def __init__(self, count: int, seed: int, poison: int | None = None, broken: int | None = None) -> None:
        rng = np.random.default_rng(seed)
        means = np.random.default_rng(7).normal(size=(CLASSES, FEATURES))
        self.labels = rng.integers(0, CLASSES, count).astype(np.int32)
        self.inputs = (means[self.labels] + 0.7 * rng.normal(size=(count, FEATURES))).astype(np.float32)
        if poison is not None:
            self.inputs[poison, 0] = np.nan
        self.broken = broken

    def __len__(self) -> int:
        return len(self.labels)

    def get(self, index: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        if index == self.broken:
            raise ValueError(f"example {index} is broken")
        noise = 0.1 * rng.normal(size=FEATURES).astype(np.float32) if rng is not None else np.float32(0)
        return {"input": self.inputs[index] + noise, "label": self.labels[index]}


class ToyTask:
    """Classification of the points."""

    needs: tuple[str, ...] = ()
    monitor = "accuracy"
    higher_is_better = True
    splits = ("train", "validation", "test")

    def __init__(self, count: int = 100, poison: int | None = None, broken: int | None = None) -> None:
        self._splits = {
            "train": ToyExamples(count, 1, poison, broken),
            "validation": ToyExamples(37, 2),
            "test": ToyExamples(41, 3),
        }

    def model_options(self) -> dict[str, Any]:
        return {"num_classes": CLASSES}

    def examples(self, split: str) -> ToyExamples:
        return self._splits[split]

    def loss(self, model: Any, batch: Any, rngs: jax.Array) -> tuple[jax.Array, Any]:
        logits = model(batch["input"] * (1 + 0.01 * jax.random.normal(rngs)))
        pairs = _pairs(logits, batch["label"], jnp.ones(len(batch["label"])))
        return pairs["loss"][0] / pairs["loss"][1], pairs

    def evaluate(self, model: Any, batch: Any) -> Any:
        return _pairs(model(batch["input"]), batch["label"], batch["weight"])


def _pairs(logits: jax.Array, labels: jax.Array, weight: jax.Array) -> Any:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    right = (jnp.argmax(logits, -1) == labels).astype(jnp.float32)
    count = jnp.sum(weight)
    return {"loss": (jnp.sum(losses * weight), count), "accuracy": (jnp.sum(right * weight), count)}


def config(**changes: Any) -> ConfigDict:
    """The config of a run of a second; ``changes`` name fields, nested ones with a double underscore."""
    result = ConfigDict(
        {
            "seed": 0,
            "model": "toy",
            "model_options": {},
            "weights": "",
            "task": {"name": "toy"},
            "train_for": "4 epochs",
            "eval_every": "1 epoch",
            "save_every": "1 epoch",
            "patience": 0,
            "batch_size": 8,
            "accumulate": 1,
            "optimizer": {
                "name": "adamw",
                "learning_rate": 0.01,
                "weight_decay": 0.05,
                "clip_norm": 1.0,
                "layer_decay": 1.0,
                "multipliers": (),
                "freeze": (),
                "no_decay": (),
                "options": {},
            },
            "schedule": {"name": "cosine", "warmup": "1 epoch", "final": 0.01},
            "ema": 0.0,
            "dtype": "float32",
            "param_dtype": "float32",
            "remat": "nothing",
            "scan": False,
            "aux_losses": {},
            "nonfinite": "stop",
            "mesh": {"data": -1},
            "workers": 0,
            "keep": 3,
            "log_every": 5,
            "profile": 0,
        }
    )
    result.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return result

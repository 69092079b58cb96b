"""Distillation: a classifier is also trained on the outputs of another one.

Training data-efficient image transformers & distillation through attention (Touvron et al., 2021, arXiv:2012.12877),
section 4. With y the label, Z_t the teacher's logits, and Z_c and Z_d the student's logits of its class token and its
distillation token:

    soft   (1 - weight) CE(Z_c, y) + weight T^2 KL(softmax(Z_t / T) || softmax(Z_d / T))
    hard   (1 - weight) CE(Z_c, y) + weight CE(Z_d, argmax Z_t)                                weight 1/2 is eq. 3

A student without a distillation token has Z_d = Z_c.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

Teacher = Callable[[jax.Array], jax.Array]
"""Maps images (batch, height, width, channels) in [0, 1] to logits (batch, classes)."""


@dataclasses.dataclass(frozen=True)
class Distillation:
    """Options of distillation.

    Attributes:
      teacher: arguments of ``zoo.create``: name and weights, or the working directory of a run as weights; all empty
        for no distillation.
      kind: "hard" uses the teacher's most probable class, "soft" all its probabilities.
      weight: weight of the teacher's part of the loss, in [0, 1].
      temperature: T, by which logits are divided; "soft" only.

    Raises:
      ValueError: an unknown kind, or numbers out of range.
    """

    teacher: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    kind: Literal["hard", "soft"] = "hard"
    weight: float = 0.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("hard", "soft"):
            raise ValueError(f'distillation: kind is "hard" or "soft", got {self.kind!r}')
        if not 0 <= self.weight <= 1 or self.temperature <= 0:
            raise ValueError(
                f"distillation: weight is in [0, 1] and temperature above 0, got {self.weight} and {self.temperature}"
            )

    @property
    def wanted(self) -> bool:
        """Whether there is a teacher."""
        return any(self.teacher.values())

    def losses(self, labeled: jax.Array, student: jax.Array, teacher: jax.Array) -> jax.Array:
        """The loss of each example.

        Args:
          labeled: (batch,), the loss for the labels.
          student, teacher: logits (batch, classes), float32.

        Returns:
          (batch,), the weighted sum of both losses.
        """
        teacher = jax.lax.stop_gradient(teacher)
        if self.kind == "hard":
            log_probabilities = jax.nn.log_softmax(student)
            own = -jnp.take_along_axis(log_probabilities, jnp.argmax(teacher, axis=-1)[:, None], axis=-1)[:, 0]
        else:
            t = self.temperature
            target, got = jax.nn.log_softmax(teacher / t), jax.nn.log_softmax(student / t)
            own = t**2 * jnp.sum(jnp.exp(target) * (target - got), axis=-1)
        return (1 - self.weight) * labeled + self.weight * own

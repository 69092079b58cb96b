"""Learning rate as a function of the step: linear warm-up, then cosine, linear, constant or reciprocal square root."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from suggestions import unknown

Schedule = Callable[[Any], jax.Array]


def _rsqrt(peak: float, final: float, warmup: int) -> Schedule:
    origin = max(warmup, 1)
    return lambda step: jnp.maximum(peak * jnp.sqrt(origin / (step + origin)), peak * final)


def create(name: str, peak: float, total: int, warmup: int = 0, final: float = 0.0) -> Schedule:
    """Returns ``schedule(step) -> learning rate``.

    Args:
      name: "cosine", "linear" (both reach ``final * peak`` at ``total``), "constant" (stays at the peak) or "rsqrt"
        (``peak * sqrt(warmup / step)``, never below ``final * peak``).
      peak: the rate at the end of the warm-up.
      total: number of steps of the run.
      warmup: number of warm-up steps; the first step has ``peak / warmup``, not 0.
      final: the final (or, for "rsqrt", lowest) rate as a fraction of the peak.

    Raises:
      ValueError: unknown name; a negative rate; a warm-up longer than the run.
    """
    if peak < 0:
        raise ValueError(f"optimizer.learning_rate={peak} is negative")
    if warmup > total:
        raise ValueError(
            f"schedule.warmup is {warmup} steps, longer than the run of {total}: shorten it, as "
            "--config.schedule.warmup=0 does, or lengthen train_for"
        )
    decay = max(total - warmup, 1)
    shapes: dict[str, Callable[[], Schedule]] = {
        "cosine": lambda: optax.cosine_decay_schedule(peak, decay, alpha=final),
        "linear": lambda: optax.linear_schedule(peak, peak * final, decay),
        "constant": lambda: optax.constant_schedule(peak),
        "rsqrt": lambda: _rsqrt(peak, final, warmup),
    }
    if name not in shapes:
        raise ValueError(unknown("schedule", name, shapes))
    after = shapes[name]()

    def schedule(step: Any) -> jax.Array:
        step = jnp.asarray(step)
        rising = peak * (step + 1) / max(warmup, 1)
        return jnp.where(step < warmup, rising, after(step - warmup)).astype(jnp.float32)

    return schedule

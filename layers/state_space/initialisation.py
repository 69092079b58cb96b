"""How selective state spaces start: the released models' way, and the mimetic one.

"mimetic" is Mimetic Initialization Helps State Space Models Learn to Recall (Trockman et al., 2024, arXiv:2410.11135): the layer
starts close to linear attention, whose state forgets nothing and whose keys and queries agree.

    A ~ 0, so that the decay exp(step A) ~ 1      step = 1 for every token      W_C = W_B      conv = identity

Here A = -exp(-8), the weights that make the step depend on the token are 0, and its bias is softplus^-1(1): the constants with which
the PFN library starts its recurrent layers "mimetically" too.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from layers.convolution import CausalConvolution
from layers.initializers import variance_scaling

Initialisation = Literal["standard", "mimetic"]
StepRange = tuple[float, float]

STEP_RANGE: StepRange = (1e-3, 0.1)
"""The released models' first steps."""

MIMETIC_A_LOG = -8.0
MIMETIC_STEP = 1.0


def check_initialisation(initialisation: str) -> None:
    """Raises ValueError unless ``initialisation`` is a known one."""
    if initialisation not in ("standard", "mimetic"):
        raise ValueError(f'initialisation is "standard" or "mimetic", got {initialisation!r}')


def fan_in_uniform(branches: int = 1) -> Any:
    """Uniform in +-1 / sqrt(fan_in * branches): projections; ``branches`` is how many residual branches are added up."""
    return variance_scaling(1 / (3 * branches), "fan_in", "uniform")


def inverse_softplus(y: jax.Array) -> jax.Array:
    """x with softplus(x) = y > 0."""
    return y + jnp.log(-jnp.expm1(-y))


def step_bias(key: jax.Array, shape: tuple[int, ...], dtype: Any, *, steps: StepRange = STEP_RANGE) -> jax.Array:
    """Biases whose softplus, the step of a token, is log-uniform between the two ``steps``.

    Raises:
      ValueError: the steps are not positive or not in order.
    """
    low, high = steps
    if not 0 < low <= high:
        raise ValueError(f"step_range is two positive numbers, the smaller first, got {steps}")
    return inverse_softplus(jnp.exp(jax.random.uniform(key, shape, minval=math.log(low), maxval=math.log(high)))).astype(dtype)


def mimetic_step_bias(like: jax.Array) -> jax.Array:
    """Biases that give a step of 1."""
    return jnp.full_like(like, inverse_softplus(jnp.float32(MIMETIC_STEP)))


def make_identity(conv: CausalConvolution) -> None:
    """Sets a causal convolution to pass on each token as it is."""
    conv.kernel[...] = jnp.zeros_like(conv.kernel[...]).at[-1].set(1)
    if conv.bias is not None:
        conv.bias[...] = jnp.zeros_like(conv.bias[...])

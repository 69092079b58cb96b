"""Initialization of selective state spaces: that of the released models, and mimetic initialization.

"mimetic" is Mimetic Initialization Helps State Space Models Learn to Recall (Trockman et al., 2024, arXiv:2410.11135):
the layer starts close to linear attention without decay, with equal keys and queries.

    A ~ 0, so that the decay exp(step A) ~ 1      step = 1 for every token      W_C = W_B      conv = identity

Here A = -exp(-8), the weights that make the step depend on the token are 0, and its bias is softplus^-1(1): the
constants with which the PFN library starts its recurrent layers "mimetically" too.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from layers.initializers import Initializer, Transformed, Uniform, constant, variance_scaling

Initialization = Literal["standard", "mimetic"]
StepRange = tuple[float, float]

STEP_RANGE: StepRange = (1e-3, 0.1)
"""Initial step sizes of the released models."""

A_LOG = Transformed("log", Uniform(1.0, 16.0))
"""log(-A) of the models with one decay per head: -A is uniform between 1 and 16."""

MIMETIC_A_LOG = constant(-8.0)
MIMETIC_STEP_BIAS = constant(math.log(math.e - 1))
"""softplus^-1(1): every step is 1."""


def check_initialization(initialization: str) -> None:
    """Raises ValueError unless ``initialization`` is a known one."""
    if initialization not in ("standard", "mimetic"):
        raise ValueError(f'initialization is "standard" or "mimetic", got {initialization!r}')


def fan_in_uniform(branches: int = 1) -> Any:
    """Uniform in +-1 / sqrt(fan_in * branches), for projections; ``branches`` is the number of residual branches."""
    return variance_scaling(1 / (3 * branches), "fan_in", "uniform")


def step_bias(steps: StepRange = STEP_RANGE) -> Initializer:
    """Biases whose softplus, the step of a token, is log-uniform between the two ``steps``.

    Raises:
      ValueError: the steps are not positive or not in order.
    """
    low, high = steps
    if not 0 < low <= high:
        raise ValueError(f"step_range is two positive numbers, the smaller first, got {steps}")
    return Transformed("inverse_softplus_exp", Uniform(math.log(low), math.log(high)))


def identity_kernel(size: int) -> Initializer:
    """The kernel (size, 1, features) of a causal convolution that is the identity."""
    return constant(tuple(((float(tap == size - 1),),) for tap in range(size)))

"""The four choices of an associative memory whose weights are its state: Miras (A. Behrouz et al., 2025,
arXiv:2504.13173).

    structure    the map from keys to values: a matrix, or a small network of matrices
    bias         the attentional bias: the inner loss, on which each token takes one gradient step
    retention    how the past is kept: the accumulated gradients decay, and a function maps them to weights
    algorithm    how the gradients accumulate: gradient descent, with or without momentum

Titans' memory (arXiv:2501.00663) and Moneta, Yaad and Memora are four such :class:`Memory` values at the end of this
file; a new one takes a single line. The layer computes step sizes, momentum and decay for each token.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp

Linear = Callable[[int, jax.Array], jax.Array]
"""``linear(i, x)``: x (..., in) times the i-th matrix of the memory, (..., out)."""


class Structure(Protocol):
    """The map from keys to values. It is written in terms of ``linear``, which is implemented differently for learning
    and for reading.
    """

    def shapes(self, size: int) -> tuple[tuple[int, int], ...]:
        """(in, out) of each matrix, for keys and values of ``size``."""
        ...

    def __call__(self, x: jax.Array, linear: Linear) -> jax.Array:
        """Maps (..., size) to (..., size), calling ``linear`` once with each index."""
        ...


def _normalize(x: jax.Array) -> jax.Array:
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


@dataclasses.dataclass(frozen=True)
class MLPMemory:
    """``depth`` matrices with an activation between them; depth 1 is a linear memory.

    Attributes:
      expansion: hidden size / size of keys and values.
      activation: name of a function in ``jax.nn``.
      residual: x + LayerNorm(MLP(x)) instead of MLP(x), with no parameters in the norm, as in Miras.
    """

    depth: int = 2
    expansion: int = 2
    activation: str = "silu"
    residual: bool = False

    def __post_init__(self) -> None:
        if self.depth < 1 or self.expansion < 1:
            raise ValueError(
                f"MLPMemory: depth and expansion must be at least 1; got {self.depth} and {self.expansion}"
            )

    def shapes(self, size: int) -> tuple[tuple[int, int], ...]:
        sizes = [size, *[self.expansion * size] * (self.depth - 1), size]
        return tuple(itertools.pairwise(sizes))

    def __call__(self, x: jax.Array, linear: Linear) -> jax.Array:
        h = linear(0, x)
        for i in range(1, self.depth):
            h = linear(i, getattr(jax.nn, self.activation)(h))
        return x + _normalize(h) if self.residual else h


class Bias(Protocol):
    """An attentional bias, by its derivative with respect to the memory's output.

    Attributes:
      thresholded: whether it uses a positive threshold per token, (..., 1).
    """

    thresholded: ClassVar[bool]

    def __call__(self, output: jax.Array, value: jax.Array, threshold: jax.Array | None) -> jax.Array:
        """The derivative (..., size) at the memory's ``output`` (..., size) for the token's ``value``."""
        ...


def _length(x: jax.Array) -> jax.Array:
    """The norm over the last axis, kept; smooth at 0."""
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


@dataclasses.dataclass(frozen=True)
class Regression:
    """1/2 |M(k) - v|^2, the l2 bias (the factor 2 of the gradient of Titans' |M(k) - v|^2 is part of the step size)."""

    thresholded: ClassVar[bool] = False

    def __call__(self, output: jax.Array, value: jax.Array, threshold: jax.Array | None) -> jax.Array:
        return output - value


@dataclasses.dataclass(frozen=True)
class DotProduct:
    """-<M(k), v>: with a linear memory, linear attention."""

    thresholded: ClassVar[bool] = False

    def __call__(self, output: jax.Array, value: jax.Array, threshold: jax.Array | None) -> jax.Array:
        return -value


@dataclasses.dataclass(frozen=True)
class Lp:
    """1/p sum (e^2 + epsilon)^(p/2), e = M(k) - v: the lp bias, smooth for p >= 1 (the paper's factor p is part of the
    step size).
    """

    p: float = 3.0
    epsilon: float = 1e-6
    thresholded: ClassVar[bool] = False

    def __call__(self, output: jax.Array, value: jax.Array, threshold: jax.Array | None) -> jax.Array:
        e = output - value
        return e * jnp.power(jnp.square(e) + self.epsilon, self.p / 2 - 1)


@dataclasses.dataclass(frozen=True)
class Huber:
    """Quadratic up to the token's threshold, linear beyond it.

    Attributes:
      kind: "coordinate": per coordinate (Miras, eq. 14); "norm": by the norm of the error (eq. 15); "mixture": the l2
        gradient if the norm of the error is below the threshold, else threshold times the l1 gradient (eq. 16, Yaad's).
        The last is discontinuous at the threshold, where bfloat16 and float32 can diverge; our choice for Yaad is
        therefore "norm", which is continuous.
      smoothing: smooths the l1 gradient: sign(e) becomes e / sqrt(e^2 + smoothing^2).
    """

    kind: str = "norm"
    smoothing: float = 0.1
    thresholded: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.kind not in ("coordinate", "norm", "mixture"):
            raise ValueError(f'Huber: kind is "coordinate", "norm" or "mixture", got {self.kind!r}')

    def __call__(self, output: jax.Array, value: jax.Array, threshold: jax.Array | None) -> jax.Array:
        assert threshold is not None
        e = output - value
        if self.kind == "coordinate":
            return jnp.clip(e, -threshold, threshold)
        size = _length(e)
        if self.kind == "norm":
            return e * jnp.minimum(1, threshold / size)
        return jnp.where(size <= threshold, e, threshold * e * jax.lax.rsqrt(jnp.square(e) + self.smoothing**2))


@dataclasses.dataclass(frozen=True)
class Robust:
    """The l2 bias for the worst-case value within ``radius`` of the token's (Miras, section 5.1): 1/2 |e|^2 + radius
    |e|.
    """

    radius: float = 0.1
    thresholded: ClassVar[bool] = False

    def __call__(self, output: jax.Array, value: jax.Array, threshold: jax.Array | None) -> jax.Array:
        e = output - value
        return e * (1 + self.radius / _length(e))


@dataclasses.dataclass(frozen=True)
class Retention:
    """W = A, where the accumulated gradients A decay by a factor ``keep`` per token: the l2 retention, Titans'
    forgetting.

    Subclasses map A to W differently. Applied at every token, such a map destroys the low-rank form of the update: the
    weights of each token of a chunk must then be materialized (chunk x weights numbers at a time). Miras' own parallel
    form applies it only at the boundaries of chunks and learns linearly in between; this is also the default here.

    Attributes:
      forget: whether tokens have a factor ``keep``; False keeps everything.
      every_token: apply the map at every token; with chunks of one token this is the recurrence as defined in Miras.
    """

    forget: bool = True
    every_token: bool = False
    linear: ClassVar[bool] = True

    def weights(self, accumulated: jax.Array) -> jax.Array:
        """Maps A (..., in, out) to W of the same shape."""
        return accumulated

    def initial_scale(self, shape: tuple[int, int]) -> float:
        """Standard deviation of the initial accumulators of a matrix (in, out)."""
        return 1 / math.sqrt(shape[0])


@dataclasses.dataclass(frozen=True)
class Lq(Retention):
    """W = A / |A|_q^(q - 2), the lq retention (Miras, eq. 24).

    Our choice: the norm is clipped to at least 1. Otherwise, as A decays toward 0, W would grow without bound for q >
    2.
    """

    q: float = 4.0
    linear: ClassVar[bool] = False

    def weights(self, accumulated: jax.Array) -> jax.Array:
        # |A|_q relative to the largest entry, so that no power overflows.
        top = jax.lax.stop_gradient(jnp.max(jnp.abs(accumulated), axis=(-2, -1), keepdims=True)) + 1e-30
        total = jnp.sum(jnp.power(jnp.abs(accumulated / top), self.q), axis=(-2, -1), keepdims=True)
        norm = top * jnp.power(total + 1e-30, 1 / self.q)
        return accumulated / jnp.power(jnp.maximum(norm, 1), self.q - 2)


@dataclasses.dataclass(frozen=True)
class Elastic(Retention):
    """W = sign(A) max(|A| - threshold, 0): the elastic net retention, which sets small entries to 0 (Miras, eq. 23)."""

    threshold: float = 0.01
    linear: ClassVar[bool] = False

    def weights(self, accumulated: jax.Array) -> jax.Array:
        return jnp.sign(accumulated) * jnp.maximum(jnp.abs(accumulated) - self.threshold, 0)


@dataclasses.dataclass(frozen=True)
class KL(Retention):
    """W = total softmax(A) over the entries that feed one output: the retention by Kullback-Leibler divergence (Miras,
    eq. 21).

    A is log W up to constants, which the softmax ignores. The weights of each output have the same sum, so a part of
    the hidden features is common to all outputs. The norm of a ``residual`` structure removes it: what is left has few
    digits if W is nearly uniform, as it becomes for values of norm 100 and more.
    """

    total: float = 1.0
    linear: ClassVar[bool] = False

    def weights(self, accumulated: jax.Array) -> jax.Array:
        return self.total * jax.nn.softmax(accumulated, axis=-2)

    def initial_scale(self, shape: tuple[int, int]) -> float:
        return 1.0


@dataclasses.dataclass(frozen=True)
class Sigmoid(Retention):
    """W = sigmoid(A): the Bregman retention that keeps weights in (0, 1) (Miras, section 5.2)."""

    linear: ClassVar[bool] = False

    def weights(self, accumulated: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(accumulated)

    def initial_scale(self, shape: tuple[int, int]) -> float:
        return 1.0


@dataclasses.dataclass(frozen=True)
class Bounded(Retention):
    """W = bound tanh(A / bound): like :class:`Sigmoid`, but with weights in (-bound, bound)."""

    bound: float = 1.0
    linear: ClassVar[bool] = False

    def weights(self, accumulated: jax.Array) -> jax.Array:
        return self.bound * jnp.tanh(accumulated / self.bound)


@dataclasses.dataclass(frozen=True)
class GradientDescent:
    """S_t = eta_t S_(t-1) - theta_t g_t,  A_t = keep_t A_(t-1) + S_t (Titans, eq. 13 and 14); without momentum S_t =
    -theta_t g_t.

    Attributes:
      momentum: whether there is momentum (past surprise).
      clip: maximum Frobenius norm of one token's gradient of one matrix; None for no clipping. Not in the papers:
        without it the weights of a deep memory can grow without bound for finite inputs, because each layer's step
        grows with the weights of the others.
    """

    momentum: bool = True
    clip: float | None = 10.0


@dataclasses.dataclass(frozen=True)
class Memory:
    """An associative memory: one of each of the four choices."""

    structure: Structure = MLPMemory()
    bias: Bias = Regression()
    retention: Retention = Retention()
    algorithm: GradientDescent = GradientDescent()

    @property
    def linear(self) -> bool:
        """Whether reading is linear in the gradients of a chunk, so that no weights of single tokens are needed."""
        return self.retention.linear or not self.retention.every_token


MIRAS_STRUCTURE = MLPMemory(depth=2, expansion=4, activation="gelu", residual=True)

MEMORIES: Mapping[str, Memory] = {
    "titans": Memory(),
    "moneta": Memory(MIRAS_STRUCTURE, Lp(3.0), Lq(q=4.0), GradientDescent(momentum=False)),
    "yaad": Memory(MIRAS_STRUCTURE, Huber(), Retention(), GradientDescent(momentum=False)),
    "memora": Memory(MIRAS_STRUCTURE, Regression(), KL(), GradientDescent(momentum=False)),
}
"""The memories of the two papers by name."""

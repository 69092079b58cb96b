"""The four choices of an associative memory whose weights are its state: Miras (A. Behrouz et al., 2025,
arXiv:2504.13173).

    structure    what maps a key to a value: a matrix, or a small network of matrices
    bias         the attentional bias, the inner loss of which one step is taken for each token
    retention    how what was learned is kept: the accumulated gradients decay, and a map makes the weights from them
    algorithm    how the gradients accumulate: gradient descent, with or without momentum

Titans' memory (arXiv:2501.00663) and Moneta, Yaad and Memora are four such :class:`Memory` values at the end of this
file; a new one is as short. Steps, momentum and decay themselves come with each token, from the layer.
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
    """What maps keys to values. It is written once, in terms of ``linear``, whose implementation differs between
    learning and reading."""

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
      expansion: hidden size over that of keys and values.
      activation: name of a function in ``jax.nn``.
      residual: x + LayerNorm(MLP(x)) (no parameters in the norm), as Miras has it, in place of MLP(x).
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
      thresholded: each token brings a positive threshold (..., 1).
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
    """1/2 |M(k) - v|^2, the l2 bias (the 2 of Titans' |M(k) - v|^2 is in the step)."""

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
    """1/p sum (e^2 + epsilon)^(p/2), e = M(k) - v: the lp bias, smooth for p >= 1 (the paper's p is in the step)."""

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
      kind: "coordinate": each coordinate by itself (Miras, eq. 14); "norm": by the error's norm (eq. 15); "mixture":
        the l2 gradient where the error's norm is below the threshold, threshold times the l1 gradient elsewhere (eq.
        16, Yaad's). The last jumps at the threshold, where bfloat16 and float32 part; Yaad here has the second, which
        does not: our choice.
      smoothing: of the l1 gradient: sign(e) is e / sqrt(e^2 + smoothing^2).
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
    """The l2 bias for the worst value within ``radius`` of the token's (Miras, section 5.1): 1/2 |e|^2 + radius |e|."""

    radius: float = 0.1
    thresholded: ClassVar[bool] = False

    def __call__(self, output: jax.Array, value: jax.Array, threshold: jax.Array | None) -> jax.Array:
        e = output - value
        return e * (1 + self.radius / _length(e))


@dataclasses.dataclass(frozen=True)
class Retention:
    """W = A, where the accumulated gradients A decay by the token's kept share: the l2 retention, Titans' forgetting.

    Subclasses map A to W differently. Applied at every token, such a map loses the memory's low-rank form: the weights
    of each token of a chunk are then materialized (chunk x weights numbers at a time). Miras' own parallel form applies
    it at the boundaries of chunks only and learns linearly from there; so do we by default.

    Attributes:
      forget: tokens bring a kept share; False keeps all (no retention).
      every_token: apply the map at every token: with chunks of one token, the recurrence as Miras defines it.
    """

    forget: bool = True
    every_token: bool = False
    linear: ClassVar[bool] = True

    def weights(self, accumulated: jax.Array) -> jax.Array:
        """Maps A (..., in, out) to W of the same shape."""
        return accumulated

    def initial_scale(self, shape: tuple[int, int]) -> float:
        """Standard deviation of the first accumulators of a matrix (in, out)."""
        return 1 / math.sqrt(shape[0])


@dataclasses.dataclass(frozen=True)
class Lq(Retention):
    """W = A / |A|_q^(q - 2), the lq retention (Miras, eq. 24).

    Our choice: the norm is taken as no less than 1. As A decays toward 0, W would grow without bound for q > 2.
    """

    q: float = 4.0
    linear: ClassVar[bool] = False

    def weights(self, accumulated: jax.Array) -> jax.Array:
        # |A|_q through the greatest entry, of which no power overflows.
        top = jax.lax.stop_gradient(jnp.max(jnp.abs(accumulated), axis=(-2, -1), keepdims=True)) + 1e-30
        total = jnp.sum(jnp.power(jnp.abs(accumulated / top), self.q), axis=(-2, -1), keepdims=True)
        norm = top * jnp.power(total + 1e-30, 1 / self.q)
        return accumulated / jnp.power(jnp.maximum(norm, 1), self.q - 2)


@dataclasses.dataclass(frozen=True)
class Elastic(Retention):
    """W = sign(A) max(|A| - threshold, 0): the elastic net's retention, which forgets small entries outright (Miras,
    eq. 23).
    """

    threshold: float = 0.01
    linear: ClassVar[bool] = False

    def weights(self, accumulated: jax.Array) -> jax.Array:
        return jnp.sign(accumulated) * jnp.maximum(jnp.abs(accumulated) - self.threshold, 0)


@dataclasses.dataclass(frozen=True)
class KL(Retention):
    """W = total softmax(A) over the entries that feed one output: the retention by Kullback-Leibler divergence (Miras,
    eq. 21).

    A is log W up to constants, which the softmax ignores.
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
    """W = bound tanh(A / bound): the same for weights of either sign."""

    bound: float = 1.0
    linear: ClassVar[bool] = False

    def weights(self, accumulated: jax.Array) -> jax.Array:
        return self.bound * jnp.tanh(accumulated / self.bound)


@dataclasses.dataclass(frozen=True)
class GradientDescent:
    """S_t = eta_t S_(t-1) - theta_t g_t,  A_t = keep_t A_(t-1) + S_t (Titans, eq. 13 and 14); without momentum S_t =
    -theta_t g_t.

    Attributes:
      momentum: whether past surprise is kept.
      clip: greatest Frobenius norm of one token's gradient of one matrix; None for any. Not in the papers: without it
        the weights of a deep memory can grow without bound from finite inputs, as each layer's step grows with the
        weights of the others.
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
        """Reading is linear in what accumulates within a chunk: no weights of single tokens are needed."""
        return self.retention.linear or not self.retention.every_token


MIRAS_STRUCTURE = MLPMemory(depth=2, expansion=4, activation="gelu", residual=True)

MEMORIES: Mapping[str, Memory] = {
    "titans": Memory(),
    "moneta": Memory(MIRAS_STRUCTURE, Lp(3.0), Lq(q=4.0), GradientDescent(momentum=False)),
    "yaad": Memory(MIRAS_STRUCTURE, Huber(), Retention(), GradientDescent(momentum=False)),
    "memora": Memory(MIRAS_STRUCTURE, Regression(), KL(), GradientDescent(momentum=False)),
}
"""The memories of the two papers by name."""

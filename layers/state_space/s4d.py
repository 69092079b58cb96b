"""S4D: On the Parameterization and Initialization of Diagonal State Space Models (Gu et al., 2022, arXiv:2206.11893).

Every feature is the input of its own linear system with a diagonal matrix A of N / 2 conjugate pairs:

    h_t = A' h_{t-1} + B' u_t      y_t = 2 Re(C h_t) + D u_t = (K * u)_t + D u_t      K_l = 2 Re sum_n C_n B'_n A'_n^l

with A', B' from A, B = 1 and the feature's step by zero-order hold, A' = exp(step A), B' = (A' - 1) / A, or bilinearly,
A' = (1 + step A / 2) / (1 - step A / 2), B' = step / (1 - step A / 2). The output goes through GELU and a linear layer
with a GLU, the only channel mixing in the paper's blocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct

from layers import portable
from layers.drop import Dropout
from layers.initializers import Uniform, constant, normal
from layers.linear import Linear
from layers.mixer import register_mixer
from layers.mlp import gelu
from layers.recurrent import Recurrent, empty
from layers.state_space.initialization import fan_in_uniform
from layers.tokens import Tokens
from pallas_kernels import toeplitz_product
from primitives.exponential import gated

Poles = Literal["lin", "inv", "legs", "real"]
Discretization = Literal["zoh", "bilinear"]


def poles(initialization: Poles, state_dim: int) -> np.ndarray:
    """A of S4D-Lin, -Inv, -LegS (complex128, one of each of the state_dim / 2 conjugate pairs) or -Real (float64, all
    of them).
    """
    n = np.arange(state_dim // 2)
    if initialization == "lin":
        return -0.5 + 1j * np.pi * n
    if initialization == "inv":
        return -0.5 + 1j * state_dim / np.pi * (state_dim / (2 * n + 1) - 1)
    if initialization == "legs":
        # The normal part of HiPPO-LegS is -1/2 plus a skew-symmetric matrix.
        root = np.sqrt(np.arange(state_dim) + 0.5)
        skew = np.triu(np.outer(root, root), 1)
        return -0.5 + 1j * np.linalg.eigvalsh(1j * (skew - skew.T))[state_dim // 2 :]
    return -(np.arange(state_dim) + 1.0)


@struct.dataclass
class Decay:
    """A' (features, modes) by its logarithm, whose multiples are those of its powers.

    Attributes:
      log: log A', or log |A'| where there is a sign.
      sign: 1 or -1, of real poles by the bilinear rule: A' is negative where a pole is beyond -2 / step, and real
        numbers have no logarithm of that.
    """

    log: jax.Array
    sign: jax.Array | None = None

    def power(self, exponents: Any) -> jax.Array:
        """A'^n (..., features, modes) for whole numbers n (..., 1 or features, 1 or modes)."""
        size = jnp.exp(exponents * self.log)
        return size if self.sign is None else size * jnp.where(exponents % 2 == 1, self.sign, 1)


def discretize(poles: jax.Array, step: jax.Array, rule: Discretization) -> tuple[Decay, jax.Array]:
    """A' and B' (features, modes) of poles (features, modes) and steps (features,)."""
    z = step[:, None] * poles
    if rule == "zoh":
        return Decay(z), jnp.expm1(z) / poles
    entering = step[:, None] / (1 - z / 2)
    if jnp.iscomplexobj(z):
        return Decay(jnp.log1p(z / 2) - jnp.log1p(-z / 2)), entering
    near = z > -1
    above = jnp.where(
        near, jnp.log1p(jnp.where(near, z, 0) / 2), jnp.log(jnp.maximum(jnp.abs(1 + jnp.where(near, -1, z) / 2), 1e-30))
    )
    return Decay(above - jnp.log1p(-z / 2), jnp.where(z < -2, -1, 1).astype(z.dtype)), entering


def _powers(decay: Decay, length: int) -> tuple[jax.Array, jax.Array]:
    """A'^s (features, modes, size) for s < size, and A'^(size a) (features, modes, count), with size * count >=
    ``length``.

    Every power is a product of one of each, so only about 2 sqrt(length) exponentials per mode are computed.
    """
    size = math.isqrt(length - 1) + 1
    fine, coarse = jnp.arange(size), size * jnp.arange(-(-length // size))
    fine, coarse = (jnp.moveaxis(decay.power(n[:, None, None]), 0, -1) for n in (fine, coarse))
    return fine, coarse


def response(weights: jax.Array, decay: Decay, length: int) -> jax.Array:
    """The kernel sum_n w_n A'_n^l for l < length (twice its real part, if complex): maps weights (..., features, modes)
    to (..., features, length).
    """
    fine, coarse = _powers(decay, length)
    weighted = weights[..., None] * coarse
    if jnp.iscomplexobj(weighted):
        weighted = jnp.concatenate([2 * weighted.real, -2 * weighted.imag], axis=-2)
        fine = jnp.concatenate([fine.real, fine.imag], axis=-2)
    out = jnp.einsum("...hna,hns->...has", weighted, fine)
    return out.reshape(*out.shape[:-2], -1)[..., :length]


def absorb(u: jax.Array, decay: Decay) -> jax.Array:
    """sum_r A'^r u_r: maps inputs (batch, features, length), the latest first, to a state (batch, features, modes)."""
    fine, coarse = _powers(decay, u.shape[-1])
    blocks = jnp.pad(u, ((0, 0), (0, 0), (0, fine.shape[-1] * coarse.shape[-1] - u.shape[-1]))).reshape(
        *u.shape[:2], -1, fine.shape[-1]
    )
    parts = (fine.real, fine.imag) if jnp.iscomplexobj(fine) else (fine,)
    inner = [jnp.einsum("bhas,hns->bhna", blocks, part) for part in parts]
    return jnp.sum(coarse * (jax.lax.complex(*inner) if len(inner) == 2 else inner[0]), axis=-1)


@struct.dataclass
class S4DState:
    """The state: ``hidden`` (batch, features, modes), complex for complex poles, of each feature's system without B."""

    hidden: jax.Array


@register_mixer("s4d")
class S4D(Recurrent):
    """The diagonal state space model, GELU, and a linear layer with GLU.

    Whole rows are convolved by FFT, so a row must hold a single document. If it is not causal, a second kernel is used
    for later tokens: K_0 applies to the token itself and earlier ones, K_1 to later ones.

    Parameters: ``log_dt`` and ``D`` (features,), ``log_A_real`` and ``A_imag`` (features, modes), ``C``
    (directions, features, modes, 2: real and imaginary part), ``out``. Real poles have no ``A_imag`` and no last axis
    of ``C``.
    """

    supports_bidirectional = True
    honors = frozenset({"mask"})
    paper = (123,)
    undecayed: ClassVar[tuple[str, ...]] = ("log_A_real", "A_imag")
    refusals: ClassVar[Mapping[str, str]] = {
        "segment_ids": "its convolution is a Fourier transform of the whole row: give each document a row of its own"
    }

    def __init__(
        self,
        features: int,
        *,
        state_dim: int = 64,
        initialization: Poles = "legs",
        discretization: Discretization = "zoh",
        step_range: tuple[float, float] = (1e-3, 0.1),
        dropout: float = 0.0,
        causal: bool = False,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          state_dim: N, even.
          initialization: initial poles: "lin", "inv", "legs" or "real".
          discretization: "zoh" or "bilinear".
          step_range: the initial steps of the features are log-uniform in this range.
          dropout: dropout rate before the output layer.
          causal: whether only earlier tokens are seen; otherwise a second kernel sees the later ones.

        Raises:
          ValueError: an unknown initialization or discretization, or a ``state_dim`` that is odd or below 2.
        """
        if initialization not in get_args(Poles) or discretization not in get_args(Discretization):
            known = f"{', '.join(get_args(Poles))}; {', '.join(get_args(Discretization))}"
            raise ValueError(
                f"S4D knows the initializations and discretizations {known}; got {initialization!r} and "
                f"{discretization!r}"
            )
        if state_dim < 2 or state_dim % 2:
            raise ValueError(f"S4D keeps conjugate pairs: state_dim must be even and at least 2, got {state_dim}")
        start = poles(initialization, state_dim)
        shape, pairs = (features, len(start)), np.iscomplexobj(start)
        low, high = (math.log(step) for step in step_range)
        self.log_dt = nnx.Param(Uniform(low, high)(rngs.params(), (features,), param_dtype))
        self.log_A_real = nnx.Param(
            constant(tuple(portable.log(-start.real).tolist()))(rngs.params(), shape, param_dtype)
        )
        self.A_imag = (
            nnx.Param(constant(tuple(start.imag.tolist()))(rngs.params(), shape, param_dtype)) if pairs else None
        )
        # Complex numbers of variance 1.
        self.C = nnx.Param(
            normal(0.5**0.5 if pairs else 1.0)(
                rngs.params(), (1 if causal else 2, *shape, *((2,) if pairs else ())), param_dtype
            )
        )
        self.D = nnx.Param(normal(1.0)(rngs.params(), (features,), param_dtype))
        self.dropout = Dropout(dropout, rngs=rngs) if dropout else None
        self.out = Linear(
            features, 2 * features, kernel_init=fan_in_uniform(), dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        self.features, self.modes, self.discretization, self.causal = features, len(start), discretization, causal

    def system(self) -> tuple[Decay, jax.Array]:
        """A' (features, modes) and C B' (directions, features, modes), at least float32."""
        wide = jnp.promote_types(self.C.dtype, jnp.float32)
        real = -jnp.exp(self.log_A_real[...].astype(wide))
        output = self.C[...].astype(wide)
        if self.A_imag is None:
            a = real
        else:
            a, output = (
                jax.lax.complex(real, self.A_imag[...].astype(wide)),
                jax.lax.complex(output[..., 0], output[..., 1]),
            )
        decay, entering = discretize(a, jnp.exp(self.log_dt[...].astype(wide)), self.discretization)
        return decay, output * entering

    def kernel(self, length: int) -> jax.Array:
        """The convolution kernel K, (directions, features, length)."""
        decay, weights = self.system()
        return response(weights, decay, length)

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> S4DState:
        """A state of zeros, in float32 or wider; its size does not depend on the length.

        Raises:
          NotImplementedError: a bidirectional mixer.
        """
        if not self.causal:
            raise NotImplementedError(f"{type(self).__name__} can't be read piece by piece: it is not causal")
        shape = (batch_size, self.features, self.modes)
        return S4DState(empty(shape, dtype, jnp.float32 if self.A_imag is None else jnp.complex64))

    def recur(self, x: jax.Array, tokens: Tokens, state: S4DState | None) -> tuple[jax.Array, S4DState | None]:
        u = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        y, new = (self._whole(u), None) if state is None else self._after(u, tokens.mask, state)
        y = gelu(y + self.D[...].astype(u.dtype) * u).astype(x.dtype)
        y = y if self.dropout is None else self.dropout(y)
        value, gate = jnp.split(self.out(y), 2, axis=-1)
        return gated(value, gate), new

    def _whole(self, u: jax.Array) -> jax.Array:
        """K * u for whole rows, (batch, length, features)."""
        forward, *backward = self.kernel(u.shape[1])
        offsets = [*(jnp.flip(kernel[:, :-1], 1) for kernel in backward), forward]
        return toeplitz_product(u, jnp.concatenate(offsets, axis=1).T, causal=not backward)

    def _after(self, u: jax.Array, mask: jax.Array | None, state: S4DState) -> tuple[jax.Array, S4DState]:
        """A single token by the recurrence, several (batch, new, features) by convolution plus the contribution of the
        state.
        """
        decay, (weights,) = self.system()
        length = u.shape[1]
        new = jnp.full((u.shape[0],), length) if mask is None else jnp.sum(mask, axis=1)
        kept = decay.power(new[:, None, None]) * state.hidden
        if length == 1:
            hidden = kept + u[:, 0, :, None]  # a masked token has u = 0 and kept = hidden
            y = jnp.sum(weights * hidden, axis=-1)[:, None]
            return 2 * y.real if jnp.iscomplexobj(y) else y, S4DState(hidden)
        y = toeplitz_product(u, response(weights, decay, length).T)
        y = y + jnp.swapaxes(response(weights * decay.power(1) * state.hidden, decay, length), 1, 2)
        # Padding is trailing: the last real token of a row has the index new - 1.
        index = new[:, None] - 1 - jnp.arange(length)
        latest_first = jnp.take_along_axis(u, jnp.maximum(index, 0)[..., None], axis=1)
        entered = jnp.swapaxes(jnp.where(index[..., None] >= 0, latest_first, 0), 1, 2)
        return y, S4DState(kept + absorb(entered, decay))

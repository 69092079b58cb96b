"""S4: Efficiently Modeling Long Sequences with Structured State Spaces (Gu et al., ICLR 2022, arXiv:2111.00396).

Every feature is the input of its own linear system, whose matrix is diagonal plus low rank, like HiPPO-LegS:

    h_t = A' h_{t-1} + B' u_t      y_t = 2 Re(C h_t) + D u_t = (K * u)_t + D u_t      K_l = 2 Re(C A'^l B')
    A = diag(Lambda) - P P^*       A' = (2 / dt - A)^-1 (2 / dt + A)       B' = 2 (2 / dt - A)^-1 B       (bilinear)

Of the N numbers of a state one of each conjugate pair is stored. P P^* mixes a number with the conjugates of the
others, so the system is linear over the reals, not over the complex numbers. The inverse is that of a diagonal matrix
with a rank-1 correction (Woodbury identity): a step costs O(N), without a matrix product.

The kernel of length L is the product of about sqrt(L) columns A'^b B' and as many rows C A'^a, both computed by
doubling, with log2(L) squarings of A'. The paper's method, an FFT of the generating function at roots of unity, needs
the parameter C (I - A'^L) instead of C, which is tied to one length; the authors' checkpoints hold that. The rest is as
in S4D (:mod:`layers.state_space.s4d`).
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct

from layers.initializers import constant
from layers.mixer import register_mixer
from layers.state_space.s4d import S4D, S4DState

_product = functools.partial(jnp.einsum, precision="highest")  # errors of matrix powers are amplified


def low_rank(state_dim: int) -> np.ndarray:
    """P of HiPPO-LegS in the basis of Lambda, float64 (state_dim / 2,), in the order of ``poles("legs", state_dim)``.

    The phase of each basis vector is free and chosen such that P is positive. B is sqrt(2) P.
    """
    root = np.sqrt(np.arange(state_dim) + 0.5)
    skew = np.triu(np.outer(root, root), 1)
    _, vectors = np.linalg.eigh(1j * (skew - skew.T))
    return np.abs(vectors.conj().T @ root)[state_dim // 2 :]


@struct.dataclass
class S4State(S4DState):
    """The state: ``hidden``, complex (batch, features, N / 2), the state of each feature's system."""


class System(NamedTuple):
    """The discrete systems of all features.

    Attributes:
      ahead, back: 2 / dt + Lambda and 1 / (2 / dt - Lambda), complex (features, modes).
      low, solved: P, and P multiplied by ``back``.
      share: 1 / (1 / 2 + Re(P^* solved)), (features,).
      entering: 2 B.
      output: C, complex (directions, features, modes).
    """

    ahead: jax.Array
    back: jax.Array
    low: jax.Array
    solved: jax.Array
    share: jax.Array
    entering: jax.Array
    output: jax.Array

    def step(self, hidden: jax.Array, u: jax.Array | float) -> jax.Array:
        """A' h + B' u: states (..., features, modes) and inputs (..., features)."""
        ahead = self.ahead * hidden - 2 * self.low * self._seen(hidden) + self.entering * jnp.asarray(u)[..., None]
        solved = self.back * ahead
        return solved - self.solved * self.share[:, None] * self._seen(solved)

    def _seen(self, hidden: jax.Array) -> jax.Array:
        """Re(P^* h), (..., features, 1)."""
        return jnp.sum(self.low.real * hidden.real + self.low.imag * hidden.imag, axis=-1, keepdims=True)


def _real(x: jax.Array, axis: int = -1) -> jax.Array:
    """Real and imaginary parts, concatenated along ``axis``."""
    return jnp.concatenate([x.real, x.imag], axis=axis)


@register_mixer("s4")
class S4(S4D):
    """The diagonal-plus-low-rank state space model, GELU, and a linear layer with GLU.

    Whole sequences are convolved by FFT; tokens that continue a state are processed one by one.

    Parameters: those of :class:`S4D`; ``P`` and ``B`` (features, modes, 2: real and imaginary part).
    """

    paper = (98,)
    undecayed: ClassVar[tuple[str, ...]] = (*S4D.undecayed, "P", "B")

    def __init__(
        self,
        features: int,
        *,
        state_dim: int = 64,
        step_range: tuple[float, float] = (1e-3, 0.1),
        dropout: float = 0.0,
        causal: bool = False,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          state_dim: N, even.
          step_range: the initial steps of the features are log-uniform in this range.
          dropout: dropout rate before the output layer.
          causal: whether only earlier tokens are seen; otherwise a second kernel sees the later ones.

        Raises:
          ValueError: ``state_dim`` is odd or below 2."""
        super().__init__(
            features,
            state_dim=state_dim,
            initialization="legs",
            discretization="bilinear",
            step_range=step_range,
            dropout=dropout,
            causal=causal,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        start = low_rank(state_dim)
        self.P, self.B = (
            nnx.Param(
                constant(tuple((number, 0.0) for number in (factor * start).tolist()))(
                    rngs.params(), (features, self.modes, 2), param_dtype
                )
            )
            for factor in (1.0, 2**0.5)
        )

    def discrete(self) -> System:
        """The systems, at least complex64."""
        wide = jnp.promote_types(self.C.dtype, jnp.float32)

        def joined(pairs: jax.Array) -> jax.Array:
            return jax.lax.complex(pairs[..., 0].astype(wide), pairs[..., 1].astype(wide))

        assert self.A_imag is not None
        poles = jax.lax.complex(-jnp.exp(self.log_A_real[...].astype(wide)), self.A_imag[...].astype(wide))
        rate = 2 * jnp.exp(-self.log_dt[...].astype(wide))[:, None]
        low, back = joined(self.P[...]), 1 / (rate - poles)
        solved = back * low
        share = 1 / (0.5 + jnp.sum(low.real * solved.real + low.imag * solved.imag, axis=-1))
        return System(rate + poles, back, low, solved, share, 2 * joined(self.B[...]), joined(self.C[...]))

    def kernel(self, length: int) -> jax.Array:
        """The convolution kernel K, (directions, features, length)."""
        system = self.discrete()
        wide = system.share.dtype
        unit = jnp.eye(self.modes, dtype=wide)
        basis = jnp.concatenate([jax.lax.complex(unit, 0 * unit), jax.lax.complex(0 * unit, unit)])
        power = jnp.moveaxis(_real(system.step(basis[:, None], 0.0)), 0, -1)  # A', (features, N, N)
        columns = _real(system.step(jnp.zeros_like(system.low), 1.0))[..., None]
        rows = 2 * _real(jnp.conj(system.output))[:, :, None]
        while columns.shape[-1] ** 2 < length:
            columns = jnp.concatenate([columns, _product("hij,hjb->hib", power, columns)], axis=-1)
            power = _product("hij,hjk->hik", power, power)
        while columns.shape[-1] * rows.shape[2] < length:
            rows = jnp.concatenate([rows, _product("dhai,hij->dhaj", rows, power)], axis=2)
            power = _product("hij,hjk->hik", power, power)
        out = _product("dhai,hib->dhab", rows, columns)
        return out.reshape(*out.shape[:2], -1)[..., :length]

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> S4State:
        return S4State(super().init_state(batch_size, max_length, dtype).hidden)

    def _after(self, u: jax.Array, mask: jax.Array | None, state: S4DState) -> tuple[jax.Array, S4State]:
        """Runs the recurrence, one token at a time."""
        system = self.discrete()
        (output,) = system.output

        def one(hidden: jax.Array, given: tuple[jax.Array, jax.Array | None]) -> tuple[jax.Array, jax.Array]:
            u, real = given
            new = system.step(hidden, u)
            new = new if real is None else jnp.where(real[:, None, None], new, hidden)
            return new, 2 * jnp.sum(output.real * new.real - output.imag * new.imag, axis=-1)

        given = jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), (u, mask))
        hidden, y = jax.lax.scan(one, state.hidden, given)
        return jnp.swapaxes(y, 0, 1), S4State(hidden)

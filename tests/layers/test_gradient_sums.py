"""The gradient of a parameter sums over all rows and tokens: in narrow dtypes, no part of the sum is lost.

All rows are equal here, and so are their gradients: a sum over thousands of them is that many times the gradient
of one row. Both come from one program, in which rows count by a weight: rounding is the same, adding up is all
that differs. A sum that is kept in bfloat16 stands still at 256 equal terms, in float16 at 2,048.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layers.state import flatten
from tests.layers.mixer_cases import CASES, WITHOUT_GRADIENT, MixerCase, compiled

ROWS = 512
NARROW = (jnp.bfloat16, jnp.float16)
narrow = pytest.mark.parametrize("dtype", NARROW, ids=lambda dtype: dtype.__name__)


def lost(module: nnx.Module, x: np.ndarray, rows: int = ROWS) -> dict[str, float]:
    """For each parameter, how far the gradient of many equal rows is from that of one, as a part of it; ``x`` is the row, (1, ...)."""
    module.eval()
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    many = np.broadcast_to(x, (rows, *x.shape[1:]))

    @jax.jit
    def gradient(params: Any, weight: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            y = nnx.merge(graphdef, params, rest, copy=True)(many)
            wide = y.astype(jnp.float32).reshape(rows, -1)
            return jnp.sum(weight * jnp.mean(wide * wide + wide, -1))

        return jax.grad(loss)(params)

    one = gradient(params, jnp.zeros(rows).at[rows // 2].set(1.0))
    sums = gradient(params, jnp.ones(rows))
    a, b = ({n: np.asarray(g, np.float64) for n, g in flatten(nnx.merge(graphdef, g, rest), nnx.Param).items()} for g in (sums, one))
    return {n: float(np.linalg.norm(a[n] / rows - b[n]) / max(np.linalg.norm(b[n]), 1e-30)) for n in a if not n.endswith(tuple(WITHOUT_GRADIENT))}


def assert_kept(module: nnx.Module, x: np.ndarray, rows: int = ROWS) -> None:
    bad = {name: error for name, error in lost(module, x, rows).items() if not error < 0.01}
    assert not bad


@narrow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_mixers(case: MixerCase, dtype: Any) -> None:
    assert_kept(case.make(dtype=dtype), compiled(case).inputs(batch=1))

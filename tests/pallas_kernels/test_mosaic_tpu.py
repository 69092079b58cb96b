"""TPU kernels, interpreted, in bfloat16: the inputs and what the matrix unit multiplies are rounded, sums and
statistics are not.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
from pallas_kernels.dispatch import OPS, interpreting, recording
from tests.tiers import tiered

CASES = (
    ("attention", "long_causal"),
    ("linear_attention", "token"),
    ("linear_attention", "grouped_key"),
    ("delta_rule", "gated"),
    ("selective_scan", "everything"),
)
# Logarithms of decays, and the rates that make them, are float32 whatever is computed in.
WIDE = {"decay", "A", "initial_state"}
ROUNDED = 2.0**-6  # bfloat16 has 8 bits: a few roundings of operands and one of the result


@pytest.mark.parametrize(("op_name", "case_name"), tiered(CASES, lambda case: case == ("linear_attention", "token")))
def test_bfloat16(op_name: str, case_name: str) -> None:
    case = next(case for case in OPS[op_name].cases if case.name == case_name)
    made = {name: jnp.asarray(x, jnp.float32) for name, x in case.arrays(np.random.default_rng(0)).items()}
    narrow = {name: x if name in WIDE else x.astype(jnp.bfloat16) for name, x in made.items()}

    @functools.partial(jax.jit, static_argnums=0)
    def run(implementation: str, arrays: dict[str, jax.Array]) -> Any:
        call = functools.partial(getattr(pallas_kernels, op_name), implementation=implementation, **case.options)
        outputs, pullback = jax.vjp(lambda arrays: jax.tree.leaves(call(**arrays)), arrays)
        return outputs, pullback(
            [jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape).astype(x.dtype) for x in outputs]
        )[0]

    with interpreting(), recording() as record:
        outputs, gradients = run("mosaic_tpu", narrow)
    assert [choice.implementation for choice in record] == ["mosaic_tpu"]
    exact_outputs, exact_gradients = run("reference", {name: x.astype(jnp.float32) for name, x in narrow.items()})
    assert outputs[0].dtype == jnp.bfloat16
    assert {name: x.dtype for name, x in gradients.items()} == {name: x.dtype for name, x in narrow.items()}
    for name, got, want in [
        *zip(("output", "second output"), outputs, exact_outputs),
        *((n, gradients[n], exact_gradients[n]) for n in narrow),
    ]:
        error = jnp.max(jnp.abs(got.astype(jnp.float32) - want)) / jnp.max(jnp.abs(want))
        assert error < ROUNDED, f"{name}: {error:.2g}"

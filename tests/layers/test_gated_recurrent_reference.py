"""The LSTM and the GRU against PyTorch's: outputs, last state, gradients, initial values, number of parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import layers
from layers.gated_recurrent import GRU, LSTM, GatedRecurrent
from tests.layers.mixer_cases import relative

torch = pytest.importorskip("torch", reason="the reference implementation needs torch")
pytestmark = pytest.mark.reference

FEATURES, LENGTH = 12, 70
NAMES = {"input": "ih", "recurrent": "hh"}


@pytest.mark.parametrize("make", [LSTM, GRU])
def test_against_pytorch(make: type[GatedRecurrent], record_property: Any) -> None:
    torch.manual_seed(0)
    theirs = getattr(torch.nn, make.__name__)(FEATURES, FEATURES, batch_first=True)
    ours = make(FEATURES, rngs=nnx.Rngs(0))
    assert layers.parameter_count(ours) == sum(p.numel() for p in theirs.parameters())
    bounds = {name: float(np.abs(w).max()) for name, w in layers.flatten(ours).items()}
    assert all(0.9 * FEATURES**-0.5 < bound <= FEATURES**-0.5 for bound in bounds.values()), bounds

    given = {name: p.detach().numpy() for name, p in theirs.named_parameters()}
    weights = {f"{name}.kernel": given[f"weight_{theirs}_l0"].T for name, theirs in NAMES.items()}
    weights |= {f"{name}.bias": given[f"bias_{theirs}_l0"] for name, theirs in NAMES.items()}
    layers.assign(ours, {name: jnp.asarray(w) for name, w in weights.items()})

    x = np.random.default_rng(0).standard_normal((2, LENGTH, FEATURES)).astype(np.float32)
    read = torch.from_numpy(x).requires_grad_()
    want, last = theirs(read)
    torch.sin(want).sum().backward()
    graph, state = nnx.split(ours)

    def call(state: Any, x: jax.Array) -> jax.Array:
        return nnx.merge(graph, state)(x)

    got, pull = jax.vjp(jax.jit(call), state, jnp.asarray(x))
    of_weights, of_x = pull(jnp.cos(got))
    kernel = of_weights["recurrent"]["kernel"][...]
    differences = {
        "outputs": relative(got, want.detach().numpy()),
        "input": relative(of_x, read.grad.numpy()),
        "recurrent": relative(kernel, theirs.weight_hh_l0.grad.numpy().T),
    }
    _, after = ours.extend(jnp.asarray(x), ours.init_state(2))
    hidden, *cell = last if isinstance(last, tuple) else (last,)
    differences["state"] = max(
        relative(after.memory[:, i], a[0].detach().numpy()) for i, a in enumerate((hidden, *cell))
    )
    about = {
        "architecture": f"{make.__name__.lower()} (layer)",
        "reference": f"torch {torch.__version__.partition('+')[0]}",
    }
    record_property(
        "parity", {**about, "kind": "live", "mapped": len(weights), "difference": max(differences.values())}
    )
    assert max(differences.values()) < 1e-5, differences

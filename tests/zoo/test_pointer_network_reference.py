"""The pointer network against PyTorch's LSTMs and the paper's equations in float64: logits and gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo
from layers import flatten
from tests.layers.mixer_cases import relative

torch = pytest.importorskip("torch", reason="the reference implementation needs torch")
pytestmark = pytest.mark.reference

FEATURES, BATCH, POINTS, LENGTH = 16, 3, 7, 6
LSTM = {"input.kernel": "weight_ih_l{}", "recurrent.kernel": "weight_hh_l{}", "input.bias": "bias_ih_l{}",
        "recurrent.bias": "bias_hh_l{}"}  # fmt: skip


@pytest.mark.parametrize("depth", [1, 2])
def test_against_pytorch(depth: int, record_property: Any) -> None:
    model = zoo.create("pointer_network_nano", features=FEATURES, depth=depth)
    weights = {name: torch.from_numpy(np.array(a, np.float64)) for name, a in flatten(model, nnx.Param).items()}
    weights = {name: a.requires_grad_() for name, a in weights.items()}

    def lstm(side: str) -> Any:
        made = torch.nn.LSTM(FEATURES, FEATURES, depth, batch_first=True).double()
        ours = {
            theirs.format(layer): weights[f"{side}.blocks.{layer}.mixer.{name}"]
            for layer in range(depth)
            for name, theirs in LSTM.items()
        }
        ours = {name: a.T if a.ndim == 2 else a for name, a in ours.items()}
        return lambda *given: torch.func.functional_call(made, ours, given)

    rng = np.random.default_rng(0)
    x, target = rng.random((BATCH, POINTS, 2), np.float32), rng.integers(0, POINTS + 1, (BATCH, LENGTH))
    source = torch.from_numpy(x).double().requires_grad_()
    embedded = source @ weights["embedding.kernel"] + weights["embedding.bias"]
    start, end = (weights[name].expand(BATCH, 1, FEATURES) for name in ("start", "end"))
    e, last = lstm("encoder")(torch.cat([end, embedded], 1))
    words = torch.cat([start, embedded], 1)
    d, _ = lstm("decoder")(words[torch.arange(BATCH)[:, None], torch.from_numpy(target)], last)
    inner = (e @ weights["pointer.key.kernel"])[:, None] + (d @ weights["pointer.query.kernel"])[:, :, None]
    want = (torch.tanh(inner) @ weights["pointer.score.kernel"])[..., 0]
    torch.sin(want).sum().backward()

    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def call(params: Any, x: jax.Array) -> jax.Array:
        return nnx.merge(graph, params, rest, copy=True)(x, jnp.asarray(target))

    got, pull = jax.vjp(jax.jit(call), params, jnp.asarray(x))
    of_params, of_x = pull(jnp.cos(got))
    differences = {"logits": relative(got, want.detach().numpy()), "points": relative(of_x, source.grad.numpy())}
    for path, leaf in nnx.to_flat_state(of_params):
        name = ".".join(map(str, path))
        differences[name] = relative(leaf[...], weights[name].grad.numpy())
    about = {"architecture": "Pointer Network", "reference": f"torch {torch.__version__.partition('+')[0]}"}
    record_property(
        "parity", {**about, "kind": "live", "mapped": len(weights), "difference": max(differences.values())}
    )
    assert max(differences.values()) < 1e-4, differences

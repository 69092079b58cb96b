"""AltUp as in Gemma 3n, against transformers: random weights, float32."""

from __future__ import annotations

import importlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layers.altup import AltUp
from tests.layers.mixer_cases import relative
from tests.layers.test_altup import Map
from tests.references.live import randomize, torch

transformers = pytest.importorskip("transformers", reason="the reference implementation needs transformers")

pytestmark = pytest.mark.reference


def test_gemma_3n() -> None:
    """Its module around a map: outputs and the gradient of every weight."""
    gemma = importlib.import_module("transformers.models.gemma3n.modeling_gemma3n")
    config = transformers.Gemma3nTextConfig(hidden_size=8, altup_num_inputs=3, altup_active_idx=1, rms_norm_eps=1e-6)
    theirs, block = gemma.Gemma3nTextAltUp(config), Map(8)
    randomize(theirs)
    theirs.router_norm.weight.data.add_(8.0)  # tanh of what is divided by the features would be close to 0
    ours = AltUp(block, 8, streams=3, active=1, routed=True, rngs=nnx.Rngs(0))
    weights = {name: value.numpy() for name, value in theirs.state_dict().items()}
    names = {"modality_router": "router", "prediction_coefs": "prediction", "correction_coefs": "correction"}
    for name, own in names.items():
        getattr(ours, own).kernel.set_value(jnp.asarray(weights[f"{name}.weight"].T))
    ours.router_norm.scale.set_value(jnp.asarray(weights["router_norm.weight"]))
    x = np.random.default_rng(2).standard_normal((3, 2, 5, 8)).astype(np.float32)
    kernel = torch.from_numpy(np.asarray(block.kernel[...]).copy()).requires_grad_()
    predicted = theirs.predict(torch.from_numpy(x))
    active = predicted[1]
    expected = theirs.correct(predicted, active + torch.sin(active @ kernel))
    torch.sin(expected).sum().backward()

    def loss(module: Any) -> Any:
        y = module(jnp.asarray(np.moveaxis(x, 0, 2).reshape(2, 5, 24)))
        return jnp.sin(y).sum(), y

    gradient, y = nnx.jit(nnx.grad(loss, has_aux=True))(ours)
    want = expected.detach().numpy()
    assert relative(np.moveaxis(np.asarray(y).reshape(2, 5, 3, 8), 2, 0), want) < 1e-5
    pairs = {
        "router.kernel": theirs.modality_router.weight.grad.T, "router_norm.scale": theirs.router_norm.weight.grad,
        "prediction.kernel": theirs.prediction_coefs.weight.grad.T,
        "correction.kernel": theirs.correction_coefs.weight.grad.T, "block.kernel": kernel.grad,
    }  # fmt: skip
    found = {".".join(map(str, path)): value for path, value in nnx.to_flat_state(nnx.as_pure(gradient))}
    assert found.keys() == pairs.keys()
    assert {name: relative(found[name], value.numpy()) for name, value in pairs.items()} == pytest.approx(
        dict.fromkeys(pairs, 0.0), abs=1e-4
    )

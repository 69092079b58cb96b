"""Gated DeltaNet against transformers' Qwen3-Next (PyTorch path): its layer and its recurrence, random weights, no
download.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layers import GatedDeltaNet, assign
from pallas_kernels import delta_rule
from tests.layers.mixer_cases import relative
from tests.references.live import randomize, torch
from tests.tiers import tiered

pytestmark = pytest.mark.reference

transformers = pytest.importorskip("transformers", reason="the reference implementation needs transformers")
qwen3_next = pytest.importorskip(
    "transformers.models.qwen3_next.modeling_qwen3_next", reason="the reference implementation needs transformers"
)

FEATURES, HEADS, VALUE_HEADS, KEY, VALUE, EPSILON = 24, 2, 4, 6, 5, 1e-6
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def reference() -> Any:
    config = qwen3_next.Qwen3NextConfig(
        hidden_size=FEATURES, linear_num_key_heads=HEADS, linear_num_value_heads=VALUE_HEADS, linear_key_head_dim=KEY,
        linear_value_head_dim=VALUE,
        linear_conv_kernel_dim=4, num_hidden_layers=1, layer_types=["linear_attention"], rms_norm_eps=EPSILON,
    )  # fmt: skip
    layer = qwen3_next.Qwen3NextGatedDeltaNet(config, 0)
    with torch.no_grad():
        randomize(layer)
    return layer


def ours(reference: Any) -> GatedDeltaNet:
    """Our layer with its weights: there queries, keys, values and gates of a key head lie side by side, and one
    convolution serves three.
    """
    layer = GatedDeltaNet(
        FEATURES,
        num_heads=HEADS,
        num_value_heads=VALUE_HEADS,
        head_dim=KEY,
        value_expansion=VALUE / KEY,
        norm_epsilon=EPSILON,
        rngs=nnx.Rngs(0),
    )
    theirs = {name: value.numpy() for name, value in reference.state_dict().items()}
    per_head, widths = VALUE_HEADS // HEADS, [KEY, KEY, VALUE_HEADS // HEADS * VALUE]
    mixed = np.split(theirs["in_proj_qkvz.weight"].reshape(HEADS, -1, FEATURES), np.cumsum(widths), axis=1)
    beta, decay = np.split(theirs["in_proj_ba.weight"].reshape(HEADS, 2 * per_head, FEATURES), 2, axis=1)
    linear = dict(zip(("query", "key", "value", "gate", "beta", "decay"), (*mixed, beta, decay), strict=True))
    weights = {f"{name}.kernel": w.reshape(-1, FEATURES).T for name, w in linear.items()}
    convs = np.split(theirs["conv1d.weight"].transpose(2, 1, 0), [HEADS * KEY, 2 * HEADS * KEY], axis=2)
    weights |= {f"{name}_conv.kernel": w for name, w in zip(("query", "key", "value"), convs, strict=True)}
    weights |= {
        "A_log": theirs["A_log"],
        "dt_bias": theirs["dt_bias"],
        "norm.scale": theirs["norm.weight"],
        "out.kernel": theirs["out_proj.weight"].T,
    }
    assign(layer, {name: jnp.asarray(w) for name, w in weights.items()})
    return layer


@pytest.mark.parametrize("length", tiered([1, 37, 150], lambda length: length == 37))
def test_layer_and_its_gradient(reference: Any, length: int, record_property: Any) -> None:
    x = np.random.default_rng(1).standard_normal((2, length, FEATURES)).astype(np.float32)
    given = torch.from_numpy(x).requires_grad_()
    want = reference(given)
    torch.sin(want).sum().backward()
    graphdef, state = nnx.split(ours(reference))
    got, pull = jax.vjp(jax.jit(lambda x: nnx.merge(graphdef, state)(x)), jnp.asarray(x))
    difference = max(relative(got, want.detach().numpy()), relative(pull(jnp.cos(got))[0], given.grad.numpy()))
    name = f"transformers {transformers.__version__} Qwen3NextGatedDeltaNet, {length} tokens"
    mapped = len(reference.state_dict())
    record_property(
        "parity",
        {
            "architecture": "gated_delta_net (layer)",
            "reference": name,
            "kind": "live",
            "mapped": mapped,
            "difference": difference,
        },
    )
    assert difference < TOLERANCE


@pytest.mark.parametrize("form", ["torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"])
def test_op(form: str) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "q": rng.standard_normal((2, 70, HEADS, KEY)),
        "k": rng.standard_normal((2, 70, HEADS, KEY)),
        "v": rng.standard_normal((2, 70, VALUE_HEADS, VALUE)),
        "beta": rng.random((2, 70, VALUE_HEADS)),
        "decay": -0.3 * rng.exponential(size=(2, 70, VALUE_HEADS)),
        "initial_state": rng.standard_normal((2, VALUE_HEADS, KEY, VALUE)),
    }
    arrays["k"] /= np.linalg.norm(arrays["k"], axis=-1, keepdims=True)
    q, k, v, beta, g, start = (torch.from_numpy(x).float() for x in arrays.values())
    want, last = getattr(qwen3_next, form)(q, k, v, g=g, beta=beta, initial_state=start, output_final_state=True)
    got, state = jax.jit(lambda a: delta_rule(**a, return_state=True))(
        {n: jnp.asarray(x, jnp.float32) for n, x in arrays.items()}
    )
    assert relative(got, want.numpy()) < TOLERANCE
    assert relative(state, last.numpy()) < TOLERANCE

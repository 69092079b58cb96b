"""Lightning attention, the mLSTM and the RG-LRU against transformers' layers: random weights, no download."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layers import MLSTM, RGLRU, LightningAttention, Mixer, assign
from tests.layers.mixer_cases import relative
from tests.references.live import randomize, torch

pytestmark = pytest.mark.reference

transformers = pytest.importorskip("transformers", reason="the reference implementation needs transformers")
minimax = pytest.importorskip(
    "transformers.models.minimax.modeling_minimax", reason="the reference implementation needs transformers"
)
xlstm = pytest.importorskip(
    "transformers.models.xlstm.modeling_xlstm", reason="the reference implementation needs transformers"
)
recurrent_gemma = pytest.importorskip(
    "transformers.models.recurrent_gemma.modeling_recurrent_gemma",
    reason="the reference implementation needs transformers",
)

FEATURES, HEADS, LENGTH = 24, 4, 37
TOLERANCE = 5e-5


def kernels(layer: Any, names: dict[str, str]) -> dict[str, np.ndarray]:
    """A linear layer's arrays by our names."""
    made = {}
    for ours, theirs in names.items():
        module = layer.get_submodule(theirs)
        made[f"{ours}.kernel"] = module.weight.detach().numpy().T
        if module.bias is not None:
            made[f"{ours}.bias"] = module.bias.detach().numpy()
    return made


def compare(
    mixer: Mixer, call: Any, weights: dict[str, np.ndarray], record_property: Any, name: str, reference: str
) -> None:
    """Outputs and the gradient of the input."""
    assign(mixer, {key: jnp.asarray(value) for key, value in weights.items()})
    x = np.random.default_rng(1).standard_normal((2, LENGTH, FEATURES)).astype(np.float32)
    given = torch.from_numpy(x).requires_grad_()
    want = call(given)
    torch.sin(want).sum().backward()
    graph, state = nnx.split(mixer)
    got, pull = jax.vjp(jax.jit(lambda x: nnx.merge(graph, state)(x)), jnp.asarray(x))
    difference = max(relative(got, want.detach().numpy()), relative(pull(jnp.cos(got))[0], given.grad.numpy()))
    about = {
        "architecture": f"{name} (layer)",
        "reference": f"transformers {transformers.__version__} {reference}",
        "kind": "live",
    }
    record_property("parity", {**about, "mapped": len(weights), "difference": difference})
    assert difference < TOLERANCE


def test_lightning_attention(record_property: Any) -> None:
    config = minimax.MiniMaxConfig(
        hidden_size=FEATURES, num_attention_heads=HEADS, num_key_value_heads=HEADS, head_dim=6, num_hidden_layers=4,
        block_size=16,
        layer_types=["linear_attention"] * 4,
    )  # fmt: skip
    theirs = minimax.MiniMaxLightningAttention(config, 1)
    fixed = {name: value.clone() for name, value in theirs.named_buffers()}
    randomize(theirs)
    theirs.load_state_dict({**theirs.state_dict(), **fixed})
    weights = kernels(theirs, {"gate": "output_gate", "out": "out_proj"})
    fused = theirs.qkv_proj.weight.detach().numpy().reshape(HEADS, 3, 6, FEATURES)
    weights |= {
        f"{name}.kernel": fused[:, i].reshape(-1, FEATURES).T for i, name in enumerate(("query", "key", "value"))
    }
    weights["norm.scale"] = theirs.norm.weight.detach().numpy()
    options = {"activate_values": True, "sigmoid_gate": True, "use_scale": True}
    ours = LightningAttention(FEATURES, num_heads=HEADS, head_dim=6, index=1, depth=4, rngs=nnx.Rngs(0), **options)
    compare(
        ours,
        lambda x: theirs(x, None, None)[0],
        weights,
        record_property,
        "lightning_attention",
        "MiniMaxLightningAttention",
    )


def test_mlstm(record_property: Any) -> None:
    config = xlstm.xLSTMConfig(
        hidden_size=FEATURES,
        num_heads=HEADS,
        qk_dim_factor=1.0,
        num_hidden_layers=1,
        autocast_kernel_dtype="float32",
        chunk_size=16,
    )
    theirs = xlstm.xLSTMLayer(config)
    randomize(theirs)
    with torch.no_grad():
        theirs.igate_preact.weight.mul_(6)
        theirs.fgate_preact.weight.mul_(6)
    linear = {
        "query": "q",
        "key": "k",
        "value": "v",
        "gate": "ogate_preact",
        "input_gate": "igate_preact",
        "forget_gate": "fgate_preact",
        "out": "out_proj",
    }
    weights = {**kernels(theirs, linear), "norm.scale": theirs.multihead_norm.weight.detach().numpy()}
    ours = MLSTM(FEATURES, num_heads=HEADS, key_expansion=1.0, rngs=nnx.Rngs(0))
    compare(ours, lambda x: theirs(x)[0], weights, record_property, "mlstm", "xLSTMLayer")


def test_rg_lru(record_property: Any) -> None:
    config = recurrent_gemma.RecurrentGemmaConfig(
        hidden_size=FEATURES, lru_width=32, num_attention_heads=HEADS, num_hidden_layers=1
    )
    theirs = recurrent_gemma.RecurrentGemmaRecurrentBlock(config, 0)
    randomize(theirs)
    weights = kernels(theirs, {"input": "linear_x", "gate": "linear_y", "out_proj": "linear_out"})
    gates = theirs.rg_lru
    arrays = {
        "conv.bias": theirs.conv_1d.bias,
        "conv.kernel": theirs.conv_1d.weight.permute(2, 1, 0),
        "rates": gates.recurrent_param,
        "input_gate.kernel": gates.input_gate_weight,
        "input_gate.bias": gates.input_gate_bias.flatten(),
        "recurrence_gate.kernel": gates.recurrent_gate_weight,
        "recurrence_gate.bias": gates.recurrent_gate_bias.flatten(),
    }
    weights |= {name: value.detach().numpy() for name, value in arrays.items()}
    ours = RGLRU(FEATURES, num_heads=HEADS, channels=32, rngs=nnx.Rngs(0))
    places = torch.arange(LENGTH).expand(2, -1)
    compare(
        ours,
        lambda x: theirs(x, places, None, use_cache=False)[0],
        weights,
        record_property,
        "rg_lru",
        "RecurrentGemmaRecurrentBlock",
    )

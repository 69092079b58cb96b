"""Transformer-XL's attention against that of XLNet in transformers, which has its scores: random weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layers import TransformerXLAttention, assign
from tests.compilation import program
from tests.layers.mixer_cases import relative
from tests.references.live import torch

pytestmark = pytest.mark.reference

transformers = pytest.importorskip("transformers", reason="the reference implementation needs transformers")

FEATURES, HEADS, SEGMENT, MEMORY = 24, 3, 16, 9


@pytest.mark.parametrize("length", [1, 67])
def test_xlnet(length: int, record_property: Any) -> None:
    """Outputs and the gradient of the input, before the residual and the norm."""
    config = transformers.XLNetConfig(
        d_model=FEATURES, n_head=HEADS, d_inner=8, n_layer=1, vocab_size=5, attn_type="uni", dropout=0.0
    )
    model = transformers.XLNetModel(config).eval()
    theirs = model.layer[0].rel_attn
    rng = np.random.default_rng(0)
    for parameter in theirs.parameters():
        parameter.data = torch.from_numpy(0.3 * rng.standard_normal(tuple(parameter.shape)).astype(np.float32))
    arrays = {name: p.detach().numpy() for name, p in theirs.named_parameters()}
    names = {"query": "q", "key": "k", "value": "v", "distance": "r"}
    weights = {f"{ours}.kernel": arrays[name].reshape(FEATURES, -1) for ours, name in names.items()}
    weights |= {"out.kernel": arrays["o"].reshape(FEATURES, -1).T}
    weights |= {"content": arrays["r_w_bias"], "place": arrays["r_r_bias"]}
    ours = TransformerXLAttention(FEATURES, num_heads=HEADS, segment=SEGMENT, memory=MEMORY, rngs=nnx.Rngs(0))
    assign(ours, {name: jnp.asarray(value) for name, value in weights.items()})
    x = rng.standard_normal((2, length, FEATURES)).astype(np.float32)
    given = torch.from_numpy(x).requires_grad_()
    i, j = np.mgrid[:length, :length]
    hidden = (j > i) | (j < i // SEGMENT * SEGMENT - MEMORY)
    mask = torch.from_numpy(hidden[:, :, None, None].astype(np.float32))
    time_first = given.transpose(0, 1)
    heads = [torch.einsum("ibh,hnd->ibnd", time_first, getattr(theirs, name)) for name in "qkv"]
    places = model.relative_positional_encoding(length, length, bsz=2)
    found = theirs.rel_attn_core(*heads, torch.einsum("ibh,hnd->ibnd", places, theirs.r), attn_mask=mask)
    want = torch.einsum("ibnd,hnd->bih", found, theirs.o)
    torch.sin(want).sum().backward()
    got, pull = jax.vjp(program(ours), jnp.asarray(x))
    difference = max(relative(got, want.detach().numpy()), relative(pull(jnp.cos(got))[0], given.grad.numpy()))
    reference = f"transformers {transformers.__version__} XLNetRelativeAttention"
    about = {"architecture": "transformer_xl (layer)", "reference": reference, "kind": "live"}
    record_property("parity", {**about, "mapped": len(weights), "difference": difference})
    assert difference < 2e-5

"""Multi-head latent attention against transformers' layers: random weights, no download."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from layers import assign
from tests.compilation import program
from tests.layers.mixer_cases import relative
from tests.layers.test_latent import FEATURES, HEADS, inputs, make
from tests.references.live import randomize, torch

pytestmark = pytest.mark.reference

transformers = pytest.importorskip("transformers", reason="the reference implementation needs transformers")


@pytest.mark.parametrize("length", [1, 67])
@pytest.mark.parametrize(("version", "rank"), [("v2", None), ("v3", 5), ("kimi", None)])
def test_transformers(version: str, rank: int | None, length: int, record_property: Any) -> None:
    """Outputs and the gradient of the input of DeepSeek-V2's, DeepSeek-V3's and Kimi Linear's layers."""
    module, name = {
        "v2": (transformers.models.deepseek_v2.modeling_deepseek_v2, "DeepseekV2"),
        "v3": (transformers.models.deepseek_v3.modeling_deepseek_v3, "DeepseekV3"),
        "kimi": (transformers.models.kimi_linear.modeling_kimi_linear, "KimiLinear"),
    }[version]
    config = getattr(transformers, f"{name}Config")(
        hidden_size=FEATURES, num_attention_heads=HEADS, num_key_value_heads=HEADS, q_lora_rank=rank, kv_lora_rank=10,
        qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=6, num_hidden_layers=1, attn_implementation="eager",
    )  # fmt: skip
    theirs = getattr(module, f"{name}Attention")(config, 0)
    arrays = {key.removesuffix(".weight"): value for key, value in randomize(theirs).items()}
    weights = {
        "latent.kernel": arrays["kv_a_proj_with_mqa"].T,
        "latent_norm.scale": arrays["kv_a_layernorm"],
        "key_value.kernel": arrays["kv_b_proj"].T,
        "out.kernel": arrays["o_proj"].T,
    }
    weights |= (
        {"query.kernel": arrays["q_proj"].T}
        if rank is None
        else {
            "query.down.kernel": arrays["q_a_proj"].T,
            "query.activation.scale": arrays["q_a_layernorm"],
            "query.up.kernel": arrays["q_b_proj"].T,
        }
    )
    rotary = None if version == "kimi" else {"base": 10000.0, "interleaved": True}
    ours = make(query_latent_dim=rank, rotary=rotary)
    assign(ours, {key: jnp.asarray(value) for key, value in weights.items()})
    x = inputs(length)
    given = torch.from_numpy(x).requires_grad_()
    beside = {"attention_mask": torch.full((length, length), -torch.inf).triu(1)[None, None]}
    if rotary is not None:
        turn = getattr(module, f"{name}RotaryEmbedding")(config)
        beside["position_embeddings"] = turn(given, torch.arange(length)[None])
    want = theirs(given, **beside)[0]
    torch.sin(want).sum().backward()
    got, pull = jax.vjp(program(ours), jnp.asarray(x))
    difference = max(relative(got, want.detach().numpy()), relative(pull(jnp.cos(got))[0], given.grad.numpy()))
    reference = f"transformers {transformers.__version__} {name}Attention"
    about = {"architecture": "multi_head_latent_attention (layer)", "reference": reference, "kind": "live"}
    record_property("parity", {**about, "mapped": len(weights), "difference": difference})
    assert difference < 2e-5

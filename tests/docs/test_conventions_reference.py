"""The lines of docs/conventions.md about PyTorch, timm and transformers, measured in the versions tests install."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pallas_kernels
from layers import Tokens
from layers.attention.multi_head import MultiHeadAttention
from layers.norm import BatchNorm
from layers.position import Rotary, resample_table
from tests.references.live import timm, torch

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.reference


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_rotary_of_llama_and_gptj() -> None:
    from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb as of_gptj
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as of_llama

    x, positions = normal(1, 5, 2, 8), np.arange(5)[None]
    angles = torch.tensor(positions[..., None] * Rotary().frequencies(4), dtype=torch.float32)
    heads_first = torch.tensor(x).transpose(1, 2)
    llama, _ = of_llama(heads_first, heads_first, angles.cos().repeat(1, 1, 2), angles.sin().repeat(1, 1, 2))
    gptj = of_gptj(torch.tensor(x), angles.sin(), angles.cos())
    np.testing.assert_allclose(Rotary()(x, positions), llama.transpose(1, 2), atol=1e-6)
    np.testing.assert_allclose(Rotary(interleaved=True)(x, positions), gptj, atol=1e-6)


def test_positions_of_roberta() -> None:
    config = transformers.RobertaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, pad_token_id=1,
        max_position_embeddings=40, is_decoder=True, initializer_range=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.RobertaForCausalLM(config).eval()
    tokens, seen = torch.arange(4, 16)[None], []
    model.roberta.embeddings.position_embeddings.register_forward_pre_hook(lambda _, places: seen.append(places[0][0]))
    with torch.no_grad():
        model(tokens)
        model.generate(tokens, max_new_tokens=1, pad_token_id=1, eos_token_id=None)
    assert [places.tolist() for places in seen] == [list(range(2, 14)), list(range(12))]


def test_norms_of_queries() -> None:
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}
    scales, positions, moved = torch.linspace(0.5, 1.5, 8), torch.arange(12)[None], {}
    for name in ("Qwen3", "HunYuanDenseV1"):
        config = getattr(transformers, name + "Config")(
            **sizes, num_key_value_heads=2, intermediate_size=16, initializer_range=0.5, pad_token_id=0
        )
        torch.manual_seed(0)
        model = getattr(transformers, name + "Model")(config).eval()
        with torch.no_grad():
            for part, weight in model.named_parameters():
                if part.endswith(("q_norm.weight", "k_norm.weight", "query_layernorm.weight", "key_layernorm.weight")):
                    weight.copy_(scales)
            here, there = (model(positions + 4, position_ids=positions + shift)[0] for shift in (0, 9))
        moved[name] = float((here - there).abs().max())
    ours = MultiHeadAttention(16, num_heads=2, qk_norm="rms", rotary=10000.0, rngs=nnx.Rngs(0))
    ours.query_norm.scale[...] = ours.key_norm.scale[...] = jnp.asarray(scales.numpy())
    x = normal(1, 12, 16)
    moved["ours"] = float(jnp.abs(ours(x) - ours(x, Tokens(positions=positions.numpy() + 9))).max())
    assert moved.pop("HunYuanDenseV1") > 1e-2
    assert max(moved.values()) < 1e-4


def test_gelu_of_torch() -> None:
    x = np.linspace(-4, 4, 81, dtype=np.float32)
    exact = torch.nn.functional.gelu(torch.tensor(x)).numpy()
    np.testing.assert_allclose(jax.nn.gelu(x, approximate=False), exact, atol=1e-6)
    assert np.abs(jax.nn.gelu(x) - exact).max() > 1e-4


def test_epsilon_of_torch() -> None:
    assert (torch.nn.LayerNorm(4).eps, torch.nn.RMSNorm(4).eps, torch.nn.BatchNorm2d(4).eps) == (1e-5, None, 1e-5)


def test_epsilon_of_released_families() -> None:
    config = transformers.AutoConfig.for_model
    released = {name: config(name).layer_norm_eps for name in ("vit", "bert", "convnext", "dinov2")}
    assert released == {"vit": 1e-12, "bert": 1e-12, "convnext": 1e-12, "dinov2": 1e-6}
    vit = timm.create_model("vit_tiny_patch16_224", depth=1)
    assert vit.norm.eps == 1e-6


def test_momentum_of_torch() -> None:
    x = np.asarray([[0.0], [2.0]], np.float32)
    theirs, ours = torch.nn.BatchNorm1d(1), BatchNorm(1, rngs=nnx.Rngs(0))
    theirs(torch.tensor(x))
    ours.train()
    ours(jnp.asarray(x))
    assert theirs.momentum == pytest.approx(0.1)
    np.testing.assert_allclose(ours.mean[...], theirs.running_mean, rtol=1e-6)
    np.testing.assert_allclose(theirs.running_var, [0.9 * 1 + 0.1 * 2])  # of n - 1 numbers


def test_empty_rows_in_torch() -> None:
    x = torch.tensor(normal(1, 1, 2, 4))
    mask = torch.tensor([[[[True, False], [False, False]]]])
    out = torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)
    assert not out[0, 0, 1].any()


def test_masks_of_torch_layers() -> None:
    """True hides in ``MultiheadAttention`` and shows in ``scaled_dot_product_attention``."""
    x, hidden = torch.tensor(normal(1, 2, 4)), torch.tensor([[False, True], [False, True]])
    layer = torch.nn.MultiheadAttention(4, 1, batch_first=True).eval()
    assert layer(x, x, x, attn_mask=hidden)[1][0].tolist() == [[1, 0], [1, 0]]
    out = torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=~hidden)
    np.testing.assert_allclose(out[0], x[0, :1].expand(2, 4))


def test_window_of_mistral() -> None:
    from transformers.masking_utils import sliding_window_overlay

    sees = [key for key in range(11) if bool(sliding_window_overlay(4)(0, 0, 10, key))]
    assert sees == [7, 8, 9, 10]
    weights = pallas_kernels.attention(
        jnp.zeros((1, 11, 1, 8)), jnp.zeros((1, 11, 1, 8)), jnp.eye(11)[None, :, None], causal=True, window=(3, None)
    )
    assert np.flatnonzero(weights[0, 10, 0]).tolist() == sees


def test_window_of_longformer() -> None:
    config = transformers.LongformerConfig(
        attention_window=[4], num_hidden_layers=1, hidden_size=8, num_attention_heads=1, intermediate_size=8,
        vocab_size=9, max_position_embeddings=40, attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0,
    )  # fmt: skip
    model = transformers.LongformerModel(config).eval()
    with torch.no_grad():
        base, changed = torch.full((1, 16), 3), torch.full((1, 16), 3)
        changed[0, 8] = 5
        moved = (model(base).last_hidden_state != model(changed).last_hidden_state).any(-1)[0]
    assert moved.nonzero().ravel().tolist() == [6, 7, 8, 9, 10]


def test_layout_of_timms_qkv() -> None:
    layer = timm.models.vision_transformer.Attention(8, num_heads=2, qkv_bias=False).eval()
    x = torch.tensor(normal(1, 3, 8))
    weight = layer.qkv.weight.reshape(3, 2, 4, 8)  # the three, heads, features of a head
    q, k, v = torch.einsum("thdc,bnc->tbhnd", weight, x)
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, 3, 8)
    np.testing.assert_allclose(layer.proj(out).detach(), layer(x).detach(), atol=1e-6)


def test_layout_of_gpt_neox_qkv() -> None:
    from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXAttention

    config = transformers.GPTNeoXConfig(
        hidden_size=8, num_attention_heads=2, rotary_pct=0.5, attn_implementation="eager"
    )
    layer = GPTNeoXAttention(config, 0).eval()
    x = torch.tensor(normal(1, 3, 8))
    still = (torch.ones(1, 3, 2), torch.zeros(1, 3, 2))  # angles of zero
    weight = layer.query_key_value.weight.reshape(2, 3, 4, 8)  # heads, the three, features of a head
    bias = layer.query_key_value.bias.reshape(2, 3, 1, 1, 4).transpose(0, 1)
    q, k, v = (torch.einsum("htdc,bnc->thbnd", weight, x) + bias).transpose(1, 2)
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, 3, 8)
    found = layer(x, attention_mask=None, position_embeddings=still)[0]
    np.testing.assert_allclose(layer.dense(out).detach(), found.detach(), atol=1e-6)


def test_layout_of_gpt2_weights() -> None:
    from transformers.pytorch_utils import Conv1D

    assert tuple(Conv1D(12, 4).weight.shape) == (4, 12)
    assert tuple(torch.nn.Linear(4, 12).weight.shape) == (12, 4)


def test_resampling_of_torch() -> None:
    table = normal(4, 4, 1)
    plain, wide = (
        torch.nn.functional.interpolate(torch.tensor(table[None, ..., 0][None]), (9, 9), mode="bicubic", antialias=a)
        for a in (False, True)
    )
    np.testing.assert_allclose(
        resample_table(jnp.asarray(table), (9, 9), antialias=False)[..., 0], plain[0, 0], atol=1e-5
    )
    np.testing.assert_allclose(jax.image.resize(table[..., 0], (9, 9), "bicubic"), wide[0, 0], atol=1e-5)
    assert (plain - wide).abs().max() > 0.05


def test_scales() -> None:
    """T5's scores are not divided."""
    config = transformers.T5Config(d_model=8, d_kv=4, num_heads=2, num_layers=1, vocab_size=9)
    layer = transformers.models.t5.modeling_t5.T5Attention(
        config, has_relative_attention_bias=False, layer_idx=0
    ).eval()
    x = torch.tensor(normal(1, 3, 8))
    q, k, v = (part(x).reshape(1, 3, 2, 4).transpose(1, 2) for part in (layer.q, layer.k, layer.v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2).reshape(1, 3, 8)
    np.testing.assert_allclose(layer.o(out).detach(), layer(x)[0].detach(), atol=1e-5)


def test_weight_decay_of_torch() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([weight], lr=0.5)
    weight.grad = torch.zeros(1)
    optimizer.step()
    np.testing.assert_allclose(weight.detach(), [1 - 0.5 * 0.01], rtol=1e-6)


def test_clipping() -> None:
    """By the norm of all gradients at once: alike but for PyTorch's 1e-6 beside the norm."""
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3e-6, 4e-6])
    torch.nn.utils.clip_grad_norm_([weight], 1e-6)
    clipped, _ = optax.clip_by_global_norm(1e-6).update({"w": jnp.asarray([3e-6, 4e-6])}, optax.EmptyState())
    np.testing.assert_allclose(clipped["w"], [6e-7, 8e-7], rtol=1e-5)
    np.testing.assert_allclose(weight.grad, [5e-7, 4e-6 / 6], rtol=1e-4)


def test_variance() -> None:
    assert torch.var(torch.tensor([0.0, 2.0])) == 2
    assert jnp.var(jnp.asarray([0.0, 2.0])) == 1

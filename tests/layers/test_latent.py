"""Multi-head latent attention: its two forms, its cache, adapters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layers import MultiHeadLatentAttention, add_lora

FEATURES, HEADS = 24, 3
SIZES: dict[str, Any] = {"head_dim": 8, "value_dim": 6, "latent_dim": 10, "rotary_dim": 4, "num_heads": HEADS}


def make(**options: Any) -> MultiHeadLatentAttention:
    given = {"kernel_init": nnx.initializers.normal(0.3), "causal": True, "rngs": nnx.Rngs(0), **SIZES, **options}
    return MultiHeadLatentAttention(FEATURES, **given)


def inputs(length: int) -> np.ndarray:
    return np.random.default_rng(length).standard_normal((2, length, FEATURES)).astype(np.float32)


@pytest.mark.parametrize("length", [1, pytest.param(67, marks=pytest.mark.full)])
def test_both_forms_are_equal(length: int) -> None:
    """With adapters, whose product the absorbed form must not leave out; and so are their gradients."""
    x, found = jnp.asarray(inputs(length)), []
    for form in ("expanded", "absorbed"):
        mixer = add_lora(make(form=form), rank=2, patterns=["key_value"])
        mixer.key_value.lora_b[...] = jnp.asarray(inputs(21).reshape(2, -1)[:, : HEADS * 14] / 4)
        graph, state = nnx.split(mixer)
        run = lambda state, x, graph=graph: nnx.merge(graph, state)(x)  # noqa: E731
        y, pull = jax.jit(lambda state, x, run=run: jax.vjp(run, state, x))(state, x)
        found.append((y, *jax.tree.leaves(pull(jnp.cos(y)))))
    scale = max(float(jnp.abs(a).max()) for a in found[0])
    assert max(float(jnp.abs(a - b).max()) for a, b in zip(*found, strict=True)) < 1e-5 * scale


def test_a_cache_holds_latents() -> None:
    """The paper's sizes: 512 + 64 numbers a token, where keys and values of 128 heads were 40,960."""
    sizes = {"num_heads": 128, "head_dim": 128}
    mixer = nnx.eval_shape(lambda: MultiHeadLatentAttention(FEATURES, **sizes, causal=True, rngs=nnx.Rngs(0)))
    state = jax.eval_shape(lambda: mixer.init_state(1, 1000))
    assert state.latent.size + state.key.size == 1000 * (512 + 64)
    with pytest.raises(ValueError, match="a cache of latents needs max_length"):
        mixer.init_state(1)


def test_the_form_with_fewer_products() -> None:
    """One token after many is read in the absorbed form, a long prompt in the other."""
    mixer = make()
    texts = {n: str(jax.make_jaxpr(mixer.extend)(jnp.asarray(inputs(n)), mixer.init_state(2, 64))) for n in (1, 40)}
    expanded = f"2,64,{HEADS},14]"  # keys and values of all heads
    assert expanded not in texts[1]
    assert expanded in texts[40]

"""Mixtures of experts as channel mixers of any causal model: where they are, what they report, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from layers import AuxLoss, GatedMLP, MixtureOfExperts, collecting
from zoo.creation import create_abstract

SIZES: dict[str, Any] = {"vocab_size": 11, "features": 8, "depth": 4, "num_heads": 2, "hidden": 12}
EXPERTS = {"name": "experts", "num_experts": 4, "chosen": 2, "hidden": 6}


def test_a_pattern_says_which_blocks_have_experts() -> None:
    """In a model of another family too; the width of an expert is its own, and of an MLP the model's."""
    model = create_abstract("transformer_nano", **SIZES, mlp_pattern=("swiglu", EXPERTS))
    channels = [block.channel for block in model.blocks]
    assert [type(channel) for channel in channels] == [GatedMLP, MixtureOfExperts] * 2
    assert channels[0].up.kernel.shape == (8, 12)
    assert channels[1].experts.up.kernel.shape == (4, 8, 6)
    first = create_abstract("transformer_nano", **SIZES, mlp=EXPERTS, mlp_pattern={"0": "swiglu"})
    assert [isinstance(block.channel, MixtureOfExperts) for block in first.blocks] == [False, True, True, True]


def test_the_losses_of_all_blocks_are_found() -> None:
    model: Any = zoo.create("transformer_nano", **{**SIZES, "depth": 2}, mlp=EXPERTS)
    tokens = np.random.default_rng(0).integers(0, 11, (2, 9))
    with collecting(AuxLoss) as sown:
        model(jnp.asarray(tokens))
    found = sown.named(model)
    assert set(found) == {f"blocks.{i}.channel.load_balance" for i in range(2)}
    # Of a router that has not learned, the mean score of every expert is about a quarter.
    assert sum(found.values()) == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mlp": "expert"}, "unknown channel mixer 'expert': did you mean 'experts'?"),
        ({"mlp": "experts"}, "how many experts?"),
        ({"mlp": EXPERTS, "mlp_bias": True}, "experts have no biases"),
        ({"mlp": {**EXPERTS, "top_k": 2}}, "channel mixer 'experts' has no option 'top_k'"),
    ],
)
def test_what_can_not_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        create_abstract("transformer_nano", **SIZES, **options)

"""Mixtures of experts against their equation in float64, both forms of the same sum, what is reported, and what
training corrects.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layers import AuxLoss, Diagnostic, MixtureOfExperts, collecting
from layers.initializers import normal
from layers.state import flatten
from tests.compilation import program
from tests.layers.mixer_cases import relative

FEATURES, HIDDEN = 6, 5
RNG = np.random.default_rng(0)
SIGMOID = {
    "num_experts": 8, "chosen": 3, "scores": "sigmoid", "normalized": True, "corrected": True, "groups": 4,
    "chosen_groups": 2, "scale": 2.5, "shared": 2,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "softmax": {"num_experts": 5, "chosen": 2},
    "normalized": {"num_experts": 4, "chosen": 4, "normalized": True},
    "sigmoid": SIGMOID,
}


def made(**options: Any) -> MixtureOfExperts:
    mixer = MixtureOfExperts(FEATURES, HIDDEN, kernel_init=normal(0.7), **options, rngs=nnx.Rngs(0))
    if mixer.correction is not None:
        mixer.correction[...] = jnp.asarray(RNG.uniform(-0.5, 0.5, mixer.num_experts), jnp.float32)
    mixer.eval()
    return mixer


def by_equation(mixer: MixtureOfExperts, x: np.ndarray) -> tuple[np.ndarray, list[set[int]]]:
    """Token by token, and which experts each has."""
    wide = {name: np.asarray(leaf, np.float64) for name, leaf in flatten(mixer).items()}
    bias = wide.get("correction", 0)

    def mlp(token: np.ndarray, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
        h = token @ gate
        return (h / (1 + np.exp(-h)) * (token @ up)) @ down

    out, sets = np.zeros(x.shape), []
    for place in np.ndindex(x.shape[:-1]):
        token = x[place].astype(np.float64)
        logits = token @ wide["router.kernel"]
        s = np.exp(logits) / np.exp(logits).sum() if mixer.scores == "softmax" else 1 / (1 + np.exp(-logits))
        groups = (s + bias).reshape(mixer.groups, -1)
        best = np.argsort(-np.sort(groups, 1)[:, -2:].sum(1))[: mixer.chosen_groups]
        ranked = np.where(np.isin(np.arange(mixer.groups), best)[:, None], groups, -np.inf).reshape(-1)
        chosen = np.argsort(-ranked)[: mixer.chosen]
        weights = s[chosen] / (s[chosen].sum() if mixer.normalized else 1) * mixer.scale
        out[place] = sum(
            w * mlp(token, *(wide[f"experts.{name}.kernel"][e] for name in ("gate", "up", "down")))
            for w, e in zip(weights, chosen, strict=True)
        )
        if mixer.shared is not None:
            out[place] += mlp(token, *(wide[f"shared.{name}.kernel"] for name in ("gate", "up", "down")))
        sets.append(set(chosen.tolist()))
    return out, sets


@pytest.mark.parametrize("case", CASES)
def test_both_forms_are_the_equation(case: str) -> None:
    """Outputs and chosen experts; of 11 tokens and few experts some blocks are full and some experts have none."""
    mixer = made(**CASES[case])
    x = RNG.standard_normal((1, 11, FEATURES)).astype(np.float32)
    expected, sets = by_equation(mixer, x)
    assert [set(row.tolist()) for row in np.asarray(mixer.route(jnp.asarray(x[0]))[1])] == sets
    for form in ("every", "blocks"):
        mixer.experts.form = form  # type: ignore[assignment]
        assert relative(program(mixer)(x), expected) < 1e-5


@pytest.mark.full
@pytest.mark.parametrize(("tokens", "experts", "chosen"), [(1, 8, 2), (40, 3, 2), (150, 4, 1), (23, 16, 2)])
def test_gradients_of_both_forms_are_one(tokens: int, experts: int, chosen: int) -> None:
    """Of every parameter and of the input, with many blocks an expert, one, or none."""
    mixer = made(num_experts=experts, chosen=chosen)
    x = jnp.asarray(RNG.standard_normal((tokens, FEATURES)), jnp.float32)[None]
    graph, params = nnx.split(mixer)
    found = []
    for form in ("every", "blocks"):

        def loss(params: Any, x: jax.Array, form: Any = form) -> jax.Array:
            module = nnx.merge(graph, params, copy=True)
            module.experts.form = form
            return jnp.sum(jnp.sin(module(x)))

        found.append(jax.tree.leaves(jax.jit(jax.grad(loss, (0, 1)))(params, x)))
    for every, blocks in zip(*found, strict=True):
        assert relative(blocks, every) < 1e-5


def test_loads_count_real_tokens() -> None:
    """Padding, which may hold anything, changes neither figures nor other tokens."""
    mixer = made(num_experts=4, chosen=2)
    x = RNG.standard_normal((2, 6, FEATURES)).astype(np.float32)
    mask = np.arange(6) < np.array([[6], [2]])
    with collecting(AuxLoss, Diagnostic) as sown:
        mixer(jnp.asarray(np.where(mask[..., None], x, np.nan)), jnp.asarray(mask))
    found = sown.named(mixer)
    tokens = x[mask][None]
    _, sets = by_equation(mixer, tokens)
    used = np.array([sum(e in chosen for chosen in sets) for e in range(4)]) / len(sets)
    logits = tokens[0] @ np.asarray(mixer.router.kernel[...])
    mean = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)).mean(0)
    np.testing.assert_allclose(found["load"], used / 2, rtol=1e-6)
    np.testing.assert_allclose(found["load_balance"], 4 * (used * mean).sum(), rtol=1e-5)
    assert found["chosen"].shape == (2, 6, 2)


def test_training_corrects_the_scores() -> None:
    """That of an expert with less than its share rises by the rate, that of one with more falls; evaluation changes
    none.
    """
    mixer = made(num_experts=6, chosen=2, scores="sigmoid", corrected=True, correction_rate=0.25)
    assert mixer.correction is not None
    before = np.asarray(mixer.correction[...])
    x = RNG.standard_normal((1, 30, FEATURES)).astype(np.float32)
    used = np.bincount(np.concatenate([list(chosen) for chosen in by_equation(mixer, x)[1]]), minlength=6)
    mixer(x)
    np.testing.assert_array_equal(mixer.correction[...], before)
    mixer.train()
    mixer(x)
    np.testing.assert_allclose(mixer.correction[...], before + 0.25 * np.sign(10 - used), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_experts": 4, "chosen": 5}, "of 4 experts 5 can't be chosen"),
        ({"num_experts": 6, "groups": 4}, "4 of 4 groups of 6 experts can't be chosen"),
        ({"num_experts": 4, "scores": "tanh"}, 'scores is "softmax" or "sigmoid"'),
    ],
)
def test_what_can_not_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**options)


@pytest.mark.full
@pytest.mark.reference
@pytest.mark.parametrize("name", ["DeepseekV3", "Mixtral"])
def test_transformers(name: str, record_property: Any) -> None:
    """Outputs and the gradient of the input of DeepSeek-V3's and Mixtral's layers."""
    from tests.references.live import randomize, torch

    transformers = pytest.importorskip("transformers", reason="the reference implementation needs transformers")
    sizes: dict[str, Any] = {"hidden_size": FEATURES, "num_hidden_layers": 1}
    if name == "DeepseekV3":
        from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE as Layer

        sizes |= {"moe_intermediate_size": HIDDEN, "n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4}
        sizes |= {"topk_group": 2, "routed_scaling_factor": 2.5, "n_shared_experts": 2}
        options = SIGMOID
    else:
        from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock as Layer

        sizes |= {"intermediate_size": HIDDEN, "num_local_experts": 5, "num_experts_per_tok": 2}
        options = {"num_experts": 5, "chosen": 2, "normalized": True}
    theirs = Layer(getattr(transformers, f"{name}Config")(**sizes, experts_implementation="eager"))
    randomize(theirs)
    with torch.no_grad():
        for value in theirs.parameters():
            value.copy_(torch.from_numpy(RNG.standard_normal(tuple(value.shape)).astype(np.float32)) * 0.5)
    arrays = {key: value.detach().numpy() for key, value in theirs.state_dict().items()}
    ours = made(**options)
    gate, up = np.split(arrays["experts.gate_up_proj"], 2, axis=1)
    parts = {"gate": gate, "up": up, "down": arrays["experts.down_proj"]}
    weights = {f"experts.{part}.kernel": value for part, value in parts.items()}
    weights["router.kernel"] = arrays["gate.weight"]
    if name == "DeepseekV3":
        weights |= {
            f"shared.{part}.kernel": arrays[f"shared_experts.{part}_proj.weight"] for part in ("gate", "up", "down")
        }
    from layers import assign

    turned = {key: jnp.asarray(np.swapaxes(value, -1, -2)) for key, value in weights.items()}
    if name == "DeepseekV3":
        turned["correction"] = jnp.asarray(arrays["gate.e_score_correction_bias"])
    assign(ours, turned)
    x = RNG.standard_normal((2, 9, FEATURES)).astype(np.float32)
    given = torch.from_numpy(x).requires_grad_()
    want = theirs(given)
    torch.sin(want).sum().backward()
    got, pull = jax.vjp(program(ours), jnp.asarray(x))
    difference = max(relative(got, want.detach().numpy()), relative(pull(jnp.cos(got))[0], given.grad.numpy()))
    about = {"reference": f"transformers {transformers.__version__} {type(theirs).__name__}", "kind": "live"}
    about["architecture"] = "mixture of experts (layer)"
    record_property("parity", {**about, "mapped": len(turned), "difference": difference})
    assert difference < 1e-5

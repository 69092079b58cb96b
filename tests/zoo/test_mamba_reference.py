"""Mamba and Mamba-2 against transformers' PyTorch path: random weights mapped by name, float32, no download."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo
from layers import assign, flatten
from layers.state import flatten_state
from tests.references.live import same_bits, torch, without_arrays
from tests.tiers import tiered
from zoo.weights import export, load

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
DEPTH = 2
SIZES = {"vocab_size": 61, "features": 32, "depth": DEPTH}


def _difference(a: Any, b: Any) -> float:
    return float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max())


def _reference(kind: str) -> Any:
    """A small transformers model whose every parameter is random: their initialization leaves A and D at constants."""
    torch.manual_seed(0)
    common = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": DEPTH, "pad_token_id": 0}
    if kind == "mamba":
        config = transformers.MambaConfig(**common, state_size=8, time_step_rank=5)
        model = transformers.MambaForCausalLM(config)
    else:
        groups = (
            {"n_groups": 8, "tie_word_embeddings": False}
            if kind == "codestral"
            else {"n_groups": 2, "tie_word_embeddings": True}
        )
        config = transformers.Mamba2Config(**common, num_heads=8, head_dim=8, state_size=16, chunk_size=16, **groups)
        model = transformers.Mamba2ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def _ours(kind: str) -> nnx.Module:
    mamba2 = {"head_dim": 8, "state_dim": 16, "groups": 2}
    sizes = {
        "mamba": {"state_dim": 8, "step_rank": 5},
        "mamba2": mamba2,
        "codestral": {**mamba2, "groups": 8, "tied": False},
    }
    return zoo.create("mamba_nano" if kind == "mamba" else "mamba2_nano", **SIZES, **sizes[kind])


# Codestral's layout: Mamba-2 with eight groups and a head of its own.
KINDS = tiered(["mamba", "mamba2", "codestral"], lambda kind: kind != "codestral")


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest) -> tuple[Any, nnx.Module]:
    reference = _reference(request.param)
    weights = {name: value.detach().numpy() for name, value in reference.state_dict().items()}
    return reference, load(_ours(request.param), weights, naming="hf")


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 61, (2, 45))


@pytest.mark.parametrize("naming", tiered(["hf", "state_spaces"], lambda naming: naming == "hf"))
def test_logits_and_gradients(pair: Any, tokens: np.ndarray, naming: str, record_property: Any) -> None:
    """Logits, every block's output, and the gradient of every parameter, by its released name; the file in both
    namings, whose arrays are the same.
    """
    reference, model = pair
    plural = {name: value.detach().numpy() for name, value in reference.state_dict().items()}
    file = (
        plural if naming == "hf" else {name.replace("embeddings", "embedding"): value for name, value in plural.items()}
    )
    assign(model, {name: jnp.zeros_like(leaf) for name, leaf in flatten(model).items()})
    load(model, file)
    assert same_bits(export(model, naming=naming), file)
    weights = np.random.default_rng(1).standard_normal((2, 45, 61)).astype(np.float32)
    reference.zero_grad()
    out = reference(torch.from_numpy(tokens), output_hidden_states=True)
    (out.logits * torch.from_numpy(weights)).sum().backward()

    def outputs(m: Any) -> Any:
        logits = m(jnp.asarray(tokens))
        return (logits * weights).sum(), (logits, m.features(jnp.asarray(tokens), range(DEPTH)))

    if naming == "hf":
        grads, (logits, features) = nnx.jit(nnx.grad(outputs, has_aux=True))(model)
        carrier = nnx.clone(model)
        assign(carrier, flatten_state(grads))
        ours = export(carrier, naming="hf")
        pairs = {name: (ours[name], parameter.grad) for name, parameter in reference.named_parameters()}
    else:
        (_, (logits, features)), pairs = nnx.jit(outputs)(model), {}
    pairs |= {
        "logits": (logits, out.logits),
        **{f"block {i}": (feature, out.hidden_states[i]) for i, feature in enumerate(features)},
    }
    differences = {name: _difference(found, expected.detach().numpy()) for name, (found, expected) in pairs.items()}
    untied = "" if model.config.tied else " (untied, 8 groups)"
    name = f"transformers {transformers.__version__} {type(reference).__name__}{untied}, {naming} names"
    row = {
        "architecture": model.variant,
        "reference": name,
        "kind": "live",
        "mapped": len(file),
        "difference": max(differences.values()),
    }
    record_property("parity", row)
    assert max(differences.values()) < TOLERANCE, differences


def test_state_spaces_names(pair: Any) -> None:
    """The original files call the embedding's table in the singular and may leave out a tied head."""
    reference, model = pair
    weights = {
        name.replace("embeddings", "embedding"): value.detach().numpy()
        for name, value in reference.state_dict().items()
    }
    if model.config.tied:
        del weights["lm_head.weight"]
    assign(model, {"embedding.embedding": jnp.zeros_like(model.embedding.embedding[...])})
    load(model, weights)
    np.testing.assert_array_equal(model.embedding.embedding[...], weights["backbone.embedding.weight"])
    exported = export(model, naming="state_spaces")
    assert all(np.array_equal(exported[name], weight) for name, weight in weights.items())


RELEASED = {
    "mamba_130m": (768, 24),
    "mamba_370m": (1024, 48),
    "mamba_790m": (1536, 48),
    "mamba_1.4b": (2048, 48),
    "mamba_2.8b": (2560, 64),
    "mamba2_130m": (768, 24),
    "mamba2_370m": (1024, 48),
    "mamba2_780m": (1536, 48),
    "mamba2_1.3b": (2048, 48),
    "mamba2_2.7b": (2560, 64),
}


@pytest.mark.parametrize("name", RELEASED)
def test_parameter_counts(name: str) -> None:
    """Those of transformers' models with the released hyper-parameters, from shapes alone; every further block adds the
    same number.
    """
    width, depth = RELEASED[name]

    def theirs(blocks: int) -> int:
        common = {"hidden_size": width, "num_hidden_layers": blocks}
        with without_arrays():
            if name.startswith("mamba2"):
                heads = {
                    "num_heads": 2 * width // 64,
                    "head_dim": 64,
                    "state_size": 128,
                    "n_groups": 1,
                    "tie_word_embeddings": True,
                }
                model = transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**common, **heads, vocab_size=50288))
            else:
                model = transformers.MambaForCausalLM(transformers.MambaConfig(**common, vocab_size=50280))
        return sum(parameter.numel() for parameter in model.parameters())

    one, two = theirs(1), theirs(2)
    assert zoo.variant(name).parameters == one + (depth - 1) * (two - one)

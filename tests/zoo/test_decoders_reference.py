"""Decoders against transformers: random weights mapped by name, float32, no download."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo
from layers import assign, parameter_count
from layers.state import flatten_state
from tests.references.live import randomise, relative, released, same_bits, torch
from tests.tiers import tiered
from zoo.registry import abstract, variant
from zoo.weights import export

transformers = pytest.importorskip("transformers", reason="the reference implementation needs transformers")

pytestmark = pytest.mark.reference

TOLERANCE = 1e-5
VOCABULARY, DEPTH, LENGTH = 61, 2, 19
TOKENS = np.random.default_rng(1).integers(0, VOCABULARY, (2, LENGTH))
OURS: dict[str, Any] = {"vocab_size": VOCABULARY, "features": 32, "depth": DEPTH, "num_heads": 4}
NO_ENDS: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}

# Name of a family's variant, how transformers makes a small model of its kind, and how we do. What the file's description
# says is not given to ours.
CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "gpt2": ("gpt2", "GPT2LMHeadModel", {"n_embd": 32, "n_layer": DEPTH, "n_head": 4, "n_positions": 40}, {"max_length": 40}),
}
QUICK = {"gpt2"}


def theirs_of(case: str) -> Any:
    """The model of transformers, with random weights."""
    _, name, sizes, _ = CASES[case]
    cls = getattr(transformers, name)
    model = cls(cls.config_class(**NO_ENDS, **sizes, attn_implementation="eager"))
    randomise(model)
    return model


@pytest.fixture(scope="module", params=tiered(CASES, QUICK.__contains__))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Mapping[str, np.ndarray], Any]:
    """Theirs, the arrays of its file, and ours with the file's weights."""
    folder = tmp_path_factory.mktemp(request.param)
    theirs = theirs_of(request.param)
    file = released(theirs, folder)
    name, _, _, sizes = CASES[request.param]
    with warnings.catch_warnings(action="ignore"):
        ours = zoo.create(name, weights=folder, **{**OURS, **sizes})
    return theirs, file, ours


def test_logits_features_and_gradients(pair: Any, record_property: Any) -> None:
    """Logits, every block's output and the gradient of every parameter, by its released name; the file comes back bit for bit."""
    theirs, file, ours = pair
    assert same_bits(export(ours), file)
    theirs.zero_grad()
    out = theirs(torch.from_numpy(TOKENS), output_hidden_states=True)
    torch.sin(out.logits).sum().backward()

    @nnx.jit
    def run(model: Any) -> Any:
        def loss(model: Any) -> Any:
            logits = model(jnp.asarray(TOKENS))
            return jnp.sin(logits).sum(), logits

        return *nnx.grad(loss, has_aux=True)(model), model.features(jnp.asarray(TOKENS), range(DEPTH), norm=True)

    gradients, logits, features = run(ours)
    carrier = nnx.clone(ours)
    assign(carrier, flatten_state(gradients))
    by_name = export(carrier)
    named = {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()}
    assert named.keys() == by_name.keys()
    scale = max(float(np.abs(gradient).max()) for gradient in named.values())
    assert {name: g for name, gradient in named.items() if (g := np.abs(by_name[name] - gradient).max() / scale) > TOLERANCE} == {}
    # The last of theirs is normed, the others are not.
    differences = [relative(logits, out.logits.detach().numpy()), relative(features[-1], out.hidden_states[-1].detach().numpy())]
    reference = f"transformers {transformers.__version__} {type(theirs).__name__}"
    record_property("parity", {"architecture": ours.variant, "reference": reference, "kind": "live", "mapped": len(file), "difference": max(differences)})
    assert max(differences) < TOLERANCE


def test_generation(pair: Any) -> None:
    """Greedy continuations, through caches on both sides."""
    theirs, _, ours = pair
    prompt = TOKENS[:, :7]
    expected = theirs.generate(torch.from_numpy(prompt), do_sample=False, max_new_tokens=12)[:, 7:].tolist()
    assert zoo.generate(ours, prompt.tolist(), 12, temperature=0).rows() == expected


def test_a_file_of_ours_loads_in_transformers(pair: Any, tmp_path: Path) -> None:
    theirs, file, ours = pair
    theirs.save_pretrained(tmp_path)
    zoo.save(ours, tmp_path / "model.safetensors")
    again, told = type(theirs).from_pretrained(tmp_path, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    state = again.state_dict()
    assert all(np.array_equal(state[name].numpy(), array) for name, array in file.items())


def theirs_counted(name: str, depth: int) -> int:
    """Parameters of transformers' model of a variant's published sizes."""
    c: Any = variant(name).config
    config = transformers.GPT2Config(n_embd=c.features, n_layer=depth, n_head=c.num_heads, vocab_size=c.vocab_size, n_positions=c.max_length)
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in transformers.GPT2LMHeadModel(config).parameters())


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in zoo.list_models("gpt2*") if variant(name).parameters])
def test_parameter_counts(name: str) -> None:
    """Those of transformers' models, from shapes alone; every further block adds the same number."""
    entry = variant(name)
    depth: int = entry.config.depth  # type: ignore[attr-defined]
    assert theirs_counted(name, 1) + (depth - 1) * (theirs_counted(name, 2) - theirs_counted(name, 1)) == entry.parameters
    assert parameter_count(abstract(entry, entry.config)) == entry.parameters

"""FNet, Nyströmformer and BigBird against transformers: random weights mapped by name, whole rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo
from layers import assign
from layers.state import flatten_state
from tests.compilation import program
from tests.references.live import randomize, relative, released, same_bits, torch, without_arrays
from tests.tiers import tiered
from zoo.registry import variant
from zoo.weights import export

transformers = pytest.importorskip("transformers", reason="the reference implementation needs transformers")

pytestmark = pytest.mark.reference

TOLERANCE = 1e-5
LENGTH = 24
THEIRS: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": LENGTH,
    "num_labels": 7,
}
OURS: dict[str, Any] = {
    "vocab_size": 61,
    "features": 32,
    "depth": 2,
    "num_heads": 4,
    "mlp_ratio": 2.0,
    "max_length": LENGTH,
}
TOKENS = np.random.default_rng(1).integers(4, 61, (3, LENGTH))
TYPES = np.broadcast_to(np.arange(LENGTH) > 9, TOKENS.shape).astype(np.int32)
# What their configurations need besides, and ours.
NYSTROM = {"num_landmarks": 4, "segment_means_seq_len": LENGTH, "conv_kernel_size": 5}
LANDMARKS = {"landmarks": 4, "kernel_size": 5, "inverse": "batch"}
BLOCKS = {"block_size": 2, "num_random_blocks": 1}

# Class of transformers, variant, how theirs and ours are made, the naming of the file.
KINDS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any], str]] = {
    "fnet": ("FNetForMaskedLM", "fnet_base", {}, {}, "transformers"),
    "fnet bare": ("FNetModel", "fnet_base", {}, {"output": "pooled"}, "bare"),
    "fnet classes": ("FNetForSequenceClassification", "fnet_base", {}, {"num_classes": 7}, "transformers"),
    "nystromformer": ("NystromformerForMaskedLM", "nystromformer_512", NYSTROM, LANDMARKS, "transformers"),
    "nystromformer as released": (
        "NystromformerForMaskedLM",
        "nystromformer_512",
        {"conv_kernel_size": 5},
        {"landmarks": 0, "kernel_size": 5},
        "transformers",
    ),
    "nystromformer classes": (
        "NystromformerForSequenceClassification",
        "nystromformer_512",
        NYSTROM,
        {**LANDMARKS, "num_classes": 7},
        "transformers",
    ),
    "bigbird": ("BigBirdForMaskedLM", "bigbird_roberta_base", BLOCKS, {"block": 2, "random": 1}, "transformers"),
    "bigbird bare": (
        "BigBirdModel",
        "bigbird_roberta_base",
        {"attention_type": "original_full"},
        {"block": None, "output": "pooled"},
        "bare",
    ),
}
# One of each, whose gradients are compared too.
WITH_GRADIENT = ("fnet", "nystromformer", "bigbird")


def theirs_of(kind: str, options: dict[str, Any]) -> Any:
    cls = getattr(transformers, kind)
    sizes = {k: v for k, v in THEIRS.items() if not (kind.startswith("FNet") and k == "num_attention_heads")}
    return cls(cls.config_class(**sizes, **options))


@pytest.mark.parametrize("kind", tiered(KINDS, lambda kind: kind in WITH_GRADIENT))
def test_matches_transformers(kind: str, tmp_path: Path, record_property: Any) -> None:
    """Output, and of one of each its gradient with respect to words and to every parameter."""
    cls, name, their_options, our_options, naming = KINDS[kind]
    theirs = theirs_of(cls, their_options)
    randomize(theirs)
    file = released(theirs, tmp_path)
    (tmp_path / "config.json").unlink()
    ours = zoo.create(name, weights=tmp_path, **OURS, **our_options)
    assert same_bits(export(ours, naming=naming), file)

    words = theirs.get_input_embeddings()(torch.from_numpy(TOKENS))
    words.retain_grad()
    out = theirs(inputs_embeds=words, token_type_ids=torch.from_numpy(TYPES).long())
    expected = out.pooler_output if naming == "bare" else out.logits
    graphdef, params, rest = nnx.split(ours, nnx.Param, ...)

    def loss(params: nnx.State, shift: jax.Array) -> Any:
        model = nnx.merge(graphdef, params, rest, copy=True)
        found = model(model.embedding(TOKENS) + shift, None, TYPES)
        return jnp.sin(found).sum(), found

    given = params, jnp.zeros(words.shape)
    difference = 0.0
    if kind in WITH_GRADIENT:
        torch.sin(expected).sum().backward()
        (gradients, of_words), found = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(*given)
        carrier = nnx.clone(ours)
        assign(carrier, flatten_state(gradients))
        by_name = export(carrier, naming=naming)
        scale = max(float(p.grad.abs().max()) for p in theirs.parameters() if p.grad is not None)
        for parameter_name, parameter in theirs.named_parameters():
            gradient = np.zeros(parameter.shape, np.float32) if parameter.grad is None else parameter.grad.numpy()
            assert np.abs(by_name[parameter_name] - gradient).max() < TOLERANCE * scale, parameter_name
        difference = relative(of_words, words.grad.numpy())
    else:
        _, found = jax.jit(loss)(*given)
    difference = max(difference, relative(found, expected.detach().numpy()))
    reference = f"transformers {transformers.__version__} {cls}"
    record_property(
        "parity",
        {"architecture": name, "reference": reference, "kind": "live", "mapped": len(file), "difference": difference},
    )
    assert difference < TOLERANCE


@pytest.mark.full
def test_a_folder_without_a_length_to_average_over_is_softmax_attention(tmp_path: Path) -> None:
    """As transformers computes it, and released folders have it."""
    theirs = theirs_of(
        "NystromformerForMaskedLM", {"conv_kernel_size": 5, "num_landmarks": 8, "segment_means_seq_len": 8}
    )
    randomize(theirs)
    theirs.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="has landmarks=0: the model follows it"):
        ours = zoo.create("nystromformer_512", weights=tmp_path, **OURS, kernel_size=5)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(TOKENS)).logits.numpy()
    assert relative(program(ours)(TOKENS), expected) < TOLERANCE


COUNTED = {
    "fnet_base": "FNet",
    "fnet_large": "FNet",
    "nystromformer_512": "Nystromformer",
    "nystromformer_4096": "Nystromformer",
    "bigbird_roberta_base": "BigBird",
    "bigbird_roberta_large": "BigBird",
}


@pytest.mark.parametrize("name", tiered(COUNTED, lambda name: name == "fnet_base"))
def test_parameter_counts(name: str) -> None:
    c: Any = variant(name).config
    sizes = {
        "hidden_size": c.features,
        "num_hidden_layers": c.depth,
        "intermediate_size": 4 * c.features,
        "vocab_size": c.vocab_size,
        "max_position_embeddings": c.max_length,
        "type_vocab_size": c.types,
    }
    heads = {} if name.startswith("fnet") else {"num_attention_heads": c.num_heads}
    cls = getattr(transformers, f"{COUNTED[name]}ForMaskedLM")
    with without_arrays():
        theirs = cls(cls.config_class(**sizes, **heads))
    assert variant(name).parameters == sum(p.numel() for p in theirs.parameters())

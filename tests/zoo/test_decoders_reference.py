"""Decoders against transformers: random weights mapped by name, float32, no download."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

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
ROUNDED = {"xlstm": 2e-5}
"""Models whose gradient transformers rounds by more than that. Its gradient of xLSTM is 1.3e-5 from its own in float64;
how far depends on the processor, which decides the order of sums.
"""
VOCABULARY, DEPTH, LENGTH = 61, 2, 19
TOKENS = np.random.default_rng(1).integers(0, VOCABULARY, (2, LENGTH))
OURS: dict[str, Any] = {"vocab_size": VOCABULARY, "features": 32, "depth": DEPTH, "num_heads": 4}
NO_ENDS: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}

# Name of a family's variant, how transformers makes a small model of its kind, and how we do. What the file's
# description says is not given to ours.
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": DEPTH, "num_attention_heads": 4}
GROUPED = {**SIZES, "num_key_value_heads": 2}
STRETCHED = {"factor": 8.0, "original_max_position_embeddings": 16, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
CAPPED = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 12}
LOCAL = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6}
KIMI: dict[str, Any] = {
    **SIZES, "num_key_value_heads": 4, "kv_lora_rank": 12, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8,
    "v_head_dim": 6, "linear_attn_config": {
        "head_dim": 8, "num_heads": 4, "short_conv_kernel_size": 3, "full_attn_layers": [2], "kda_layers": [1]
    },
}  # fmt: skip
KIMI_OURS = {"hidden": 48, "head_dim": 8, "value_dim": 6, "latent_dim": 12, "rotary_dim": 4, "conv_size": 3}
EIGHT = {"num_experts": 8, "num_experts_per_token": 3, "moe_intermediate_size": 12, "num_shared_experts": 2}
ALTERNATING = {"attn_layer_period": 2, "attn_layer_offset": 0, "expert_layer_period": 2, "expert_layer_offset": 1}
CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "gpt2": ("gpt2", "GPT2LMHeadModel", {"n_embd": 32, "n_layer": DEPTH, "n_head": 4, "n_positions": 40},
        {"max_length": 40}),
    "gpt_neo": ("gpt_neo_nano", "GPTNeoForCausalLM",
                {"hidden_size": 32, "num_layers": DEPTH, "num_heads": 4, "max_position_embeddings": 40,
                 "attention_types": [[["local", "global"], 1]], "window_size": 5}, {"max_length": 40}),
    "gptj": ("gptj_nano", "GPTJForCausalLM", {"n_embd": 32, "n_layer": DEPTH, "n_head": 4, "rotary_dim": 4}, {}),
    "llama": ("llama_nano", "LlamaForCausalLM",
        {**GROUPED, "rope_parameters": {"rope_type": "llama3", "rope_theta": 1000.0, **STRETCHED}},
              {"hidden": 48, "tied": False}),
    "mistral": ("llama_nano", "MistralForCausalLM",
                {**GROUPED, "sliding_window": 6,
                    "rope_parameters": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 2.0}}, {"hidden": 48}),
    "qwen2": ("qwen2.5_0.5b", "Qwen2ForCausalLM", {**GROUPED, "tie_word_embeddings": True}, {"hidden": 48}),
    "qwen3": ("qwen3_0.6b", "Qwen3ForCausalLM", {**GROUPED, "head_dim": 16, "tie_word_embeddings": True},
        {"hidden": 48, "head_dim": 16}),
    "gemma": ("gemma_2b", "GemmaForCausalLM", {**SIZES, "num_key_value_heads": 1, "head_dim": 16},
        {"hidden": 48, "head_dim": 16}),
    "gemma2": ("gemma_nano", "Gemma2ForCausalLM", {**GROUPED, **LOCAL, **CAPPED, "head_dim": 16},
        {"hidden": 48, "head_dim": 16}),
    "gemma3": ("gemma3_270m", "Gemma3ForCausalLM", {**GROUPED, **LOCAL, "head_dim": 16},
        {"hidden": 48, "head_dim": 16}),
    "griffin": ("recurrentgemma_nano", "RecurrentGemmaForCausalLM",
                {**SIZES, "num_key_value_heads": 1, "block_types": ["recurrent", "attention"],
                    "attention_window_size": 6, "intermediate_size": 96,
                 "lru_width": 32, "logits_soft_cap": 3.0}, {"hidden": 48}),
    "xlstm": ("xlstm_nano", "xLSTMForCausalLM",
              {"hidden_size": 64, "num_hidden_layers": DEPTH, "num_heads": 4, "qk_dim_factor": 1.0,
                  "autocast_kernel_dtype": "float32",
               "output_logit_soft_cap": 3.0}, {"features": 64, "hidden": 192}),
    "jamba": ("jamba_nano", "JambaForCausalLM", {**GROUPED, **ALTERNATING, "num_experts": 4}, {"hidden": 48}),
    "kimi_linear": ("kimi_linear_nano", "KimiLinearForCausalLM", {**KIMI, "first_k_dense_replace": DEPTH}, KIMI_OURS),
    "kimi_linear_experts": ("kimi_linear_experts_nano", "KimiLinearForCausalLM", {**KIMI, **EIGHT}, KIMI_OURS),
    "pythia": ("pythia_nano", "GPTNeoXForCausalLM", {**SIZES, "intermediate_size": 128}, {}),
}  # fmt: skip
QUICK = {"gpt2", "llama", "gemma2", "pythia"}
GRADIENTS = {*QUICK, "gpt_neo", "gptj", "griffin", "jamba", "kimi_linear", "kimi_linear_experts", "xlstm"}


def theirs_of(case: str) -> Any:
    """The model of transformers, with random weights."""
    _, name, sizes, _ = CASES[case]
    cls = getattr(transformers, name)
    model = cls(cls.config_class(**NO_ENDS, **sizes, attn_implementation="eager"))
    randomize(model)
    return model


@pytest.fixture(scope="module", params=tiered(CASES, QUICK.__contains__))
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Mapping[str, np.ndarray], Any]:
    """Theirs, the arrays of its file, and ours with the file's weights."""
    folder = tmp_path_factory.mktemp(request.param)
    theirs = theirs_of(request.param)
    file = released(theirs, folder)
    name, _, _, sizes = CASES[request.param]
    with warnings.catch_warnings(action="ignore"):
        ours = zoo.create(name, weights=folder, **{**OURS, **sizes})
    return theirs, file, ours


def test_logits_features_and_gradients(
    pair: Any, request: pytest.FixtureRequest, record_property: Any, tmp_path: Path
) -> None:
    """Logits, every block's output and, where blocks are of another kind, the gradient of every parameter, by its
    released name; the file comes back bit for bit.
    """
    theirs, file, ours = pair
    assert same_bits(export(ours), file)
    theirs.zero_grad()
    before = {name: value.clone() for name, value in theirs.state_dict().items()}
    out = theirs(torch.from_numpy(TOKENS), output_hidden_states=True, use_cache=False)

    def loss(model: Any) -> Any:
        logits = model(jnp.asarray(TOKENS))
        return jnp.sin(logits).sum(), (logits, model.features(jnp.asarray(TOKENS), range(DEPTH), norm=True))

    case = request.node.callspec.params["pair"]
    if case in GRADIENTS:
        torch.sin(out.logits).sum().backward()
        gradients, (logits, features) = nnx.jit(nnx.grad(loss, has_aux=True))(ours)
        carrier = nnx.clone(ours)
        assign(carrier, flatten_state(gradients))
        by_name = export(carrier)
        # By the names of a file: in memory some differ.
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.data, parameter.grad = parameter.grad, None
        named = released(theirs, tmp_path)
        theirs.load_state_dict(before)
        assert named.keys() == by_name.keys()
        scale = max(float(np.abs(gradient).max()) for gradient in named.values())
        far = {name: np.abs(by_name[name] - gradient).max() / scale for name, gradient in named.items()}
        bound = ROUNDED.get(case, TOLERANCE)
        assert {name: difference for name, difference in far.items() if difference > bound} == {}
    else:
        _, (logits, features) = nnx.jit(loss)(ours)
    # The last of theirs is normed, the others are not.
    differences = [
        relative(logits, out.logits.detach().numpy()),
        relative(features[-1], out.hidden_states[-1].detach().numpy()),
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


def test_generation(pair: Any, request: pytest.FixtureRequest) -> None:
    """Greedy continuations, through caches on both sides; test_generation.py has them of every kind of state."""
    if request.node.callspec.params["pair"] not in QUICK:
        pytest.skip("its logits are theirs")
    theirs, _, ours = pair
    prompt = TOKENS[:, :7]
    expected = theirs.generate(torch.from_numpy(prompt), do_sample=False, max_new_tokens=12)[:, 7:].tolist()
    assert zoo.generate(ours, prompt.tolist(), 12, temperature=0).rows() == expected


def test_a_file_of_ours_loads_in_transformers(pair: Any, tmp_path: Path) -> None:
    theirs, file, ours = pair
    theirs.save_pretrained(tmp_path)
    zoo.save(ours, tmp_path / "model.safetensors")
    again, report = type(theirs).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert same_bits(released(again, tmp_path / "again"), file)


# What files from before hold beside the parameters: masks and frequencies.
OLD = {
    "gpt2_nano": ("bare", ["h.0.attn.bias", "h.1.attn.masked_bias"]),
    "llama_nano": ("transformers", ["model.layers.1.self_attn.rotary_emb.inv_freq"]),
    "pythia_nano": (
        "transformers",
        [f"gpt_neox.layers.0.attention.{part}" for part in ("bias", "masked_bias", "rotary_emb.inv_freq")],
    ),
}


@pytest.mark.parametrize("name", OLD)
def test_files_from_before(name: str) -> None:
    """GPT-2's have no prefix either; heads that are embeddings may be written again."""
    naming, more = OLD[name]
    made = zoo.create(name, **OURS, rngs=nnx.Rngs(3))
    file = export(made, naming=naming)
    extra = dict.fromkeys(more, np.zeros(3, np.float32))
    if name == "llama_nano":
        extra["lm_head.weight"] = file["model.embed_tokens.weight"]
    again = zoo.create(name, weights={**file, **extra}, **OURS)
    assert same_bits(export(again, naming=naming), file)
    with pytest.raises(zoo.WeightsError, match="1 unexpected"):
        zoo.create(name, weights={**file, f"{more[0]}s": np.zeros(3)}, **OURS)


PUBLISHED = [
    name
    for name in zoo.list_models()
    if variant(name).family in ("gpt2", "gptj", "llama", "gemma", "pythia") and variant(name).parameters
]


def theirs_counted(name: str, depth: int) -> int:
    """Parameters of transformers' model of a variant's sizes."""
    c: Any = variant(name).config
    sizes = {
        "vocab_size": c.vocab_size,
        "hidden_size": c.features,
        "num_hidden_layers": depth,
        "num_attention_heads": c.num_heads,
    }
    cls: Any = transformers.GPTNeoXForCausalLM
    if variant(name).family == "gpt2":
        cls, sizes["n_positions"] = transformers.GPT2LMHeadModel, c.max_length
    elif variant(name).family == "gptj":
        cls = transformers.GPTJForCausalLM
    elif variant(name).family == "pythia":
        sizes["intermediate_size"] = 4 * c.features
    else:
        classes = {
            "gemma_": "Gemma",
            "gemma2": "Gemma2",
            "gemma3": "Gemma3",
            "mistra": "Mistral",
            "qwen2.": "Qwen2",
            "qwen3_": "Qwen3",
        }
        cls = getattr(transformers, f"{classes.get(name[:6], 'Llama')}ForCausalLM")
        heads = {
            "num_key_value_heads": c.num_kv_heads or c.num_heads,
            "head_dim": c.head_dim or c.features // c.num_heads,
        }
        sizes |= {"intermediate_size": c.hidden, "tie_word_embeddings": c.tied, **heads}
    with without_arrays():
        return sum(parameter.numel() for parameter in cls(cls.config_class(**sizes)).parameters())


@pytest.mark.full
@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts(name: str) -> None:
    """Those of transformers' models, from shapes alone; every further block adds the same number."""
    entry = variant(name)
    depth: int = entry.config.depth  # type: ignore[attr-defined]
    one, two = theirs_counted(name, 1), theirs_counted(name, 2)
    assert one + (depth - 1) * (two - one) == entry.parameters

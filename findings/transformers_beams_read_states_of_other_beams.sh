#!/bin/sh
# transformers 5.23.0, torch 2.13.0 (CPU): generate(num_beams=4) of MiniMaxForCausalLM with linear layers and of
# RecurrentGemmaForCausalLM, both with their cache, the default. Expected: the texts of use_cache=False, and
# sequences_scores that are the mean logarithms of the texts' probabilities, as with Llama and Qwen3-Next in this test;
# models that can't, as RWKV, refuse beams with a cache. Seen: half of the tokens of RecurrentGemma and more than three
# quarters of MiniMax's are others, the texts have a probability that is lower by 0.46 and 1.6 for each token, and scores
# are off by up to 1.1 and 2.3. When a beam goes on from another one, keys and values are moved and the states of linear
# and recurrent layers are not: MiniMax's cache moves those of its layers with keys alone, and RecurrentGemma keeps its
# states in its modules, where nothing moves them. A beam is read on with the state of another text.
# Greedy texts, MiniMax without linear layers, and use_cache=False are right. No warning.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy transformers==5.23.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, MiniMaxConfig, MiniMaxForCausalLM
from transformers import Qwen3NextConfig, Qwen3NextForCausalLM, RecurrentGemmaConfig, RecurrentGemmaForCausalLM

transformers.logging.set_verbosity_error()
torch.set_num_threads(1)
sizes = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
    head_dim=8, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)
experts = dict(num_local_experts=4, num_experts_per_tok=2)
delta = dict(
    linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8, num_experts=4,
    num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16,
)
gemma = {name: value for name, value in sizes.items() if name not in ("head_dim", "max_position_embeddings")}
linear = ["linear_attention", "full_attention"] * 2
models = {
    "Llama": (LlamaForCausalLM, LlamaConfig(**sizes)),
    "Qwen3-Next": (Qwen3NextForCausalLM, Qwen3NextConfig(**sizes, **delta, layer_types=linear)),
    "MiniMax": (MiniMaxForCausalLM, MiniMaxConfig(**sizes, **experts, layer_types=linear)),
    "MiniMax without linear layers": (
        MiniMaxForCausalLM, MiniMaxConfig(**sizes, **experts, layer_types=["full_attention"] * 4),
    ),
    "RecurrentGemma": (RecurrentGemmaForCausalLM, RecurrentGemmaConfig(**gemma, lru_width=32, attention_window_size=32)),
}
text = torch.randint(3, 64, (8, 9), generator=torch.Generator().manual_seed(1))
options = dict(
    attention_mask=torch.ones_like(text), num_beams=4, do_sample=False, min_new_tokens=12, max_new_tokens=12,
    length_penalty=1.0, return_dict_in_generate=True, output_scores=True,
)


def score(model, found):
    """The mean logarithm of probabilities of the new tokens, by one pass over the whole text."""
    logits = model(input_ids=found, use_cache=False).logits[:, 8:-1].log_softmax(-1)
    return logits.gather(-1, found[:, 9:, None])[..., 0].mean(-1)


found = {}
for name, (kind, config) in models.items():
    torch.manual_seed(0)
    model = kind(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 1.5 * weight.shape[-1] ** -0.5)
        greedy, greedy_slow = (
            model.generate(text, **(options | dict(num_beams=1, use_cache=cached))).sequences for cached in (True, False)
        )
        fast, slow = (model.generate(text, **options, use_cache=cached) for cached in (True, False))
        found[name] = dict(
            greedy=float((greedy != greedy_slow)[:, 9:].double().mean()),
            beams=float((fast.sequences != slow.sequences)[:, 9:].double().mean()),
            claimed=float((fast.sequences_scores - score(model, fast.sequences)).abs().max()),
            slow=float((slow.sequences_scores - score(model, slow.sequences)).abs().max()),
            worse=float((score(model, slow.sequences) - score(model, fast.sequences)).mean()),
        )
    print(name, {key: round(value, 3) for key, value in found[name].items()})
print("transformers", transformers.__version__)
wrong = {"MiniMax", "RecurrentGemma"}
exact = all(row["greedy"] == 0 and row["slow"] < 1e-4 for row in found.values())
right = all(found[name]["beams"] == 0 and found[name]["claimed"] < 1e-4 for name in found if name not in wrong)
seen = all(found[name]["beams"] > 0.2 and found[name]["claimed"] > 0.3 for name in wrong)
sys.exit(not (exact and right and seen))
PYTHON

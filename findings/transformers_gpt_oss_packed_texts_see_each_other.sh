#!/bin/sh
# transformers 5.23.0, torch 2.13.0 (CPU): two texts in one row, with position_ids that begin at 0 again, as
# DataCollatorWithFlattening makes them, use_cache=False and the attention that a model has by default here. Expected:
# each text has its own logits, as Llama, Mistral and Qwen3 MoE give them, whose causal mask is made from position_ids.
# Seen: GPT-OSS, AFMoE, Falcon and Granite's MoE hybrid, here with layers of attention alone, don't hand their
# position_ids to the mask; these turn keys and queries as if texts began anew, and the second text sees the first, at the
# same places as its own tokens. Its logits are off by as much as they are large, and the loss of a packed batch is
# another one. No warning, and nothing in the call tells these models from the others.
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
from torch.nn.functional import cross_entropy
from transformers import AfmoeConfig, AfmoeForCausalLM, FalconConfig, FalconForCausalLM, GptOssConfig, GptOssForCausalLM
from transformers import GraniteMoeHybridConfig, GraniteMoeHybridForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers import MistralConfig, MistralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

transformers.logging.set_verbosity_error()
torch.set_num_threads(1)
sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0, bos_token_id=1)
sizes["eos_token_id"] = 2
more = sizes | dict(num_key_value_heads=2, intermediate_size=48, max_position_embeddings=64)
experts = dict(num_local_experts=4, num_experts_per_tok=2)
small = dict(head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
both = ["sliding_attention", "full_attention"]
hybrid = dict(layer_types=["attention"] * 2, position_embedding_type="rope", shared_intermediate_size=48)
hybrid |= dict(mamba_n_heads=8, mamba_d_head=8)
models = {
    "Llama": (LlamaForCausalLM, LlamaConfig(**more)),
    "Mistral": (MistralForCausalLM, MistralConfig(**more, sliding_window=8)),
    "Qwen3 MoE": (Qwen3MoeForCausalLM, Qwen3MoeConfig(**more, **small)),
    "GPT-OSS": (GptOssForCausalLM, GptOssConfig(**more, **experts, head_dim=8, sliding_window=8, layer_types=both)),
    "AFMoE": (AfmoeForCausalLM, AfmoeConfig(**more, **small, num_dense_layers=1, sliding_window=8, layer_types=both)),
    "Falcon": (FalconForCausalLM, FalconConfig(**sizes, alibi=False)),
    "Granite MoE hybrid, attention alone": (
        GraniteMoeHybridForCausalLM, GraniteMoeHybridConfig(**more, **experts, **hybrid),
    ),
}
length = 16
texts = torch.randint(3, 64, (2, length), generator=torch.Generator().manual_seed(1))
row, positions = texts.reshape(1, -1), torch.arange(length).repeat(2)[None]
other = texts.flip(0).reshape(1, -1)


def loss(logits):
    return float(cross_entropy(logits[:, :-1].flatten(0, 1), texts[:, 1:].flatten()))


found = {}
for name, (kind, config) in models.items():
    torch.manual_seed(0)
    model = kind(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 1.5 * weight.shape[-1] ** -0.5)
        apart = model(input_ids=texts, use_cache=False).logits
        packed = model(input_ids=row, position_ids=positions, use_cache=False).logits.view(2, length, -1)
    off = (packed - apart).abs().amax((1, 2)) / apart.abs().max()
    found[name] = off.tolist()
    print(f"{name}: first text {off[0]:.1e}, second {off[1]:.1e} of the largest logit, loss {loss(packed):.3f}, "
          f"of the texts apart {loss(apart):.3f}")
print("transformers", transformers.__version__)
right = ["Llama", "Mistral", "Qwen3 MoE"]
first = all(row[0] < 1e-4 for row in found.values())
wrong = all(row[1] > 0.05 for name, row in found.items() if name not in right)
sys.exit(not (first and wrong and all(found[name][1] < 1e-4 for name in right)))
PYTHON

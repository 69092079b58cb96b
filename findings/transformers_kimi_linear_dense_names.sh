#!/bin/sh
# transformers 5.23.0, torch 2.13.0: the names of Kimi Linear's plain (dense) channel mixers, which the released models have in
# their first block.
# Expected: a model has one set of names in files. Seen: a model that was made writes model.layers.0.block_sparse_moe.gate_proj.weight,
# the experts' prefix, for a block without experts; one that was loaded from a file with model.layers.0.mlp.gate_proj.weight
# writes that. Who reads such files by name has to know both. Ends with 0 as long as this is so, with 1 once it changes.
# Downloads PyTorch into a temporary folder.
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
from safetensors.torch import load_file, save_file

config = transformers.KimiLinearConfig(
    vocab_size=11, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
    kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=8, first_k_dense_replace=2, pad_token_id=None,
    linear_attn_config={"head_dim": 8, "num_heads": 2, "short_conv_kernel_size": 4, "full_attn_layers": [2], "kda_layers": [1]},
)
torch.manual_seed(0)
transformers.KimiLinearForCausalLM(config).save_pretrained("first")
written = load_file("first/model.safetensors")
save_file({name.replace("block_sparse_moe", "mlp"): x for name, x in written.items()}, "first/model.safetensors", {"format": "pt"})
model, report = transformers.KimiLinearForCausalLM.from_pretrained("first", output_loading_info=True)
model.save_pretrained("second")
again = load_file("second/model.safetensors")
made, loaded = ([name for name in names if "layers.0" in name and "gate_proj" in name] for names in (written, again))
print("torch", torch.__version__, "transformers", transformers.__version__, made, loaded, list(report["missing_keys"]))
both = ["model.layers.0.block_sparse_moe.gate_proj.weight"], ["model.layers.0.mlp.gate_proj.weight"]
sys.exit(not ((made, loaded) == both and not report["missing_keys"]))
PYTHON

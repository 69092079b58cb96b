#!/bin/sh
# transformers 5.23.0, torch 2.13.0: Mamba-2's released files name the embedding backbone.embedding.weight, and Mamba2ForCausalLM has a hook that
# renames it to its own backbone.embeddings.weight. Expected: both ways of loading rename it. Seen: load_state_dict does, from_pretrained
# does not: it reports the one as unexpected and the other as missing, and leaves the embedding random.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads about 300 MB into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 torch==2.13.0 numpy
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file

theirs, ours = "backbone.embedding.weight", "backbone.embeddings.weight"
sizes = {"vocab_size": 32, "hidden_size": 16, "state_size": 8, "num_heads": 4, "head_dim": 8, "n_groups": 1}
config = transformers.Mamba2Config(**sizes, num_hidden_layers=1, chunk_size=8)
model = transformers.Mamba2ForCausalLM(config)
model.save_pretrained("model")
tensors = load_file("model/model.safetensors")
tensors[theirs] = tensors.pop(ours)
save_file(tensors, "model/model.safetensors", metadata={"format": "pt"})


def equal(other):
    return torch.equal(other.backbone.embeddings.weight, model.backbone.embeddings.weight)


by_state = transformers.Mamba2ForCausalLM(config)
left = by_state.load_state_dict(dict(tensors), strict=False)
by_name, report = transformers.Mamba2ForCausalLM.from_pretrained("model", output_loading_info=True)
seen = {"load_state_dict": equal(by_state), "from_pretrained": equal(by_name), "missing": sorted(report["missing_keys"])}
print("transformers", transformers.__version__, left, seen)
sys.exit(seen != {"load_state_dict": True, "from_pretrained": False, "missing": [ours]})
PYTHON

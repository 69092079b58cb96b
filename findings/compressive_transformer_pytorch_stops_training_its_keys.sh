#!/bin/sh
# compressive-transformer-pytorch 0.4.0, torch 2.13.0 (CPU): a CompressiveTransformer in training, the segments of a text one after another with the memories
# of those before. Expected: each call leaves the model's parameters trainable; the reconstruction loss alone has no gradient into keys and values. Seen: the
# first call that compresses memories detaches the weight of to_kv in place, so that its requires_grad is False from there on: keys and values of all layers
# get no gradient from any loss and stay where the first steps left them, without a warning. Queries and all else are trained. The same in evaluation mode
# does not happen.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy compressive-transformer-pytorch==0.4.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from compressive_transformer_pytorch import CompressiveTransformer

torch.manual_seed(0)
text = torch.randint(0, 20, (2, 5 * 8))
found = {}
for mode in ("train", "eval"):
    model = CompressiveTransformer(num_tokens=20, dim=32, seq_len=8, depth=2, mem_len=8, cmem_len=4, cmem_ratio=2, heads=4)
    getattr(model, mode)()
    memories, trained = None, []
    for segment in text.split(8, dim=1):
        model.zero_grad(set_to_none=True)
        logits, memories, reconstruction = model(segment, memories=memories)
        (torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), segment[:, 1:].flatten()) + reconstruction.sum()).backward()
        reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.abs().max() > 0}
        trained.append([sum(f".{part}.weight" in name for name in reached) for part in ("to_q", "to_kv")])
    found[mode] = trained
print("compressive-transformer-pytorch", importlib.metadata.version("compressive-transformer-pytorch"), "of 2 layers, how many have a gradient in",
      "to_q and to_kv, by segment:", found)
sys.exit(not (found["train"][0] == [2, 2] and found["train"][2:] == [[2, 0]] * 3 and found["eval"] == [[2, 2]] * 5))
PYTHON

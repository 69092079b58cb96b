#!/bin/sh
# peft 0.21.2, torch 2.13.0 (CPU): LoRA on layers of torch.nn.TransformerEncoderLayer(batch_first=True). Expected: what was
# trained is what is evaluated and what merge_and_unload() keeps. Seen, without an error: with target_modules of linear1 and
# linear2, or self_attn, the adapters count in training (and once merged) but not at all in eval mode, whose fast path reads the
# frozen weights of the layer below; with "out_proj" they never count, in training neither, and have no gradients, while merging
# adds them. A copy of the encoder's layer in plain modules is right throughout, and
# torch.backends.mha.set_fastpath_enabled(False) mends the first two.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy transformers==5.23.0 accelerate==1.15.0 peft==0.21.2
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import peft
import torch
from torch import nn


class Plain(nn.Module):  # the same sizes, of modules that are called
    def __init__(self):
        super().__init__()
        self.qkv, self.out_proj = nn.Linear(32, 96), nn.Linear(32, 32)
        self.linear1, self.linear2 = nn.Linear(32, 64), nn.Linear(64, 32)
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (4, 8)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.out_proj(y))
        return self.norm2(x + self.linear2(self.linear1(x).relu()))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True)

    def forward(self, x):
        return self.layer(x)


x = torch.randn(2, 10, 32, generator=torch.Generator().manual_seed(0))
found = {}
for kind in (Encoder, Plain):
    for targets in (["linear1", "linear2"], ["self_attn"], ["out_proj"]):
        if kind is Plain and targets == ["self_attn"]:
            continue
        torch.manual_seed(0)
        base = kind().eval()
        with torch.no_grad():
            before = base(x)
            model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
            read = {"trained": model.train()(x), "evaluated": model.eval()(x)}
            torch.backends.mha.set_fastpath_enabled(False)
            read["evaluated plainly"] = model(x)
            torch.backends.mha.set_fastpath_enabled(True)
            read["merged"] = model.merge_and_unload().eval()(x)
        found[kind.__name__, *targets] = {name: round(float((y - before).abs().max()), 5) for name, y in read.items()}
print("peft", peft.__version__, "torch", torch.__version__)
for name, changes in found.items():
    print(*name, "change by the adapters:", changes)
counts = {name: [change > 0.1 for change in changes.values()] for name, changes in found.items()}
none = all(change > 0.1 or change < 1e-4 for changes in found.values() for change in changes.values())
wrong = counts["Encoder", "linear1", "linear2"] == counts["Encoder", "self_attn"] == [True, False, True, True]
wrong = wrong and counts["Encoder", "out_proj"] == [False, False, False, True]
sys.exit(not (none and wrong and all(all(c) for name, c in counts.items() if name[0] == "Plain")))
PYTHON

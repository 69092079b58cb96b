#!/bin/sh
# conformer 0.3.2, torch 2.13.0 (CPU): Conformer(attn_dropout=0.1, ff_dropout=0.1, conv_dropout=0.1) in training mode, and ConformerBlock with mask=.
# Expected: dropouts of 0.1, so that two calls differ, and outputs of a text that do not depend on what is masked behind it. Seen: Conformer takes the three
# rates and hands none to its blocks: all its dropouts have a rate of 0. ConformerBlock alone has them. The block's mask reaches the attention alone: the
# convolution of 31 tokens reads what is masked, by 2 to 5 % of the largest output for every token of a text of 12, and Conformer itself takes no mask.
# Ends with 0 as long as this is so, with 1 once it changes. Downloads PyTorch into a temporary folder.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy conformer==0.3.2
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from conformer import Conformer, ConformerBlock

torch.manual_seed(0)
rates = {"attn_dropout": 0.1, "ff_dropout": 0.1, "conv_dropout": 0.1}
sizes = {"dim": 16, "dim_head": 8, "heads": 2}
x, found = torch.randn(1, 20, 16), {}
with torch.no_grad():
    for name, model in (("Conformer", Conformer(**sizes, depth=2, **rates)), ("block", ConformerBlock(**sizes, **rates))):
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.eval()
        found[name] = sorted({m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}), bool((model(x) == model(x)).all())
    model.eval()
    mask = torch.arange(20)[None] < 12
    y, other = model(x, mask=mask)[:, :12], model(torch.where(mask[..., None], x, -x), mask=mask)[:, :12]
    apart = (other - y).abs().amax(-1)[0] / y.abs().max()
print("conformer", importlib.metadata.version("conformer"), "rates, and whether two calls agree:", found)
print("relative change by what is masked:", float(apart.min()), "to", float(apart.max()))
sys.exit(not (found["Conformer"] == ([0.0], True) and found["block"] == ([0.1], False) and float(apart.min()) > 1e-3 and float(apart.max()) > 0.02))
PYTHON
